"""One-step schemes: the stages of a step, each a row of numbers.

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

from sdegen.solvers.grids import Layout
from sdegen.solvers.scheme import Move, Row, Scheme, check_row


class Stage(NamedTuple):
    """One stage of a step.

    Attributes:
        u: the clock at which its state lies.
        row: how the state comes from that at the start of the step; the last one may add noise.

    Examples:
        >>> half = sdegen.Stage(0.45, sdegen.Row(1.0, (-0.05,)))  # the middle of a step from u = 0.5 to 0.4
        >>> half.u, half.row.weights
        (0.45, (-0.05,))
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
        from_pure_noise: whether it can start at u = 1, where the log-SNR is infinite.

    Raises:
        TypeError: an option of another type.
        ValueError: options that are wrong or do not fit together.

    Examples:
        >>> isinstance(sdegen.Heun(20), sdegen.OneStep), isinstance(sdegen.Adams(20), sdegen.OneStep)
        (True, False)
    """

    @abstractmethod
    def stages(self, u: float, v: float) -> Sequence[Stage]:
        """The stages of a step from the clock u to v, the last of them at v: one network call each."""

    def moves(self, knots: Layout) -> list[Move]:
        """See `Scheme.moves`."""
        steps = [(u, self._checked_stages(u, v)) for u, v in pairwise(knots.u.tolist())]
        return [Move([u, *(stage.u for stage in stages[:-1])], [stage.row for stage in stages]) for u, stages in steps]

    def _checked_stages(self, u: float, v: float) -> Sequence[Stage]:
        """`stages`, after a ValueError unless there is one, the last at v, each of rows for the answers so far."""
        stages, name = self.stages(u, v), f"{type(self).__name__}.stages"
        if not (isinstance(stages, Sequence) and stages and all(isinstance(stage, Stage) for stage in stages)):
            raise ValueError(f"{name} must give at least one Stage from u = {u} to {v}, and it gave {stages!r}.")
        if stages[-1].u != v:
            raise ValueError(f"The last stage of {name} must lie at u = {v}, and it lies at {stages[-1].u}.")
        for j, stage in enumerate(stages):
            check_row(f"Stage {j} of {name}", stage.row, most=j + 1)
        return stages
