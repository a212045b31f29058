"""Maximum likelihood through the ODE: a vector field trained by it is as good as one trained by flow matching."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import sdegen
from sdegen.datasets import two_moons


def test_an_affine_flow_finds_the_moments_of_the_data():
    """dx/dt = a x + b by maximum likelihood: mean b (e^a - 1)/a and deviation e^a, those of the data."""
    a, b = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.tensor(0.1))
    flow = sdegen.vector_field(lambda x, t: a * x + b)
    x = 0.7 + 0.2 * torch.randn(400, 1)
    optimiser = torch.optim.LBFGS([a, b], max_iter=60, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure():
        optimiser.zero_grad()
        found = sdegen.log_likelihood(flow, x, sdegen.Adams(20), trace="exact", differentiable=True)
        value = -found.log_prob.mean()
        value.backward()
        return value

    optimiser.step(closure)
    a, b = float(a.detach()), float(b.detach())
    assert abs(math.exp(a) / float(x.std(correction=0)) - 1) < 1e-4
    assert abs(b * math.expm1(a) / a - float(x.mean())) < 1e-4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], 1))


def trained(objective, steps, size, rate):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    model = sdegen.vector_field(Net())
    optimiser = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(model, two_moons(size).float()).backward()
        optimiser.step()
        schedule.step()
    return model


@pytest.mark.nightly
def test_maximum_likelihood_reaches_flow_matching_on_two_moons():
    """Held out, 2000 points: within 0.05 nats of it, or better."""

    def likelihood(model, x):
        found = sdegen.log_likelihood(model, x, sdegen.Adams(24), trace="exact", differentiable=True, check=False)
        return -found.log_prob.mean()

    by_matching = trained(sdegen.loss, 4000, 512, 3e-3)
    by_likelihood = trained(likelihood, 400, 256, 1e-2)
    held_out = two_moons(2000, generator=torch.Generator().manual_seed(1)).float()
    matching, likely = (
        float(sdegen.log_prob(m, held_out, sdegen.Adams(160)).mean()) for m in (by_matching, by_likelihood)
    )
    assert likely > matching - 0.05
