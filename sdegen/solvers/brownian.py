"""Brownian motion for torchsde: fresh increments on a fixed grid, a dyadic tree where steps adapt.

On a fixed grid time is the step index, every step has length 1, and all that a method asks for is W_k ~ N(0, I) and,
for the Runge-Kutta scheme, the space-time area U_k, the integral of W over the step: U = W/2 + z'/sqrt(12). Both come
from torch generators, so `torch.manual_seed` and `generator=` reproduce them; torchsde's own tree draws from NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchsde import BrownianInterval

from sdegen._shapes import normal
from sdegen.solvers.base import Problem


def noise_of_step(problem: Problem, steps: int, pair: bool = False) -> Callable[[int], Tensor]:
    """k to the standard normals of step k, shape (B, *event), or (2, B, *event) if `pair`: given or drawn."""
    y, noise = problem.y, problem.noise
    shape = (2, *y.shape) if pair else tuple(y.shape)
    if noise is None:

        def draw(k: int) -> Tensor:
            if not pair:
                return normal(shape, problem.generator, y.dtype, y.device)
            return normal((len(y), 2, *y.shape[1:]), problem.generator, y.dtype, y.device).transpose(0, 1)

        return draw
    if isinstance(noise, Tensor):
        if tuple(noise.shape) != (steps, *shape):
            raise ValueError(f"noise must have shape {(steps, *shape)} for {steps} steps, not {tuple(noise.shape)}.")
        given = noise.to(y)
        return lambda k: given[k]

    def ask(k: int) -> Tensor:
        z = noise(k)
        if not isinstance(z, Tensor) or tuple(z.shape) != shape:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"noise(k) must return a tensor of shape {shape}, and noise({k}) gave {got}.")
        return z.to(y)

    return ask


class _Brownian:
    """torchsde's contract check draws once from the global generator: the first query puts that generator back."""

    def __init__(self, device: torch.device):
        cuda = device.type == "cuda"
        self._before = (torch.get_rng_state(), torch.cuda.get_rng_state(device) if cuda else None, device)

    def _restore(self) -> None:
        cpu, cuda, device = self._before
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        self._before = None


class Increments(_Brownian):
    """Duck-typed Brownian motion on the step index: each step is queried once; `step` is the one under way."""

    def __init__(self, problem: Problem, steps: int, levy_area: str):
        super().__init__(problem.y.device)
        self.shape = (len(problem.y), problem.y[:1].numel())
        self.levy_area_approximation = levy_area
        self.step = 0
        self._pair = levy_area == "space-time"
        self._noise = noise_of_step(problem, steps, self._pair)

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Tensor | tuple:
        """W over [ta, tb], with U or A (None: it multiplies zero for additive noise) where a method asks for them."""
        if self._before is not None:
            self._restore()
        self.step = int(ta)
        z = self._noise(self.step)
        if self._pair:
            W, area = z.reshape(2, *self.shape)
            return (W, 0.5 * W + area / math.sqrt(12)) if return_U else W
        W = z if z.ndim == 2 else z.flatten(1)
        return (W, None) if return_A else W


class AdaptiveBrownian(_Brownian):
    """torchsde's dyadic tree on [0, 1], seeded from torch; it also counts the steps tried and stops a hopeless solve.

    An adaptive step is three queries: the whole step, then its halves. Fresh draws would never agree with each other.
    """

    smallest = 1e-6

    def __init__(self, problem: Problem, levy_area: str, max_steps: int = 10_000):
        y = problem.y
        self.shape = (len(y), y[:1].numel())
        self.levy_area_approximation = levy_area
        coin = problem.generator
        entropy = torch.randint(2**31 - 1, (), generator=coin, device=coin.device if coin is not None else None)
        self._tree = BrownianInterval(
            0.0,
            1.0,
            size=self.shape,
            dtype=y.dtype,
            device=y.device,
            entropy=int(entropy),
            tol=1e-9,
            halfway_tree=True,
            levy_area_approximation="space-time" if levy_area == "space-time" else "none",
        )
        self.starts: list[float] = []
        self._max_steps = max_steps
        self._queries = 0
        super().__init__(y.device)

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Tensor | tuple:
        """As the tree, without the Levy area A."""
        if self._before is not None:
            self._restore()
        if self._queries % 3 == 0:
            self._begin(float(ta), float(tb))
        self._queries += 1
        if return_U:
            return self._tree(ta, tb, return_U=True)
        W = self._tree(ta, tb)
        return (W, None) if return_A else W

    def _begin(self, start: float, end: float) -> None:
        if end < 1 and not end - start > self.smallest:
            raise ValueError(
                f"The adaptive step shrank to {end - start:.3g} of the interval after {len(self.starts)} steps: the "
                "tolerance cannot be met; loosen rtol and atol, or take fixed steps."
            )
        if len(self.starts) >= self._max_steps:
            raise ValueError(f"The adaptive solve took more than {self._max_steps} steps; loosen rtol and atol.")
        self.starts.append(start)
