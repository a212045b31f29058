"""A flow of zuko as source and prior, where it lives on the device with the model, or stays on the CPU."""

from __future__ import annotations

import pytest
import torch
from cases import Net, same
from pretend import DEVICE, PretendDevice, put
from torch import nn

import sdegen

zuko = pytest.importorskip("zuko")


def both():
    """A network and a flow."""
    torch.manual_seed(0)
    flow = zuko.flows.MAF(features=2, transforms=2, hidden_features=[8]).double()
    return nn.ModuleDict({"net": Net(), "flow": flow})


def model(parts, flow=None):
    law = sdegen.interop.zuko.source(parts["flow"] if flow is None else flow)
    return sdegen.ScoreModel(parts["net"], sdegen.Interpolant(source=law), "velocity")


def test_a_source_there_is_drawn_and_asked_without_waiting():
    def draws(parts, x):
        of = model(parts)
        return of.path.source.sample((8, 2)), of.path.source.log_prob(x), sdegen.loss(of, x)

    assert not same(draws, both(), torch.randn(8, 2)).total()


def test_the_verbs_there_are_those_of_here():
    def verbs(parts, x):
        of = model(parts)
        return sdegen.sample(of, (8, 2), sdegen.Adams(4)), sdegen.log_prob(of, x, sdegen.Adams(4))

    same(verbs, both(), torch.randn(8, 2))


def test_a_flow_on_the_cpu_serves_a_model_there():
    """Its draws are copied once."""
    flow = both()["flow"]

    def draws(parts, x):
        return sdegen.loss(model(parts, flow), x), sdegen.log_prob(model(parts, flow), x, sdegen.Adams(4))

    same(draws, both(), torch.randn(8, 2))
    parts, x = put(both()), put(torch.randn(8, 2))
    of = model(parts, flow)
    with PretendDevice() as waits:
        sdegen.loss(of, x)  # which looks at the path
        before = waits.total()
        sdegen.loss(of, x)
        assert waits.total() == before + 1, dict(waits)
        with pytest.raises(ValueError, match="generator lives on meta, and the samples are drawn on cpu"):
            of.path.source.sample((8, 2), torch.Generator(DEVICE))
