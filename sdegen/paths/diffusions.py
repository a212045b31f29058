"""The diffusions: VP (linear beta, cosine), sub-VP, VE and EDM. The chain is in chain.py, the flows in flows.py.

Each states alpha, sigma, their derivatives in its own time, and the two functions of the straight clock u that the
dynamics use, t(u) and r(u), in forms that lose no digits near the data: expm1 for 1 - exp, tangents for acos.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
    Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
    Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv:2206.00364.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import as_time
from sdegen.paths.gaussian import GaussianPath, Slopes, UnitVariance


class VariancePreserving(UnitVariance):
    """A path with alpha^2 + sigma^2 = 1, so r = 1/sqrt((1-u)^2 + u^2), defined by its noise rate beta.

    alpha^2 = exp(-B(t)), B' = beta
    """

    @abstractmethod
    def beta(self, t: float | Tensor) -> Tensor:
        """The noise rate beta(t) = g^2 at the path's own time t."""

    @abstractmethod
    def integrated_beta(self, t: float | Tensor) -> Tensor:
        """B(t), the integral of beta from the data to t, the path's own time."""

    @abstractmethod
    def _time_of(self, B: Tensor) -> Tensor:
        """The inverse of `integrated_beta`."""

    def alpha(self, t: float | Tensor) -> Tensor:
        """alpha = exp(-B/2); t is the path's own time, 0 at the data and 1 at the noise."""
        return torch.exp(-0.5 * self.integrated_beta(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        """sigma = sqrt(1 - exp(-B)), by expm1; t is the path's own time, 0 at the data and 1 at the noise."""
        return torch.sqrt(-torch.expm1(-self.integrated_beta(t)))

    def slopes(self, t: float | Tensor) -> Slopes:
        """alpha' = -beta alpha / 2 and (sigma^2)' = beta alpha^2.

        t is the path's own time, 0 at the data and 1 at the noise.
        """
        beta, alpha = self.beta(t), self.alpha(t)
        return Slopes(-0.5 * beta * alpha, 0.5 * beta * alpha**2 / self.sigma(t), beta * alpha**2)

    def time(self, u: float | Tensor) -> Tensor:
        """The inverse of exp(B) = 1 + (u/(1-u))^2.

        u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise.
        """
        u = self.checked_clocks(u)
        return self._time_of(torch.log1p((u / (1 - u)) ** 2))


@dataclass(frozen=True)
class _LinearBeta:
    """beta(t) = beta_min + (beta_max - beta_min) t and its integral B, with the inverse of B free of cancellation."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.real("beta_min", self.beta_min, 0, strict=True)
        _checks.real("beta_max", self.beta_max, 0, strict=True)
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min must not exceed beta_max, and they are {self.beta_min} and {self.beta_max}.")

    def beta(self, t: float | Tensor) -> Tensor:
        """beta = beta_min + (beta_max - beta_min) t at the path's own time t."""
        return self.beta_min + (self.beta_max - self.beta_min) * as_time(t)

    def integrated_beta(self, t: float | Tensor) -> Tensor:
        """B = beta_min t + (beta_max - beta_min) t^2 / 2 at the path's own time t."""
        t = as_time(t)
        return (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t) * t

    def _time_of(self, B: Tensor) -> Tensor:
        return 2 * B / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B))


@dataclass(frozen=True)
class VPSDE(_LinearBeta, VariancePreserving):
    """Variance-preserving SDE, the limit of the DDPM chain, t in [0, 1].

    dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, with beta(t) = beta_min + (beta_max - beta_min) t, so that

        alpha^2 = exp(-B)       sigma^2 = 1 - exp(-B)       B(t) = beta_min t + (beta_max - beta_min) t^2 / 2

    One DDPM step with beta_k = beta(t_k)/K is x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) e_k. As K grows,
    sqrt(1 - beta_k) = 1 - beta(t_k)/(2K) + O(1/K^2), so the drift is -beta(t) x/2 and the diffusion sqrt(beta(t));
    the marginals of the chain approach those of the SDE at the rate 1/K. With beta_k = 1 - exp(-(B(t_k) - B(t_{k-1})))
    instead, the chain *is* the SDE observed on the grid, at every K.

    Args:
        beta_min: the noise rate at the data.
        beta_max: the noise rate at the noise end.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max.

    Examples:
        >>> path, t = sdegen.VPSDE(), torch.linspace(0, 1, 5)
        >>> torch.allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones(5))
        True
        >>> f"{path.alpha(torch.tensor(1.0)):.4f}"  # exp(-(0.1 + 20) / 4): what is left of the data
        '0.0066'

    References:
        Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
        Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
    """


@dataclass(frozen=True)
class SubVPSDE(_LinearBeta, GaussianPath):
    """Sub-VP SDE, whose variance stays below that of `VPSDE`, t in [0, 1].

    alpha = exp(-B/2), sigma = 1 - exp(-B) (the deviation, not the variance), g^2 = beta (1 - exp(-2B)), with beta and B
    as in `VPSDE`.

    Args:
        beta_min: the noise rate beta at the data.
        beta_max: the noise rate beta at the noise end.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max.

    Examples:
        >>> t = torch.linspace(0, 1, 5)
        >>> torch.allclose(sdegen.SubVPSDE().sigma(t), sdegen.VPSDE().sigma(t) ** 2)
        True

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
    """

    def alpha(self, t: float | Tensor) -> Tensor:
        """alpha = exp(-B/2); t is the path's own time, 0 at the data and 1 at the noise."""
        return torch.exp(-0.5 * self.integrated_beta(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        """sigma = 1 - exp(-B), by expm1; t is the path's own time, 0 at the data and 1 at the noise."""
        return -torch.expm1(-self.integrated_beta(t))

    def slopes(self, t: float | Tensor) -> Slopes:
        """alpha' = -beta alpha / 2 and sigma' = beta alpha^2.

        t is the path's own time, 0 at the data and 1 at the noise.
        """
        beta, alpha = self.beta(t), self.alpha(t)
        slope = beta * alpha**2
        return Slopes(-0.5 * beta * alpha, slope, 2 * self.sigma(t) * slope)

    def time(self, u: float | Tensor) -> Tensor:
        """The inverse of sigma = 1 - alpha^2, from which B = -log(1 - sigma).

        u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise.
        """
        u = self.checked_clocks(u)
        return self._time_of(-torch.log1p(-u * self._scale(u)))

    def scale(self, u: float | Tensor) -> Tensor:
        """The positive root of (1-u)^2 r^2 + u r = 1.

        u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise.
        """
        return self._scale(self.checked_clocks(u))

    def _scale(self, u: Tensor) -> Tensor:
        return 2 / (u + torch.sqrt(u**2 + 4 * (1 - u) ** 2))


@dataclass(frozen=True)
class CosineVPSDE(UnitVariance):
    """Cosine schedule, variance preserving, t in [0, 1].

    alpha = cos(theta) / cos(theta_0), theta = theta_0 + pi t / (2(1+s)), theta_0 = pi s / (2(1+s))

    alpha(1) = 0 exactly: sin(pi/2 - theta) is used for the cosine, and differences of tangents for the inverse.

    Args:
        s: the offset that keeps the first steps from being too small, 0.008 as in the source.

    Raises:
        ValueError: unless 0 < s < 1.

    Examples:
        >>> sdegen.CosineVPSDE().alpha(torch.tensor([0.0, 1.0]))
        tensor([1., 0.])

    References:
        Improved Denoising Diffusion Probabilistic Models, Nichol and Dhariwal, 2021, arXiv:2102.09672.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.real("s", self.s, 0, 1, strict=True)

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1 + self.s)

    @property
    def _start(self) -> float:
        return self._rate * self.s

    def alpha(self, t: float | Tensor) -> Tensor:
        """alpha = cos(theta) / cos(theta_0); t is the path's own time, 0 at the data and 1 at the noise."""
        return torch.sin(self._rate * (1 - as_time(t))) / math.cos(self._start)

    def sigma(self, t: float | Tensor) -> Tensor:
        """sigma = sqrt(cos^2 theta_0 - cos^2 theta) / cos(theta_0), as a product of two sines.

        t is the path's own time, 0 at the data and 1 at the noise.
        """
        turned = self._rate * as_time(t)
        return torch.sqrt(torch.sin(turned) * torch.sin(turned + 2 * self._start)) / math.cos(self._start)

    def slopes(self, t: float | Tensor) -> Slopes:
        """alpha' = -theta' sin(theta) / cos(theta_0) and (sigma^2)' = -2 alpha alpha'.

        t is the path's own time, 0 at the data and 1 at the noise.
        """
        t = as_time(t)
        alpha = self.alpha(t)
        slope = -self._rate * torch.cos(self._rate * (1 - t)) / math.cos(self._start)
        return Slopes(slope, -alpha * slope / self.sigma(t), -2 * alpha * slope)

    def time(self, u: float | Tensor) -> Tensor:
        """theta - theta_0 from the tangents: cos^2 theta_0 tan^2 theta = (u/(1-u))^2 + sin^2 theta_0.

        u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise.
        """
        u = self.checked_clocks(u)
        sin, cos = math.sin(self._start), math.cos(self._start)
        root = torch.sqrt(u**2 + (sin * (1 - u)) ** 2)
        turned = torch.atan2(cos * u**2, (root + sin * (1 - u)) * (cos**2 * (1 - u) + sin * root))
        return turned / self._rate


@dataclass(frozen=True)
class VESDE(GaussianPath):
    """Variance-exploding SDE, t in [0, 1].

    alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t

    Its clock starts at u = sigma_min/(1 + sigma_min) > 0: "data" on this path means x blurred by sigma_min.

    Args:
        sigma_min: the deviation of the noise at t = 0.
        sigma_max: the deviation of the noise at t = 1.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.

    Examples:
        >>> path = sdegen.VESDE(sigma_min=0.01, sigma_max=100.0)
        >>> path.sigma(torch.tensor([0.0, 0.5, 1.0]))  # geometric in t
        tensor([1.0000e-02, 1.0000e+00, 1.0000e+02])

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.real("sigma_min", self.sigma_min, 0, strict=True)
        _checks.real("sigma_max", self.sigma_max, 0, strict=True)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max, and they are {self.sigma_min} and {self.sigma_max}.")

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: float | Tensor) -> Tensor:
        """alpha = 1; t is the path's own time, 0 at the data and 1 at the noise."""
        return torch.ones_like(as_time(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        """sigma = sigma_min (sigma_max/sigma_min)^t; t is the path's own time, 0 at the data and 1 at the noise."""
        return self.sigma_min * torch.exp(self._log_ratio * as_time(t))

    def slopes(self, t: float | Tensor) -> Slopes:
        """alpha' = 0 and sigma' = sigma log(sigma_max/sigma_min).

        t is the path's own time, 0 at the data and 1 at the noise.
        """
        sigma = self.sigma(t)
        return Slopes(torch.zeros_like(sigma), self._log_ratio * sigma, 2 * self._log_ratio * sigma**2)

    def time(self, u: float | Tensor) -> Tensor:
        """t = log(sigma/sigma_min) / log(sigma_max/sigma_min) with sigma = u/(1-u).

        u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise.
        """
        u = self.checked_clocks(u)
        return torch.log(u / (1 - u) / self.sigma_min) / self._log_ratio

    def scale(self, u: float | Tensor) -> Tensor:
        """r = 1 + sigma = 1/(1-u).

        u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise.
        """
        return 1 / (1 - self.checked_clocks(u))


@dataclass(frozen=True)
class EDM(GaussianPath):
    """Karras et al.'s path, whose time is the deviation of the noise, t in [0, sigma_max].

    alpha = 1, sigma = t

    It is `VESDE` from clean data on and in another time: its clock starts at u = 0 and ends at
    u = sigma_max/(1 + sigma_max), where samples start from N(0, sigma_max^2 I).

    Args:
        sigma_max: the deviation of the noise at the noise end, 80 as in the source.

    Raises:
        TypeError: for a `sigma_max` that is no real number.
        ValueError: unless `sigma_max` is positive and finite.

    Examples:
        >>> path = sdegen.EDM()
        >>> path.sigma(torch.tensor([0.0, 0.5, 80.0]))  # the time is the deviation of the noise
        tensor([ 0.0000,  0.5000, 80.0000])

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv:2206.00364.
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        object.__setattr__(self, "t_noise", _checks.real("sigma_max", self.sigma_max, 0, strict=True))

    def alpha(self, t: float | Tensor) -> Tensor:
        """alpha = 1; t is the path's own time, 0 at the data and sigma_max at the noise."""
        return torch.ones_like(as_time(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        """sigma = t; t is the path's own time, 0 at the data and sigma_max at the noise."""
        return as_time(t)

    def slopes(self, t: float | Tensor) -> Slopes:
        """alpha' = 0 and sigma' = 1; t is the path's own time, 0 at the data and sigma_max at the noise."""
        t = as_time(t)
        return Slopes(torch.zeros_like(t), torch.ones_like(t), 2 * t)

    def time(self, u: float | Tensor) -> Tensor:
        """t = u/(1-u); u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise."""
        u = self.checked_clocks(u)
        return u / (1 - u)

    def scale(self, u: float | Tensor) -> Tensor:
        """r = 1 + sigma = 1/(1-u).

        u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise.
        """
        return 1 / (1 - self.checked_clocks(u))
