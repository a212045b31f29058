"""What the tests on the pretend device go through: paths, networks, and one comparison with the CPU."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
import torch
from pretend import PretendDevice, growth, held, put
from problems import OwnFlow, OwnVP
from torch import Tensor, nn

import sdegen
from sdegen.nets import MLP

PATHS = {
    "vp": sdegen.VPSDE(),
    "subvp": sdegen.SubVPSDE(),
    "cosine": sdegen.CosineVPSDE(),
    "ve": sdegen.VESDE(),
    "edm": sdegen.EDM(),
    "ddpm": sdegen.DDPM.linear(100, 1e-3, 0.2),
    "smooth ddpm": sdegen.DDPM.linear(100, 1e-3, 0.2, smooth=True),
    "zero snr": sdegen.DDPM([*sdegen.DDPM.linear(99, 1e-3, 0.2).betas.tolist(), 1.0]),
    "condot": sdegen.CondOT(),
    "trigonometric": sdegen.Trigonometric(),
    "retimed": sdegen.Retimed(sdegen.VPSDE(), 3.0, -1.0),
    "interpolant": sdegen.Interpolant(),
    "own vp": OwnVP(),
    "own flow": OwnFlow(),
}
SCORED = [name for name in PATHS if PATHS[name].has_score]
PREDICTIONS = ("eps", "score", "data", "velocity", "v")
SLOW = ("own vp",)
"""It says hardly more than "own flow", and every operation is slow under a dispatch mode."""
INSIDE = {"data": (0.95, 0.05), "noise": (0.05, 0.95)}
"""A part of every path where every prediction is finite."""


class Net(nn.Module):
    """A small network that is not zero; with `learns` it answers with a variance too; it adds `shift` where given."""

    def __init__(self, learns: bool = False):
        super().__init__()
        self.learns = learns
        self.net = MLP(2, 8, 1).double()
        g = torch.Generator().manual_seed(1)
        for p in self.net.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64)

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
        out = self.net(x, t) + torch.tanh(x)
        out = out if shift is None else out + shift
        return torch.cat([out, torch.sin(x)], 1) if self.learns else out


def marked(names: Iterable[str], *fast: str) -> list[object]:
    """The names of paths as parameters, marked nightly unless they are among `fast` (all but SLOW by default)."""
    fast = fast or tuple(name for name in PATHS if name not in SLOW)
    return [pytest.param(name, marks=[] if name in fast else pytest.mark.nightly) for name in names]


def network(path: sdegen.GaussianPath, predicts: str = "v", **options: object) -> sdegen.ScoreModel:
    """A model on `path`; a new one every time, with the same parameters."""
    return sdegen.ScoreModel(Net(bool(options.get("learns_variance"))), path, predicts, **options)


def same(call: Callable[..., object], model: nn.Module, *inputs: object) -> Counter[str]:
    """Run call(model, *inputs) here and there with one seed; the tensors it returns live there and are those of here.

    Returns the waits.
    """
    torch.manual_seed(7)
    here = call(copy.deepcopy(model), *inputs)
    model, inputs = put(model), put(inputs)
    torch.manual_seed(7)
    with PretendDevice() as waits:
        there = call(model, *inputs)
    torch.testing.assert_close(held(there), here, rtol=0, atol=1e-12)
    return waits


def few(call: Callable[[int], object], short: int = 4, long: int = 36) -> None:
    """Every 32 steps the package may look once, and torchdiffeq at every one."""
    grown = growth(call, short, long)
    engine = sum(n for place, n in grown.items() if place.startswith("torchdiffeq"))
    assert engine <= long - short, dict(grown)
    assert 32 * (grown.total() - engine) <= long - short, dict(grown)
