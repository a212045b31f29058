"""Density ratios on the pretend device: no step of their training waits, and the numbers are those of the CPU."""

from __future__ import annotations

import pytest
import torch
from cases import PATHS, Net, same
from pretend import DEVICE, PretendDevice, counted, put
from torch import nn

import sdegen


class Logit(nn.Module):
    """One number per row of the network of the other tests; without t at t = 1/2."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x, t=None, shift=None):
        return self.net(x, torch.full_like(x[:, 0], 0.5) if t is None else t, shift).sum(1)


def step(loss, net):
    """One step of gradient descent: the loss and the parameters after it."""
    optimiser = torch.optim.SGD(net.parameters(), 0.01)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach(), [p.detach().clone() for p in net.parameters()]


LOSSES = {
    "plain": lambda net, x, fakes, shift: sdegen.ratio_loss(net, x, fakes[0]),
    "k": lambda net, x, fakes, shift: sdegen.ratio_loss(net, x, fakes.flatten(0, 1), cond={"shift": shift}),
    **{
        name: lambda net, x, fakes, shift, path=path: sdegen.ratio_loss(net, x, fakes.flatten(0, 1), path)
        for name, path in PATHS.items()
    },
    "given": lambda net, x, fakes, shift: sdegen.ratio_loss(
        net, x, fakes[0], PATHS["vp"], t=torch.sigmoid(x[:, 0]), noise=shift
    ),
    "contrastive": lambda net, x, fakes, shift: sdegen.contrastive_loss(net, x, fakes),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_never_waits(name):
    torch.manual_seed(2)
    inputs = torch.randn(6, 2), torch.randn(3, 6, 2), torch.randn(6, 2)

    def train(net, *inputs):
        return step(LOSSES[name](net, *inputs), net)

    same(train, Logit(), *inputs)
    net, there = put(Logit()), put(inputs)
    _, waits = counted(lambda: train(net, *there))
    assert not waits, dict(waits)


def test_the_divergence_there():
    waits = same(sdegen.jsd, Logit(), torch.randn(6, 2), torch.randn(9, 2))
    assert not waits, dict(waits)


@pytest.mark.parametrize("several", [False, True])
def test_generators_there(several):
    x, fake, net = put(torch.randn(4, 2)), put(torch.randn(8, 2)), put(Logit())
    with PretendDevice() as waits:
        g = [torch.Generator(DEVICE).manual_seed(i) for i in range(4 if several else 1)]
        sdegen.ratio_loss(net, x, fake, PATHS["vp"], generator=g if several else g[0]).backward()
        assert not waits, dict(waits)
        with pytest.raises(ValueError, match="generator lives on cpu, and the samples are drawn on meta"):
            sdegen.ratio_loss(net, x, fake, PATHS["vp"], generator=torch.Generator())
