"""Adams' methods in straight coordinates: the most accurate solvers for few network calls.

    Adams              dy/du = eps_hat - x_hat =: D        y_v = y_u + integral from u to v of D

    StochasticAdams    in l = log((1-u)/u), half the log-SNR, with h = l_v - l_u and the noise level eta:
                       y_v = (v/u) e^(-eta^2 h) y_u + v sqrt(1 - e^(-2 eta^2 h)) z
                             + v (1+eta^2) integral over l from l_u to l_v of e^(l - eta^2 (l_v - l)) x_hat

Under the integral stands the polynomial through the last answers: of D in the grid's clock s(u), of x_hat in u itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.solvers.base import Problem, Result
from sdegen.solvers.densities import solve_density
from sdegen.solvers.grids import Layout, PowerGrid, StretchedGrid, quadrature, steps_on
from sdegen.solvers.multistep import Multistep
from sdegen.solvers.polynomials import exact_rows
from sdegen.solvers.scheme import Row

DENSITY_GRID, DENSITY_ORDER = PowerGrid(2, "t"), 4
"""Where `Adams` steps for a log-density, and its order there, by default: a network is smooth in its own clock."""


@dataclass(frozen=True, eq=False)
class Adams(Multistep):
    """Adams-Bashforth-Moulton on the probability-flow ODE, one network call a step: the first choice for few calls.

    Each step predicts with the polynomial through the last `order` slopes, and is corrected with the polynomial of one
    degree more as soon as the next slope is known. The polynomials are in the grid's own clock s(u), in which the slope
    bends evenly; their integrals over u are exact, to rounding where that clock is a power of u and to 1e-4 of a step
    where a network's gain stretches it. The first steps use the answers there are. It goes both ways; order 1 converges
    with order 2, the others with order 3, which the first steps set, and smaller constants.

    For a log-density it makes steps + 1 calls, corrects the last step too, takes the divergence at every second knot
    and estimates its own error (densities.py); the defaults there are order 4 and PowerGrid(2, "t"), since a network is
    smooth in its own clock. Take 80 steps and more.

    Args:
        steps: number of steps, and of network calls; may be left out with a tensor `grid`.
        order: answers that a step uses, 1 to 4; by default 1, 2, 3, 4 from 1, 5, 15, 30 steps. For guidance by a scale
            of 4 and more in 10 steps, 2.
        grid: where it steps, and its clock s(u); `StretchedGrid()` by default, whose clock a tensor of u has too.

    Raises:
        TypeError: an option of another type.
        ValueError: an order that is none of these; options that do not fit together; later, a grid without a clock.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> x = sdegen.sample(model, (3, 1), sdegen.Adams(20), x_T=torch.tensor([[-1.0], [0.0], [1.0]]))
        >>> f"{(x[2] - x[0]).item() / 2:.3f}"  # x is linear in x_T, with the law's own deviation
        '0.500'

    References:
        Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, section III.1.
    """

    order: int | None = None

    solves_ode = True
    own_grid = StretchedGrid()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order is not None:
            _checks.whole("order", self.order, most=4)

    def predictor(self, knots: Layout) -> list[Row]:
        """Adams-Bashforth: the answers at a step's first knot and before."""
        return exact_rows(self._timed(knots), self._order(knots), len(knots.u) - 1)

    def corrector(self, knots: Layout) -> list[Row]:
        """Adams-Moulton: the answer at its second knot, too."""
        return exact_rows(self._timed(knots), self._order(knots) + 1, len(knots.u) - 2, ahead=1)

    def _order(self, knots: Layout) -> int:
        """The order that was asked for, or the one that serves so many steps best."""
        return self.order or sum(len(knots.u) - 1 >= least for least in (1, 5, 15, 30))

    def _timed(self, knots: Layout) -> Layout:
        """The layout, after a ValueError if it has no clock."""
        if knots.clock is None:
            raise ValueError(f"Adams needs a grid whose clock s(u) is finite at both ends, unlike {self.grid!r}.")
        return knots

    @property
    def knows_its_error(self) -> bool:
        """See `Solver.knows_its_error`."""
        return True

    def run(self, problem: Problem) -> Result:
        """Integrate `problem`; a log-density by `solve_density`, on a grid and with an order that serve it best."""
        if problem.probes is None:
            return super().run(problem)
        steps, grid = steps_on(self.grid, self.steps) or 0, DENSITY_GRID if self.grid is None else self.grid
        return solve_density(problem, self._timed(problem.lay(grid, steps)), self.order or DENSITY_ORDER)


@dataclass(frozen=True, eq=False)
class StochasticAdams(Multistep):
    """Adams-Bashforth on the reverse SDE, one network call a step: the first choice for few stochastic calls.

    The linear part of the SDE and its noise are exact, and x_hat follows the line in u through the last two answers. It
    solves the SDE with w^2 = eta^2 2u/(1-u), Anderson's at eta = 1, all the way from pure noise; above u = 0.9, where
    `SDESolver` keeps 1-u at 0.1, the two differ in how much noise they add, not in their marginals.

    Args:
        steps: number of steps, and of network calls; may be left out with a tensor `grid`.
        order: 2, or 1 for x_hat constant over the step: the posterior chain at eta = 1, DDIM at eta = 0.
        eta: the noise level, not negative; 0 is the ODE.
        grid: where it steps, `PowerGrid(4)` by default.

    Raises:
        TypeError: an option of another type.
        ValueError: an order that is neither, a negative eta, options that do not fit together.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> x = sdegen.sample(model, (20_000, 1), sdegen.StochasticAdams(20))
        >>> f"{x.mean():.1f} {x.std():.1f}"
        '1.0 0.5'

    References:
        SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models, Xue et al., 2023, arXiv:2305.14267.
        DPM-Solver++, Lu et al., 2022, arXiv:2211.01095.
    """

    order: int = field(default=2, kw_only=True)
    eta: float = field(default=1.0, kw_only=True)

    asks = "data"
    own_grid = PowerGrid(4)

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.whole("order", self.order, most=2)
        _checks.real("eta", self.eta, 0)

    @property
    def follows_ode(self) -> bool:
        """See `Solver.follows_ode`."""
        return self.eta == 0

    def predictor(self, knots: Layout) -> list[Row]:
        """The exact integrals of 1 and of u under e^(l - eta^2 (l_v - l)), finite at u = 1 and at v = 0."""
        u, v, level = knots.u[:-1], knots.u[1:], self.eta**2
        log_q = torch.log1p((v - u) / (u * (1 - v)))  # q = e^-h = v (1-u) / (u (1-v)), 0 at u = 1 and at v = 0
        keep, std = v / u, torch.zeros_like(u)
        if level:
            keep, std = keep * torch.exp(level * log_q), v * torch.sqrt(-torch.expm1(2 * level * log_q))
        whole = (1 - v) - keep * (1 - u)
        bend = torch.zeros_like(u)
        if self.order == 2:
            bend[1:] = (_mean_clock(u, v, level)[1:] - u[1:] * whole[1:]) / torch.diff(u)
        rows = torch.stack([keep, whole + bend, -bend, std], 1).tolist()
        return [Row(keep, (w, past) if k else (w,), std) for k, (keep, w, past, std) in enumerate(rows)]


def _mean_clock(u: Tensor, v: Tensor, level: float) -> Tensor:
    """v (1+eta^2) times the integral over l from l_u to l_v of e^(l - eta^2 (l_v - l)) u(l), uniform in log u."""
    x, weights = quadrature()
    v = v[:, None].clamp(min=1e-300)
    length = torch.log(u[:, None] / v)
    between = v * torch.exp(length * x)
    inside = ((1 - between) * v / ((1 - v) * between)) ** level
    return (1 + level) * (v * length * weights * inside).sum(1)
