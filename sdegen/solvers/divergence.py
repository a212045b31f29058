"""The divergence of the ODE's slope: what a log-density is made of.

    d log p / du = -div(eps_hat - x_hat)    along    dy/du = eps_hat - x_hat

div b = trace of the Jacobian J = sum over i of e_i . J e_i, exactly, or the mean over random vectors z of z . J z.

References:
    FFJORD, Grathwohl et al., 2019, arXiv:1810.01367.
    A Stochastic Estimator of the Trace of the Influence Matrix, Hutchinson, 1989.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators, event_size, signs
from sdegen.models.base import Model, Query

PROBES_AT_ONCE = 16
"""Products with the Jacobian in one backward pass: more take more memory and are not faster."""


@dataclass(frozen=True)
class Hutchinson:
    """Estimate a divergence by random signs z (Rademacher), drawn once for the whole solve: the mean of z . J z.

    The estimate of a log-density is unbiased, with a standard deviation that falls like 1/sqrt(probes) and is of the
    order of a nat for one probe.

    Args:
        probes: how many vectors z per sample.

    Raises:
        TypeError: `probes` is no integer.
        ValueError: `probes` is below 1.

    References:
        A Stochastic Estimator of the Trace of the Influence Matrix, Hutchinson, 1989.
    """

    probes: int = 1

    def __post_init__(self) -> None:
        _checks.whole("probes", self.probes)


def draw_probes(y: Tensor, trace: Hutchinson | None, generator: Generators) -> Tensor:
    """Probes (P, B, d), div = sum over p of z_p . J z_p: the d unit vectors if `trace` is None, else signs/sqrt(P)."""
    B, d = y.shape[0], event_size(y.shape)
    if trace is None:
        return torch.eye(d, dtype=y.dtype, device=y.device)[:, None].expand(d, B, d)
    z = signs((B, trace.probes, d), generator, y.dtype, y.device)
    return z.transpose(0, 1) / math.sqrt(trace.probes)


def drift_and_divergence(
    model: Model, y: Tensor, query: Query, cond: Mapping[str, object], probes: Tensor, chunk: int = 1
) -> tuple[Tensor, Tensor]:
    """The answer to `query` (B, *event) and its divergence (B,), see `with_divergence`."""
    joined = with_divergence(model, y, query, cond, probes, chunk)
    return joined[:, :-1].reshape(y.shape), joined[:, -1]


def with_divergence(
    model: Model, y: Tensor, query: Query, cond: Mapping[str, object], probes: Tensor, chunk: int = 1
) -> Tensor:
    """The answer to `query` and in a last column its divergence, (B, d + 1): one network call, a product for a probe.

    `chunk` products are taken in one backward pass.
    """
    with torch.enable_grad():
        y = y.detach().requires_grad_(True)
        value = model.estimate(y, query, cond)
    divergence = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for start in range(0, len(probes), chunk):
        z = probes[start : start + chunk].reshape(-1, *y.shape)
        last = start + chunk >= len(probes)
        if chunk == 1:
            (product,) = torch.autograd.grad(value, y, z[0], retain_graph=not last)
        else:
            (product,) = torch.autograd.grad(value, y, z, retain_graph=not last, is_grads_batched=True)
        divergence += (product * z).flatten(-y.ndim + 1).sum(-1).reshape(-1, len(y)).sum(0)
    return torch.cat([value.detach().flatten(1), divergence[:, None]], 1)
