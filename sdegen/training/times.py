"""Time samplers: how a loss draws t.

A sampler is a value, called as sampler(path, n, generator, dtype, device); it returns n times and their importance
weights, both (n,), in at least float32. A weight is the density of uniform time over the density from which the time
was drawn, so that the loss has the mean it has under uniform time, over those times that the sampler can draw; only
its variance is another. `LogNormalTimes` alone has a law of its own, over which the mean is meant: its weights are 1.

References:
    Variational Diffusion Models, Kingma et al., 2021, arXiv:2107.00630.
    Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239 (the times of a chain).
    Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv:2206.00364 (log-normal
    noise levels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators, first_generator, normal, uniform
from sdegen.paths.gaussian import GaussianPath

Times = Callable[[GaussianPath, int, Generators, torch.dtype, torch.device], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class UniformTimes:
    """Independent uniform times between the ends of the path, the data end itself left out.

    Examples:
        >>> t, weights = sdegen.UniformTimes()(sdegen.VPSDE(), 10_000, None, torch.float32, "cpu")
        >>> f"{t.mean():.1f} {weights.mean():.1f}"
        '0.5 1.0'
    """

    def __call__(
        self, path: GaussianPath, n: int, generator: Generators, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` times; all weights are 1."""
        fraction = uniform(n, generator, dtype, device)
        return _off_data(path, path.at(fraction)), torch.ones_like(fraction)


@dataclass(frozen=True)
class LowDiscrepancyTimes:
    """Uniform times spread evenly over the batch: the fractions 1 - (i/n + U mod 1), i = 0 ... n-1, with one U for all.

    Every row is uniform by itself, and the variance of the batch's mean falls, at no cost.

    Examples:
        >>> t, weights = sdegen.LowDiscrepancyTimes()(sdegen.VPSDE(), 100, None, torch.float32, "cpu")
        >>> torch.allclose(t.sort().values.diff(), torch.full((99,), 0.01), atol=1e-5)
        True

    References:
        Variational Diffusion Models, Kingma et al., 2021, arXiv:2107.00630.
    """

    def __call__(
        self, path: GaussianPath, n: int, generator: Generators, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` times; all weights are 1."""
        fraction = _spread(n, generator, dtype, device)
        return _off_data(path, path.at(fraction)), torch.ones_like(fraction)


@dataclass(frozen=True)
class ClockTimes:
    """Independent times at which the straight clock u is uniform between the ends of the path.

    With r = alpha + sigma and u = sigma/r the times have the density |u'(t)| / (u_noise - u_data), so their weights are

        (u_noise - u_data) / (|t_noise - t_data| |u'(t)|)            u' = (sigma' alpha - alpha' sigma) / r^2

    on every path, also one that starts at u_data > 0 (VE). At clean data, where VP's sigma' is infinite, the weight is
    0. On CondOT u is uniform where time is, and all weights are 1.

    Args:
        importance: True, the default, returns these weights, and a loss stays the mean over uniform time. False
            returns weights of 1, and the loss becomes the mean over uniform u.

    Raises:
        TypeError: if `importance` is not a bool.

    Examples:
        >>> path = sdegen.VPSDE()
        >>> t, weights = sdegen.ClockTimes()(path, 10_000, None, torch.float32, "cpu")
        >>> f"{path.clock(t).mean():.1f}"  # u is uniform
        '0.5'
    """

    importance: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.importance, bool):
            raise TypeError(f"importance must be True or False, and it is {self.importance!r}.")

    def __call__(
        self, path: GaussianPath, n: int, generator: Generators, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` times, computed in float64 since single precision cannot tell neighbours at the ends apart."""
        fraction = uniform(n, generator, dtype, device)
        low, high = path.ends
        t = _time_at(path, low + (high - low) * fraction.double())
        shown = _off_data(path, t.to(fraction))
        if not self.importance:
            return shown, torch.ones_like(fraction)
        alpha, sigma, slopes = path.alpha(t), path.sigma(t), path.slopes(t)
        rate = (slopes.sigma * alpha - slopes.alpha * sigma).abs() / (alpha + sigma) ** 2
        return shown, ((high - low) / (abs(path.t_noise - path.t_data) * rate)).to(fraction)


@dataclass(frozen=True)
class ChainTimes:
    """The times k/K of a chain, k uniform on 1 ... K: with them `loss` on an eps network is Ho et al.'s Algorithm 1.

    Args:
        steps: K; may be left out on a `DDPM` path, whose own K it then is.

    Raises:
        TypeError: if `steps` is not an integer.
        ValueError: if `steps` is below 1, or left out on a path without a chain.

    Examples:
        >>> t, weights = sdegen.ChainTimes()(sdegen.DDPM.linear(4), 1000, None, torch.float32, "cpu")
        >>> t.unique()
        tensor([0.2500, 0.5000, 0.7500, 1.0000])

    References:
        Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
    """

    steps: int | None = None

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        if self.steps is not None:
            _checks.whole("steps", self.steps)

    def __call__(
        self, path: GaussianPath, n: int, generator: Generators, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` times; all weights are 1."""
        steps = self.steps or path.steps
        if steps is None:
            raise ValueError(f"ChainTimes needs steps on {path!r}, which has no chain of its own.")
        k = torch.ceil(steps * uniform(n, generator, dtype, device))
        return path.at(k / steps), torch.ones_like(k)


@dataclass(frozen=True)
class LikelihoodTimes:
    """Times whose log-SNR is uniform between the clocks u_min and u_max: importance sampling for `LikelihoodWeighting`.

    With lambda the log-SNR the times have the density |lambda'(t)| / (lambda_max - lambda_min), so that their weight
    times that of `LikelihoodWeighting` is (lambda_max - lambda_min)/2, one constant, on any path. They are spread over
    the batch as `LowDiscrepancyTimes` are.

    Args:
        u_min: the clock nearest the data, 1e-3 by default; positive, since log-SNR is infinite at u = 0.
        u_max: the clock nearest the noise, 0.999 by default. Both are cut to the path's ends.

    Raises:
        ValueError: unless 0 < u_min < u_max < 1; where the path does not meet [u_min, u_max], or has no score.

    Examples:
        >>> path = sdegen.VPSDE()
        >>> t, weights = sdegen.LikelihoodTimes()(path, 1000, None, torch.float32, "cpu")
        >>> product = weights * sdegen.LikelihoodWeighting()(path, t)
        >>> torch.allclose(product, product.mean(), rtol=1e-3)  # one constant
        True

    References:
        Maximum Likelihood Training of Score-Based Diffusion Models, Song et al., 2021, arXiv:2101.09258.
    """

    u_min: float = 1e-3
    u_max: float = 0.999

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.real("u_min", self.u_min, 0, 1, strict=True)
        _checks.real("u_max", self.u_max, self.u_min, 1, strict=True)

    def __call__(
        self, path: GaussianPath, n: int, generator: Generators, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` times with their weights."""
        if not path.has_score:
            raise ValueError(f"The likelihood weight is a score's, and on {path!r} there is none.")
        ends = torch.tensor([max(self.u_min, path.ends[0]), min(self.u_max, path.ends[1])], dtype=torch.float64)
        if ends[0] >= ends[1]:
            raise ValueError(
                f"{self!r} does not meet {path!r}, whose clock runs from {path.ends[0]} to {path.ends[1]}."
            )
        high, low = (2 * torch.log((1 - ends) / ends)).tolist()
        fraction = _spread(n, generator, dtype, device)
        t = _off_data(path, _time_at(path, torch.sigmoid(-0.5 * (high + (low - high) * fraction))))
        rate = (path.diffusion(t) / path.sigma(t)) ** 2  # |d lambda / dt|, the density of t up to its integral
        return t, (high - low) / (rate * abs(path.t_noise - path.t_data))


@dataclass(frozen=True)
class LogNormalTimes:
    """Independent times at which sigma/alpha is log-normal, as Karras et al. train: log(sigma/alpha) ~ N(mean, std^2).

    On `EDM` that is the law of sigma, and with it on any path that of the log-SNR, -2 log(sigma/alpha). A draw beyond
    an end of the path is held at that end.

    All weights are 1: the loss is the mean over this law, as in the source, and not over uniform time, of which the
    tails of a normal law see too little to tell the mean. With `EDMWeighting()` it is EDM's loss.

    Args:
        mean: of log(sigma/alpha), -1.2 by default, the source's.
        std: its standard deviation, 1.2 by default, the source's.

    Raises:
        TypeError: for an argument that is no real number.
        ValueError: unless `mean` is finite and `std` positive.

    Examples:
        >>> t, weights = sdegen.LogNormalTimes()(sdegen.EDM(), 100_000, None, torch.float32, "cpu")
        >>> f"{t.log().mean():.1f} {t.log().std():.1f}"
        '-1.2 1.2'

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv:2206.00364.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.real("mean", self.mean)
        _checks.real("std", self.std, 0, strict=True)

    def __call__(
        self, path: GaussianPath, n: int, generator: Generators, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` times, computed in float64 as those of `ClockTimes`; all weights are 1."""
        z = normal((n,), generator, torch.promote_types(dtype, torch.float32), device)
        u = torch.sigmoid(self.mean + self.std * z.double())
        return _off_data(path, _time_at(path, u.clamp(*path.ends)).to(z)), torch.ones_like(z)


SAMPLERS = (UniformTimes, LowDiscrepancyTimes, ClockTimes, ChainTimes, LikelihoodTimes, LogNormalTimes)
"""The samplers of this file: what they draw is on the path and of the right shape, and a loss does not look again."""


def _off_data(path: GaussianPath, t: Tensor) -> Tensor:
    """`t`, one float off the data end where rounding put it there: targets and weights may be infinite at it.

    Only a time that is not 0 can be rounded to.
    """
    if path.t_data == 0:
        return t
    end = torch.full_like(t, path.t_data)
    return torch.where(t == end, torch.nextafter(end, torch.full_like(t, path.t_noise)), t)


def _time_at(path: GaussianPath, u: Tensor) -> Tensor:
    """The times at which the clock shows `u`, held on the path where rounding would carry them over its end."""
    return torch.clamp(path.time(u), min(path.t_data, path.t_noise), max(path.t_data, path.t_noise))


def _spread(n: int, generator: Generators, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 - (i/n + U mod 1), i = 0 ... n-1, on (0, 1]: even over the batch, and every row uniform by itself."""
    shift = uniform(1, first_generator(generator), dtype, device)
    return 1 - torch.remainder(torch.arange(n, dtype=shift.dtype, device=device) / max(n, 1) + shift, 1)
