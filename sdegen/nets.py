"""Two small networks for the examples: `MLP` for points in R^d, `UNet` for images. Any other network serves as well.

A network is called `net(x, t)` with x (B, ...) and t (B,), and answers with a tensor like x; built with `classes=K` it
also takes `label` (B,), whole numbers below K, and `label=None` stands for "any class". Both are smooth in x and t,
because a likelihood differentiates through them, and begin as the zero function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sdegen import _checks


class TimeEmbedding(nn.Module):
    """t (B,), and a label (B,) if there are classes, to features (B, dim).

    sin(2^k t) and cos(2^k t), k = -4 ... 6, through a small network: the slowest wave tells any two times of order ten
    apart. No wave is faster than a field varies in t: with k up to 10 an adaptive solve took eight times the network
    calls on one trained example. Powers of two are exact in every dtype, so a cast changes no frequency.

    Attention Is All You Need, Vaswani et al., 2017, arXiv:1706.03762 (the waves).
    """

    frequencies: Tensor

    def __init__(self, dim: int, classes: int | None = None) -> None:
        super().__init__()
        dim = _checks.whole("dim", dim)
        octaves = torch.arange(-4.0, 7.0)
        self.register_buffer("frequencies", 2**octaves, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * len(octaves), dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.label = None if classes is None else nn.Embedding(_checks.whole("classes", classes), dim)

    def forward(self, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Embed times of shape (B,), each with its label where one is given."""
        phase = t[:, None] * self.frequencies
        waves = torch.cat([phase.sin(), phase.cos()], 1)
        features = self.mlp(waves.to(self.mlp[0].weight.dtype))
        if label is None:
            return features
        if self.label is None:
            raise ValueError("This network was built without classes, and it received a label; give it `classes=`.")
        if label.shape != t.shape or label.dtype is not torch.int64:
            raise ValueError(f"label must be int64 of shape {tuple(t.shape)}, not {label.dtype} {tuple(label.shape)}.")
        if label.device.type == "cpu" and bool(((label < 0) | (label >= self.label.num_embeddings)).any()):
            # An accelerator raises its own error; asking it here would stall every call.
            raise ValueError(f"label must lie in 0 ... {self.label.num_embeddings - 1}, and it is {label.tolist()}.")
        return features + self.label(label)


class MLP(nn.Module):
    """A residual network for points x (B, dim): every layer sees the time.

    Arguments:
        dim: d, the size of one sample.
        hidden: width of the layers.
        depth: number of residual layers.
        classes: number of labels, if any.
    """

    def __init__(self, dim: int, hidden: int = 128, depth: int = 3, classes: int | None = None) -> None:
        super().__init__()
        self.dim, depth = _checks.whole("dim", dim), _checks.whole("depth", depth)
        hidden = _checks.whole("hidden", hidden)
        self.time = TimeEmbedding(hidden, classes)
        self.first = nn.Linear(dim, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth))
        self.shifts = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth))
        self.last = _zero(nn.Linear(hidden, dim))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Map x (B, dim) at times t (B,) to a tensor like x."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"This network takes x of shape (B, {self.dim}), and it received {tuple(x.shape)}.")
        c = self.time(_times(t, x), label)
        h = self.first(x)
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            h = h + layer(F.silu(h + shift(c)))
        return self.last(F.silu(h))


class UNet(nn.Module):
    """A small U-Net for images x (B, C, H, W): H and W must be divisible by 2^(len(multipliers) - 1).

    Each level has one residual block on the way down and one on the way up, joined by a skip connection.

    U-Net: Convolutional Networks for Biomedical Image Segmentation, Ronneberger et al., 2015, arXiv:1505.04597;
    Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239 (the blocks).

    Arguments:
        channels: C.
        width: channels of the finest level.
        multipliers: channels of each level, finest first, as multiples of `width`; every level halves H and W.
        classes: number of labels, if any.
    """

    def __init__(
        self, channels: int = 1, width: int = 32, multipliers: Sequence[int] = (1, 2), classes: int | None = None
    ) -> None:
        super().__init__()
        self.channels, width = _checks.whole("channels", channels), _checks.whole("width", width)
        if not multipliers:
            raise ValueError("multipliers must name at least one level, and it is empty.")
        widths = [width * _checks.whole("every multiplier", m) for m in multipliers]
        self.time = TimeEmbedding(4 * width, classes)
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        for fine, coarse in pairwise(widths):
            self.down.append(_Block(fine, fine, 4 * width))
            self.shrink.append(nn.Conv2d(fine, coarse, 3, stride=2, padding=1))
            self.grow.append(nn.Conv2d(coarse, fine, 3, padding=1))
            self.up.append(_Block(2 * fine, fine, 4 * width))
        self.middle = nn.ModuleList(_Block(widths[-1], widths[-1], 4 * width) for _ in range(2))
        self.norm = _norm(widths[0])
        self.last = _zero(nn.Conv2d(widths[0], channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Map x (B, C, H, W) at times t (B,) to a tensor like x."""
        self._check(x)
        c = self.time(_times(t, x), label)
        h, skips = self.first(x), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(block(h, c))
            h = shrink(skips[-1])
        for block in self.middle:
            h = block(h, c)
        for block, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            h = grow(F.interpolate(h, scale_factor=2.0, mode="nearest"))
            h = block(torch.cat([h, skips.pop()], 1), c)
        return self.last(F.silu(self.norm(h)))

    def _check(self, x: Tensor) -> None:
        step = 2 ** len(self.down)
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"This network takes x of shape (B, {self.channels}, H, W) with H and W divisible by {step}, "
                f"and it received {tuple(x.shape)}."
            )


class _Block(nn.Module):
    """h + conv(scale and shift by the time(conv(h))), each convolution behind a group norm and SiLU."""

    def __init__(self, inward: int, outward: int, context: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inward), nn.Conv2d(inward, outward, 3, padding=1)
        self.norm2, self.conv2 = _norm(outward), _zero(nn.Conv2d(outward, outward, 3, padding=1))
        self.context = nn.Linear(context, 2 * outward)
        self.skip = nn.Identity() if inward == outward else nn.Conv2d(inward, outward, 1)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.context(c)[:, :, None, None].chunk(2, 1)
        inner = self.conv1(F.silu(self.norm1(h)))
        inner = self.conv2(F.silu(self.norm2(inner) * (1 + scale) + shift))
        return self.skip(h) + inner


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The layer with weights and bias zero: a network begins as the zero function, a block as its skip."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _times(t: Tensor, x: Tensor) -> Tensor:
    if t.shape != x.shape[:1]:
        raise ValueError(f"This network takes one time per sample, shape {(x.shape[0],)}, not {tuple(t.shape)}.")
    return t
