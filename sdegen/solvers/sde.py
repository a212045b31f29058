"""SDE solvers on torchsde.

The SDE of base.py is integrated in step-index time s in [0, N] with dt = 1. Within step k the clock is linear,
u = u_k + (s - k)(u_{k+1} - u_k), so with h = |u_{k+1} - u_k|

    dy = [(eps_hat - x_hat)(u_{k+1} - u_k) - gamma eps_hat h] ds + w sqrt(h) dW

on any grid, in exactly N steps. Which step a query belongs to is told by the Brownian object, which every method
asks first, never by rounding s. The noise is additive, so Ito and Stratonovich agree and Milstein is Euler-Maruyama.

Scalable Gradients for Stochastic Differential Equations, Li et al., 2020, arXiv:2001.01328;
Runge-Kutta Methods for the Strong Approximation of Solutions of SDEs, Roessler, 2010 (`srk`);
Efficient and Accurate Gradients for Neural SDEs, Kidger et al., 2021, arXiv:2105.13493 (`reversible_heun`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass

import torch
import torchsde
from torch import Tensor

from sdegen import _checks
from sdegen._checks import NonFiniteError
from sdegen.models.model import Query
from sdegen.solvers.base import CHECK_EVERY, NoiseProfile, Path, Problem
from sdegen.solvers.brownian import AdaptiveBrownian, Increments
from sdegen.solvers.grids import Grid, PowerGrid, check_grid, knots, plan_stages, within


@dataclass(frozen=True)
class SDEMethod:
    """A torchsde method: where in a step it queries the network, its orders in law and along a path, what it needs."""

    stages: tuple[float, ...]
    order: int
    strong: int
    calculus: str
    levy_area: str = "none"
    carries: bool = False  # takes the end-point drift along into the next step
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


@dataclass(frozen=True)
class SDESolver:
    """Integrate the reverse SDE with torchsde.

    method:   "euler", "milstein", "euler_heun", "srk", "midpoint", "heun", "log_ode" or "reversible_heun".
    steps:    number of steps; may be left out with a tensor `grid`, must be with `adaptive`.
    eta:      noise level, at least 0: 1 is Anderson's reverse SDE (up to u = 0.9), 0 the probability-flow ODE.
    w:        a callable u -> w(u) on float64 tensors, instead of `eta`.
    grid:     a PowerGrid, by default PowerGrid(2), or a float64 tensor of steps + 1 values of u.
    adaptive: let torchsde choose the steps, with tolerances `rtol` and `atol` (1e-2 by default) on y. One step size
              serves the whole batch, so a sample depends on its batch-mates.

    Raises TypeError or ValueError for options that are wrong or do not fit together.
    """

    method: str = "euler"
    steps: int | None = None
    _: KW_ONLY
    eta: float = 1.0
    w: Callable[[Tensor], Tensor] | None = None
    grid: Grid | None = None
    adaptive: bool = False
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
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
        if (self.adaptive or self._scheme.carries) and self._grid != PowerGrid(self._power):
            raise ValueError(f"{self._kind} needs a smooth clock, PowerGrid(p), and the grid is {self.grid!r}.")

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

    @property
    def _scheme(self) -> SDEMethod:
        return SDE_METHODS[self.method]

    @property
    def _grid(self) -> Grid:
        return PowerGrid(2) if self.grid is None else self.grid

    @property
    def _power(self) -> float:
        return self._grid.p if isinstance(self._grid, PowerGrid) else 1.0

    @property
    def _kind(self) -> str:
        return "An adaptive solve" if self.adaptive else f"The SDE method {self.method!r}"

    def run(self, problem: Problem) -> Path:
        """Integrate `problem`: used by `sdegen.solve`."""
        if self.eta or self.w is not None:
            problem.model.needs_score("An SDESolver")
        return self._run_adaptive(problem) if self.adaptive else self._run_fixed(problem)

    def _run_fixed(self, problem: Problem) -> Path:
        steps = len(self.grid) - 1 if isinstance(self.grid, Tensor) else self.steps
        u, t = knots(self._grid, problem.model.path, problem.u_from, problem.u_to, steps)
        brownian = Increments(problem, steps, self._scheme.levy_area)
        with problem.bar(steps) as bar:
            rhs = _FixedSteps(self, problem, brownian, u, t, bar)
            out = _sdeint(self, rhs, brownian, range(steps + 1) if problem.trajectory else (0, steps), dt=1.0)
        states = [y.view_as(problem.y) for y in out] if problem.trajectory else []
        return Path(out[-1].view_as(problem.y), u.tolist(), states, t.tolist(), calls=rhs.calls, accepted=steps)

    def _run_adaptive(self, problem: Problem) -> Path:
        if problem.noise is not None or isinstance(problem.generator, (list, tuple)):
            what = "noise=" if problem.noise is not None else "one generator per sample"
            raise ValueError(
                f"Adaptive steps are shared by the batch and chosen from its noise: {what} needs fixed steps."
            )
        if problem.trajectory and self._scheme.carries:
            raise ValueError(f"An adaptive {self.method!r} never shows its states: take fixed steps for a trajectory.")
        brownian = AdaptiveBrownian(problem, self._scheme.levy_area)
        with problem.bar(None) as bar:
            rhs = _AnyTime(self, problem, brownian, bar)
            tolerance = {"rtol": self.rtol or 1e-2, "atol": self.atol or 1e-2, "dt_min": brownian.smallest / 100}
            out = _sdeint(self, rhs, brownian, (0, 1), dt=0.01, adaptive=True, **tolerance)
        starts = brownian.starts
        kept = [i for i, (a, b) in enumerate(zip(starts, [*starts[1:], 1.0], strict=True)) if b > a]
        s = torch.tensor([*(starts[i] for i in kept), 1.0], dtype=torch.float64)
        u, _ = self._grid.at(s, problem.u_from, problem.u_to)
        y = out[-1].view_as(problem.y)
        states = [*(rhs.states[i].view_as(y) for i in kept), y] if problem.trajectory else []
        return Path(y, u.tolist(), states, calls=rhs.calls, accepted=len(kept), rejected=len(starts) - len(kept))


def _sdeint(solver: SDESolver, rhs: _RightHandSide, brownian: object, ts: Iterable[int], **options: object) -> Tensor:
    """torchsde on CPU float64 times: (len(ts), B, d); its failed assertions become sentences."""
    y = rhs.problem.y.flatten(1)
    ts = torch.tensor(list(ts), dtype=torch.float64)
    try:
        out = torchsde.sdeint(rhs, y, ts, bm=brownian, method=solver.method, **options)
    except AssertionError as error:
        raise NonFiniteError(f"{solver!r} met NaN in its error estimate ({error}).") from error
    _checks.finite_state(out[-1], rhs.problem.u_to)
    return out


class _RightHandSide:
    """f and g as torchsde wants them, on states (B, d); the last drift is remembered, so no query is made twice."""

    def __init__(self, solver: SDESolver, problem: Problem, brownian: Increments | AdaptiveBrownian):
        self.problem = problem
        self.brownian = brownian
        self.sde_type = solver._scheme.calculus
        self.calls = 0
        self._last = (None, None, None)
        self._model, self._cond = problem.model, problem.cond
        self._shape = tuple(problem.y.shape)
        if solver._scheme.carries:
            self.noise_type, self.g = "diagonal", self._diagonal
        else:
            self.noise_type, self.g_prod, self.f_and_g_prod = "additive", self._product, self._both

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        """The drift per unit of s."""
        s = float(s)
        self._visit(y)
        if self._last[0] == s and self._last[1] is y:
            return self._last[2]
        query = self._drift(s, y)
        if len(self._shape) == 2:
            value = self._model.estimate(y, query, self._cond)
        else:
            value = self._model.estimate(y.view(self._shape), query, self._cond).flatten(1)
        self.calls += 1
        self._last = (s, y, value)
        return value

    def _visit(self, y: Tensor) -> None:
        """Told of every state that is asked about, remembered or not."""

    def _product(self, s: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self._level(float(s)) * v

    def _both(self, s: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.f(s, y), self._level(float(s)) * v

    def _diagonal(self, s: Tensor, y: Tensor) -> Tensor:
        return self._level(float(s)).expand_as(y)


class _FixedSteps(_RightHandSide):
    """Coefficients looked up by step and fraction of it, all computed beforehand."""

    def __init__(
        self,
        solver: SDESolver,
        problem: Problem,
        brownian: Increments,
        u: Tensor,
        t: Tensor,
        bar: Callable[[], object],
    ):
        super().__init__(solver, problem, brownian)
        self._bar = bar
        self._step = -1
        profile = NoiseProfile(solver.eta, solver.w)
        stages = solver._scheme.stages
        h = u[1:] - u[:-1]
        self._rates = dict.fromkeys((0.0, 0.5, 0.75, 1.0), h)
        if solver._scheme.carries:
            s = torch.linspace(0, 1, len(u), dtype=torch.float64)
            smooth = torch.sign(h[0]) * solver._grid.at(s, problem.u_from, problem.u_to)[1] / len(h)
            self._rates = {0.0: smooth[:-1], 1.0: smooth[1:]}
        drift = {}
        for fraction in stages:
            rate = self._rates[fraction]
            drift[fraction] = (-rate, rate - rate.abs() * profile.gamma(within(u, fraction)))
        self._queries = plan_stages(problem, u, t, drift)
        self._profile, self._clock, self._u = profile, u, u.tolist()
        self._levels: dict[float, tuple[Tensor, ...]] = {}

    def _drift(self, s: float, y: Tensor) -> Query:
        k = self.brownian.step
        if k > self._step:
            self._step = k
            self._bar()
            if k and k % CHECK_EVERY == 0:
                _checks.finite_state(y, self._u[k])
        return self._queries[k][s - k]

    def _level(self, s: float) -> Tensor:
        k = self.brownian.step
        if s - k not in self._levels:  # only the method knows where in a step it needs the noise level
            w = self._profile.w(within(self._clock, s - k))
            self._levels[s - k] = (w * self._rates[s - k].abs().sqrt()).to(self.problem.y).unbind(0)
        return self._levels[s - k][k]


class _AnyTime(_RightHandSide):
    """Coefficients at any s in [0, 1] of a smooth clock, for adaptive steps."""

    def __init__(self, solver: SDESolver, problem: Problem, brownian: AdaptiveBrownian, bar: Callable[[], object]):
        super().__init__(solver, problem, brownian)
        self.states: list[Tensor] = []
        self._bar = bar
        self._profile = NoiseProfile(solver.eta, solver.w)
        self._sign = 1.0 if problem.u_to > problem.u_from else -1.0
        self._grid = solver._grid

    def _visit(self, y: Tensor) -> None:
        if len(self.states) < len(self.brownian.starts):  # the first question of a step is about its start
            self._bar()
            self.states.append(y if self.problem.trajectory else None)

    def _clock(self, s: float) -> tuple[Tensor, Tensor]:
        return self._grid.at(torch.tensor([s], dtype=torch.float64), self.problem.u_from, self.problem.u_to)

    def _drift(self, s: float, y: Tensor) -> Query:
        u, rate = self._clock(s)
        _checks.finite_state(y, float(u))
        c, d = -self._sign * rate, rate * (self._sign - self._profile.gamma(u))
        return self._model.plan(self.problem.y, u, None, c, d)[0]

    def _level(self, s: float) -> Tensor:
        u, rate = self._clock(s)
        return (self._profile.w(u) * rate.sqrt()).to(self.problem.y)[0]
