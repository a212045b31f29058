"""The inverse of a clock that is known only as a function: a table of it, then secant steps inside a bracket.

A clock u(t) may rise like any power of the distance from either end, and times near an end are wanted in relative
terms. Therefore the table is even neither in t nor in log t, but in asinh of z, the logit of the fraction of the way
from the data to the noise, and between its rows t is guessed where logit u is linear in z: a power law is. The guess is
mended by secant steps in (u, t), each held inside the bracket of two times whose clocks lie on either side of u,

    t_new = t - (u(t) - u) (t - t_before) / (u(t) - u(t_before))        or the bracket's middle, if t_new lies outside

The table is made anew in every call, one evaluation of the clock: a clock may have parameters that train.

References:
    Algorithms for Minimization without Derivatives, Brent, 1973, chapter 4 (secant steps inside a bracket).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

Clock = Callable[[Tensor], Tensor]
"""u at times t (n,) in float64, rising from the data to the noise."""

ROUNDS = 6
"""Secant steps: four bring a smooth clock from the guess to rounding."""
ROUNDING = torch.finfo(torch.float64).eps
TINY = torch.finfo(torch.float64).tiny


class Bracket(NamedTuple):
    """Two times for every u, whose clocks lie on either side of it; they coincide where u has been met.

    Attributes:
        low: the time nearer the data, (n,).
        high: the time nearer the noise, (n,).
    """

    low: Tensor
    high: Tensor

    def cut(self, t: Tensor, excess: Tensor, slack: Tensor) -> Bracket:
        """What is left on one side of `t`, whose clock is `excess` beyond u: `t` alone where that is within `slack`."""
        return Bracket(torch.where(excess > slack, self.low, t), torch.where(excess < -slack, self.high, t))

    def holding(self, t: Tensor) -> Tensor:
        """`t` where it lies inside, else the middle."""
        return torch.where((t - self.low) * (t - self.high) <= 0, t, self.middle)

    @property
    def middle(self) -> Tensor:
        """The time halfway."""
        return 0.5 * (self.low + self.high)


def inverse(clock: Clock, start: float, end: float, u: Tensor) -> Tensor:
    """The time between `start` (the data) and `end` (the noise) at which the clock shows `u`, without a gradient.

    An accelerator is not waited for: it takes ROUNDS steps, see `settles`. What they leave undone on the CPU, at jumps
    and in the rounding of an ill-conditioned clock, is bisected until the bracket holds two neighbours in float64.

    Args:
        clock: the clock, asked on the device of `u`.
        start: the time at the data, where the clock is lowest.
        end: the time at the noise, where it is highest.
        u: clocks, of any shape; those beyond an end stand for it, and NaN stays NaN.

    Returns:
        t in float64, shaped like `u`, exact at the two ends; u(t) is `u` up to a rounding wherever some t has it.
    """
    with torch.no_grad():
        goal = u.detach().double().flatten()
        t, slack, bracket = _secants(clock, start, end, goal)
        if goal.device.type == "cpu" and not _met(bracket):
            t = _bisected(clock, goal, slack, bracket)
        return torch.where(torch.isnan(goal), goal, t).reshape(u.shape)


def settles(clock: Clock, start: float, end: float) -> bool:
    """Whether the steps of an accelerator suffice for this clock: whether they end within 1e-9 u of u, or a rounding.

    It is tried on the CPU at 257 clocks evenly spread in log-SNR, from u = 1e-3 to 1 - 1e-3 as far as they are there.
    """
    with torch.no_grad():
        low, high = torch.logit(clock(torch.tensor([start, end], dtype=torch.float64))).clamp(-6.9, 6.9).tolist()
        goal = torch.sigmoid(torch.linspace(low, high, 257, dtype=torch.float64))
        t, slack, _ = _secants(clock, start, end, goal)
        return bool(((clock(t) - goal).abs() <= 1e-9 * goal + 8 * slack).all())


def _secants(clock: Clock, start: float, end: float, goal: Tensor) -> tuple[Tensor, Tensor, Bracket]:
    """Times for the clocks `goal` (n,) after the guess and ROUNDS steps, or fewer where all are seen to be met.

    Met is what differs by no more than one rounding of u and of t, which is returned too.
    """
    t, rate, bracket = _guess(clock, start, end, goal)
    slack = ROUNDING * (goal + torch.nan_to_num(t / rate, 0.0, 0.0, 0.0).abs())
    before = torch.full_like(t, math.nan), goal
    for _ in range(ROUNDS):
        excess = clock(t) - goal
        bracket = bracket.cut(t, excess, slack)
        if goal.device.type == "cpu" and _met(bracket):
            break
        secant = (t - before[0]) / (excess - before[1])
        rate = torch.where(torch.isfinite(secant), secant, rate)
        before = t, excess
        t = bracket.holding(t - excess * rate)
    return t, slack, bracket


def _met(bracket: Bracket) -> bool:
    """Whether every clock has been met."""
    return torch.equal(bracket.low, bracket.high)


def _guess(clock: Clock, start: float, end: float, goal: Tensor) -> tuple[Tensor, Tensor, Bracket]:
    """Times for the clocks `goal`, dt/du there, and the bracket, from a table of the clock; at an end all is met."""
    z, way, rest = _fractions(goal.device)
    times = _between(start, end, way, rest)
    shown = torch.cummax(torch.nan_to_num(clock(times), nan=0.0), 0).values  # rounding may let it fall
    above = torch.searchsorted(shown, goal, right=True)
    above = torch.where(goal <= shown[0] + TINY, 0, above)
    i, j = torch.clamp(above - 1, min=0), torch.clamp(above, max=len(z) - 1)
    bracket, logits = Bracket(times[i], times[j]), torch.logit(shown)
    steep = (z[j] - z[i]) / (logits[j] - logits[i])
    at = z[i] + steep * (torch.logit(goal) - logits[i])
    way, rest = torch.sigmoid(at), torch.sigmoid(-at)
    rate = steep * (end - start) * way * rest / (goal * (1 - goal))
    return bracket.holding(_between(start, end, way, rest)), rate, bracket


def _between(start: float, end: float, way: Tensor, rest: Tensor) -> Tensor:
    """The time at the fraction `way` = 1 - `rest` from `start` to `end`, measured from the nearer of the two."""
    return torch.where(way <= rest, start + (end - start) * way, end - (end - start) * rest)


def _bisected(clock: Clock, goal: Tensor, slack: Tensor, bracket: Bracket) -> Tensor:
    """The better of the two neighbours in float64 that the bracket comes down to."""
    while True:
        middle = bracket.middle
        if bool(((middle == bracket.low) | (middle == bracket.high) | middle.isnan()).all()):
            break
        bracket = bracket.cut(middle, clock(middle) - goal, slack)
    below, beyond = ((clock(t) - goal).abs() for t in bracket)
    return torch.where(below <= beyond, bracket.low, bracket.high)


@cache
def _fractions(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """z, the fraction sigmoid(z) of the way, and the rest of it, moved to a device once.

    z = 2 sinh(s) for 286 even s, between the two ends: neighbours differ by a tenth in the middle, and those next to an
    end are 1e-300 of the way off it.
    """
    with torch.inference_mode(False):
        z = torch.nn.functional.pad(2 * torch.sinh(torch.linspace(-6.54, 6.54, 286, dtype=torch.float64)), (1, 1))
        z[0], z[-1] = -math.inf, math.inf
        z = z.to(device)
        return z, torch.sigmoid(z), torch.sigmoid(-z)
