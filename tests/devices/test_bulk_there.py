"""sample_many and batch_size on the pretend device: the numbers of the CPU, and few waits in the loops."""

from __future__ import annotations

import pytest
import torch
from cases import PATHS, network, same
from pretend import DEVICE, PretendDevice, growth, put

import sdegen


def batch(n=7):
    torch.manual_seed(2)
    return torch.randn(n, 2)


def midpoint(n):
    return sdegen.ODESolver("midpoint", steps=n)


@pytest.mark.parametrize("verb", [sdegen.encode, sdegen.decode, sdegen.straightness])
def test_in_parts_the_numbers_of_the_cpu(verb):
    part = (0.95, 0.05) if verb is not sdegen.encode else (0.05, 0.95)

    def parts(model, x, shift):
        return verb(model, x, midpoint(4), cond={"shift": shift}, u=part, batch_size=3)

    same(parts, network(PATHS["vp"]), batch(), torch.randn(7, 2))
    model, x = put(network(PATHS["vp"])), put(batch())
    grown = growth(lambda n: verb(model, x, sdegen.Adams(n), u=part, batch_size=3), 4, 36)
    assert grown.total() <= 3, dict(grown)  # a look at every 32nd state in each of three parts


def test_given_noise_is_cut_there():
    noise = torch.randn(6, 7, 2)

    def parts(model, x, z):
        return sdegen.solve(model, x, sdegen.SDESolver("euler", 6), noise=z, batch_size=3).x

    same(parts, network(PATHS["vp"]), batch(), noise)


def test_samples_are_drawn_there_and_read_here(tmp_path):
    model = put(network(PATHS["vp"]))
    with PretendDevice():
        solver = sdegen.SDESolver("euler", 4)
        samples = sdegen.sample_many(model, (7, 2), solver, directory=tmp_path, batch_size=3)
        there = sdegen.sample(model, (7, 2), solver, generator=sdegen.seeds(7, device=DEVICE))
        assert all(g.device.type == DEVICE.type for g in sdegen.seeds(2, device=DEVICE))
    assert samples.tensor().device.type == "cpu"
    torch.testing.assert_close(samples.tensor(), there.held, rtol=0, atol=1e-12)


def test_another_device_is_another_computation(tmp_path):
    model = network(PATHS["vp"])
    sdegen.sample_many(model, (7, 2), midpoint(2), directory=tmp_path)
    model = put(model)
    with PretendDevice(), pytest.raises(ValueError, match=r"differs in device \('cpu' there, 'meta' here\)"):
        sdegen.sample_many(model, (7, 2), midpoint(2), directory=tmp_path)
