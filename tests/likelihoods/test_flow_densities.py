"""Densities and latents of flows: they agree with those of VP, and encode and decode are inverse."""

from __future__ import annotations

import pytest
import torch
from flows import OT, TIGHT, VP, network
from often import often
from problems import PATHS, ring

import sdegen


def test_log_densities_agree_once_the_prior_does_and_differ_by_the_reported_gap():
    mixture = ring()
    x = mixture.sample(64, torch.Generator().manual_seed(0))
    exact_prior, own_prior = {}, {}
    for name, path in {"vp": VP, "condot": OT}.items():
        model = network(mixture, path, "v")
        exact_prior[name] = sdegen.log_prob(model, x, TIGHT, prior=mixture.marginal(path, path.t_noise))
        own_prior[name] = sdegen.log_prob(model, x, TIGHT)
    torch.testing.assert_close(exact_prior["vp"], exact_prior["condot"], rtol=0, atol=1e-7)
    torch.testing.assert_close(exact_prior["vp"], mixture.log_prob(x), rtol=0, atol=1e-7)
    z = sdegen.encode(mixture.model(VP), x, TIGHT)
    gap = VP.prior.log_prob(z) - mixture.marginal(VP, VP.t_noise).log_prob(z)
    torch.testing.assert_close(own_prior["vp"] - own_prior["condot"], gap, rtol=0, atol=1e-7)
    assert 0.3e-4 < float(gap.abs().max()) < 3e-4


@pytest.mark.parametrize("path", often(PATHS, "vp", "cosine", "edm", "ddpm", "trigonometric", "vp retimed"))
def test_encode_and_decode_are_inverse(path):
    path = PATHS[path]
    model = ring().model(path)
    x = ring().marginal(path, path.t_data).sample(64)
    torch.testing.assert_close(sdegen.decode(model, sdegen.encode(model, x, TIGHT), TIGHT), x, rtol=0, atol=1e-7)


def test_encode_on_one_path_and_decode_on_another():
    x = ring().sample(64)
    z = sdegen.encode(ring().model(VP), x, TIGHT, u=(0.0, 0.99)) / VP.scale(0.99) * OT.scale(0.99)
    torch.testing.assert_close(sdegen.decode(ring().model(OT), z, TIGHT, u=(0.99, 0.0)), x, rtol=0, atol=1e-9)
