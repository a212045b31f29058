"""UniPC: a predictor and a corrector of x_hat in l, which uses the answer that the next step needs anyway.

With the letters of exponential.py, both integrate the polynomial in l exactly: UniP through the last p answers, UniC
through these and the answer at the end of the step. Through two answers, UniP of order 2 and UniC of order 1, the line
is taken at the middle of the step, mu_1 = mu_0 / 2: the published weight is half of B = 1 - e^(-h) = mu_0 (bh2). With
more answers the weights do not depend on B.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdegen import _checks
from sdegen.solvers.exponential import data_rows, midpoint_moments, ramped
from sdegen.solvers.grids import Layout, PowerGrid
from sdegen.solvers.multistep import Multistep
from sdegen.solvers.scheme import Row


@dataclass(frozen=True, eq=False)
class UniPC(Multistep):
    """The unified predictor-corrector (bh2, on x_hat) on the probability-flow ODE, one network call a step.

    Numbers as in diffusers: the last steps fall to order 1, and the last one of all is not corrected.

    Args:
        steps: number of steps, and of network calls; may be left out with a tensor `grid`.
        order: answers that the predictor uses, 1 to 3; the corrector uses one more.
        grid: where it steps, `PowerGrid(1.5)` by default, the best of nine on three exact targets from 5 to 50
            calls at order 2.

    Raises:
        TypeError: an option of another type.
        ValueError: an order that is none of these, options that do not fit together.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> x = sdegen.sample(model, (2, 1), sdegen.UniPC(20), x_T=torch.tensor([[-1.0], [1.0]]))
        >>> f"{(x[1] - x[0]).item() / 2:.2f}"  # the law's own deviation
        '0.50'

    References:
        UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models, Zhao et al., 2023,
            arXiv:2302.04867.
    """

    order: int = 2

    asks = "data"
    follows_ode = True
    own_grid = PowerGrid(1.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.whole("order", self.order, most=3)

    def predictor(self, knots: Layout) -> list[Row]:
        """See `Multistep.predictor`."""
        return data_rows(knots.u, ramped(len(knots.u) - 1, self.order), midpoint_moments)

    def corrector(self, knots: Layout) -> list[Row]:
        """See `Multistep.corrector`."""
        return data_rows(knots.u, [p + 1 for p in ramped(len(knots.u) - 1, self.order)[:-1]], midpoint_moments, ahead=1)
