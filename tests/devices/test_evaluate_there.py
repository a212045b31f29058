"""evaluate on the pretend device: the numbers of the CPU, kept in a directory or not; a few waits a chunk, not a step."""

from __future__ import annotations

import torch
from cases import PATHS, few, network, same
from pretend import DEVICE, PretendDevice, put

import sdegen


def batch(n=7):
    torch.manual_seed(2)
    return torch.randn(n, 2)


def rk4(n):
    return sdegen.ODESolver("midpoint", steps=n)


def test_the_numbers_of_the_cpu(tmp_path):
    shift = torch.randn(7, 2)
    for directory in (None, tmp_path):
        same(
            lambda m, x, s: sdegen.evaluate(  # noqa: B023
                m, x, solver=rk4(4), batch_size=3, trace=sdegen.Hutchinson(1), cond={"shift": s},
                directory=directory and directory / x.device.type,  # noqa: B023
            ).per_sample,
            network(PATHS["vp"]),
            batch(),
            shift,
        )  # fmt: skip


def test_a_longer_solve_waits_no_more_often():
    model, x = put(network(PATHS["vp"])), put(batch())
    few(lambda n: sdegen.evaluate(model, x, solver=rk4(n), batch_size=3))


def test_another_device_is_another_computation(tmp_path):
    model, x = network(PATHS["vp"]), batch()
    sdegen.evaluate(model, x, solver=rk4(2), directory=tmp_path)
    model, x = put(model), put(x)
    with PretendDevice():
        try:
            sdegen.evaluate(model, x, solver=rk4(2), directory=tmp_path)
        except ValueError as error:
            assert f"device ('cpu' there, '{DEVICE.type}' here)" in str(error)  # noqa: PT017
        else:
            raise AssertionError("two devices in one directory")
