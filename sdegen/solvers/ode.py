"""ODE solvers on torchdiffeq.

Fixed-grid methods integrate dy/du = eps_hat - x_hat in step-index time, as sde.py does. The order of their queries is
known, stage after stage of step after step, so all of them are planned before the solve. Adaptive methods integrate in
u itself, with the clock clamped to the interval, the last step set to land on its end, and the error norm

    max over samples of max( RMS of the scaled error of y, |scaled error of the log-density| )

so that a sample's accuracy does not depend on its batch-mates; with steps_for="sample" nothing of it does
(persample.py). torchdiffeq guards itself with assertions, which vanish under `python -O`: everything that could run for
ever is counted and raised here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint
from torchdiffeq._impl.odeint import SOLVERS

from sdegen import _checks
from sdegen._checks import NonFiniteError
from sdegen._shapes import event_size
from sdegen.models.base import Query
from sdegen.solvers.base import Problem, Result, Solver
from sdegen.solvers.divergence import step_in_nats
from sdegen.solvers.engines import checkpointed, plan_stages, raised_inside
from sdegen.solvers.grids import Grid, PowerGrid, check_grid, span_of, steps_on
from sdegen.solvers.loop import CHECK_EVERY
from sdegen.solvers.persample import KNOWS_ITS_ERROR, PAIRS, SampleSteps, check_tolerance, sample_norm


@dataclass(frozen=True)
class ODEMethod:
    """A torchdiffeq method.

    Attributes:
        order: its order.
        stages: the fractions of a step at which a fixed-grid method asks for the slope; empty for an adaptive one.
        calls: network calls a step.
        when: when to use it, for README's table.
    """

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
    "dopri8": ODEMethod(8, calls=13, when="the default of encode and decode: adaptive, tolerance 1e-6 and below"),
    "bosh3": ODEMethod(3, calls=3, when="adaptive at loose tolerance"),
    "fehlberg2": ODEMethod(2, calls=2, when="adaptive, for comparison"),
    "adaptive_heun": ODEMethod(2, calls=1, when="adaptive, for comparison"),
    "euler": ODEMethod(1, (0.0,), 1, when="DDIM's order: few calls, low accuracy"),
    "midpoint": ODEMethod(2, (0.0, 0.5), 2, when="10 to 30 calls; never queries the end"),
    "heun2": ODEMethod(2, (0.0, 1.0), 2, when="10 to 30 calls, queries both ends"),
    "heun3": ODEMethod(3, (0.0, 1 / 3, 2 / 3), 3, when="20 to 60 calls; never queries the end"),
    "rk4": ODEMethod(4, (0.0, 1 / 3, 2 / 3, 1.0), 4, when="20 calls and more; exactly independent of the batch"),
}


@dataclass(frozen=True, eq=False)
class ODESolver(Solver):
    """Integrate the probability-flow (flow-matching) ODE with torchdiffeq.

    dy/du = eps_hat - x_hat in straight coordinates y = x_t/r, both ways, with its log-density where that is wanted.

    Args:
        method: adaptive "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", or on a fixed grid "euler",
            "midpoint", "heun2", "heun3", "rk4".
        steps: number of steps of a fixed-grid method; may be left out with a tensor `grid`.
        rtol: relative tolerance of an adaptive method on y and on the log-density.
        atol: absolute tolerance on the same, by default rtol. y has the scale of the data: on data of deviation 0.01 a
            tolerance of 1e-3 is no accuracy (dopri5's samples keep three quarters of it), so keep it far below their
            scale.
        grid: of a fixed-grid method: a PowerGrid, by default PowerGrid(1.5), or a float64 tensor of values of u.
        norm: "sample", the worst sample decides the step; "batch", torchdiffeq's root mean square over the batch.
        max_steps: an adaptive solve that needs more raises a ValueError.
        steps_for: "batch", all samples take the same steps; "sample", for dopri5 and dopri8: every sample takes steps
            of its own, does not depend on its batch-mates, and leaves the batch when it arrives, so that the network is
            called on fewer and fewer rows. There is no trajectory then.

    Raises:
        TypeError: an option of another type.
        ValueError: options that are wrong or do not fit together.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.CondOT())
        >>> x = sdegen.sample(model, (2, 1), sdegen.ODESolver("dopri5"), x_T=torch.tensor([[0.0], [2.0]]))
        >>> x.round(decimals=3).tolist()  # 1 + 0.5 x_T
        [[1.0], [2.0]]
        >>> sdegen.solve(model, torch.randn(2, 1), sdegen.ODESolver("rk4", steps=10)).calls
        40
    """

    method: str = "dopri5"
    steps: int | None = None
    _: KW_ONLY
    rtol: float = 1e-5
    atol: float | None = None
    grid: Grid | Tensor | None = None
    norm: str = "sample"
    max_steps: int = 10_000
    steps_for: str = "batch"

    solves_ode = True

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.choice("ODE method", self.method, ODE_METHODS)
        _checks.choice("norm", self.norm, ("sample", "batch"))
        self._check_steps_for()
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

    def _check_steps_for(self) -> None:
        """A ValueError where samples cannot have steps of their own."""
        if _checks.choice("steps_for", self.steps_for, ("batch", "sample")) == "batch":
            return
        if self.method not in PAIRS:
            raise ValueError(
                f"steps_for='sample' gives every sample steps of its own by {' or '.join(map(repr, PAIRS))}, and the "
                f"method is {self.method!r}."
            )
        if self.norm != "sample":
            raise ValueError(
                f"steps_for='sample' measures the error of every sample alone, norm='sample', and norm = {self.norm!r}."
            )

    @property
    def differentiable(self) -> bool:
        """See `Solver.differentiable`."""
        return not self._scheme.adaptive

    @property
    def knows_its_error(self) -> bool:
        """See `Solver.knows_its_error`."""
        return self.method in KNOWS_ITS_ERROR

    @property
    def takes_callback(self) -> bool:
        """See `Solver.takes_callback`: the loop is not `march`."""
        return False

    @property
    def span(self) -> tuple[float, float] | None:
        """See `Solver.span`."""
        return span_of(self.grid)

    @property
    def _scheme(self) -> ODEMethod:
        return ODE_METHODS[self.method]

    @property
    def _steps(self) -> int:
        return steps_on(self.grid, self.steps) or 0

    def run(self, problem: Problem) -> Result:
        """Integrate `problem`: used by `sdegen.solve` and `sdegen.log_prob`."""
        if self.steps_for == "sample":
            atol = self.rtol if self.atol is None else self.atol
            rows = SampleSteps(problem, self.method, self.rtol, atol, self.max_steps, repr(self))
            with problem.bar(None) as step_done:
                rows.start()
                while rows.left:
                    rows.settle(rows.attempt())
                    step_done()
            return rows.result()
        rhs = (_AnyTime if self._scheme.adaptive else _FixedSteps)(self, problem)
        with problem.bar(rhs.total) as rhs.step_done:
            try:
                states = odeint(rhs, problem.start, rhs.ends, method=self.method, options=rhs.options, **rhs.tolerances)
            except AssertionError as error:
                if not raised_inside(error, "torchdiffeq"):
                    raise
                raise NonFiniteError(
                    f"{self!r} could not go on ({error}); loosen the tolerance or use float64."
                ) from error
        _checks.finite_state(states[-1], problem.u_to)
        return rhs.result(states[-1])


class _RightHandSide(ABC):
    """The ODE as torchdiffeq wants it: on y (B, *event), or on (B, d + R) with the divergence in R more columns."""

    total: int | None = None
    tolerances: dict[str, float] = {}  # noqa: RUF012  # a fixed-grid method has none
    ends: Tensor
    options: dict[str, object]
    knots: list[float]
    times: list[float] | None = None
    step_done: Callable[[], object]

    def __init__(self, solver: ODESolver, problem: Problem):
        self.problem = problem
        self.estimate = checkpointed(problem.model.estimate, problem, solver, "torchdiffeq")
        self.dense = checkpointed(problem.with_divergence, problem, solver, "torchdiffeq")
        self.calls = 0
        self.accepted = 0
        self.rejected = 0
        self.error: Tensor | None = None
        self.states: list[Tensor] = []

    @abstractmethod
    def query(self, at: Tensor) -> Query:
        """What the network is asked where torchdiffeq's time is `at`."""

    def __call__(self, at: Tensor, state: Tensor) -> Tensor:
        """The slope at a state: one network call."""
        problem, query = self.problem, self.query(at)
        self.calls += 1
        if problem.probes is None:
            slope = self.estimate(state, query, problem.cond)
        else:
            slope = self.dense(problem.event(state), query, self.calls - 1)
        self.seen(state, slope)
        return slope

    def seen(self, state: Tensor, slope: Tensor) -> None:
        """Told of every answer."""
        return

    def result(self, state: Tensor) -> Result:
        """What the solve came to, from its final state."""
        problem, y = self.problem, self.problem.event(state)
        states = [*self.states, y] if problem.trajectory else []
        density = problem.density(state)
        cost = (self.calls, self.accepted, self.rejected)
        return Result(y, self.knots, states, self.times, density, *cost, error=self.error)


class _FixedSteps(_RightHandSide):
    """Queries in a known order: stage after stage of step after step."""

    def __init__(self, solver: ODESolver, problem: Problem):
        super().__init__(solver, problem)
        self.total = solver._steps
        u, t = problem.knots(PowerGrid(1.5) if solver.grid is None else solver.grid, self.total)
        self.knots, self.times = u.tolist(), t.tolist()
        index = torch.arange(self.total + 1, device=problem.y.device).to(problem.y.dtype)
        self.ends, self.options = index[:: self.total], {"grid_constructor": lambda func, y, ends: index}
        self._stages = solver._scheme.stages
        du = torch.diff(u)
        self._queries = plan_stages(problem, u, t, dict.fromkeys(self._stages, (-du, du)))
        self._stage = 0

    def callback_step(self, s: Tensor, state: Tensor, ds: Tensor) -> None:
        """torchdiffeq calls it where a step begins."""
        if self.accepted % CHECK_EVERY == 0 and self.accepted:
            _checks.finite_state(state, self.knots[self.accepted])
        if self.problem.trajectory:
            self.states.append(self.problem.event(state))
        self.accepted += 1
        self._stage = 0
        self.step_done()

    def query(self, at: Tensor) -> Query:
        """The next stage's, for the slope per step."""
        stage = self._stages[self._stage]
        self._stage += 1
        return self._queries[self.accepted - 1][stage]


class _AnyTime(_RightHandSide):
    """Queries at any clock, clamped to the interval, with the accepted steps' errors added up sample by sample.

    Before each attempt torchdiffeq says where it starts and how long it is, so its stages are planned there, all at
    once and in its own arithmetic, to the last digit. A clock that was not foreseen is planned when it comes.
    """

    def __init__(self, solver: ODESolver, problem: Problem):
        super().__init__(solver, problem)
        atol = solver.rtol if solver.atol is None else solver.atol
        check_tolerance(repr(solver), solver.rtol + atol, problem.y.dtype)
        ends = torch.tensor([problem.u_from, problem.u_to], dtype=torch.float64)
        # planned here, so that a singular end is refused before any network call
        self._at_ends = self._planned(ends)
        self.ends = ends.to(problem.y.device)
        self.options = {"step_t": self.ends[1:], "norm": self.norm, "max_num_steps": 2**31 - 1}
        self.tolerances = {"rtol": solver.rtol, "atol": atol}
        self.knots = []
        self._solver = solver
        self._low, self._high = sorted((problem.u_from, problem.u_to))
        self._towards = 1.0 if problem.u_to > problem.u_from else -1.0  # torchdiffeq's own time always rises
        self._fractions: Tensor = SOLVERS[solver.method].tableau.alpha.to("cpu", problem.y.dtype)
        self._whole: list[bool] = (self._fractions == 1).tolist()  # stages just before the end of a step
        self._lowest = torch.full((), -math.inf, dtype=problem.y.dtype)
        self._ahead: Iterator[tuple[float, Query]] = iter(())
        self._ratio = torch.zeros(())
        pair = SOLVERS[solver.method].tableau
        self._watched = problem.probes is not None and solver.method in KNOWS_ITS_ERROR
        self._power = 1 + 1 / SOLVERS[solver.method].order
        self._error_weights = pair.c_error.to(problem.y)
        self._slopes: list[Tensor] = []
        self._state, self._nats = problem.start, problem.y.new_zeros(len(problem.y))

    def seen(self, state: Tensor, slope: Tensor) -> None:
        """Keep the slopes of an attempt where they tell the log-density's error."""
        if self._watched:
            self._slopes.append(slope)
            self._state = state

    def _planned(self, u: Tensor) -> dict[float, Query]:
        """The queries at the clocks `u`, for the slope per unit of u."""
        one = torch.ones_like(u)
        return dict(zip(u.tolist(), self.problem.model.plan(self.problem.y, u, None, -one, one), strict=True))

    def _foresee(self, clock: float, length: float) -> None:
        """Plan the stages of an attempt that starts at `clock`, cut to end with the interval as torchdiffeq cuts it."""
        start, end = self._towards * clock, self._towards * self.problem.u_to
        stop = start + length
        if start < end < stop:
            stop, length = end, end - start
        last = torch.nextafter(torch.tensor(stop, dtype=self._fractions.dtype), self._lowest).item()
        at = (start + length * self._fractions).tolist()
        clocks = [
            self._clamped(self._towards * (last if whole else s)) for s, whole in zip(at, self._whole, strict=True)
        ]
        new = [c for c in dict.fromkeys(clocks) if c not in self._at_ends]
        planned = self._at_ends | (self._planned(torch.tensor(new, dtype=torch.float64)) if new else {})
        self._ahead = iter([(c, planned[c]) for c in clocks])

    def _clamped(self, clock: float) -> float:
        return min(max(clock, self._low), self._high)

    def query(self, at: Tensor) -> Query:
        """That of the clock `at`, for the slope per unit of u; an accelerator is not asked which clock that is."""
        foreseen, planned = next(self._ahead, (math.nan, None))
        if planned is not None and at.device.type != "cpu":
            return planned
        clock = float(at)
        if math.isnan(clock):
            raise NonFiniteError(
                f"The network's output is NaN or infinite at the start of the solve, u = {self.problem.u_from:.6g}; "
                f"{self._solver!r} cannot choose a step."
            )
        clock = self._clamped(clock)
        if planned is not None and clock == foreseen:
            return planned
        return self._at_ends.get(clock) or self._planned(torch.tensor([clock], dtype=torch.float64))[clock]

    def result(self, state: Tensor) -> Result:
        """See `_RightHandSide`; the end is a knot too."""
        self.knots.append(self.problem.u_to)
        # the last stage stands at the end itself, where torchdiffeq interpolates, with some more rounding
        result = super().result(self._state if self._watched else state)
        result.divergence_error = self._nats if self._watched else None
        return result

    def norm(self, scaled: Tensor) -> Tensor:
        """The norm of an error divided by its tolerance."""
        if self._solver.norm == "batch":
            self._ratio = scaled.square().mean().sqrt().expand(len(scaled))
            return self._ratio[0]
        self._ratio = sample_norm(scaled, event_size(self.problem.y.shape))
        return self._ratio.max()

    def callback_step(self, u: Tensor, state: Tensor, du: Tensor) -> None:
        """Before every attempt: everything that could keep the solve from ending, then its questions."""
        self._clock, length = float(u), float(du)
        _checks.finite_state(state, self._clock)
        if not (math.isfinite(length) and self._clock + length > self._clock):
            raise NonFiniteError(
                f"{self._solver!r} cut its step to {length:.3g} at u = {self._clock:.6g} after {self.accepted} steps: "
                "the network's output is not finite or not smooth there, or the tolerance is too tight for the "
                "precision."
            )
        if self.accepted + self.rejected >= self._solver.max_steps:
            raise ValueError(
                f"{self._solver!r} tried max_steps = {self._solver.max_steps} steps and stands at u = "
                f"{self._clock:.6g}; loosen the tolerance, use float64, or raise max_steps."
            )
        self._foresee(self._clock, length)
        del self._slopes[1:]  # of the start, of a trial
        self.step_done()

    def callback_accept_step(self, u: Tensor, state: Tensor, du: Tensor) -> None:
        """Add up the error of a step that was kept."""
        self.accepted += 1
        self.error = self._ratio if self.error is None else self.error + self._ratio
        self.knots.append(self._clock)
        if self._watched:
            error = float(du) * torch.tensordot(self._error_weights, torch.stack(self._slopes), 1)
            end, size = self._clamped(self._clock + self._towards * float(du)), event_size(self.problem.y.shape)
            self._nats += step_in_nats(error, self._state, self._slopes[-1], end, size) ** self._power
            del self._slopes[:-1]
        if self.problem.trajectory:
            self.states.append(self.problem.event(state))

    def callback_reject_step(self, u: Tensor, state: Tensor, du: Tensor) -> None:
        """Count a step that was not."""
        self.rejected += 1
