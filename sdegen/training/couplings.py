"""Couplings: which draw from the source goes with which sample of the data, within one batch.

A coupling is a value, called as coupling(x, z, generator) with data x and source z, both (B, *event); it returns the
rows (i, j), both (B,) and int64, of the pairs (x[i], z[j]). One that has a parameter `cond` also receives the
conditions, a mapping with one row per sample of x in its tensors, so that pairs can be sought within a class. Only
`Independent` leaves a score behind; the others need a model on an `Interpolant`, and its ODE.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators, first_generator

Coupling = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Independent:
    """The pairs as they were drawn.

    Examples:
        >>> x, z = torch.randn(8, 2), torch.randn(8, 2)
        >>> i, j = sdegen.Independent()(x, z, None)
        >>> i.equal(torch.arange(8)), j.equal(torch.arange(8))
        (True, True)
    """

    def __call__(self, x: Tensor, z: Tensor, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """Row b with row b."""
        rows = torch.arange(len(x), device=x.device)
        return rows, rows


@dataclass(frozen=True)
class OptimalTransport:
    """The pairing of least total squared distance within the batch, exact, by the assignment problem.

    Solved by SciPy on the CPU, in O(B^3) at worst. It does not look at conditions: where there are labels, the pairs
    cross them, and a source that depends on the label is what the network learns; write a coupling with a parameter
    `cond` that pairs within each label.

    Args:
        replace: True draws B of the optimal pairs with replacement; False, the default, takes every one of them once.

    Raises:
        TypeError: if `replace` is not a bool, or a generator is none.
        ValueError: for generators of another number than the samples', or on another device.

    Examples:
        >>> x, z = torch.tensor([[0.0], [10.0]]), torch.tensor([[9.0], [1.0]])
        >>> i, j = sdegen.OptimalTransport()(x, z, None)
        >>> (x[i] - z[j]).abs().flatten().tolist()  # 0 goes with 1, and 10 with 9
        [1.0, 1.0]

    References:
        Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, Tong et al., 2024,
        arXiv:2302.00482.
        Multisample Flow Matching: Straightening Flows with Minibatch Couplings, Pooladian et al., 2023,
        arXiv:2304.14772.
    """

    replace: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.replace, bool):
            raise TypeError(f"replace must be True or False, and it is {self.replace!r}.")

    def __call__(self, x: Tensor, z: Tensor, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """Row b of x with its partner in z; with `replace`, B random ones of these pairs."""
        _checks.generators(generator, len(x), x.device)
        a, b = x.detach().flatten(1).double(), z.detach().flatten(1).double()
        cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        partner = torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=x.device)
        rows = torch.arange(len(x), device=x.device)
        if self.replace:
            rows = torch.randint(len(x), (len(x),), generator=first_generator(generator), device=x.device)
        return rows, partner[rows]


def pairs(
    coupling: Coupling, x: Tensor, z: Tensor, generator: Generators, cond: Mapping[str, object]
) -> tuple[Tensor, Tensor]:
    """What `coupling` returns, once it is known to be rows; on an accelerator their values are not looked at."""
    options = {"cond": _checks.network_arguments(cond)} if _takes_cond(coupling) else {}
    answer = coupling(x, z, generator, **options)
    rows = list(answer) if isinstance(answer, (tuple, list)) else []
    if len(rows) != 2 or not all(isinstance(r, Tensor) and _is_rows(r, len(x)) for r in rows):
        raise ValueError(
            f"A coupling must return two int64 tensors of {len(x)} rows, of the data and of the source; {coupling!r} "
            f"returned {answer!r}."
        )
    for r in rows:
        if r.device.type == "cpu" and not 0 <= int(r.min()) <= int(r.max()) < len(x):
            raise ValueError(
                f"The rows that a coupling returns must lie in 0 ... {len(x) - 1}, and those of {coupling!r} run from "
                f"{int(r.min())} to {int(r.max())}."
            )
    return rows[0], rows[1]


def _takes_cond(coupling: Coupling) -> bool:
    """Whether a parameter of `coupling` is called cond; what has no signature has none."""
    try:
        return "cond" in inspect.signature(coupling).parameters
    except (TypeError, ValueError):
        return False


def _is_rows(r: Tensor, n: int) -> bool:
    """Whether `r` has the shape and the dtype of n rows."""
    return r.shape == (n,) and r.dtype is torch.int64
