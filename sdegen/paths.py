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
from typing import NamedTuple

import numpy as np
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


class GaussianPath(ABC):
    """x_t = alpha(t) x + sigma(t) eps; write your own by giving `alpha` and `sigma`.

    Both take a floating tensor of times and return a tensor of the same shape. alpha/sigma must fall strictly from
    `t_data` to `t_noise`, and both must be non-negative. Derivatives then come from autograd and the inverse clock from
    bisection in float64, unless a path states its own `slopes`, `time` and `scale` in closed form, as those here do.
    """

    t_data: float = 0.0
    t_noise: float = 1.0
    steps: int | None = None  # the length of the chain, on a path that is one

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
        """Draw x_t = alpha(t) x + sigma(t) eps for data `x` (B, ...); returns (x_t, eps)."""
        _checks.batch("x", x, finite=False)
        t = as_time(t)
        t = t if t.ndim == 0 else batch_of_times(t, x)
        eps = normal(x.shape, generator, x.dtype, x.device) if noise is None else noise
        if eps.shape != x.shape:
            raise ValueError(f"noise must have the shape of x, {tuple(x.shape)}, and it has {tuple(eps.shape)}.")
        return like(self.alpha(t), x) * x + like(self.sigma(t), x) * eps, eps

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

    def prior_at(self, u: float) -> Normal:
        """N(0, sigma^2 I) where the straight clock shows `u`."""
        u = torch.tensor(float(u), dtype=torch.float64)
        return Normal(float(u * self.scale(u)))

    @cached_property
    def prior(self) -> Normal:
        """N(0, sigma(t_noise)^2 I), with `.sample(shape, generator)` and `.log_prob(x)`."""
        return Normal(float(self.sigma(torch.tensor(self.t_noise, dtype=torch.float64))))

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
        return float(u[0]), float(u[-1])

    @property
    def _away(self) -> float:
        """+1 if the path's own time runs away from the data, -1 if it runs towards it."""
        return math.copysign(1.0, self.t_noise - self.t_data)

    def _ordered(self, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
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


def _slope(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """df/dt by autograd, elementwise; zero where f is a constant."""
    with torch.inference_mode(False), torch.enable_grad():
        at = at.detach().clone().requires_grad_(True)
        value = f(at)
        return torch.autograd.grad(value.sum(), at)[0] if value.requires_grad else torch.zeros_like(at)


class _VariancePreserving(GaussianPath):
    """alpha^2 + sigma^2 = 1, so r = 1/sqrt((1-u)^2 + u^2), with alpha^2 = exp(-B(t)) and B' = beta."""

    @abstractmethod
    def beta(self, t: float | Tensor) -> Tensor:
        """The noise rate beta(t) = g^2."""

    @abstractmethod
    def integrated_beta(self, t: float | Tensor) -> Tensor:
        """B(t), the integral of beta from the data to t."""

    @abstractmethod
    def _time_of(self, B: Tensor) -> Tensor:
        """The inverse of `integrated_beta`."""

    def alpha(self, t: float | Tensor) -> Tensor:
        """exp(-B/2)."""
        return torch.exp(-0.5 * self.integrated_beta(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        """sqrt(1 - exp(-B)), by expm1."""
        return torch.sqrt(-torch.expm1(-self.integrated_beta(t)))

    def slopes(self, t: float | Tensor) -> Slopes:
        """alpha' = -beta alpha / 2 and (sigma^2)' = beta alpha^2."""
        beta, alpha = self.beta(t), self.alpha(t)
        return Slopes(-0.5 * beta * alpha, 0.5 * beta * alpha**2 / self.sigma(t), beta * alpha**2)

    def time(self, u: float | Tensor) -> Tensor:
        """From exp(B) = 1 + (u/(1-u))^2."""
        u = as_time(u)
        return self._time_of(torch.log1p((u / (1 - u)) ** 2))

    def scale(self, u: float | Tensor) -> Tensor:
        """1/sqrt((1-u)^2 + u^2)."""
        u = as_time(u)
        return 1 / torch.hypot(1 - u, u)


@dataclass(frozen=True)
class _LinearBeta:
    """beta(t) = beta_min + (beta_max - beta_min) t and its integral B, with the inverse of B free of cancellation."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _checks.real("beta_min", self.beta_min, 0, strict=True)
        _checks.real("beta_max", self.beta_max, 0, strict=True)
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min must not exceed beta_max, and they are {self.beta_min} and {self.beta_max}.")

    def beta(self, t: float | Tensor) -> Tensor:
        """beta_min + (beta_max - beta_min) t."""
        return self.beta_min + (self.beta_max - self.beta_min) * as_time(t)

    def integrated_beta(self, t: float | Tensor) -> Tensor:
        """B = beta_min t + (beta_max - beta_min) t^2 / 2."""
        t = as_time(t)
        return (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t) * t

    def _time_of(self, B: Tensor) -> Tensor:
        return 2 * B / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B))


@dataclass(frozen=True)
class VPSDE(_LinearBeta, _VariancePreserving):
    """Variance-preserving SDE, the limit of the DDPM chain: dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, t in [0, 1].

    One DDPM step with beta_k = beta(t_k)/K is x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) e_k. As K grows,
    sqrt(1 - beta_k) = 1 - beta(t_k)/(2K) + O(1/K^2), so the drift is -beta(t) x/2 and the diffusion sqrt(beta(t));
    the marginals of the chain approach those of the SDE at the rate 1/K. With beta_k = 1 - exp(-(B(t_k) - B(t_{k-1})))
    instead, the chain *is* the SDE observed on the grid, at every K.

    alpha^2 = exp(-B), sigma^2 = 1 - exp(-B), B(t) = beta_min t + (beta_max - beta_min) t^2 / 2.
    Raises ValueError unless 0 < beta_min <= beta_max.
    Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239; Song et al., 2021, arXiv:2011.13456.
    """


@dataclass(frozen=True)
class SubVPSDE(_LinearBeta, GaussianPath):
    """Sub-VP SDE: alpha = exp(-B/2), sigma = 1 - exp(-B) (the deviation, not the variance), B as in `VPSDE`.

    g^2 = beta (1 - exp(-2B)). Raises ValueError unless 0 < beta_min <= beta_max.
    Song et al., 2021, arXiv:2011.13456.
    """

    def alpha(self, t: float | Tensor) -> Tensor:
        """exp(-B/2)."""
        return torch.exp(-0.5 * self.integrated_beta(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        """1 - exp(-B), by expm1."""
        return -torch.expm1(-self.integrated_beta(t))

    def slopes(self, t: float | Tensor) -> Slopes:
        """alpha' = -beta alpha / 2 and sigma' = beta alpha^2."""
        beta, alpha = self.beta(t), self.alpha(t)
        slope = beta * alpha**2
        return Slopes(-0.5 * beta * alpha, slope, 2 * self.sigma(t) * slope)

    def time(self, u: float | Tensor) -> Tensor:
        """From sigma = 1 - alpha^2, so that B = -log(1 - sigma)."""
        u = as_time(u)
        return self._time_of(-torch.log1p(-u * self.scale(u)))

    def scale(self, u: float | Tensor) -> Tensor:
        """The positive root of (1-u)^2 r^2 + u r = 1."""
        u = as_time(u)
        return 2 / (u + torch.sqrt(u**2 + 4 * (1 - u) ** 2))


@dataclass(frozen=True)
class CosineVPSDE(GaussianPath):
    """Cosine schedule: alpha = cos(theta) / cos(theta_0), theta = theta_0 + pi t / (2(1+s)), theta_0 = pi s / (2(1+s)).

    Variance preserving, with alpha(1) = 0 exactly: sin(pi/2 - theta) is used for the cosine, and differences of
    tangents for the inverse. `s` is the offset (0.008 in the source); raises ValueError unless 0 < s < 1.
    Improved Denoising Diffusion Probabilistic Models, Nichol and Dhariwal, 2021, arXiv:2102.09672.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        _checks.real("s", self.s, 0, 1, strict=True)

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1 + self.s)

    @property
    def _start(self) -> float:
        return self._rate * self.s

    def alpha(self, t: float | Tensor) -> Tensor:
        """cos(theta) / cos(theta_0)."""
        return torch.sin(self._rate * (1 - as_time(t))) / math.cos(self._start)

    def sigma(self, t: float | Tensor) -> Tensor:
        """sqrt(cos^2 theta_0 - cos^2 theta) / cos(theta_0), as a product of two sines."""
        turned = self._rate * as_time(t)
        return torch.sqrt(torch.sin(turned) * torch.sin(turned + 2 * self._start)) / math.cos(self._start)

    def slopes(self, t: float | Tensor) -> Slopes:
        """alpha' = -theta' sin(theta) / cos(theta_0) and (sigma^2)' = -2 alpha alpha'."""
        t = as_time(t)
        alpha = self.alpha(t)
        slope = -self._rate * torch.cos(self._rate * (1 - t)) / math.cos(self._start)
        return Slopes(slope, -alpha * slope / self.sigma(t), -2 * alpha * slope)

    def time(self, u: float | Tensor) -> Tensor:
        """theta - theta_0 from the tangents: cos^2 theta_0 tan^2 theta = (u/(1-u))^2 + sin^2 theta_0."""
        u = as_time(u)
        sin, cos = math.sin(self._start), math.cos(self._start)
        root = torch.sqrt(u**2 + (sin * (1 - u)) ** 2)
        turned = torch.atan2(cos * u**2, (root + sin * (1 - u)) * (cos**2 * (1 - u) + sin * root))
        return turned / self._rate

    def scale(self, u: float | Tensor) -> Tensor:
        """1/sqrt((1-u)^2 + u^2)."""
        u = as_time(u)
        return 1 / torch.hypot(1 - u, u)


@dataclass(frozen=True)
class VESDE(GaussianPath):
    """Variance-exploding SDE: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t; t = 0 is data at noise sigma_min.

    Its clock starts at u = sigma_min/(1 + sigma_min) > 0: "data" on this path means x blurred by sigma_min.
    Raises ValueError unless 0 < sigma_min < sigma_max. Song et al., 2021, arXiv:2011.13456.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _checks.real("sigma_min", self.sigma_min, 0, strict=True)
        _checks.real("sigma_max", self.sigma_max, 0, strict=True)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max, and they are {self.sigma_min} and {self.sigma_max}.")

    @property
    def _octaves(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: float | Tensor) -> Tensor:
        """1."""
        return torch.ones_like(as_time(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        """sigma_min (sigma_max/sigma_min)^t."""
        return self.sigma_min * torch.exp(self._octaves * as_time(t))

    def slopes(self, t: float | Tensor) -> Slopes:
        """sigma' = sigma log(sigma_max/sigma_min)."""
        sigma = self.sigma(t)
        return Slopes(torch.zeros_like(sigma), self._octaves * sigma, 2 * self._octaves * sigma**2)

    def time(self, u: float | Tensor) -> Tensor:
        """log(sigma/sigma_min) / log(sigma_max/sigma_min) with sigma = u/(1-u)."""
        u = as_time(u)
        return torch.log(u / (1 - u) / self.sigma_min) / self._octaves

    def scale(self, u: float | Tensor) -> Tensor:
        """1 + sigma = 1/(1-u)."""
        return 1 / (1 - as_time(u))


@dataclass(frozen=True)
class CondOT(GaussianPath):
    """Flow matching's straight path in its own clock: x_t = t x + (1 - (1 - sigma_min) t) eps, noise at 0, data at 1.

    Raises ValueError unless 0 <= sigma_min < 1. Flow Matching for Generative Modeling, Lipman et al., 2023,
    arXiv:2210.02747; Flow Straight and Fast, Liu et al., 2023, arXiv:2209.03003.
    """

    sigma_min: float = 0.0
    t_data = 1.0
    t_noise = 0.0

    def __post_init__(self) -> None:
        if _checks.real("sigma_min", self.sigma_min, 0) >= 1:
            raise ValueError(f"sigma_min must be below 1, and it is {self.sigma_min}.")

    def alpha(self, t: float | Tensor) -> Tensor:
        """t."""
        return as_time(t) + 0.0

    def sigma(self, t: float | Tensor) -> Tensor:
        """1 - (1 - sigma_min) t."""
        t = as_time(t)
        return (1 - t) + self.sigma_min * t

    def slopes(self, t: float | Tensor) -> Slopes:
        """alpha' = 1 and sigma' = sigma_min - 1."""
        sigma = self.sigma(t)
        slope = self.sigma_min - 1
        return Slopes(torch.ones_like(sigma), torch.full_like(sigma, slope), 2 * slope * sigma)

    def time(self, u: float | Tensor) -> Tensor:
        """t = alpha = (1-u) r."""
        u = as_time(u)
        return (1 - u) * self.scale(u)

    def scale(self, u: float | Tensor) -> Tensor:
        """1/(1 - sigma_min (1-u))."""
        return 1 / (1 - self.sigma_min * (1 - as_time(u)))


class DDPM(_VariancePreserving):
    """The discrete chain as a path: K betas, t_k = k/K, alpha(t_k)^2 = prod over j <= k of (1 - beta_j).

    -log(1 - beta_k) is what B gains over step k, spread evenly within it, so that the chain is exactly this
    variance-preserving SDE observed on its grid. A network trained on k = 1..K is adapted with ScoreModel's `time=`.

    betas: K numbers in (0, 1), a tensor, array or list; a ValueError names the first one outside.
    Ho et al., 2020, arXiv:2006.11239.
    """

    def __init__(self, betas: Tensor | np.ndarray | Sequence[float]):
        table = torch.as_tensor(betas).detach().to("cpu", torch.float64)
        if table.ndim != 1 or table.numel() == 0:
            raise ValueError(f"betas must be a non-empty 1-D sequence, and it has shape {tuple(table.shape)}.")
        wrong = torch.nonzero(~((table > 0) & (table < 1)))
        if len(wrong):
            k = int(wrong[0])
            raise ValueError(f"Every beta must lie in (0, 1), and betas[{k}] is {float(table[k])}.")
        self.betas = table
        self.steps = len(table)
        self._knots = {"cpu": torch.cat([table.new_zeros(1), torch.cumsum(-torch.log1p(-table), 0)])}

    def __repr__(self) -> str:
        return f"DDPM({self.steps} betas from {float(self.betas[0]):g} to {float(self.betas[-1]):g})"

    def _table(self, t: Tensor) -> Tensor:
        """B at t_0 .. t_K in float64, moved to the device of `t` once."""
        device = str(t.device)
        if device not in self._knots:
            self._knots[device] = self._knots["cpu"].to(t.device)
        return self._knots[device]

    def _step(self, t: Tensor) -> Tensor:
        return torch.clamp(torch.floor(t * self.steps), 0, self.steps - 1).long()

    def beta(self, t: float | Tensor) -> Tensor:
        """B', constant within a step."""
        t = as_time(t)
        B, k = self._table(t), self._step(t)
        return (self.steps * (B[k + 1] - B[k])).to(t)

    def integrated_beta(self, t: float | Tensor) -> Tensor:
        """B, linear between B(t_k) = -sum over j <= k of log(1 - beta_j)."""
        t = as_time(t)
        B, k = self._table(t), self._step(t)
        return (B[k] + (t * self.steps - k) * (B[k + 1] - B[k])).to(t)

    def _time_of(self, B: Tensor) -> Tensor:
        knots = self._table(B)
        k = torch.clamp(torch.searchsorted(knots, B.double().contiguous(), right=True) - 1, 0, self.steps - 1)
        return ((k + (B - knots[k]) / (knots[k + 1] - knots[k])) / self.steps).to(B)
