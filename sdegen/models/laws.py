"""What an encoder or a decoder returns: a diagonal Gaussian (mean, std), or a law of somebody else's.

Either is drawn from by `draw`, one value per sample, and has a log-density per sample, in nats.

    log N(x; m, diag s^2) = -1/2 sum of [ ((x - m)/s)^2 + 2 log s + log 2 pi ]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from sdegen import _checks
from sdegen._shapes import Generators, normal, plain, sum_event, summary


class Density(Protocol):
    """Anything with `.log_prob(x)`, such as those of torch.distributions."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Log-densities of `x` (B, *event), in nats: (B,), or one per value or group of values."""


@dataclass(frozen=True, eq=False)
class Diagonal:
    """N(mean, diag std^2).

    Attributes:
        whose: "encoder" or "decoder", for the sentences of errors.
        mean: with as many axes as what is scored, each as long or 1, or a single number.
        std: likewise, positive.
    """

    whose: str
    mean: Tensor
    std: Tensor

    __repr__ = summary

    def draw(self, rows: int, generator: Generators) -> Tensor:
        """mean + std z for so many samples, with gradients in both, drawn in float32 at least."""
        against = f"({rows}, *event)"
        try:
            shape = torch.broadcast_shapes(self.mean.shape, self.std.shape)
        except RuntimeError as error:
            raise self._misfit(against) from error
        if len(shape) < 2:
            raise self._misfit(against)
        mean, std = self._spread((rows, *shape[1:]), against)
        dtype = torch.result_type(self.mean, self.std)
        wide = torch.promote_types(dtype, torch.float32)
        return (mean.to(wide) + std.to(wide) * normal(mean.shape, generator, wide, mean.device)).to(dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Of `x` (B, *event), (B,), in float32 at least."""
        mean, std = (at_least_single(part) for part in self._spread(x.shape, str(tuple(x.shape))))
        return -0.5 * sum_event(((x - mean) / std) ** 2 + 2 * torch.log(std) + math.log(2 * math.pi))

    def _spread(self, shape: Sequence[int], against: str) -> tuple[Tensor, Tensor]:
        """(mean, std) of this shape: a shorter one would be taken for values of one sample where it holds the rows."""
        if any(part.numel() != 1 and part.ndim != len(shape) for part in (self.mean, self.std)):
            raise self._misfit(against)
        try:
            return self.mean.expand(*shape), self.std.expand(*shape)
        except RuntimeError as error:
            raise self._misfit(against) from error

    def _misfit(self, against: str) -> ValueError:
        return ValueError(
            f"mean and std of the {self.whose} must broadcast against {against}, and they have shapes "
            f"{tuple(self.mean.shape)} and {tuple(self.std.shape)}: each has as many axes, the first of them for the "
            "samples or of size 1, or is a single number; a std may also have the shape of one sample."
        )


@dataclass(frozen=True, eq=False)
class Foreign:
    """A law of torch.distributions, a flow's, or any other with `log_prob`.

    Attributes:
        whose: "encoder" or "decoder", for the sentences of errors.
        law: with `.log_prob(x)`, and for draws `.sample()` or `.rsample()`.
    """

    whose: str
    law: Density

    def draw(self, rows: int, generator: Generators) -> Tensor:
        """One draw of so many samples, from torch's global generator."""
        if generator is not None:
            raise ValueError(
                f"generator= cannot reach {named(self.law)}, the law of the {self.whose}, which draws from torch's "
                "global generator: leave it out, and call torch.manual_seed."
            )
        sample = getattr(self.law, "sample", None) or getattr(self.law, "rsample", None)
        if not callable(sample):
            raise TypeError(f"The law of the {self.whose} has no method sample() to draw by: {named(self.law)}.")
        drawn = sample()
        if not isinstance(drawn, Tensor) or drawn.ndim < 2 or len(drawn) != rows:
            raise ValueError(
                f"What the {self.whose} draws must have shape ({rows}, *event), and it is {named(drawn)}: the law that "
                "it returns must hold one law per sample."
            )
        return drawn

    def log_prob(self, x: Tensor) -> Tensor:
        """Of `x` (B, *event), (B,): what the law says per value, or per group of values, is summed."""
        value = self.law.log_prob(x)
        if not isinstance(value, Tensor) or not value.ndim or value.shape != x.shape[: value.ndim]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"log_prob of the {self.whose}'s law must give one number per sample, shape ({len(x)},), or one per "
                f"value, {tuple(x.shape)}, and it gave {got}."
            )
        value = at_least_single(value)
        return sum_event(value) if value.ndim > 1 else value


Law = Diagonal | Foreign


def law_of(whose: str, answer: object) -> Law:
    """The law that a network returned: torch's Normals are diagonal Gaussians like any other.

    A std may be a number, or of the shape of one sample, such as a learned parameter.
    """
    if isinstance(answer, (tuple, list)) and len(answer) == 2 and isinstance(answer[0], Tensor):
        mean, std = answer[0], plain(answer[1])
        if isinstance(std, (int, float)) and not isinstance(std, bool):
            std = mean.new_full((), std)
        if isinstance(std, Tensor):
            return Diagonal(whose, mean, std[None] if mean.ndim > 1 and std.shape == mean.shape[1:] else std)
    inner = answer
    while isinstance(inner, Independent):
        inner = inner.base_dist
    if type(inner) is Normal:
        return Diagonal(whose, inner.loc, inner.scale)
    if callable(getattr(answer, "log_prob", None)) and not isinstance(answer, type):
        return Foreign(whose, cast(Density, answer))
    raise TypeError(
        f"The {whose} must return (mean, std), two tensors, or a law with log_prob, and it returned {named(answer)}."
    )


def named(value: object) -> str:
    """A value by its type, a tensor by its shape: laws print all their numbers."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    many = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    return f"a {type(value).__name__}{many}"


def at_least_single(x: Tensor) -> Tensor:
    """`x` in float32 where its dtype holds fewer digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def positive(std: Tensor) -> Tensor:
    """A deviation, after a ValueError unless it is positive; on an accelerator what is not is NaN."""
    if std.device.type != "cpu":
        return torch.where(std > 0, std, math.nan)
    wrong = std[~(std > 0)]
    if len(wrong):
        raise ValueError(
            f"std must be positive, and {len(wrong)} of its {std.numel()} values are not, the first of them "
            f"{wrong[0]:g}: let the network give its logarithm, std = log_std.exp()."
        )
    return std


def check_rows(whose: str, z: object, rows: int, event: tuple[int, ...] | None) -> None:
    """An error unless `z` is a batch of so many rows, with this event where it is known."""
    z = _checks.batch(f"what the {whose} draws", z, finite=False)
    wanted = (rows, *(z.shape[1:] if event is None else event))
    if tuple(z.shape) != wanted:
        raise ValueError(f"What the {whose} draws must have shape {wanted}, and it has {tuple(z.shape)}.")
