"""The loop of every solver that is no engine's: `march`, and what a step of it may do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol, overload

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdegen import _checks
from sdegen._derivatives import uncompiled
from sdegen._shapes import like
from sdegen.solvers.base import Problem, Result
from sdegen.solvers.noise import normals_of_step

CHECK_EVERY = 32
"""Steps between two looks at whether the state is still finite: each look waits for the device."""


class Ask(Protocol):
    """ask(y, u) is the slope dy/du = eps_hat - x_hat at a state and a clock; ask(y, u, c, d) is c x_hat + d eps_hat.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Euler(sdegen.Solver):
        ...     steps: int
        ...     solves_ode = True
        ...
        ...     def run(self, problem):
        ...         u, t = problem.knots(sdegen.PowerGrid(1), self.steps)
        ...         return sdegen.march(problem, u, t, lambda k, y, ask: y + (u[k + 1] - u[k]) * ask(y, u[k]))
        >>> model = sdegen.Gaussian([1.0], 1e-3).model(sdegen.CondOT())
        >>> sdegen.sample(model, (1, 1), Euler(100), x_T=torch.zeros(1, 1)).round(decimals=2)
        tensor([[1.]])
    """

    def __call__(self, y: Tensor, u: float | Tensor, c: float | Tensor = -1.0, d: float | Tensor = 1.0) -> Tensor:
        """One network call. u, c and d are numbers, or 0-dimensional tensors on the CPU."""


Stepped = Tensor | tuple[Tensor, Tensor | float | None]
"""The state at the next knot, or its mean and the deviation of the noise to add (None: no noise)."""

Memory = tuple[Tensor, ...]
"""What a multistep scheme takes along from one step to the next, such as past answers, newest first."""

Step = Callable[[int, Tensor, Ask], Stepped]
"""(k, y, ask) to the state at knot k + 1: a one-step scheme."""

MemoryStep = Callable[[int, Tensor, Ask, Memory], tuple[Stepped, Memory]]
"""(k, y, ask, memory) to the state at knot k + 1 and what the next step is handed as its memory."""


class _Asking:
    """`ask` of one march: plans each question when it comes, and counts."""

    def __init__(self, problem: Problem, u: list[float], t: list[float]):
        self.calls = 0
        self._problem, self._step, self._stage = problem, 0, 0
        self._numbers: dict[tuple[int, int], int] = {}  # of the queries: a second pass through a step repeats them
        self._times = dict(zip(u, t, strict=True))

    def begin(self, k: int) -> None:
        """Step k begins, perhaps once more."""
        self._step, self._stage = k, 0

    def __call__(self, y: Tensor, u: float | Tensor, c: float | Tensor = -1.0, d: float | Tensor = 1.0) -> Tensor:
        """c x_hat + d eps_hat at the state `y`, with its divergence in the last columns where that is wanted."""
        problem, u = self._problem, float(u)
        time = self._times.get(u)
        clock, c_, d_ = torch.tensor([[u], [c], [d]], dtype=torch.float64)
        (query,) = problem.model.plan(problem.y, clock, None if time is None else torch.full_like(clock, time), c_, d_)
        self.calls += 1
        if problem.probes is None:
            return problem.model.estimate(y, query, problem.cond)
        self._stage += 1
        number = self._numbers.setdefault((self._step, self._stage), len(self._numbers))
        return problem.with_divergence(problem.event(y), query, number)


@overload
def march(problem: Problem, u: Tensor, t: Tensor, step: Step) -> Result: ...
@overload
def march(problem: Problem, u: Tensor, t: Tensor, step: MemoryStep, memory: Memory) -> Result: ...
def march(problem: Problem, u: Tensor, t: Tensor, step: Callable[..., object], memory: Memory | None = None) -> Result:
    """Walk the knots `u`, one `step` after another: the loop of every solver that is not an engine's.

    It counts network calls, draws the noise, moves the bar, keeps the trajectory, calls the user's callback and looks
    at every 32nd state. A multistep scheme carries its past in `memory`; Adams-Bashforth of order 2 is

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
            Where `log_prob` runs the solver, the state has R more columns, estimates of the integral of the divergence,
            and `ask` answers for them too: a scheme made of slopes integrates both. It must depend on its arguments
            alone: with `checkpoint_every` the backward pass calls it again, when a list that it kept has moved on.
        memory: None for a one-step scheme. Else a tuple of tensors, often the empty one: step then is called as
            step(k, y, ask, memory) and returns (state, memory) or ((mean, std), memory), whose memory, of any length,
            is handed to step k + 1.

    Returns:
        the end point with its cost.

    Raises:
        TypeError: `memory` was given, and a step returned none.
        ValueError: a step returned a state or a deviation of another shape.
        NonFiniteError: a state became NaN or infinite.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 1e-3).model(sdegen.CondOT())
        >>> problem = sdegen.Problem(model, torch.zeros(1, 1), u_from=1.0, u_to=0.0)
        >>> u, t = problem.knots(sdegen.PowerGrid(1), 50)
        >>> result = sdegen.march(problem, u, t, lambda k, y, ask: y + (u[k + 1] - u[k]) * ask(y, u[k]))
        >>> f"{result.calls} {result.y.item():.2f}"
        '50 1.00'
    """
    clocks, times = u.tolist(), t.tolist()
    ask, steps, y = _Asking(problem, clocks, times), len(clocks) - 1, problem.start
    normals = normals_of_step(problem.y, problem.noise, problem.generator, steps)
    if problem.checkpoint_every is not None:
        step = _in_chunks(problem, step, steps, normals)
    states = [problem.event(y)]
    with problem.bar(steps) as bar:
        for k in range(steps):
            ask.begin(k)
            moved = step(k, y, ask) if memory is None else step(k, y, ask, memory)
            y, memory = _moved(moved, y, memory, problem, k, normals)
            if (k + 1) % CHECK_EVERY == 0 or k == steps - 1:
                _checks.finite_state(y, clocks[k + 1])
            if problem.trajectory:
                states.append(problem.event(y))
            if problem.callback is not None:
                problem.callback(k, clocks[k + 1], problem.event(y))
            bar()
    kept = states if problem.trajectory else []
    end, density = problem.event(y), problem.density(y)
    return Result(end, clocks, kept, times, density, calls=ask.calls, accepted=steps, memory=memory or ())


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

    def chunk(first: int, y: Tensor, ask: _Asking, memory: Memory | None) -> list[object]:
        taken: list[object] = []
        with uncompiled() if problem.differentiable else nullcontext():  # in the backward pass too
            for k in range(first, min(first + every, steps)):
                ask.begin(k)
                moved = step(k, y, ask) if memory is None else step(k, y, ask, memory)
                y, memory = _moved(moved, y, memory, problem, k, same_normals)
                taken.append(y if memory is None else (y, memory))
        return taken

    def chunked(k: int, y: Tensor, ask: _Asking, memory: Memory | None = None) -> object:
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
