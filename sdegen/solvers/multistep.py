"""Multistep schemes: a row of numbers for every step, with the answers at its start and at the knots before.

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

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from sdegen.solvers.grids import Layout
from sdegen.solvers.scheme import Move, Row, Scheme, check_row


@dataclass(frozen=True, eq=False)
class Multistep(Scheme):
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
        from_pure_noise: whether it can start at u = 1, where the log-SNR is infinite.

    Raises:
        TypeError: an option of another type.
        ValueError: options that are wrong or do not fit together.

    Examples:
        >>> isinstance(sdegen.Adams(20), sdegen.Multistep), isinstance(sdegen.Heun(20), sdegen.Multistep)
        (True, False)
    """

    @abstractmethod
    def predictor(self, knots: Layout) -> Sequence[Row]:
        """A row for every step of the grid, from the answers at its first knot and at those before."""

    def corrector(self, knots: Layout) -> Sequence[Row]:
        """A row for every step but the last, with the answer at its second knot first; none without a corrector."""
        return []

    def moves(self, knots: Layout) -> list[Move]:
        """See `Scheme.moves`."""
        steps, name = len(knots.u) - 1, type(self).__name__
        predicted, corrected = self.predictor(knots), self.corrector(knots)
        checked_rows(f"{name}.predictor", predicted, (steps,), ahead=0)
        checked_rows(f"{name}.corrector", corrected, (0, steps - 1), ahead=1)
        rows = joined_rows(predicted, corrected)
        asked = knots.u[:-1].tolist()
        return [Move([u], [row], kept) for u, row, kept in zip(asked, rows, answers_kept(rows), strict=True)]


def checked_rows(name: str, rows: object, numbers: Sequence[int], ahead: int) -> None:
    """A ValueError unless there are as many rows as one of `numbers` says, each for the answers that are known."""
    if not isinstance(rows, Sequence) or len(rows) not in numbers or not all(isinstance(row, Row) for row in rows):
        got = f"{len(rows)} of {[type(row).__name__ for row in rows[:3]]}" if isinstance(rows, Sequence) else repr(rows)
        raise ValueError(f"{name} must give {' or '.join(map(str, numbers))} rows, each a Row, and it gave {got}.")
    for k, row in enumerate(rows):
        check_row(f"Row {k} of {name}", row, most=k + 1 + ahead)


def joined_rows(predicted: Sequence[Row], corrected: Sequence[Row]) -> list[Row]:
    """The rows of a predictor, each after the correction of the step before it."""
    rows = [predicted[0]]
    for k, (before, after) in enumerate(pairwise(predicted)):
        if not corrected:
            rows.append(after)
            continue
        keep, weights, _ = corrected[k]
        if not math.isclose(keep, before.keep, rel_tol=1e-12):
            raise ValueError(f"Predictor and corrector of step {k} must keep alike: {before.keep} and {keep}.")
        change = [c - w for c, w in zip_longest(weights, (0.0, *before.weights), fillvalue=0.0)]
        pairs = zip_longest(change, after.weights, fillvalue=0.0)
        rows.append(Row(after.keep, [after.keep * c + w for c, w in pairs], after.std))
    return rows


def answers_kept(rows: Sequence[Row]) -> list[int]:
    """How many answers are kept after every step, so that each later row finds those that it weighs."""
    kept = [0]
    for row in reversed(rows[1:]):
        kept.append(max(len(row.weights), kept[-1]) - 1 if len(row.weights) or kept[-1] else 0)
    return kept[::-1]
