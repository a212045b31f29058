"""Decoders: p(x | mean, std), the last step of a chain, from its first latent to the data.

Continuous data take a normal density, "gaussian". Data on L levels take the mass that the normal puts on each level's
cell, the cells of the lowest and the highest level reaching to infinity:

    P(x) = Phi((x + h - mean)/std) - Phi((x - h - mean)/std)         h half a cell

so that the L probabilities add up to one. The difference is taken in the tail where both terms are small, by log Phi.

References:
    Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239, section 3.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import sum_event


@dataclass(frozen=True)
class Discretized:
    """Data on evenly spaced levels, each with the mass that a normal law puts on its cell.

        P(x) = Phi((x + h - mean)/std) - Phi((x - h - mean)/std),   h = (high - low) / (2 (levels - 1))

    where the cells of the lowest and the highest level reach to infinity. `Quantized` describes such data, and its
    `.decoder` is this: 8-bit images 2n/255 - 1 are Quantized.centred(256), whose decoder is Discretized(256, -1, 1);
    images dequantised as 2 (n + u)/L - 1 are Quantized(L), with the levels in the middle of cells, whose decoder is
    Discretized(L, 1/L - 1, 1 - 1/L).

    Args:
        levels: L, their number, at least 2.
        low: the lowest level.
        high: the highest.

    Raises:
        TypeError: a number of levels that is not an integer, or an end that is not a number.
        ValueError: fewer than two levels, or low >= high.

    Examples:
        >>> decoder = sdegen.Discretized(levels=4, low=0.0, high=3.0)
        >>> mean, std = torch.full((4, 1), 1.2), torch.tensor(0.5)
        >>> logp = decoder.log_prob(torch.arange(4.0)[:, None], mean, std)
        >>> f"{logp.exp().sum():.4f}"  # the masses of all levels add up to one
        '1.0000'
    """

    levels: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.whole("levels", self.levels, least=2)
        _checks.real("low", self.low)
        if self.low >= _checks.real("high", self.high):
            raise ValueError(f"low must be below high, and they are {self.low} and {self.high}.")

    @property
    def cell(self) -> float:
        """The distance between two levels, 2h."""
        return (self.high - self.low) / (self.levels - 1)

    def check(self, x: Tensor) -> None:
        """A ValueError unless every value of `x` is one of the levels, to a thousandth of a cell."""
        if not x.numel():  # an accelerator would be waited for in vain
            return
        outside, between = self._off(x)
        if outside:
            raise ValueError(
                f"{outside} values of x lie outside the decoder's range [{self.low}, {self.high}]; "
                f"x spans [{float(x.min()):g}, {float(x.max()):g}].{self._meant(x)}"
            )
        if between:
            raise ValueError(
                f"{between} values of x lie between the {self.levels} levels from {self.low} to {self.high}; a discrete"
                f" likelihood is for the levels themselves, without dequantisation noise.{self._meant(x)}"
            )

    def _off(self, x: Tensor) -> tuple[int, int]:
        """How many values of `x` lie outside the range, and how many between the levels."""
        n = (x.double() - self.low) / self.cell
        outside = (n < -1e-3) | (n > self.levels - 1 + 1e-3)
        return int(outside.sum()), int(((n - n.round()).abs() > 1e-3).sum())

    def _meant(self, x: Tensor) -> str:
        """A sentence where `x` is right, and the ends of this decoder were taken for edges of cells, or the reverse."""
        L, low, high, half = self.levels, self.low, self.high, 0.5 * self.cell
        within = (high - low) / (2 * L)
        for named, other in (
            (f"Quantized({L}, {low:g}, {high:g})", Discretized(L, low + within, high - within)),
            (f"Quantized.centred({L}, {low - half:g}, {high + half:g})", Discretized(L, low - half, high + half)),
        ):
            if other._off(x) == (0, 0):
                return f" They all are levels of {named}: give its .decoder."
        return ""

    def log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Log-probability of each value of `x`, elementwise, in nats; in float64, differentiable in mean and std."""
        x, mean, std = x.double(), mean.double(), std.double()
        upper, lower = (x + 0.5 * self.cell - mean) / std, (x - 0.5 * self.cell - mean) / std
        right = upper + lower > 0  # of the mean: reflect, so that both ends lie in the left tail
        large, small = torch.where(right, -lower, upper), torch.where(right, -upper, lower)
        log_large = torch.special.log_ndtr(large)
        inner = log_large + _log1mexp(torch.special.log_ndtr(small) - log_large)
        lowest, highest = x < self.low + 0.5 * self.cell, x > self.high - 0.5 * self.cell
        edge = torch.special.log_ndtr(torch.where(lowest, upper, -lower))
        return torch.where(lowest | highest, edge, inner)


class GaussianDecoder:
    """The normal density N(mean, std^2), for continuous data."""

    def log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Log-density of each value of `x`, elementwise, in nats."""
        return -0.5 * ((x - mean) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi)


Decoder = GaussianDecoder | Discretized


def decoder_of(decoder: str | Discretized, x: Tensor) -> Decoder:
    """What a bound's `decoder` argument stands for, once it has looked at the data."""
    if isinstance(decoder, Discretized):
        decoder.check(x)
        return decoder
    _checks.choice("decoder", decoder, ("gaussian",))
    return GaussianDecoder()


def nats(decoder: Decoder, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """-log p(x | mean, std) per sample, (B,), in nats."""
    return -sum_event(decoder.log_prob(x, mean, std)).to(x.dtype)


def _log1mexp(a: Tensor) -> Tensor:
    """log(1 - exp(a)) for a < 0, in the form that keeps its digits; both forms are finite wherever they are taken."""
    near = a > -math.log(2)
    by_expm1 = torch.log(-torch.expm1(torch.where(near, a, -1.0)))
    return torch.where(near, by_expm1, torch.log1p(-torch.exp(torch.where(near, -1.0, a))))
