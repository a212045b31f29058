"""Flow matching's paths, in the literature's clock: noise at t = 0, data at t = 1.

`CondOT` and `Trigonometric` are Gaussian paths like any other. `Interpolant` replaces independent Gaussian noise by
another source z, or by one that is coupled with the data: the ODE is still dy/du = E[z - x | y], but there is no score.
`Retimed` maps a path's time linearly onto another interval, backwards too. Both are paths that wrap a path.

References:
    Flow Matching for Generative Modeling, Lipman et al., 2023, arXiv:2210.02747.
    Flow Straight and Fast, Liu et al., 2023, arXiv:2209.03003.
    Stochastic Interpolants, Albergo et al., 2023, arXiv:2303.08797.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import as_time
from sdegen.paths.gaussian import GaussianPath, Slopes, UnitVariance
from sdegen.paths.priors import Source


@dataclass(frozen=True)
class CondOT(GaussianPath):
    """Flow matching's straight path in its own clock, noise at t = 0, data at t = 1.

    x_t = t x + (1 - (1 - sigma_min) t) eps

    Args:
        sigma_min: the noise that is left at the data, in [0, 1).

    Raises:
        ValueError: unless 0 <= sigma_min < 1.

    Examples:
        >>> path, t = sdegen.CondOT(), torch.tensor(0.25)
        >>> path.alpha(t), path.sigma(t)
        (tensor(0.2500), tensor(0.7500))

    References:
        Flow Matching for Generative Modeling, Lipman et al., 2023, arXiv:2210.02747.
    """

    sigma_min: float = 0.0
    t_data = 1.0
    t_noise = 0.0

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        if _checks.real("sigma_min", self.sigma_min, 0) >= 1:
            raise ValueError(f"sigma_min must be below 1, and it is {self.sigma_min}.")

    def alpha(self, t: float | Tensor) -> Tensor:
        """alpha = t; t is the path's own time, 1 at the data and 0 at the noise."""
        return as_time(t) + 0.0

    def sigma(self, t: float | Tensor) -> Tensor:
        """sigma = 1 - (1 - sigma_min) t; t is the path's own time, 1 at the data and 0 at the noise."""
        t = as_time(t)
        return (1 - t) + self.sigma_min * t

    def slopes(self, t: float | Tensor) -> Slopes:
        """alpha' = 1 and sigma' = sigma_min - 1; t is the path's own time, 1 at the data and 0 at the noise."""
        sigma = self.sigma(t)
        slope = self.sigma_min - 1
        return Slopes(torch.ones_like(sigma), torch.full_like(sigma, slope), 2 * slope * sigma)

    def time(self, u: float | Tensor) -> Tensor:
        """t = alpha = (1-u) r; u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise."""
        u = self.checked_clocks(u)
        return (1 - u) * self._scale(u)

    def scale(self, u: float | Tensor) -> Tensor:
        """r = 1/(1 - sigma_min (1-u)).

        u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise.
        """
        return self._scale(self.checked_clocks(u))

    def _scale(self, u: Tensor) -> Tensor:
        return 1 / (1 - self.sigma_min * (1 - u))


@dataclass(frozen=True)
class Trigonometric(UnitVariance):
    """The variance-preserving flow from end to end, noise at t = 0, data at t = 1.

    x_t = sin(pi t/2) x + cos(pi t/2) eps

    Examples:
        >>> path, third = sdegen.Trigonometric(), torch.tensor(1 / 3)
        >>> f"{path.alpha(third):.4f}, {path.sigma(third):.4f}"  # the sine and cosine of 30 degrees
        '0.5000, 0.8660'

    References:
        Building Normalizing Flows with Stochastic Interpolants, Albergo and Vanden-Eijnden, 2023, arXiv:2209.15571.
    """

    t_data = 1.0
    t_noise = 0.0

    def alpha(self, t: float | Tensor) -> Tensor:
        """alpha = sin(pi t/2); t is the path's own time, 1 at the data and 0 at the noise."""
        return torch.sin(0.5 * math.pi * as_time(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        """sigma = cos(pi t/2), as a sine that is exactly 0 at t = 1.

        t is the path's own time, 1 at the data and 0 at the noise.
        """
        return torch.sin(0.5 * math.pi * (1 - as_time(t)))

    def slopes(self, t: float | Tensor) -> Slopes:
        """alpha' = pi/2 sigma and sigma' = -pi/2 alpha; t is the path's own time, 1 at the data and 0 at the noise."""
        alpha, sigma = 0.5 * math.pi * self.alpha(t), self.sigma(t)
        return Slopes(0.5 * math.pi * sigma, -alpha, -2 * sigma * alpha)

    def time(self, u: float | Tensor) -> Tensor:
        """The inverse of tan(pi (1-t)/2) = u/(1-u).

        u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise.
        """
        u = self.checked_clocks(u)
        return 1 - torch.atan2(u, 1 - u) / (0.5 * math.pi)


@dataclass(frozen=True)
class WrappedPath(GaussianPath):
    """A path made of another: what a subclass does not override is forwarded to the path it wraps.

    That holds for the methods and for `t_data`, `t_noise`, `steps`, `has_score` and `source`, which are copied unless
    the subclass sets them, in its body or as fields. A subclass is a frozen dataclass too.

    Attributes:
        path: the other path.
    """

    path: GaussianPath

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        if not isinstance(self.path, GaussianPath):
            raise TypeError(f"path must be a GaussianPath such as CondOT(), and it is {_checks.described(self.path)}.")
        line = type(self).__mro__
        stated = {name for heir in line[: line.index(WrappedPath)] for name in vars(heir)}
        for name in {"t_data", "t_noise", "steps", "has_score", "source"} - stated - {f.name for f in fields(self)}:
            object.__setattr__(self, name, getattr(self.path, name))

    def alpha(self, t: float | Tensor) -> Tensor:
        """alpha of the wrapped path; t is the path's own time, `t_data` at the data and `t_noise` at the noise."""
        return self.path.alpha(t)

    def sigma(self, t: float | Tensor) -> Tensor:
        """sigma of the wrapped path; t is the path's own time, `t_data` at the data and `t_noise` at the noise."""
        return self.path.sigma(t)

    def slopes(self, t: float | Tensor) -> Slopes:
        """The slopes of the wrapped path; t is the path's own time, `t_data` at the data and `t_noise` at the noise."""
        return self.path.slopes(t)

    def time(self, u: float | Tensor) -> Tensor:
        """The time of the wrapped path.

        u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise.
        """
        return self.path.time(u)

    def scale(self, u: float | Tensor) -> Tensor:
        """r of the wrapped path; u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise."""
        return self.path.scale(u)


@dataclass(frozen=True)
class Interpolant(WrappedPath):
    """A path's alpha and sigma between data and a source of any kind, coupled in any way.

    x_t = alpha x + sigma z

    `loss` regresses the velocity, the ODE carries source to data, and whatever needs a score raises a ValueError:
    E[z | x_t] is one only where z is Gaussian and independent of x.

    Args:
        path: gives alpha and sigma, by default `CondOT()`.
        source: the law of z, an object with `.sample(shape, generator)` for `sample` and `.log_prob(x)` for
            `log_prob`; None for standard normals that are coupled with the data, as by `OptimalTransport` or `rectify`.

    Raises:
        TypeError: for a path or a source of another kind.
        ValueError: for a source on a path that does not end in it, alpha = 0 and sigma = 1.

    Examples:
        >>> sdegen.CondOT().has_score, sdegen.Interpolant(sdegen.CondOT()).has_score
        (True, False)

    References:
        Stochastic Interpolants, Albergo et al., 2023, arXiv:2303.08797.
    """

    path: GaussianPath = field(default_factory=CondOT)
    source: Source | None = None
    has_score = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path.has_score:
            raise ValueError(
                f"An Interpolant takes its alpha and sigma from a Gaussian path, and {self.path!r} is none."
            )
        if self.source is None:
            return
        _check_source(self.source)
        u, r = self.path.ends[1], float(self.path.scale(1.0)) if self.path.ends[1] == 1 else math.nan
        if (u, r) != (1.0, 1.0):
            raise ValueError(f"A source needs a path that ends in it, and {self.path!r} ends at u = {u} and not in it.")


def _check_source(source: object) -> None:
    """A TypeError unless `source` has `sample(shape, generator)`, `log_prob(x)` or both."""
    sample = getattr(source, "sample", None)
    if isinstance(source, type) or not (callable(sample) or callable(getattr(source, "log_prob", None))):
        raise TypeError(f"source must have .sample(shape, generator), .log_prob(x) or both, not {source!r}.")
    if not callable(sample):
        return
    try:
        signature = inspect.signature(sample)
    except (TypeError, ValueError):  # a builtin says nothing of its arguments
        return
    try:
        signature.bind((1, 1), None)
    except TypeError as error:
        raise TypeError(
            f"source.sample is to be called as sample(shape, generator), and that of {source!r} takes {signature}: "
            "wrap it in an object with sample(shape, generator), of shape (B, *event), and log_prob(x), of shape (B,)."
        ) from error


@dataclass(frozen=True)
class Retimed(WrappedPath):
    """A path in another time, linear in its own: data at `t_data`, noise at `t_noise`.

    Retimed(CondOT(), 0.0, 1.0) is the rectified flow of image models, noise growing with t. The samples are the same;
    velocities change sign and scale with dt.

    Args:
        path: the path to retime.
        t_data: the time at its data end, 0 by default.
        t_noise: the time at its noise end, 1 by default.

    Raises:
        ValueError: unless the two times are finite and differ.

    Examples:
        >>> path = sdegen.Retimed(sdegen.CondOT(), t_data=0.0, t_noise=1.0)
        >>> path.sigma(torch.tensor([0.0, 0.25, 1.0]))  # noise now grows with t
        tensor([0.0000, 0.2500, 1.0000])
    """

    t_data: float = 0.0
    t_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if _checks.real("t_data", self.t_data) == _checks.real("t_noise", self.t_noise):
            raise ValueError(f"t_data and t_noise must differ, and both are {self.t_data}.")

    @property
    def _rate(self) -> float:
        """d(the wrapped path's time) / dt."""
        return (self.path.t_noise - self.path.t_data) / (self.t_noise - self.t_data)

    def _own(self, t: float | Tensor) -> Tensor:
        """The path's own time, from whichever end is nearer: both are met exactly."""
        t = as_time(t)
        near_data = (t - self.t_data).abs() <= (t - self.t_noise).abs()
        from_data = self.path.t_data + self._rate * (t - self.t_data)
        return torch.where(near_data, from_data, self.path.t_noise + self._rate * (t - self.t_noise))

    def alpha(self, t: float | Tensor) -> Tensor:
        """alpha of the wrapped path at its own time.

        t is the path's own time, `t_data` at the data and `t_noise` at the noise.
        """
        return self.path.alpha(self._own(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        """sigma of the wrapped path at its own time.

        t is the path's own time, `t_data` at the data and `t_noise` at the noise.
        """
        return self.path.sigma(self._own(t))

    def slopes(self, t: float | Tensor) -> Slopes:
        """The slopes of the wrapped path, by the chain rule.

        t is the path's own time, `t_data` at the data and `t_noise` at the noise.
        """
        return Slopes(*(self._rate * slope for slope in self.path.slopes(self._own(t))))

    def time(self, u: float | Tensor) -> Tensor:
        """The time of the wrapped path, mapped onto this one's interval.

        u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise.
        """
        return self.t_data + (self.path.time(u) - self.path.t_data) / self._rate
