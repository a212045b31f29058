"""`AdamsScheduler` on the pretend device: the numbers of the CPU, and no wait that grows with the steps."""

from __future__ import annotations

import warnings

import pytest
import torch
from cases import few, same
from pretend import DEVICE, put

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("diffusers")

from sdegen.interop.diffusers import AdamsScheduler


class Net(torch.nn.Module):
    """Takes timesteps as a U-Net of diffusers does."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x, t):
        return torch.tanh(self.weight * x) + torch.cos(t / 300).to(x.device)


def walk(net, x, steps, device, clip):
    scheduler = AdamsScheduler(clip_sample=clip)
    scheduler.set_timesteps(steps, device=device)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t), t, x).prev_sample
    return x


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("moves", [False, True], ids=["timesteps here", "timesteps there"])
def test_the_scheduler(clip, moves):
    """Timesteps that live there are counted and not looked at."""
    net, x = Net(), torch.randn(4, 3, 2, 2)
    same(lambda net, x: walk(net, x, 7, x.device if moves else None, clip), net, x)
    if moves:
        net, x = put(net), put(x)
        few(lambda n: walk(net, x, n, DEVICE, clip), long=30)
