"""Schemes as rows of numbers: how one is written down for the two loops, multistep and one-step.

    y <- keep y + sum over j of w_j m_j + std z          m_0 the newest answer of the model, m_1 the one before, ...

m is the slope D = eps_hat - x_hat, the data x_hat or the noise eps_hat, whichever the scheme asks for. What the loops
have in common stands here: options, the grid, what a scheme cannot do, and how the model is asked.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.models.base import Query
from sdegen.solvers.base import Problem, Result, Solver, joined
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
class Scheme(Solver):
    """What `Multistep` and `OneStep` share.

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

    steps: int | None = None
    _: KW_ONLY
    grid: Grid | Tensor | None = None

    asks: ClassVar[str] = "slope"
    both_ways: ClassVar[bool] = True
    from_pure_noise: ClassVar[bool] = True

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
    def run(self, problem: Problem, knots: Laid | None = None) -> Result:
        """Integrate `problem` along `knots`, from its u_from to its u_to; by default those that are `laid`."""

    def laid(self, problem: Problem) -> Laid:
        """The knots of `problem`, after a ValueError if the scheme cannot solve it."""
        name = type(self).__name__
        if problem.u_to > problem.u_from and not (self.both_ways and self.solves_ode):
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


def moved(row: Row, y: Tensor, answers: Sequence[Tensor]) -> Tensor:
    """keep y + sum over j of w_j m_j, the newest answer first, in a new tensor; `answers` may hold older ones too."""
    keep, weights, _ = row
    y = torch.add(y if keep == 1 else keep * y, answers[0], alpha=weights[0])
    for w, m in zip(weights[1:], answers[1:], strict=False):
        y.add_(m, alpha=w)
    return y


def answering(problem: Problem) -> Callable[[Tensor, Query, Mapping[str, object]], Tensor]:
    """How the model is asked about a state: with the divergence in the last column where that is wanted."""
    if problem.probes is None:
        return problem.model.estimate
    return partial(_with_divergence, problem, problem.probes)


def _with_divergence(
    problem: Problem, probes: Tensor, state: Tensor, query: Query, cond: Mapping[str, object]
) -> Tensor:
    return joined(*drift_and_divergence(problem.model, problem.event(state), query, cond, probes, problem.chunk))
