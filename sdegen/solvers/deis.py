"""DEIS, tAB: Adams-Bashforth on eps_hat over rho = sigma/alpha, with polynomials in log rho.

    d(y/(1-u)) = eps_hat drho,  rho = u/(1-u) = e^(-l)      y_v = (1-v)/(1-u) y_u + (1-v) integral of eps_hat drho

which is the "noise" form of exponential.py: a polynomial in log rho is one in l.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdegen import _checks
from sdegen.solvers.exponential import FEW, noise_rows, ramped
from sdegen.solvers.grids import Layout, PowerGrid
from sdegen.solvers.multistep import Multistep
from sdegen.solvers.scheme import Row


@dataclass(frozen=True, eq=False)
class DEIS(Multistep):
    """The diffusion exponential integrator sampler (tAB, log rho) on the probability-flow ODE, one network call a step.

    Numbers as in diffusers: the last two of fewer than 15 steps fall to orders 2 and 1; so does the step to clean data,
    which diffusers does not take. It extrapolates eps_hat, of which nothing is known at u = 1: start inside the path
    where it reaches pure noise.

    Args:
        steps: number of steps, and of network calls; may be left out with a tensor `grid`.
        order: answers that a step uses, 1 to 3.
        grid: where it steps, `PowerGrid(1.5)` by default; on VP `PowerGrid(2, "t")` is as good.

    Raises:
        TypeError: an option of another type.
        ValueError: an order that is none of these, options that do not fit together; later, a start at u = 1.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> solution = sdegen.solve(model, torch.randn(4, 1), sdegen.DEIS(12))
        >>> solution.calls, solution.x.shape
        (12, torch.Size([4, 1]))

    References:
        Fast Sampling of Diffusion Models with Exponential Integrator, Zhang and Chen, 2022, arXiv:2204.13902.
    """

    order: int = 3

    asks = "noise"
    follows_ode = True
    own_grid = PowerGrid(1.5)
    from_pure_noise = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.whole("order", self.order, most=3)

    def predictor(self, knots: Layout) -> list[Row]:
        """See `Multistep.predictor`."""
        return noise_rows(knots.u, ramped(len(knots.u) - 1, self.order, FEW))
