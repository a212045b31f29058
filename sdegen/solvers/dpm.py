"""DPM-Solver++ of several steps, for the ODE and for the SDE: x_hat under an exponential integral in l.

With the letters of exponential.py, D_1 = (h/h_1)(m_0 - m_1), h_1 the length of the step before, and D_2 the second
divided difference of m over l times h^2,

    order 1    X = mu_0 m_0                                      DDIM at eta = 0, the posterior chain at eta = 1
    order 2    X = mu_0 (m_0 + D_1 / 2)                          x_hat at the middle of the step
    order 3    X = mu_0 m_0 + mu_1 (D_1 + (h_1/h) D_2) + (mu_2/2) D_2

The published order 3 weighs the second difference by half of its integral mu_2, and every implementation follows it:
it converges with order 2. `UniPC` of order 3 takes the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sdegen import _checks
from sdegen.solvers.exponential import FEW, data_rows, midpoint_moments, ramped
from sdegen.solvers.grids import Grid, Layout, PowerGrid
from sdegen.solvers.multistep import Multistep
from sdegen.solvers.scheme import Row


@dataclass(frozen=True, eq=False)
class DPMSolver(Multistep):
    """DPM-Solver++ (multistep, midpoint), one network call a step; with eta > 0 SDE-DPM-Solver++ 2M.

    Numbers as in diffusers: the last two of fewer than 15 steps fall to orders 2 and 1, and so does the step to clean
    data, where the log-SNR is infinite.

    Args:
        steps: number of steps, and of network calls; may be left out with a tensor `grid`.
        order: answers that a step uses, 1 to 3; 3 for the ODE alone. On the ODE both 2 and 3 converge with order 2.
        eta: the noise level of w^2 = eta^2 2u/(1-u), not negative: 0 is the ODE, 1 Anderson's reverse SDE.
        grid: where it steps, `PowerGrid(1.5)` by default, within 2 % of the best of nine at order 2, on three exact
            targets from 5 to 50 calls; with eta > 0 `PowerGrid(4)`, the best of four powers at 50 calls.

    Raises:
        TypeError: an option of another type.
        ValueError: an order that is none of these, a negative eta, options that do not fit together.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> x = sdegen.sample(model, (2, 1), sdegen.DPMSolver(50), x_T=torch.tensor([[-1.0], [1.0]]))
        >>> f"{(x[1] - x[0]).item() / 2:.2f}"  # the law's own deviation
        '0.50'

    References:
        DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, Lu et al., 2022,
            arXiv:2211.01095.
    """

    order: int = 2
    eta: float = field(default=0.0, kw_only=True)

    asks = "data"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.whole("order", self.order, most=3)
        _checks.real("eta", self.eta, 0)
        if self.eta and self.order == 3:
            raise ValueError(f"DPMSolver with eta = {self.eta} is of order 1 or 2, not 3: the ODE alone has it.")

    @property
    def follows_ode(self) -> bool:
        """See `Solver.follows_ode`."""
        return self.eta == 0

    @property
    def own_grid(self) -> Grid:
        """See `Scheme.own_grid`."""
        return PowerGrid(4) if self.eta else PowerGrid(1.5)

    def predictor(self, knots: Layout) -> list[Row]:
        """See `Multistep.predictor`."""
        return data_rows(knots.u, ramped(len(knots.u) - 1, self.order, FEW), _moments, self.eta)


def _moments(x: float, count: int) -> list[float]:
    """The middle of the step through two answers; half of the bend through three."""
    mu = midpoint_moments(x, count)
    return [*mu[:2], mu[2] / 2] if count == 3 else mu
