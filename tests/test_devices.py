"""The chain, its bounds and the flows, wherever the tensors live: the numbers of the CPU, and no waiting in a loop."""

from __future__ import annotations

import math

import pytest
import torch
from problems import ring
from torch import nn

import sdegen
from sdegen.nets import MLP

M, S = 0.8, 0.25
LEARNED = {"learns_variance": True}


class Doubled(nn.Module):
    """A prediction and a place for the variance."""

    def __init__(self):
        super().__init__()
        self.net = MLP(2, 16, 1)

    def forward(self, x, t):
        return torch.cat([self.net(x, t) + torch.tanh(x), torch.sin(x)], 1)


def test_the_frozen_bounds(device):
    data, path = sdegen.Gaussian([M], math.sqrt(S)), sdegen.DDPM.linear()
    x = torch.tensor([M + 0.5, M + 0.5, M - 0.5, M - 0.5], device=device)[:, None]
    noise = torch.tensor([1.0, -1.0, 1.0, -1.0], device=device)[:, None]
    for variance, excess in {"beta": 0.00110517, "posterior": 0.56993885, "optimal": 1.29149e-5}.items():
        bound = sdegen.vlb(data.model(path), x, variance=variance, noise=noise)
        assert bound.transitions.device.type == device.type
        assert float(bound.total.mean()) - data.entropy == pytest.approx(excess, abs=1e-8)


@pytest.mark.parametrize(
    "solver",
    [
        sdegen.Ancestral(20),
        sdegen.Ancestral(20, variance="learned"),
        sdegen.Ancestral(20, variance="optimal"),
        sdegen.DDIM(20, eta=0.5),
    ],
    ids=repr,
)
def test_chains_give_the_numbers_of_the_cpu(solver, device):
    torch.manual_seed(0)
    model = sdegen.ScoreModel(Doubled().double(), sdegen.DDPM.linear(100, 1e-3, 0.2, smooth=True), **LEARNED)
    x_T, noise = torch.randn(16, 2), torch.randn(20, 16, 2)
    here = sdegen.solve(model, x_T, solver, noise=noise).x
    there = sdegen.solve(model.to(device), x_T.to(device), solver, noise=noise.to(device)).x
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-10)


def test_losses_and_bounds_run_where_the_data_are(device):
    path = sdegen.DDPM.linear(20, 1e-3, 0.3, smooth=True)
    model = sdegen.ScoreModel(Doubled().double(), path, time=path.index, **LEARNED).to(device)
    x = ring().sample(32).to(device)
    g = torch.Generator(device).manual_seed(0)
    sdegen.hybrid_loss(model, x, generator=g).backward()
    assert all(p.grad is not None for p in model.parameters())
    for value in (
        sdegen.loss(model, x, times=sdegen.ChainTimes(), generator=g),
        sdegen.vlb(model, x, variance="learned", draws=4, generator=g).standard_error,
        sdegen.continuous_vlb(model, x, draws=4, generator=g).total,
        sdegen.iwae(model, x, 3, generator=g, batch_size=40).log_prob,
        sdegen.log_prob(model.on(sdegen.CondOT()), x, sdegen.ODESolver("rk4", steps=4), u=(0.01, 0.8)),
    ):
        assert value.device.type == device.type
        assert bool(torch.isfinite(value).all())
    flow = sdegen.ScoreModel(Doubled().double().net, sdegen.Interpolant(), "velocity").to(device)
    sdegen.loss(flow, x, coupling=sdegen.OptimalTransport(replace=True), generator=g).backward()
    assert sdegen.straightness(flow, x).shape == (32,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("variance", ["beta", "learned", "optimal"])
def test_a_chain_never_waits_for_the_device_between_its_looks(variance):
    """Two chains that differ by 16 steps, fewer than lie between two looks, synchronise equally often."""
    path = sdegen.DDPM.linear(100, smooth=True)
    model = sdegen.ScoreModel(Doubled().double(), path, time=path.index, **LEARNED).cuda()
    counts = []
    for steps in (8, 24):
        with torch.profiler.profile() as profile:
            sdegen.sample(model, (16, 2), sdegen.Ancestral(steps, variance=variance))
        events = profile.key_averages()
        counts.append(sum(e.count for e in events if e.key in ("cudaStreamSynchronize", "aten::item")))
    assert counts[0] == counts[1]
