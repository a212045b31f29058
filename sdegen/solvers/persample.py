"""Adaptive steps for every sample alone: torchdiffeq's Runge-Kutta pairs, on rows that do not know of one another.

With dy/du = D(y, u), D = eps_hat - x_hat, a step from the clock u to u + h takes the slopes

    k_0 = D(y, u),    k_i = D(y + h sum over j < i of beta_ij k_j, u + alpha_i h),    i = 1 to S.

The last one is the slope at the new state y', which is thus k_0 of the next step. A sample's error in units of its
tolerance, where |.| is the root mean square over its event (and the log-density counts as an event of its own),

    R = | h sum over i of e_i k_i / (atol + rtol max(|y|, |y'|)) |,

decides whether the step is kept, R <= 1, and how long the next is, h min(10, max(0.9 R^(-1/p), f)), with p the order
of the pair and f = 1 where R < 1, else 1/5. A step that would pass the end is cut to meet it. Samples that have arrived
leave the batch. All of that is computed where the states are; the program waits for it once in an attempt.

References:
    A Family of Embedded Runge-Kutta Formulae, Dormand and Prince, 1980.
    Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, section II.4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchdiffeq._impl.odeint import SOLVERS

from sdegen._checks import NonFiniteError
from sdegen._shapes import event_size, like
from sdegen.models.base import Plan, Query
from sdegen.solvers.base import Problem, Result
from sdegen.solvers.divergence import step_in_nats

PAIRS = ("dopri5", "dopri8")
"""The methods whose last slope is that at the new state."""
KNOWS_ITS_ERROR = ("dopri8",)
"""The methods whose embedded error tells that of a log-density: of dopri5 it tells a tenth."""
SAFETY, LONGEST, SHORTEST = 0.9, 10.0, 0.2
"""Of the factor from one step to the next."""


class Pair(NamedTuple):
    """A Runge-Kutta pair, in the letters above, in the dtype and on the device of the states."""

    order: int
    alpha: Tensor
    beta: Tensor
    e: Tensor

    @classmethod
    def of(cls, method: str, y: Tensor) -> Pair:
        """That of torchdiffeq's `method`, for states like `y`; alpha, a share of the clock, stays in float64."""
        engine = SOLVERS[method]
        table = engine.tableau
        beta = torch.stack([nn.functional.pad(row, (0, len(table.beta) - len(row))) for row in table.beta])
        beta, e = (numbers.to(y.device, y.dtype) for numbers in (beta, table.c_error))
        return cls(engine.order, table.alpha.to(y.device), beta, e)


class _Rows(NamedTuple):
    """The samples on their way: numbers in the whole batch, clocks, next steps, states, slopes and errors so far."""

    which: Tensor
    u: Tensor
    h: Tensor
    state: Tensor
    slope: Tensor
    error: Tensor
    nats: Tensor


class _Trial(NamedTuple):
    """A step of every row: its length, where it leads, R, and its error in nats where a log-density is wanted."""

    h: Tensor
    u: Tensor
    state: Tensor
    slope: Tensor
    ratio: Tensor
    nats: Tensor


class SampleSteps:
    """One adaptive solve with steps for every sample: `start`, then `settle(attempt())` while there are any `left`.

    Args:
        problem: what `Solver.run` was handed.
        method: a name in `PAIRS`.
        rtol: relative tolerance.
        atol: absolute tolerance.
        max_steps: how many steps a sample may try.
        name: the solver's, for messages.

    Raises:
        TypeError: a condition that cannot be cut.
        ValueError: a trajectory is wanted, a tolerance is below the precision, or an end is singular for the model.
    """

    def __init__(self, problem: Problem, method: str, rtol: float, atol: float, max_steps: int, name: str):
        if problem.trajectory:
            raise ValueError(f"trajectory=True needs steps that the samples share, and {name} gives each its own.")
        check_tolerance(name, rtol + atol, problem.y.dtype)
        ends = torch.tensor([problem.u_from, problem.u_to], dtype=torch.float64)
        problem.model.plan(problem.y, ends, None, -torch.ones_like(ends), torch.ones_like(ends))  # a singular end?
        state, size, device = problem.start, len(problem.y), problem.y.device
        which, u = torch.arange(size, device=device), ends[0].to(device).expand(size)
        self._rows = _Rows(which, u, torch.zeros_like(u), state, torch.zeros_like(state), *state.new_zeros(2, size))
        self._end, (self._error, self._nats) = torch.zeros_like(state), state.new_zeros(2, size)
        self._sample_calls = torch.zeros_like(which)
        self._whole, self._problem = problem, problem.cut(which)
        self._watched = problem.probes is not None and method in KNOWS_ITS_ERROR
        self._pair, self._rtol, self._atol = Pair.of(method, state), rtol, atol
        self._max_steps, self._name, self._tried = max_steps, name, 0
        self._calls = self._accepted = self._rejected = 0
        self.left = size

    def start(self) -> None:
        """The first slopes and the lengths of the first steps, after Hairer: two network calls."""
        problem, rows = self._problem, self._rows
        slope = self._ask(rows.state, self._plan(rows.u).rows(slice(None), problem.y))
        if not bool(torch.isfinite(slope).all()):
            raise NonFiniteError(
                f"The network's output is NaN or infinite at the start of the solve, u = {problem.u_from:.6g}; "
                f"{self._name} cannot choose a step."
            )
        scale = self._atol + self._rtol * rows.state.abs()
        d0, d1 = self._norm(rows.state / scale), self._norm(slope / scale)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
        towards = 1.0 if problem.u_to > problem.u_from else -1.0
        probed = self._plan(rows.u + towards * h0).rows(slice(None), problem.y)
        ahead = self._ask(torch.addcmul(rows.state, like(towards * h0, slope), slope), probed)
        d2 = self._norm((ahead - slope) / scale) / h0
        still = (d1 <= 1e-15) & (d2 <= 1e-15)
        h1 = torch.where(still, (1e-3 * h0).clamp(min=1e-6), (0.01 / torch.maximum(d1, d2)) ** (1 / self._pair.order))
        self._rows = rows._replace(slope=slope, h=towards * torch.minimum(100 * h0, h1).double())
        self._look(rows.which[:0])

    def attempt(self) -> _Trial:
        """One step of every row, not yet kept."""
        if self._tried >= self._max_steps:
            raise ValueError(
                f"{self._name} tried max_steps = {self._max_steps} steps, and {self.left} of {len(self._end)} samples "
                f"have not arrived: one stands at u = {float(self._rows.u[0]):.6g}; loosen the tolerance, use float64, "
                "or raise max_steps."
            )
        self._tried += 1
        problem, rows, pair = self._problem, self._rows, self._pair
        left = problem.u_to - rows.u
        last = rows.h.abs() >= left.abs()
        h = torch.where(last, left, rows.h)
        u = torch.where(last, problem.u_to, rows.u + h)
        alpha = pair.alpha[:, None]
        plan, n = self._plan(torch.where(alpha == 1, u, rows.u + alpha * h).flatten()), len(h)
        step = like(h.to(rows.state.dtype), rows.state)
        k = rows.slope.new_empty(len(alpha) + 1, *rows.slope.shape)
        k[0], state = rows.slope, rows.state
        for i, beta in enumerate(pair.beta):
            state = torch.addcmul(rows.state, step, torch.tensordot(beta[: i + 1], k[: i + 1], 1))
            k[i + 1] = self._ask(state, plan.rows(slice(i * n, (i + 1) * n), problem.y))
        tolerance = self._atol + self._rtol * torch.maximum(rows.state.abs(), state.abs())
        error, d = step * torch.tensordot(pair.e, k, 1), event_size(problem.y.shape)
        nats = state.new_zeros(n)
        if self._watched:
            nats = step_in_nats(error, state, k[-1], u.to(state), d) ** (1 + 1 / pair.order)
        return _Trial(h, u, state, k[-1], self._norm(error / tolerance), nats)

    def settle(self, trial: _Trial) -> None:
        """Keep the steps that are good enough, choose the next, and let those leave that have arrived."""
        rows, ratio = self._rows, trial.ratio.double()
        kept = ratio <= 1
        factor = torch.maximum(
            SAFETY / ratio ** (1 / self._pair.order), torch.where(ratio < 1, torch.ones_like(ratio), SHORTEST)
        )
        where = like(kept, rows.state)
        self._rows = _Rows(
            rows.which,
            torch.where(kept, trial.u, rows.u),
            trial.h * factor.clamp(max=LONGEST),
            torch.where(where, trial.state, rows.state),
            torch.where(where, trial.slope, rows.slope),
            torch.where(kept, rows.error + trial.ratio, rows.error),
            torch.where(kept, rows.nats + trial.nats, rows.nats),
        )
        self._look(kept)

    def result(self) -> Result:
        """What the solve came to."""
        whole, cost = self._whole, (self._calls, self._accepted, self._rejected)
        y, divergence, ends = whole.event(self._end), whole.density(self._end), [whole.u_from, whole.u_to]
        result = Result(y, ends, [], None, divergence, *cost, error=self._error, sample_calls=self._sample_calls)
        result.divergence_error = self._nats if self._watched else None
        return result

    def _look(self, kept: Tensor) -> None:
        """Read how many samples are left and whether all is well: the one wait of an attempt."""
        rows = self._rows
        moving = rows.u != self._problem.u_to
        # a state that is not finite has no finite slope, so that no step to it was kept: the next step tells all
        stuck = moving & ~(torch.isfinite(rows.h) & (rows.u + rows.h != rows.u))
        self.left, wrong, accepted = torch.stack([moving.sum(), stuck.sum(), kept.sum()]).tolist()
        self._accepted += accepted
        self._rejected += len(kept) - accepted
        if wrong:
            self._refuse(stuck)
        if self.left < len(rows.which):
            self._let_go(moving)

    def _let_go(self, moving: Tensor) -> None:
        """Note where all stand, and go on with those that are still `moving`."""
        rows = self._rows
        for table, values in ((self._end, rows.state), (self._error, rows.error), (self._nats, rows.nats)):
            table[rows.which] = values
        self._sample_calls.index_fill_(0, rows.which, self._calls)
        ahead = torch.argsort(moving.int(), descending=True, stable=True)[: self.left]
        self._rows = _Rows(*(column[ahead] for column in rows))
        # from the whole: a condition that belongs to all is never taken for one row per sample of those left
        self._problem = self._whole.cut(self._rows.which)

    def _refuse(self, stuck: Tensor) -> None:
        """Say what keeps a sample from arriving."""
        rows = self._rows
        u, h = (float(column[stuck][0]) for column in (rows.u, rows.h))
        raise NonFiniteError(
            f"{self._name} cut a sample's step to {abs(h):.3g} at u = {u:.6g} after {self._tried} tries: there or at a "
            "stage of that step the network's output is not finite or not smooth, or the tolerance is too tight for "
            "the precision."
        )

    def _plan(self, clocks: Tensor) -> Plan:
        """The question for the slope at `clocks` (n,), moved into the interval."""
        problem = self._problem
        u = clocks.clamp(*sorted((problem.u_from, problem.u_to)))
        return problem.model.plan(problem.y, u, None, -torch.ones_like(u), torch.ones_like(u))

    def _ask(self, state: Tensor, query: Query) -> Tensor:
        """The slope of every row's state: one network call."""
        problem = self._problem
        self._calls += 1
        if problem.probes is None:
            return problem.model.estimate(state, query, problem.cond)
        return problem.with_divergence(problem.event(state), query, self._calls)

    def _norm(self, scaled: Tensor) -> Tensor:
        return sample_norm(scaled, event_size(self._whole.y.shape))


def sample_norm(scaled: Tensor, size: int) -> Tensor:
    """max(RMS of the event, |log-density part|) of errors over their tolerance, (B, *event) or (B, size + R): (B,)."""
    scaled = scaled.flatten(1)
    rms = scaled[:, :size].square().mean(1).sqrt()
    return torch.maximum(rms, scaled[:, size:].mean(1).abs()) if scaled.shape[1] > size else rms


def check_tolerance(name: str, tolerance: float, dtype: torch.dtype) -> None:
    """A ValueError where rtol + atol is below what states of `dtype` can hold."""
    if tolerance < 4 * torch.finfo(dtype).eps:
        raise ValueError(f"{name} asks for more than {dtype} states can hold; loosen rtol and atol.")
