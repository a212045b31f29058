"""The prior gap against its true value: the law of the data at the noise end less the prior."""

from __future__ import annotations

import pytest
import torch
from mixtures import TARGETS
from problems import PATHS

import sdegen
from sdegen.likelihoods.gap import prior_gap

FEW = sdegen.Adams(12)  # the gap is one of the latents, wherever they lie


def gaps(name, path, size=256, seed=0, **options):
    """(reported, true) at `size` points, from 4000 draws of the data."""
    target, path = TARGETS[name](), PATHS[path]
    g = torch.Generator().manual_seed(seed)
    x, data = target.sample(size, generator=g), target.sample(4000, generator=g)
    prior = options.get("prior", path.prior)
    ours = sdegen.log_likelihood(
        target.model(path), x, FEW, data=data, trace=sdegen.Hutchinson(1), generator=g, **options
    )
    true = target.marginal(path, path.t_noise).log_prob(ours.latent) - prior.log_prob(ours.latent)
    return ours.prior_gap, true.abs()


@pytest.mark.parametrize("name", ["gmm16", "mix64"])
def test_the_estimate_is_the_gap(name):
    """VP, 4000 draws: median ratio within a tenth of 1, and twice the estimate covers 95 %."""
    reported, true = gaps(name, "vp", 512)
    assert float(true.median()) > 1e-4  # it is there
    assert 0.9 <= float((reported / true).median()) <= 1.1
    assert float((true <= 2 * reported).double().mean()) >= 0.95


@pytest.mark.parametrize("path", ["subvp", "ve"])
def test_on_other_paths(path):
    reported, true = gaps("gmm16", path)
    assert float((true <= 2 * reported).double().mean()) >= 0.95
    assert float(reported.median()) < 3 * float(true.median())


def test_it_is_a_mean_over_the_data():
    """log mean exp of every draw's log-density at z, by the definition, and the sampling error of that mean."""
    alpha, sigma = 0.3, 1.2
    x, z = torch.randn(40, 2, 3), 1.5 * torch.randn(7, 2, 3)
    prior = torch.distributions.Normal(0.1, 1.0)
    logp = prior.log_prob(z).sum((1, 2))
    each = torch.distributions.Normal(alpha * x, sigma).log_prob(z[:, None]).sum((2, 3)).exp()
    mean, error = each.mean(1), each.std(1) / 40**0.5
    expected = torch.hypot(mean.log() - logp, error / mean)
    torch.testing.assert_close(prior_gap(z, logp, x, alpha, sigma), expected, rtol=1e-10, atol=0)
    assert prior_gap(z.float(), logp.float(), x.float(), alpha, sigma).dtype == torch.float32


def test_a_prior_with_the_datas_moments_closes_it():
    """The marginal of a Gaussian fitted to the data: a tenth of the gap and less, by the estimate and in truth."""
    target, path = TARGETS["mix64"](), PATHS["vp"]
    fitted = target.sample(8000, generator=torch.Generator().manual_seed(9))
    covariance = torch.cov(fitted.T)
    prior = sdegen.Gaussian(fitted.mean(0), covariance=covariance).marginal(path, path.t_noise)
    reported, true = gaps("mix64", "vp")
    closed, left = gaps("mix64", "vp", prior=prior)
    assert float(left.median()) < 0.1 * float(true.median())
    assert float(closed.median()) < 0.3 * float(reported.median())
    assert float((left <= 2 * closed).double().mean()) >= 0.95


def test_paths_that_end_in_noise_have_none():
    target = TARGETS["ring8"]()
    x, data = target.sample(4), target.sample(50)

    def ours(path, **options):
        return sdegen.log_likelihood(target.model(path), x, FEW, **options)

    zero = torch.zeros(4)
    for options in ({}, {"data": data}):
        assert torch.equal(ours(PATHS["condot"], **options).prior_gap, zero)
        assert ours(PATHS["condot"], **options).unknown == ()
    assert ours(PATHS["vp"]).prior_gap is None
    assert ours(PATHS["vp"]).unknown == ("prior_gap",)
    assert bool((ours(PATHS["vp"], data=data).prior_gap > 0).all())
    own = target.marginal(PATHS["condot"], 0.0)
    assert ours(PATHS["condot"], prior=own).prior_gap is None  # a prior of the user's: nobody knows without data
    assert float(ours(PATHS["condot"], prior=own, data=data).prior_gap.max()) < 1e-12
    part = ours(PATHS["condot"], u=(0.0, 0.9), data=data).prior_gap
    assert bool((part > 0).all())


def test_part_of_the_path_has_the_gap_of_its_end():
    """At u = 0.8 on VP, where much of the data shows: against the marginal there."""
    target, path, u = TARGETS["ring8"](), PATHS["vp"], 0.8
    g = torch.Generator().manual_seed(4)
    x, data = target.sample(64, generator=g), target.sample(20000, generator=g)
    ours = sdegen.log_likelihood(target.model(path), x, sdegen.Adams(20), u=(0.0, u), data=data)
    t = float(path.time(torch.tensor(u)))
    true = target.marginal(path, t).log_prob(ours.latent) - path.prior_at(u).log_prob(ours.latent)
    assert float((ours.prior_gap / true.abs()).log().abs().median()) < 0.1
    assert float((true.abs() <= 2 * ours.prior_gap).double().mean()) >= 0.95
