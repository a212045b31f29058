"""Gaussian data seen through a matrix with noise: every posterior in closed form, on every path."""

from __future__ import annotations

import torch
from torch import Tensor

import sdegen

MEAN = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.9, 0.3, -0.2], [0.3, 0.5, 0.1], [-0.2, 0.1, 0.7]], dtype=torch.float64)
A = torch.tensor([[1.0, 0.5, -0.2], [0.0, 1.0, 1.0]], dtype=torch.float64)
SEEN, STD = torch.tensor([0.7, -0.4], dtype=torch.float64), 0.3

LAW = sdegen.Gaussian(MEAN, covariance=COVARIANCE)

INSIDE = [sdegen.VPSDE(), sdegen.SubVPSDE(), sdegen.VESDE(), sdegen.DDPM.linear(50, 1e-3, 0.2)]
TO_PURE_NOISE = [sdegen.CondOT(), sdegen.CosineVPSDE()]
PATHS = INSIDE + TO_PURE_NOISE


def posterior(mean: Tensor = MEAN, covariance: Tensor = COVARIANCE) -> sdegen.Gaussian:
    """The law of x given A x + STD n = SEEN."""
    gain = covariance @ A.T @ torch.linalg.inv(A @ covariance @ A.T + STD**2 * torch.eye(2))
    left = covariance - gain @ A @ covariance
    return sdegen.Gaussian(mean + gain @ (SEEN - A @ mean), covariance=0.5 * (left + left.T))


def ends(path: sdegen.GaussianPath) -> tuple[float, float] | None:
    """The part of the path to follow: all, but where it reaches pure noise up to 0.999."""
    return (0.999, 0.0) if path.ends[1] == 1 else None


def log_evidence(path: sdegen.GaussianPath):
    """log p(SEEN | x_t) on a path, up to a constant in x_t."""

    def log_weight(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = path.alpha(t)[:, None, None], path.sigma(t)[:, None, None]
        gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(3))
        mean = MEAN + (gain @ (x[..., None] - alpha * MEAN[:, None])).squeeze(-1)
        spread = A @ (COVARIANCE - alpha * gain @ COVARIANCE) @ A.T + STD**2 * torch.eye(2)
        off = (SEEN - mean @ A.T)[..., None]
        return -0.5 * (off.mT @ torch.linalg.solve(spread, off)).flatten()

    return log_weight


SOLVERS = [
    sdegen.ODESolver("rk4", steps=6),
    sdegen.SDESolver(steps=8),
    sdegen.Ancestral(8),
    sdegen.Ancestral(8, variance="posterior"),
    sdegen.DDIM(8),
    sdegen.DDIM(8, eta=0.7),
    sdegen.Adams(8),
    sdegen.StochasticAdams(8),
    sdegen.UniPC(8),
]


def is_the_same_model(model: sdegen.Model, exact: sdegen.Model, tolerance: float = 1e-11) -> None:
    """Every answer, sampler and density of the two, from common starts and noise."""
    path, u = exact.path, ends(exact.path)
    t = path.at(torch.linspace(0.1, 0.9, 7))
    x = path.sigma(t)[:, None] * torch.randn(7, 3) + path.alpha(t)[:, None] * LAW.sample(7)
    for name in ("eps", "data", "score", "v", "velocity"):
        ours, theirs = (getattr(m, name)(x, t) for m in (model, exact))
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for solver in SOLVERS:
        start = torch.randn(5, 3) * float(path.sigma(torch.tensor(path.t_noise)))
        noise = None if solver.follows_ode else torch.randn(8, 5, 3)
        found = [sdegen.solve(m, start, solver, u=u, noise=noise).x for m in (model, exact)]
        torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)
    data = LAW.sample(5)
    for solver in (sdegen.Adams(16), sdegen.ODESolver("rk4", steps=6)):
        found = [sdegen.log_prob(m, data, solver, u=u and u[::-1]) for m in (model, exact)]
        torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)
