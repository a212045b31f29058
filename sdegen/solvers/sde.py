"""SDE solvers on torchsde.

The SDE of base.py is integrated in step-index time s in [0, N] with dt = 1. Within step k the clock is linear,
u = u_k + (s - k)(u_{k+1} - u_k), so with h = |u_{k+1} - u_k|

    dy = [(eps_hat - x_hat)(u_{k+1} - u_k) - gamma eps_hat h] ds + w sqrt(h) dW

on any grid, in exactly N steps. At a knot s = k a query may belong to the step that ends or to the one that begins, and
floor(s) cannot tell which. But every torchsde method asks the Brownian object for the increment of its step first, so
the step is the one that was last asked about there. The noise is additive, so Ito and Stratonovich agree and Milstein
is Euler-Maruyama.

References:
    Scalable Gradients for Stochastic Differential Equations, Li et al., 2020, arXiv:2001.01328.
    Runge-Kutta Methods for the Strong Approximation of Solutions of Stochastic Differential Equations, Roessler, 2010
    ("srk").
    Efficient and Accurate Gradients for Neural SDEs, Kidger et al., 2021, arXiv:2105.13493 ("reversible_heun").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
import torchsde
from torch import Tensor

from sdegen import _checks
from sdegen._checks import NonFiniteError
from sdegen.models.base import Query
from sdegen.solvers.base import Problem, Result, Solver
from sdegen.solvers.brownian import AdaptiveBrownian, Increments
from sdegen.solvers.engines import checkpointed, plan_stages, raised_inside, within
from sdegen.solvers.grids import Grid, PowerGrid, check_grid, span_of, steps_on
from sdegen.solvers.loop import CHECK_EVERY
from sdegen.solvers.noise import NoiseProfile

FEW_STEPS = 15
"""Below it the schemes of two calls a step are not to be trusted on their default grid."""


@dataclass(frozen=True)
class SDEMethod:
    """A torchsde method.

    Attributes:
        stages: the fractions of a step at which it asks for the drift.
        order: its order in law.
        strong: its order along a path.
        calculus: "ito" or "stratonovich".
        levy_area: the area that it asks the Brownian object for.
        carries: whether it takes the drift at the end of a step along into the next one.
        when: when to use it, for README's table.
    """

    stages: tuple[float, ...]
    order: int
    strong: int
    calculus: str
    levy_area: str = "none"
    carries: bool = False
    when: str = ""

    @property
    def calls(self) -> int:
        """Network calls a step."""
        return 1 if self.carries else len(self.stages)


SDE_METHODS = {
    "euler": SDEMethod((0.0,), 1, 1, "ito", when="the default: any number of steps from about 50"),
    "milstein": SDEMethod((0.0,), 1, 1, "ito", when="the same numbers as euler, since the noise is additive"),
    "euler_heun": SDEMethod((0.0,), 1, 1, "stratonovich", when="Euler with the noise level averaged over the step"),
    "srk": SDEMethod(
        (0.0, 0.75), 2, 2, "ito", "space-time", when="the most accurate per path: strong order 1.5 and more"
    ),
    "midpoint": SDEMethod((0.0, 0.5), 2, 1, "stratonovich", when="second order, never queries the end of a step"),
    "heun": SDEMethod((0.0, 1.0), 2, 1, "stratonovich", when="second order, queries both ends"),
    "log_ode": SDEMethod((0.0, 0.5), 2, 1, "stratonovich", "foster", when="the same numbers as midpoint here"),
    "reversible_heun": SDEMethod(
        (0.0, 1.0), 2, 1, "stratonovich", carries=True, when="eta <= 0.3 only: unstable at eta = 1 on narrow data"
    ),
}


@dataclass(frozen=True, eq=False)
class SDESolver(Solver):
    """Integrate the reverse SDE with torchsde.

    dy = [eps_hat - x_hat + w^2 eps_hat / (2u)] du + w dW in straight coordinates y = x_t/r, u falling; every w(u) >= 0
    keeps every marginal. Below 15 steps of the default grid a method of two calls a step gives an `AccuracyWarning`.

    Args:
        method: "euler", "milstein", "euler_heun", "srk", "midpoint", "heun", "log_ode" or "reversible_heun".
        steps: number of steps; may be left out with a tensor `grid`, must be with `adaptive`.
        eta: noise level, at least 0: 1 is Anderson's reverse SDE (up to u = 0.9), 0 the probability-flow ODE.
        w: a callable u -> w(u) on float64 tensors, instead of `eta`.
        grid: a PowerGrid, by default PowerGrid(2), or a float64 tensor of steps + 1 values of u.
        adaptive: let torchsde choose the steps. One step size serves the whole batch, so a sample depends on its
            batch-mates.
        rtol: relative tolerance on y of adaptive steps, by default 1e-2.
        atol: absolute tolerance on y of adaptive steps, by default 1e-2.

    Raises:
        TypeError: an option of another type.
        ValueError: options that are wrong or do not fit together.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> x_T, noise = torch.zeros(1, 1), torch.zeros(100, 1, 1)
        >>> solution = sdegen.solve(model, x_T, sdegen.SDESolver("euler", 100), noise=noise)
        >>> f"{solution.calls} {solution.x.item():.2f}"  # without noise and from 0 it ends at the mean
        '100 1.00'

    References:
        Scalable Gradients for Stochastic Differential Equations, Li et al., 2020, arXiv:2001.01328.
    """

    method: str = "euler"
    steps: int | None = None
    _: KW_ONLY
    eta: float = 1.0
    w: Callable[[Tensor], Tensor] | None = None
    grid: Grid | Tensor | None = None
    adaptive: bool = False
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.choice("SDE method", self.method, SDE_METHODS)
        _checks.real("eta", self.eta, 0)
        if not isinstance(self.adaptive, bool):
            raise TypeError(f"adaptive must be True or False, and it is {self.adaptive!r}.")
        if self.w is not None and (self.eta != 1 or not callable(self.w)):
            raise ValueError(f"w must be a callable given instead of eta, and w = {self.w!r}, eta = {self.eta}.")
        if self.steps is not None:
            _checks.whole("steps", self.steps)
        if self.grid is not None:
            check_grid(self.grid, self.steps)
        self._check_adaptive() if self.adaptive else self._check_fixed()
        if self.adaptive or self._scheme.carries:
            self._smooth  # noqa: B018  # the clock must be one
        self._warn_of_few_steps()

    def _check_adaptive(self) -> None:
        if self.steps is not None:
            raise ValueError(f"An adaptive solve chooses its own steps, and steps = {self.steps} was given.")
        for name in ("rtol", "atol"):
            if getattr(self, name) is not None:
                _checks.real(name, getattr(self, name), 0, strict=True)

    def _check_fixed(self) -> None:
        if self.rtol is not None or self.atol is not None:
            raise ValueError(f"Tolerances need adaptive=True, and rtol = {self.rtol}, atol = {self.atol} were given.")
        if self.steps is None and not isinstance(self.grid, Tensor):
            raise ValueError(f"The SDE method {self.method!r} needs steps, the number of steps.")

    def _warn_of_few_steps(self) -> None:
        """Warn of few steps of two calls: five of "srk" cost 9 nats of mean log p on eight modes in the plane."""
        noisy = bool(self.eta) or self.w is not None
        if self._scheme.calls == 2 and noisy and self.grid is None and self.steps and self.steps < FEW_STEPS:
            solver = f"SDESolver({self.method!r}, steps={self.steps})"
            _checks.warn_of_few_steps(solver, FEW_STEPS, 2 * self.steps, stacklevel=4)

    @property
    def follows_ode(self) -> bool:
        """See `Solver.follows_ode`."""
        return self.eta == 0 and self.w is None

    @property
    def differentiable(self) -> bool:
        """See `Solver.differentiable`."""
        return not self.adaptive

    @property
    def takes_callback(self) -> bool:
        """See `Solver.takes_callback`: the loop is not `march`."""
        return False

    @property
    def span(self) -> tuple[float, float] | None:
        """See `Solver.span`."""
        return span_of(self.grid)

    @property
    def _scheme(self) -> SDEMethod:
        return SDE_METHODS[self.method]

    @property
    def _grid(self) -> Grid | Tensor:
        return PowerGrid(2) if self.grid is None else self.grid

    @property
    def _smooth(self) -> PowerGrid:
        """The grid where it must be a smooth clock."""
        if isinstance(self._grid, PowerGrid) and self._grid.clock == "u":
            return self._grid
        kind = "An adaptive solve" if self.adaptive else f"The SDE method {self.method!r}"
        raise ValueError(f"{kind} needs a smooth clock, PowerGrid(p), and the grid is {self.grid!r}.")

    def run(self, problem: Problem) -> Result:
        """Integrate `problem`: used by `sdegen.solve`."""
        if self.eta or self.w is not None:
            problem.model.needs_score("An SDESolver")
        rhs = (_AnyTime if self.adaptive else _FixedSteps)(self, problem)
        times = torch.tensor(rhs.times, dtype=torch.float64)
        with problem.bar(rhs.total) as rhs.step_done:
            try:
                out = torchsde.sdeint(
                    rhs, problem.y.flatten(1), times, bm=rhs.brownian, method=self.method, **rhs.options
                )
            except AssertionError as error:
                if not raised_inside(error, "torchsde"):
                    raise
                raise NonFiniteError(f"{self!r} met NaN in its error estimate ({error}).") from error
        _checks.finite_state(out[-1], problem.u_to)
        return rhs.result(out)


class _RightHandSide(ABC):
    """f and g as torchsde wants them, on states (B, d); the last drift is remembered, so no query is made twice."""

    total: int | None = None
    times: Sequence[int]
    options: dict[str, object]
    brownian: Increments | AdaptiveBrownian
    step_done: Callable[[], object]

    def __init__(self, solver: SDESolver, problem: Problem):
        self.problem = problem
        self.estimate = checkpointed(problem.model.estimate, problem, solver, "torchsde")
        self.sde_type = solver._scheme.calculus
        self.calls = 0
        self._last: tuple[float, Tensor, Tensor] | None = None
        self._shape = tuple(problem.y.shape)
        self._profile = NoiseProfile(solver.eta, solver.w)
        if solver._scheme.carries:
            self.noise_type, self.g = "diagonal", self._diagonal
        else:
            self.noise_type, self.g_prod = "additive", self._product

    @abstractmethod
    def query(self, s: float, y: Tensor) -> Query:
        """What the network is asked at torchsde's time s."""

    @abstractmethod
    def level(self, s: float) -> Tensor:
        """w sqrt(|du/ds|) at torchsde's time s."""

    @abstractmethod
    def result(self, out: Tensor) -> Result:
        """What the solve came to, from the states (n, B, d) at `times`."""

    def f(self, at: Tensor, y: Tensor) -> Tensor:
        """The drift per unit of torchsde's time."""
        s = float(at)
        self.visit(y)
        if self._last is not None and self._last[0] == s and self._last[1] is y:
            return self._last[2]
        problem, query = self.problem, self.query(s, y)
        if len(self._shape) == 2:
            value = self.estimate(y, query, problem.cond)
        else:
            value = self.estimate(y.view(self._shape), query, problem.cond).flatten(1)
        self.calls += 1
        self._last = (s, y, value)
        return value

    def visit(self, y: Tensor) -> None:  # noqa: B027  # most have nothing to do
        """Called with every state that is asked about, remembered or not."""

    def _product(self, at: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self.level(float(at)) * v if v.shape[1] else y  # (B, 0) in torchsde's contract check: see Increments

    def _diagonal(self, at: Tensor, y: Tensor) -> Tensor:
        return self.level(float(at)).expand_as(y)


class _FixedSteps(_RightHandSide):
    """Coefficients looked up by step and fraction of it, all computed beforehand."""

    brownian: Increments

    def __init__(self, solver: SDESolver, problem: Problem):
        super().__init__(solver, problem)
        scheme, self.total = solver._scheme, steps_on(solver.grid, solver.steps) or 0
        self._knots, self._known = u, t = problem.knots(solver._grid, self.total)
        self.brownian = Increments(problem, self.total, scheme.levy_area, scheme.carries)
        self.times = range(self.total + 1) if problem.trajectory else (0, self.total)
        self.options = {"dt": 1.0}
        h = u[1:] - u[:-1]
        self._rates = dict.fromkeys((0.0, 0.5, 0.75, 1.0), h)
        if scheme.carries:
            s = torch.linspace(0, 1, len(u), dtype=torch.float64)
            smooth = torch.sign(h[0]) * solver._smooth.at(s, problem.u_from, problem.u_to)[1] / len(h)
            self._rates = {0.0: smooth[:-1], 1.0: smooth[1:]}
        drift = {}
        for fraction in scheme.stages:
            rate = self._rates[fraction]
            drift[fraction] = (-rate, rate - rate.abs() * self._profile.gamma(within(u, fraction)))
        self._queries = plan_stages(problem, u, t, drift)
        self._step = -1
        self._clocks = u.tolist()
        self._levels: dict[float, tuple[Tensor, ...]] = {}

    def query(self, s: float, y: Tensor) -> Query:
        """Of the step that the Brownian object was asked about, at this fraction of it."""
        k = self.brownian.step
        if k > self._step:
            self._step = k
            self.step_done()
            if k and k % CHECK_EVERY == 0:
                _checks.finite_state(y, self._clocks[k])
        return self._queries[k][s - k]

    def level(self, s: float) -> Tensor:
        """As `query`; only the method knows where in a step it needs the noise level."""
        k = self.brownian.step
        if s - k not in self._levels:
            w = self._profile.w(within(self._knots, s - k))
            self._levels[s - k] = (w * self._rates[s - k].abs().sqrt()).to(self.problem.y).unbind(0)
        return self._levels[s - k][k]

    def result(self, out: Tensor) -> Result:
        """See `_RightHandSide`."""
        y = self.problem.y
        states = [state.view_as(y) for state in out] if self.problem.trajectory else []
        times, end = self._known.tolist(), out[-1].view_as(y)
        return Result(end, self._clocks, states, times, calls=self.calls, accepted=self.total or 0)


class _AnyTime(_RightHandSide):
    """Coefficients at any s in [0, 1] of a smooth clock, for adaptive steps."""

    brownian: AdaptiveBrownian

    def __init__(self, solver: SDESolver, problem: Problem):
        super().__init__(solver, problem)
        scheme = solver._scheme
        if problem.noise is not None or isinstance(problem.generator, (list, tuple)):
            what = "noise=" if problem.noise is not None else "one generator per sample"
            raise ValueError(
                f"Adaptive steps are shared by the batch and chosen from its noise: {what} needs fixed steps."
            )
        if problem.trajectory and scheme.carries:
            raise ValueError(
                f"An adaptive {solver.method!r} never shows its states: take fixed steps for a trajectory."
            )
        self.brownian = AdaptiveBrownian(problem, scheme.levy_area, scheme.carries)
        self.times = (0, 1)
        tolerance = {"rtol": solver.rtol or 1e-2, "atol": solver.atol or 1e-2, "dt_min": self.brownian.smallest / 100}
        self.options = {"dt": 0.01, "adaptive": True, **tolerance}
        self._states: list[Tensor] = []
        self._sign = 1.0 if problem.u_to > problem.u_from else -1.0
        self._grid = solver._smooth

    def visit(self, y: Tensor) -> None:
        """The first question of a step is about its start."""
        if len(self._states) < len(self.brownian.starts):
            self.step_done()
            self._states.append(y if self.problem.trajectory else y.new_empty(0))

    def _clock(self, s: float) -> tuple[Tensor, Tensor]:
        return self._grid.at(torch.tensor([s], dtype=torch.float64), self.problem.u_from, self.problem.u_to)

    def query(self, s: float, y: Tensor) -> Query:
        """The drift per unit of s."""
        u, rate = self._clock(s)
        _checks.finite_state(y, float(u))
        c, d = -self._sign * rate, rate * (self._sign - self._profile.gamma(u))
        return self.problem.model.plan(self.problem.y, u, None, c, d)[0]

    def level(self, s: float) -> Tensor:
        """The noise per square root of a unit of s."""
        u, rate = self._clock(s)
        return (self._profile.w(u) * rate.sqrt()).to(self.problem.y)[0]

    def result(self, out: Tensor) -> Result:
        """See `_RightHandSide`: a step that was tried again has the start of the next."""
        problem, starts = self.problem, self.brownian.starts
        kept = [i for i, (a, b) in enumerate(zip(starts, [*starts[1:], 1.0], strict=True)) if b > a]
        s = torch.tensor([*(starts[i] for i in kept), 1.0], dtype=torch.float64)
        u, _ = self._grid.at(s, problem.u_from, problem.u_to)
        y = out[-1].view_as(problem.y)
        states = [*(self._states[i].view_as(y) for i in kept), y] if problem.trajectory else []
        rejected = len(starts) - len(kept)
        return Result(y, u.tolist(), states, calls=self.calls, accepted=len(kept), rejected=rejected)
