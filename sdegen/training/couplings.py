"""Couplings: which draw from the source goes with which sample of the data, within one batch.

A coupling is a value, called as coupling(x, z, generator) with data x and source z, both (B, *event); it returns the
rows (i, j), both (B,), of the pairs (x[i], z[j]). Only `Independent` leaves a score behind; the others need a model on
an `Interpolant`, and its ODE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sdegen._shapes import Generators

Coupling = Callable[[Tensor, Tensor, Generators], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Independent:
    """The pairs as they were drawn."""

    def __call__(self, x: Tensor, z: Tensor, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """Row b with row b."""
        rows = torch.arange(len(x), device=x.device)
        return rows, rows


@dataclass(frozen=True)
class OptimalTransport:
    """The pairing of least total squared distance within the batch, exact, by the assignment problem.

    replace: draw B of the optimal pairs with replacement instead of taking every one of them once.

    Solved by SciPy on the CPU, in O(B^3) at worst. Improving and Generalizing Flow-Based Generative Models with
    Minibatch Optimal Transport, Tong et al., 2024, arXiv:2302.00482; Pooladian et al., 2023, arXiv:2304.14772.
    """

    replace: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.replace, bool):
            raise TypeError(f"replace must be True or False, and it is {self.replace!r}.")

    def __call__(self, x: Tensor, z: Tensor, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """Row b of x with its partner in z; with `replace`, B random ones of these pairs."""
        a, b = x.detach().flatten(1).double(), z.detach().flatten(1).double()
        cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        partner = torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=x.device)
        rows = torch.arange(len(x), device=x.device)
        if self.replace:
            one = generator[0] if isinstance(generator, (list, tuple)) else generator
            rows = torch.randint(len(x), (len(x),), generator=one, device=x.device)
        return rows, partner[rows]


def pairs(coupling: Coupling, x: Tensor, z: Tensor, generator: Generators) -> tuple[Tensor, Tensor]:
    """What `coupling` returns, once it is known to be rows."""
    answer = coupling(x, z, generator)
    rows = list(answer) if isinstance(answer, (tuple, list)) else []
    if len(rows) != 2 or not all(isinstance(r, Tensor) and _is_rows(r, len(x)) for r in rows):
        raise ValueError(
            f"A coupling must return two int64 tensors of {len(x)} rows, of the data and of the source; {coupling!r} "
            f"returned {answer!r}."
        )
    return rows[0], rows[1]


def _is_rows(r: Tensor, n: int) -> bool:
    return r.shape == (n,) and r.dtype is torch.int64
