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


def digits_unet(folder: Path = FOLDER) -> sdegen.ScoreModel:
    """eps on VPSDE for dequantised digits, with `cond={"label": ...}` or without: one step in eight saw no label."""
    net = _trained(blank_unet, folder / "digits_unet.safetensors")
    return sdegen.ScoreModel(net, sdegen.VPSDE(), predicts="eps").eval()


def plane_mlp(folder: Path = FOLDER) -> sdegen.ScoreModel:
    """v on VPSDE for `sdegen.datasets.two_moons`."""
    net = _trained(blank_mlp, folder / "plane_mlp.safetensors")
    return sdegen.ScoreModel(net, sdegen.VPSDE(), predicts="v").eval()


def _trained(blank: Callable[[], nn.Module], weights: Path) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and thrown away
        net = blank()
    net.load_state_dict(load_file(weights))
    return net.requires_grad_(False)
