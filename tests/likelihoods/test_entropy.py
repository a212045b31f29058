"""The variational bound as an entropy plus the errors of the chain and of the model."""

from __future__ import annotations

import math

import pytest
import torch
from chains import DATA, M, S, Theory, nodes, off_by, sigma_points

import sdegen


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
