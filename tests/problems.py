"""Problems with known answers, and the probe that reads a solver's exact law off its impulse response."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import sdegen


class OwnVP(sdegen.GaussianPath):
    """VP as a user would write it: only alpha and sigma."""

    def __repr__(self):  # the name of a test must not hold an address
        return "OwnVP()"

    def alpha(self, t):
        return torch.exp(-0.5 * (0.1 * t + 9.95 * t**2))

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-(0.1 * t + 9.95 * t**2)))


class OwnFlow(sdegen.GaussianPath):
    """The trigonometric flow, data at t = 1."""

    def __repr__(self):
        return "OwnFlow()"

    t_data, t_noise = 1.0, 0.0

    def alpha(self, t):
        return torch.sin(0.5 * math.pi * t)

    def sigma(self, t):
        return torch.sin(0.5 * math.pi * (1 - t))


def zero_snr(chain: sdegen.DDPM, *, smooth: bool = False) -> sdegen.DDPM:
    """Lin et al. (2024), algorithm 1: alpha shifted and scaled so that it ends at 0 and keeps its first value."""
    alpha = torch.sqrt(torch.cumprod(1 - chain.betas, 0))
    squares = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    return sdegen.DDPM(1 - squares / torch.cat([squares.new_ones(1), squares[:-1]]), smooth=smooth)


PATHS = {
    "vp": sdegen.VPSDE(),
    "subvp": sdegen.SubVPSDE(),
    "cosine": sdegen.CosineVPSDE(),
    "ve": sdegen.VESDE(),
    "edm": sdegen.EDM(),
    "ddpm": sdegen.DDPM.linear(1000),
    "ddpm smooth": sdegen.DDPM.linear(1000, smooth=True),
    "ddpm zero snr": zero_snr(sdegen.DDPM.linear(1000), smooth=True),
    "condot": sdegen.CondOT(),
    "condot sigma_min": sdegen.CondOT(0.01),
    "trigonometric": sdegen.Trigonometric(),
    "own vp": OwnVP(),
    "own flow": OwnFlow(),
    "vp retimed": sdegen.Retimed(sdegen.VPSDE(), -1.0, 4.0),
    "condot retimed": sdegen.Retimed(sdegen.CondOT(), 0.0, 2.5),
    "ve reversed": sdegen.Retimed(sdegen.VESDE(), 3.0, 1.0),
}
"""Every path there is, those of the library and two that a user wrote, in time from data to noise, from noise to data
and on spans other than 1: a law over paths is a law over all of them."""


def ring(std: float = 0.1, radius: float = 1.2) -> sdegen.GaussianMixture:
    """Eight modes on a circle in the plane."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return sdegen.GaussianMixture(radius * torch.stack([angle.cos(), angle.sin()], 1), std)


def mixture64() -> sdegen.GaussianMixture:
    """Three full-covariance components in 64 dimensions, condition numbers of about 100."""
    g = torch.Generator().manual_seed(64)
    means = torch.randn(3, 64, generator=g, dtype=torch.float64)
    scales = torch.logspace(-1, 0, 64, dtype=torch.float64)
    bases = [torch.linalg.qr(torch.randn(64, 64, generator=g, dtype=torch.float64))[0] for _ in range(3)]
    covariances = torch.stack([(q * scales**2) @ q.T for q in bases])
    return sdegen.GaussianMixture(
        means, None, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), covariances=covariances
    )


def two_modes() -> sdegen.GaussianMixture:
    """+-0.6, std 0.5 on the line."""
    return sdegen.GaussianMixture(torch.tensor([[-0.6], [0.6]], dtype=torch.float64), 0.5)


def affine_law(path, solver, S: float, m: float, steps: int | None = None) -> tuple[float, float]:
    """Exact mean and variance of `solver` on data N(m, S) from the exact start: unit impulses in, no Monte-Carlo.

    On Gaussian data every sampler is affine, x = b + a x_T + sum_j c_j z_j; row 0 of the batch reads b, row 1 reads a,
    and each further row one c_j.
    """
    exact = sdegen.Gaussian(torch.tensor([m], dtype=torch.float64), math.sqrt(S))
    start = exact.marginal(path, path.t_noise)
    ode = solver.solves_ode
    per_step = 2 if getattr(solver, "method", "") == "srk" else 1
    draws = 0 if ode else steps * per_step
    x_T = torch.zeros(draws + 2, 1, dtype=torch.float64)
    x_T[1] = 1
    noise = None
    if not ode:
        noise = torch.zeros(steps, per_step, draws + 2, 1, dtype=torch.float64)
        for j in range(draws):
            noise[j // per_step, j % per_step, 2 + j] = 1
        noise = noise if per_step == 2 else noise[:, 0]
    x = sdegen.solve(exact.model(path), x_T, solver, noise=noise).x[:, 0]
    b, a, c = x[0], x[1] - x[0], x[2:] - x[0]
    mean, variance = start_law(start)
    return float(a * mean + b), float(a**2 * variance + (c**2).sum())


def start_law(law: sdegen.GaussianMixture) -> tuple[float, float]:
    """Mean and variance of a one-dimensional Gaussian, read off its log-density."""
    x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    left, middle, right = law.log_prob(x).tolist()
    precision = 2 * middle - left - right
    return (right - left) / (2 * precision), 1 / precision


def slope(steps: list[int], errors: list[float]) -> float:
    """The order fitted by least squares to errors at numbers of steps."""
    x = [math.log(n) for n in steps]
    y = [-math.log(e) for e in errors]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def coarsen(w: Tensor, area: Tensor, factor: int) -> Tensor:
    """The normals (N/factor, 2, B, d) of a coarse grid whose Brownian path is that of the fine one, (N, B, d) each.

    Over a step of unit length W = w and U = w/2 + area/sqrt(12); joined, W adds up and U gains W so far times length.
    """
    shape = (len(w) // factor, factor, *w.shape[1:])
    W, U = w.reshape(shape), (0.5 * w + area / math.sqrt(12)).reshape(shape)
    before = torch.cumsum(W, 1) - W
    coarse_w = W.sum(1) / factor**0.5
    coarse_u = (before + U).sum(1) / factor**1.5
    return torch.stack([coarse_w, (coarse_u - 0.5 * coarse_w) * math.sqrt(12)], 1)
