"""The border between users and solvers, the same for every verb: checks, the part of the path, the coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.models.model import Model
from sdegen.solvers import DDIM, Ancestral, ODESolver, SDESolver

Solver = SDESolver | ODESolver | Ancestral | DDIM

LIKELIHOOD_SOLVER = ODESolver("dopri8", rtol=1e-6)
"""What encode, decode and log_prob use unless told otherwise."""


def check_model(model: object) -> None:
    """A TypeError unless `model` is one."""
    if not isinstance(model, Model):
        raise TypeError(f"model must be a ScoreModel or the .model(path) of an exact target, and it is {model!r}.")


def check_solver(solver: object) -> None:
    """A TypeError unless `solver` is one."""
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be an SDESolver, ODESolver, Ancestral or DDIM, and it is {solver!r}.")


def ode_solver(solver: ODESolver | None) -> ODESolver:
    """`solver`, which must solve the ODE, or the default."""
    solver = LIKELIHOOD_SOLVER if solver is None else solver
    if not isinstance(solver, ODESolver):
        raise TypeError(f"Only the ODE can be solved both ways: give an ODESolver, not {solver!r}.")
    return solver


def interval(model: Model, to: str, u: tuple[float, float] | None) -> tuple[float, float]:
    """(u_from, u_to): the ends of the path, or the part of it that was asked for."""
    low, high = model.path.ends
    if u is None:
        ends = (high, low) if to == "data" else (low, high)
        model.covers(*ends)
        return ends
    if not isinstance(u, (tuple, list)) or len(u) != 2:
        raise TypeError(f"u must be a pair (from, to) on the straight clock, and it is {u!r}.")
    u_from, u_to = (_checks.real("every end in u", end) for end in u)
    if not all(low - 1e-12 <= end <= high + 1e-12 for end in (u_from, u_to)):
        raise ValueError(f"u = ({u_from}, {u_to}) leaves the path: {model.path!r} runs from u = {low} to {high}.")
    if u_from == u_to or (u_from > u_to) != (to == "data"):
        order = "from > to" if to == "data" else "from < to"
        raise ValueError(f"A solve to the {to} needs u with {order}, and it is ({u_from}, {u_to}).")
    ends = min(max(u_from, low), high), min(max(u_to, low), high)
    model.covers(*ends)
    return ends


def working(x: Tensor) -> Tensor:
    """`x` as an ordinary tensor in at least float32: half precision would round the clock's steps away."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32)).clone()


def scale_at(model: Model, u: float) -> float:
    """r = alpha + sigma at the clock `u`."""
    return float(model.path.scale(torch.tensor(u, dtype=torch.float64)))
