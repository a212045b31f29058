"""Where score_kl looks: how far its draws spread, and how honest its error is, whatever the network predicts."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import sdegen
from sdegen.likelihoods.posterior import Clocks, Posterior, latents_of

M, S, E = 0.3, 0.5, 0.2
EXACT = sdegen.Gaussian([M], S)
NOISY = [
    pytest.param(path, predicts, id=f"{type(path).__name__} {predicts}")
    for path, predicts in [
        (sdegen.VPSDE(), "eps"),
        (sdegen.VPSDE(), "score"),
        (sdegen.DDPM.linear(1000), "eps"),
        (sdegen.VESDE(), "eps"),
        (sdegen.VESDE(), "velocity"),
        (sdegen.EDM(), "velocity"),
    ]
]


def off_in_eps(path, predicts, wrong):
    """The exact model of EXACT, whose eps is off by wrong(y), and D by 1/(1-u) times that."""
    exact = EXACT.model(path)
    wrongly = sdegen.ScoreModel(
        lambda x, t: exact.eps(x, t) + wrong(x / (path.alpha(t) + path.sigma(t))[:, None]), path, "eps"
    )
    return sdegen.ScoreModel(getattr(wrongly, predicts), path, predicts)


def of_data(path, n):
    """The law of EXACT at the path's start, n times."""
    start = path.ends[0]
    return torch.full((n, 1), M), torch.full((n, 1), math.hypot(S, start / (1 - start)))


def around(prior, mean, std):
    """What the bound holds beside the integral and its last term's error, and the clocks between which it runs."""
    latents = latents_of(prior, None)
    q = Posterior.of(prior, mean[:1], std[:1], latents.start, {}, None)
    return latents, float(q.at_noise(latents.high) + q.about_x_hat(latents.u_min))


@pytest.mark.parametrize(("path", "predicts"), NOISY)
def test_a_constant_error_of_eps_costs_its_square_per_log_snr(path, predicts):
    """E^2 log(u/(1-u)) between the ends, and E^2/2 in the last term; every draw says nearly that."""
    prior, (mean, std) = off_in_eps(path, predicts, lambda y: E), of_data(path, 500)
    (start, u_min, high, _), rest = around(prior, mean, std)
    exact = rest + E**2 * (math.log(high / (1 - high)) - math.log(u_min / (1 - u_min))) + (E**2 / 2) * (u_min > start)
    found = sdegen.score_kl(mean, std, prior, draws=16).value
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(500)
    assert float(found.std()) < 0.05 * exact
    assert abs(float(found.median()) / exact - 1) < 0.02


@pytest.mark.parametrize(("path", "predicts"), NOISY)
def test_intervals_hold_an_error_of_eps_that_depends_on_the_state(path, predicts):
    """It is E y, of which E^2 E y^2 is known, y ~ N((1-u) M, (1-u)^2 S^2 + u^2)."""
    n, prior = 1000, off_in_eps(path, predicts, lambda y: E * y)
    mean, std = of_data(path, n)
    (start, u_min, high, _), rest = around(prior, mean, std)
    logit = torch.linspace(math.log(u_min / (1 - u_min)), math.log(high / (1 - high)), 20_001)
    u = torch.sigmoid(logit)
    square = E**2 * ((1 - u) ** 2 * (M**2 + S**2) + u**2)
    exact = rest + float(torch.trapezoid(square, logit)) + float(square[0]) / 2 * (u_min > start)
    bound = sdegen.score_kl(mean, std, prior, draws=32)
    found, error = bound.value, bound.standard_error
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(n)
    assert 0.8 < float(((found - exact).abs() < 1.96 * error).double().mean()) < 0.96
    assert float(found.std()) < 0.3 * exact


@pytest.mark.parametrize("sharp", [0.1, 0.02])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.1), (0.0, 10.0)])
def test_a_prior_narrower_than_q(sharp, mean, std):
    """The draws go down to where the prior bends."""
    n, prior = 2000, sdegen.Gaussian([0.0], sharp).model(sdegen.CondOT())
    bound = sdegen.score_kl(torch.full((n, 1), mean), torch.full((n, 1), std), prior)
    exact = float(kl_divergence(Normal(mean, std), Normal(0.0, sharp)))
    assert abs(float(bound.value.mean()) - exact) < 4 * float(bound.value.std()) / math.sqrt(n)
    assert abs(float(bound.value.median()) / exact - 1) < 0.1
    assert 0.78 < float(((bound.value - exact).abs() < 1.96 * bound.standard_error).double().mean()) < 0.97


def test_narrow_components_far_apart():
    """Eight of a tenth on a ring, under a posterior between them."""
    angles, n = torch.arange(8) * math.pi / 4, 1000
    law = sdegen.GaussianMixture(2 * torch.stack([angles.cos(), angles.sin()], 1), 0.1)
    z = torch.randn(200_000, 2)
    exact = float((Normal(0.0, 1.0).log_prob(z).sum(1) - law.log_prob(z)).mean())
    bound = sdegen.score_kl(torch.zeros(n, 2), torch.ones(n, 2), law.model(sdegen.CondOT()))
    assert abs(float(bound.value.median()) / exact - 1) < 0.05
    assert float(((bound.value - exact).abs() < 1.96 * bound.standard_error).double().mean()) > 0.84


def test_the_least_variance_of_a_law():
    """Of any component, along any direction."""
    assert sdegen.GaussianMixture([[0.0], [1.0]], [0.5, 0.1]).least_variance.item() == pytest.approx(0.01, rel=1e-14)
    assert sdegen.Gaussian([0.0, 1.0], [0.2, 3.0]).least_variance.item() == pytest.approx(0.04, rel=1e-14)
    turned = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    assert sdegen.Gaussian([0.0, 1.0], covariance=turned).least_variance.item() == pytest.approx(0.5, rel=1e-14)


@pytest.mark.parametrize(
    ("std", "most"),
    [(torch.linspace(0.003, 0.1, 256), 0.33), (torch.cat([torch.full((8,), 1e-3), torch.ones(248)]), 1.2)],
    ids=["spread", "few narrow"],
)
def test_latents_of_different_widths_share_a_clock(std, most):
    """Even between the widths, where the least of them would stretch it too far and their mean square cut it short."""
    n, prior = 1000, sdegen.Gaussian(torch.zeros(256), 1.0).model(sdegen.CondOT())
    found = sdegen.score_kl(torch.zeros(n, 256), std.expand(n, 256), prior, draws=2).value
    exact = float(kl_divergence(Normal(0.0, std), Normal(0.0, 1.0)).sum())
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(n)
    assert float(found.std()) < most * exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_posterior_far_narrower_than_the_noise_of_its_path(dtype):
    """s^2 - sigma_0^2 rounds to -sigma_0^2, and the clocks go on."""
    mean, std = torch.zeros(2000, 1, dtype=dtype), torch.full((2000, 1), 1.1e-5, dtype=dtype)
    prior = sdegen.Gaussian([0.0], 1.0).model(sdegen.VESDE())
    clocks = Clocks.of(prior, Posterior.of(prior, mean, std, 0.01 / 1.01, {}, None), latents_of(prior, None))
    assert clocks.length.isfinite().all()
    found = sdegen.score_kl(mean, std, prior).value
    exact = float(kl_divergence(Normal(0.0, 1.1e-5), Normal(0.0, math.hypot(1.0, 0.01))))
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(2000) + 1e-3


def test_the_standard_error_has_no_gradient():
    std = torch.ones(2, 1, requires_grad=True)
    bound = sdegen.score_kl(torch.zeros(2, 1), std, EXACT.model(sdegen.VPSDE()))
    assert bound.value.requires_grad
    assert not bound.standard_error.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    mean, std = torch.randn(3, 2).to(dtype), (0.3 + torch.rand(3, 2)).to(dtype)
    prior = sdegen.Gaussian([0.0, 0.5], 1.0).model(sdegen.CondOT())
    found, wanted = (
        sdegen.score_kl(*pair, prior, generator=torch.Generator().manual_seed(1))
        for pair in ((mean, std), (mean.float(), std.float()))
    )
    assert found.value.dtype is found.standard_error.dtype is torch.float32
    assert torch.equal(found.value, wanted.value)
