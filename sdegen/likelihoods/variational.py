"""Bounds on the log-likelihood of the chain: the variational bound, term by term, and its many-sample form.

    -log p(x) <= L_K + sum over k = 2 ... K of L_{k-1} + L_0                                        (terms in chain.py)
    log p(x)  >= E log of the mean over paths of w,   w = p(x, x_1 ... x_K) / q(x_1 ... x_K | x)

Neither bounds the likelihood of the ODE, `log_prob`, which is another model with the same network. In the terms of the
first there is a second bound, on data noised to x_1: without the decoder it is a divergence of two laws of paths, and

    E[ -log p(x_1) | x ] <= L_K + sum over k of L_{k-1} + d/2 log(2 pi e sigma_1^2)

with equality where the model's score and prior are those of the data and the steps are infinitely many.

References:
    Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
    Importance Weighted Autoencoders, Burda et al., 2016, arXiv:1509.00519.
    Variational Diffusion Models, Kingma et al., 2021, arXiv:2107.00630.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import batch_parts, evaluating, scale_at
from sdegen._checks import NonFiniteError
from sdegen._shapes import Generators, event_size, sum_event, summary, uniform
from sdegen.likelihoods.chain import Answer, ChainOnData, data_of_bound, fitted
from sdegen.likelihoods.decoders import Decoder, Discretized, decoder_of
from sdegen.models.base import Cond, Model
from sdegen.paths.gaussian import log1p_snr
from sdegen.solvers import Ancestral
from sdegen.solvers.base import bar
from sdegen.solvers.grids import Grid


@dataclass(frozen=True, eq=False)
class VLB:
    """An upper bound on -log p(x) of clean data for every sample of a batch, in nats, term by term.

    Each term is an unbiased estimate over the noise in x_k: `total` is a bound in expectation.

    Attributes:
        kind: "bound".
        prior: L_K, (B,).
        transitions: L_1 ... L_{K-1}, nearest the data first, (B, K-1), or of a chain that ends at noised data (B, K);
            or (B, draws) numbers whose sum estimates the sum of these, in the limit of many steps their integral.
        decoder: L_0, (B,): minus a log-density with the Gaussian decoder, else minus a log-probability.
        size: d, the number of values in one sample.
        u: the clocks of the first latent, which the decoder reads, and of the last, which has the prior.
        sigma: the deviation of the noise in the first latent.
        standard_error: of the sum of `transitions`, (B,), where these were estimated at random steps or clocks, else
            None. It measures the spread over the choice of these steps and, unless `noise` fixed it, over the eps at
            each of them; the decoder's term is computed at a single eps, whose spread is not part of it.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.DDPM.linear(100))
        >>> bound = sdegen.vlb(model, torch.ones(3, 1))
        >>> parts = bound.prior + bound.transitions.sum(1) + bound.decoder
        >>> torch.allclose(bound.total, parts), bound.transitions.shape
        (True, torch.Size([3, 99]))
    """

    kind: ClassVar[str] = "bound"

    prior: Tensor
    transitions: Tensor
    decoder: Tensor
    size: int
    u: tuple[float, float]
    sigma: float
    standard_error: Tensor | None = None

    __repr__ = summary

    @property
    def total(self) -> Tensor:
        """L_K + sum of L_{k-1} + L_0, (B,), in nats."""
        return self.prior + self.transitions.sum(1) + self.decoder

    @property
    def log_prob(self) -> Tensor:
        """-`total`, (B,): the lower bound on log p(x) that it is, in nats."""
        return -self.total

    @property
    def cross_entropy(self) -> Tensor:
        """The bound on E[ -log p(x_1) | x ] of data noised to the first latent x_1, (B,), in nats, without a decoder.

            L_K + sum of L_{k-1} + d/2 log(2 pi e sigma^2)

        It speaks of the density that `log_prob(model, x_1, u=bound.u)` gives of noised data: of x at sigma_min on
        `VESDE`. `standard_error` is its error where steps or clocks are random.
        """
        entropy = 0.5 * self.size * math.log(2 * math.pi * math.e * self.sigma**2)
        return self.prior + self.transitions.sum(1) + entropy

    @property
    def bits_per_dim(self) -> Tensor:
        """`total` / (d ln 2), (B,): bits/dim, of the levels or, with the Gaussian decoder, of the density of x."""
        return self.total / (self.size * math.log(2))


@dataclass(frozen=True, eq=False)
class IWAE:
    """A lower bound on log p(x) from the importance weights of whole paths, in nats.

    Attributes:
        kind: "bound": in expectation, `log_prob` of one draw of the paths may lie above log p(x).
        log_weights: log w of every path, or of every draw of z for `LatentModel.iwae`, (B, samples).
        size: d, the number of values in one sample.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.DDPM.linear(20))
        >>> bound = sdegen.iwae(model, torch.ones(3, 1), samples=8)
        >>> bound.log_weights.shape, bound.effective_samples.shape
        (torch.Size([3, 8]), torch.Size([3]))
    """

    kind: ClassVar[str] = "bound"

    log_weights: Tensor
    size: int

    __repr__ = summary

    @property
    def log_prob(self) -> Tensor:
        """The bound, the log of the mean weight, (B,): in expectation it rises with the number of paths."""
        return torch.logsumexp(self.log_weights, 1) - math.log(self.log_weights.shape[1])

    @property
    def standard_error(self) -> Tensor:
        """Of `log_prob` over the draw of the paths, by the delta method, (B,); NaN for a single path.

        It is not to be trusted, and mostly too small, where `effective_samples` is far below the number of paths.
        """
        weights = torch.exp(self.log_weights - self.log_weights.amax(1, keepdim=True))
        n = weights.shape[1]
        return weights.std(1) / (math.sqrt(n) * weights.mean(1)) if n > 1 else torch.full_like(weights[:, 0], math.nan)

    @property
    def effective_samples(self) -> Tensor:
        """(sum of w)^2 / sum of w^2, (B,), between 1 and the number of paths; NaN where every weight is 0."""
        return torch.exp(2 * torch.logsumexp(self.log_weights, 1) - torch.logsumexp(2 * self.log_weights, 1))

    @property
    def bits_per_dim(self) -> Tensor:
        """-`log_prob` / (d ln 2), (B,), bits/dim."""
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
    grid: Grid | Tensor | None = None,
    u: tuple[float, float] | None = None,
    draws: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> VLB:
    """The variational bound on -log p(x) of the DDPM chain, every term, in nats.

        -log p(x) <= E[ L_K + sum over k = 2 ... K of L_{k-1} + L_0 ]

    per sample, over the noise eps in x_k, one draw of it per term. Every L_{k-1} is a Kullback-Leibler divergence
    between two normal laws, taken in closed form; p(x_K) is the path's own prior, N(0, sigma_K^2). x are clean data,
    also where the chain ends above them, at a clock u_0 > 0, as on `VESDE` and with `u=`: there data are noised to u_0,
    and L_0 scores them by a normal law about x_hat with deviation sigma_0/alpha_0. (Kingma et al.'s own decoder on
    levels has x_0/alpha_0 in place of x_hat, and asks no network.) `log_prob(u=)` scores noised data instead, and so
    does the result's `cross_entropy`.

    Args:
        model: K network calls on every part of x, one more where the chain ends at noised data; or draws + 1.
        x: clean data (B, *event).
        variance: of the chain's steps, as `Ancestral` samples them: "beta"; "posterior", which borrows the variance of
            the second step for the first; "optimal", estimated from this x and its noise, so that the chain is fitted
            to the data it is scored on (for held-out data take the `optimal_variance` of other data); "learned"; or a
            tensor (K,) in the order of the betas.
        decoder: "gaussian" for continuous data, or `Discretized(levels, low, high)` for data on levels.
        cond: keyword arguments for the network; tensors with one row per sample are cut with x, `Shared` ones are not.
        noise: standard normals like x, the eps of every k; by default fresh draws from `generator` for every k.
        generator: a torch.Generator or one per sample.
        steps: of the chain, on a path that is none or for a shorter one, as in `Ancestral`.
        grid: of the chain, as in `Ancestral`.
        u: (from, to) on the straight clock sigma/(alpha + sigma), from < to: the chain on this part of the path, by
            default all of it or what `path.respaced(...)` spans. At u[1] < 1 the prior N(0, sigma^2) is an assumption
            of the model, and L_K says what it costs.
        draws: an even number of random k per sample instead of all K-1; `standard_error` says how far off the sum of
            their terms may be.
        batch_size: rows of x in one network call; all of them by default. One generator per sample gives a sample the
            same draws in every part; a single one, or none, serves one part after another, with other draws.
        progress: whether to show a bar, of the network calls, or of the parts where there are several (needs tqdm).

    Returns:
        The terms, with `.total` in nats and `.bits_per_dim`.

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, such as data off the decoder's levels, before the first network call.
        NonFiniteError: for a bound that is NaN or infinite.

    Examples:
        >>> law = sdegen.Gaussian([1.0], 0.5)
        >>> x = law.sample(1000)
        >>> bound = sdegen.vlb(law.model(sdegen.DDPM.linear(100)), x)
        >>> bool(bound.total.mean() > -law.log_prob(x).mean())
        True

    References:
        Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
    """
    data = data_of_bound(model, x, cond, noise, generator)
    scored_by = decoder_of(decoder, x)
    if draws is not None:
        check_draws(draws)
    laid = ChainOnData.lay(model, data, Ancestral(steps, variance=variance, grid=grid), u)
    parts = list(batch_parts(x, batch_size))
    with evaluating(model):
        laid, turns = fitted(laid, variance, parts, parts, progress)
        terms = [_terms(laid.part(rows), scored_by, draws, own_bar) for rows, own_bar in turns]
    return joined(terms, x, model, laid.latents)


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
    grid: Grid | Tensor | None = None,
    u: tuple[float, float] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> IWAE:
    """The importance-weighted lower bound on log p(x) of the DDPM chain, in nats.

        log p(x) >= E log( 1/S sum over s of w_s ),   w = p(x, x_1 ... x_K) / q(x_1 ... x_K | x)

    For each x, S = `samples` whole paths x_1 ... x_K are drawn from q(. | x), by noising x; w is the joint density of
    path and x under the chain over the path's density under q. The expectation is over these paths, the only thing
    that is random, and `standard_error` is the spread of the log over their draw. Every w has the mean p(x), so one
    path gives -`vlb` in expectation, and the bound rises to log p(x) with S, with a gap that falls like 1/S once the
    weights have a finite variance.

    Args:
        model: samples K network calls on all of x, or samples (K + 1), see `vlb`.
        x: data (B, *event).
        samples: S, the number of paths per sample of the data.
        variance: as in `vlb`; "optimal" is estimated from x.
        decoder: as in `vlb`.
        cond: as in `vlb`.
        generator: a torch.Generator or one per sample.
        steps: as in `vlb`.
        grid: as in `vlb`.
        u: as in `vlb`.
        batch_size: rows in one network call, B by default; with more, several paths of a sample are followed at once.
            On the draws it acts as in `vlb`.
        progress: whether to show a bar, of the network calls, or of the parts where there are several (needs tqdm).

    Returns:
        The log-weights, with `.log_prob`, its `.standard_error` and `.effective_samples`.

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, before the first network call.
        NonFiniteError: for a bound that is NaN or infinite.

    Examples:
        >>> law = sdegen.Gaussian([1.0], 0.5)
        >>> model, x = law.model(sdegen.DDPM.linear(50)), law.sample(200)
        >>> one, many = (sdegen.iwae(model, x, samples).log_prob.mean() for samples in (1, 16))
        >>> bool(one < many)  # more paths, a tighter bound
        True

    References:
        Importance Weighted Autoencoders, Burda et al., 2016, arXiv:1509.00519.
    """
    samples = _checks.whole("samples", samples)
    data = data_of_bound(model, x, cond, None, generator)
    scored_by = decoder_of(decoder, x)
    laid = ChainOnData.lay(model, data, Ancestral(steps, variance=variance, grid=grid), u)
    parts = list(batch_parts(x, batch_size))
    one_each = isinstance(generator, (list, tuple))  # from each of them one draw at a time
    with evaluating(model):
        rows = list(_rows_of_paths(len(x), samples, batch_size, one_each))
        laid, turns = fitted(laid, variance, parts, rows, progress)
        of_paths = [_log_weight(laid.part(part), scored_by, own_bar) for part, own_bar in turns]
    log_weights = torch.cat([data.y.new_empty(0), *of_paths]).reshape(samples, len(x)).T
    _refuse_non_finite(log_weights.sum(1))
    return IWAE(log_weights.to(torch.promote_types(x.dtype, torch.float32)), event_size(x.shape))


class Terms(NamedTuple):
    """A part's terms, as in `VLB`."""

    prior: Tensor
    transitions: Tensor
    standard_error: Tensor | None
    decoder: Tensor


def _terms(laid: ChainOnData, decoder: Decoder, draws: int | None, progress: bool) -> Terms:
    """L_K, L_1 ... L_{K-1} or random ones over their expected number, and L_0, last."""
    steps: list[int] | list[Tensor] = list(range(2, len(laid) + 1))
    expected = None
    if draws is not None and steps:
        steps, expected = _random_steps(laid, draws)
    answers = laid.answers([*steps, 1], progress)
    terms = list(map(laid.transition, islice(answers, len(steps))))
    (first,) = answers
    transitions = torch.stack(terms, 1) if terms else laid.data.y.new_empty(len(laid.data.y), 0)
    transitions = transitions if expected is None else transitions / expected
    error = None if expected is None else error_of_sum(transitions)
    return Terms(laid.prior(), transitions, error, laid.reconstruction(first, decoder))


def _random_steps(laid: ChainOnData, draws: int) -> tuple[list[Tensor], Tensor]:
    """Random k from 2 ... K, `draws` tensors (B,), and how often each was to be expected among them, (B, draws).

    The chance of k is the share of step k in the fall of log(1 + SNR) from k = 1 to K: in proportion to that fall a
    step costs about ((1-u)^2 + u^2)/2 |D_hat - D|^2, which is bounded, so that no term is rare and large.
    """
    data = laid.data
    lost = torch.diff(log1p_snr(laid.chain.u[:-1])).flip(0)
    shares = (lost / lost.sum()).to(data.y)
    edges = torch.cumsum(shares, 0)
    chosen = [
        torch.clamp(torch.searchsorted(edges, fraction), max=len(shares) - 1)
        for fraction in stratified(data.y, data.generator, draws)
    ]
    return [i + 2 for i in chosen], draws * torch.stack([shares[i] for i in chosen], 1)


def stratified(y: Tensor, generator: Generators, draws: int) -> list[Tensor]:
    """`draws` vectors (B,) of numbers in (0, 1], two in each of draws/2 equal slices, for the rows of `y`."""
    return [(j // 2 + uniform(len(y), generator, y.dtype, y.device)) / (draws // 2) for j in range(draws)]


def error_of_sum(terms: Tensor) -> Tensor:
    """The standard error of the sum of stratified terms (B, draws), (B,), from the differences within the pairs."""
    return (terms[:, ::2] - terms[:, 1::2]).square().sum(1).sqrt()


def check_draws(draws: object) -> None:
    """An even number of at least two."""
    if _checks.whole("draws", draws, least=2) % 2:
        raise ValueError(f"draws must be even, two to a slice of log(1 + SNR), and it is {draws}.")


def _rows_of_paths(B: int, samples: int, batch_size: int | None, one_each: bool) -> Iterator[slice | Tensor]:
    """The rows of x behind the paths that go through the network at once: all paths, sample after sample."""
    size = B if batch_size is None else batch_size
    size = min(size, B) if one_each else size
    for start in range(0, B * samples, max(size, 1)):
        rows = torch.arange(start, min(start + size, B * samples)) % B
        yield slice(0, B) if size == B else rows


def _log_weight(laid: ChainOnData, decoder: Decoder, progress: bool) -> Tensor:
    """log p(x, x_1 ... x_K) - log q(x_1 ... x_K | x) of one path per row, drawn from the noise end, (B,)."""
    data, K = laid.data, len(laid)
    y, z, u = data.y, data.eps(), laid.at("u", K)
    state = (1 - u) * y + u * z
    log_w = 0.5 * sum_event(z**2 - (state / u) ** 2)
    with bar(K, progress) as step_done:
        for k in range(K, 1, -1):
            D_hat, position = laid.ask(state, k)
            var, log_ratio = laid.variance(k, position)
            u, keep, add, bridge = (laid.at(name, k) for name in ("u", "keep", "add", "bridge"))
            z = data.eps()
            noise = bridge.sqrt() * z
            apart = add * (y - (state - u * D_hat)) + noise  # y_{k-1} less the model's mean
            log_w = log_w - 0.5 * sum_event(log_ratio + apart**2 / var - z**2)
            state = keep * state + add * y + noise
            step_done()
        D_hat, position = laid.ask(state, 1)
        step_done()
    last = Answer(1, state, (state - y) / laid.at("u", 1), D_hat, position)
    return log_w - laid.reconstruction(last, decoder)


def joined(parts: list[Terms], x: Tensor, model: Model, u: tuple[float, float]) -> VLB:
    """The terms of all parts as one, between the latents at the clocks `u`."""
    parts = parts or [Terms(x.new_empty(0), x.new_empty(0, 0), None, x.new_empty(0))]
    errors = [terms.standard_error for terms in parts if terms.standard_error is not None]

    def column(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors).to(torch.promote_types(x.dtype, torch.float32))

    bound = VLB(
        column([terms.prior for terms in parts]),
        column([terms.transitions for terms in parts]),
        column([terms.decoder for terms in parts]),
        event_size(x.shape),
        u,
        u[0] * scale_at(model, u[0]),
        column(errors) if errors else None,
    )
    _refuse_non_finite(bound.total)
    return bound


def _refuse_non_finite(total: Tensor) -> None:
    bad = int((~torch.isfinite(total)).sum())
    if bad:
        raise NonFiniteError(f"The bound of {bad} of {len(total)} samples is not finite; check the network's output.")
