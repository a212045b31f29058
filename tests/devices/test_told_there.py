"""`Model.denoise` and a solve's callback on the pretend device: the numbers of the CPU, and no wait for them."""

from __future__ import annotations

import pytest
import torch
from cases import INSIDE, PATHS, PREDICTIONS, few, network, same
from pretend import DEVICE, PretendDevice, put

import sdegen

SOLVERS = {
    "adams": sdegen.Adams,
    "stochastic adams": sdegen.StochasticAdams,
    "ancestral": sdegen.Ancestral,
    "ddim": sdegen.DDIM,
    "heun": sdegen.Heun,
}


def batch() -> torch.Tensor:
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def inside(path) -> torch.Tensor:
    """A time for every sample."""
    return path.time(torch.linspace(0.1, 0.8, 4, dtype=torch.float64))


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("path", ["vp", "condot", "ddpm"])
def test_denoise(path, predicts):
    """At one time, a number, and at one per sample."""
    t = inside(PATHS[path])
    for at in (float(t[1]), t):
        model = network(PATHS[path], predicts)
        same(lambda m, x, at: m.denoise(x, at), model, batch(), at)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_callback(name):
    """It is told tensors of the device and a number for the clock; it costs no wait a step."""
    make = SOLVERS[name]

    def told(model, x):
        steps = []
        sdegen.solve(model, x, make(5), u=INSIDE["data"], noise=None, callback=lambda *step: steps.append(step))
        assert [k for k, *_ in steps] == [0, 1, 2, 3, 4]
        assert all(type(u) is float for _, u, _, _ in steps)
        assert all(part.device == x.device for _, _, *parts in steps for part in parts)
        return [part for _, _, *parts in steps for part in parts]

    same(told, network(PATHS["vp"]), batch())
    model, x = put(network(PATHS["vp"])), put(batch())
    with PretendDevice():
        assert x.device.type == DEVICE.type
    few(lambda n: sdegen.solve(model, x, make(n), u=INSIDE["data"], callback=lambda *step: None))
