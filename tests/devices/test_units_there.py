"""Units of the data and masks on the pretend device: the numbers of the CPU, and no wait in a training step."""

from __future__ import annotations

import torch
from cases import PATHS, network, same
from pretend import PretendDevice, counted, put

import sdegen

UNITS = sdegen.Standardize([3.0, -1.0], [2.0, 0.5])
MASK = torch.tensor([[True, True], [True, False], [False, True], [True, True]])


def in_units():
    plain = network(PATHS["vp"], "v")
    return sdegen.ScoreModel(plain.net, plain.path, "v", standardize=UNITS)


def batch():
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(2))


def test_verbs_have_the_numbers_of_the_cpu():
    verbs = (
        lambda model, x: sdegen.solve(model, x, sdegen.Adams(6)).x,
        lambda model, x: sdegen.encode(model, x, sdegen.Adams(6)),
        lambda model, x: sdegen.log_prob(model, x, sdegen.Adams(6)),
        lambda model, x: sdegen.log_prob(model, x, sdegen.Adams(6), mask=MASK),
    )
    for verb in verbs:
        same(verb, in_units(), batch())


def test_a_loss_never_waits():
    model, x, mask = put(in_units()), put(batch()), put(MASK)
    with PretendDevice():
        sdegen.loss(model, x, mask=mask)
    _, waits = counted(lambda: sdegen.loss(model, x, mask=mask))
    assert not waits, dict(waits)
