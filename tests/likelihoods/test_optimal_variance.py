"""The chain's best variances: THEORY's on Gaussian data, and a minimum of the bound for any model."""

from __future__ import annotations

import pytest
import torch
from chains import DATA, Theory, nodes, off_by, sigma_points

import sdegen


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
