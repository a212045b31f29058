"""The variational bound as cross-entropy: what every step of a chain costs beyond what it must.

Averaged over the data, the bound of chain.py is also

    H(data) + KL( q(x_K) | p(x_K) ) + sum over k = 1 ... K of E KL( q(x_{k-1} | x_k) | p(x_{k-1} | x_k) )

with the true reverse kernel in the place of the posterior given x: bound minus entropy is the divergence between the
two laws of whole paths. Where the data are Gaussian that kernel is too, and with x_true = E[x | x_k] and variances v_i

    E KL = 1/2 sum over i of [ log(var/v_i) - 1 + v_i/var ] + E|add (x_hat - x_true)|^2 / (2 var)

tells the chain's own error, the first part, from the model's, the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import evaluating
from sdegen._checks import NonFiniteError
from sdegen._shapes import Generators, normal, sum_event
from sdegen.likelihoods.chain import ModelChain, optimal_variance, prepared
from sdegen.models.base import Cond, Model
from sdegen.models.exact import Gaussian
from sdegen.solvers import Ancestral
from sdegen.solvers.base import bar
from sdegen.solvers.grids import Grid


@dataclass(frozen=True)
class EntropyForm:
    """The parts of the averaged bound, in nats.

    prior:   KL(q(x_K) | p(x_K)). entropy: H(data). Both floats.
    chain:   (K,), from the step at the data on: what the kernel's shape costs, zero if its variance is the true one.
    model:   (B, K), what the model's mean costs at each sample, zero for the exact model.
    """

    prior: float
    entropy: float
    chain: Tensor
    model: Tensor

    @property
    def total(self) -> float:
        """The averaged bound on -log p."""
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
    grid: Grid | None = None,
    progress: bool = False,
) -> EntropyForm:
    """The bound of a model's chain on Gaussian `data`, split into the chain's error and the model's.

    x:     draws from the data (B, *event), on which the model's error is measured.

    With a Gaussian decoder, the average of `vlb(...).total` over the same law. "learned" variances are refused with a
    ValueError; other arguments as in `vlb`. K network calls.
    """
    if not isinstance(data, Gaussian):
        raise TypeError(f"The true reverse kernel is known for a Gaussian, and data is {data!r}.")
    y, cond, dtype = prepared(model, x, cond, noise, generator)
    data._check(x)
    if not len(x):
        raise ValueError(f"The model's error cannot be measured on an empty batch, shape {tuple(x.shape)}.")
    if isinstance(variance, str):
        _checks.choice("variance", variance, ("beta", "posterior", "optimal"))
    if isinstance(variance, str) and variance == "optimal":
        variance = optimal_variance(model, x, steps, grid=grid, cond=cond, noise=noise, generator=generator)
    solver = Ancestral(steps, variance=variance, grid=grid)
    exact, found = data.model(model.path), []
    with evaluating(model):
        ours, true = (ModelChain(m, y, solver, dtype) for m in (model, exact))
        with bar(ours.steps, progress) as step:
            for k in range(1, ours.steps + 1):
                eps = normal(y.shape, generator, y.dtype, y.device) if noise is None else noise.to(y)
                missed = ours.missed(y, k, eps, cond)[1] - true.missed(y, k, eps, {})[1]
                weight = (ours["add"][k - 1] * ours["u"][k - 1]) ** 2 / ours["var"][k - 1]
                found.append(0.5 * weight * sum_event(missed**2))
                step()
    errors = torch.stack(found, 1)
    if not bool(torch.isfinite(errors).all()):
        raise NonFiniteError("The network's answer is NaN or infinite at some step of the chain.")
    return EntropyForm(_prior(model, data), data.entropy, _kernels(model, data, solver), errors)


def _prior(model: Model, data: Gaussian) -> float:
    """KL( q(x_K) | N(0, sigma_K^2) )."""
    u = model.path.ends[1]
    signal = ((1 - u) / u) ** 2
    ratio = 1 + signal * data.spectrum
    return float(0.5 * (signal * data.mean.square().sum() + (ratio - 1 - torch.log(ratio)).sum()))


def _kernels(model: Model, data: Gaussian, solver: Ancestral) -> Tensor:
    """1/2 sum over i of log(var/v_i) - 1 + v_i/var, (K,), with v_i = bridge + add^2 S_i u^2 / ((1-u)^2 S_i + u^2)."""
    chain = solver.chain(model.path, *reversed(model.path.ends))
    u, S = chain.u[:-1, None], data.spectrum
    true = chain.bridge[:, None] + chain.add[:, None] ** 2 * S * u**2 / ((1 - u) ** 2 * S + u**2)
    ratio = solver.variances(chain)[:, None] / true
    return 0.5 * (torch.log(ratio) - 1 + 1 / ratio).sum(1).flip(0)
