"""The networks, number for number, against formulas written a second time from their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sdegen.nets import MLP, TimeEmbedding, UNet

Weights = dict[str, Tensor]


def away_from_zero(net: nn.Module) -> Weights:
    """Gives every parameter random values, and returns them by name."""
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator) / max(p[0].numel(), 4) ** 0.5
    return dict(net.named_parameters())


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    kernel = w[f"{name}.weight"]
    return F.conv2d(x, kernel, w[f"{name}.bias"], stride, kernel.shape[-1] // 2)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def normed(w: Weights, name: str, x: Tensor) -> Tensor:
    """Group norm in at most eight groups of equal size, by hand."""
    parts = x.reshape(len(x), math.gcd(8, x.shape[1]), -1)
    centred = parts - parts.mean(2, keepdim=True)
    unit = (centred / torch.sqrt(centred.square().mean(2, keepdim=True) + 1e-5)).reshape(x.shape)
    return unit * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def embedded(w: Weights, name: str, t: Tensor, label: Tensor | None) -> Tensor:
    octaves = [2.0**k for k in range(-4, 7)]
    waves = torch.stack([torch.sin(f * t) for f in octaves] + [torch.cos(f * t) for f in octaves], 1)
    features = silu(linear(w, f"{name}mlp.2", silu(linear(w, f"{name}mlp.0", waves))))
    return features if label is None else features + w[f"{name}label.weight"][label]


def mlp(w: Weights, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    c, h = embedded(w, "time.", t, label), linear(w, "first", x)
    for k in range(2):
        h = h + linear(w, f"layers.{k}", silu(h + linear(w, f"shifts.{k}", c)))
    return linear(w, "last", silu(h))


def block(w: Weights, name: str, h: Tensor, c: Tensor) -> Tensor:
    scale, shift = linear(w, f"{name}.context", c)[:, :, None, None].chunk(2, 1)
    inner = conv(w, f"{name}.conv1", silu(normed(w, f"{name}.norm1", h)))
    inner = conv(w, f"{name}.conv2", silu(normed(w, f"{name}.norm2", inner) * (1 + scale) + shift))
    return inner + (conv(w, f"{name}.skip", h) if f"{name}.skip.weight" in w else h)


def unet(w: Weights, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """Two levels down, two blocks at the bottom, two levels up."""
    c = embedded(w, "time.", t, label)
    fine = block(w, "down.0", conv(w, "first", x), c)
    middle = block(w, "down.1", conv(w, "shrink.0", fine, 2), c)
    h = conv(w, "shrink.1", middle, 2)
    for k in range(2):
        h = block(w, f"middle.{k}", h, c)
    for k, skip in ((1, middle), (0, fine)):
        h = conv(w, f"grow.{k}", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
        h = block(w, f"up.{k}", torch.cat([h, skip], 1), c)
    return conv(w, "last", silu(normed(w, "norm", h)))


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize(
    ("net", "formula", "event"),
    [
        (lambda classes: MLP(3, 16, 2, classes), mlp, (3,)),
        (lambda classes: UNet(2, 12, (1, 2, 1), classes), unet, (2, 8, 4)),
    ],
    ids=["MLP", "UNet"],
)
def test_a_network_is_its_formula(net: Callable, formula: Callable, event: tuple[int, ...], classes: int | None):
    net = net(classes)
    w = away_from_zero(net)
    x, t = torch.randn(4, *event), torch.rand(4)
    for label in [None] if classes is None else [None, torch.tensor([2, 0, 1, 2])]:
        torch.testing.assert_close(net(x, t, label), formula(w, x, t, label), rtol=1e-10, atol=1e-10)


def test_every_layer_that_should_begins_at_zero():
    """The last layer's weights and bias, and those of every block's second convolution, and nothing else's weights."""
    for net, zero in (
        (MLP(2), {"last"}),
        (UNet(), {"last", *(f"{part}.conv2" for part in ("down.0", "up.0", "middle.0", "middle.1"))}),
    ):
        weights = {name: p for name, p in net.named_parameters() if p.ndim > 1}
        assert {name.removesuffix(".weight") for name, p in weights.items() if not p.any()} == zero
        assert not any(dict(net.named_parameters())[f"{name}.bias"].any() for name in zero)


def test_a_label_below_zero_is_named():
    with pytest.raises(ValueError, match=r"label must lie in 0 \.\.\. 2, and it is \[-1, 0\]\.$"):
        TimeEmbedding(4, classes=3)(torch.zeros(2), torch.tensor([-1, 0]))


def test_times_may_be_wider_than_the_network():
    """Features come in the parameters' dtype, from waves as exact as the times."""
    embed = TimeEmbedding(4).float()
    t = torch.tensor([0.1, 700.3])
    torch.testing.assert_close(embed(t), embed.double()(t).float(), rtol=1e-5, atol=1e-6)
