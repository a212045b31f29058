"""Multistep schemes: one loop, to which a scheme hands rows of numbers.

    y_{k+1} = keep y_k + sum over j of w_j m_j + std z       m_0 the answer of the model at knot k, m_1 that at k-1, ...

m is the slope D = eps_hat - x_hat, the data x_hat or the noise eps_hat, whichever the scheme asks for. A predictor
gives a row for every step. A corrector gives the row of the same step once the answer at its end is known too: it is
the one that the next step needs anyway, at the predicted state, so that a step stays one network call. With c_j the
weights of the corrector, that answer first, correcting step k-1 and predicting step k is one row if both keep alike:

    y*_k = y_k + c_0 m_0 + sum over j > 0 of (c_j - w_{j-1}) m_j
    y_{k+1} = keep y*_k + sum over j of w_j m_j + std z

The noise of step k-1 stays what it was.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise, zip_longest
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.solvers.base import Ask, Memory, Problem, Result, Solver, joined, march
from sdegen.solvers.divergence import drift_and_divergence
from sdegen.solvers.grids import Grid, Laid, PowerGrid, check_grid, span_of, steps_on

ANSWERS = {"slope": (-1.0, 1.0), "data": (1.0, 0.0), "noise": (0.0, 1.0)}
"""(c, d) of the answer c x_hat + d eps_hat that a scheme asks for."""


class Row(NamedTuple):
    """One step: y <- keep y + sum over j of weights[j] m_j + std z.

    Attributes:
        keep: the factor of the state.
        weights: those of the model's answers, the newest first.
        std: of the noise in y.
    """

    keep: float
    weights: Sequence[float]
    std: float = 0.0


@dataclass(frozen=True, eq=False)
class Multistep(Solver):
    """A scheme made of rows: write your own by giving `predictor` and, where there is one, `corrector`.

    Adams-Bashforth of order 2 on slopes, with h_k = u_{k+1} - u_k:

        @dataclass(frozen=True, eq=False)
        class AdamsBashforth2(sdegen.Multistep):
            solves_ode = True

            def predictor(self, knots):
                h = torch.diff(knots.u).tolist()
                later = [sdegen.Row(1.0, (b + b * b / (2 * a), -b * b / (2 * a))) for a, b in zip(h, h[1:])]
                return [sdegen.Row(1.0, (h[0],)), *later]

    Args:
        steps: number of steps, and of network calls; may be left out with a tensor `grid`.
        grid: a grid, or a float64 tensor of steps + 1 values of u; the scheme's own by default.

    Attributes:
        asks: "slope", "data" or "noise", which answer m is.
        both_ways: whether it also goes from the data to noise.

    Raises:
        TypeError: an option of another type.
        ValueError: options that are wrong or do not fit together.
    """

    steps: int | None = None
    _: KW_ONLY
    grid: Grid | Tensor | None = None

    asks: ClassVar[str] = "slope"
    both_ways: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps is not None:
            _checks.whole("steps", self.steps)
        if self.grid is not None:
            check_grid(self.grid, self.steps)
        if self.steps is None and not isinstance(self.grid, Tensor):
            raise ValueError(f"{type(self).__name__} needs steps, the number of steps.")

    @property
    def span(self) -> tuple[float, float] | None:
        """See `Solver.span`."""
        return span_of(self.grid)

    @property
    def own_grid(self) -> Grid:
        """The grid where none is given."""
        return PowerGrid(2)

    @abstractmethod
    def predictor(self, knots: Laid) -> Sequence[Row]:
        """A row for every step of the grid, from the answers at its first knot and at those before."""

    def corrector(self, knots: Laid) -> Sequence[Row]:
        """A row for every step but the last, with the answer at its second knot first; none without a corrector."""
        return []

    def run(self, problem: Problem) -> Result:
        """Integrate `problem`: used by `sdegen.solve` and, for a scheme of slopes, by `sdegen.log_prob`."""
        self._check_problem(problem)
        knots = problem.lay(self.own_grid if self.grid is None else self.grid, steps_on(self.grid, self.steps) or 0)
        rows = joined_rows(self.predictor(knots), self.corrector(knots))
        model, cond, one = problem.model, problem.cond, torch.ones(len(rows), dtype=torch.float64)
        c, d = ANSWERS[self.asks]
        queries = model.plan(problem.y, knots.u[:-1], knots.t[:-1], c * one, d * one)
        levels = torch.tensor([row.std for row in rows], dtype=torch.float64).to(problem.y).unbind(0)
        std = [level if row.std else None for row, level in zip(rows, levels, strict=True)]
        remembered = [len(row.weights) - 1 for row in rows[1:]] + [0]

        def step(k: int, y: Tensor, ask: Ask, memory: Memory) -> tuple[tuple[Tensor, Tensor | None], Memory]:
            if problem.probes is None:
                newest = model.estimate(y, queries[k], cond)
            else:
                newest = joined(
                    *drift_and_divergence(model, problem.event(y), queries[k], cond, problem.probes, problem.chunk)
                )
            answers = (newest, *memory)
            keep, weights, _ = rows[k]
            y = torch.add(y if keep == 1 else keep * y, newest, alpha=weights[0])
            for w, m in zip(weights[1:], memory, strict=True):
                y.add_(m, alpha=w)
            return (y, std[k]), answers[: remembered[k]]

        result = march(problem, knots.u, knots.t, step, memory=())
        result.calls = result.accepted  # planned questions do not pass through `ask`: one a step
        return result

    def _check_problem(self, problem: Problem) -> None:
        name = type(self).__name__
        if problem.u_to > problem.u_from and not (self.both_ways and self.solves_ode):
            raise ValueError(f"{name} runs from noise to data; use Adams or an ODESolver towards noise.")
        if problem.probes is not None and self.asks != "slope":
            raise ValueError(
                f"{name} works on the {self.asks}, and a log-density needs slopes: use Adams or an ODESolver."
            )
        if not self.solves_ode:
            problem.model.needs_score(name)


def joined_rows(predicted: Sequence[Row], corrected: Sequence[Row]) -> list[Row]:
    """The rows of a predictor, each after the correction of the step before it."""
    rows = [predicted[0]]
    for k, (before, after) in enumerate(pairwise(predicted)):
        if k >= len(corrected):
            rows.append(after)
            continue
        keep, weights, _ = corrected[k]
        if keep != before.keep:
            raise ValueError(f"Predictor and corrector of step {k} must keep alike: {before.keep} and {keep}.")
        change = [c - w for c, w in zip_longest(weights, (0.0, *before.weights), fillvalue=0.0)]
        pairs = zip_longest(change, after.weights, fillvalue=0.0)
        rows.append(Row(after.keep, [after.keep * c + w for c, w in pairs], after.std))
    return rows
