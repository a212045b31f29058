"""What every solver is: a value whose `run` carries a state from one clock to another, and the loop they may share.

In straight coordinates y = x_t/r, u = sigma/r, with x_hat = E[x | y] and eps_hat = E[eps | y], on every path:

    ODE       dy/du = eps_hat - x_hat
    SDE       dy = [eps_hat - x_hat] du - gamma eps_hat |du| + w dW,    gamma = w^2 / (2u)          (noise.py)
    density   d log p / du = -div(eps_hat - x_hat) along the ODE                                    (divergence.py)

Everything on the right is a combination c x_hat + d eps_hat, which is all that is ever asked of a model.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import ClassVar, Protocol, overload

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdegen import _checks
from sdegen._shapes import Generators, like
from sdegen.models.base import Model, Query
from sdegen.solvers.divergence import drift_and_divergence
from sdegen.solvers.grids import Grid, Laid, lay
from sdegen.solvers.noise import normals_of_step

CHECK_EVERY = 32
"""Steps between two looks at whether the state is still finite: each look waits for the device."""


@dataclass
class Problem:
    """One initial value problem: `y` at the clock u_from, wanted at u_to. What a solver's `run` is handed.

    Attributes:
        model: answers for x_hat and eps_hat.
        y: the initial state x_t/r, (B, *event).
        u_from: the straight clock at the start.
        u_to: the clock at the end; below u_from on the way to the data, above it on the way to noise.
        cond: keyword arguments for the network.
        noise: standard normals to use instead of draws, as in `solve`, or None.
        generator: for the draws.
        trajectory: whether every step's state is wanted.
        progress: whether a bar is.
        probes: (P, B, d) where the log-density is wanted too: div = sum over p of z_p . J z_p; else None. The state
            then is (B, d + 1), whose last column is the integral of div(eps_hat - x_hat) over u so far: the
            log-density at the start less that at this state.
        chunk: how many of these products one backward pass may take.
        checkpoint_every: None, or the number of steps whose activations the backward pass computes again, as in
            `solve`.
        shared: the names in `cond` that belong to the whole batch and are not cut with it.
    """

    model: Model
    y: Tensor
    u_from: float
    u_to: float
    cond: Mapping[str, object] = field(default_factory=dict)
    noise: Tensor | Callable[[int], Tensor] | None = None
    generator: Generators = None
    trajectory: bool = False
    progress: bool = False
    probes: Tensor | None = None
    chunk: int = 1
    checkpoint_every: int | None = None
    shared: frozenset[str] = frozenset()

    @property
    def start(self) -> Tensor:
        """The initial state: y, or with `probes` (B, d + 1)."""
        return self.y if self.probes is None else torch.nn.functional.pad(self.y.flatten(1), (0, 1))

    def event(self, state: Tensor) -> Tensor:
        """y, (B, *event), of a state."""
        return state if self.probes is None else state[:, :-1].reshape(self.y.shape)

    def density(self, state: Tensor) -> Tensor | None:
        """The integral of the divergence so far, (B,), where the log-density is wanted."""
        return None if self.probes is None else state[:, -1]

    def cut(self, rows: Tensor) -> Problem:
        """The same problem for some samples alone, `rows` (n,): their states, conditions and probes."""
        cond = {name: _checks.Shared(value) if name in self.shared else value for name, value in self.cond.items()}
        probes = self.probes
        if probes is not None:  # those of an exact trace are one set for all rows, expanded: not to be written out
            probes = probes[:, : len(rows)] if probes.stride(1) == 0 else probes[:, rows]
        received = _checks.network_arguments(cond, rows, len(self.y))
        return replace(self, y=self.y[rows], cond=received, probes=probes)

    def knots(self, grid: Grid | Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """(u, t) at the steps + 1 knots of `grid` from u_from to u_to, float64 on the CPU; the ends are met exactly."""
        laid = self.lay(grid, steps)
        return laid.u, laid.t

    def lay(self, grid: Grid | Tensor, steps: int) -> Laid:
        """The same knots, with the grid's own clock s(u)."""
        _checks.whole("steps", steps)
        return lay(grid, self.model, self.u_from, self.u_to, steps)

    def bar(self, total: int | None) -> AbstractContextManager[Callable[[], object]]:
        """A function to call after every step; it moves a progress bar if one was asked for."""
        return bar(total, self.progress)


@contextmanager
def bar(total: int | None, progress: bool) -> Iterator[Callable[[], object]]:
    """A function to call after every one of `total` steps, which moves a bar where `progress` is wanted."""
    if not progress:
        yield lambda: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm; install it with `pip install tqdm`.") from error
    with tqdm(total=total, unit="step") as shown:
        yield shown.update


@dataclass
class Result:
    """What a solver's `run` returns.

    Attributes:
        y: the end point, (B, *event).
        u: the knots, from the start on.
        states: every knot's y where the problem wants a trajectory, else empty.
        times: the path's time at the knots, where it is known.
        divergence: the integral of div(eps_hat - x_hat) over u, (B,), where the problem has probes: the log-density at
            the start less that at the end.
        calls: network calls.
        accepted: steps taken.
        rejected: steps tried in vain.
        error: (B,), the sum of an adaptive solver's local error estimates in units of its tolerance, else None.
        sample_calls: (B,), the network calls that each sample took part in, where these differ, else None.
    """

    y: Tensor
    u: list[float]
    states: list[Tensor] = field(default_factory=list)
    times: list[float] | None = None
    divergence: Tensor | None = None
    calls: int = 0
    accepted: int = 0
    rejected: int = 0
    error: Tensor | None = None
    sample_calls: Tensor | None = None


class Solver(ABC):
    """A method for the ODE or the SDE: a small frozen value. Write your own by giving `run`; `march` is a loop for it.

    Ralston's method, the midpoint rule's sister with its second stage at two thirds of the step:

        @dataclass(frozen=True)
        class Ralston(sdegen.Solver):
            steps: int
            solves_ode = True

            def run(self, problem):
                u, t = problem.knots(sdegen.PowerGrid(1.5), self.steps)

                def step(k, y, ask):
                    h = u[k + 1] - u[k]
                    slope = ask(y, u[k])
                    return y + h / 4 * (slope + 3 * ask(y + 2 / 3 * h * slope, u[k] + 2 / 3 * h))

                return sdegen.march(problem, u, t, step)

    A solver with tensors among its fields takes `@dataclass(frozen=True, eq=False)`: it is then compared and hashed
    with them, as the library's own are.

    Attributes:
        solves_ode: whether it integrates dy/du = eps_hat - x_hat, without noise and both ways, so that `encode`,
            `decode` and `log_prob` may use it.
    """

    solves_ode: ClassVar[bool] = False

    @abstractmethod
    def run(self, problem: Problem) -> Result:
        """Carry `problem.y` from `problem.u_from` to `problem.u_to`."""

    @property
    def differentiable(self) -> bool:
        """Whether autograd passes through it, as `differentiable=True` needs: not where it chooses its own steps."""
        return True

    @property
    def span(self) -> tuple[float, float] | None:
        """(u_high, u_low) of a grid with ends of its own, which stand for the path's where `u=` is None; else None."""
        return None

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_checks.same(a, b) for a, b in zip(_values(self), _values(other), strict=True))

    def __hash__(self) -> int:
        return hash((type(self), *(v.numel() if isinstance(v, Tensor) else v for v in _values(self))))


def _values(solver: Solver) -> list[object]:
    """The fields of a solver that is a dataclass, else all that it holds."""
    return [getattr(solver, f.name) for f in fields(solver)] if is_dataclass(solver) else [*vars(solver).values()]


class Ask(Protocol):
    """ask(y, u) is the slope dy/du = eps_hat - x_hat at a state and a clock; ask(y, u, c, d) is c x_hat + d eps_hat."""

    def __call__(self, y: Tensor, u: float | Tensor, c: float | Tensor = -1.0, d: float | Tensor = 1.0) -> Tensor:
        """One network call. u, c and d are numbers, or 0-dimensional tensors on the CPU."""


Move = Tensor | tuple[Tensor, Tensor | float | None]
"""The state at the next knot, or its mean and the deviation of the noise to add (None: no noise)."""

Memory = tuple[Tensor, ...]
"""What a multistep scheme takes along from one step to the next, such as past answers, newest first."""

Step = Callable[[int, Tensor, Ask], Move]
"""(k, y, ask) to the state at knot k + 1: a one-step scheme."""

Multistep = Callable[[int, Tensor, Ask, Memory], tuple[Move, Memory]]
"""(k, y, ask, memory) to the state at knot k + 1 and what the next step is handed as its memory."""


class _Asking:
    """`ask` of one march: plans each question when it comes, and counts."""

    def __init__(self, problem: Problem, u: list[float], t: list[float]):
        self.calls = 0
        self._problem = problem
        self._times = dict(zip(u, t, strict=True))

    def __call__(self, y: Tensor, u: float | Tensor, c: float | Tensor = -1.0, d: float | Tensor = 1.0) -> Tensor:
        """c x_hat + d eps_hat at the state `y`, with its divergence in the last column where that is wanted."""
        problem, u = self._problem, float(u)
        time = self._times.get(u)
        clock, c_, d_ = torch.tensor([[u], [c], [d]], dtype=torch.float64)
        (query,) = problem.model.plan(problem.y, clock, None if time is None else torch.full_like(clock, time), c_, d_)
        self.calls += 1
        if problem.probes is None:
            return problem.model.estimate(y, query, problem.cond)
        return joined(
            *drift_and_divergence(problem.model, problem.event(y), query, problem.cond, problem.probes, problem.chunk)
        )


def joined(value: Tensor, divergence: Tensor) -> Tensor:
    """The slope of a state whose last column integrates the divergence, (B, d + 1)."""
    return torch.cat([value.flatten(1), divergence[:, None]], 1)


@overload
def march(problem: Problem, u: Tensor, t: Tensor, step: Step) -> Result: ...
@overload
def march(problem: Problem, u: Tensor, t: Tensor, step: Multistep, memory: Memory) -> Result: ...
def march(problem: Problem, u: Tensor, t: Tensor, step: Callable[..., object], memory: Memory | None = None) -> Result:
    """Walk the knots `u`, one `step` after another: the loop of every solver that is not an engine's.

    It counts network calls, draws the noise, moves the bar, keeps the trajectory and looks at every 32nd state. A
    multistep scheme carries its past in `memory`; Adams-Bashforth of order 2 is

        def step(k, y, ask, memory):
            h, slope = u[k + 1] - u[k], ask(y, u[k])
            if not memory:
                return y + h * slope, (slope,)
            ratio = 0.5 * h / (u[k] - u[k - 1])
            return y + h * ((1 + ratio) * slope - ratio * memory[0]), (slope,)

        return sdegen.march(problem, u, t, step, memory=())

    Args:
        problem: what `Solver.run` was handed.
        u: the knots, (N + 1,), float64 on the CPU, such as `problem.knots(grid, steps)` gives.
        t: the path's time at the knots.
        step: called as step(k, y, ask) with the state at knot k; returns the state at knot k + 1, or (mean, std), to
            which the normals of step k are added. ask(y, u, c=-1.0, d=1.0) is c x_hat + d eps_hat, one network call.
            Where `log_prob` runs the solver, the state has one more column, the integral of the divergence, and `ask`
            answers for it too: a scheme made of slopes integrates both. It must depend on its arguments alone: with
            `checkpoint_every` the backward pass calls it again, when a list that it kept aside has moved on.
        memory: None for a one-step scheme. Else a tuple of tensors, often the empty one: step then is called as
            step(k, y, ask, memory) and returns (state, memory) or ((mean, std), memory), whose memory, of any length,
            is handed to step k + 1.

    Returns:
        the end point with its cost.

    Raises:
        TypeError: `memory` was given, and a step returned none.
        ValueError: a step returned a state or a deviation of another shape.
        NonFiniteError: a state became NaN or infinite.
    """
    clocks, times = u.tolist(), t.tolist()
    ask, steps, y = _Asking(problem, clocks, times), len(clocks) - 1, problem.start
    normals = normals_of_step(problem.y, problem.noise, problem.generator, steps)
    if problem.checkpoint_every is not None:
        step = _in_chunks(problem, step, steps, normals)
    states = [problem.event(y)]
    with problem.bar(steps) as bar:
        for k in range(steps):
            moved = step(k, y, ask) if memory is None else step(k, y, ask, memory)
            y, memory = _moved(moved, y, memory, problem, k, normals)
            if (k + 1) % CHECK_EVERY == 0 or k == steps - 1:
                _checks.finite_state(y, clocks[k + 1])
            if problem.trajectory:
                states.append(problem.event(y))
            bar()
    kept = states if problem.trajectory else []
    return Result(problem.event(y), clocks, kept, times, problem.density(y), calls=ask.calls, accepted=steps)


def _in_chunks(
    problem: Problem, step: Callable[..., object], steps: int, normals: Callable[[int], Tensor]
) -> Callable[..., object]:
    """`step` with its noise added, of whose activations only those between chunks of steps are kept for `backward`.

    The first step of a chunk takes all of them. A second pass has the normals of the first. Where no generator was
    given it still draws, and throws away: torch has set its global generator back, and a network that draws between
    the normals, as dropout does, must find its own again.
    """
    every = problem.checkpoint_every or steps
    drawn: dict[int, Tensor] = {}
    ahead: list[object] = []

    def same_normals(k: int) -> Tensor:
        if k not in drawn or problem.generator is None:
            z = normals(k)
            drawn.setdefault(k, z)
        return drawn[k]

    def chunk(first: int, y: Tensor, ask: Ask, memory: Memory | None) -> list[object]:
        taken: list[object] = []
        for k in range(first, min(first + every, steps)):
            moved = step(k, y, ask) if memory is None else step(k, y, ask, memory)
            y, memory = _moved(moved, y, memory, problem, k, same_normals)
            taken.append(y if memory is None else (y, memory))
        return taken

    def chunked(k: int, y: Tensor, ask: Ask, memory: Memory | None = None) -> object:
        if k % every == 0:
            ahead[:] = checkpoint(chunk, k, y, ask, memory, use_reentrant=False)
        return ahead[k % every]

    return chunked


def _moved(
    moved: object, y: Tensor, memory: Memory | None, problem: Problem, k: int, normals: Callable[[int], Tensor]
) -> tuple[Tensor, Memory | None]:
    """The state at knot k + 1, its noise added, and the next memory, from what a step returned."""
    if memory is not None:
        moved, memory = _split(moved, k)
    state, std = _checked_step(moved, y, problem, k)
    return (state if std is None else torch.addcmul(state, std, normals(k))), memory


def _split(moved: object, k: int) -> tuple[object, Memory]:
    """(move, memory) from what a multistep scheme returned, after a TypeError unless memory is a tuple of tensors."""
    move, memory = moved if isinstance(moved, tuple) and len(moved) == 2 else (None, moved)
    if not isinstance(memory, tuple) or not all(isinstance(kept, Tensor) for kept in memory):
        names = [type(kept).__name__ for kept in memory] if isinstance(memory, tuple) else type(memory).__name__
        raise TypeError(
            f"step({k}, y, ask, memory) must return (state, memory) or ((mean, std), memory), memory a tuple of "
            f"tensors, and its memory is {names}."
        )
    return move, memory


def _checked_step(moved: object, y: Tensor, problem: Problem, k: int) -> tuple[Tensor, Tensor | None]:
    """(state, deviation or None) from what a step returned: shapes alone are looked at."""
    state, std = moved if isinstance(moved, tuple) and len(moved) == 2 else (moved, None)
    if not isinstance(state, Tensor) or state.shape != y.shape:
        got = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
        raise ValueError(f"step({k}, y, ask) must return a state {tuple(y.shape)} or (mean, std), and it gave {got}.")
    if std is None:
        return state, None
    if problem.probes is not None:
        raise ValueError(f"step({k}, y, ask) adds noise, and a log-density is that of the ODE, which has none.")
    if isinstance(std, Tensor) and std.ndim == 0 and std.dtype is y.dtype:
        return state, std
    std = like(torch.as_tensor(std, dtype=y.dtype), y)
    if std.shape not in ((), (len(y),) + (1,) * (y.ndim - 1), y.shape):
        raise ValueError(f"std of step {k} must be a number, one per sample, or shaped like y, not {tuple(std.shape)}.")
    return state, std


def plan_stages(
    problem: Problem, u: Tensor, t: Tensor, coefficients: Mapping[float, tuple[Tensor, Tensor]]
) -> list[dict[float, Query]]:
    """For every step, the query c x_hat + d eps_hat at each fraction that a method asks for; knots keep their t."""
    known = {0.0: t[:-1], 1.0: t[1:]}
    columns = [
        problem.model.plan(problem.y, within(u, fraction), known.get(fraction), c, d)
        for fraction, (c, d) in coefficients.items()
    ]
    return [dict(zip(coefficients, step, strict=True)) for step in zip(*columns, strict=True)]


def within(u: Tensor, fraction: float) -> Tensor:
    """The clock at a fraction of every step: it is linear between knots, and exact at them."""
    return u[1:] if fraction == 1 else u[:-1] + fraction * (u[1:] - u[:-1])


Estimate = Callable[[Tensor, Query, Mapping[str, object]], Tensor]


def estimate_of(problem: Problem, solver: Solver, package: str) -> Estimate:
    """`model.estimate` for the loop of an engine, each call a chunk of its own where activations are computed again."""
    estimate, every = problem.model.estimate, problem.checkpoint_every
    if every is None:
        return estimate
    if every != 1:
        raise ValueError(
            f"{package} takes the steps of {solver!r}, and not in chunks of checkpoint_every = {every}: give 1, with "
            "which the backward pass computes one network call after another again, or a solver that marches."
        )
    return partial(checkpoint, estimate, use_reentrant=False)


def raised_inside(error: BaseException, package: str) -> bool:
    """Whether an engine's own line raised `error`, and not the network that it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0] == package
