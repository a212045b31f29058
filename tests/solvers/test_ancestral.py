"""Exact laws of ancestral sampling: named, optimal and learned variances, and parts of a chain."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from chains import M, S, chain_law, law_along
from problems import affine_law, mixture64, start_law

import sdegen


@pytest.mark.parametrize(("variance", "frozen"), [("beta", 0.256658082543691), ("posterior", 0.219211868730530)])
def test_ancestral_sampling_of_a_chain_has_its_frozen_law(variance, frozen):
    path, solver = sdegen.DDPM.from_path(sdegen.VPSDE(), 100), sdegen.Ancestral(variance=variance)
    for mean, var in (affine_law(path, solver, S, M, 100), law_along(path, solver)):
        assert abs(mean / M - 1) < 1e-12
        assert abs(var / frozen - 1) < 1e-12


def test_the_variance_error_of_beta_has_its_constant():
    """THEORY 11.6: K (variance - S) tends to 0.74941 at the rate 1/K."""
    gaps = []
    for K in (100, 1000, 10_000):
        mean, var = chain_law(sdegen.Ancestral(variance="beta"), K)
        assert abs(mean / M - 1) < 1e-9
        gaps.append(abs(K * (var - S) - 0.74941))
    assert gaps[2] < 0.002 * 0.74941
    assert all(8 < a / b < 12 for a, b in pairwise(gaps))


@pytest.mark.slow
def test_the_constant_of_beta_by_ten_thousand_impulses():
    """The same without any algebra: one row for every normal, fed by a callable that never holds them all."""
    K = 10_000
    path = sdegen.DDPM.from_path(sdegen.VPSDE(), K)
    exact = sdegen.Gaussian([M], math.sqrt(S))
    x_T = torch.zeros(K + 2, 1)
    x_T[1] = 1

    def impulse(k):
        z = torch.zeros(K + 2, 1)
        z[2 + k] = 1
        return z

    x = sdegen.solve(exact.model(path), x_T, sdegen.Ancestral(variance="beta"), noise=impulse).x[:, 0]
    mean, variance = start_law(exact.marginal(path, 1.0))
    var = float((x[1] - x[0]) ** 2 * variance + ((x[2:] - x[0]) ** 2).sum())
    assert abs(float((x[1] - x[0]) * mean + x[0]) / M - 1) < 1e-9
    assert abs(K * (var - S) / 0.74941 - 1) < 0.002


def variance_error(K, variance) -> float:
    """THEORY 11.6: sum over k of (sigma_k^2 - v_k) (S sqrt(abar_{k-1}) / V_{k-1})^2, no noise in the last step."""
    B = sdegen.VPSDE().integrated_beta(torch.arange(K + 1) / K)
    bars, noise, beta = torch.exp(-B), -torch.expm1(-B), -torch.expm1(-torch.diff(B))
    V = bars * S + noise
    true = beta * V[:-1] / V[1:]
    used = beta.clone() if variance == "beta" else beta * noise[:-1] / noise[1:]
    used[0] = 0
    return float(((used - true) * (S * torch.sqrt(bars[:-1]) / V[:-1]) ** 2).sum())


@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("K", [7, 100, 4000])
def test_ancestral_sampling_has_the_variance_error_of_theory(K, variance):
    mean, var = chain_law(sdegen.Ancestral(variance=variance), K)
    assert abs(mean / M - 1) < 1e-9
    assert abs((var - S) / variance_error(K, variance) - 1) < 1e-8


def test_the_variance_error_of_posterior_grows_like_log_k():
    """K (variance - S) falls by beta(0) = 0.1 for every e-fold of K, at last: the sampler, then its sum further on."""
    scaled = [K * (chain_law(sdegen.Ancestral(variance="posterior"), K)[1] - S) for K in (250, 1000, 4000)]
    scaled += [K * variance_error(K, "posterior") for K in (16_000, 64_000, 256_000, 1_024_000)]
    gaps = [(b - a) / math.log(4) + 0.1 for a, b in pairwise(scaled)]
    assert all(gap < 0 for gap in gaps)
    assert all(0.1 < b / a < 0.6 for a, b in pairwise(gaps))
    assert abs(gaps[-1]) < 0.002


# Variances that are estimated or learned


def steps_taken(target, path, solver, n, seed=0):
    """The deviation of every step but the last, read off a trajectory: (state - mean of the bridge) / normal."""
    g = torch.Generator().manual_seed(seed)
    model, d = target.model(path), math.prod(target.event_shape)
    x_T = target.marginal(path, path.t_noise).sample(n, g)
    noise = torch.randn(path.steps, *x_T.shape, generator=g)
    solution = sdegen.solve(model, x_T, solver, noise=noise, trajectory=True)
    found = []
    for i in range(path.steps - 1):
        t, s = float(solution.t[i]), float(solution.t[i + 1])
        c_t, c_x, _ = path.bridge(s, t)
        rest = solution.trajectory[i + 1] - c_t * solution.trajectory[i] - c_x * model.data(solution.trajectory[i], t)
        std = (rest * noise[i]).sum() / noise[i].square().sum()
        torch.testing.assert_close(rest, std * noise[i], rtol=1e-8, atol=1e-8)
        found.append(float(std))
    return torch.tensor(found).flip(0) ** 2, d


def test_optimal_variances_are_the_true_ones_on_gaussian_data():
    """sigma*^2 = v_k = beta_k V_{k-1} / V_k; the estimate's only error is that of mean |eps_hat|^2 over n d values."""
    path, n, d = sdegen.DDPM.linear(20, 1e-2, 0.4), 4096, 64
    target = sdegen.Gaussian(torch.linspace(-1, 1, d), math.sqrt(S))
    used, _ = steps_taken(target, path, sdegen.Ancestral(variance="optimal"), n)
    bars = torch.cat([torch.ones(1), torch.cumprod(1 - path.betas, 0)])
    V = bars * S + 1 - bars
    true = (path.betas * V[:-1] / V[1:])[1:]
    # variance = bridge + most (1 - m), and m = (1 - bars)/V times a chi-square of n d degrees over n d
    posterior = (path.betas * (1 - bars[:-1]) / (1 - bars[1:]))[1:]
    most = (bars[:-1] * (path.betas / (1 - bars[1:])) ** 2 * (1 - bars[1:]) / bars[1:])[1:]
    noise = most * ((1 - bars) / V)[2:] * math.sqrt(2 / (n * d))
    assert bool(((used - true).abs() < 6 * noise + 1e-12).all())
    assert bool(((true - posterior) > 20 * noise)[:8].all())  # neither of the fixed ones would pass
    assert bool(((path.betas[1:] - true) > 20 * noise)[:8].all())


@pytest.mark.parametrize("k", [2, 5, 10, 20])
def test_optimal_variances_are_near_the_true_ones_on_a_mixture(k):
    """sigma*^2 = (beta/alpha)(1 - beta E|score|^2/d), from exact draws of x_k, the expectation on fresh data."""
    path, target, n = sdegen.DDPM.linear(20, 1e-2, 0.4), mixture64(), 4096
    model, g = target.model(path), torch.Generator().manual_seed(k)
    x = target.marginal(path, k / 20).sample(n, g)
    grid, noise = path.clock(torch.tensor([k, k - 1, 0.0]) / 20), torch.randn(2, *x.shape, generator=g)
    solver, u = sdegen.Ancestral(variance="optimal", grid=grid), (float(grid[0]), 0.0)
    state = sdegen.solve(model, x, solver, u=u, noise=noise, trajectory=True).trajectory[1]
    c_t, c_x, _ = path.bridge((k - 1) / 20, k / 20)
    used = float(((state - c_t * x - c_x * model.data(x, k / 20)) / noise[0]).mean()) ** 2
    beta = float(path.betas[k - 1])
    fresh, _ = path.perturb(target.sample(10_000, g), k / 20, generator=g)
    true = beta / (1 - beta) * (1 - beta * float(model.score(fresh, k / 20).square().mean()))
    assert abs(used / true - 1) < 0.005
    assert k == 20 or abs(used / beta - 1) > 0.03


def test_optimal_from_pure_noise_is_beta():
    """On the cosine path the first step starts where alpha = 0, and x_hat knows nothing."""
    path, x, noise = sdegen.CosineVPSDE(), torch.randn(8, 3), torch.randn(2, 8, 3)
    model = sdegen.Gaussian(torch.zeros(3), 0.5).model(path)
    first = [
        sdegen.solve(model, x, sdegen.Ancestral(2, variance=v), noise=noise, trajectory=True).trajectory[1]
        for v in ("optimal", "beta")
    ]
    torch.testing.assert_close(*first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("place", "named"), [(1.0, "beta"), (-1.0, "posterior")])
@pytest.mark.parametrize("path", [sdegen.DDPM.linear(15, 1e-2, 0.3), sdegen.VPSDE(), sdegen.SubVPSDE()])
def test_learned_variances_at_their_ends_are_the_named_ones(path, place, named):
    def net(x, t):
        return torch.tanh(x) * t[:, None]

    def double(x, t):
        return torch.cat([net(x, t), torch.full_like(x, place)], 1)

    x, noise = torch.randn(4, 3), torch.randn(15, 4, 3)
    learned = sdegen.solve(
        sdegen.ScoreModel(double, path, learns_variance=True), x, sdegen.Ancestral(15, variance="learned"), noise=noise
    )
    fixed = sdegen.solve(sdegen.ScoreModel(net, path), x, sdegen.Ancestral(15, variance=named), noise=noise)
    torch.testing.assert_close(learned.x, fixed.x, rtol=1e-12, atol=1e-12)
    assert learned.calls == 15


def test_a_learned_variance_is_per_value_and_between_in_the_logarithm():
    """One step by hand: var = posterior^(1-place) beta^place, a place of its own in every value."""
    path = sdegen.DDPM.linear(15, 1e-2, 0.3)
    place = torch.linspace(-1, 1, 6).reshape(1, 6).expand(4, 6)
    x, z = torch.randn(4, 6), torch.randn(4, 6)
    model = sdegen.ScoreModel(lambda x, t: torch.cat([0 * x, place], 1), path, learns_variance=True)
    solver = sdegen.Ancestral(variance="learned")
    ends = [
        sdegen.solve(model, x, solver, noise=lambda k, s=s: s * z, trajectory=True).trajectory[1] for s in (0.0, 1.0)
    ]
    bars = torch.cumprod(1 - path.betas, 0)
    beta = path.betas[-1]
    posterior = beta * (1 - bars[-2]) / (1 - bars[-1])
    share = 0.5 * (place + 1)
    std = torch.exp(0.5 * (share * torch.log(beta) + (1 - share) * torch.log(posterior)))
    torch.testing.assert_close(ends[1] - ends[0], std * z, rtol=1e-10, atol=1e-12)


# Parts of a chain, and what must not happen quietly


def test_a_part_of_a_chain_takes_the_chains_own_knots():
    path, seen = sdegen.DDPM.linear(50, 1e-3, 0.1), []

    def net(x, t):
        seen.append(float(t[0]))
        return x

    model = sdegen.ScoreModel(net, path, time=path.index)
    u = tuple(float(path.clock(torch.tensor(k / 50))) for k in (25, 5))
    sdegen.solve(model, torch.zeros(2, 1), sdegen.Ancestral(), u=u)
    assert seen == list(range(24, 4, -1))


def test_optimal_variance_cannot_run_away_where_the_batch_says_little():
    """Ten steps of a small batch from nearly pure noise: the first step's variance lies between the named ones."""
    path, target = sdegen.VPSDE(), sdegen.Gaussian(torch.tensor([0.8]), 0.5)
    noise = torch.ones(10, 64, 1)
    for seed in range(20):
        x_T = torch.randn(64, 1, generator=torch.Generator().manual_seed(seed))
        steps = {
            v: sdegen.solve(
                target.model(path), x_T, sdegen.Ancestral(10, variance=v), noise=noise, trajectory=True
            ).trajectory[1]
            for v in ("optimal", "beta", "posterior")
        }
        assert bool((steps["optimal"] <= steps["beta"] + 1e-9).all())
        assert bool((steps["optimal"] >= steps["posterior"] - 1e-9).all())
