"""Integrals over u of the polynomial in a grid's clock s(u) through values at its knots: weights, float64 on the CPU.

With xi rising from 0 to 1 with s over a step, and xi_j the places of the knots whose values are used, the weights w_j
are exact for powers of xi:

    sum over j of w_j xi_j^i = integral over the step of xi^i du,    i = 0, 1, ...

References:
    Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, section III.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdegen.solvers.grids import Layout
from sdegen.solvers.scheme import Row


def exact_rows(knots: Layout, most: int, rows: int, ahead: int = 0) -> list[Row]:
    """Rows for the first `rows` steps, exact for polynomials in s of degree below `most`.

    They weigh the values at the knot `ahead` of a step's first and backwards; a step with fewer of them behind it has
    as many equations fewer.
    """
    s, back = knots.s, torch.arange(most)
    k = torch.arange(rows)[:, None]
    xi = (s[(k + ahead - back).clamp(min=0)] - s[k]) / (s[k + 1] - s[k])
    known = back <= k + ahead
    powers = torch.linalg.vander(xi, N=max(most, 2))[..., :most].mT
    powers = torch.where(known[:, None] & known[..., None], powers, torch.eye(most, dtype=xi.dtype))
    weights = torch.linalg.solve(powers, torch.where(known, knots.moments[:rows, :most], 0.0))
    return [Row(1.0, w[: k + 1 + ahead]) for k, w in enumerate(weights.tolist())]


def integral_weights(knots: Layout, points: int) -> Tensor:
    """Weights of the values at all n knots in the integral from the first to the last, (n,).

    Each step takes the polynomial through `points` of them (all, where there are fewer), as many before it as after it
    wherever the ends allow.
    """
    s, n = knots.s, len(knots.u)
    points = min(points, n)
    k = torch.arange(n - 1)[:, None]
    used = (k + 1 - points // 2).clamp(0, n - points) + torch.arange(points)
    xi = (s[used] - s[k]) / (s[k + 1] - s[k])
    powers = torch.linalg.vander(xi, N=max(points, 2))[..., :points].mT
    weights = torch.linalg.solve(powers, knots.moments[:, :points])
    return torch.zeros(n, dtype=torch.float64).index_add_(0, used.flatten(), weights.flatten())
