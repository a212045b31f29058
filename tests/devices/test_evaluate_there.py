"""evaluate on the pretend device: the numbers of the CPU, kept in a directory or not, and few waits in the loops."""

from __future__ import annotations

import pytest
import torch
from cases import PATHS, few, network, same
from pretend import PretendDevice, put

import sdegen


def batch(n=7):
    torch.manual_seed(2)
    return torch.randn(n, 2)


def midpoint(n):
    return sdegen.ODESolver("midpoint", steps=n)


@pytest.mark.parametrize("kept", [False, True])
def test_the_numbers_of_the_cpu(kept, tmp_path):
    options = {"solver": midpoint(4), "batch_size": 3, "trace": sdegen.Hutchinson(1)}

    def evaluated(model, x, shift):
        directory = tmp_path / x.device.type if kept else None
        return sdegen.evaluate(model, x, cond={"shift": shift}, directory=directory, **options).per_sample

    same(evaluated, network(PATHS["vp"]), batch(), torch.randn(7, 2))


def test_a_longer_solve_waits_no_more_often():
    model, x = put(network(PATHS["vp"])), put(batch())
    few(lambda n: sdegen.evaluate(model, x, solver=midpoint(n)))


def test_another_device_is_another_computation(tmp_path):
    model, x = network(PATHS["vp"]), batch()
    sdegen.evaluate(model, x, solver=midpoint(2), directory=tmp_path)
    model, x = put(model), put(x)
    with PretendDevice(), pytest.raises(ValueError, match=r"differs in device \('cpu' there, 'meta' here\): give"):
        sdegen.evaluate(model, x, solver=midpoint(2), directory=tmp_path)
