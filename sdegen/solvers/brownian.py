"""Brownian motion for torchsde: fresh increments on a fixed grid, a dyadic tree where steps adapt.

On a fixed grid time is the step index, every step has length 1, and all that a method asks for is W_k ~ N(0, I) and,
for the Runge-Kutta scheme, the space-time area U_k, the integral of W over the step: U = W/2 + z'/sqrt(12). Both come
from torch generators, so `torch.manual_seed` and `generator=` reproduce them; torchsde's own tree draws from NumPy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchsde import BrownianInterval

from sdegen._shapes import first_generator
from sdegen.solvers.base import Problem
from sdegen.solvers.noise import normals_of_step

Increment = Tensor | tuple[Tensor, Tensor | None]
"""W, or W with the area that a method asks for."""


class Increments:
    """Duck-typed Brownian motion on the step index: each step is queried once; `step` is the one under way.

    Only torchsde's contract check reads `shape`: for additive noise it draws normals of that shape from the global
    generator. That generator is not ours to advance, so `shape` is (B, 0), and nothing is drawn.
    """

    def __init__(self, problem: Problem, steps: int, levy_area: str, diagonal: bool = False):
        self.shape = (len(problem.y), problem.y[:1].numel() if diagonal else 0)
        self.levy_area_approximation = levy_area
        self.step = 0
        self._flat = (len(problem.y), problem.y[:1].numel())
        self._pair = levy_area == "space-time"
        self._normals = normals_of_step(problem.y, problem.noise, problem.generator, steps, pair=self._pair)

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Increment:
        """W over [ta, tb], with U or A (None: it multiplies zero for additive noise) where a method asks for them."""
        self.step = int(ta)
        z = self._normals(self.step)
        if self._pair:
            W, area = z.reshape(2, *self._flat)
            return (W, 0.5 * W + area / math.sqrt(12)) if return_U else W
        W = z if z.ndim == 2 else z.flatten(1)
        return (W, None) if return_A else W


class AdaptiveBrownian:
    """torchsde's dyadic tree on [0, 1], seeded from torch; it also counts the steps tried and stops a hopeless solve.

    An adaptive step is three queries: the whole step, then its halves. Fresh draws would never agree with each other.
    """

    smallest = 1e-6

    def __init__(self, problem: Problem, levy_area: str, diagonal: bool = False, max_steps: int = 10_000):
        y = problem.y
        self.shape = (len(y), y[:1].numel() if diagonal else 0)  # see Increments
        self.levy_area_approximation = levy_area
        coin = first_generator(problem.generator)
        entropy = torch.randint(2**31 - 1, (), generator=coin, device=coin.device if coin is not None else None)
        self._tree = BrownianInterval(
            0.0,
            1.0,
            size=(len(y), y[:1].numel()),
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

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Increment:
        """As the tree, without the Levy area A."""
        if self._queries % 3 == 0:
            self._begin(float(ta), float(tb))
        self._queries += 1
        if return_U:
            pair: tuple[Tensor, Tensor] = self._tree(ta, tb, return_U=True)
            return pair
        W: Tensor = self._tree(ta, tb)
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
