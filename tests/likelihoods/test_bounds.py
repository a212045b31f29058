"""Bounds: every term of the variational bound, its continuous limit, its many-sample form, decoders, and training."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

import sdegen

S, M = 0.25, 0.8
DATA = sdegen.Gaussian(torch.tensor([M], dtype=torch.float64), math.sqrt(S))
LOG_2PI = math.log(2 * math.pi)


def nodes():
    """m +- sqrt(S) against +-1: means over these four rows are expectations of any polynomial of degree three."""
    x = torch.tensor([M - math.sqrt(S), M + math.sqrt(S)]).repeat_interleave(2)[:, None]
    return x, torch.tensor([-1.0, 1.0]).repeat(2)[:, None]


def sigma_points(law):
    """The same in d dimensions: 2d points of the data against 2d of the noise, exact for every quadratic."""
    d = len(law.mean)
    root = torch.linalg.cholesky((law._rotations[0] * law.spectrum) @ law._rotations[0].T)
    both = math.sqrt(d) * torch.cat([torch.eye(d), -torch.eye(d)])
    return (law.mean + both @ root.T).repeat_interleave(2 * d, 0), both.repeat(2 * d, 1)


class Theory:
    """THEORY 11.4 in one dimension: everything about a chain on N(m, S) with the optimal eps."""

    def __init__(self, chain):
        bars = torch.cat([torch.ones(1), torch.cumprod(1 - chain.betas, 0)])
        V = bars * S + 1 - bars
        self.beta, self.bars, self.V = chain.betas, bars, V
        self.optimal = self.beta * V[:-1] / V[1:]
        self.posterior = self.beta * (1 - bars[:-1]) / (1 - bars[1:])
        clipped = torch.cat([self.posterior[1:2], self.posterior[1:]])
        self.variances = {"beta": self.beta, "posterior": clipped, "optimal": self.optimal}

    def prior(self):
        """KL( q(x_K | x) | N(0, sigma_K^2) ): the path's own prior, where THEORY's formula has N(0, 1)."""
        return float(self.bars[-1] * (S + M**2) / (2 * (1 - self.bars[-1])))

    def transitions(self, variance):
        var, tilde, beta = self.variances[variance][1:], self.posterior[1:], self.beta[1:]
        weight = beta**2 / (2 * var * (1 - beta) * (1 - self.bars[2:]))
        kernel = 0.5 * (torch.log(var / tilde) - 1 + tilde / var)
        return kernel + weight * self.bars[2:] * S / self.V[2:]

    def decoder(self, variance):
        var = self.variances[variance][0]
        return float(0.5 * torch.log(2 * math.pi * var) + S * self.beta[0] / (2 * var * self.V[1]))


class Counting:
    """A network that counts its calls."""

    def __init__(self, doubled: bool = False):
        self.calls, self.doubled = 0, doubled

    def __call__(self, x, t, **cond):
        self.calls += 1
        out = torch.tanh(x) * (1 + t.to(x).reshape(-1, *[1] * (x.ndim - 1)))
        return torch.cat([out, torch.cos(x)], 1) if self.doubled else out


def off_by(path, factor=0.9, shift=0.1):
    """An affine network that is wrong by a factor and a shift."""
    exact = DATA.model(path)
    return sdegen.ScoreModel(lambda x, t: factor * exact.eps(x, t) + shift, path)


# The variational bound, term by term


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


# Cross-entropy


def test_entropy_form_tells_the_chain_s_error_from_the_model_s():
    x, noise = nodes()
    chain = sdegen.DDPM.linear(50, 1e-3, 0.2)
    for variance in ("beta", "posterior", "optimal", chain.betas):
        exact = sdegen.entropy_form(DATA.model(chain), DATA, x, variance=variance, noise=noise)
        wrong = sdegen.entropy_form(off_by(chain), DATA, x, variance=variance, noise=noise)
        bound = sdegen.vlb(off_by(chain), x, variance=variance, noise=noise)
        assert abs(wrong.total - float(bound.total.mean())) < 1e-12
        assert float(exact.model.abs().max()) < 1e-20
        assert float(wrong.model.mean(0).min()) > 0
        assert bool((exact.chain >= -1e-15).all())
        assert exact.chain.shape == (50,)
        assert wrong.model.shape == (4, 50)
    theory = Theory(chain)
    ratio = theory.beta / theory.optimal
    by_hand = 0.5 * (torch.log(ratio) - 1 + 1 / ratio)
    parts = sdegen.entropy_form(DATA.model(chain), DATA, x, noise=noise)
    torch.testing.assert_close(parts.chain, by_hand, rtol=1e-7, atol=1e-15)
    V, bar = float(theory.V[-1]), float(theory.bars[-1])
    kl = 0.5 * ((V + bar * M**2) / (1 - bar) - 1 - math.log(V / (1 - bar)))
    assert abs(parts.prior - kl) < 1e-12
    assert abs(parts.entropy - 0.5 * math.log(2 * math.pi * math.e * S)) < 1e-14


@pytest.mark.parametrize("variance", ["beta", "posterior", "optimal"])
def test_entropy_form_in_several_dimensions(variance):
    root = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.4, 0.0], [-0.2, 0.1, 0.7]])
    law = sdegen.Gaussian(torch.tensor([0.3, -1.0, 0.6]), covariance=root @ root.T)
    x, noise = sigma_points(law)
    chain = sdegen.DDPM.linear(30, 1e-3, 0.3)
    exact = law.model(chain)
    wrong = sdegen.ScoreModel(lambda x, t: 1.1 * exact.eps(x, t) - 0.2 * x, chain)
    for model in (exact, wrong):
        bound = float(sdegen.vlb(model, x, variance=variance, noise=noise).total.mean())
        assert abs(sdegen.entropy_form(model, law, x, variance=variance, noise=noise).total - bound) < 1e-11
        assert bound > law.entropy


# The best variance


def test_optimal_variance_is_theory_s():
    x, noise = nodes()
    for chain in (sdegen.DDPM.linear(), sdegen.DDPM.linear(12, 0.05, 0.4), sdegen.DDPM.cosine(20)):
        found = sdegen.optimal_variance(DATA.model(chain), x, noise=noise)
        torch.testing.assert_close(found, Theory(chain).optimal, rtol=1e-12, atol=1e-13)
        assert found.dtype == torch.float64
    scales = torch.tensor([0.1, 0.5, 1.5])
    law = sdegen.Gaussian(torch.zeros(3), covariance=torch.diag(scales**2))
    chain = sdegen.DDPM.linear(12, 0.05, 0.4)
    points, normals = sigma_points(law)
    bars = torch.cat([torch.ones(1), torch.cumprod(1 - chain.betas, 0)])[:, None]
    V = bars * scales**2 + 1 - bars
    by_hand = (chain.betas[:, None] * V[:-1] / V[1:]).mean(1)
    torch.testing.assert_close(
        sdegen.optimal_variance(law.model(chain), points, noise=normals), by_hand, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("wrong", [False, True])
def test_any_other_variance_raises_the_bound(wrong):
    """Also for a model whose mean is wrong: the optimum then makes up for its error."""
    chain, (x, noise) = sdegen.DDPM.linear(8, 0.05, 0.4), nodes()
    model = off_by(chain, 0.7, 0.3) if wrong else DATA.model(chain)

    def bound(variance):
        return float(sdegen.vlb(model, x, variance=variance, noise=noise).total.mean())

    best = sdegen.optimal_variance(model, x, noise=noise)
    least = bound(best)
    assert abs(least - bound("optimal")) < 1e-12
    for k in range(8):
        for factor in (0.97, 1.03):
            other = best.clone()
            other[k] *= factor
            assert 1e-4 < bound(other) - least < 1e-3  # 1/4 (0.03)^2, to leading order


def test_optimal_variance_serves_ancestral_and_batches():
    chain, x = sdegen.DDPM.linear(8, 0.05, 0.4), DATA.sample(400)
    model = DATA.model(chain)
    noise = torch.randn(400, 1)
    found = sdegen.optimal_variance(model, x, noise=noise)
    torch.testing.assert_close(sdegen.optimal_variance(model, x, noise=noise, batch_size=7), found, rtol=1e-12, atol=0)
    g = [torch.Generator().manual_seed(i) for i in range(3)]
    assert sdegen.sample(model, (3, 1), sdegen.Ancestral(variance=found), generator=g).shape == (3, 1)
    flow = sdegen.optimal_variance(DATA.model(sdegen.CondOT()), x, 8, noise=noise)
    assert flow.shape == (8,)
    assert bool((flow > 0).all())


# Random steps, and the continuous limit


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


def continuous_terms(path, u_min):
    """Prior, integral and first latent of the exact model on N(m, S), averaged (THEORY 11.4)."""
    high = path.ends[1]
    snr = [((1 - u) / u) ** 2 for u in (u_min, high)]
    integral = 0.5 * math.log((1 + S * snr[0]) / (1 + S * snr[1]))
    return 0.5 * snr[1] * (S + M**2), integral, 0.5 * (LOG_2PI - math.log(snr[0]) + S * snr[0] / (1 + S * snr[0]))


@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.CondOT(), sdegen.SubVPSDE(), sdegen.CosineVPSDE()])
@pytest.mark.parametrize("u_min", [1e-3, 0.4])
def test_the_continuous_bound_has_its_closed_form(path, u_min):
    n = 20_000
    x = DATA.sample(n, torch.Generator().manual_seed(0))
    bound = sdegen.continuous_vlb(
        DATA.model(path), x, u_min=u_min, draws=16, generator=torch.Generator().manual_seed(1)
    )
    for term, exact in zip(
        (bound.prior, bound.transitions.sum(1), bound.decoder), continuous_terms(path, u_min), strict=True
    ):
        assert abs(float(term.mean()) - exact) <= 5 * float(term.std()) / math.sqrt(n)
    assert abs(float(bound.total.mean()) - sum(continuous_terms(path, u_min))) < 5 * float(bound.total.std()) / n**0.5


def test_the_prior_term_of_the_continuous_bound_is_the_chain_s():
    chain, x = sdegen.DDPM.linear(20, 1e-2, 0.1), torch.randn(5, 2)
    target = sdegen.Gaussian(torch.zeros(2), 0.5)
    of_limit, of_chain = sdegen.continuous_vlb(target.model(chain), x, draws=2), sdegen.vlb(target.model(chain), x)
    bar = float(Theory(chain).bars[-1])
    torch.testing.assert_close(of_limit.prior, 0.5 * bar / (1 - bar) * x.square().sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(of_limit.prior, of_chain.prior, rtol=1e-12, atol=0)


def test_the_continuous_bound_is_tight_and_knows_its_error():
    """With the exact score it is the entropy but for the ends; the error is the spread over repeats of one sample."""
    n, model = 20_000, DATA.model(sdegen.VPSDE())
    assert abs(sum(continuous_terms(sdegen.VPSDE(), 1e-3)) - DATA.entropy) < 1e-4
    for draws in (2, 16):
        bound = sdegen.continuous_vlb(model, torch.full((n, 1), 1.3), draws=draws)
        sums, squared = bound.transitions.sum(1), bound.standard_error.square()
        assert bound.transitions.shape == (n, draws)
        assert abs(float(squared.mean() / sums.var()) - 1) < 6 * float(squared.std() / sums.var() + 1.5) / math.sqrt(n)


def test_the_chain_tends_to_the_continuous_bound():
    """THEORY 4.4: the sum of the posterior chain's terms exceeds the integral by O(1/K), and the sum is known."""
    x, noise = nodes()
    u_min, path = 0.05, sdegen.VPSDE()
    exact = continuous_terms(path, u_min)[1]
    log_snr = [2 * math.log((1 - u) / u) for u in (u_min, path.ends[1])]
    gaps = []
    for K in (100, 200, 400):
        lam = torch.linspace(log_snr[0], log_snr[1], K)
        grid = torch.cat([torch.zeros(1), torch.sigmoid(-lam / 2)])
        grid[-1] = path.ends[1]
        bound = sdegen.vlb(DATA.model(path), x, grid=grid, noise=noise, variance="posterior")
        gaps.append(float(bound.transitions.mean(0).sum()) - exact)
    m = S * torch.exp(lam) / (1 + S * torch.exp(lam))
    step = (log_snr[0] - log_snr[1]) / 399
    assert abs(gaps[2] / float(0.25 * step**2 * (m**2).sum()) - 1) < 0.02
    assert all(1.9 < a / b < 2.1 for a, b in pairwise(gaps))


def test_the_continuous_bound_does_not_know_the_path():
    """One wrong field in straight coordinates: to rounding on two paths with the same ends, else within the errors."""
    n = 20_000

    def model(path):
        def net(x, t):
            u = path.clock(t)[:, None]
            y = x / path.scale(u)
            x_hat = torch.tanh(y)
            return path.alpha(t)[:, None] * (y - (1 - u) * x_hat) / u - path.sigma(t)[:, None] * x_hat

        return sdegen.ScoreModel(net, path, "v")

    x = DATA.sample(n, torch.Generator().manual_seed(0))
    chain = sdegen.DDPM.from_path(sdegen.VPSDE(), 40)
    bounds = [
        sdegen.continuous_vlb(model(path), x, u_min=0.02, draws=8, generator=torch.Generator().manual_seed(seed))
        for path, seed in ((sdegen.VPSDE(), 0), (chain, 0), (sdegen.CondOT(), 1))
    ]
    torch.testing.assert_close(bounds[1].transitions, bounds[0].transitions, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(bounds[1].total, bounds[0].total, rtol=1e-7, atol=1e-9)
    for term in ("decoder", "transitions"):
        one, other = (getattr(bound, term).reshape(n, -1).sum(1) for bound in bounds[::2])
        # between the two noise ends, log-SNR -10 and less, the integrand is at most |D_hat - D|^2 u' : below 1e-3
        slack = 1e-3 if term == "transitions" else 0
        assert abs(float(one.mean() - other.mean())) < 5 * math.sqrt(float(one.var() + other.var()) / n) + slack


# Importance-weighted bounds


def chain_density(chain, model):
    """p_theta(x) of a "beta" chain whose eps is affine, in one dimension, with the decoder's own variance."""
    bars = torch.cat([torch.ones(1), torch.cumprod(1 - chain.betas, 0)]).tolist()
    mean, var = 0.0, 1 - bars[-1]
    for k in range(chain.steps, 0, -1):
        beta = float(chain.betas[k - 1])
        at = model.eps(torch.tensor([[0.0], [1.0]]), k / chain.steps)[:, 0].tolist()
        pull = beta / math.sqrt(1 - bars[k])
        factor, offset = (1 - pull * (at[1] - at[0])) / math.sqrt(1 - beta), -pull * at[0] / math.sqrt(1 - beta)
        mean, var = factor * mean + offset, factor**2 * var + beta
    return torch.distributions.Normal(mean, math.sqrt(var))


@pytest.mark.slow
def test_iwae_climbs_to_the_likelihood():
    """log p of the same points subtracted; the gap of 64 samples is an eighth of that of 8, within a factor 1.5."""
    n = 200_000
    chain = sdegen.DDPM.from_path(sdegen.VPSDE(), 10)
    model = DATA.model(chain)
    x = DATA.sample(n, torch.Generator().manual_seed(0))
    log_p = chain_density(chain, model).log_prob(x)[:, 0]
    gaps, errors = [], []
    for samples in (1, 8, 64):
        g = torch.Generator().manual_seed(samples)
        gap = log_p - sdegen.iwae(model, x, samples, generator=g, batch_size=n // 4).log_prob
        gaps.append(float(gap.mean()))
        errors.append(float(gap.std()) / math.sqrt(n))
    assert gaps[0] > gaps[1] - 3 * math.hypot(errors[0], errors[1])
    assert gaps[1] > gaps[2] - 3 * math.hypot(errors[1], errors[2])
    assert gaps[2] > -3 * errors[2]
    assert 8 / 1.5 < gaps[1] / gaps[2] < 8 * 1.5


def test_iwae_weights_average_to_the_likelihood():
    """E w = p(x) exactly, at three points, also for a wrong model; a chain of 3 steps has light weights."""
    chain, n = sdegen.DDPM([0.1, 0.3, 0.6]), 100_000
    for model in (DATA.model(chain), off_by(chain)):
        density = chain_density(chain, model)
        x = torch.tensor([[0.2], [0.8], [1.7]])
        weights = sdegen.iwae(model, x, n, batch_size=3 * n).log_weights.exp()
        exact = density.log_prob(x)[:, 0].exp()
        assert bool(((weights.mean(1) - exact).abs() < 5 * weights.std(1) / math.sqrt(n)).all())


def test_one_sample_is_the_variational_bound():
    """IWAE with one sample is -vlb in expectation, for every variance, over events with two values."""
    chain, n = sdegen.DDPM.linear(6, 0.05, 0.4), 40_000
    doubled = sdegen.ScoreModel(Counting(doubled=True), chain, learns_variance=True)
    single = sdegen.ScoreModel(Counting(), chain)
    x = torch.tensor([[0.4, -0.3]]).expand(n, 2)
    for variance in ("beta", "posterior", "learned"):
        model = doubled if variance == "learned" else single
        one = sdegen.iwae(model, x, 1, variance=variance)
        bound = sdegen.vlb(model, x, variance=variance).total
        ours = one.log_prob
        assert one.log_weights.shape == (n, 1)
        error = math.sqrt(float(ours.var() + bound.var()) / n)
        assert abs(float(ours.mean() + bound.mean())) < 5 * error
        assert bool(one.standard_error.isnan().all())


def test_iwae_numbers_follow_from_the_weights():
    w = torch.tensor([[1.0, 2.0, 5.0], [3.0, 3.0, 3.0]])
    found = sdegen.IWAE(torch.log(w) + 300, 4)
    torch.testing.assert_close(found.log_prob, 300 + torch.log(w.mean(1)))
    torch.testing.assert_close(found.standard_error, w.std(1) / (math.sqrt(3) * w.mean(1)))
    torch.testing.assert_close(found.effective_samples, w.sum(1) ** 2 / (w**2).sum(1))
    torch.testing.assert_close(found.bits_per_dim, -found.log_prob / (4 * math.log(2)))


def test_iwae_knows_its_error():
    """The spread of log_prob over repeats of one point; the delta method is good to O(1/samples)."""
    chain, n = sdegen.DDPM.from_path(sdegen.VPSDE(), 10), 4000
    found = sdegen.iwae(DATA.model(chain), torch.full((n, 1), 1.2), 200, batch_size=n * 20)
    ratio = float(found.standard_error.square().mean() / found.log_prob.var())
    assert abs(ratio - 1) < 6 * math.sqrt(2 / n) + 0.05
    ratio = found.effective_samples / 200
    assert bool(((ratio > 0.005) & (ratio <= 1)).all())


def test_iwae_follows_rows_in_any_batches():
    """With a generator per sample the paths of a sample depend on nothing else."""
    chain = sdegen.DDPM.linear(6, 0.05, 0.4)
    model, x = sdegen.ScoreModel(Counting(), chain), torch.randn(3, 2)

    def weights(rows, **options):
        g = [torch.Generator().manual_seed(i) for i in rows]
        return sdegen.iwae(model, x[rows], 4, generator=g, **options).log_weights

    whole = weights([0, 1, 2])
    assert whole.shape == (3, 4)
    assert float((whole[:, 1:] - whole[:, :-1]).abs().min()) > 1e-6
    torch.testing.assert_close(weights([1]), whole[1:2], rtol=1e-12, atol=1e-12)
    for size in (1, 2, 3):
        torch.testing.assert_close(weights([0, 1, 2], batch_size=size), whole, rtol=1e-12, atol=1e-12)


# Decoders


def log_mass(a, b):
    """log of the normal mass of [a, b] by Gauss-Legendre, with no cdf: reflected into a + b > 0 and scaled by 1/a."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    flip = a + b < 0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    peak = np.maximum(a, 0)
    low, high = np.maximum(a, -39), np.minimum(b, peak + np.minimum(39, 45 / np.maximum(peak, 1e-300)))
    node, weight = np.polynomial.legendre.leggauss(400)
    z = low[..., None] + 0.5 * (high - low)[..., None] * (node + 1)
    inside = (weight * np.exp(-0.5 * (z - peak[..., None]) * (z + peak[..., None]))).sum(-1)
    return np.log(inside * 0.5 * (high - low)) - 0.5 * peak**2 - 0.5 * np.log(2 * np.pi)


DECODERS = [sdegen.Discretized(), sdegen.Discretized(17, 1 / 17 - 1, 1 - 1 / 17), sdegen.Discretized(2, 0.0, 1.0)]


def levels(decoder):
    return torch.linspace(decoder.low, decoder.high, decoder.levels)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_probabilities_of_all_levels_add_up_to_one(decoder):
    mean = torch.linspace(-1.5, 1.5, 61)[:, None]
    for std in (1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.5, 1.0, 10.0):
        log_p = decoder.log_prob(levels(decoder), mean, torch.tensor(std))
        assert bool(torch.isfinite(log_p).all())
        torch.testing.assert_close(log_p.exp().sum(1), torch.ones(61), rtol=0, atol=1e-12)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("std", [1e-3, 1e-2, 0.1, 10.0])
def test_discretised_log_probabilities_are_right_in_every_tail(decoder, std):
    x, mean = levels(decoder), torch.linspace(-1.5, 1.5, 41)[:, None]
    half = 0.5 * (decoder.high - decoder.low) / (decoder.levels - 1)
    low, high = ((x + side * half - mean) / std for side in (-1, 1))
    low[:, 0], high[:, -1] = -math.inf, math.inf
    exact = torch.from_numpy(log_mass(low.numpy(), high.numpy()))
    torch.testing.assert_close(decoder.log_prob(x, mean, torch.tensor(std)), exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("decoder", DECODERS)
def test_discretised_gradients_are_finite_and_right(decoder):
    x = levels(decoder)[:, None].expand(decoder.levels, 7)
    for std in (1e-3, 1e-2, 1.0, 10.0):
        mean = torch.linspace(-1.5, 1.5, 7).expand(decoder.levels, 7).clone().requires_grad_(True)
        scale = torch.full_like(mean, std).requires_grad_(True)
        slopes = torch.autograd.grad(decoder.log_prob(x, mean, scale).sum(), (mean, scale))
        h = 1e-5 * std
        for name, slope in zip(("mean", "std"), slopes, strict=True):
            assert bool(torch.isfinite(slope).all())
            shift = {"mean": (h, 0.0), "std": (0.0, h)}[name]
            with torch.no_grad():
                up = decoder.log_prob(x, mean + shift[0], scale + shift[1])
                down = decoder.log_prob(x, mean - shift[0], scale - shift[1])
            torch.testing.assert_close(slope, (up - down) / (2 * h), rtol=1e-4, atol=1e-4 / std)


def test_the_discretised_bound_counts_levels():
    """L_0 is -log of the cell's mass at mean x_hat and deviation sigma_1, the rest of the bound is as before."""
    decoder, chain = sdegen.Discretized(17, 1 / 17 - 1, 1 - 1 / 17), sdegen.DDPM.linear(6, 0.01, 0.4)
    x, noise = levels(decoder)[torch.randint(0, 17, (5, 2, 3))], torch.randn(5, 2, 3)
    model = sdegen.ScoreModel(Counting(), chain)
    ours, plain = sdegen.vlb(model, x, decoder=decoder, noise=noise), sdegen.vlb(model, x, noise=noise)
    assert torch.equal(ours.transitions, plain.transitions)
    beta = float(chain.betas[0])
    x_1 = math.sqrt(1 - beta) * x + math.sqrt(beta) * noise
    by_hand = -decoder.log_prob(x, model.data(x_1, 1 / 6), torch.tensor(math.sqrt(beta))).sum((1, 2))
    torch.testing.assert_close(ours.decoder, by_hand, rtol=1e-10, atol=0)
    torch.testing.assert_close(ours.bits_per_dim, ours.total / (6 * math.log(2)))
    # a fine grid of levels: P(x) is the density times the width of a cell
    fine = sdegen.Discretized(20_001, -3.0, 3.0)
    on = levels(fine)[torch.randint(8000, 12_000, (5, 2, 3))]
    width = math.log(6 / 20_000)
    for bound in (
        lambda d: sdegen.vlb(model, on, decoder=d, noise=noise).total,
        lambda d: (
            sdegen.continuous_vlb(model, on, decoder=d, u_min=0.05, generator=torch.Generator().manual_seed(0)).total
        ),
        lambda d: -sdegen.iwae(model, on, 3, decoder=d, generator=torch.Generator().manual_seed(0)).log_prob,
    ):
        torch.testing.assert_close(bound(fine), bound("gaussian") - 6 * width, rtol=1e-4, atol=1e-3)


def test_data_off_the_levels_is_refused():
    decoder = sdegen.Discretized()
    decoder.check(levels(decoder)[None])
    decoder.check(levels(decoder)[None].float())
    with pytest.raises(ValueError, match="1 values of x lie between the 256 levels"):
        decoder.check(torch.tensor([[0.0, 1.0]]))
    with pytest.raises(ValueError, match="2 values of x lie outside"):
        decoder.check(torch.tensor([[-1.01, 1.01, 1.0]]))
    middle = sdegen.Discretized(17, 1 / 17 - 1, 1 - 1 / 17)
    middle.check(2 * (torch.arange(17)[None] + 0.5) / 17 - 1)
    with pytest.raises(ValueError, match="outside"):
        middle.check(torch.tensor([[-1.0]]))


# Training with a learned variance


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


# Batches, conditions and generators


def conditional(x, t, shift, scale):
    return torch.tanh(x * scale + shift[:, None] * t[:, None])


@pytest.mark.parametrize("draws", [None, 4])
def test_a_sample_does_not_depend_on_its_batch_mates(draws):
    chain = sdegen.DDPM.linear(10, 0.02, 0.4)
    model, x, shift = sdegen.ScoreModel(conditional, chain), torch.randn(5, 2), torch.randn(5)

    def bound(rows, batch_size=None):
        g = [torch.Generator().manual_seed(i) for i in rows]
        cond = {"shift": shift[rows], "scale": 0.7}
        return sdegen.vlb(model, x[rows], cond=cond, generator=g, draws=draws, batch_size=batch_size)

    whole = bound([0, 1, 2, 3, 4])
    for other in (bound([3, 1]), bound([3, 1], 1)):
        torch.testing.assert_close(other.total, whole.total[[3, 1]], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.transitions, whole.transitions[[3, 1]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bound([0, 1, 2, 3, 4], 2).total, whole.total, rtol=1e-12, atol=1e-12)


def test_a_sample_of_the_continuous_bound_does_not_either():
    model, x, shift = sdegen.ScoreModel(conditional, sdegen.VPSDE(), "v"), torch.randn(5, 2), torch.randn(5)

    def total(rows, batch_size=None):
        g = [torch.Generator().manual_seed(i) for i in rows]
        cond = {"shift": shift[rows], "scale": 0.7}
        return sdegen.continuous_vlb(model, x[rows], cond=cond, generator=g, draws=4, batch_size=batch_size).total

    whole = total([0, 1, 2, 3, 4])
    torch.testing.assert_close(total([3, 1]), whole[[3, 1]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total([0, 1, 2, 3, 4], 2), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variance", ["beta", "posterior", "optimal"])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_batches_give_the_same_numbers(variance, batch_size):
    chain, x, noise = sdegen.DDPM.linear(10, 0.02, 0.4), torch.randn(7, 2), torch.randn(7, 2)
    sizes = []

    def net(x, t, shift, scale):
        sizes.append(len(x))
        return conditional(x, t, shift, scale)

    model, cond = sdegen.ScoreModel(net, chain), {"shift": torch.randn(7), "scale": torch.tensor(0.7)}
    whole = sdegen.vlb(model, x, variance=variance, cond=cond, noise=noise)
    sizes.clear()
    parts = sdegen.vlb(model, x, variance=variance, cond=cond, noise=noise, batch_size=batch_size)
    torch.testing.assert_close(parts.total, whole.total, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(parts.transitions, whole.transitions, rtol=1e-11, atol=1e-12)
    assert max(sizes) == min(batch_size, 7)
    found = sdegen.iwae(model, x, 3, cond=cond, batch_size=batch_size)
    assert found.log_weights.shape == (7, 3)
    forms = [sdegen.optimal_variance(model, x, cond=cond, noise=noise, batch_size=size) for size in (None, batch_size)]
    torch.testing.assert_close(*forms, rtol=1e-11, atol=0)


def test_iwae_cuts_conditions_with_the_rows():
    """Rows repeated beyond the batch take their own conditions: a path of sample i sees shift i."""
    chain, shift, seen = sdegen.DDPM.linear(4, 0.1, 0.4), torch.arange(3.0), []

    def net(x, t, shift):
        seen.append(shift.clone())
        return 0 * x

    sdegen.iwae(sdegen.ScoreModel(net, chain), torch.randn(3, 1), 4, cond={"shift": shift}, batch_size=5)
    rows = torch.cat(seen[::4])
    assert torch.equal(rows, shift.repeat(4))


def test_network_calls_of_the_bounds():
    net = Counting()
    chain = sdegen.DDPM.linear(10, 0.02, 0.4)
    model, x = sdegen.ScoreModel(net, chain), torch.randn(6, 2)

    def calls(verb, *arguments, **options):
        net.calls = 0
        verb(model, x, *arguments, **options)
        return net.calls

    assert calls(sdegen.vlb) == 10
    assert calls(sdegen.vlb, batch_size=4) == 20
    assert calls(sdegen.vlb, draws=4) == 5
    assert calls(sdegen.vlb, variance="optimal") == 20
    assert calls(sdegen.optimal_variance) == 10
    assert calls(sdegen.iwae, 3) == 30
    assert calls(sdegen.continuous_vlb, draws=6) == 7
    net.calls = 0
    sdegen.entropy_form(model, sdegen.Gaussian(torch.zeros(2), 1.0), x)
    assert net.calls == 10
    doubled = Counting(doubled=True)
    sdegen.hybrid_loss(sdegen.ScoreModel(doubled, chain, learns_variance=True), x)
    assert doubled.calls == 1


def test_bounds_leave_the_model_and_the_global_generator_alone():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x, t):
            return self.drop(x)

    net, chain = Dropping(), sdegen.DDPM.linear(5, 0.02, 0.4)
    model, x, noise = sdegen.ScoreModel(net, chain), torch.randn(4, 2), torch.randn(4, 2)
    state = torch.get_rng_state()
    first, second = (sdegen.vlb(model, x, noise=noise) for _ in range(2))
    assert torch.equal(first.total, second.total)
    sdegen.iwae(model, x, 2, generator=torch.Generator().manual_seed(0))
    sdegen.continuous_vlb(model, x, generator=torch.Generator().manual_seed(0), draws=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert net.drop.training


def test_single_precision_and_empty_batches():
    chain = sdegen.DDPM.linear()
    net = nn.Linear(2, 2).float()
    model = sdegen.ScoreModel(lambda x, t: net(x), chain)
    x, noise = torch.randn(4, 2).float(), torch.randn(4, 2).float()
    narrow = sdegen.vlb(model, x, noise=noise)
    net.double()
    wide = sdegen.vlb(model, x.double(), noise=noise.double())
    assert narrow.total.dtype == torch.float32
    torch.testing.assert_close(narrow.total.double(), wide.total, rtol=1e-4, atol=1e-3)
    assert sdegen.vlb(model, x[:0].double()).total.shape == (0,)
    assert sdegen.iwae(model, x[:0].double(), 3).log_prob.shape == (0,)


# What is refused, before the network is asked


NET = Counting()
CHAIN = sdegen.DDPM.linear(20, 1e-2, 0.3)
MODEL = sdegen.ScoreModel(NET, CHAIN)
DOUBLED = Counting(doubled=True)
LEARNED = sdegen.ScoreModel(DOUBLED, CHAIN, learns_variance=True)
X = torch.zeros(3, 2, dtype=torch.float64)
HALF = torch.full((3, 2), 0.5, dtype=torch.float64)
EIGHT_BITS = sdegen.Discretized()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: sdegen.vlb(NET, X), TypeError, "model"),
        (lambda: sdegen.vlb(MODEL, X.int()), TypeError, "int32"),
        (lambda: sdegen.vlb(MODEL, X[:, 0]), ValueError, r"\(3,\)"),
        (lambda: sdegen.vlb(MODEL, X + math.nan), ValueError, "NaN"),
        (lambda: sdegen.vlb(MODEL, X, noise=X[:2]), ValueError, r"\(2, 2\)"),
        (lambda: sdegen.vlb(MODEL, X, variance="large"), ValueError, "'large'"),
        (lambda: sdegen.vlb(MODEL, X, variance=torch.ones(19)), ValueError, "20.*19"),
        (lambda: sdegen.vlb(MODEL, X, variance=torch.zeros(20)), ValueError, "positive"),
        (lambda: sdegen.vlb(MODEL, X, variance="learned"), ValueError, "learns_variance"),
        (lambda: sdegen.vlb(MODEL, X, decoder="bernoulli"), ValueError, "'bernoulli'"),
        (lambda: sdegen.vlb(MODEL, HALF, decoder=EIGHT_BITS), ValueError, "between the 256 levels"),
        (lambda: sdegen.vlb(MODEL, HALF + 1, decoder=EIGHT_BITS), ValueError, "outside"),
        (lambda: sdegen.vlb(MODEL, X, draws=3), ValueError, "even.*3"),
        (lambda: sdegen.vlb(MODEL, X, draws=0), ValueError, "0"),
        (lambda: sdegen.vlb(MODEL, X, draws=2.0), TypeError, "2.0"),
        (lambda: sdegen.vlb(MODEL, X, batch_size=0), ValueError, "0"),
        (lambda: sdegen.vlb(MODEL, X, batch_size=1.5), TypeError, "1.5"),
        (lambda: sdegen.vlb(MODEL, X, cond=[1]), TypeError, "cond"),
        (lambda: sdegen.vlb(MODEL, X, generator=[torch.Generator()]), ValueError, "3 generators"),
        (lambda: sdegen.vlb(sdegen.ScoreModel(NET, sdegen.VPSDE()), X), ValueError, "steps"),
        (lambda: sdegen.vlb(sdegen.ScoreModel(NET, sdegen.VESDE()), X, steps=5), ValueError, "clean data"),
        (lambda: sdegen.vlb(sdegen.ScoreModel(NET, sdegen.CondOT()), X, steps=5), ValueError, "singular for 'eps'"),
        (lambda: sdegen.vlb(sdegen.ScoreModel(NET, sdegen.DDPM([0.5])), X, variance="posterior"), ValueError, "single"),
        (lambda: sdegen.vlb(MODEL, X, grid=CHAIN.respaced(5)), ValueError, "grid runs"),
        (lambda: sdegen.iwae(MODEL, X, 0), ValueError, "0"),
        (lambda: sdegen.iwae(MODEL, X, 2.0), TypeError, "2.0"),
        (lambda: sdegen.iwae(MODEL, X, variance="learned"), ValueError, "learns_variance"),
        (lambda: sdegen.iwae(MODEL, HALF, decoder=EIGHT_BITS), ValueError, "between"),
        (lambda: sdegen.iwae(MODEL, X, batch_size=-1), ValueError, "-1"),
        (lambda: sdegen.continuous_vlb(MODEL, X, draws=5), ValueError, "even.*5"),
        (lambda: sdegen.continuous_vlb(MODEL, X, u_min=0.0), ValueError, "u_min"),
        (lambda: sdegen.continuous_vlb(MODEL, X, u_min=0.9), ValueError, "u_min"),
        (lambda: sdegen.continuous_vlb(MODEL, X, u_min=1.0), ValueError, "u_min"),
        (lambda: sdegen.continuous_vlb(MODEL, HALF, decoder=EIGHT_BITS), ValueError, "between"),
        (lambda: sdegen.continuous_vlb(sdegen.ScoreModel(NET, sdegen.VESDE()), X, u_min=0.1), ValueError, "clean data"),
        (lambda: sdegen.optimal_variance(MODEL, X[:, 0]), ValueError, "shape"),
        (lambda: sdegen.optimal_variance(sdegen.ScoreModel(NET, sdegen.VPSDE()), X), ValueError, "steps"),
        (lambda: sdegen.hybrid_loss(MODEL, X), ValueError, "learns_variance"),
        (lambda: sdegen.hybrid_loss(DATA.model(CHAIN), X), TypeError, "ScoreModel"),
        (lambda: sdegen.hybrid_loss(LEARNED, X, weight=-1.0), ValueError, "-1"),
        (lambda: sdegen.hybrid_loss(LEARNED, X[:0]), ValueError, "empty"),
        (lambda: sdegen.hybrid_loss(LEARNED, HALF, decoder=EIGHT_BITS), ValueError, "between"),
        (lambda: sdegen.entropy_form(MODEL, sdegen.GaussianMixture([[0.0]], 1.0), X), TypeError, "Gaussian"),
        (lambda: sdegen.entropy_form(MODEL, DATA, X), ValueError, r"\(B, 1\)"),
        (lambda: sdegen.entropy_form(MODEL, sdegen.Gaussian([0.0, 0.0], 1.0), X, variance="learned"), ValueError, "le"),
        (lambda: sdegen.Discretized(1), ValueError, "1"),
        (lambda: sdegen.Discretized(256.0), TypeError, "256.0"),
        (lambda: sdegen.Discretized(256, 1.0, -1.0), ValueError, "low must be below"),
        (lambda: sdegen.Discretized(256, math.nan), ValueError, "nan"),
    ],
)
def test_bad_input_is_refused_before_the_network_is_asked(call, error, says):
    NET.calls = DOUBLED.calls = 0
    with pytest.raises(error, match=says):
        call()
    assert NET.calls == DOUBLED.calls == 0


@pytest.mark.parametrize("verb", [sdegen.vlb, sdegen.iwae, sdegen.continuous_vlb])
def test_a_bound_that_is_not_finite_is_refused(verb):
    model = sdegen.ScoreModel(lambda x, t: x + math.nan, CHAIN)
    with pytest.raises(sdegen.NonFiniteError, match="3 of 3"):
        verb(model, X)


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


def test_a_network_that_fails_and_a_batch_that_is_empty_are_named():
    broken = sdegen.ScoreModel(lambda x, t: x * math.nan, sdegen.DDPM.linear(5, 1e-2, 0.3))
    x = DATA.sample(4)
    for refused in (
        lambda: sdegen.optimal_variance(broken, x),
        lambda: sdegen.vlb(broken, x, variance="optimal"),
        lambda: sdegen.vlb(broken, x),
        lambda: sdegen.iwae(broken, x, 2),
        lambda: sdegen.continuous_vlb(broken, x, draws=2),
        lambda: sdegen.entropy_form(broken, DATA, x),
    ):
        with pytest.raises(sdegen.NonFiniteError, match=r"finite|NaN"):
            refused()
    for refused in (
        lambda: sdegen.optimal_variance(broken, x[:0]),
        lambda: sdegen.entropy_form(broken, DATA, x[:0]),
    ):
        with pytest.raises(ValueError, match="empty batch"):
            refused()


def test_hybrid_loss_hands_gradients_to_its_data():
    path = sdegen.DDPM.linear(9, 1e-2, 0.3)
    both = sdegen.ScoreModel(lambda x, t: torch.cat([torch.tanh(x), torch.sin(x)], 1), path, learns_variance=True)
    x = DATA.sample(6).requires_grad_()
    sdegen.hybrid_loss(both, x).backward()
    assert bool((x.grad != 0).all())


def test_the_continuous_bound_starts_where_a_chain_was_trained():
    lowest = []

    def net(x, t):
        lowest.append(float(t.min()))
        return x

    path = sdegen.DDPM.linear(20, 1e-2, 0.3)
    sdegen.continuous_vlb(sdegen.ScoreModel(net, path), DATA.sample(4), draws=8)
    assert min(lowest) == pytest.approx(1 / 20)
