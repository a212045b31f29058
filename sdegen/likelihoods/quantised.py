"""Quantised data: whole numbers n, the real numbers y that stand for them, and the probability of n under a density.

Level n = 0 ... L-1 is the cell of y from low + n c to low + (n+1) c, c = (high - low)/L. A density p of y gives it

    P(n) = integral of p over the cell = c^d E[ p(y) ],    y = low + c (n + u),  u uniform on [0, 1)^d

for d values a sample, and with u drawn from any law r(u | n) instead, K times,

    log P(n) >= E log( 1/K sum over k of w_k ),    w_k = c^d p(y_k) / r(u_k | n)

by Jensen's inequality: a bound that rises with K, and that is an equality at any K where r is proportional to p(y).
The mean of the weights is P(n) only if p is known without noise: an estimate p e^z with noise z of mean zero has the
mean p E[e^z] > p, and its bound may lie above log P(n). So the exact trace is taken here, always.

References:
    A note on the evaluation of generative models, Theis et al., 2016, arXiv:1511.01844.
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, Ho et al.,
    2019, arXiv:1902.00275.
    Importance Weighted Autoencoders, Burda et al., 2016, arXiv:1509.00519.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import check_model
from sdegen._shapes import Generators, event_size, rand, summary
from sdegen.likelihoods.decoders import Discretized
from sdegen.likelihoods.density import log_likelihood
from sdegen.likelihoods.variational import IWAE
from sdegen.models.base import Cond, Model
from sdegen.solvers.base import Solver, bar
from sdegen.solvers.divergence import Hutchinson


@dataclass(frozen=True)
class Quantized:
    """Whole numbers n = 0 ... L-1 and the cells of real numbers y that stand for them.

        n  <->  low + n c <= y < low + (n+1) c,    c = (high - low) / L

    `low` and `high` are the edges of the outermost cells. Where it is the lowest and the highest level that are known,
    as for 8-bit images scaled to 2n/255 - 1, `Quantized.centred(256, -1, 1)` puts the edges half a cell beyond:

        images scaled as           value                        bits/dim beyond the density's own
        y = (n + u)/128 - 1        Quantized(256)               log2(1/c) = 7
        y = (n + u)/256            Quantized(256, 0.0, 1.0)     8
        y = 2n/255 - 1, blurred    Quantized.centred(256)       log2(127.5)

    Args:
        levels: L, their number, at least 2.
        low: the lower edge of the cell of n = 0.
        high: the upper edge of the cell of n = L-1.

    Raises:
        TypeError: a number of levels that is not an integer, or an edge that is not a number.
        ValueError: fewer than two levels, or low >= high.

    Examples:
        >>> cells = sdegen.Quantized(256)
        >>> n = torch.tensor([0.0, 127.0, 255.0])
        >>> bool((cells.quantise(cells.dequantise(n)) == n).all())
        True
        >>> cells.bits_per_dim(torch.tensor(-64 * 0.6931472), 64).round(decimals=3)  # that of the uniform density
        tensor(8.)

    References:
        A note on the evaluation of generative models, Theis et al., 2016, arXiv:1511.01844.
    """

    levels: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.whole("levels", self.levels, least=2)
        if _checks.real("low", self.low) >= _checks.real("high", self.high):
            raise ValueError(f"low must be below high, and they are {self.low} and {self.high}.")

    @classmethod
    def centred(cls, levels: int = 256, low: float = -1.0, high: float = 1.0) -> Quantized:
        """The cells about levels at the ends: n stands in the middle of its cell, at low + n (high - low)/(levels - 1).

        Args:
            levels: L, their number, at least 2.
            low: the lowest level.
            high: the highest.

        Returns:
            the value whose edges lie half a cell beyond both.

        Raises:
            TypeError: as for the class.
            ValueError: as for the class.

        Examples:
            >>> cells = sdegen.Quantized.centred(256)
            >>> cells.centre(torch.tensor([0.0, 255.0])).round(decimals=4)  # levels, where Quantized(256) has edges
            tensor([-1.,  1.])
        """
        ends = Discretized(levels, low, high)
        half = 0.5 * ends.cell
        return cls(levels, low - half, high + half)

    @property
    def cell(self) -> float:
        """c, the width of a cell."""
        return (self.high - self.low) / self.levels

    @property
    def decoder(self) -> Discretized:
        """For bounds of chains: levels `centre(n)` on these cells, of which the outermost reach to infinity there."""
        return Discretized(self.levels, self.low + 0.5 * self.cell, self.high - 0.5 * self.cell)

    def centre(self, n: Tensor) -> Tensor:
        """The middle of the cell of n, low + c (n + 1/2), shaped like n: data for a bound with this `decoder`."""
        return self.cell * (self._whole(n) + 0.5) + self.low

    def dequantise(self, n: Tensor, generator: Generators = None) -> Tensor:
        """y = low + c (n + u) with u uniform on [0, 1), one for every value.

        Over the first axis u is a Latin hypercube: every pixel's values of u fall one into each of B equal parts, so
        that a mean over samples varies less from draw to draw. The law of one sample's u is the same, but samples
        depend on each other. With one generator per sample they do not: each has its own uniform numbers.

        Args:
            n: whole numbers 0 ... L-1, (B, ...), of any real dtype.
            generator: for u, a torch.Generator or one per sample; torch's global one by default.

        Returns:
            a fresh draw y, like `n` if that is floating, else in torch's default dtype; `quantise` gives n back.

        Raises:
            TypeError: for an n that is no tensor of numbers, or another argument of another type.
            ValueError: for a value that is not one of the levels (on an accelerator, where looking would wait for the
                device, its y is NaN instead), and for a dtype too coarse for so many levels.

        Examples:
            >>> y = sdegen.Quantized(2).dequantise(torch.tensor([0.0, 1.0]))
            >>> bool(-1 <= y[0] < 0 <= y[1] < 1)
            True

        References:
            A note on the evaluation of generative models, Theis et al., 2016, arXiv:1511.01844.
        """
        n = self._whole(n)
        return self.spread(n, _uniform(n, generator))

    def spread(self, n: Tensor, u: Tensor) -> Tensor:
        """low + c (n + u), of which rounding never leaves the cell of n; differentiable in u.

        Args:
            n: whole numbers 0 ... L-1, whose values are not looked at, of any real dtype.
            u: numbers in [0, 1), shaped like n.

        Returns:
            y, like u.

        Raises:
            TypeError: for a u that is no floating tensor.
            ValueError: for another shape.
        """
        if not (isinstance(u, Tensor) and u.is_floating_point()):
            raise TypeError(f"u must be a tensor of real floating numbers, and it is {u!r}.")
        if u.shape != n.shape:
            raise ValueError(f"u must have the shape of n, {tuple(n.shape)}, and it has {tuple(u.shape)}.")
        n = n.to(u)
        y = self._at(n + u)
        last = self._at(n + 1).clamp(max=self.high) - self._spacing(u.dtype)
        return torch.where(y > last, last, y)

    def quantise(self, y: Tensor) -> Tensor:
        """The whole number n of the cell in which y lies: `dequantise` undone exactly.

        Args:
            y: real numbers of any shape, such as dequantised data or samples of a model. What lies beyond an edge
                belongs to the outermost level.

        Returns:
            n, like y; NaN where y is.

        Raises:
            TypeError: for a y that is no floating tensor.
            ValueError: for a dtype too coarse for so many levels.

        Examples:
            >>> sdegen.Quantized(2).quantise(torch.tensor([-0.7, -0.1, 0.2]))
            tensor([0., 0., 1.])
        """
        if not isinstance(y, Tensor) or not y.is_floating_point():
            received = f"dtype {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"y must be a tensor of real floating numbers, and this is {received}.")
        self._check_precision(y.dtype)
        n = ((y - self.low) / self.cell).floor().clamp(0, self.levels - 1)  # off by one at most, at an edge
        n = n + (y >= self._at(n + 1)).to(y.dtype) - (y < self._at(n)).to(y.dtype)
        return n.clamp(0, self.levels - 1)

    def bits_per_dim(self, log_prob: Tensor, event: int | Sequence[int]) -> Tensor:
        """Bits per dimension of n, from log-densities of dequantised y: -log2 p(y) / d + log2(1/c).

        The cell of n has volume c^d, so P(n) = c^d E_u[p(y)], and by Jensen's inequality

            -log P(n) <= -E_u[log p(y)] - d log c

        so that the result, averaged over draws of u, is an upper bound on the true code length. The uniform density
        on [low, high)^d costs log2(L).

        Args:
            log_prob: log p(y) in nats, any shape.
            event: d, or the shape of one sample, e.g. (1, 8, 8).

        Returns:
            bits per dimension, shaped like log_prob.

        Raises:
            TypeError: a size that is not an integer.
            ValueError: a size below 1.

        Examples:
            >>> uniform = -3 * torch.tensor(2.0).log()  # log p(y) on [-1, 1)^3
            >>> sdegen.Quantized(256).bits_per_dim(uniform, 3).round(decimals=3)
            tensor(8.)
        """
        sizes = event if isinstance(event, Sequence) else (event,)
        d = math.prod(_checks.whole("every size in event", size) for size in sizes)
        return -log_prob / (d * math.log(2)) + math.log2(self.levels / (self.high - self.low))

    def _at(self, n: Tensor) -> Tensor:
        """low + c n in the dtype of n: it never falls as n grows, so that equal edges bound both directions."""
        return self.cell * n + self.low

    def _spacing(self, dtype: torch.dtype) -> float:
        """That of the numbers of this dtype just below the least power of two that no y exceeds."""
        bound = 2.0 ** math.ceil(math.log2(max(abs(self.low), abs(self.high))))
        return 0.5 * torch.finfo(dtype).eps * bound

    def _check_precision(self, dtype: torch.dtype) -> None:
        eps = torch.finfo(dtype).eps
        if self.levels * eps > 0.5 or self.cell < 4 * self._spacing(dtype):
            raise ValueError(
                f"{str(dtype).removeprefix('torch.')} is too coarse for the cells of {self!r}; take a finer dtype."
            )

    def _whole(self, n: object) -> Tensor:
        """`n` as floating whole numbers below L; those that are not are NaN on an accelerator."""
        if not isinstance(n, Tensor) or n.is_complex() or n.dtype is torch.bool:
            received = f"dtype {n.dtype}" if isinstance(n, Tensor) else type(n).__name__
            raise TypeError(f"n must be a tensor of whole numbers, and this is {received}.")
        n = n if n.is_floating_point() else n.to(torch.get_default_dtype())
        self._check_precision(n.dtype)
        good = (n >= 0) & (n <= self.levels - 1) & (n == n.floor())
        if n.device.type == "cpu" and not bool(good.all()):
            raise ValueError(
                f"n must hold whole numbers from 0 to {self.levels - 1}, and one value is {n[~good][0].item()}; "
                "Quantized.quantise turns real numbers into whole ones."
            )
        return torch.where(good, n, torch.nan)


class Dequantiser(Protocol):
    """A law r(u | n) of the place u of y in the cell of n: anything with this `sample`."""

    def sample(self, n: Tensor, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """One draw for every sample of a batch.

        Args:
            n: whole numbers, (B, *event), of a floating dtype.
            generator: a torch.Generator, one per sample, or None.

        Returns:
            u in [0, 1), like n, and log r(u | n), (B,), in nats, without noise of its own.
        """


@dataclass(frozen=True, eq=False)
class DiscreteLogProb:
    """A lower bound on the log-probability of every sample of quantised data, in nats.

    Attributes:
        log_weights: log w_k of every draw, (B, draws).
        size: d, the number of values in one sample.
        errors: the solver's estimate for each of them, (B, draws), in nats; None where it has none.
        kind: "bound".

    Examples:
        >>> cells, model = sdegen.Quantized(4), sdegen.Gaussian([0.0], 0.5).model(sdegen.CondOT())
        >>> bound = sdegen.discrete_log_prob(model, torch.tensor([[1.0], [2.0]]), cells, draws=8)
        >>> bound.log_weights.shape, bound.log_prob.shape, bound.kind
        (torch.Size([2, 8]), torch.Size([2]), 'bound')
    """

    kind: ClassVar[str] = "bound"

    log_weights: Tensor
    size: int
    errors: Tensor | None = None

    __repr__ = summary

    @property
    def log_prob(self) -> Tensor:
        """log( 1/K sum over k of w_k ), (B,), in nats: in expectation at most log P(n)."""
        return self._over_draws.log_prob

    @property
    def standard_error(self) -> Tensor | None:
        """Of `log_prob` over the draws of u, by the delta method, (B,); None for a single draw, which shows no spread.

        The gap of the bound comes on top: about half the square of this number.
        """
        return self._over_draws.standard_error if self.draws > 1 else None

    @property
    def solver_error(self) -> Tensor | None:
        """An estimate of how far the solver leaves `log_prob` off, (B,), in nats; None where it has none."""
        return None if self.errors is None else (torch.softmax(self.log_weights, 1) * self.errors).sum(1)

    @property
    def bits_per_dim(self) -> Tensor:
        """-`log_prob` / (d ln 2), (B,), bits/dim of n."""
        return self._over_draws.bits_per_dim

    @property
    def draws(self) -> int:
        """K, the number of draws of u for every sample."""
        return self.log_weights.shape[1]

    @property
    def _over_draws(self) -> IWAE:
        """The same mean of weights, over u instead of paths."""
        return IWAE(self.log_weights, self.size)


def discrete_log_prob(
    model: Model,
    n: Tensor,
    quantized: Quantized,
    *,
    draws: int = 1,
    dequantiser: Dequantiser | None = None,
    solver: Solver | None = None,
    generator: Generators = None,
    cond: Cond = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> DiscreteLogProb:
    """A lower bound on the log-probability of quantised data under the model's ODE, in nats.

        log P(n) >= E log( 1/K sum over k of w_k ),    w_k = c^d p(y_k) / r(u_k | n),    y_k = low + c (n + u_k)

    with K = `draws` independent u_k from the law r of the `dequantiser` and p the density of `log_prob`, its trace
    exact: a noisy density in an exponent is no bound. With K the gap falls like the variance of w/P(n) over 2K. A
    dequantiser that was fitted to the model (`sdegen.interop.FlowDequantiser`) takes the place of many draws.

    Args:
        model: `draws` times what `log_prob` with the exact trace costs on n: d products with the Jacobian a query.
        n: whole numbers 0 ... L-1, (B, *event), of any real dtype.
        quantized: what they stand for: the cells on which the model was trained.
        draws: K, the number of u for every sample.
        dequantiser: an object with `sample(n, generator) -> (u, log r)`; uniform by default. All draws are taken
            before the first network call, without gradients.
        solver: one that solves the ODE, as in `log_prob`, and its default.
        generator: for u, a torch.Generator or one per sample; with the latter a sample's draws do not depend on the
            rest of the batch.
        cond: keyword arguments for the network; tensors with one row per sample are repeated with its draws, `Shared`
            ones are not.
        batch_size: rows in one solve, B by default; with more, several draws of a sample are solved at once.
        progress: whether to show a bar, a step for every solve (needs tqdm).

    Returns:
        The log-weights, with `.log_prob`, `.standard_error` and `.bits_per_dim`.

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, such as values off the levels or u outside [0, 1), before the first
            network call; a network that blocks gradients or is random.
        NonFiniteError: a state or a log-density became NaN or infinite.

    Examples:
        >>> cells = sdegen.Quantized(2)  # n = 0 for y in [-1, 0), 1 for y in [0, 1)
        >>> model = sdegen.Gaussian([0.0], 0.3).model(sdegen.CondOT())
        >>> n = torch.tensor([[0.0], [1.0]])
        >>> bound = sdegen.discrete_log_prob(model, n, cells, draws=64, solver=sdegen.Adams(40), batch_size=128)
        >>> bool(((bound.log_prob + 0.693).abs() < 0.4).all())  # log P(n) = log 1/2
        True

    References:
        Flow++, Ho et al., 2019, arXiv:1902.00275.
        Importance Weighted Autoencoders, Burda et al., 2016, arXiv:1509.00519.
    """
    check_model(model)
    draws, n = _checks.whole("draws", draws), _whole_numbers(n, quantized)
    _refuse_probes(solver)
    cond = _checks.conditions(cond)
    B, d = len(n), event_size(n.shape)
    size = max(B if batch_size is None else _checks.whole("batch_size", batch_size), 1)
    u, log_r = _drawn(dequantiser, n, generator, draws)
    parts = quantized.spread(n.repeat(draws, *[1] * (n.ndim - 1)), u).split(size)
    rows = (torch.arange(len(u)) % max(B, 1)).split(size)
    densities, errors = [], []
    with bar(len(parts), progress) as solved:
        for y, of_part in zip(parts, rows, strict=True):
            received = _checks.conditions_of_rows(cond, slice(0, B) if size == B else of_part.to(n.device), B)
            scored = log_likelihood(model, y, solver, trace="exact", cond=received)
            densities.append(scored.log_prob)
            errors.append(scored.solver_error)
            solved()
    log_weights = torch.cat(densities) - log_r + d * math.log(quantized.cell)
    known = [error for error in errors if error is not None]
    error = torch.cat(known).reshape(draws, B).T if len(known) == len(errors) else None
    return DiscreteLogProb(log_weights.reshape(draws, B).T, d, error)


def _whole_numbers(n: object, quantized: object) -> Tensor:
    """`n` as a batch of whole numbers of `quantized`, at least in float32."""
    if not isinstance(quantized, Quantized):
        raise TypeError(f"quantized must be a Quantized, such as Quantized(256), and it is {quantized!r}.")
    if isinstance(n, Tensor) and n.is_floating_point():
        n = n.detach().to(torch.promote_types(n.dtype, torch.float32))
    return _checks.batch("n", quantized._whole(n), finite=False)


def _refuse_probes(solver: object) -> None:
    """No estimate of the trace; the rest is looked at by `log_likelihood`."""
    if isinstance(solver, Hutchinson):
        raise TypeError(
            f"A bound of K draws needs the exact trace, and {solver!r} estimates it: the noise of an estimate raises "
            "the mean of the weights, which then bounds nothing."
        )


def _drawn(dequantiser: Dequantiser | None, n: Tensor, generator: Generators, draws: int) -> tuple[Tensor, Tensor]:
    """u of all draws, (draws B, *event), and log r(u | n), (draws B,), one draw of the whole batch after another."""
    _checks.generators(generator, len(n), n.device)
    if dequantiser is None:
        return torch.cat([_uniform(n, generator) for _ in range(draws)]), n.new_zeros(draws * len(n))
    if not callable(getattr(dequantiser, "sample", None)):
        raise TypeError(
            f"dequantiser must have a method sample(n, generator) -> (u, log r), and {dequantiser!r} has none."
        )
    with torch.no_grad():
        found = [_checked_draw(dequantiser.sample(n.clone(), generator), n) for _ in range(draws)]
    u, log_r = zip(*found, strict=True)
    return torch.cat(u), torch.cat(log_r)


def _checked_draw(drawn: object, n: Tensor) -> tuple[Tensor, Tensor]:
    """What a dequantiser returned, like `n`; on an accelerator a u outside [0, 1) becomes NaN."""
    if not (isinstance(drawn, tuple) and len(drawn) == 2 and all(isinstance(part, Tensor) for part in drawn)):
        raise TypeError(f"dequantiser.sample must return two tensors, u and log r(u | n), and it returned {drawn!r}.")
    u, log_r = drawn
    if u.shape != n.shape or log_r.shape != (len(n),):
        raise ValueError(
            f"dequantiser.sample must return u of shape {tuple(n.shape)} and log r(u | n) of shape ({len(n)},), and "
            f"they have {tuple(u.shape)} and {tuple(log_r.shape)}."
        )
    inside = (u >= 0) & (u < 1)
    if n.device.type == "cpu":
        if not bool(inside.all()):
            raise ValueError(f"dequantiser.sample must return u in [0, 1), and one value is {u[~inside][0].item()}.")
        if not bool(torch.isfinite(log_r).all()):
            raise ValueError("dequantiser.sample must return a finite log r(u | n), and some of it is NaN or infinite.")
    return torch.where(inside, u, torch.nan).to(n).detach(), log_r.to(n).detach()


def _uniform(n: Tensor, generator: Generators) -> Tensor:
    """u like n: a Latin hypercube over the first axis, or with one generator per sample each row on its own."""
    _checks.generators(generator, len(n) if n.ndim else 1, n.device)
    if generator is not None and not isinstance(generator, torch.Generator):
        return rand(n.shape, generator, n.dtype, n.device) if n.ndim else rand((1,), generator, n.dtype, n.device)[0]
    rank, shift = (torch.rand(n.shape, generator=generator, dtype=n.dtype, device=n.device) for _ in range(2))
    return (rank.argsort(0) + shift) / max(len(n), 1) if n.ndim else shift
