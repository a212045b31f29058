"""Checkpoints on the pretend device: saved from there, filled there, and the file is the one of the CPU."""

from __future__ import annotations

import pytest
import torch
from cases import PATHS, network
from pretend import PretendDevice, held, put

import sdegen

UNITS = sdegen.Standardize([3.0, -1.0], [2.0, 0.5])


@pytest.mark.filterwarnings("ignore:for .* to a meta parameter")  # what the pretend device is called
def test_the_file_is_that_of_the_cpu_and_fills_a_network_there(tmp_path):
    here, there = (tmp_path / f"{name}.safetensors" for name in ("here", "there"))
    plain = network(PATHS["ddpm"], "v")
    model = sdegen.ScoreModel(plain.net, plain.path, "v", time=plain.path.index, standardize=UNITS)
    rows = torch.arange(6.0).reshape(2, 3).T
    sdegen.save(here, model, rows=rows, step=3)
    other = network(PATHS["ddpm"])
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    model, rows, other = put(model), put(rows), put(other)
    with PretendDevice():
        sdegen.save(there, model, rows=rows, step=3)
        again = sdegen.load(there, other.net)
        state = sdegen.load_state(there)
    assert here.read_bytes() == there.read_bytes()
    assert state["rows"].device.type == "cpu"
    assert again.standardize.mean.device == next(again.parameters()).device
    for a, b in zip(model.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(held(a), held(b))
