"""Gaussian paths: x_t = alpha(t) x + sigma(t) eps, with data x, noise eps ~ N(0, I), and what follows from them.

    r = alpha + sigma      the scale            u = sigma / r      the straight clock: 0 at data, 1 at noise
    alpha = (1 - u) r      sigma = u r          lambda = log(alpha^2 / sigma^2) = 2 log((1 - u) / u)     log-SNR
    dx = f x dt + g dw     f = (log alpha)'     g^2 = (sigma^2)' - 2 f sigma^2     forward SDE, t away from the data

A path speaks its literature's time, from `t_data` to `t_noise`; only here does anyone know which of them is larger.
Everything is a function of the time t, except `time(u)` and `scale(u)`: they invert the clock, without ever forming
1 - exp.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
    Variational Diffusion Models, Kingma et al., 2021, arXiv:2107.00630.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators, as_time, batch_of_times, like, normal
from sdegen.paths.consistency import check_inverse, check_slopes, values
from sdegen.paths.inverse import inverse, settles
from sdegen.paths.priors import Normal, Source

Fraction = TypeVar("Fraction", float, Tensor)


def log1p_snr(u: Tensor) -> Tensor:
    """The clock of the bounds, w = log(1 + SNR), where the straight clock shows `u`.

        w = log(1 + ((1-u)/u)^2), infinite at clean data (u = 0) and 0 at pure noise (u = 1)

    On a variance-preserving path w = -log sigma^2. It is close to the log-SNR where that is large, and unlike it stays
    finite at pure noise, so that a bound is an integral over w of something bounded.

    Args:
        u: clocks in [0, 1], of any shape.

    Returns:
        w in [0, inf], in nats, shaped like `u`.
    """
    return torch.log1p(((1 - u) / u) ** 2)


def clock_at_log1p_snr(w: Tensor) -> Tensor:
    """The straight clock where log(1 + SNR) is `w`: the inverse of `log1p_snr`.

        u = 1 / (1 + sqrt(exp(w) - 1))

    Args:
        w: log(1 + SNR) in [0, inf], in nats, of any shape.

    Returns:
        u in [0, 1], shaped like `w`: 1 at w = 0 and 0 at w = inf, exactly.
    """
    return 1 / (1 + torch.sqrt(torch.expm1(w)))


class Slopes(NamedTuple):
    """Derivatives in the path's own time.

    Attributes:
        alpha: d alpha/dt.
        sigma: d sigma/dt.
        variance: d sigma^2/dt, finite where sigma' is not.

    Examples:
        >>> slopes = sdegen.CondOT().slopes(torch.tensor(0.25))
        >>> slopes.alpha, slopes.sigma, slopes.variance  # d sigma^2/dt = -2 (1 - t)
        (tensor(1.), tensor(-1.), tensor(-1.5000))
    """

    alpha: Tensor
    sigma: Tensor
    variance: Tensor


class GaussianPath(ABC):
    """x_t = alpha(t) x + sigma(t) eps: write your own by giving `alpha` and `sigma`.

    Both take a floating tensor of times and return a tensor of the same shape, by torch operations; alpha/sigma must
    fall strictly from `t_data` to `t_noise`, both must be non-negative, and alpha is 1 where sigma is 0::

        import torch
        import sdegen
        from sdegen.nets import MLP

        class Quadratic(sdegen.GaussianPath):
            def alpha(self, t):
                return torch.exp(-4 * t**2)

            def sigma(self, t):
                return torch.sqrt(-torch.expm1(-8 * t**2))

        model = sdegen.ScoreModel(MLP(2), Quadratic())

    Derivatives then come from autograd and the inverse clock from secant steps in float64, unless a path states its own
    `slopes`, `time` and `scale` in closed form, as those of the library do. All are compared with alpha and sigma once,
    before the path is first used, see `ends`.

    Attributes:
        t_data: the path's own time at the data, 0 unless a path says otherwise.
        t_noise: its time at the noise, 1 unless a path says otherwise.
        steps: the length of the chain, on a path that is one, and None on others.
        has_score: whether the source is Gaussian noise, independent of the data.
        source: what else is at the noise end, None for Gaussian noise.

    Examples:
        >>> path = sdegen.VPSDE()
        >>> t = path.time(torch.tensor(0.3, dtype=torch.float64))  # where u = sigma/(alpha + sigma) is 0.3
        >>> f"{path.clock(t):.6f}"
        '0.300000'
    """

    t_data: float = 0.0
    t_noise: float = 1.0
    steps: int | None = None
    has_score: bool = True
    source: Source | None = None

    @abstractmethod
    def alpha(self, t: float | Tensor) -> Tensor:
        """The factor of the data at time t.

        Args:
            t: the path's own time, from `t_data` at the data to `t_noise` at the noise: a number, or a tensor of
                any shape.

        Returns:
            The factor of the data, shaped like t.
        """

    @abstractmethod
    def sigma(self, t: float | Tensor) -> Tensor:
        """The standard deviation of the noise at time t.

        Args:
            t: the path's own time, from `t_data` at the data to `t_noise` at the noise: a number, or a tensor of
                any shape.

        Returns:
            The deviation of the noise, shaped like t.
        """

    # What a path may state in closed form

    def slopes(self, t: float | Tensor) -> Slopes:
        """d alpha/dt, d sigma/dt and d sigma^2/dt at time t, in the path's own time, each shaped like t.

        Args:
            t: the path's own time, from `t_data` at the data to `t_noise` at the noise: a number, or a tensor of
                any shape.

        Returns:
            The derivatives in t, (alpha', sigma', (sigma^2)'), each shaped like t.
        """
        wide = as_time(t).double()
        # sigma^2 has a slope where sigma = 0, but the chain rule reads it as 0 * inf: step off that point
        inside = torch.where(self.sigma(wide) == 0, wide + 1e-12 * (self.t_noise - self.t_data), wide)
        functions = ((self.alpha, wide), (self.sigma, wide), (lambda s: self.sigma(s) ** 2, inside))
        return Slopes(*(_slope(f, at).to(as_time(t)) for f, at in functions))

    def time(self, u: float | Tensor) -> Tensor:
        """The time t at which the straight clock shows `u`: the inverse of `clock`.

        Args:
            u: the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise: a number, or a tensor
                of any shape.

        Returns:
            t, shaped like u.
        """
        u = self.checked_clocks(u)
        there = u if u.device.type == "cpu" or self._smooth else u.cpu()
        return inverse(self._clock, self.t_data, self.t_noise, there).to(u)

    def scale(self, u: float | Tensor) -> Tensor:
        """r = alpha + sigma where the straight clock shows `u`.

        Args:
            u: the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise: a number, or a tensor
                of any shape.

        Returns:
            r, shaped like u.
        """
        t = self.time(u)
        return self.alpha(t) + self.sigma(t)

    # What follows for every path

    def at(self, fraction: Fraction) -> Fraction:
        """The time at a `fraction` of the way from the data (0) to the noise (1), in the path's own time."""
        return self.t_data + (self.t_noise - self.t_data) * fraction

    def clock(self, t: float | Tensor) -> Tensor:
        """The straight clock u = sigma / (alpha + sigma) at time t: 0 at clean data, 1 at pure noise.

        Args:
            t: the path's own time, from `t_data` at the data to `t_noise` at the noise: a number, or a tensor of
                any shape.

        Returns:
            u, shaped like t.

        Examples:
            >>> sdegen.CondOT().clock(torch.tensor([0.0, 0.25, 1.0]))  # noise at t = 0
            tensor([1.0000, 0.7500, 0.0000])
        """
        return self._clock(self.checked_times(as_time(t)))

    def _clock(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        return sigma / (self.alpha(t) + sigma)

    def log_snr(self, t: float | Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at time t.

        Args:
            t: the path's own time, from `t_data` at the data to `t_noise` at the noise: a number, or a tensor of
                any shape.

        Returns:
            The log-SNR, shaped like t.

        Examples:
            >>> sdegen.CondOT().log_snr(torch.tensor(0.5))  # alpha = sigma
            tensor(0.)
        """
        t = self.checked_times(as_time(t))
        return 2 * (torch.log(self.alpha(t)) - torch.log(self.sigma(t)))

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        """f(t) x of the forward SDE, per unit of time away from the data.

        f = (log alpha)'

        Args:
            x: a state (B, *event).
            t: the path's own time, a scalar or (B,).

        Returns:
            f x, shaped like `x`.

        Examples:
            >>> path = sdegen.VPSDE(beta_min=2.0, beta_max=2.0)
            >>> f"{path.drift(torch.tensor([[3.0]]), 0.5).item():.4f}"  # -beta x / 2
            '-3.0000'
        """
        self.ends  # noqa: B018  # which looks at the slopes, once
        t = self.checked_times(as_time(t))
        return like((self._away * self.slopes(t).alpha / self.alpha(t)), x) * x

    def diffusion(self, t: float | Tensor) -> Tensor:
        """g(t) of the forward SDE, per square root of a unit of time away from the data.

        g^2 = (sigma^2)' - 2 f sigma^2

        Args:
            t: the path's own time, from `t_data` at the data to `t_noise` at the noise: a number, or a tensor of
                any shape.

        Returns:
            g, shaped like t.

        Examples:
            >>> path = sdegen.VPSDE(beta_min=4.0, beta_max=4.0)
            >>> f"{path.diffusion(0.5):.4f}"  # sqrt(beta)
            '2.0000'
        """
        self.ends  # noqa: B018  # which looks at the slopes, once
        t = self.checked_times(as_time(t))
        slopes = self.slopes(t)
        f = slopes.alpha / self.alpha(t)
        return torch.sqrt(self._away * (slopes.variance - 2 * f * self.sigma(t) ** 2))

    def perturb(
        self, x: Tensor, t: float | Tensor, noise: Tensor | None = None, generator: Generators = None
    ) -> tuple[Tensor, Tensor]:
        """Draw x_t = alpha(t) x + sigma(t) eps.

        Args:
            x: data (B, *event).
            t: the path's own time, a scalar or (B,).
            noise: eps, shaped like `x`; a draw from the source by default.
            generator: for that draw, a torch.Generator or one per sample.

        Returns:
            (x_t, eps), both shaped like `x`.

        Raises:
            TypeError: for data, times, noise or generators of another kind.
            ValueError: for times off the path, and for shapes, generators or noise that do not fit `x`.

        Examples:
            >>> x_t, eps = sdegen.CondOT().perturb(torch.tensor([[2.0]]), 0.75, noise=torch.ones(1, 1))
            >>> x_t  # 0.75 * 2 + 0.25 * 1
            tensor([[1.7500]])
        """
        _checks.batch("x", x, finite=False)
        _checks.generators(generator, len(x), x.device)
        t = self.checked_times(as_time(t))
        t = t if t.ndim == 0 else batch_of_times(t, x)
        eps = self.noise_like(x, generator) if noise is None else _checks.noise_like(noise, x)
        return like(self.alpha(t), x) * x + like(self.sigma(t), x) * eps, eps

    def noise_like(self, x: Tensor, generator: Generators = None) -> Tensor:
        """Draws from the source, standard normals unless it is another.

        Args:
            x: what the draws shall be like, (B, *event).
            generator: a torch.Generator, or one per sample.

        Returns:
            The draws, with the shape and dtype of `x`, on its device.

        Raises:
            ValueError: for a source that cannot be sampled, or answers in another shape.
        """
        if self.source is None:
            return normal(x.shape, generator, x.dtype, x.device)
        if not callable(getattr(self.source, "sample", None)):
            raise ValueError(f"The source {self.source!r} has no method sample(shape, generator); give its draws.")
        z = self._source_sample(tuple(x.shape), generator)
        if z.shape != x.shape:
            raise ValueError(f"The source's sample must have shape {tuple(x.shape)}, and it has {tuple(z.shape)}.")
        return z.to(x)

    def _source_sample(self, shape: tuple[int, ...], generator: Generators) -> Tensor:
        """The source's answer to one generator, to one per sample if it takes them, or else to one after another."""
        name, sample = "the source's sample", cast("Callable[..., Tensor]", cast("Source", self.source).sample)
        takes_several = getattr(self.source, "per_sample_generators", False)
        if takes_several or generator is None or isinstance(generator, torch.Generator):
            return _checks.batch(name, sample(shape, generator), finite=False)
        if not generator:
            return _checks.batch(name, sample(shape, None), finite=False)
        return torch.cat([_checks.batch(name, sample((1, *shape[1:]), g), finite=False) for g in generator])

    def transition(self, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """The law of x_t given x_s, for s nearer the data: x_t ~ N(scale x_s, std^2 I).

        scale = alpha(t)/alpha(s), std^2 = sigma(t)^2 - scale^2 sigma(s)^2; where s = t they are 1 and 0.

        Args:
            s: the path's own time at the point nearer the data, of any shape.
            t: the path's own time at the point nearer the noise, broadcasting against `s`.

        Returns:
            (scale, std), shaped like s and t together.

        Raises:
            ValueError: for times off the path or in the other order, and on a path without Gaussian kernels.

        Examples:
            >>> path = sdegen.VESDE()
            >>> factor, std = path.transition(0.2, 0.8)
            >>> s, t = path.sigma(0.2), path.sigma(0.8)
            >>> f"{factor:.1f}", bool(torch.isclose(std**2 + s**2, t**2))  # variances add up
            ('1.0', True)
        """
        s, t = self._ordered(s, t)
        return _ratio(self.alpha(t), self.alpha(s)), self.sigma(t) * torch.sqrt(self._fresh(s, t))

    def bridge(self, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The law of x_s given x_t and the data x, for s nearer the data: N(c_t x_t + c_x x, std^2 I).

        With q = (sigma/alpha)(s) / (sigma/alpha)(t),

            c_t = q sigma(s)/sigma(t)       c_x = alpha(s) (1 - q^2)       std = sigma(s) sqrt(1 - q^2)

        and where s = t, at clean data too, c_t = 1 and the others are 0.

        Args:
            s: the path's own time at the point nearer the data, of any shape.
            t: the path's own time at the point nearer the noise, broadcasting against `s`.

        Returns:
            (c_t, c_x, std), shaped like s and t together.

        Raises:
            ValueError: for times off the path or in the other order, and on a path without Gaussian kernels.
        """
        s, t = self._ordered(s, t)
        fresh = self._fresh(s, t)
        c_t = _ratio(self.alpha(t), self.alpha(s)) * _ratio(self.sigma(s), self.sigma(t)) ** 2
        return c_t, self.alpha(s) * fresh, self.sigma(s) * torch.sqrt(fresh)

    def prior_at(self, u: float) -> Normal | Source:
        """The law that noise has where the straight clock shows `u`.

        Args:
            u: a clock of the path.

        Returns:
            N(0, sigma^2 I), or the source, known at the noise end alone.

        Raises:
            ValueError: for a clock off the path, or short of the end of a path with another source.
        """
        if self.source is not None:
            if u != self.ends[1]:
                raise ValueError(f"The law at u = {u} between data and source of {self!r} is not known.")
            return self.source
        clock = self.checked_clocks(float(u))
        return Normal(float(clock * self.scale(clock)))

    @cached_property
    def prior(self) -> Normal | Source:
        """N(0, sigma(t_noise)^2 I), or the source, with `.sample(shape, generator)` and `.log_prob(x)`."""
        return self.prior_at(self.ends[1])

    @cached_property
    def ends(self) -> tuple[float, float]:
        """(u_data, u_noise): what the straight clock shows at the two ends of the path.

        Every verb asks for them, so it is here that a path is checked, once.

        Raises:
            ValueError: where alpha or sigma is negative, not finite or of another shape than t, the clock does not
                rise, alpha is not 1 at clean data, or `slopes`, `time` and `scale` contradict alpha and sigma.
        """
        ends = self._clocks
        with torch.no_grad():
            own = [name for name in ("slopes", "time", "scale") if self._states(name)]
            check_slopes(self, by_autograd="slopes" not in own)
            check_inverse(self, own)
        return ends

    def scale_at(self, u: Tensor, t: Tensor) -> Tensor:
        """r where the clock shows `u` at the time `t`: `scale(u)` if the path states it, else without inverting it."""
        return self.scale(u) if self._states("scale") else self.alpha(t) + self.sigma(t)

    def _states(self, name: str) -> bool:
        """Whether this path overrides the method `name` of `GaussianPath`."""
        return getattr(type(self), name) is not getattr(GaussianPath, name)

    @cached_property
    def _clocks(self) -> tuple[float, float]:
        """`ends`, as soon as alpha and sigma are known to make a clock."""
        with torch.no_grad():
            t = torch.linspace(self.t_data, self.t_noise, 257, dtype=torch.float64)
            alpha, sigma = values(self, "alpha", t), values(self, "sigma", t)
            u = sigma / (alpha + sigma)
        wrong = torch.nonzero(~(torch.diff(u) > 0))
        if len(wrong):
            i = int(wrong[0])
            raise ValueError(
                f"The clock u = sigma/(alpha+sigma) of {self!r} must rise from t_data to t_noise; from t = {t[i]:g} "
                f"to {t[i + 1]:g} it goes from {u[i]} to {u[i + 1]}: check that the two ends are not swapped, that the "
                "log-SNR falls, and that alpha does not vanish beside sigma before the end."
            )
        if u[0] == 0 and abs(float(alpha[0]) - 1) > 1e-6:
            raise ValueError(
                f"alpha of {self!r} must be 1 at clean data, t = {t[0]:g}, and it is {float(alpha[0])}: samples and "
                "likelihoods would be those of scaled data; scale the data themselves."
            )
        return float(u[0]), float(u[-1])

    @cached_property
    def _smooth(self) -> bool:
        """Whether the clock is inverted by as many steps as an accelerator takes; if not, the CPU does it for it."""
        return settles(self._clock, self.t_data, self.t_noise)

    @property
    def _away(self) -> float:
        """+1 if the path's own time runs away from the data, -1 if it runs towards it."""
        return math.copysign(1.0, self.t_noise - self.t_data)

    def checked_times(self, t: Tensor) -> Tensor:
        """`t`, after a ValueError if any of it lies off the path by more than rounding, which is taken back.

        An accelerator is not waited for: there a time off the path becomes NaN, and so does all that follows from it.
        """
        low, high = (self.t_data, self.t_noise) if self.t_data < self.t_noise else (self.t_noise, self.t_data)
        return _checks.inside("t", t, low, high, 1e-6 * (high - low), self)

    def checked_clocks(self, u: float | Tensor) -> Tensor:
        """`u` as a tensor, after the same check: a `time` or `scale` in closed form opens with it."""
        return _checks.inside("u", as_time(u), *self._clocks, 1e-6, self)

    def _ordered(self, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        if not self.has_score:
            raise ValueError(f"{self!r} has no transition kernels: its source is not independent Gaussian noise.")
        s, t = self.checked_times(as_time(s)), self.checked_times(as_time(t))
        ordered = self._away * (t - s) >= 0
        if ordered.device.type != "cpu":
            return torch.where(ordered, s, math.nan), t
        if not bool(ordered.all()):
            raise ValueError(f"s must lie nearer the data than t, and s = {s.tolist()}, t = {t.tolist()} on {self!r}.")
        return s, t

    def _fresh(self, s: Tensor, t: Tensor) -> Tensor:
        """1 - q^2 with q = (sigma/alpha)(s) / (sigma/alpha)(t): the share of x_t's noise that is new since s."""
        wide, narrow = self.sigma(t) * self.alpha(s), self.sigma(s) * self.alpha(t)
        return torch.where(wide == 0, 0.0, (wide - narrow) * (wide + narrow) / wide**2)


class UnitVariance(GaussianPath):
    """A path with alpha^2 + sigma^2 = 1, whose scale is a function of the clock alone."""

    def scale(self, u: float | Tensor) -> Tensor:
        """1/sqrt((1-u)^2 + u^2).

        Args:
            u: the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise: a number, or a tensor
                of any shape.

        Returns:
            r, shaped like u.
        """
        u = self.checked_clocks(u)
        return 1 / torch.hypot(1 - u, u)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a/b, and 1 where b = 0: of one function at two times, which are then the same."""
    return torch.where(b == 0, 1.0, a / b)


def _slope(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """df/dt by autograd, elementwise; zero where f is a constant."""
    with torch.inference_mode(False), torch.enable_grad():
        at = at.detach().clone().requires_grad_(True)
        value = f(at)
        return torch.autograd.grad(value.sum(), at)[0] if value.requires_grad else torch.zeros_like(at)
