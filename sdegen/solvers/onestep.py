"""One-step schemes: one loop, to which a scheme hands the stages of a step.

A step from u to v asks for m at its start. Each stage is a row from the start of the step, with the answers so far,
the newest first, and the clock at which its state lies: there the next answer is asked for, or, at the last stage, the
step ends.

    y' = keep y + sum over j of w_j m_j          y the state at u,   m_0 the answer at the stage before
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.models.base import Query
from sdegen.solvers.base import Ask, Problem, Result, march
from sdegen.solvers.grids import Laid
from sdegen.solvers.scheme import ANSWERS, Row, Scheme, answering, moved


class Stage(NamedTuple):
    """One stage of a step.

    Attributes:
        u: the clock at which its state lies.
        row: how the state comes from that at the start of the step; the last one may add noise.
    """

    u: float
    row: Row


@dataclass(frozen=True, eq=False)
class OneStep(Scheme):
    """A scheme without memory: write your own by giving `stages`. The explicit midpoint rule on slopes is

        @dataclass(frozen=True, eq=False)
        class Midpoint(sdegen.OneStep):
            solves_ode = True

            def stages(self, u, v):
                h = v - u
                return [sdegen.Stage(u + h / 2, sdegen.Row(1.0, (h / 2,))), sdegen.Stage(v, sdegen.Row(1.0, (h,)))]

    Args:
        steps: number of steps; may be left out with a tensor `grid`.
        grid: a grid, or a float64 tensor of steps + 1 values of u; the scheme's own by default.

    Attributes:
        asks: "slope", "data" or "noise", which answer m is.
        both_ways: whether a scheme that solves the ODE also goes from the data to noise.
        from_pure_noise: whether it can start at u = 1, where the log-SNR is infinite.

    Raises:
        TypeError: an option of another type.
        ValueError: options that are wrong or do not fit together.
    """

    @abstractmethod
    def stages(self, u: float, v: float) -> Sequence[Stage]:
        """The stages of a step from the clock u to v, the last of them at v: one network call each."""

    def run(self, problem: Problem, knots: Laid | None = None) -> Result:
        """Integrate `problem`: used by `sdegen.solve` and, for a scheme of slopes, by `sdegen.log_prob`."""
        knots = self.laid(problem) if knots is None else knots
        steps = [self.stages(u, v) for u, v in pairwise(knots.u.tolist())]
        queries, answer, cond = self._planned(problem, knots, steps), answering(problem), problem.cond
        std = [stages[-1].row.std or None for stages in steps]
        if any(std):
            problem.model.needs_score(type(self).__name__)

        def step(k: int, y: Tensor, ask: Ask) -> tuple[Tensor, float | None]:
            state, answers = y, list[Tensor]()
            for (_, row), query in zip(steps[k], queries[k], strict=True):
                answers.insert(0, answer(state, query, cond))
                state = moved(row, y, answers)
            return state, std[k]

        result = march(problem, knots.u, knots.t, step)
        result.calls = sum(map(len, steps))  # planned questions do not pass through `ask`
        return result

    def _planned(self, problem: Problem, knots: Laid, steps: Sequence[Sequence[Stage]]) -> list[list[Query]]:
        """The questions of every step, at its start and where its stages but the last lie; knots keep their t."""
        known = dict(zip(knots.u.tolist(), knots.t.tolist(), strict=True))
        asked = [[u, *(stage.u for stage in stages[:-1])] for u, stages in zip(known, steps, strict=False)]
        u = torch.tensor([clock for step in asked for clock in step], dtype=torch.float64)
        t = problem.model.path.time(u)
        t = torch.tensor([known.get(clock, time) for clock, time in zip(u.tolist(), t.tolist(), strict=True)]).to(u)
        c, d = ANSWERS[self.asks]
        queries = iter(problem.model.plan(problem.y, u, t, c * torch.ones_like(u), d * torch.ones_like(u)))
        return [[next(queries) for _ in step] for step in asked]
