"""README's table of schemes made of rows: fitted order, network calls, when to use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sdegen.solvers.adams import Adams, StochasticAdams
from sdegen.solvers.base import Solver
from sdegen.solvers.deis import DEIS
from sdegen.solvers.dpm import DPMSolver
from sdegen.solvers.heun import Heun
from sdegen.solvers.renoised import Churn, Langevin, Restart
from sdegen.solvers.sasolver import SASolver
from sdegen.solvers.unipc import UniPC


class Known(NamedTuple):
    """One row of the table.

    Attributes:
        solver: from a number of steps to the solver.
        equation: "ODE" or "SDE".
        order: the fitted one, of the solution for the ODE and of the law for the SDE; None: the inner solver's.
        calls: network calls a step; None: the inner solver's, and those of the way down again.
        when: to use it.
    """

    solver: Callable[[int], Solver]
    equation: str
    order: int | None
    calls: int | None
    when: str


SCHEMES = {
    "Adams(steps)": Known(Adams, "ODE", 3, 1, "the most accurate for few calls, 5 to 50"),
    "DPMSolver(steps)": Known(DPMSolver, "ODE", 2, 1, "DPM-Solver++ 2M, diffusers' numbers"),
    "DPMSolver(steps, 3)": Known(lambda n: DPMSolver(n, 3), "ODE", 2, 1, "3M; the published weights are of order 2"),
    "UniPC(steps)": Known(UniPC, "ODE", 2, 1, "diffusers' numbers; a corrector at no cost"),
    "DEIS(steps)": Known(DEIS, "ODE", 2, 1, "diffusers' numbers; not from u = 1"),
    "Heun(steps)": Known(Heun, "ODE", 2, 2, "EDM's, from 30 calls on; not from u = 1"),
    "StochasticAdams(steps)": Known(StochasticAdams, "SDE", 2, 1, "the most accurate for few stochastic calls"),
    "DPMSolver(steps, eta=1.0)": Known(lambda n: DPMSolver(n, eta=1.0), "SDE", 2, 1, "SDE-DPM-Solver++ 2M"),
    "SASolver(steps)": Known(SASolver, "SDE", 2, 1, "diffusers' numbers; 50 calls and more"),
    "Churn(Heun(steps))": Known(lambda n: Churn(Heun(n)), "SDE", None, 2, "EDM's stochastic sampler"),
    "Langevin(Heun(steps))": Known(lambda n: Langevin(Heun(n)), "SDE", None, 4, "predictor-corrector sampling"),
    "Restart(UniPC(steps))": Known(
        lambda n: Restart(UniPC(n)), "SDE", None, None, "goes up again once and forgets its errors"
    ),
}
"""The schemes by the call that makes them."""
