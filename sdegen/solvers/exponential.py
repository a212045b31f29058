"""Exponential integrators in half the log-SNR: the rows of DPM-Solver++, UniPC, SA-Solver and DEIS.

With l = log((1-u)/u), a step from u to v, h = l_v - l_u, and zeta = (l - l_u)/h, 0 at its first knot and 1 at its end,
the linear part of the equation is solved exactly, on every path:

    data     y_v = (v/u) e^(-eta^2 h) y_u + (1-v) X + v sqrt(1 - e^(-2 eta^2 h)) z       eta = 0: the ODE
             X = x integral over zeta of e^(-x (1-zeta)) x_hat,        x = (1 + eta^2) h
    noise    y_v = (1-v)/(1-u) y_u - (1-v) u/(1-u) E                                     the ODE alone
             E = h integral over zeta of e^(-h zeta) eps_hat

Under the integral stands the polynomial through the answers m_j at zeta_j: X = sum of w_j m_j, where the weights hold
sum of w_j zeta_j^i = mu_i, the integral with zeta^i for the answer, for as many i as there are answers. Schemes differ
in which answers they take, and in a moment mu_i that they replace by a simpler number.

An answer at pure noise lies infinitely far away in l: it says nothing about the bend of x_hat, and is left out. A step
of infinite length, from pure noise or to clean data, leans on its newest answer alone.

References:
    DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps, Lu et al., 2022,
        arXiv:2206.00927.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.special import gammainc
from torch import Tensor

from sdegen.solvers.scheme import Row

Moments = Callable[[float, int], list[float]]
"""(x, n) to mu_0 ... mu_(n-1)."""


FEW = 15
"""Steps, below which the last two of DPM-Solver++ and DEIS fall to orders 2 and 1."""


def ramped(steps: int, order: int, few: float = math.inf) -> list[int]:
    """Answers that each step uses: one more at every step and, of fewer than `few` steps, one less at the end."""
    return [min(order, k + 1, steps - k if steps < few else order) for k in range(steps)]


def half_log_snr(u: Tensor) -> list[float]:
    """l = log((1-u)/u): -inf at pure noise, inf at clean data."""
    return (torch.log1p(-u) - torch.log(u)).tolist()


def falling_moments(x: float, count: int) -> list[float]:
    """x times the integral over zeta from 0 to 1 of e^(-x zeta) zeta^i, i < count; x may be infinite."""
    return [math.factorial(i) * float(gammainc(i + 1, x)) / (x**i if i else 1.0) for i in range(count)]


def rising_moments(x: float, count: int) -> list[float]:
    """x times the integral over zeta from 0 to 1 of e^(-x (1-zeta)) zeta^i, i < count; x may be infinite."""
    falling = falling_moments(x, count)
    return [sum(math.comb(i, k) * (-1) ** k * falling[k] for k in range(i + 1)) for i in range(count)]


def midpoint_moments(x: float, count: int) -> list[float]:
    """`rising_moments`, but through two answers the line is taken at the middle of the step: mu_1 = mu_0 / 2."""
    mu = rising_moments(x, count)
    return [mu[0], mu[0] / 2] if count == 2 else mu


def data_rows(u: Tensor, counts: Sequence[int], moments: Moments, eta: float = 0.0, ahead: int = 0) -> list[Row]:
    """The first len(counts) steps, from so many answers each, the newest at the knot `ahead` of a step's first one."""
    clocks, l, level, rows = u.tolist(), half_log_snr(u), eta**2, list[Row]()
    for k, count in enumerate(counts):
        u_k, v, h = clocks[k], clocks[k + 1], l[k + 1] - l[k]
        keep = v / u_k * math.exp(-level * h) if level else v / u_k
        weights = _weights(l, k, k + ahead, count, (1 + level) * h, moments)
        std = v * math.sqrt(-math.expm1(-2 * level * h)) if level else 0.0
        rows.append(Row(keep, [(1 - v) * w for w in weights], std))
    return rows


def noise_rows(u: Tensor, counts: Sequence[int]) -> list[Row]:
    """The steps, from so many answers eps_hat each; u < 1."""
    clocks, l, rows = u.tolist(), half_log_snr(u), list[Row]()
    for k, count in enumerate(counts):
        keep = (1 - clocks[k + 1]) / (1 - clocks[k])
        weights = _weights(l, k, k, count, l[k + 1] - l[k], falling_moments)
        rows.append(Row(keep, [-keep * clocks[k] * w for w in weights]))
    return rows


def _weights(l: list[float], k: int, newest: int, count: int, x: float, moments: Moments) -> list[float]:
    """Those of the answers at the knots newest, newest - 1, ..., so many of them as tell something."""
    h = l[k + 1] - l[k]
    zeta = [(l[newest - j] - l[k]) / h for j in range(count) if math.isfinite(l[newest - j])]
    if len(zeta) < 2 or not math.isfinite(h):
        return moments(x, 1)
    weights: list[float] = np.linalg.solve(np.vander(zeta, increasing=True).T, moments(x, len(zeta))).tolist()
    return weights
