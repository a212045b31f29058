"""Bounds on the log-likelihood of the chain: the variational bound, term by term, and its many-sample form.

    -log p(x) <= L_K + sum over k = 2 ... K of L_{k-1} + L_0                                        (terms in chain.py)
    log p(x)  >= log of the mean over paths of w,   w = p(x, x_1 ... x_K) / q(x_1 ... x_K | x)

Neither bounds the likelihood of the ODE, `log_prob`, which is another model with the same network.

Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239; Importance Weighted Autoencoders, Burda et
al., 2016, arXiv:1509.00519.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import evaluating
from sdegen._checks import NonFiniteError
from sdegen._shapes import Generators, event_size, normal, sum_event, uniform
from sdegen.likelihoods.chain import ModelChain, optimal_variance, parts, prepared, rows_of
from sdegen.likelihoods.decoders import Decoder, Discretized, decoder_of
from sdegen.models.base import Cond, Model
from sdegen.solvers import Ancestral
from sdegen.solvers.base import bar
from sdegen.solvers.grids import Grid


@dataclass(frozen=True)
class VLB:
    """An upper bound on -log p(x), in nats, term by term, for a batch of B samples.

    prior:       L_K, (B,).
    transitions: L_1 ... L_{K-1}, nearest the data first, (B, K-1); or (B, draws) numbers whose sum estimates theirs.
    decoder:     L_0, (B,): minus a log-density with the Gaussian decoder, else minus a log-probability.
    size:        d, the number of values in one sample.
    standard_error: (B,), of the sum of `transitions` where k or t was drawn, else None. It holds the noise of their
                 eps too, unless `noise` was given; the decoder's one draw is not in it.
    """

    prior: Tensor
    transitions: Tensor
    decoder: Tensor
    size: int
    standard_error: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """L_K + sum of L_{k-1} + L_0, (B,), in nats."""
        return self.prior + self.transitions.sum(1) + self.decoder

    @property
    def bits_per_dim(self) -> Tensor:
        """`total` / (d ln 2), (B,): bits a value, of the levels or, with the Gaussian decoder, of the density of x."""
        return self.total / (self.size * math.log(2))


@dataclass(frozen=True)
class IWAE:
    """A lower bound on log p(x) from the log-weights (B, samples) of whole reverse paths, in nats."""

    log_weights: Tensor
    size: int

    @property
    def log_prob(self) -> Tensor:
        """The bound, the log of the mean weight, (B,): in expectation it rises with the number of samples."""
        return torch.logsumexp(self.log_weights, 1) - math.log(self.log_weights.shape[1])

    @property
    def standard_error(self) -> Tensor:
        """Of `log_prob`, by the delta method, (B,); NaN for a single sample."""
        weights = torch.exp(self.log_weights - self.log_weights.amax(1, keepdim=True))
        n = weights.shape[1]
        return weights.std(1) / (math.sqrt(n) * weights.mean(1)) if n > 1 else torch.full_like(weights[:, 0], math.nan)

    @property
    def effective_samples(self) -> Tensor:
        """(sum of w)^2 / sum of w^2, (B,), between 1 and the number of samples."""
        return torch.exp(2 * torch.logsumexp(self.log_weights, 1) - torch.logsumexp(2 * self.log_weights, 1))

    @property
    def bits_per_dim(self) -> Tensor:
        """-`log_prob` / (d ln 2), (B,)."""
        return -self.log_prob / (self.size * math.log(2))


def vlb(
    model: Model,
    x: Tensor,
    *,
    variance: str | Tensor = "beta",
    decoder: str | Discretized = "gaussian",
    cond: Cond = None,
    noise: Tensor | None = None,
    generator: Generators = None,
    steps: int | None = None,
    grid: Grid | None = None,
    draws: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> VLB:
    """The variational bound of the DDPM chain on data `x` (B, *event), every term, in nats.

    variance: of the chain's steps, as `Ancestral` samples them: "beta"; "posterior", which borrows the variance of the
              second step for the first; "optimal", estimated from the x and noise given, which fits the chain to them
              (score held-out data with the `optimal_variance` of other data); "learned"; or a tensor (K,) in the order
              of the betas.
    decoder:  "gaussian" for continuous data, or `Discretized(levels, low, high)` for data on levels.
    cond:     keyword arguments for the network.
    noise:    standard normals like x, the eps of every k; by default fresh draws from `generator` for every k.

    steps, grid: the chain on a path that is none, or another chain on one that is, as in `Ancestral`.
    draws:    an even number of random k a sample instead of all K-1; `standard_error` says how far off the sum may be.
    batch_size: rows of x in one network call; tensors in cond with one row a sample are cut likewise.
    progress: show a bar (needs tqdm).

    K network calls a part, or draws + 1. The prior is the path's own, N(0, sigma_K^2). Raises TypeError or ValueError
    before the first network call for bad input, data off the decoder's levels among it; NonFiniteError if the bound is.
    """
    y, cond, dtype = prepared(model, x, cond, noise, generator)
    decoder = decoder_of(decoder, x)
    if draws is not None:
        check_draws(draws)
    options = {"noise": noise, "generator": generator, "batch_size": batch_size, "progress": progress}
    solver = _solver(model, x, Ancestral(steps, variance=variance, grid=grid), cond, options)
    found = []
    with evaluating(model):
        for part in parts(x, batch_size):
            eps, given = None if noise is None else noise[part].to(y), _checks.network_arguments(cond, part, len(x))
            reverse = _Reverse(model, y[part], solver, dtype, given, eps, rows_of(generator, part))
            terms = reverse.every_step(progress) if draws is None else reverse.some_steps(draws, progress)
            found.append((reverse.prior, *terms, reverse.decoded(decoder)))
    return joined(found, x)


def iwae(
    model: Model,
    x: Tensor,
    samples: int = 8,
    *,
    variance: str | Tensor = "beta",
    decoder: str | Discretized = "gaussian",
    cond: Cond = None,
    generator: Generators = None,
    steps: int | None = None,
    grid: Grid | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> IWAE:
    """The importance-weighted bound on log p(x) of the DDPM chain, in nats: the mean weight of whole reverse paths.

    `samples` = 1 is -`vlb` in expectation, and the bound rises to log p(x), with a gap that falls like 1/samples once
    the weights have a finite variance.

    batch_size: rows in one network call; with more rows than x has, several paths of a sample are followed at once.
    Other arguments as in `vlb` ("optimal" is estimated from x). samples K network calls on all of x.
    Importance Weighted Autoencoders, Burda et al., 2016, arXiv:1509.00519.
    """
    samples = _checks.whole("samples", samples)
    y, cond, dtype = prepared(model, x, cond, None, generator)
    decoder = decoder_of(decoder, x)
    options = {"generator": generator, "batch_size": batch_size, "progress": progress}
    solver = _solver(model, x, Ancestral(steps, variance=variance, grid=grid), cond, options)
    B, found = len(x), [y.new_empty(0)]
    size = B if batch_size is None else _checks.whole("batch_size", batch_size)
    size = min(size, B) if isinstance(generator, (list, tuple)) else size  # one draw at a time from each
    with evaluating(model):
        for start in range(0, B * samples, max(size, 1)):
            which = torch.arange(start, min(start + size, B * samples)) % B
            own = [generator[i] for i in which] if isinstance(generator, (list, tuple)) else generator
            part = slice(0, B) if size == B else which.to(x.device)
            reverse = _Reverse(model, y[part], solver, dtype, _checks.network_arguments(cond, part, B), None, own)
            found.append(reverse.log_weight(decoder, progress))
    log_weights = torch.cat(found).reshape(samples, B).T
    _refuse_non_finite(log_weights.sum(1))
    return IWAE(log_weights.to(torch.promote_types(dtype, torch.float32)), event_size(x.shape))


class _Reverse:
    """The chain's terms for some rows of data."""

    def __init__(
        self,
        model: Model,
        y: Tensor,
        solver: Ancestral,
        dtype: torch.dtype,
        cond: Mapping[str, object],
        eps: Tensor | None,
        generator: Generators,
    ):
        self._y = y
        self._chain = ModelChain(model, y, solver, dtype)
        self._cond, self._eps, self._generator = cond, eps, generator

    def _draw(self) -> Tensor:
        y = self._y
        return normal(y.shape, self._generator, y.dtype, y.device)

    def _missed(self, k: int | Tensor) -> tuple[Tensor, Tensor | None]:
        """D_hat - D in step k, and the variance's place."""
        eps = self._draw() if self._eps is None else self._eps
        return self._chain.missed(self._y, k, eps, self._cond)[1:]

    def _term(self, k: Tensor) -> Tensor:
        return self._chain.transition(k, *self._missed(k))

    @property
    def prior(self) -> Tensor:
        """L_K, (B,)."""
        return self._chain.prior(self._y)

    def decoded(self, decoder: Decoder) -> Tensor:
        """L_0, (B,)."""
        return self._chain.reconstruction(decoder, self._y, *self._missed(1))

    def every_step(self, progress: bool) -> tuple[Tensor, Tensor | None]:
        """L_1 ... L_{K-1}, (B, K-1)."""
        terms = self._y.new_empty(len(self._y), self._chain.steps - 1)
        with bar(self._chain.steps - 1, progress) as step:
            for k in range(2, self._chain.steps + 1):
                terms[:, k - 2] = self._term(torch.full((len(self._y),), k, device=self._y.device))
                step()
        return terms, None

    def some_steps(self, draws: int, progress: bool) -> tuple[Tensor, Tensor | None]:
        """Random terms (B, draws), each over its probability and `draws`, and the standard error of their sum (B,).

        k falls on a step in proportion to what it loses of log(1 + SNR): to its likelihood weight.
        """
        if self._chain.steps < 2:
            return self.every_step(progress)
        u = self._chain.u
        lost = -torch.diff(torch.log1p(((1 - u) / u) ** 2))
        shares = (lost / lost.sum()).to(self._y)
        edges = torch.cumsum(shares, 0)
        with bar(draws, progress) as step:
            found = []
            for place in stratified(len(self._y), draws, self._generator, self._y):
                k = torch.clamp(torch.searchsorted(edges, place), max=len(shares) - 1)
                found.append(self._term(k + 2) / (draws * shares[k]))
                step()
        return with_error(found)

    def log_weight(self, decoder: Decoder, progress: bool) -> Tensor:
        """log p(x, x_1 ... x_K) - log q(x_1 ... x_K | x) of one path a row, drawn from the noise end."""
        chain, y = self._chain, self._y
        z = self._draw()
        u = chain["u"][-1]
        state = (1 - u) * y + u * z
        total = 0.5 * sum_event(z**2 - (state / u) ** 2)
        with bar(chain.steps, progress) as step:
            for k in range(chain.steps, 1, -1):
                which = torch.full((len(y),), k, device=y.device)
                D_hat, place = chain.ask(state, which, self._cond)
                var, log_ratio = chain.variance(which, y, place)
                z, keep, add, u = self._draw(), chain["keep"][k - 1], chain["add"][k - 1], chain["u"][k - 1]
                noise = chain["bridge"][k - 1].sqrt() * z
                missed = add * (y - (state - u * D_hat)) + noise  # y_{k-1} less the model's mean
                total = total - 0.5 * sum_event(log_ratio + missed**2 / var - z**2)
                state = keep * state + add * y + noise
                step()
            u = chain["u"][0]
            D_hat, place = chain.ask(state, torch.ones(len(y), dtype=torch.long, device=y.device), self._cond)
            step()
        return total - chain.reconstruction(decoder, y, D_hat - (state - y) / u, place)


def stratified(n: int, draws: int, generator: Generators, y: Tensor) -> list[Tensor]:
    """`draws` vectors (n,) of numbers in (0, 1], two in each of draws/2 equal slices."""
    return [(j // 2 + uniform(n, generator, y.dtype, y.device)) / (draws // 2) for j in range(draws)]


def with_error(found: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The draws (B, draws) and the standard error of their sum, from the differences within the pairs."""
    terms = torch.stack(found, 1)
    return terms, (terms[:, ::2] - terms[:, 1::2]).square().sum(1).sqrt()


def check_draws(draws: object) -> None:
    """An even number of at least two."""
    if _checks.whole("draws", draws, least=2) % 2:
        raise ValueError(f"draws must be even, two to a slice of log(1 + SNR), and it is {draws}.")


def _solver(
    model: Model, x: Tensor, solver: Ancestral, cond: Mapping[str, object], options: dict[str, object]
) -> Ancestral:
    """The solver, checked on the model's path, with "optimal" replaced by the variances themselves."""
    ModelChain(model, x.double(), solver, x.dtype)
    if isinstance(solver.variance, str) and solver.variance == "optimal" and len(x):
        best = optimal_variance(model, x, solver.steps, grid=solver.grid, cond=cond, **options)
        return Ancestral(solver.steps, variance=best, grid=solver.grid)
    return solver


def joined(found: list[tuple[Tensor, Tensor, Tensor | None, Tensor]], x: Tensor) -> VLB:
    """The parts' (prior, transitions, standard error, decoder) as one."""
    empty = (x.new_empty(0), x.new_empty(0, 0), None, x.new_empty(0))
    columns = list(zip(*(found or [empty]), strict=True))
    dtype = torch.promote_types(x.dtype, torch.float32)
    prior, transitions, error, decoder = (None if c[0] is None else torch.cat(c).to(dtype) for c in columns)
    bound = VLB(prior, transitions, decoder, event_size(x.shape), error)
    _refuse_non_finite(bound.total)
    return bound


def _refuse_non_finite(total: Tensor) -> None:
    bad = int((~torch.isfinite(total)).sum())
    if bad:
        raise NonFiniteError(f"The bound of {bad} of {len(total)} samples is not finite; check the network's output.")
