"""The variational bound as cross-entropy: what every step of a chain costs beyond what it must.

Averaged over the data, the bound of chain.py is also

    H(data) + KL( q(x_K) | p(x_K) ) + sum over k = 1 ... K of E KL( q(x_{k-1} | x_k) | p(x_{k-1} | x_k) )

with the true reverse kernel instead of the posterior given x: bound minus entropy is the divergence between the
two laws of whole paths. Where the data are Gaussian that kernel is too, and with x_true = E[x | x_k] and variances v_i

    E KL = 1/2 sum over i of [ log(var/v_i) - 1 + v_i/var ] + E|add (x_hat - x_true)|^2 / (2 var)

tells the chain's own error, the first part, from the model's, the second. A chain that ends at noised data has one
step more, the decoder's, whose kernel is that of x given x_0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sdegen._arguments import batch_parts, evaluating
from sdegen._checks import NonFiniteError
from sdegen._shapes import Generators, sum_event, summary
from sdegen.likelihoods.chain import ChainOnData, data_of_bound, fitted
from sdegen.models.base import Cond, Model
from sdegen.models.exact import Gaussian
from sdegen.solvers import Ancestral
from sdegen.solvers.grids import Grid


@dataclass(frozen=True, eq=False)
class EntropyForm:
    """The parts of the bound averaged over the data, in nats.

    Attributes:
        kind: "bound".
        prior: KL( q(x_K) | p(x_K) ), a float.
        entropy: H(data), a float.
        chain: what the kernel's shape costs in each step, from the data on, (K,), float64 on the CPU; zero if its
            variance is the true one. Of a chain that ends at noised data the first is the decoder's, and K counts it.
        model: what the model's mean costs in each step at each sample, (B, K), from the data on; zero for the exact
            model.

    Examples:
        >>> law = sdegen.Gaussian([1.0], 0.5)
        >>> parts = sdegen.entropy_form(law.model(sdegen.DDPM.linear(20)), law, law.sample(64))
        >>> total = parts.prior + parts.entropy + parts.chain.sum() + parts.model.sum(1).mean()
        >>> bool(abs(parts.total - total) < 1e-5)
        True
    """

    kind: ClassVar[str] = "bound"

    prior: float
    entropy: float
    chain: Tensor
    model: Tensor

    __repr__ = summary

    @property
    def total(self) -> float:
        """The bound on -log p, averaged over the data, in nats."""
        return self.prior + self.entropy + float(self.chain.sum()) + float(self.model.mean(0).sum())


def entropy_form(
    model: Model,
    data: Gaussian,
    x: Tensor,
    *,
    variance: str | Tensor = "beta",
    cond: Cond = None,
    noise: Tensor | None = None,
    generator: Generators = None,
    steps: int | None = None,
    grid: Grid | Tensor | None = None,
    u: tuple[float, float] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> EntropyForm:
    """The bound of a model's chain on Gaussian `data`, split into the chain's error and the model's.

    With a Gaussian decoder, the average of `vlb(...).total` over the same law; the prior's term, the entropy and the
    chain's error are exact, the model's is an average over `x` and one draw of eps in each step.

    Args:
        model: K network calls, K more for "optimal" variances.
        data: the law of the data.
        x: draws from it, (B, *event), B at least 1, on which the model's error is measured.
        variance: as in `vlb`, without "learned".
        cond: as in `vlb`.
        noise: as in `vlb`.
        generator: as in `vlb`.
        steps: as in `vlb`.
        grid: as in `vlb`.
        u: as in `vlb`; x and `data` are clean.
        batch_size: as in `vlb`.
        progress: whether to show a bar, of the network calls, or of the parts where there are several (needs tqdm).

    Returns:
        The parts, with `.total` in nats.

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, before the first network call.
        NonFiniteError: for a network whose answer is NaN or infinite.

    Examples:
        >>> law = sdegen.Gaussian([1.0], 0.5)
        >>> model = law.model(sdegen.DDPM.linear(100))
        >>> parts = sdegen.entropy_form(model, law, law.sample(64))
        >>> f"{parts.entropy:.4f} {parts.model.abs().max():.4f}"  # the exact model's own error is zero
        '0.7258 0.0000'
    """
    if not isinstance(data, Gaussian):
        raise TypeError(f"The true reverse kernel is known for a Gaussian, and data is {data!r}.")
    draws = data_of_bound(model, x, cond, noise, generator)
    data._check(x)
    if not len(x):
        raise ValueError(f"The model's error cannot be measured on an empty batch, shape {tuple(x.shape)}.")
    solver, parts = Ancestral(steps, variance=variance, grid=grid), list(batch_parts(x, batch_size))
    if isinstance(variance, str) and variance == "learned":
        raise ValueError("The chain's own error needs variances that do not depend on x, and variance is 'learned'.")
    ours = ChainOnData.lay(model, draws, solver, u)
    true = ChainOnData.lay(data.model(model.path), replace(draws, cond={}), solver, u)
    with evaluating(model):
        ours, turns = fitted(ours, variance, parts, parts, progress)
        apart = [_apart(ours.part(rows), true.part(rows), own_bar) for rows, own_bar in turns]
    numbers = ours.numbers
    errors = 0.5 * (numbers["add"] * numbers["u"]) ** 2 / numbers["var"] * torch.cat(apart)
    if not bool(torch.isfinite(errors).all()):
        raise NonFiniteError("The network's answer is NaN or infinite at some step of the chain.")
    return EntropyForm(_prior(ours.latents[1], data), data.entropy, _kernels(ours, data), errors)


def _apart(ours: ChainOnData, true: ChainOnData, progress: bool) -> Tensor:
    """|x_hat - x_true|^2 over u^2 in every step, (B, K), at the states that `ours` draws: D_hat less that of `true`."""
    answers = ours.answers(range(1, len(ours) + 1), progress)
    return torch.stack([sum_event((a.D_hat - true.ask(a.state, a.k)[0]) ** 2) for a in answers], 1)


def _prior(u: float, data: Gaussian) -> float:
    """KL( q(x_K) | N(0, sigma_K^2) ), x_K at the clock `u`."""
    signal = ((1 - u) / u) ** 2
    ratio = 1 + signal * data.spectrum
    return float(0.5 * (signal * data.mean.square().sum() + (ratio - 1 - torch.log(ratio)).sum()))


def _kernels(laid: ChainOnData, data: Gaussian) -> Tensor:
    """1/2 sum over i of log(var/v_i) - 1 + v_i/var, (K,), with v_i = bridge + add^2 S_i u^2 / ((1-u)^2 S_i + u^2)."""
    chain = laid.chain
    u, S = chain.u[:-1, None], data.spectrum.to("cpu", torch.float64)
    true = chain.bridge[:, None] + chain.add[:, None] ** 2 * S * u**2 / ((1 - u) ** 2 * S + u**2)
    ratio = laid.numbers["var"].to("cpu", torch.float64)[:, None] / true.flip(0)
    return 0.5 * (torch.log(ratio) - 1 + 1 / ratio).sum(1)
