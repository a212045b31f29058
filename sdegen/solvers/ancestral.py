"""Ancestral sampling: the DDPM chain on any path, one bridge step at a time.

    x_s = c_t x_t + c_x x_hat + std z      (c_t, c_x) of the bridge x_s | x_t, x;  no noise in the last step

In straight coordinates, with q = u_s (1-u_t) / (u_t (1-u_s)), so that 1 - q = (u_t - u_s) / (u_t (1-u_s)),

    y_s = q (u_s/u_t) y_t + (1-u_s)(1-q^2) x_hat + std z
    std = u_s sqrt(1-q^2)                     variance="posterior" (beta-tilde): the exact bridge
    std = u_t (r_t/r_s) sqrt(1-q^2)           variance="beta": the forward kernel's own variance, sigma_{t|s}^2

"posterior" is the exact solution of the reverse SDE with x_hat frozen over the step.
Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.dynamics import CHECK_EVERY, Path, Problem
from sdegen.gaussian_path import GaussianPath
from sdegen.solvers.brownian import noise_of_step
from sdegen.solvers.grids import Grid, PowerGrid, check_grid, knots

VARIANCES = ("beta", "posterior")


@dataclass(frozen=True)
class Ancestral:
    """The DDPM chain (Algorithm 2 of Ho et al.) on any path, one network call a step.

    steps:    number of steps; may be left out on a `DDPM` path (all of them) or with a tensor `grid`.
    variance: "beta" or "posterior", or a tensor (steps,) of variances of x_s, in the order of the betas: [0] is the
              step that ends at the data, which adds no noise.
    grid:     a PowerGrid or a float64 tensor of steps + 1 values of u; by default a `DDPM` path's own grid when all its
              steps are taken, and PowerGrid(2) otherwise.

    Raises TypeError or ValueError for options that are wrong or do not fit together.
    """

    steps: int | None = None
    _: KW_ONLY
    variance: str | Tensor = "beta"
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            _checks.whole("steps", self.steps)
        if self.grid is not None:
            check_grid(self.grid, self.steps)
        if not isinstance(self.variance, Tensor):
            _checks.choice("variance", self.variance, VARIANCES)
        elif not (self.variance.is_floating_point() and self.variance.ndim == 1 and bool((self.variance >= 0).all())):
            raise ValueError(
                f"A tensor variance must be real, 1-D and non-negative, and it is {self.variance.tolist()}."
            )

    def run(self, problem: Problem) -> Path:
        """Integrate `problem`: used by `sdegen.solve`."""
        if problem.u_to > problem.u_from:
            raise ValueError("Ancestral sampling runs from noise to data; use an ODESolver or SDESolver towards noise.")
        path = problem.model.path
        steps = self._steps(path)
        grid = self.grid if self.grid is not None else PowerGrid(1, "t") if steps == path.steps else PowerGrid(2)
        u, t = knots(grid, path, problem.u_from, problem.u_to, steps)
        keep, add, std = self._coefficients(path, u)
        queries = problem.model.plan(problem.y, u[:-1], t[:-1], add, torch.zeros_like(add), keep)
        std = std.to(problem.y).unbind(0)
        noise = noise_of_step(problem, steps)
        y = problem.y
        states = [y]
        with problem.bar(steps) as bar:
            for k in range(steps):
                y = problem.model.estimate(y, queries[k], problem.cond)
                if k < steps - 1:
                    y = torch.addcmul(y, std[k], noise(k))
                if (k + 1) % CHECK_EVERY == 0 or k == steps - 1:
                    _checks.finite_state(y, float(u[k + 1]))
                if problem.trajectory:
                    states.append(y)
                bar()
        return Path(y, u.tolist(), states if problem.trajectory else [], t.tolist(), calls=steps, accepted=steps)

    def _steps(self, path: GaussianPath) -> int:
        steps = len(self.grid) - 1 if isinstance(self.grid, Tensor) else self.steps or path.steps
        if steps is None:
            raise ValueError(f"Ancestral needs steps, the number of steps, on {path!r}, which has no chain of its own.")
        if isinstance(self.variance, Tensor) and len(self.variance) != steps:
            raise ValueError(f"A tensor variance needs one value a step, {steps}, and it has {len(self.variance)}.")
        return steps

    def _coefficients(self, path: GaussianPath, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The factors of y_t, of x_hat and of the noise, for every step from u_t to u_s."""
        u_t, u_s = u[:-1], u[1:]
        q = u_s * (1 - u_t) / (u_t * (1 - u_s))
        fresh = (u_t - u_s) / (u_t * (1 - u_s)) * (1 + q)  # 1 - q^2
        if isinstance(self.variance, Tensor):
            std = self.variance.detach().to("cpu", torch.float64).flip(0).sqrt() / path.scale(u_s)
        elif self.variance == "posterior":
            std = u_s * fresh.sqrt()
        else:
            std = u_t * path.scale(u_t) / path.scale(u_s) * fresh.sqrt()
        return q * u_s / u_t, (1 - u_s) * fresh, std
