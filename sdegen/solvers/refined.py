"""A log-density to an accuracy: Adams' method with more and more steps until its own estimate is small enough."""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass
from typing import cast

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._checks import AccuracyWarning
from sdegen.solvers.adams import DENSITY_GRID, DENSITY_ORDER, Adams
from sdegen.solvers.base import Problem, Result, Solver
from sdegen.solvers.densities import far, solve_density
from sdegen.solvers.divergence import standard_error
from sdegen.solvers.grids import Grid


@dataclass(frozen=True)
class AdamsUntil(Solver):
    """Log-densities by `Adams` in `first` steps, then twice as many, until each is as accurate as wanted.

    A sample leaves when its error estimate is at most `atol`, or the standard error of a trace that is itself
    estimated; an outlier has `rtol` more of the nats by which its latent exceeds twice what noise costs. So its number
    does not depend on its batch-mates. What is still worse after the last round keeps its number and its error, with an
    `AccuracyWarning` for each batch. A network with kinks costs accuracy here, not calls: those are less than
    2 max_steps and one for every round.

    Args:
        atol: the error wanted, in nats.
        rtol: the error wanted for outliers, as a part of what they cost.
        first: steps of the first round.
        max_steps: the most steps of a round.
        order: of `Adams`.
        grid: of `Adams`.

    Raises:
        TypeError: an option of another type.
        ValueError: an option out of its range; later, a solve without a log-density.

    Examples:
        >>> law = sdegen.Gaussian([1.0], 0.5)
        >>> model, x = law.model(sdegen.CondOT()), torch.tensor([[1.0]])
        >>> found = sdegen.log_likelihood(model, x, sdegen.AdamsUntil(1e-4))
        >>> f"{found.log_prob.item():.3f} {law.log_prob(x).item():.3f}"
        '-0.226 -0.226'
    """

    atol: float = 1e-4
    _: KW_ONLY
    rtol: float = 1e-5
    first: int = 80
    max_steps: int = 1280
    order: int = DENSITY_ORDER
    grid: Grid = DENSITY_GRID

    solves_ode = True

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.real("atol", self.atol, 0, strict=True)
        _checks.real("rtol", self.rtol, 0)
        _checks.whole("order", self.order, most=4)
        _checks.whole("first", self.first)
        _checks.whole("max_steps", self.max_steps, least=self.first)
        if not isinstance(self.grid, Grid):
            raise TypeError(
                f"grid must be a Grid, such as PowerGrid(2, 't'), and {self.grid!r} is one for one number of steps."
            )
        Adams(self.first, self.order, grid=self.grid)

    @property
    def differentiable(self) -> bool:
        """See `Solver.differentiable`: it chooses its steps."""
        return False

    @property
    def knows_its_error(self) -> bool:
        """See `Solver.knows_its_error`."""
        return True

    @property
    def takes_fresh_probes(self) -> bool:
        """See `Solver.takes_fresh_probes`: each round has fixed steps."""
        return True

    def run(self, problem: Problem) -> Result:
        """The log-densities of `problem`: used by `sdegen.log_likelihood`."""
        if problem.probes is None:
            raise ValueError(f"{self!r} measures the error of a log-density; to move samples take Adams or ODESolver.")
        part, steps = problem, self.first
        whole = solve_density(part, part.lay(self.grid, steps), self.order)
        whole.sample_calls = torch.full((len(problem.y),), whole.calls, device=problem.y.device)
        left = self._left(whole)
        while len(left) and 2 * steps <= self.max_steps:
            part, steps = _cut(problem, left), 2 * steps
            finer = solve_density(part, part.lay(self.grid, steps), self.order)
            _put(whole, left, finer, left if part is problem else slice(None))
            left = self._left(whole)
        if len(left):
            self._warn(whole, left)
        return whole

    def _left(self, result: Result) -> Tensor:
        """The samples whose error is not yet small enough: the one wait of a round."""
        error, divergence = cast(Tensor, result.divergence_error), cast(Tensor, result.divergence)
        excess = 0.5 * far(result.y, result.u[-1]) - result.y[0].numel()  # in nats, for an outlier
        enough = self.atol + self.rtol * excess.clamp(min=0)
        if divergence.shape[1] > 1:
            enough = torch.maximum(enough, standard_error(divergence).to(enough))
        return torch.nonzero(~(error <= enough)).flatten()  # NaN is not small enough

    def _warn(self, result: Result, left: Tensor) -> None:
        error = cast(Tensor, result.divergence_error)[left]
        warnings.warn(
            f"{self!r} reached its last round, and the error estimates of {len(left)} of {len(result.y)} log-densities "
            f"are above atol still, up to {float(error.max()):.3g} nats: the network may have kinks or round, or the "
            "data lie far from unit scale. Each number is there with its error; raise atol or max_steps.",
            AccuracyWarning,
            stacklevel=_checks.stacklevel_outside(),
        )


def _cut(problem: Problem, rows: Tensor) -> Problem:
    """The problem for the samples that are left, or all of it where a condition cannot be cut."""
    if len(rows) == len(problem.y):
        return problem
    try:
        return problem.cut(rows)
    except TypeError:
        return problem


def _put(whole: Result, rows: Tensor, result: Result, chosen: Tensor | slice) -> None:
    """Replace the numbers of `rows` by those of a finer round, `chosen` of it, and add up what it cost."""
    whole.y[rows] = result.y[chosen]
    for name in ("divergence", "divergence_error"):
        getattr(whole, name)[rows] = getattr(result, name)[chosen]
    cast(Tensor, whole.sample_calls)[rows] += result.calls
    whole.calls += result.calls
    whole.accepted += result.accepted
