"""Adapted networks stay in sight: their mode, dtype and parameters, pickles, and what the adapters refuse."""

from __future__ import annotations

import pickle

import pytest
import torch
from fields import Named, TimeFirst

import sdegen
from sdegen.interop import Adapted, from_flow_matching, from_torchcfm

TIGHT = sdegen.ODESolver("dopri5", rtol=1e-9)


def test_an_adapted_network_stays_in_sight():
    net = TimeFirst().double().train()
    model = from_torchcfm(net)
    x_T = torch.randn(4, 3, 2)
    named = from_flow_matching(Named().double())
    same = (sdegen.sample(m, (4, 3, 2), TIGHT, x_T=x_T, dtype=torch.float64) for m in (model, named))
    torch.testing.assert_close(*same, rtol=0, atol=1e-12)
    assert net.training
    assert model.working_dtype(torch.float32) is torch.float64
    scaled = sdegen.ScoreModel(Adapted(net, lambda net, x, t, gain: gain * net(t, x)), sdegen.CondOT(), "velocity")
    torch.testing.assert_close(scaled(x_T, 0.5, {"gain": 2.0}), 2 * net(torch.full((4,), 0.5), x_T))


def test_adapted_models_are_pickled_and_checked():
    for model in (from_torchcfm(TimeFirst()), from_torchcfm(TimeFirst(), joined=True), from_flow_matching(Named())):
        again = pickle.loads(pickle.dumps(model))
        assert type(again.net.net) is type(model.net.net)
    for refused in (lambda: from_torchcfm(None), lambda: from_torchcfm(Named(), joined="no"), lambda: Adapted(1, 2)):
        with pytest.raises(TypeError, match="must be"):
            refused()
