"""A solver's grid and order, chosen on pilot latents: the best of a fixed list, if it is clearly better.

What wins on a few latents by luck, or by moving its worst samples among the 2 % that nobody counts, loses on others. So
errors are measured three times, over all pilots, over the best 98 % and over the best 90 %, a candidate is worth the
largest of its three ratios to the solver as it came, and it has to gain a tenth there to be taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

from torch import Tensor

from sdegen._arguments import check_model
from sdegen._checks import NonFiniteError
from sdegen.comparison import KEPT, fine_end, latents, rms_error
from sdegen.models.base import Cond, Model
from sdegen.sampling import solve
from sdegen.solvers import Grid, PowerGrid, Solver, StretchedGrid
from sdegen.solvers.base import bar
from sdegen.solvers.grids import steps_on

GRIDS: tuple[Grid, ...] = (
    *(StretchedGrid(p) for p in (0.0, 0.1, 0.2, 0.3, 0.4)),
    *(StretchedGrid(0.3, gain) for gain in (0.4, 0.8)),
    *(PowerGrid(p) for p in (1.0, 1.5, 2.0)),
)
"""The grids that are tried, each with every order that the solver knows."""

ORDERS = (1, 2, 3, 4)

SHARES = (1.0, KEPT, 0.9)
"""Of the pilots, best first, over which errors are measured."""

ENOUGH = 0.9
"""How much of the solver's own error a candidate may leave at each of these shares."""

AnySolver = TypeVar("AnySolver", bound=Solver)


def tune(
    model: Model,
    solver: AnySolver,
    x_T: Tensor,
    *,
    cond: Cond = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> AnySolver:
    """The solver with the grid and the order that suit this model best, at as many steps.

    Candidates are the solver as it came and ten grids, `StretchedGrid` and `PowerGrid`, each with every order from 1 to
    4 that the solver has. They are measured by their RMS error at the pilots x_T against dopri8 at tolerance 1e-8 (1e-6
    below float64). The best is taken where it leaves at most 0.9 of the solver's own error, over all pilots, over the
    best 98 % and over the best 90 % alike; else the solver comes back as it was.

    It costs 41 solves of `Adams`, 31 of `UniPC` and 11 of an `ODESolver`, each of as many network calls on the pilots
    as the solver makes, and the fine solve, some hundreds of calls. A candidate whose state is lost is left out. Give
    64 pilots or so, draws of `path.prior`: 16 are too few to tell luck from gain. The result depends on them alone.

    Args:
        model: a `ScoreModel`, or the `.model(path)` of an exact target.
        solver: one that adds no noise (`Solver.follows_ode`) and takes fixed steps on a grid, such as `Adams(10)`,
            `UniPC(10)` or `ODESolver("rk4", steps=5)`; of your own, a dataclass with fields `steps` and `grid`.
        x_T: the pilot latents, x at the noise end, (B, *event), at least two.
        cond: keyword arguments for the network, as in `sample`: choose them as varied as they will be.
        batch_size: pilots in one network call, as in `solve`; all of them by default.
        progress: show a bar, a step for every solve (needs tqdm).

    Returns:
        a solver of the same class and number of steps.

    Raises:
        TypeError: an argument of another type, and a solver that adds noise, before the first network call.
        ValueError: one latent; a solver without fixed steps on a grid, or that refuses this path, before the first
            network call.
        NonFiniteError: the state of the solver as it came, or of the fine solve, became NaN or infinite.

    Examples:
        >>> law = sdegen.GaussianMixture([[-1.0], [1.0]], 0.1)
        >>> tuned = sdegen.tune(law.model(sdegen.CondOT()), sdegen.Adams(6), torch.randn(16, 1))
        >>> type(tuned).__name__, tuned.steps
        ('Adams', 6)
    """
    check_model(model)
    candidates = list(_candidates(solver))
    x_T = latents(x_T, least=2)

    def end(tried: Solver) -> Tensor:
        return solve(model, x_T, tried, cond=cond, batch_size=batch_size).x

    came = end(solver)  # which may refuse this path, before the first network call
    fine = fine_end(model, x_T, None, cond, batch_size)

    def errors(x: Tensor) -> list[float]:
        return [rms_error(x, fine, share) for share in SHARES]

    own, best, least = errors(came), solver, ENOUGH
    with bar(len(candidates), progress) as tried:
        for candidate in candidates:
            with suppress(NonFiniteError):
                left = max(e / o if o else math.inf for e, o in zip(errors(end(candidate)), own, strict=True))
                if left < least:
                    best, least = candidate, left
            tried()
    return best


def _candidates(solver: AnySolver) -> Iterator[AnySolver]:
    """As many steps on every grid of the list, with every order that the solver accepts; refuses what has no grid."""
    if not isinstance(solver, Solver) or not solver.follows_ode:
        raise TypeError(f"tune measures how far a solver of the ODE is from its end points, and {solver!r} is none.")
    options: set[str] = {f.name for f in fields(solver)} if is_dataclass(solver) else set()
    steps = steps_on(getattr(solver, "grid", None), getattr(solver, "steps", None))
    if not {"steps", "grid"} <= options or steps is None or solver.span is not None:
        raise ValueError(f"tune chooses the grid of a solver with fixed steps between the path's ends, not {solver!r}.")
    for grid in GRIDS:
        for order in [{"order": n} for n in ORDERS] if "order" in options else [{}]:
            with suppress(ValueError):  # an order that it does not have
                yield replace(solver, steps=steps, grid=grid, **order)  # type: ignore[type-var]  # it is a dataclass
