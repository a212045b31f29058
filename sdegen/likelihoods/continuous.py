"""The variational bound in continuous time: a chain of infinitely many steps.

As K grows, the sum of the chain's L_{k-1} tends to 1/2 E of the integral of |eps - eps_hat|^2 over log-SNR, whatever
the schedule. With D = eps - x and D_hat = eps_hat - x_hat, in straight coordinates,

    -log p(x) <= KL( q(x_T | x) | p(x_T) ) + integral over u from u_min of ((1-u)/u) E|D_hat - D|^2 du
                 + E[ -log p(x | x_t at u_min) ]

so that the bound is flow matching's own error, weighted. With d/2 log(2 pi e sigma^2) at u_min in the decoder's place
it bounds E[ -log p(x_t) | x ] of data noised to u_min: with the exact score and prior that is an equality.

References:
    Variational Diffusion Models, Kingma et al., 2021, arXiv:2107.00630.
    Maximum Likelihood Training of Score-Based Diffusion Models, Song et al., 2021, arXiv:2101.09258.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import batch_parts, evaluating, interval
from sdegen._shapes import Generators, sum_event
from sdegen.likelihoods.chain import Data, data_of_bound
from sdegen.likelihoods.decoders import Decoder, Discretized, decoder_of, nats
from sdegen.likelihoods.variational import VLB, Terms, check_draws, error_of_sum, joined, stratified
from sdegen.models.base import Cond, Model
from sdegen.paths.gaussian import GaussianPath, clock_at_log1p_snr, log1p_snr
from sdegen.solvers.base import bar, under_bar


def continuous_vlb(
    model: Model,
    x: Tensor,
    *,
    decoder: str | Discretized = "gaussian",
    cond: Cond = None,
    generator: Generators = None,
    u_min: float | None = None,
    u: tuple[float, float] | None = None,
    draws: int = 64,
    batch_size: int | None = None,
    progress: bool = False,
) -> VLB:
    """Kingma et al.'s bound on -log p(x) in continuous time, in nats: `vlb` as the number of steps goes to infinity.

        -log p(x) <= KL( q(x_T | x) | p(x_T) ) + 1/2 E of the integral of |eps - eps_hat|^2 d log-SNR, from the noise
                     end down to the clock u_min, + E[ -log p(x | x_t at u_min) ]

    The likelihood that is bounded is that of this model: start from the path's prior, follow the reverse SDE down to
    the clock u_min, and draw x there from the decoder, whose mean is x_hat and whose deviation is sigma/alpha. Of the
    path only the two ends matter. Both expectations are over the noise eps in x_t. x are clean data on every path; on
    `VESDE` the first latent is x at sigma_min, of which `log_prob` speaks, and so does the result's `cross_entropy`.

    The first term is exact. The integral is estimated without bias: `draws` random clocks per sample, each with an eps
    of its own, two of them in each of draws/2 equal slices of w = log(1 + SNR), which is close to the log-SNR where
    that is large and stays finite at pure noise. `standard_error` measures the spread of this estimate over clocks and
    eps. The decoder's term is computed at a single eps, and its spread is not part of `standard_error`.

    Args:
        model: draws + 1 network calls on every part of x.
        x: clean data (B, *event).
        decoder: as in `vlb`.
        cond: as in `vlb`.
        generator: a torch.Generator or one per sample.
        u_min: the clock of the first latent, by default the start u[0] of the path's part, and where data are clean
            there 1e-3, or on a `DDPM` path the clock of its first trained step.
        u: (from, to) on the straight clock sigma/(alpha + sigma), from < to: the part of the path, all of it by
            default; at u[1] the prior is N(0, sigma^2).
        draws: the number of clocks per sample, even.
        batch_size: as in `vlb`.
        progress: whether to show a bar, of the network calls, or of the parts where there are several (needs tqdm).

    Returns:
        The terms; `transitions`, (B, draws), sum up to the estimate of the integral.

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, before the first network call.
        NonFiniteError: for a bound that is NaN or infinite.

    Examples:
        >>> law = sdegen.Gaussian([1.0], 0.5)
        >>> x = law.sample(2000)
        >>> bound = sdegen.continuous_vlb(law.model(sdegen.VPSDE()), x)
        >>> bool((bound.total.mean() + law.log_prob(x).mean()).abs() < 0.1)  # the bound of an exact model is tight
        True

    References:
        Variational Diffusion Models, Kingma et al., 2021, arXiv:2107.00630.
    """
    data = data_of_bound(model, x, cond, None, generator)
    scored_by = decoder_of(decoder, x)
    check_draws(draws)
    low, high = interval(model, "noise", u)
    latents = first_latent(model.path, u_min, low, high), high
    with evaluating(model):
        parts = under_bar(list(batch_parts(x, batch_size)), progress)
        terms = [_terms(model, data.part(rows), latents, scored_by, draws, own_bar) for rows, own_bar in parts]
    return joined(terms, x, model, latents)


def _terms(
    model: Model, data: Data, latents: tuple[float, float], decoder: Decoder, draws: int, progress: bool
) -> Terms:
    """The prior's term, random values whose sum estimates the integral, and the decoder's term.

    In w = log(1 + SNR), |dw| = 2 (1-u) du / (u ((1-u)^2 + u^2)), the integrand is ((1-u)^2 + u^2)/2 |D_hat - D|^2.
    """
    y, (u_min, u_max) = data.y, latents
    top, bottom = log1p_snr(torch.tensor([u_min, u_max], dtype=torch.float64)).tolist()
    clocks = [clock_at_log1p_snr(top + (bottom - top) * fraction) for fraction in stratified(y, data.generator, draws)]
    first = torch.full_like(clocks[0], u_min)
    missed = errors(model, data, [*clocks, first], progress)
    integrand = [((1 - u) ** 2 + u**2) / 2 * sum_event(error**2) for u, error in islice(missed, draws)]
    ((_, error),) = missed
    transitions = (top - bottom) / draws * torch.stack(integrand, 1)
    std = torch.full_like(first[:1], u_min / (1 - u_min))
    decoded = nats(decoder, y, y - u_min * error, std)
    return Terms(data.prior(u_max), transitions, error_of_sum(transitions), decoded)


class Noised(Protocol):
    """What is noised: data, see `Data`, or a law of them."""

    @property
    def y(self) -> Tensor:
        """Like a state, (B, *event)."""

    @property
    def cond(self) -> Mapping[str, object]:
        """What the network receives."""

    @property
    def dtype(self) -> torch.dtype:
        """That of the network's input, unless its parameters have their own."""

    def noised(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """A state at the clocks `u` (B,), and D = eps - x there, or what is expected of it."""


def errors(model: Model, data: Noised, clocks: Sequence[Tensor], progress: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """(u, D_hat - D) at `clocks`, one per sample (B,), each with an eps of its own: one network call each."""
    every, size = torch.cat([*clocks]), len(data.y)
    plan = model.plan(data.y, every, None, -torch.ones_like(every), torch.ones_like(every))
    plan = replace(plan, dtype=model.working_dtype(data.dtype))
    with bar(len(clocks), progress) as step_done:
        for i, u in enumerate(clocks):
            state, D = data.noised(u)
            query = plan.rows(slice(i * size, (i + 1) * size), state)
            yield u, model.estimate(state, query, data.cond) - D
            step_done()


def first_latent(path: GaussianPath, u_min: float | None, low: float, high: float) -> float:
    """The clock of the first latent: that of noised data, of a chain's first step, or a small one."""
    if u_min is None and low > 0:
        return low
    if u_min is None:
        u_min = 1e-3 if path.steps is None else float(path.clock(path.at(1 / path.steps)))
    return _checks.real("u_min", u_min, low, high, strict=True)
