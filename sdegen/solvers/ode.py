"""ODE solvers on torchdiffeq.

Fixed-grid methods integrate dy/du = eps_hat - x_hat in step-index time, as sde.py does; what they query is known
beforehand, so nothing is looked up by rounding. Adaptive methods integrate in u itself, with the clock clamped to the
interval, the last step set to land on its end, and the error norm

    max over samples of max( RMS of the scaled error of y, |scaled error of the log-density| )

so that a sample's accuracy does not depend on its batch-mates. torchdiffeq guards itself with assertions, which vanish
under `python -O`: everything that could run for ever is counted and raised here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from sdegen import _checks
from sdegen._checks import NonFiniteError
from sdegen._shapes import event_size
from sdegen.models.model import Query
from sdegen.solvers.base import CHECK_EVERY, Path, Problem, drift_and_divergence
from sdegen.solvers.grids import Grid, PowerGrid, check_grid, knots, plan_stages


@dataclass(frozen=True)
class ODEMethod:
    """A torchdiffeq method: where in a step it queries the network; an adaptive one keeps the query at its start."""

    order: int
    stages: tuple[float, ...] = ()
    calls: int = 0
    when: str = ""

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return not self.stages


ODE_METHODS = {
    "dopri5": ODEMethod(5, calls=6, when="the default for samples: adaptive, tolerance 1e-3 to 1e-6"),
    "dopri8": ODEMethod(8, calls=13, when="the default for log_prob: adaptive, tolerance 1e-6 and below"),
    "bosh3": ODEMethod(3, calls=3, when="adaptive at loose tolerance"),
    "fehlberg2": ODEMethod(2, calls=2, when="adaptive, for comparison"),
    "adaptive_heun": ODEMethod(2, calls=1, when="adaptive, for comparison"),
    "euler": ODEMethod(1, (0.0,), 1, when="DDIM's order: few calls, low accuracy"),
    "midpoint": ODEMethod(2, (0.0, 0.5), 2, when="10 to 30 calls; never queries the end"),
    "heun2": ODEMethod(2, (0.0, 1.0), 2, when="10 to 30 calls, queries both ends"),
    "heun3": ODEMethod(3, (0.0, 1 / 3, 2 / 3), 3, when="20 to 60 calls; never queries the end"),
    "rk4": ODEMethod(4, (0.0, 1 / 3, 2 / 3, 1.0), 4, when="20 calls and more; exactly independent of the batch"),
}


@dataclass(frozen=True)
class ODESolver:
    """Integrate the probability-flow (flow-matching) ODE with torchdiffeq.

    method:     adaptive "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", or on a fixed grid "euler",
                "midpoint", "heun2", "heun3", "rk4".
    rtol, atol: tolerances of an adaptive method on y = x_t/r and on the log-density; atol defaults to rtol.
    steps:      number of steps of a fixed-grid method; may be left out with a tensor `grid`.
    grid:       of a fixed-grid method: a PowerGrid, by default PowerGrid(1.5), or a float64 tensor of values of u.
    norm:       "sample": the worst sample decides the step; "batch": torchdiffeq's root mean square over the batch.
    max_steps:  an adaptive solve that needs more raises a ValueError.

    Raises TypeError or ValueError for options that are wrong or do not fit together.
    """

    method: str = "dopri5"
    _: KW_ONLY
    rtol: float = 1e-5
    atol: float | None = None
    steps: int | None = None
    grid: Grid | None = None
    norm: str = "sample"
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        _checks.choice("ODE method", self.method, ODE_METHODS)
        _checks.choice("norm", self.norm, ("sample", "batch"))
        _checks.whole("max_steps", self.max_steps)
        _checks.real("rtol", self.rtol, 0, strict=True)
        if self.atol is not None:
            _checks.real("atol", self.atol, 0, strict=True)
        if self.steps is not None:
            _checks.whole("steps", self.steps)
        if self.grid is not None:
            check_grid(self.grid, self.steps)
        if self._scheme.adaptive:
            if self.steps is not None or self.grid is not None:
                raise ValueError(
                    f"{self.method!r} chooses its own steps from rtol and atol, and steps = {self.steps}, "
                    f"grid = {self.grid!r} was given; take a fixed-grid method such as 'rk4' for those."
                )
        elif (self.rtol, self.atol) != (1e-5, None):
            raise ValueError(
                f"{self.method!r} takes fixed steps and knows no tolerance, and rtol = {self.rtol}, atol = {self.atol}."
            )
        elif self.steps is None and not isinstance(self.grid, Tensor):
            raise ValueError(f"The ODE method {self.method!r} needs steps, the number of steps.")

    @property
    def _scheme(self) -> ODEMethod:
        return ODE_METHODS[self.method]

    def run(self, problem: Problem) -> Path:
        """Integrate `problem`: used by `sdegen.solve` and `sdegen.log_prob`."""
        if problem.noise is not None:
            raise ValueError(f"noise= is for stochastic solvers, and {self.method!r} solves an ODE.")
        return self._run_adaptive(problem) if self._scheme.adaptive else self._run_fixed(problem)

    def _run_fixed(self, problem: Problem) -> Path:
        steps = len(self.grid) - 1 if isinstance(self.grid, Tensor) else self.steps
        grid = PowerGrid(1.5) if self.grid is None else self.grid
        u, t = knots(grid, problem.model.path, problem.u_from, problem.u_to, steps)
        with problem.bar(steps) as bar:
            rhs = _FixedSteps(self, problem, u, t, bar)
            index = torch.arange(steps + 1, device=problem.y.device).to(problem.y.dtype)
            options = {"grid_constructor": lambda func, y, ends: index}
            y = odeint(rhs, rhs.start(), index[[0, -1]], method=self.method, options=options)[-1]
        return rhs.path(y, u.tolist(), t.tolist())

    def _run_adaptive(self, problem: Problem) -> Path:
        atol = self.rtol if self.atol is None else self.atol
        if self.rtol + atol < 4 * torch.finfo(problem.y.dtype).eps:
            raise ValueError(f"{self!r} asks for more than {problem.y.dtype} states can hold; loosen rtol and atol.")
        ends = torch.tensor([problem.u_from, problem.u_to], dtype=torch.float64)
        problem.model.plan(
            problem.y, ends, None, -torch.ones_like(ends), torch.ones_like(ends)
        )  # refuses singular ends
        ends = ends.to(problem.y.device)
        with problem.bar(None) as bar:
            rhs = _AnyTime(self, problem, bar)
            options = {"step_t": ends[1:], "norm": rhs.norm, "max_num_steps": 2**31 - 1}
            try:
                y = odeint(rhs, rhs.start(), ends, rtol=self.rtol, atol=atol, method=self.method, options=options)[-1]
            except AssertionError as error:
                raise NonFiniteError(
                    f"{self!r} could not go on ({error}); loosen the tolerance or use float64."
                ) from error
        return rhs.path(y, [*rhs.knots, problem.u_to], None)


class _RightHandSide:
    """The ODE as torchdiffeq wants it: on y (B, *event), or on (B, d + 1) with the divergence in a last column."""

    def __init__(self, problem: Problem, bar: Callable[[], object]):
        self.problem = problem
        self.calls = 0
        self.accepted = 0
        self.rejected = 0
        self.error: Tensor | None = None
        self.states: list[Tensor] = []
        self._bar = bar

    def start(self) -> Tensor:
        """The initial state."""
        y = self.problem.y
        return y if self.problem.probes is None else torch.nn.functional.pad(y.flatten(1), (0, 1))

    def _slope(self, state: Tensor, query: Query) -> Tensor:
        """The answer to `query`, and in the last column its divergence."""
        problem = self.problem
        self.calls += 1
        if problem.probes is None:
            return problem.model.estimate(state, query, problem.cond)
        value, divergence = drift_and_divergence(
            problem.model, self._event(state), query, problem.cond, problem.probes, problem.chunk
        )
        return torch.cat([value.flatten(1), divergence[:, None]], 1)

    def _event(self, state: Tensor) -> Tensor:
        return state if self.problem.probes is None else state[:, :-1].reshape(self.problem.y.shape)

    def path(self, state: Tensor, u: list[float], t: list[float] | None) -> Path:
        """The result, from the final state."""
        _checks.finite_state(state, u[-1])
        y = self._event(state)
        states = [*self.states, y] if self.problem.trajectory else []
        divergence = None if self.problem.probes is None else state[:, -1]
        return Path(y, u, states, t, divergence, self.calls, self.accepted, self.rejected, self.error)


class _FixedSteps(_RightHandSide):
    """Queries in a known order: stage after stage of step after step."""

    def __init__(self, solver: ODESolver, problem: Problem, u: Tensor, t: Tensor, bar: Callable[[], object]):
        super().__init__(problem, bar)
        self._stages = solver._scheme.stages
        du = torch.diff(u)
        self._queries = plan_stages(problem, u, t, dict.fromkeys(self._stages, (-du, du)))
        self._u = u.tolist()
        self._stage = 0

    def callback_step(self, s: Tensor, state: Tensor, ds: Tensor) -> None:
        """torchdiffeq's word that a step begins."""
        if self.accepted % CHECK_EVERY == 0 and self.accepted:
            _checks.finite_state(state, self._u[self.accepted])
        if self.problem.trajectory:
            self.states.append(self._event(state))
        self.accepted += 1
        self._stage = 0
        self._bar()

    def __call__(self, s: Tensor, state: Tensor) -> Tensor:
        """The slope per step."""
        query = self._queries[self.accepted - 1][self._stages[self._stage]]
        self._stage += 1
        return self._slope(state, query)


class _AnyTime(_RightHandSide):
    """Queries at any clock, clamped to the interval, with the accepted steps' errors added up sample by sample."""

    def __init__(self, solver: ODESolver, problem: Problem, bar: Callable[[], object]):
        super().__init__(problem, bar)
        self.knots: list[float] = []
        self._solver = solver
        self._low, self._high = sorted((problem.u_from, problem.u_to))
        self._one = torch.ones(1, dtype=torch.float64)
        self._ratio = torch.zeros(())

    def __call__(self, u: Tensor, state: Tensor) -> Tensor:
        """The slope per unit of u."""
        u = torch.tensor([min(max(float(u), self._low), self._high)], dtype=torch.float64)
        return self._slope(state, self.problem.model.plan(self.problem.y, u, None, -self._one, self._one)[0])

    def norm(self, scaled: Tensor) -> Tensor:
        """The norm of an error divided by its tolerance."""
        if self._solver.norm == "batch":
            self._ratio = scaled.square().mean().sqrt().expand(len(scaled))
            return self._ratio[0]
        size = event_size(self.problem.y.shape)
        scaled = scaled.flatten(1)
        rms = scaled[:, :size].square().mean(1).sqrt()
        self._ratio = torch.maximum(rms, scaled[:, size].abs()) if scaled.shape[1] > size else rms
        return self._ratio.max()

    def callback_step(self, u: Tensor, state: Tensor, du: Tensor) -> None:
        """Before every attempt: everything that could keep the solve from ending."""
        _checks.finite_state(state, float(u))
        du = float(du)
        if not (math.isfinite(du) and float(u) + du > float(u)):
            raise NonFiniteError(
                f"{self._solver!r} cut its step to {du:.3g} at u = {float(u):.6g} after {self.accepted} steps: the "
                "network's output is not finite or not smooth there, or the tolerance is too tight for the precision."
            )
        if self.accepted + self.rejected >= self._solver.max_steps:
            raise ValueError(
                f"{self._solver!r} tried max_steps = {self._solver.max_steps} steps and stands at u = "
                f"{float(u):.6g}; loosen the tolerance, use float64, or raise max_steps."
            )
        self._bar()

    def callback_accept_step(self, u: Tensor, state: Tensor, du: Tensor) -> None:
        """Add up the error of a step that was kept."""
        self.accepted += 1
        self.error = self._ratio if self.error is None else self.error + self._ratio
        self.knots.append(float(u))
        if self.problem.trajectory:
            self.states.append(self._event(state))

    def callback_reject_step(self, u: Tensor, state: Tensor, du: Tensor) -> None:
        """Count a step that was not."""
        self.rejected += 1
