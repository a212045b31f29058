"""Samples of which only a part is there: sequences and point clouds of different lengths, padded to one shape.

With m = 1 where a value is there and 0 where it pads, the state and the slope are m y and m D(m y): padding stays at 0,
enters no answer, and the Jacobian has its rows and columns empty, so that a divergence counts what is there alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.models.wrapped import Slope, Wrapped

MASK = "values that are there"
"""The condition, no argument of a network, that carries m with its samples through a solve."""


class Masked(Wrapped):
    """A model of the values that are there: the slope m D(m y), for the m that stands among the conditions."""

    def change(self, D: Slope, y: Tensor, u: Tensor, r: Tensor, t: Tensor, cond: Mapping[str, object]) -> Tensor:
        """M D(m y), by one network call, which is not told m."""
        m = cond[MASK]
        assert isinstance(m, Tensor)
        rest = _checks.Received((name, value) for name, value in cond.items() if name != MASK)
        rest.shared = getattr(cond, "shared", frozenset())
        return torch.where(m, D(torch.where(m, y, 0.0), cond=rest), 0.0)


def checked_mask(mask: object, x: Tensor) -> Tensor:
    """`mask` as bools of the shape of `x` (B, *event), after an error unless it broadcasts and leaves no sample empty.

    On an accelerator nobody looks whether a sample is empty.
    """
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a tensor of bools, True where a value is there, and it is {got}.")
    try:
        full = mask.to(x.device).expand_as(x)
    except RuntimeError as error:
        raise ValueError(
            f"mask must broadcast against x, {tuple(x.shape)}, and it has shape {tuple(mask.shape)}."
        ) from error
    if len(x) and x.device.type == "cpu":
        empty = int((~full.flatten(1).any(1)).sum())
        if empty:
            raise ValueError(f"mask leaves {empty} of {len(x)} samples without any value.")
    return full


def without_padding(y: Tensor, cond: Mapping[str, object]) -> Tensor:
    """The state with 0 in its padding, where the conditions hold a mask."""
    m = cond.get(MASK)
    return torch.where(m, y, 0.0) if isinstance(m, Tensor) else y


def count(mask: Tensor) -> Tensor:
    """How many values of every sample are there, (B,)."""
    return mask.flatten(1).sum(1)


def log_normal_at_zero(std: float) -> float:
    """log N(0; 0, std^2) of one value, what padding adds to the log-density of a normal prior, in nats."""
    return -math.log(std * math.sqrt(2 * math.pi))
