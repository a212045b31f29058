"""The divergence of the ODE's slope: what a log-density is made of.

    d log p / du = -div(eps_hat - x_hat)    along    dy/du = eps_hat - x_hat

div b = trace of the Jacobian J = sum over i of e_i . J e_i, exactly, or the mean over random vectors z of z . J z.

On steps that are known beforehand z is another one at every query. Of R estimates each walks through the rows of a
Hadamard matrix of n >= d columns, again and again, in a random order and under a vector of random signs of its own,

    z_j = signs * H[order_(j mod n)],    H[i, l] = (-1)^(number of bits that i and l have in common),

so that the z z' of any n successive queries add up to n times the identity: what one query misses of the trace the next
ones have. (Signs drawn anew for every n queries would lose that at each seam: twice the spread in 16 dimensions.) The R
estimates are independent: their spread is the error of their mean.

What an error dy of the state does to the log-density is told by the score in y, d log p / dy = -(y + (1-u) D) / u with
D = eps_hat - x_hat: exactly for a model whose score is its own, and as a good guess for any other.

References:
    FFJORD, Grathwohl et al., 2019, arXiv:1810.01367.
    A Stochastic Estimator of the Trace of the Influence Matrix, Hutchinson, 1989.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators, event_size, rand, signs

PROBES_AT_ONCE = 16
"""Products with the Jacobian in one backward pass: more take more memory and are not faster."""


class Probes(ABC):
    """The vectors z of a solve: a divergence is estimated `columns` times, each time by the sum of z . J z.

    Attributes:
        columns: R, independent estimates of the divergence.
        count: P, vectors per query and sample, R times as many as an estimate takes.
        exact: whether there is nothing random about them.
        fresh: whether they are others at every query.
    """

    columns: int
    count: int
    exact = False
    fresh = False

    @abstractmethod
    def at(self, j: int) -> Tensor:
        """The vectors of query j, (P, B, d)."""

    @abstractmethod
    def cut(self, rows: Tensor | slice) -> Probes:
        """Those of some samples alone, `rows` (n,)."""


class _Unit(Probes):
    """The d unit vectors, for the exact trace."""

    columns, exact = 1, True

    def __init__(self, y: Tensor):
        self._like, self.count = y, event_size(y.shape)
        self._z = torch.eye(self.count, dtype=y.dtype, device=y.device)[:, None].expand(-1, len(y), -1)

    def at(self, j: int) -> Tensor:
        return self._z

    def cut(self, rows: Tensor | slice) -> Probes:
        return _Unit(self._like[rows])


class _Kept(Probes):
    """Random signs, the same at every query: what adaptive steps need."""

    def __init__(self, z: Tensor):
        self._z = z
        self.columns = self.count = len(z)

    def at(self, j: int) -> Tensor:
        return self._z

    def cut(self, rows: Tensor | slice) -> Probes:
        return _Kept(self._z[:, rows])


class _Fresh(Probes):
    """Rows of a Hadamard matrix, under signs (P, B, d), in an order that two odd numbers (2, P, B, 1) shuffle."""

    fresh = True

    def __init__(self, z: Tensor, odd: Tensor):
        self._signs, self._odd = z, odd
        self.columns = self.count = len(z)
        self._bits = _bits(z.shape[-1])

    @classmethod
    def draw(cls, y: Tensor, probes: int, generator: Generators) -> _Fresh:
        """Random signs and orders for states like `y`."""
        shape, half = (len(y), probes), 1 << (_bits(event_size(y.shape)) - 1)
        odd = 2 * (rand((*shape, 2), generator, torch.float32, y.device) * half).long() + 1
        z = signs((*shape, event_size(y.shape)), generator, y.dtype, y.device)
        return cls(z.transpose(0, 1), odd.permute(2, 1, 0)[..., None])

    def at(self, j: int) -> Tensor:
        last, half = (1 << self._bits) - 1, (self._bits + 1) // 2
        first = j & last
        row = self._odd[0] * (first ^ (first >> half)) & last  # two rounds that each permute 0 ... n-1
        row = self._odd[1] * (row ^ (row >> half)) & last
        common = row & torch.arange(self._signs.shape[-1], device=row.device)
        for shift in (32, 16, 8, 4, 2, 1):
            if shift < self._bits:
                common = common ^ (common >> shift)
        return torch.where((common & 1).bool(), -self._signs, self._signs)

    def cut(self, rows: Tensor | slice) -> Probes:
        return _Fresh(self._signs[:, rows], self._odd[:, :, rows])


def _bits(d: int) -> int:
    """m of the least n = 2^m >= d, and at least 1."""
    return max(d - 1, 1).bit_length()


@dataclass(frozen=True)
class Exact:
    """The exact trace of the Jacobian, by d products with it at every query.

    Args:
        chunk: products in one backward pass, which take as much memory as so many; by default 16, or 1 for a network
            whose backward pass cannot be batched.

    Raises:
        TypeError: `chunk` is no integer.
        ValueError: `chunk` is below 1.

    Examples:
        >>> model = sdegen.Gaussian([0.0, 0.0], 1.0).model(sdegen.CondOT())
        >>> logp = sdegen.log_prob(model, torch.zeros(1, 2), sdegen.Adams(80), trace=sdegen.Exact(chunk=1))
        >>> f"{logp.item():.3f}"  # -log(2 pi), one product at a time
        '-1.838'
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        if self.chunk is not None:
            _checks.whole("chunk", self.chunk)

    def draw(self, y: Tensor, generator: Generators, fresh: bool) -> Probes:
        """The unit vectors."""
        return _Unit(y)


@dataclass(frozen=True)
class Hutchinson:
    """Estimate the trace by random signs z (Rademacher), the mean of z . J z over `probes` of them.

    The estimate of a log-density is unbiased, and the spread of the `probes` tells its standard error. Solvers on fixed
    steps take fresh signs at every query, orthogonal to each other along the solve, whose errors cancel: the error is
    10 to 30 times smaller than with one vector kept for the whole solve, as adaptive steps must. There it is of the
    order of a nat for one probe. In a few dimensions, where two vectors may well coincide, their spread says little:
    take the exact trace there.

    Args:
        probes: how many vectors z per sample and query.

    Raises:
        TypeError: `probes` is no integer.
        ValueError: `probes` is below 1.

    Examples:
        >>> model = sdegen.Gaussian([0.0] * 20, 1.0).model(sdegen.CondOT())
        >>> found = sdegen.log_likelihood(model, torch.zeros(1, 20), sdegen.Adams(80), trace=sdegen.Hutchinson(2))
        >>> f"{found.log_prob.item():.1f}"  # -10 log(2 pi): of a multiple of the identity every probe tells the trace
        '-18.4'

    References:
        A Stochastic Estimator of the Trace of the Influence Matrix, Hutchinson, 1989.
    """

    probes: int = 1

    chunk: ClassVar[None] = None

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.whole("probes", self.probes)

    def draw(self, y: Tensor, generator: Generators, fresh: bool) -> Probes:
        """Signs for states like `y` (B, *event), others at every query where `fresh`."""
        if fresh:
            return _Fresh.draw(y, self.probes, generator)
        return _Kept(signs((len(y), self.probes, event_size(y.shape)), generator, y.dtype, y.device).transpose(0, 1))


Trace = Exact | Hutchinson


def products(value: Tensor, y: Tensor, z: Tensor, chunk: int, differentiable: bool = False) -> Tensor:
    """z . J z of every vector z (P, B, d), (P, B), with J = d value / d y, `chunk` of them in one backward pass."""
    found = []
    for start in range(0, len(z), chunk):
        part = z[start : start + chunk].reshape(-1, *y.shape)
        last = start + chunk >= len(z) and not differentiable
        if len(part) == 1:
            (product,) = torch.autograd.grad(
                (value * part[0]).sum(), y, retain_graph=not last, create_graph=differentiable
            )
            product = product[None]
        else:
            (product,) = torch.autograd.grad(
                value, y, part, retain_graph=not last, create_graph=differentiable, is_grads_batched=True
            )
        found.append((product * part).flatten(2).sum(2))
    return torch.cat(found)


def in_nats(dy: Tensor, y: Tensor, D: Tensor, u: float | Tensor) -> Tensor:
    """score . dy, (B,), at states y with slopes D, all (B, d), and the clock u, a number or (B,), which is not 0."""
    at = y + (1 - u[:, None]) * D if isinstance(u, Tensor) else torch.add(y, D, alpha=1 - u)
    product: Tensor = torch.linalg.vecdot(dy, at)
    return product / -u


def step_in_nats(error: Tensor, state: Tensor, slope: Tensor, u: float | Tensor, d: int) -> Tensor:
    """What an error of a step is worth in nats, (B,), for states, slopes and errors (B, d + R) at the step's end."""
    return (error[:, d:].mean(1) + in_nats(error[:, :d], state[:, :d], slope[:, :d], u)).abs()


def standard_error(estimates: Tensor) -> Tensor:
    """Of the mean of R >= 2 independent estimates (B, R), (B,)."""
    return estimates.std(1) / math.sqrt(estimates.shape[1])
