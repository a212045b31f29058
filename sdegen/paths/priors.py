"""The laws at the noise end of a path: what `sample` draws from and `log_prob` ends in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sdegen._shapes import Generators, event_size, normal, sum_event


@dataclass(frozen=True)
class Normal:
    """N(0, std^2 I) on events of any shape: the prior of a path.

    Attributes:
        std: the standard deviation of every value.
    """

    std: float

    def sample(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws from N(0, std^2 I).

        Args:
            shape: (B, *event).
            generator: a torch.Generator, or one per sample.
            dtype: of the draws, torch's default unless given.
            device: of the draws, the CPU unless given.

        Returns:
            A tensor of `shape`.
        """
        device = torch.device("cpu" if device is None else device)
        return self.std * normal(shape, generator, dtype or torch.get_default_dtype(), device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of `x` (B, *event), in nats, shape (B,)."""
        return -0.5 * sum_event((x / self.std) ** 2) - event_size(x.shape) * math.log(self.std * math.sqrt(2 * math.pi))


class Source(Protocol):
    """A law at the noise end: anything with these two methods, or with the one that is needed."""

    def sample(self, shape: Sequence[int], /, generator: torch.Generator | None = None) -> Tensor:
        """Draw a tensor of `shape` (B, *event).

        With one generator per sample it is asked for one after another, unless it has an attribute
        `per_sample_generators` that is True: then it receives them all, in a list.
        """

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of `x` (B, *event), in nats, shape (B,)."""
