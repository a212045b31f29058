"""Laws of one latent by quadrature: their divergences, and score_kl's integral through the code that estimates it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

import sdegen
from sdegen.likelihoods.continuous import errors
from sdegen.likelihoods.posterior import Clocks, Posterior, latents_of

THREE = sdegen.GaussianMixture([[-1.0], [0.3], [1.5]], [0.3, 0.15, 0.5], [0.2, 0.5, 0.3])


def legendre(panels: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [low, high], twenty in each of so many equal panels."""
    x, w = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(20))
    width = (high - low) / panels
    left = low + width * torch.arange(panels)
    return (left[:, None] + width * (x + 1) / 2).flatten(), (w * width / 2).repeat(panels)


def normal_nodes(panels: int, most: float = 10.0) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a mean under N(0, 1)."""
    z, w = legendre(panels, -most, most)
    return z, w * torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


def divergence(mean: float, std: float, log_prob) -> float:
    """KL(N(mean, std^2) || p)."""
    z, w = normal_nodes(100)
    log_q = -0.5 * z**2 - math.log(std * math.sqrt(2 * math.pi))
    return float((w * (log_q - log_prob((mean + std * z)[:, None]))).sum())


class AtNodes:
    """A posterior whose states are not drawn but given, one row for every pair of a clock and a normal number."""

    def __init__(self, q: Posterior, z: Tensor):
        self.q, self.z, self.y, self.cond, self.dtype = q, z, q.y, q.cond, q.dtype

    def noised(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.q.state(u, self.z)


def by_quadrature(mean: float, std: float, prior: sdegen.Model, clocks: int = 6, normals: int = 60) -> float:
    """What score_kl estimates for one latent of one value, with nodes in place of draws; no last term."""
    latents = latents_of(prior, None)
    start, u_min, high, _ = latents
    assert u_min == start
    fractions, of_clock = legendre(clocks, 0.0, 1.0)
    z, of_normal = normal_nodes(normals)
    weights = (of_clock[:, None] * of_normal).flatten()
    fractions, z = (part.flatten() for part in torch.broadcast_tensors(fractions[:, None], z))
    q = Posterior.of(prior, torch.full((len(z), 1), mean), torch.full((len(z), 1), std), start, {}, None)
    along = Clocks.of(prior, q, latents)
    ((u, error),) = errors(prior, AtNodes(q, z[:, None]), [along.at(fractions)], False)
    integral = (weights * along.length * along.integrand(u, error.square().sum(1))).sum()
    return float(integral + q.at_noise(high)[0] + q.about_x_hat(u_min)[0])
