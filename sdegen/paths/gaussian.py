"""Gaussian paths: x_t = alpha(t) x + sigma(t) eps, with data x, noise eps ~ N(0, I), and what follows from them.

    r = alpha + sigma      the scale            u = sigma / r      the straight clock: 0 at data, 1 at noise
    alpha = (1 - u) r      sigma = u r          lambda = log(alpha^2 / sigma^2) = 2 log((1 - u) / u)     log-SNR
    dx = f x dt + g dw     f = (log alpha)'     g^2 = (sigma^2)' - 2 f sigma^2     forward SDE, t away from the data

A path speaks its literature's time, from `t_data` to `t_noise`; only here does anyone know which of them is larger.
Everything is given at a time t, except `time(u)` and `scale(u)`, which invert the clock without ever forming 1 - exp.

Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
Variational Diffusion Models, Kingma et al., 2021, arXiv:2107.00630.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators, as_time, batch_of_times, event_size, like, normal, sum_event


class Slopes(NamedTuple):
    """Derivatives in the path's own time of alpha, of sigma and of sigma^2 (finite where sigma' is not)."""

    alpha: Tensor
    sigma: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Normal:
    """N(0, std^2 I) on events of any shape: the prior of a path."""

    std: float

    def sample(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw a tensor of `shape` (B, ...)."""
        device = torch.device("cpu" if device is None else device)
        return self.std * normal(shape, generator, dtype or torch.get_default_dtype(), device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each sample of `x` (B, ...), in nats, shape (B,)."""
        return -0.5 * sum_event((x / self.std) ** 2) - event_size(x.shape) * math.log(self.std * math.sqrt(2 * math.pi))


class Source(Protocol):
    """A law at the noise end: anything with these two methods, or with the one that is needed."""

    def sample(self, shape: Sequence[int], generator: Generators = None) -> Tensor:
        """Draw a tensor of `shape` (B, *event)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each sample, in nats, shape (B,)."""


class GaussianPath(ABC):
    """x_t = alpha(t) x + sigma(t) eps; write your own by giving `alpha` and `sigma`.

    Both take a floating tensor of times and return a tensor of the same shape. alpha/sigma must fall strictly from
    `t_data` to `t_noise`, and both must be non-negative. Derivatives then come from autograd and the inverse clock from
    bisection in float64, unless a path states its own `slopes`, `time` and `scale` in closed form, as those here do.
    """

    t_data: float = 0.0
    t_noise: float = 1.0
    steps: int | None = None  # the length of the chain, on a path that is one
    has_score: bool = True  # the source is Gaussian noise, independent of the data
    source: Source | None = None  # what else is at the noise end

    @abstractmethod
    def alpha(self, t: float | Tensor) -> Tensor:
        """The factor of the data at time t."""

    @abstractmethod
    def sigma(self, t: float | Tensor) -> Tensor:
        """The standard deviation of the noise at time t."""

    # What a path may state in closed form

    def slopes(self, t: float | Tensor) -> Slopes:
        """d alpha/dt, d sigma/dt and d sigma^2/dt at time t, in the path's own time."""
        wide = as_time(t).double()
        # sigma^2 has a slope where sigma = 0, but the chain rule reads it as 0 * inf: step off that point
        inside = torch.where(self.sigma(wide) == 0, wide + 1e-12 * (self.t_noise - self.t_data), wide)
        functions = ((self.alpha, wide), (self.sigma, wide), (lambda s: self.sigma(s) ** 2, inside))
        return Slopes(*(_slope(f, at).to(as_time(t)) for f, at in functions))

    def time(self, u: float | Tensor) -> Tensor:
        """The time t at which the straight clock shows `u`: the inverse of `clock`."""
        u = as_time(u)
        goal = u.double()
        low = torch.full_like(goal, self.t_data)
        high = torch.full_like(goal, self.t_noise)
        while True:  # halve until the two are neighbours in float64, also close to a data end at t = 0
            middle = 0.5 * (low + high)
            if bool(((middle == low) | (middle == high)).all()):
                break
            beyond = self.clock(middle) > goal
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        error_low, error_high = (self.clock(low) - goal).abs(), (self.clock(high) - goal).abs()
        return torch.where(error_low <= error_high, low, high).to(u)

    def scale(self, u: float | Tensor) -> Tensor:
        """r = alpha + sigma where the straight clock shows `u`."""
        t = self.time(u)
        return self.alpha(t) + self.sigma(t)

    # What follows for every path

    def clock(self, t: float | Tensor) -> Tensor:
        """The straight clock u = sigma / (alpha + sigma) at time t: 0 at clean data, 1 at pure noise."""
        t = as_time(t)
        sigma = self.sigma(t)
        return sigma / (self.alpha(t) + sigma)

    def log_snr(self, t: float | Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at time t."""
        t = as_time(t)
        return 2 * (torch.log(self.alpha(t)) - torch.log(self.sigma(t)))

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        """f(t) x of the forward SDE, per unit of time away from the data; `x` is (B, ...), t a scalar or (B,)."""
        t = as_time(t)
        return like((self._away * self.slopes(t).alpha / self.alpha(t)), x) * x

    def diffusion(self, t: float | Tensor) -> Tensor:
        """g(t) of the forward SDE, per square root of a unit of time away from the data."""
        t = as_time(t)
        slopes = self.slopes(t)
        f = slopes.alpha / self.alpha(t)
        return torch.sqrt(self._away * (slopes.variance - 2 * f * self.sigma(t) ** 2))

    def perturb(
        self, x: Tensor, t: float | Tensor, noise: Tensor | None = None, generator: Generators = None
    ) -> tuple[Tensor, Tensor]:
        """Draw x_t = alpha(t) x + sigma(t) eps for data `x` (B, ...), eps from the source; returns (x_t, eps)."""
        _checks.batch("x", x, finite=False)
        t = as_time(t)
        t = t if t.ndim == 0 else batch_of_times(t, x)
        eps = self.noise_like(x, generator) if noise is None else noise
        if eps.shape != x.shape:
            raise ValueError(f"noise must have the shape of x, {tuple(x.shape)}, and it has {tuple(eps.shape)}.")
        return like(self.alpha(t), x) * x + like(self.sigma(t), x) * eps, eps

    def noise_like(self, x: Tensor, generator: Generators = None) -> Tensor:
        """Draws from the source, standard normals unless it is another, like `x` (B, ...)."""
        if self.source is None:
            return normal(x.shape, generator, x.dtype, x.device)
        if not callable(getattr(self.source, "sample", None)):
            raise ValueError(f"The source {self.source!r} has no method sample(shape, generator); give its draws.")
        z = _checks.batch("the source's sample", self.source.sample(tuple(x.shape), generator), finite=False)
        if z.shape != x.shape:
            raise ValueError(f"The source's sample must have shape {tuple(x.shape)}, and it has {tuple(z.shape)}.")
        return z.to(x)

    def transition(self, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(scale, std) of x_t given x_s, for s nearer the data: x_t ~ N(scale x_s, std^2 I)."""
        s, t = self._ordered(s, t)
        return self.alpha(t) / self.alpha(s), self.sigma(t) * torch.sqrt(self._fresh(s, t))

    def bridge(self, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_t, c_x, std) of x_s given x_t and the data x, s nearer the data: N(c_t x_t + c_x x, std^2 I)."""
        s, t = self._ordered(s, t)
        fresh = self._fresh(s, t)
        c_t = self.alpha(t) / self.alpha(s) * (self.sigma(s) / self.sigma(t)) ** 2
        return c_t, self.alpha(s) * fresh, self.sigma(s) * torch.sqrt(fresh)

    def prior_at(self, u: float) -> Normal | Source:
        """N(0, sigma^2 I) where the straight clock shows `u`, or the source, known at the noise end alone."""
        if self.source is not None:
            if u != self.ends[1]:
                raise ValueError(f"The law at u = {u} between data and source of {self!r} is not known.")
            return self.source
        u = torch.tensor(float(u), dtype=torch.float64)
        return Normal(float(u * self.scale(u)))

    @cached_property
    def prior(self) -> Normal | Source:
        """N(0, sigma(t_noise)^2 I), or the source, with `.sample(shape, generator)` and `.log_prob(x)`."""
        return self.prior_at(self.ends[1])

    @cached_property
    def ends(self) -> tuple[float, float]:
        """(u_data, u_noise): what the straight clock shows at the two ends of the path."""
        t = torch.linspace(self.t_data, self.t_noise, 257, dtype=torch.float64)
        for name in ("alpha", "sigma"):
            value = getattr(self, name)(t)
            if not isinstance(value, Tensor) or value.shape != t.shape:
                raise ValueError(
                    f"{name}(t) of {self!r} must return a tensor shaped like t, and it returned {value!r}."
                )
            wrong = torch.nonzero(~(torch.isfinite(value) & (value >= 0)))
            if len(wrong):
                i = int(wrong[0])
                raise ValueError(
                    f"{name} of {self!r} must be finite and not negative; at t = {t[i]:g} it is {value[i]:g}."
                )
        u = self.clock(t)
        wrong = torch.nonzero(torch.diff(u) <= 0)
        if len(wrong):
            i = int(wrong[0])
            raise ValueError(
                f"The clock u = sigma/(alpha+sigma) of {self!r} must rise from t_data to t_noise; from t = {t[i]:g} "
                f"to {t[i + 1]:g} it goes from {u[i]} to {u[i + 1]}: check that the two ends are not swapped, that the "
                "log-SNR falls, and that alpha does not vanish beside sigma before the end."
            )
        start = float(self.alpha(t)[0])
        if u[0] == 0 and abs(start - 1) > 1e-6:
            raise ValueError(
                f"alpha of {self!r} must be 1 at clean data, t = {t[0]:g}, and it is {start}: samples and likelihoods "
                "would be those of scaled data; scale the data themselves."
            )
        return float(u[0]), float(u[-1])

    @property
    def _away(self) -> float:
        """+1 if the path's own time runs away from the data, -1 if it runs towards it."""
        return math.copysign(1.0, self.t_noise - self.t_data)

    def checked_times(self, t: Tensor) -> Tensor:
        """`t`, after a ValueError if any of it lies off the path by more than rounding.

        An accelerator is not waited for: there a time off the path becomes NaN, and so does all that follows from it.
        """
        low, high = sorted((self.t_data, self.t_noise))
        slack = 1e-6 * (high - low)
        inside = (t >= low - slack) & (t <= high + slack)
        if t.device.type != "cpu":
            return torch.where(inside, t, math.nan)
        if not bool(inside.all()):
            raise ValueError(f"t must lie in [{low}, {high}] on {self!r}, and it spans [{t.min():g}, {t.max():g}].")
        return t

    def _ordered(self, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        if not self.has_score:
            raise ValueError(f"{self!r} has no transition kernels: its source is not independent Gaussian noise.")
        s, t = as_time(s), as_time(t)
        low, high = sorted((self.t_data, self.t_noise))
        inside = (s >= low) & (s <= high) & (t >= low) & (t <= high)
        if not bool((inside & (self._away * (t - s) >= 0)).all()):
            raise ValueError(
                f"s must lie nearer the data than t, both in [{low}, {high}], and s = {s.tolist()}, t = {t.tolist()} "
                f"on {self!r}."
            )
        return s, t

    def _fresh(self, s: Tensor, t: Tensor) -> Tensor:
        """1 - q^2 with q = (sigma/alpha)(s) / (sigma/alpha)(t): the share of x_t's noise that is new since s."""
        wide, narrow = self.sigma(t) * self.alpha(s), self.sigma(s) * self.alpha(t)
        return (wide - narrow) * (wide + narrow) / wide**2


class UnitVariance(GaussianPath):
    """A path with alpha^2 + sigma^2 = 1, whose scale is a function of the clock alone."""

    def scale(self, u: float | Tensor) -> Tensor:
        """1/sqrt((1-u)^2 + u^2)."""
        u = as_time(u)
        return 1 / torch.hypot(1 - u, u)


def _slope(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """df/dt by autograd, elementwise; zero where f is a constant."""
    with torch.inference_mode(False), torch.enable_grad():
        at = at.detach().clone().requires_grad_(True)
        value = f(at)
        return torch.autograd.grad(value.sum(), at)[0] if value.requires_grad else torch.zeros_like(at)
