"""Schemes as rows of numbers, and the loop that walks them, whether they remember past answers or not.

    y <- keep y + sum over j of w_j m_j + std z          m_0 the newest answer of the model, m_1 the one before, ...

m is the slope D = eps_hat - x_hat, the data x_hat or the noise eps_hat, whichever the scheme asks for. What all
schemes have in common stands here: options, the grid, what they cannot do, and how the model is asked.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import count, repeat
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.models.base import Query
from sdegen.paths.gaussian import GaussianPath
from sdegen.solvers.base import Problem, Result, Solver
from sdegen.solvers.grids import Grid, Layout, PowerGrid, check_grid, span_of, steps_on
from sdegen.solvers.loop import Ask, Memory, MemoryStep, march

ANSWERS = {"slope": (-1.0, 1.0), "data": (1.0, 0.0), "noise": (0.0, 1.0)}
"""(c, d) of the answer c x_hat + d eps_hat that a scheme asks for."""


class Row(NamedTuple):
    """One step: y <- keep y + sum over j of weights[j] m_j + std z.

    Attributes:
        keep: the factor of the state.
        weights: those of the model's answers, the newest first.
        std: of the noise in y.

    Examples:
        >>> euler = sdegen.Row(keep=1.0, weights=(-0.1,))  # y - 0.1 m_0
        >>> euler.std
        0.0
    """

    keep: float
    weights: Sequence[float]
    std: float = 0.0


def check_row(name: str, row: Row, most: int) -> None:
    """A ValueError unless a row holds finite numbers, no negative std, and weights for at most `most` answers."""
    weights = row.weights if isinstance(row.weights, Sequence) else [math.nan]
    if len(weights) > most:
        raise ValueError(f"{name} weighs {len(weights)} answers, and only {most} are known there: {row}.")
    if not math.isfinite(row.keep + sum(weights) + row.std) or row.std < 0:
        raise ValueError(f"{name} must hold finite numbers and no negative std, and it is {row}.")


class Move(NamedTuple):
    """What a loop does between two knots.

    Attributes:
        asked: the clocks at which the model is asked, the start of the step first; none where noise alone is added.
        rows: after each answer the row that builds the next state from that at the start, the last one with the noise;
            a single row without weights where nothing is asked.
        kept: how many answers the next move is handed.
    """

    asked: Sequence[float]
    rows: Sequence[Row]
    kept: int = 0


@dataclass(frozen=True, eq=False)
class Scheme(Solver):
    """What `Multistep` and `OneStep` share.

    Args:
        steps: number of steps; may be left out with a tensor `grid`.
        grid: a grid, or a float64 tensor of steps + 1 values of u; the scheme's own by default.

    Attributes:
        asks: "slope", "data" or "noise", which answer m is.
        from_pure_noise: whether it can start at u = 1, where the log-SNR is infinite.

    Raises:
        TypeError: an option of another type.
        ValueError: options that are wrong or do not fit together.
    """

    steps: int | None = None
    _: KW_ONLY
    grid: Grid | Tensor | None = None

    asks: ClassVar[str] = "slope"
    from_pure_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        if self.steps is not None:
            _checks.whole("steps", self.steps)
        if self.grid is not None:
            check_grid(self.grid, self.steps)
        if self.steps is None and not isinstance(self.grid, Tensor):
            raise ValueError(f"{type(self).__name__} needs steps, the number of steps.")
        _checks.choice("answer to ask for", self.asks, ANSWERS)

    @property
    def span(self) -> tuple[float, float] | None:
        """See `Solver.span`."""
        return span_of(self.grid)

    @property
    def own_grid(self) -> Grid:
        """The grid where none is given."""
        return PowerGrid(2)

    @abstractmethod
    def moves(self, knots: Layout) -> list[Move]:
        """The steps between these knots."""

    def run(self, problem: Problem) -> Result:
        """Integrate `problem`: used by `sdegen.solve` and, for a scheme of slopes, by `sdegen.log_prob`."""
        knots = self.laid(problem)
        moves = self.moves(knots)
        if self.solves_ode and any(move.rows[-1].std for move in moves):
            raise ValueError(f"{type(self).__name__} solves the ODE, as its solves_ode says, and its rows add noise.")
        result = march(problem, knots.u, knots.t, stepping(self, problem, knots.u, knots.t, moves), memory=())
        result.calls = calls_of(moves)
        return result

    def laid(self, problem: Problem) -> Layout:
        """The knots of `problem`, after a ValueError if the scheme cannot solve it."""
        name = type(self).__name__
        if problem.u_to > problem.u_from and not self.solves_ode:
            raise ValueError(f"{name} runs from noise to data; use Adams or an ODESolver towards noise.")
        if problem.probes is not None and self.asks != "slope":
            raise ValueError(
                f"{name} works on the {self.asks}, and a log-density needs slopes: use Adams or an ODESolver."
            )
        if problem.u_from == 1 and not self.from_pure_noise:
            raise ValueError(
                f"{name} cannot start at u = 1, where sigma/alpha is infinite; start inside, such as by "
                f"u=(0.99, {problem.u_to:g})."
            )
        return problem.lay(self.own_grid if self.grid is None else self.grid, steps_on(self.grid, self.steps) or 0)


def stepping(scheme: Scheme, problem: Problem, u: Tensor, t: Tensor, moves: Sequence[Move]) -> MemoryStep:
    """The step of `march` from knot to knot, its questions planned and its numbers moved at once."""
    std: list[Tensor | None] = [None] * len(moves)
    if any(move.rows[-1].std for move in moves):
        problem.model.needs_score(type(scheme).__name__)
        levels = torch.tensor([move.rows[-1].std for move in moves], dtype=torch.float64).to(problem.y).unbind(0)
        std = [level if move.rows[-1].std else None for level, move in zip(levels, moves, strict=True)]
    dense, event = problem.probes is not None, problem.event
    answer: Callable[..., Tensor] = problem.with_divergence if dense else problem.model.estimate
    last: Iterator[object] = count() if dense else repeat(problem.cond)
    asked = [[(query, next(last)) for query in queries] for queries in _planned(scheme, problem, u, t, moves)]

    def step(k: int, y: Tensor, ask: Ask, memory: Memory) -> tuple[tuple[Tensor, Tensor | None], Memory]:
        _, rows, kept = moves[k]
        state = y if asked[k] else moved(rows[0], y, ())
        for row, question in zip(rows, asked[k], strict=bool(asked[k])):
            memory = (answer(event(state), *question), *memory)
            state = moved(row, y, memory)
        return (state, std[k]), memory[:kept]

    return step


def calls_of(moves: Sequence[Move]) -> int:
    """The network calls of these moves: their questions are planned and do not pass through `ask`."""
    return sum(len(move.asked) for move in moves)


def times_at(path: GaussianPath, knots: Layout, clocks: Sequence[float]) -> dict[float, float]:
    """The path's time at these clocks and at the knots, which keep theirs: the inverse of the clock is asked once."""
    known = dict(zip(knots.u.tolist(), knots.t.tolist(), strict=True))
    new = [clock for clock in dict.fromkeys(clocks) if clock not in known]
    return known | dict(zip(new, path.time(torch.tensor(new, dtype=torch.float64)).tolist(), strict=True))


def _planned(scheme: Scheme, problem: Problem, u: Tensor, t: Tensor, moves: Sequence[Move]) -> list[list[Query]]:
    """The questions of every move; knots keep their t."""
    clocks = [clock for move in moves for clock in move.asked]
    known = times_at(problem.model.path, Layout(u, t, None), clocks)
    asked, times = (torch.tensor(n, dtype=torch.float64) for n in (clocks, [known[clock] for clock in clocks]))
    c, d = (torch.full_like(asked, n) for n in ANSWERS[scheme.asks])
    queries = iter(problem.model.plan(problem.y, asked, times, c, d))
    return [[next(queries) for _ in move.asked] for move in moves]


def moved(row: Row, y: Tensor, answers: Sequence[Tensor]) -> Tensor:
    """keep y + sum over j of w_j m_j, the newest answer first, in a new tensor; `answers` may hold older ones too."""
    keep, weights, _ = row
    if not weights:
        return keep * y
    y = torch.add(y if keep == 1 else keep * y, answers[0], alpha=weights[0])
    for w, m in zip(weights[1:], answers[1:], strict=False):
        y.add_(m, alpha=w)
    return y
