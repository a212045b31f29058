"""The variational bound: every term against its closed form, on any path and grid, and by random steps."""

from __future__ import annotations

import math

import pytest
import torch
from chains import DATA, Counting, M, S, Theory, nodes, off_by
from torch.distributions import Normal, kl_divergence

import sdegen

GAPS = [("beta", 0.00110517), ("posterior", 0.56993885), ("optimal", 1.29149e-5)]


@pytest.mark.parametrize(("variance", "gap"), GAPS)
def test_the_bound_of_ho_s_schedule_on_gaussian_data(variance, gap):
    x, noise = nodes()
    model = DATA.model(sdegen.DDPM.linear())
    bound = sdegen.vlb(model, x, variance=variance, noise=noise)
    assert abs(float(bound.total.mean()) - DATA.entropy - gap) < 1e-8
    assert abs(DATA.entropy - 0.72579135) < 1e-8
    by_entropy = sdegen.entropy_form(model, DATA, x, variance=variance, noise=noise)
    assert abs(by_entropy.total - float(bound.total.mean())) < 1e-12
    tensor = Theory(model.path).variances[variance]
    by_tensor = sdegen.vlb(model, x, variance=tensor, noise=noise)
    assert abs(float(by_tensor.total.mean()) - float(bound.total.mean())) < 1e-10
    torch.testing.assert_close(bound.bits_per_dim, bound.total / math.log(2), rtol=1e-14, atol=0)


@pytest.mark.parametrize("variance", ["beta", "posterior", "optimal"])
@pytest.mark.parametrize("chain", [sdegen.DDPM.linear(), sdegen.DDPM.cosine(30), sdegen.DDPM([0.2, 0.05, 0.7])])
def test_every_term_of_the_bound(chain, variance):
    x, noise = nodes()
    bound, theory = sdegen.vlb(DATA.model(chain), x, variance=variance, noise=noise), Theory(chain)
    assert abs(float(bound.prior.mean()) / theory.prior() - 1) < 1e-9
    terms = theory.transitions(variance)
    torch.testing.assert_close(bound.transitions.mean(0), terms, rtol=1e-8, atol=1e-14)
    assert abs(float(bound.decoder.mean()) - theory.decoder(variance)) < 1e-12
    assert bound.transitions.shape == (4, chain.steps - 1)
    assert bound.standard_error is None


def test_the_prior_term_is_theory_s_where_sigma_is_one():
    """1/2 [abar (S + m^2 - 1) - log(1 - abar)] against N(0, 1): the two priors differ at second order in abar."""
    x, noise = nodes()
    bar = float(Theory(sdegen.DDPM.linear()).bars[-1])
    theory = 0.5 * (bar * (S + M**2 - 1) - math.log1p(-bar))
    assert abs(float(sdegen.vlb(DATA.model(sdegen.DDPM.linear()), x, noise=noise).prior.mean()) - theory) < bar**2


def test_terms_sample_by_sample_are_kl_divergences():
    """Against torch's Gaussian KL, with Ho's formulas for the two means: any network, any event."""
    chain = sdegen.DDPM.linear(6, 0.05, 0.4)
    theory = Theory(chain)
    model = sdegen.ScoreModel(Counting(), chain)
    x, noise = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    for variance in ("beta", "posterior"):
        bound, var = sdegen.vlb(model, x, variance=variance, noise=noise), theory.variances[variance]
        for k in range(1, 7):
            beta, bar, before = chain.betas[k - 1], theory.bars[k], theory.bars[k - 1]
            x_k = torch.sqrt(bar) * x + torch.sqrt(1 - bar) * noise
            mean = (x_k - beta / torch.sqrt(1 - bar) * model.eps(x_k, k / 6)) / torch.sqrt(1 - beta)
            ours = Normal(mean, torch.sqrt(var[k - 1]))
            if k == 1:
                torch.testing.assert_close(bound.decoder, -ours.log_prob(x).sum((1, 2)), rtol=1e-10, atol=1e-10)
                continue
            true = (torch.sqrt(1 - beta) * (1 - before) * x_k + torch.sqrt(before) * beta * x) / (1 - bar)
            kl = kl_divergence(Normal(true, torch.sqrt(theory.posterior[k - 1])), ours).sum((1, 2))
            torch.testing.assert_close(bound.transitions[:, k - 2], kl, rtol=1e-9, atol=1e-10)
        prior = kl_divergence(
            Normal(torch.sqrt(theory.bars[-1]) * x, torch.sqrt(1 - theory.bars[-1])),
            Normal(torch.zeros(()), torch.sqrt(1 - theory.bars[-1])),
        )
        torch.testing.assert_close(bound.prior, prior.sum((1, 2)), rtol=1e-10, atol=0)
        assert bound.size == 6


def test_the_bound_takes_any_path_and_grid():
    """VP cut into K steps is the chain from_path makes of it: the same numbers; and a chain may be respaced."""
    x, noise = torch.randn(5, 2), torch.randn(5, 2)
    target = sdegen.Gaussian(torch.tensor([0.1, -0.4]), 0.3)
    chain = sdegen.vlb(target.model(sdegen.DDPM.from_path(sdegen.VPSDE(), 12)), x, noise=noise)
    grid = sdegen.PowerGrid(1, "t")
    cut = sdegen.vlb(target.model(sdegen.VPSDE()), x, steps=12, grid=grid, noise=noise)
    torch.testing.assert_close(cut.transitions, chain.transitions, rtol=1e-9, atol=0)
    torch.testing.assert_close(cut.total, chain.total, rtol=1e-9, atol=0)
    long = sdegen.DDPM.linear()
    knots = long.respaced(20, "trailing")
    bars = long.alpha(torch.arange(0, 1001, 50) / 1000) ** 2
    short = sdegen.DDPM(1 - bars[1:] / bars[:-1])
    respaced = sdegen.vlb(target.model(long), x, grid=knots, noise=noise)
    torch.testing.assert_close(respaced.total, sdegen.vlb(target.model(short), x, noise=noise).total)


def test_posterior_bounds_are_the_same_on_every_path():
    """In straight coordinates only the kernel knows the path: with "posterior" the terms are those of any other."""
    x, noise, u = torch.randn(5, 2), torch.randn(5, 2), torch.linspace(0, 1, 13)
    target = sdegen.Gaussian(torch.tensor([0.1, -0.4]), 0.3)
    bounds = [
        sdegen.vlb(target.model(p), x, grid=u * p.ends[1], noise=noise, variance="posterior").transitions[:, :-1]
        for p in (sdegen.VPSDE(), sdegen.DDPM.from_path(sdegen.VPSDE(), 40, smooth=True))
    ]
    torch.testing.assert_close(*bounds, rtol=1e-9, atol=0)
    flow = sdegen.vlb(target.model(sdegen.CondOT()), x, grid=u, noise=noise, variance="posterior")
    cosine = sdegen.vlb(target.model(sdegen.CosineVPSDE()), x, grid=u, noise=noise, variance="posterior")
    torch.testing.assert_close(flow.transitions[:, 1:], cosine.transitions[:, 1:], rtol=1e-9, atol=1e-12)
    assert float(flow.prior.abs().max()) == 0


def test_the_bound_of_a_single_step():
    """K = 1: no transition, and log p(x) of the chain is N(., sigma^2 a^2 + beta) exactly computable."""
    chain = sdegen.DDPM([0.6])
    x, noise = nodes()
    bound, theory = sdegen.vlb(DATA.model(chain), x, noise=noise), Theory(chain)
    assert bound.transitions.shape == (4, 0)
    assert abs(float(bound.total.mean()) - theory.prior() - theory.decoder("beta")) < 1e-12


# Random steps


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_random_steps_are_unbiased_and_know_their_error(variance):
    chain, n = sdegen.DDPM.linear(60, 1e-3, 0.2), 20_000
    model, x = off_by(chain, 0.8, 0.2), torch.full((n, 1), 1.3)
    g = torch.Generator().manual_seed(1)
    every = sdegen.vlb(model, x, variance=variance, generator=g)
    some = sdegen.vlb(model, x, variance=variance, draws=8, generator=g)
    assert some.transitions.shape == (n, 8)
    sums = some.transitions.sum(1)
    exact, gap = every.transitions.sum(1), float(sums.mean() - every.transitions.sum(1).mean())
    assert abs(gap) < 5 * math.sqrt(float(sums.var() + exact.var()) / n)
    assert torch.equal(some.prior, every.prior)
    honest = float(some.standard_error.square().mean() / sums.var())
    spread = float(some.standard_error.square().std() / sums.var()) / math.sqrt(n)
    assert abs(honest - 1) < 6 * (spread + math.sqrt(3 / n))


def test_random_steps_of_one_sample_visit_every_term():
    """K = 2 has one transition: then every draw is that term."""
    chain, x, noise = sdegen.DDPM([0.3, 0.4]), torch.randn(5, 2), torch.randn(5, 2)
    model = sdegen.ScoreModel(Counting(), chain)
    every, some = (sdegen.vlb(model, x, noise=noise, draws=draws) for draws in (None, 6))
    torch.testing.assert_close(some.transitions.sum(1), every.transitions[:, 0], rtol=1e-12, atol=0)
    assert float(some.standard_error.max()) < 1e-12


@pytest.mark.parametrize(("place", "named"), [(1.0, "beta"), (-1.0, "posterior")])
def test_a_constant_place_is_a_named_variance(place, named):
    """[-1, 1] to the places [0, 1] between "posterior" and "beta": vlb, iwae and entropy agree with the named ones."""
    chain, x, noise = sdegen.DDPM.linear(9, 0.02, 0.4), torch.randn(6, 2, 4), torch.randn(6, 2, 4)
    single = Counting()
    doubled = sdegen.ScoreModel(
        lambda x, t: torch.cat([single(x, t), torch.full_like(x, place)], 1), chain, learns_variance=True
    )
    plain = sdegen.ScoreModel(single, chain)
    learned, fixed = (sdegen.vlb(m, x, variance=v, noise=noise) for m, v in ((doubled, "learned"), (plain, named)))
    torch.testing.assert_close(learned.transitions, fixed.transitions, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(learned.decoder, fixed.decoder, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(learned.prior, fixed.prior, rtol=0, atol=0)
    weights = [
        sdegen.iwae(m, x, 2, variance=v, generator=torch.Generator().manual_seed(0)).log_weights
        for m, v in ((doubled, "learned"), (plain, named))
    ]
    torch.testing.assert_close(*weights, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [1000, 4000])
def test_single_precision_data_lose_no_digits_on_a_fine_grid(steps):
    """On PowerGrid(2) the first latent's deviation is 1/steps^2, below the rounding of float32 data."""
    target = sdegen.Gaussian(torch.zeros(4), 0.5)
    x = target.sample(8).float()
    model, noise = target.model(sdegen.VPSDE()), torch.randn(8, 4).float()
    single = sdegen.vlb(model, x, steps=steps, noise=noise)
    double = sdegen.vlb(model, x.double(), steps=steps, noise=noise.double())
    assert single.total.dtype is torch.float32
    torch.testing.assert_close(
        single.total.double(), double.total, rtol=0, atol=2e-6 * float(double.total.abs().max()) + 1e-6
    )
