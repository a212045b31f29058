"""The variational bound in continuous time: a chain of infinitely many steps.

As K grows, the sum of the chain's L_{k-1} tends to 1/2 E of the integral of |eps - eps_hat|^2 over log-SNR, whatever
the schedule. With D = eps - x and D_hat = eps_hat - x_hat, in straight coordinates,

    -log p(x) <= KL( q(x_T | x) | p(x_T) ) + integral over u from u_min of ((1-u)/u) E|D_hat - D|^2 du
                 + E[ -log p(x | x_t at u_min) ]

so that the bound is flow matching's own error, weighted. Variational Diffusion Models, Kingma et al., 2021,
arXiv:2107.00630; Maximum Likelihood Training of Score-Based Diffusion Models, Song et al., 2021, arXiv:2101.09258.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import evaluating
from sdegen._shapes import Generators, like, normal, sum_event
from sdegen.likelihoods.chain import parts, prepared, rows_of, whole_path
from sdegen.likelihoods.decoders import Decoder, Discretized, decoder_of, nats
from sdegen.likelihoods.variational import VLB, check_draws, joined, stratified, with_error
from sdegen.models.base import Cond, Model, Query
from sdegen.paths.gaussian import GaussianPath
from sdegen.solvers.base import bar


def continuous_vlb(
    model: Model,
    x: Tensor,
    *,
    decoder: str | Discretized = "gaussian",
    cond: Cond = None,
    generator: Generators = None,
    u_min: float | None = None,
    draws: int = 64,
    batch_size: int | None = None,
    progress: bool = False,
) -> VLB:
    """The bound of a chain with infinitely many steps between the clock `u_min` and the noise end, in nats.

    u_min: by default 1e-3, or on a `DDPM` path the clock of its first trained step.

    Its first latent is x_t at u_min, from where the decoder, of deviation sigma/alpha, reaches the data; it depends on
    the path only through its ends. Twice draws/2 clocks are drawn a sample, two from each of draws/2 equal slices of
    log(1 + SNR), which is the log-SNR wherever that is large and stays finite at pure noise: the likelihood weight of
    a sample of variance one is then constant. `transitions` holds the draws, `standard_error` the error they leave.

    Other arguments as in `vlb`; draws + 1 network calls a part. Kingma et al., 2021, arXiv:2107.00630.
    """
    y_all, cond, dtype = prepared(model, x, cond, None, generator)
    decoder = decoder_of(decoder, x)
    check_draws(draws)
    low, high = whole_path(model)
    if u_min is None:
        u_min = _first_step(model.path)
    _checks.real("u_min", u_min, low, high, strict=True)
    dtype, found = model.working_dtype(dtype), []
    with evaluating(model):
        for part in parts(x, batch_size):
            y, given, own = y_all[part], _checks.network_arguments(cond, part, len(x)), rows_of(generator, part)
            limit = _Limit(model, y, dtype, given, own)
            terms = limit.integral(u_min, draws, progress)
            prior = 0.5 * ((1 - high) / high) ** 2 * sum_event(y**2)
            found.append((prior, *terms, limit.first_latent(u_min, decoder)))
    return joined(found, x)


@dataclass
class _Limit:
    """The chain's limit for some rows of data."""

    model: Model
    y: Tensor
    dtype: torch.dtype
    cond: Mapping[str, object]
    generator: Generators

    def integral(self, u_min: float, draws: int, progress: bool) -> tuple[Tensor, Tensor]:
        """Random values (B, draws) whose sum estimates the integral, and its standard error.

        In w = log(1 + SNR), |dw| = 2 (1-u) du / (u ((1-u)^2 + u^2)), the integrand is ((1-u)^2 + u^2)/2 |D_hat - D|^2.
        """
        y = self.y
        ends = torch.tensor([u_min, self.model.path.ends[1]], dtype=torch.float64)
        high, low = torch.log1p(((1 - ends) / ends) ** 2).tolist()
        with bar(draws, progress) as step:
            found = []
            for place in stratified(len(y), draws, self.generator, y):
                u = 1 / (1 + torch.sqrt(torch.expm1(high + (low - high) * place)))
                eps, clock = normal(y.shape, self.generator, y.dtype, y.device), like(u, y)
                error = self._ask((1 - clock) * y + clock * eps, u, -1.0, 1.0) - (eps - y)
                found.append(0.5 * (high - low) / draws * ((1 - u) ** 2 + u**2) * sum_event(error**2))
                step()
        return with_error(found)

    def first_latent(self, u_min: float, decoder: Decoder) -> Tensor:
        """-log p(x | x_t at u_min), (B,): the decoder's mean is x_hat, its deviation sigma/alpha."""
        y = self.y
        u = torch.full((len(y),), u_min, dtype=y.dtype, device=y.device)
        state = (1 - u_min) * y + u_min * normal(y.shape, self.generator, y.dtype, y.device)
        return nats(decoder, y, self._ask(state, u, 1.0, 0.0), torch.full_like(u[:1], u_min / (1 - u_min)))

    def _ask(self, y: Tensor, u: Tensor, c: float, d: float) -> Tensor:
        """c x_hat + d eps_hat at states `y`, each at its own clock u (B,)."""
        t, numbers = self.model.query(
            u, self.model.path.time(u), torch.full_like(u, c), torch.full_like(u, d), torch.zeros_like(u)
        )
        query = Query(t, tuple(like(n, y) for n in numbers), self.dtype)
        return self.model.estimate(y, query, self.cond)


def _first_step(path: GaussianPath) -> float:
    """The clock of a chain's first step, or a small one where there is none."""
    if path.steps is None:
        return 1e-3
    return float(path.clock(path.t_data + (path.t_noise - path.t_data) / path.steps))
