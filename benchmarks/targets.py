"""What the solvers are judged on: three exact mixtures, fixed latents, and the error against a fine solution.

A target is a `sdegen.GaussianMixture`, asked on `sdegen.VPSDE()` with beta from 0.1 to 20. From 512 fixed latents x_T
every solver runs in float64; its error is the RMS over all coordinates of the best 98 % of the points (a point on the
border between two modes may land in another one, and would be the whole number), against dopri8 at 1e-11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

import sdegen

CALLS = (5, 8, 10, 15, 20, 30, 50)
POINTS = 512
KEPT = 0.98
FINE = sdegen.ODESolver("dopri8", rtol=1e-11)


def ring8() -> sdegen.GaussianMixture:
    """Eight equal modes of std 0.1 on a circle of radius 1.2."""
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    return sdegen.GaussianMixture(1.2 * torch.stack([angle.cos(), angle.sin()], 1), 0.1)


def gmm16() -> sdegen.GaussianMixture:
    """Ten modes of std 0.3 in 16 dimensions: means from N(0, I), weights softmax of N(0, 1/4)."""
    generator = torch.Generator().manual_seed(16)
    means = torch.randn(10, 16, generator=generator, dtype=torch.float64)
    weights = torch.softmax(0.5 * torch.randn(10, generator=generator, dtype=torch.float64), 0)
    return sdegen.GaussianMixture(means, 0.3, weights)


def narrow9() -> sdegen.GaussianMixture:
    """Nine equal modes of std 0.05 at -1, 0, 1 on both axes."""
    side = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    return sdegen.GaussianMixture(torch.cartesian_prod(side, side), 0.05)


TARGETS: Mapping[str, Callable[[], sdegen.GaussianMixture]] = {"ring8": ring8, "gmm16": gmm16, "narrow9": narrow9}


def latents(shape: tuple[int, ...], std: float = 1.0, seed: int = 1234) -> Tensor:
    """Normals of deviation `std`, drawn in float32 and kept in float64."""
    return std * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).double()


def error(x: Tensor, fine: Tensor, kept: float = KEPT) -> float:
    """RMS over all coordinates of the best part of the points, inf where any value is not finite."""
    squares = (x.double() - fine.double()).flatten(1).square().mean(1)
    if not bool(torch.isfinite(squares).all()):
        return math.inf
    return float(squares.sort().values[: int(kept * len(squares))].mean().sqrt())


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm; nan of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


class Fine:
    """Fine solutions from fixed latents down to any clock u, each computed once."""

    def __init__(self, model: sdegen.Model, x_T: Tensor, solver: sdegen.Solver = FINE):
        self.model, self.x_T, self.solver = model, x_T, solver
        self._solutions: dict[float, Tensor] = {}

    def at(self, u: float) -> Tensor:
        """x at the clock u."""
        if u not in self._solutions:
            start = self.model.path.ends[1]
            self._solutions[u] = sdegen.solve(self.model, self.x_T, self.solver, u=(start, u)).x
        return self._solutions[u]

    @property
    def at_data(self) -> Tensor:
        """x at clean data, the path's own end."""
        return self.at(self.model.path.ends[0])
