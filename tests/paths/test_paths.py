"""Paths: derivatives, clocks, kernels, and the DDPM limit."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from problems import PATHS, OwnVP

import sdegen

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
INSIDE = torch.linspace(0.013, 0.987, 25, dtype=torch.float64)  # fractions of the path
OFF_KNOTS = (INSIDE * 1000).floor() / 1000 + 0.0005  # between those of the DDPM grid, where B has kinks


def away(path):
    """The direction of time away from the data."""
    return math.copysign(1.0, path.t_noise - path.t_data)


def derivative(f, t, h=1e-5):
    return (f(t - 2 * h) - 8 * f(t - h) + 8 * f(t + h) - f(t + 2 * h)) / (12 * h)


@every_path
def test_slopes_are_the_derivatives(path):
    t, h = path.at(OFF_KNOTS), 1e-5 * abs(path.t_noise - path.t_data)
    slopes = path.slopes(t)
    torch.testing.assert_close(slopes.alpha, derivative(path.alpha, t, h), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(slopes.sigma, derivative(path.sigma, t, h), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(slopes.variance, derivative(lambda s: path.sigma(s) ** 2, t, h), rtol=1e-8, atol=1e-9)


@every_path
def test_drift_and_diffusion_keep_the_moments(path):
    """d mean/dt = f mean and d var/dt = 2 f var + g^2, with t running away from the data."""
    t, h = path.at(OFF_KNOTS), 1e-5 * abs(path.t_noise - path.t_data)
    f = path.drift(torch.ones(len(t), 1), t)[:, 0]
    g = path.diffusion(t)
    torch.testing.assert_close(f * path.alpha(t), away(path) * derivative(path.alpha, t, h), rtol=1e-7, atol=1e-9)
    variance = derivative(lambda s: path.sigma(s) ** 2, t, h)
    torch.testing.assert_close(2 * f * path.sigma(t) ** 2 + g**2, away(path) * variance, rtol=1e-7, atol=1e-9)


def test_vp_diffusion_is_sqrt_beta_also_at_the_data():
    path = sdegen.VPSDE(0.3, 7.0)
    t = torch.tensor([0.0, 1e-9, 0.2, 1.0])
    torch.testing.assert_close(path.diffusion(t) ** 2, 0.3 + 6.7 * t, rtol=1e-12, atol=0)
    torch.testing.assert_close(path.drift(torch.ones(4, 1), t)[:, 0], -0.5 * (0.3 + 6.7 * t), rtol=1e-12, atol=0)
    sub = sdegen.SubVPSDE(0.3, 7.0)
    B = 0.3 * t + 3.35 * t**2
    torch.testing.assert_close(sub.diffusion(t) ** 2, (0.3 + 6.7 * t) * -torch.expm1(-2 * B), rtol=1e-12, atol=0)


@every_path
def test_clock_and_time_are_inverse(path):
    """To the last digits where the data are at t = 0; elsewhere to a few roundings of the time at the data."""
    low, high = path.ends
    u = torch.cat([low + (high - low) * torch.logspace(-9, -0.001, 40), torch.tensor([high])])
    t = path.time(u)
    roundings = 8 * torch.finfo(t.dtype).eps * abs(path.t_data / (path.t_noise - path.t_data))
    lost = float(path.clock(path.at(roundings))) - low
    torch.testing.assert_close(path.clock(t), u, rtol=1e-12, atol=1e-15 + lost)
    torch.testing.assert_close(path.scale(u), path.alpha(t) + path.sigma(t), rtol=1e-12 + lost, atol=0)
    inside = path.at(INSIDE)
    torch.testing.assert_close(path.time(path.clock(inside)), inside, rtol=1e-12, atol=1e-13)
    assert bool((torch.diff(path.clock(torch.linspace(path.t_data, path.t_noise, 1001))) > 0).all())


@every_path
def test_log_snr(path):
    t = path.at(INSIDE)
    torch.testing.assert_close(
        path.log_snr(t), torch.log(path.alpha(t) ** 2 / path.sigma(t) ** 2), rtol=1e-10, atol=1e-10
    )
    u = path.clock(t)
    torch.testing.assert_close(path.log_snr(t), 2 * torch.log((1 - u) / u), rtol=1e-10, atol=1e-10)


@every_path
def test_transition_and_bridge_make_the_joint_gaussian(path):
    """Condition the joint law of (x_s, x_t) given x, built from transition alone, and compare with the bridge."""
    s, t = path.at(torch.tensor([0.1, 0.35, 0.2])), path.at(torch.tensor([0.3, 0.9, 0.21]))
    scale, std = path.transition(s, t)
    torch.testing.assert_close(scale * path.alpha(s), path.alpha(t), rtol=1e-12, atol=0)
    var_s, var_t = path.sigma(s) ** 2, path.sigma(t) ** 2
    torch.testing.assert_close(scale**2 * var_s + std**2, var_t, rtol=1e-12, atol=0)
    gain = scale * var_s / var_t  # Cov(x_s, x_t) / Var(x_t)
    c_t, c_x, bridge_std = path.bridge(s, t)
    torch.testing.assert_close(c_t, gain, rtol=1e-12, atol=0)
    torch.testing.assert_close(c_x, path.alpha(s) - gain * path.alpha(t), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(bridge_std**2, var_s - gain * scale * var_s, rtol=1e-9, atol=1e-15)


def test_bridge_is_the_ddpm_posterior():
    """On the chain's grid: mu-tilde and beta-tilde of Ho et al. 2020, equation 7."""
    betas = torch.linspace(1e-4, 0.02, 1000)
    path = sdegen.DDPM(betas)
    bars = torch.cumprod(1 - betas, 0)
    k = torch.tensor([2, 10, 500, 1000])
    c_t, c_x, std = path.bridge((k - 1) / 1000, k / 1000)
    bar, before, beta = bars[k - 1], bars[k - 2], betas[k - 1]
    torch.testing.assert_close(c_t, torch.sqrt(1 - beta) * (1 - before) / (1 - bar), rtol=1e-11, atol=0)
    torch.testing.assert_close(c_x, torch.sqrt(before) * beta / (1 - bar), rtol=1e-11, atol=0)
    torch.testing.assert_close(std**2, beta * (1 - before) / (1 - bar), rtol=1e-10, atol=0)


def test_ddpm_meets_its_chain_on_the_grid():
    betas = torch.linspace(1e-4, 0.02, 1000)
    k = torch.arange(1, 1001)
    alpha2 = sdegen.DDPM(betas).alpha(k / 1000) ** 2
    torch.testing.assert_close(alpha2, torch.cumprod(1 - betas, 0), rtol=1e-13, atol=0)
    assert abs(float(alpha2[-1]) / 4.035830e-5 - 1) < 1e-6  # THEORY: the Ho schedule's product


def test_vp_is_the_limit_of_the_ddpm_chain_at_rate_one_over_k():
    """beta_k = beta(t_k)/K: log alpha^2 of the chain meets that of the SDE with an error that falls like 1/K."""
    path = sdegen.VPSDE()
    errors = []
    for K in (200, 400, 800, 1600):
        t = torch.arange(1, K + 1) / K
        chain = sdegen.DDPM(path.beta(t) / K)
        errors.append(float((chain.log_snr(t) - path.log_snr(t)).abs()[K // 4 :].max()))
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(rate - 1) < 0.1 for rate in rates), rates


def test_vp_observed_on_a_grid_is_a_ddpm_chain_exactly():
    path = sdegen.VPSDE()
    t = torch.arange(0, 51) / 50
    chain = sdegen.DDPM(-torch.expm1(-torch.diff(path.integrated_beta(t))))
    torch.testing.assert_close(chain.alpha(t), path.alpha(t), rtol=1e-13, atol=0)
    torch.testing.assert_close(chain.sigma(t), path.sigma(t), rtol=1e-13, atol=0)


def test_ends_and_frozen_numbers():
    assert sdegen.VPSDE().ends[0] == 0
    assert abs(sdegen.VPSDE().ends[1] - 0.9934711772509035) < 1e-15
    assert abs(float(sdegen.VPSDE().alpha(1.0)) ** 2 / 4.318575e-5 - 1) < 1e-6
    assert sdegen.CosineVPSDE().ends == (0.0, 1.0)
    assert sdegen.CondOT().ends == (0.0, 1.0)
    low, high = sdegen.VESDE(0.01, 50).ends
    assert abs(low - 0.01 / 1.01) < 1e-15
    assert abs(high - 50 / 51) < 1e-12


@every_path
def test_float32_near_the_data_through_the_clock(path):
    """alpha = (1-u) r and sigma = u r keep their relative accuracy where 1 - exp or 1 - t would lose it."""
    low, high = path.ends
    u = (low + (high - low) * torch.logspace(-7, -0.05, 50)).float()
    wide = u.double()
    for name, narrow, exact in (
        ("alpha", (1 - u) * path.scale(u), (1 - wide) * path.scale(wide)),
        ("sigma", u * path.scale(u), wide * path.scale(wide)),
    ):
        error = (narrow.double() / exact - 1).abs()
        assert float(error.max()) < 1e-6, name


@pytest.mark.parametrize("name", ["vp", "subvp", "cosine"])
def test_float32_sigma_near_clean_data(name):
    """expm1 and products of sines: relative accuracy at t = 1e-6, where sqrt(1 - exp(-B)) is off by 9 %."""
    t = torch.tensor([1e-8, 1e-6, 1e-4, 1e-2])
    path = PATHS[name]
    torch.testing.assert_close(path.sigma(t.float()).double(), path.sigma(t.float().double()), rtol=1e-6, atol=0)
    u = path.clock(t)
    torch.testing.assert_close(path.time(u.float()).double(), path.time(u.float().double()), rtol=1e-6, atol=0)


@every_path
def test_perturb_uses_the_noise_it_is_given(path):
    x = torch.randn(5, 2, 3)
    t = path.at(torch.linspace(0.1, 0.9, 5))
    eps = torch.randn(5, 2, 3)
    x_t, same = path.perturb(x, t, eps)
    assert same is eps
    for b in range(5):
        torch.testing.assert_close(x_t[b], path.alpha(t[b]) * x[b] + path.sigma(t[b]) * eps[b])
    g = torch.Generator().manual_seed(3)
    first, _ = path.perturb(x, path.at(0.5), generator=g)
    second, _ = path.perturb(x, path.at(0.5), generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, second)


def test_prior_density_integrates_the_noise_end():
    prior = sdegen.VESDE(0.01, 7.0).prior
    x = torch.randn(4, 3)
    expected = torch.distributions.Normal(0.0, 7.0).log_prob(x).sum(1)
    torch.testing.assert_close(prior.log_prob(x), expected)
    draws = prior.sample((20000, 1), torch.Generator().manual_seed(0))
    assert abs(float(draws.std()) / 7 - 1) < 5 * 0.005


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: sdegen.VPSDE(20.0, 0.1), ValueError, "20.0 and 0.1"),
        (lambda: sdegen.VPSDE(0.0, 0.1), ValueError, "beta_min"),
        (lambda: sdegen.VPSDE("0.1"), TypeError, "'0.1'"),
        (lambda: sdegen.VPSDE(0.1, math.nan), ValueError, "nan"),
        (lambda: sdegen.VESDE(5.0, 1.0), ValueError, "5.0 and 1.0"),
        (lambda: sdegen.VESDE(-1.0, 1.0), ValueError, "-1.0"),
        (lambda: sdegen.CosineVPSDE(-0.1), ValueError, "-0.1"),
        (lambda: sdegen.CondOT(1.0), ValueError, "1.0"),
        (lambda: sdegen.DDPM([]), ValueError, "non-empty"),
        (lambda: sdegen.DDPM([[0.1]]), ValueError, "1-D"),
        (lambda: sdegen.DDPM([0.1, 1.0, 0.2]), ValueError, r"betas\[1\] is 1.0"),
        (lambda: sdegen.DDPM([0.1, 0.0]), ValueError, r"betas\[1\]"),
        (lambda: sdegen.DDPM([0.1, -0.3]), ValueError, r"betas\[1\] is -0.3"),
        (lambda: sdegen.DDPM([math.nan]), ValueError, r"betas\[0\] is nan"),
        (lambda: sdegen.VPSDE().alpha(True), TypeError, "True"),
        (lambda: sdegen.VPSDE().alpha(torch.tensor([1])), TypeError, "int64"),
        (lambda: sdegen.VPSDE().transition(0.5, 0.2), ValueError, "nearer the data"),
        (lambda: sdegen.CondOT().bridge(0.2, 0.5), ValueError, "nearer the data"),
        (lambda: sdegen.VPSDE().transition(torch.tensor([0.1, 0.9]), torch.tensor([0.5, 0.5])), ValueError, "nearer"),
        (lambda: sdegen.VPSDE().transition(-1.0, 0.5), ValueError, r"in \[0.0, 1.0\]"),
        (lambda: sdegen.VPSDE(0.1, 200.0).ends, ValueError, "must rise"),
    ],
)
def test_bad_input(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_a_path_with_swapped_ends_is_refused():
    class Backwards(OwnVP):
        t_data, t_noise = 1.0, 0.0

    with pytest.raises(ValueError, match="must rise"):
        _ = Backwards().ends


@pytest.mark.parametrize(
    ("alpha", "sigma", "says"),
    [
        (lambda t: torch.cos(5 * t), lambda t: t, "alpha.*not negative.*t = "),
        (lambda t: torch.ones_like(t), lambda t: t + 0.4 * torch.sin(6.28 * t), "must rise"),
        (lambda t: 1.0, lambda t: t, "alpha.*tensor.*1.0"),
        (lambda t: 1 - t, lambda t: t / (t - 0.5), "sigma"),
    ],
)
def test_a_path_that_breaks_its_contract_is_refused_by_every_verb(alpha, sigma, says):
    class Own(sdegen.GaussianPath):
        def alpha(self, t):
            return alpha(t)

        def sigma(self, t):
            return sigma(t)

    model = sdegen.ScoreModel(lambda x, t: 1 / 0, Own())
    for act in (
        lambda: sdegen.sample(model, (2, 2), sdegen.SDESolver(steps=3)),
        lambda: sdegen.log_prob(model, torch.zeros(2, 2)),
    ):
        with pytest.raises(ValueError, match=says):
            act()


def test_numeric_slopes_at_the_very_ends():
    own, closed = OwnVP(), sdegen.VPSDE()
    for t in (0.0, 1.0):
        assert abs(float(own.diffusion(t)) - float(closed.diffusion(t))) < 1e-5
    assert float(own.diffusion(torch.tensor(0.0, dtype=torch.float32))) > 0.3


def test_perturb_refuses_what_would_broadcast():
    path, x = sdegen.VPSDE(), torch.zeros(4, 3)
    for bad, error in (
        (lambda: path.perturb(x, torch.full((1,), 0.5)), ValueError),
        (lambda: path.perturb(x, 0.5, torch.zeros(1, 3)), ValueError),
        (lambda: path.perturb(x.long(), 0.5), TypeError),
    ):
        with pytest.raises(error):
            bad()
