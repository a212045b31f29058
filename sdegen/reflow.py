"""Flows as flows: rectification, straightness, and vector fields that never knew a path.

    rectify        x at the end of the ODE from z: retrained on these pairs (z, x), paths cross less and are straighter
    straightness   S = integral over u of E|dy/du - (y_noise - y_data)|^2, zero where every path is a straight line

Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, Liu et al., 2023, arXiv:2209.03003;
Neural Ordinary Differential Equations, Chen et al., 2018, arXiv:1806.07366 (continuous normalising flows).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import check_model
from sdegen.models.base import Cond, Model
from sdegen.models.model import ScoreModel
from sdegen.paths.flows import CondOT, Interpolant, Retimed
from sdegen.paths.gaussian import Source
from sdegen.sampling import decode, solve
from sdegen.solvers import ODESolver, PowerGrid


def rectify(model: Model, z: Tensor, solver: ODESolver | None = None, *, cond: Cond = None) -> Tensor:
    """The data x (B, *event) that the model's ODE carries the draws `z` from its source to: reflow's coupling.

    z:      standard normals, or draws from the source of an `Interpolant`.
    solver: an ODESolver, by default that of `log_prob`.

    Retrain with `loss(new, x, noise=z)`, the new model on an `Interpolant`. Liu et al., 2023, arXiv:2209.03003.
    """
    check_model(model)
    sigma = model.path.sigma(torch.tensor(model.path.t_noise, dtype=torch.float64)).item()
    return decode(model, sigma * _checks.batch("z", z), solver, cond=cond)


def straightness(
    model: Model,
    z: Tensor,
    solver: ODESolver | None = None,
    *,
    cond: Cond = None,
    u: tuple[float, float] | None = None,
) -> Tensor:
    """How far every path of the ODE is from a straight line, (B,), in squared units of the data; 0 for a straight one.

    S = integral over u of |dy/du - (y_noise - y_data)/(u_noise - u_data)|^2, y = x_t/r, which on `CondOT` is Liu et
    al.'s measure for one path; its mean over z is theirs.

    z:      x at the noise end (B, *event), as in `decode`. u: (from, to), only this part of the path.
    solver: by default "rk4" in 100 equal steps of u; the chords of its steps stand for dy/du.

    Liu et al., 2023, arXiv:2209.03003.
    """
    solver = ODESolver("rk4", steps=100, grid=PowerGrid(1)) if solver is None else solver
    if not isinstance(solver, ODESolver):
        raise TypeError(f"Straightness is about the ODE: give an ODESolver, not {solver!r}.")
    if solver.steps is None and solver.grid is None:
        raise ValueError(f"The chords of a few long steps hide what bends: give fixed steps, not {solver!r}.")
    z = _checks.batch("z", z)
    path = solve(model, z.to(torch.promote_types(z.dtype, torch.float32)), solver, cond=cond, u=u, trajectory=True)
    every = (-1, *[1] * path.x.ndim)
    y = path.trajectory / model.path.scale(path.u).to(path.x).reshape(every)
    du = torch.diff(path.u).to(path.x)
    slopes = torch.diff(y, dim=0) / du.reshape(every)
    bend = slopes - (y[-1] - y[0]) / du.sum()
    return (du.abs()[:, None] * bend.square().flatten(2).sum(2)).sum(0)


def vector_field(
    f: Callable[..., Tensor], *, t_data: float = 1.0, t_noise: float = 0.0, prior: Source | None = None
) -> ScoreModel:
    """A continuous normalising flow dx/dt = f(x, t), any field at all, as a model for `sample`, `encode`, `log_prob`.

    f:     called as f(x, t) with x (B, *event), t (B,).
    t_data, t_noise: where the data and the latents are; FFJORD's flows have t_data = 0, t_noise = 1.
    prior: the law of the latents, with `.log_prob` and `.sample(shape, generator)`; by default N(0, I).

    There is no score: only the ODE can be solved. Chen et al., 2018, arXiv:1806.07366; Grathwohl et al.,
    2019, arXiv:1810.01367.
    """
    return ScoreModel(f, Interpolant(Retimed(CondOT(), t_data, t_noise), prior), "velocity")
