"""The hybrid loss: each half of a network is trained on its own objective."""

from __future__ import annotations

import pytest
import torch
from chains import DATA, Theory, levels
from torch import nn
from torch.distributions import Normal, kl_divergence

import sdegen


class TwoHalves(nn.Module):
    """The prediction and the variance have parameters of their own."""

    def __init__(self):
        super().__init__()
        self.prediction = nn.Parameter(torch.tensor([0.7, 0.2]))
        self.variance = nn.Parameter(torch.tensor([0.5, -0.3]))

    def forward(self, x, t):
        a, b = self.prediction
        c, d = self.variance
        return torch.cat([torch.tanh(a * x + b * t[:, None]), torch.tanh(c * x + d)], 1)


def gradients(net, loss):
    net.zero_grad()
    loss.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in (net.prediction, net.variance)]


@pytest.mark.parametrize("predicts", ["eps", "data", "v", "score", "velocity"])
@pytest.mark.parametrize("weight", [1e-3, 1.0])
def test_hybrid_loss_trains_each_half_on_its_own_objective(predicts, weight):
    """The prediction on the simple loss, the variance on K L_{k-1} in nats a value, both at Algorithm 1's k."""
    K, n, d = 5, 64, 3
    chain, x, noise = sdegen.DDPM.linear(K, 0.05, 0.4), torch.randn(n, d), torch.randn(n, d)
    net = TwoHalves()
    model = sdegen.ScoreModel(net, chain, predicts, learns_variance=True)

    def fresh():
        return torch.Generator().manual_seed(8)

    t, _ = sdegen.ChainTimes()(chain, n, fresh(), torch.float64, torch.device("cpu"))
    k = torch.round(K * t).long()
    assert set(k.tolist()) == {1, 2, 3, 4, 5}
    simple = sdegen.loss(model, x, t=t, noise=noise)
    expected = gradients(net, simple)[0]
    hybrid = sdegen.hybrid_loss(model, x, weight=weight, noise=noise, generator=fresh())
    of_prediction, of_variance = gradients(net, hybrid)
    torch.testing.assert_close(of_prediction, expected, rtol=1e-10, atol=1e-14)
    theory = Theory(chain)
    bar, before, beta = (values[k - 1][:, None] for values in (theory.bars[1:], theory.bars[:-1], chain.betas))
    x_k = torch.sqrt(bar) * x + torch.sqrt(1 - bar) * noise
    place = 0.5 * (net(x_k, t)[:, d:] + 1)
    low = torch.log(theory.variances["posterior"])[k - 1][:, None]
    std = torch.exp(0.5 * (place * torch.log(beta) + (1 - place) * low))
    eps = model.eps(x_k, t).detach()
    ours = Normal((x_k - beta / torch.sqrt(1 - bar) * eps) / torch.sqrt(1 - beta), std)
    mean = (torch.sqrt(1 - beta) * (1 - before) * x_k + torch.sqrt(before) * beta * x) / (1 - bar)
    tilde = torch.where(k[:, None] == 1, torch.ones(()), theory.posterior[k - 1][:, None])
    terms = torch.where(k[:, None] == 1, -ours.log_prob(x), kl_divergence(Normal(mean, torch.sqrt(tilde)), ours))
    bound = weight * K * terms.sum(1).mean() / d
    torch.testing.assert_close(of_variance, gradients(net, bound)[1], rtol=1e-8, atol=1e-12)
    assert float(of_variance.abs().min()) > 0
    assert abs((hybrid - simple - bound).item()) < 1e-10
    assert gradients(net, sdegen.hybrid_loss(model, x, weight=0.0, noise=noise, generator=fresh()))[1].abs().max() == 0


def test_hybrid_loss_with_a_discretised_decoder():
    """The first step alone sees it: on a chain where k = 1 the hybrid is simple + weight K L_0 / d."""
    chain, decoder = sdegen.DDPM([0.05, 0.3]), sdegen.Discretized(17, 1 / 17 - 1, 1 - 1 / 17)
    x, noise = levels(decoder)[torch.randint(0, 17, (64, 3))], torch.randn(64, 3)
    model = sdegen.ScoreModel(TwoHalves(), chain, learns_variance=True)
    total = [
        sdegen.hybrid_loss(
            model, x, weight=1.0, decoder=d, noise=noise, generator=torch.Generator().manual_seed(1)
        ).item()
        for d in ("gaussian", decoder)
    ]
    t, _ = sdegen.ChainTimes()(chain, 64, torch.Generator().manual_seed(1), torch.float64, torch.device("cpu"))
    first = torch.round(2 * t) == 1
    gap = [sdegen.vlb(model, x, variance="learned", decoder=d, noise=noise).decoder for d in ("gaussian", decoder)]
    by_hand = float((2 * (gap[1] - gap[0]) / 3)[first].sum()) / 64
    assert abs(total[1] - total[0] - by_hand) < 1e-10


def test_hybrid_loss_hands_gradients_to_its_data():
    path = sdegen.DDPM.linear(9, 1e-2, 0.3)
    both = sdegen.ScoreModel(lambda x, t: torch.cat([torch.tanh(x), torch.sin(x)], 1), path, learns_variance=True)
    x = DATA.sample(6).requires_grad_()
    sdegen.hybrid_loss(both, x).backward()
    assert bool((x.grad != 0).all())
