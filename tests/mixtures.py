"""The exact targets of the log-densities' tests, with their models and exact priors, and networks that count."""

from __future__ import annotations

from typing import NamedTuple

import torch
from problems import mixture64, ring
from torch import Tensor, nn

import sdegen


def gmm16() -> sdegen.GaussianMixture:
    """Ten modes of std 0.3 in 16 dimensions."""
    g = torch.Generator().manual_seed(16)
    means = torch.randn(10, 16, generator=g, dtype=torch.float64)
    weights = torch.softmax(0.5 * torch.randn(10, generator=g, dtype=torch.float64), 0)
    return sdegen.GaussianMixture(means, 0.3, weights)


def anisotropic64() -> sdegen.GaussianMixture:
    """One component of mixture64: deviations from 0.1 to 1 along random axes, at a random mean."""
    g = torch.Generator().manual_seed(64)
    mean = torch.randn(3, 64, generator=g, dtype=torch.float64)[:1]
    basis = torch.linalg.qr(torch.randn(64, 64, generator=g, dtype=torch.float64))[0]
    scales = torch.logspace(-1, 0, 64, dtype=torch.float64)
    return sdegen.GaussianMixture(mean, covariances=((basis * scales**2) @ basis.T)[None])


TARGETS = {"ring8": ring, "gmm16": gmm16, "mix64": mixture64}


class Known(NamedTuple):
    """Points x (B, d), their log-density (B,), a model and the prior with which the model's density is that one."""

    x: Tensor
    log_prob: Tensor
    model: sdegen.Model
    prior: sdegen.GaussianMixture


def known(name: str, path: sdegen.GaussianPath, size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Known:
    """`size` points of a target on a path: of its blurred law where the path starts at some noise."""
    target = TARGETS[name]()
    data = target.marginal(path, path.t_data)
    x = data.sample(size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return Known(x, data.log_prob(x.double()), target.model(path), target.marginal(path, path.t_noise))


class Counting(nn.Module):
    """A smooth network on rows that notes how many rows it sees in every call, and which calls carry a graph."""

    def __init__(self, dim: int = 2, hidden: int = 16, act: type[nn.Module] = nn.SiLU):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim + 1, hidden), act(), nn.Linear(hidden, dim))
        self.rows: list[int] = []
        self.traced: list[bool] = []

    def forward(self, x, t):
        self.rows.append(len(x))
        self.traced.append(x.requires_grad)
        return self.layers(torch.cat([x, t[:, None]], 1))


def counting(**options) -> tuple[sdegen.ScoreModel, Counting]:
    """A velocity on CondOT that has been looked at, and its network with empty notes."""
    net = Counting(**options)
    model = sdegen.ScoreModel(net, sdegen.CondOT(), "velocity")
    for trace in ("exact", sdegen.Hutchinson(1), sdegen.Hutchinson(4)):
        sdegen.log_likelihood(model, torch.randn(4, net.layers[-1].out_features), sdegen.Adams(2), trace=trace)
    net.rows.clear()
    net.traced.clear()
    return model, net
