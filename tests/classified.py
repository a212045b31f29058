"""Two laws told apart: on three states, where equal weights make every expectation a mean over a few rows, and as
Gaussians, whose log-ratio is known at every time of every path."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import sdegen

P, Q = (torch.tensor(weights, dtype=torch.float64) / 4 for weights in ([2, 1, 1], [1, 1, 2]))
"""Two laws on the states 0, 1 and 2, equal at 1."""
REAL, FAKE = (torch.tensor(states, dtype=torch.float64)[:, None] for states in ([0, 0, 1, 2], [0, 1, 2, 2]))
"""Every state as often as its law says: a mean over these rows is an expectation."""
KL = float((P * (P / Q).log()).sum())
MIDDLE = 0.5 * (P + Q)
JSD = float(0.5 * (P * (P / MIDDLE).log()).sum() + 0.5 * (Q * (Q / MIDDLE).log()).sum())
JSD_OF_NORMALS = {0.5: 0.0303113005, 1.0: 0.1114214822, 2.0: 0.3368308203, 4.0: 0.6327201937}
"""JSD(N(0, 1), N(mu, 1)) by mu."""


def fakes(k: int) -> Tensor:
    """k fakes to every real row, (4 k, 1)."""
    return FAKE.repeat(k, 1)


def of_state(table: Tensor) -> Callable[[Tensor], Tensor]:
    """The network that looks its logit up."""
    return lambda x: table[x[:, 0].long()]


def minimised(loss: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """The table of `size` numbers at which `loss` is least."""
    table = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    options = {"tolerance_grad": 1e-12, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
    optimiser = torch.optim.LBFGS([table], max_iter=500, **options)

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(table)
        value.backward()
        return value

    optimiser.step(closure)
    return table.detach()


def log_normal(x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """log N(x; mean, covariance), (B,), up to log sqrt(2 pi)^d, for one mean and covariance per row."""
    root = torch.linalg.cholesky(covariance)
    z = torch.linalg.solve_triangular(root, (x - mean)[..., None], upper=False)
    return -0.5 * z.square().sum((1, 2)) - root.diagonal(dim1=1, dim2=2).log().sum(1)


def exact_logit(
    path: sdegen.GaussianPath, p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """log p_t/q_t for Gaussian data, each a mean (d,) and a covariance (d, d)."""

    def logit(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None, None]
        noise = sigma**2 * torch.eye(x.shape[1]).to(x)
        of_p, of_q = (
            log_normal(x, alpha * mean.to(x), alpha[..., None] ** 2 * covariance.to(x) + noise)
            for mean, covariance in (p, q)
        )
        return of_p - of_q

    return logit


def jsd_by_quadrature(mean: float, std: float, other_mean: float, other_std: float) -> float:
    """JSD of two normals on the line, by the trapezoidal rule."""
    reach = abs(mean) + abs(other_mean) + 12 * max(std, other_std)
    x = torch.linspace(-reach, reach, 4001, dtype=torch.float64)
    logs = [
        -0.5 * ((x - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))
        for m, s in ((mean, std), (other_mean, other_std))
    ]
    middle = torch.logaddexp(*logs) - math.log(2)
    return float(sum(0.5 * torch.trapezoid(log.exp() * (log - middle), x) for log in logs))
