"""Algorithm 1: times uniform on the chain, and a loss that reaches its floor."""

from __future__ import annotations

import math

import torch
from chains import M, S

import sdegen


def test_chain_times_are_uniform_on_the_chain():
    """Pearson's chi-square at significance 1e-6."""
    from scipy.stats import chi2

    K, n, cpu = 50, 200_000, torch.device("cpu")
    for path, times in (
        (sdegen.DDPM.linear(K), sdegen.ChainTimes()),
        (sdegen.VPSDE(), sdegen.ChainTimes(K)),
        (sdegen.CondOT(), sdegen.ChainTimes(K)),
    ):
        t, weight = times(path, n, torch.Generator().manual_seed(0), torch.float64, cpu)
        k = K * (t - path.t_data).abs()
        torch.testing.assert_close(k, k.round(), rtol=0, atol=1e-12 * K)
        counts = torch.bincount(k.round().long(), minlength=K + 1)
        assert int(counts[0]) == 0
        assert len(counts) == K + 1
        assert float((counts[1:] - n / K).square().sum() / (n / K)) < chi2.isf(1e-6, K - 1)
        assert torch.equal(weight, torch.ones(n))
    t, _ = sdegen.ChainTimes()(sdegen.DDPM.linear(), 4096, None, torch.float32, cpu)
    assert torch.equal(1 + sdegen.DDPM.linear().index(t), torch.round(1000 * t))


def test_algorithm_one_reaches_its_floor():
    """The mean over k of alpha^2 S / V at the exact eps, per value, within 5 standard errors."""
    path, n = sdegen.DDPM.linear(50, 1e-3, 0.2), 100_000
    target = sdegen.Gaussian([M, -M], math.sqrt(S))
    exact = target.model(path)
    model = sdegen.ScoreModel(lambda x, t: exact.eps(x, t), path)
    losses = sdegen.loss(model, target.sample(n), times=sdegen.ChainTimes(), reduction="none")
    bars = torch.cumprod(1 - path.betas, 0)
    floor = float((bars * S / (bars * S + 1 - bars)).mean())
    assert abs(float(losses.mean()) - floor) < 5 * float(losses.std()) / math.sqrt(n)


def test_a_network_trained_by_algorithm_one_reaches_the_floor():
    """By Adam, from zero to within 2 percent of the closed form; the excess of an affine net is known exactly."""
    K = 10
    path = sdegen.DDPM.linear(K, 1e-2, 0.3)
    table = torch.nn.Parameter(torch.zeros(K, 2))  # a weight and a bias for each k

    def net(x, k):
        weight, bias = table[k.long()].unbind(1)
        return weight[:, None] * x + bias[:, None]

    model, target = sdegen.ScoreModel(net, path, time=path.index), sdegen.Gaussian([M], math.sqrt(S))
    optimiser = torch.optim.Adam([table], lr=0.03)
    for step in range(600):
        optimiser.param_groups[0]["lr"] = 0.03 * (1 - step / 600)
        optimiser.zero_grad()
        sdegen.loss(model, target.sample(2048), times=sdegen.ChainTimes()).backward()
        optimiser.step()
    bars = torch.cumprod(1 - path.betas, 0)
    V = bars * S + 1 - bars
    weight, bias = table.detach().unbind(1)
    excess = (weight - torch.sqrt(1 - bars) / V) ** 2 * V + (weight * torch.sqrt(bars) * M + bias) ** 2
    assert float(excess.mean()) < 0.02 * float((bars * S / V).mean())
