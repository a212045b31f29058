"""The importance-weighted bound: weights that average to the likelihood, one sample is the variational bound."""

from __future__ import annotations

import math

import pytest
import torch
from chains import DATA, Counting, off_by

import sdegen


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
    """log p of the same points subtracted; the gap of 64 samples is an eighth of that of 8, within a factor 1.5.

    A weight is p(x) on average, so that w/p - 1 may be added to log p - log w: what is left is of second order in the
    weights' errors, and a tenth of the points tells it five times as well.
    """
    n = 20_000
    chain = sdegen.DDPM.from_path(sdegen.VPSDE(), 10)
    model = DATA.model(chain)
    x = DATA.sample(n, torch.Generator().manual_seed(0))
    log_p = chain_density(chain, model).log_prob(x)[:, 0]
    gaps, errors = [], []
    for samples in (1, 8, 64):
        g = torch.Generator().manual_seed(samples)
        gap = log_p - sdegen.iwae(model, x, samples, generator=g, batch_size=n // 4).log_prob
        excess = torch.expm1(-gap)
        assert abs(float(excess.mean())) < 5 * float(excess.std()) / math.sqrt(n)
        gaps.append(float((gap + excess).mean()))
        errors.append(float((gap + excess).std()) / math.sqrt(n))
    assert gaps[0] > gaps[1] + 3 * math.hypot(errors[0], errors[1])
    assert gaps[1] > gaps[2] + 3 * math.hypot(errors[1], errors[2])
    assert gaps[2] > 3 * errors[2]
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


def test_iwae_cuts_conditions_with_the_rows():
    """Rows repeated beyond the batch take their own conditions: a path of sample i sees shift i."""
    chain, shift, seen = sdegen.DDPM.linear(4, 0.1, 0.4), torch.arange(3.0), []

    def net(x, t, shift):
        seen.append(shift.clone())
        return 0 * x

    sdegen.iwae(sdegen.ScoreModel(net, chain), torch.randn(3, 1), 4, cond={"shift": shift}, batch_size=5)
    rows = torch.cat(seen[::4])
    assert torch.equal(rows, shift.repeat(4))
