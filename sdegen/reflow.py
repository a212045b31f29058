"""Flows as flows: rectification, straightness, and vector fields that never knew a path.

    rectify        x at the end of the ODE from z: retrained on these pairs (z, x), paths cross less and are straighter
    straightness   S = integral over u of |dy/du - (y_noise - y_data)|^2, zero where the path of y is a straight line
    vector_field   dx/dt = f(x, t) for any f, as a model: a continuous normalising flow

y = x_t/r and u = sigma/r with r = alpha + sigma are the straight coordinates of every path.

References:
    Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, Liu et al., 2023,
    arXiv:2209.03003.
    Neural Ordinary Differential Equations, Chen et al., 2018, arXiv:1806.07366.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import batch_parts, check_model
from sdegen.models.base import Cond, Model
from sdegen.models.model import ScoreModel
from sdegen.paths.flows import CondOT, Interpolant, Retimed
from sdegen.paths.priors import Source
from sdegen.sampling import Solution, decode, ode_solver, solve
from sdegen.solvers import ODESolver, PowerGrid, Solver
from sdegen.solvers.base import bar

HUNDRED_STEPS = ODESolver("rk4", steps=100, grid=PowerGrid(1))
"""The default of straightness."""


def rectify(
    model: Model,
    z: Tensor,
    solver: Solver | None = None,
    *,
    cond: Cond = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """The data x that the model's ODE carries draws z from its source to: reflow's coupling of x with z.

    x is the state at the data end of dy/du = eps_hat - x_hat from x_T = sigma(t_noise) z. Retrain by
    `loss(new, x, noise=z)` with the new model on an `Interpolant`: the pairs (z, x) are no longer independent, so that
    the new model has an ODE and no score.

    Args:
        model: a `ScoreModel`, or the `.model(path)` of an exact target.
        z: standard normals, or draws from the source of an `Interpolant`, (B, *event).
        solver: one that solves the ODE; by default that of `log_prob`.
        cond: keyword arguments for the network, as in `sample`.
        batch_size: as in `decode`.
        progress: as in `decode`.

    Returns:
        x, shaped like z.

    Raises:
        TypeError: as `decode`.
        ValueError: as `decode`.
        NonFiniteError: as `decode`.

    Examples:
        >>> model = sdegen.Gaussian([0.0], 0.5).model(sdegen.CondOT())
        >>> z = torch.tensor([[-1.0], [0.0], [2.0]])
        >>> sdegen.rectify(model, z).round(decimals=3).tolist()  # Gaussian data are scaled
        [[-0.5], [0.0], [1.0]]

    References:
        Flow Straight and Fast, Liu et al., 2023, arXiv:2209.03003.
    """
    check_model(model)
    sigma = float(model.path.sigma(torch.tensor(model.path.t_noise, dtype=torch.float64)))
    z = sigma * _checks.batch("z", z, finite=False)
    return decode(model, z, solver, cond=cond, batch_size=batch_size, progress=progress)


def straightness(
    model: Model,
    z: Tensor,
    solver: Solver | None = None,
    *,
    cond: Cond = None,
    u: tuple[float, float] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """How far the path of every sample under the ODE is from a straight line: 0 for one that is straight.

    S = integral over u of |dy/du - (y_noise - y_data)/(u_noise - u_data)|^2, y = x_t/r, where the chords of the
    solver's steps stand for dy/du: with states y_k at the knots u_k, k = 0 ... N, and h_k = u_{k+1} - u_k,

        S = sum over k of |h_k| |(y_{k+1} - y_k)/h_k - (y_N - y_0)/(u_N - u_0)|^2

    On `CondOT` this is Liu et al.'s measure for one path, and its mean over z is theirs.

    Args:
        model: a `ScoreModel`, or the `.model(path)` of an exact target.
        z: x at the noise end, as in `decode`, (B, *event).
        solver: one that solves the ODE in at least two steps, not chosen from a tolerance; by default "rk4" in 100
            equal steps of u.
        cond: keyword arguments for the network, as in `sample`.
        u: (from, to) on the straight clock sigma/(alpha + sigma), 1 at pure noise and 0 at clean data: only this part
            of the path; z is then x_t at u[0].
        batch_size: samples in one network call, whose states at every step are held at once; all of them by default.
        progress: show a bar, a step for every part of the batch (needs tqdm).

    Returns:
        S, (B,), in squared units of the data.

    Raises:
        TypeError: as `decode`.
        ValueError: as `decode`, for an adaptive `ODESolver`, and for a solver that reports fewer than two steps.
        NonFiniteError: as `decode`.

    Examples:
        >>> model = sdegen.vector_field(lambda x, t: torch.full_like(x, 3.0))
        >>> S = sdegen.straightness(model, torch.randn(4, 2))
        >>> S.round(decimals=6).tolist()  # a constant velocity is straight
        [0.0, 0.0, 0.0, 0.0]

    References:
        Flow Straight and Fast, Liu et al., 2023, arXiv:2209.03003.
    """
    solver = HUNDRED_STEPS if solver is None else ode_solver(solver)
    if isinstance(solver, ODESolver) and solver.steps is None and solver.grid is None:
        raise ValueError(f"The chords of a few long steps hide what bends: give fixed steps, not {solver!r}.")
    check_model(model)
    z, cond = _checks.batch("z", z, finite=False), _checks.conditions(cond)
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    parts = list(batch_parts(wide, batch_size)) or [slice(0, 0)]
    found = []
    with bar(len(parts), progress) as part_done:
        for rows in parts:
            received = _checks.conditions_of_rows(cond, rows, len(z))
            found.append(_bend(model, solve(model, wide[rows], solver, cond=received, u=u, trajectory=True), solver))
            part_done()
    return torch.cat(found)


def _bend(model: Model, solution: Solution, solver: Solver) -> Tensor:
    """S of every sample of a solution with its trajectory, (B,)."""
    x, u_knots = solution.trajectory, solution.u
    if x is None or (len(x) < 3 and len(solution.x)):
        known = 0 if x is None else len(x) - 1
        raise ValueError(
            f"Straightness is measured along the solver's steps, two at the least: {solver!r} reports {known}."
        )
    every = (-1, *[1] * solution.x.ndim)
    y = x / model.path.scale(u_knots).to(x).reshape(every)
    h = torch.diff(u_knots).to(x)
    bend = torch.diff(y, dim=0) / h.reshape(every) - (y[-1] - y[0]) / h.sum()
    return (h.abs()[:, None] * bend.square().flatten(2).sum(2)).sum(0)


def vector_field(
    f: Callable[..., Tensor], *, t_data: float = 1.0, t_noise: float = 0.0, prior: Source | None = None
) -> ScoreModel:
    """A continuous normalising flow dx/dt = f(x, t), any field at all, as a model for `sample`, `encode`, `log_prob`.

    x(t_noise) is drawn from the prior and the field carries it to x(t_data), so that

        log p(x(t_data)) = log prior(x(t_noise)) - integral of div f(x(t), t) dt from t_noise to t_data

    There is no score: only the ODE can be solved.

    Args:
        f: called as f(x, t), x (B, *event) and t (B,), or f(x, t, **cond) where there is `cond`; returns a tensor
            shaped like x. An nn.Module or any callable.
        t_data: the time at the data; FFJORD's flows have t_data = 0 and t_noise = 1.
        t_noise: the time at the latents.
        prior: the law of the latents, an object with `.log_prob(x)` and `.sample(shape, generator)`; by default
            N(0, I).

    Returns:
        the model, on an `Interpolant` that predicts "velocity".

    Raises:
        TypeError: f is not callable, a time not a number, or the prior has neither method.
        ValueError: the times are equal or not finite.

    Examples:
        >>> model = sdegen.vector_field(lambda x, t: -x)  # x(1) = x(0) / e, from N(0, 1) at t = 0
        >>> logp = sdegen.log_prob(model, torch.zeros(1, 1))
        >>> f"{logp.item():.4f}"  # log N(0; 0, 1) + 1
        '0.0811'

    References:
        Neural Ordinary Differential Equations, Chen et al., 2018, arXiv:1806.07366.
        FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models, Grathwohl et al., 2019,
        arXiv:1810.01367.
    """
    return ScoreModel(f, Interpolant(Retimed(CondOT(), t_data, t_noise), prior), "velocity")
