"""What `time=` makes of the times: a network in single precision is never shown doubles, one in double is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdegen


class Noting(nn.Module):
    """Notes the dtype of what it is shown."""

    def __init__(self, dtype):
        super().__init__()
        self.layer, self.seen = nn.Linear(2, 2, dtype=dtype), []

    def forward(self, x, t):
        self.seen.append((x.dtype, t.dtype))
        return self.layer(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_translated_time_is_no_wider_than_the_network(dtype):
    net = Noting(dtype)
    model = sdegen.ScoreModel(net, sdegen.VPSDE(), "v", time=lambda t: 1000 * t.double())
    x = torch.randn(3, 2, dtype=dtype)
    model(x, 0.5)
    model.score(x, 0.5)
    sdegen.loss(model, x)
    sdegen.solve(model, x, sdegen.DDIM(2))
    assert len(net.seen) == 5
    assert set(net.seen) == {(dtype, dtype)}


def test_whole_numbers_among_the_parameters_are_not_its_precision():
    class Table(Noting):
        def __init__(self):
            super().__init__(torch.float32)
            self.layer, layer = None, self.layer
            self.table = nn.Parameter(torch.arange(3), requires_grad=False)
            self.layer = layer

    net = Table()
    assert next(net.parameters()).dtype == torch.int64
    sdegen.ScoreModel(net, sdegen.VPSDE())(torch.randn(3, 2, dtype=torch.float32), 0.5)
    assert net.seen == [(torch.float32, torch.float32)]
    assert sdegen.sample(sdegen.ScoreModel(net, sdegen.VPSDE()), (3, 2), sdegen.DDIM(2)).dtype == torch.float32


def test_a_translation_may_write_into_its_times():
    def thousandfold(t):
        return t.mul_(1000)

    def net(x, t):
        return x * torch.cos(t)[:, None]

    own, plain = (sdegen.ScoreModel(net, sdegen.VPSDE(), "v", time=f) for f in (thousandfold, lambda t: 1000 * t))
    x, t = torch.randn(3, 2), torch.tensor([0.2, 0.5, 0.9])
    for ask in (
        lambda model: model(x, t),
        lambda model: model.eps(x, t),
        lambda model: sdegen.loss(model, x, t=t, noise=x, weighting=sdegen.MinSNR()),
        lambda model: sdegen.solve(model, x, sdegen.ODESolver("rk4", steps=3)).x,
        lambda model: sdegen.solve(model, x, sdegen.ODESolver("dopri5", rtol=1e-3)).x,
    ):
        assert torch.equal(ask(own), ask(plain))
    assert t.tolist() == [0.2, 0.5, 0.9]
