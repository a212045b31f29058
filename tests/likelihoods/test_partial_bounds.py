"""Bounds on a part of a path: of clean data that are noised first, and of chains that start below the noise end."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from chains import DATA, Counting, M, S, nodes, off_by
from torch.distributions import Normal, kl_divergence

import sdegen

VE = sdegen.VESDE(0.05, 20.0)

PARTS = {
    "ve": (VE, None),
    "ve inside": (VE, (0.1, 0.8)),
    "vp": (sdegen.VPSDE(), (0.02, 0.9)),
    "condot": (sdegen.CondOT(), (0.01, 1.0)),
    "condot from data": (sdegen.CondOT(), (0.0, 0.9)),
    "ddpm": (sdegen.DDPM.linear(40, 1e-3, 0.3), (0.03, 0.7)),
}

LAW = Normal(M, math.sqrt(S))


def ends(name):
    path, u = PARTS[name]
    return path.ends if u is None else u


def scales(path, u):
    """alpha, sigma and the time at a clock."""
    t = path.time(torch.tensor(u, dtype=torch.float64))
    return float(path.alpha(t)), float(path.sigma(t)), t


def knots(name, steps):
    low, high = ends(name)
    return low + (high - low) * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2


def to_the_noise(path, u):
    """KL( q(x_T) | N(0, sigma^2) ) of the data's marginal at a clock."""
    alpha, sigma, _ = scales(path, u)
    marginal = Normal(alpha * M, math.sqrt(alpha**2 * S + sigma**2))
    return float(kl_divergence(marginal, Normal(0.0, sigma)))


@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("name", PARTS)
def test_terms_sample_by_sample_are_kl_divergences(name, variance):
    """Against torch's Gaussian KL of the path's own bridge and kernel, any network, any event."""
    path, u = PARTS[name]
    model = sdegen.ScoreModel(Counting(), path, "v")
    x, noise, at = torch.randn(5, 2, 3), torch.randn(5, 2, 3), knots(name, 4)
    bound = sdegen.vlb(model, x, grid=at, u=u, noise=noise, variance=variance)
    ours = []
    for high, low in pairwise(at):
        s, t = path.time(low), path.time(high)
        if low == 0:
            continue
        c_t, c_x, std = path.bridge(s, t)
        wide = path.transition(s, t)[1] if variance == "beta" else std
        state = path.alpha(t) * x + path.sigma(t) * noise
        x_hat = model.data(state, t)
        kl = kl_divergence(Normal(c_t * state + c_x * x, std), Normal(c_t * state + c_x * x_hat, wide))
        ours.insert(0, kl.sum((1, 2)))
    torch.testing.assert_close(bound.transitions, torch.stack(ours, 1), rtol=1e-8, atol=1e-9)
    alpha, sigma, _ = scales(path, float(at[0]))
    prior = kl_divergence(Normal(alpha * x, sigma), Normal(0.0, sigma)).sum((1, 2))
    torch.testing.assert_close(bound.prior, prior, rtol=1e-10, atol=1e-12)
    if at[-1] > 0:
        alpha, sigma, t = scales(path, float(at[-1]))
        x_hat = model.data(alpha * x + sigma * noise, t)
        decoder = -Normal(x_hat, sigma / alpha).log_prob(x).sum((1, 2))
        torch.testing.assert_close(bound.decoder, decoder, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", PARTS)
def test_the_bound_exceeds_the_entropy_by_closed_forms(name):
    """Bound less entropy is the divergence of laws of paths: the prior's, the decoder's, and the steps' O(1/K)."""
    path, u = PARTS[name]
    x, noise = nodes()
    low, high = ends(name)
    v, r = S * low**2 / ((1 - low) ** 2 * S + low**2), (low / (1 - low)) ** 2
    decoder = 0.5 * (math.log(r / v) - 1 + v / r) if low else 0.0
    least = DATA.entropy + to_the_noise(path, high) + decoder
    gaps = []
    for K in (100, 200):
        options = {"grid": knots(name, K), "u": u, "noise": noise}
        form = sdegen.entropy_form(DATA.model(path), DATA, x, **options)
        gaps.append(form.total - least)
        if high < 1:  # where an eps network may be asked
            form = sdegen.entropy_form(off_by(path), DATA, x, **options)
            assert float(form.model.mean(0).min()) > 0
            assert abs(form.total - float(sdegen.vlb(off_by(path), x, **options).total.mean())) < 1e-11
    assert form.kind == "bound"
    assert 1.7 < gaps[0] / gaps[1] < 2.3
    assert gaps[1] > 0


@pytest.mark.parametrize("variance", ["beta", "posterior", "optimal"])
@pytest.mark.parametrize("name", ["ve", "ddpm"])
def test_the_best_variances_are_the_steps_own(name, variance):
    """The decoder's is none of them: `optimal_variance` has one a step, which `Ancestral` and `vlb` take."""
    path, u = PARTS[name]
    x, noise = nodes()
    model, options = off_by(path), {"grid": knots(name, 6), "u": u, "noise": noise}
    best = sdegen.optimal_variance(model, x, **options)
    assert best.shape == (6,)
    fitted = sdegen.vlb(model, x, variance="optimal", **options)
    given = sdegen.vlb(model, x, variance=best, **options)
    torch.testing.assert_close(given.total, fitted.total, rtol=1e-12, atol=1e-12)
    assert float(fitted.total.mean()) <= float(sdegen.vlb(model, x, variance=variance, **options).total.mean()) + 1e-12
    for k in range(6):
        for factor in (0.9, 1.1):
            moved = best.clone()
            moved[k] *= factor
            assert sdegen.vlb(model, x, variance=moved, **options).total.mean() > fitted.total.mean()
    part = ends(name)[::-1]
    solver = sdegen.Ancestral(variance=best, grid=options["grid"])
    assert sdegen.sample(model, (2, 1), solver, u=part, x_T=torch.randn(2, 1)).shape == (2, 1)


@pytest.mark.parametrize("name", ["ve", "vp", "condot from data"])
def test_the_continuous_bound_on_a_part_has_its_closed_form(name):
    path, u = PARTS[name]
    n, (low, high) = 20_000, ends(name)
    first = low or 1e-3
    x = DATA.sample(n, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    bound = sdegen.continuous_vlb(DATA.model(path), x, u=u, draws=16, generator=generator)
    assert bound.u == (first, high)
    snr = [((1 - end) / end) ** 2 for end in bound.u]
    exact = (
        0.5 * snr[1] * (S + M**2),
        0.5 * math.log((1 + S * snr[0]) / (1 + S * snr[1])),
        0.5 * (math.log(2 * math.pi / snr[0]) + S * snr[0] / (1 + S * snr[0])),
    )
    for term, mean in zip((bound.prior, bound.transitions.sum(1), bound.decoder), exact, strict=True):
        assert abs(float(term.mean()) - mean) <= 5 * float(term.std()) / math.sqrt(n)


@pytest.mark.parametrize("name", ["ve", "vp", "condot from data", "ddpm"])
def test_the_cross_entropy_is_that_of_the_density_of_noised_data(name):
    """THEORY 4.4 at one point x: an equality, once the prior is that of the data; averaged, the ODE's own density too.

    The ODE maps the law of x_1 onto that of x_T one to one, so that its density misses the true one by
    KL( q(x_T) | prior ) on average, exactly what the bound has in excess of the entropy of x_1.
    """
    path, u = PARTS[name]
    n, model = 20_000, DATA.model(path)
    generator = torch.Generator().manual_seed(1)
    bound = sdegen.continuous_vlb(model, torch.full((n, 1), 1.3), u=u, draws=16, generator=generator)
    alpha, sigma, t = scales(path, bound.u[0])
    assert abs(bound.sigma / sigma - 1) < 1e-12
    marginal = Normal(alpha * M, math.sqrt(alpha**2 * S + sigma**2))
    expected = float(kl_divergence(Normal(alpha * 1.3, sigma), marginal)) + 0.5 * math.log(2 * math.pi * math.e)
    expected += math.log(sigma)
    far = scales(path, bound.u[1])
    kl = kl_divergence(Normal(far[0] * 1.3, far[1]), Normal(far[0] * M, math.sqrt(far[0] ** 2 * S + far[1] ** 2)))
    found = bound.cross_entropy - bound.prior + float(kl)
    assert abs(float(found.mean()) - expected) < 5 * float(found.std()) / math.sqrt(n)

    x, noise = nodes()
    noised = path.perturb(x, t, noise)[0]
    ode = -float(sdegen.log_prob(model, noised, sdegen.ODESolver("dopri8", rtol=1e-7), u=bound.u).mean())
    assert abs(ode - float(marginal.entropy()) - to_the_noise(path, bound.u[1])) < 1e-5
    x = DATA.sample(n, generator)
    average = sdegen.continuous_vlb(model, x, u=u, draws=16, generator=generator).cross_entropy
    assert abs(float(average.mean()) - ode) < 5 * float(average.std()) / math.sqrt(n)


def test_the_cross_entropy_of_a_chain_is_above_that_density():
    """And equal with the best variances: in one dimension the steps are then the true ones, however few."""
    x, noise = nodes()
    path, _ = PARTS["ve"]
    noised = path.perturb(x, path.t_data, noise)[0]
    ode = -float(sdegen.log_prob(DATA.model(path), noised, u=path.ends).mean())
    options = {"grid": knots("ve", 5), "noise": noise}
    for variance in ("beta", "posterior"):
        bound = sdegen.vlb(DATA.model(path), x, variance=variance, **options)
        assert float(bound.cross_entropy.mean()) - ode > 0.1
    best = sdegen.vlb(DATA.model(path), x, variance="optimal", **options)
    assert best.u == path.ends
    assert abs(float(best.cross_entropy.mean()) - ode) < 1e-6


def density(path, model, at):
    """p(x) of a "beta" chain on these knots whose x_hat is affine, in one dimension, with the decoder at its end."""
    mean, var = 0.0, scales(path, float(at[0]))[1] ** 2
    for high, low in pairwise(at):
        s, t = path.time(low), path.time(high)
        c_t, c_x, _ = (float(c) for c in path.bridge(s, t))
        value = model.data(torch.tensor([[0.0], [1.0]]), t)[:, 0].tolist()
        factor = c_t + c_x * (value[1] - value[0])
        mean, var = factor * mean + c_x * value[0], factor**2 * var + float(path.transition(s, t)[1]) ** 2
    alpha, sigma, t = scales(path, float(at[-1]))
    value = model.data(torch.tensor([[0.0], [1.0]]), t)[:, 0].tolist()
    factor = value[1] - value[0]
    return Normal(factor * mean + value[0], math.sqrt(factor**2 * var + (sigma / alpha) ** 2))


@pytest.mark.parametrize("name", ["ve", "vp"])
def test_iwae_weights_average_to_the_likelihood(name):
    (path, u), n = PARTS[name], 50_000
    low, high = (0.3, 0.7) if name == "ve" else u
    at = torch.tensor([high, 0.5, 0.4, low], dtype=torch.float64)
    for model in (DATA.model(path), off_by(path)):
        x = torch.tensor([[0.2], [0.8], [1.7]])
        found = sdegen.iwae(model, x, n, grid=at, u=(low, high), batch_size=3 * n)
        weights, exact = found.log_weights.exp(), density(path, model, at).log_prob(x)[:, 0].exp()
        assert bool(((weights.mean(1) - exact).abs() < 5 * weights.std(1) / math.sqrt(n)).all())
        assert found.kind == "bound"


def test_probabilities_of_levels_add_up_to_one():
    """Of noised data a decoder on levels makes a probability: the mean weights of all levels are one together."""
    levels, n = sdegen.Discretized(9, -1.0, 3.0), 40_000
    x, at = torch.linspace(-1, 3, 9)[:, None], torch.tensor([0.5, 0.4, 0.3])
    found = sdegen.iwae(DATA.model(VE), x, n, grid=at, u=(0.3, 0.5), decoder=levels, batch_size=9 * n)
    weights = found.log_weights.exp()
    error = float(weights.var(1).sum() / n) ** 0.5
    assert abs(float(weights.mean(1).sum()) - 1) < 5 * error
    assert error < 0.01
