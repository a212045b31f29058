"""Two small trained networks that the tests share; tests/networks/train.py made their weights.

They are built in torch's default dtype, in eval mode and without gradients to their weights; building them draws no
random number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

import sdegen
from sdegen.nets import MLP, UNet

FOLDER = Path(__file__).parent / "networks"


def blank_unet() -> UNet:
    """The digits' network before training: images (B, 1, 8, 8), label (B,) in 0 ... 9 or none."""
    return UNet(channels=1, width=16, multipliers=(1, 2), classes=10)


def blank_mlp() -> MLP:
    """The plane's network before training: points (B, 2)."""
    return MLP(2, hidden=64, depth=3)


def digits_unet() -> sdegen.ScoreModel:
    """eps on VPSDE for dequantised digits, with `cond={"label": ...}` or without: one step in eight saw no label."""
    return sdegen.ScoreModel(_trained(blank_unet, "digits_unet"), sdegen.VPSDE(), predicts="eps").eval()


def plane_mlp() -> sdegen.ScoreModel:
    """v on VPSDE for `sdegen.datasets.two_moons`."""
    return sdegen.ScoreModel(_trained(blank_mlp, "plane_mlp"), sdegen.VPSDE(), predicts="v").eval()


def _trained(blank: Callable[[], nn.Module], name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        net = blank()
    net.load_state_dict(load_file(FOLDER / f"{name}.safetensors"))
    return net.requires_grad_(False)
