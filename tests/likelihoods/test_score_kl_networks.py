"""score_kl under networks: what a known error costs, the cut-off it needs, gradients, and which mode they are in."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from latents import THREE
from torch import nn
from torch.distributions import Normal, kl_divergence

import sdegen
from sdegen.nets import MLP

M, S, C = 0.3, 0.5, 0.2
EXACT = sdegen.Gaussian([M], S)


def off_by(c, path=None):
    """A velocity network of the law q = N(M, S^2) itself, whose slope eps_hat - x_hat is off by c at every clock."""
    exact = EXACT.model(sdegen.CondOT())
    return sdegen.ScoreModel(lambda x, t: exact.velocity(x, t) - c, path or sdegen.CondOT(), "velocity")


def expected(c, u_min):
    """On CondOT |D_q - D_hat| = c: c^2 [log 1/u_min - (1-u_min)], and the last term with its spread."""
    x = (u_min / (1 - u_min)) ** 2
    spread = math.log1p(x / S**2) - x / (S**2 + x)
    return c**2 * (-math.log(u_min) - (1 - u_min)) + 0.5 * spread + 0.5 * (c * (1 - u_min)) ** 2


def law_of_the_chain(c, u_min):
    """(mean, std) of z under the reverse SDE with that error and a draw about x_hat, in closed form but for a sum.

    In x = (u/(1-u))^2 a shift d of the mean obeys d' = d/(S^2 + x) + c/(r (1+r)), r = sqrt(x), from 0 at infinity.
    """
    r_min = u_min / (1 - u_min)
    r = torch.exp(torch.linspace(math.log(r_min), 25.0, 200_001))
    shift = -(S**2 + r_min**2) * float(torch.trapezoid(2 * c / ((1 + r) * (S**2 + r**2)), r))
    x = r_min**2
    mean = M + shift * S**2 / (S**2 + x) - r_min * c / (1 + r_min)
    return mean, math.sqrt(S**4 / (S**2 + x) + x)


def repeated(n):
    return torch.full((n, 1), M), torch.full((n, 1), S)


@pytest.mark.parametrize("u_min", [1e-2, 1e-3, 1e-5])
def test_an_error_at_the_data_costs_log_1_over_u_min(u_min):
    """The expectation is known, and so is the divergence that it bounds."""
    bound = sdegen.score_kl(*repeated(2000), off_by(C), draws=32, u_min=u_min)
    assert abs(float(bound.value.mean()) - expected(C, u_min)) < 4 * float(bound.value.std()) / math.sqrt(2000)
    true = kl_divergence(Normal(M, S), Normal(*law_of_the_chain(C, u_min)))
    assert 0 < float(true) < expected(C, u_min)


def test_a_decade_of_u_min_costs_the_same_wherever_it_is():
    """c^2 log 10 for every factor of ten: for a network there is no u_min = 0."""
    found = [
        float(sdegen.score_kl(*repeated(4000), off_by(C), draws=64, u_min=10.0**-k).value.mean()) for k in (3, 6, 9)
    ]
    for one, two in pairwise(found):
        assert abs((two - one) / (C**2 * math.log(1000)) - 1) < 0.05
    with pytest.raises(ValueError, match=r"u_min must be a finite number in \(0.0, 1.0\), and it is 0"):
        sdegen.score_kl(*repeated(1), off_by(C), u_min=0)


def test_it_is_labelled_a_bound():
    for prior in (EXACT.model(sdegen.CondOT()), off_by(0.0)):
        bound = sdegen.score_kl(*repeated(2), prior, draws=2)
        assert bound.kind == "bound"
        assert repr(bound) == "Bound(value=Tensor(2,), standard_error=Tensor(2,))"


def test_the_standard_error_counts_the_last_term():
    """At a u_min so large that its two draws matter."""
    n, path = 20_000, sdegen.CondOT()
    exact = THREE.model(path)
    network = sdegen.ScoreModel(lambda x, t: exact.velocity(x, t), path, "velocity")
    bound = sdegen.score_kl(*repeated(n), network, draws=2, u_min=0.8)
    stated, seen = bound.standard_error.square(), bound.value.var()
    assert abs(float(stated.mean() / seen) - 1) < 6 * float(stated.std() / seen + 1.5) / math.sqrt(n)


@pytest.mark.parametrize(
    ("path", "u_min"), [(sdegen.VPSDE(), 1e-3), (sdegen.DDPM.linear(1000), None), (sdegen.VESDE(), None)]
)
def test_the_default_start_is_that_of_continuous_vlb(path, u_min):
    model, x = sdegen.ScoreModel(MLP(1), path, "v"), torch.zeros(3, 1)
    u_min = sdegen.continuous_vlb(model, x, draws=2).u[0] if u_min is None else u_min
    bounds = []
    for options in ({}, {"u_min": u_min}):
        torch.manual_seed(1)
        bounds.append(sdegen.score_kl(x, x + 0.5, model, draws=4, **options).value)
    torch.testing.assert_close(*bounds)


def test_a_wrapper_around_an_exact_model_is_taken_for_a_network():
    """Its answers need not be those of any law: with u_min = 0 nothing would be bounded."""
    guided = sdegen.Guided(EXACT.model(sdegen.VPSDE()), lambda x, t: -x.square().sum(1))
    with pytest.raises(ValueError, match="u_min must be a finite number in"):
        sdegen.score_kl(*repeated(1), guided, u_min=0.0)
    calls = []
    watched = sdegen.Guided(EXACT.model(sdegen.VPSDE()), lambda x, t: calls.append(1) or -x.square().sum(1))
    assert sdegen.score_kl(*repeated(1), watched, draws=2).value.shape == (1,)
    assert len(calls) == 4  # and two for the last term


def test_the_cost_is_the_stated_one():
    calls = []
    network = sdegen.ScoreModel(lambda x, t: calls.append(len(x)) or x, sdegen.VPSDE(), "v")
    sdegen.score_kl(*repeated(3), network, draws=6)
    assert calls == [3] * 8


@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.CondOT(), sdegen.VESDE()], ids=lambda p: type(p).__name__)
def test_gradients_equal_finite_differences(path):
    """In mean, std and a weight of the prior, at fixed draws."""
    model, h = sdegen.ScoreModel(MLP(2, hidden=8, depth=1), path, "v"), 1e-6
    for p in model.parameters():
        p.data = 0.3 * torch.randn_like(p)
    mean, std = torch.randn(3, 2).requires_grad_(), (0.2 + torch.rand(3, 2)).requires_grad_()
    weight = next(iter(model.parameters()))

    def value():
        return sdegen.score_kl(mean, std, model, draws=4, generator=torch.Generator().manual_seed(3)).value.sum()

    grads = torch.autograd.grad(value(), [mean, std, weight])
    for part, grad in zip((mean, std, weight), grads, strict=True):
        direction = torch.randn_like(part)
        with torch.no_grad():
            part += h * direction
            up = value()
            part -= 2 * h * direction
            down = value()
            part += h * direction
        assert not up.requires_grad
        torch.testing.assert_close((up - down) / (2 * h), (grad * direction).sum(), rtol=1e-5, atol=1e-6)


def test_conditions_reach_the_network():
    shift = torch.tensor([[0.0], [1.0]])
    exact = EXACT.model(sdegen.CondOT())
    network = sdegen.ScoreModel(lambda x, t, shift: exact.velocity(x, t) - shift, sdegen.CondOT(), "velocity")
    bound = sdegen.score_kl(*repeated(2), network, cond={"shift": shift})
    assert bound.value[0] < 0.01 < 1 < bound.value[1]


@pytest.mark.parametrize("training", [True, False])
def test_every_module_stays_in_its_mode(training):
    seen = []

    class Net(nn.Module):
        def forward(self, x, t):
            seen.append(self.training)
            return x

    model = sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v").train(training)
    sdegen.score_kl(*repeated(1), model, draws=2)
    assert set(seen) == {training}
    assert model.training is training
