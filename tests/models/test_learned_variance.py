"""A network that learns variances: its own output is its prediction, the other half is kept apart."""

from __future__ import annotations

import pytest
import torch
from chains import Counting

import sdegen


def test_the_own_output_of_a_network_that_learns_variance_is_its_prediction():
    path, net = sdegen.DDPM.linear(15), Counting(doubled=True)
    model, x = sdegen.ScoreModel(net, path, learns_variance=True), torch.randn(4, 3, 5)
    expected = net(x, torch.full((4,), 0.4))[:, :3]
    assert torch.equal(model(x, 0.4), expected)
    assert torch.equal(model.eps(x, 0.4), expected)
    half = sdegen.ScoreModel(Counting(), path, learns_variance=True)
    with pytest.raises(ValueError, match=r"\(4, 6, 5\)"):
        half(x, 0.4)
