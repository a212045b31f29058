"""Two small networks for the examples: `MLP` for points in R^d, `UNet` for images. Any other network serves as well.

A network is called `net(x, t)` with x (B, *event) and t (B,), and answers with a tensor like x; built with `classes=K`
it also takes `label` (B,), whole numbers below K, and `label=None` stands for "any class". Both are smooth in x and t,
because a likelihood differentiates through them, and begin as the zero function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sdegen import _checks

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class TimeEmbedding(nn.Module):
    """Times, and labels if there are classes, as features for a network.

    sin(2^k t) and cos(2^k t), k = -4 ... 6, through a small network: the slowest wave tells any two times of order ten
    apart. No wave is faster than a field varies in t: with k up to 10 an adaptive solve took eight times the network
    calls on one trained example. Powers of two are exact in every dtype, so a cast changes no frequency.

    Args:
        dim: number of features.
        classes: number of labels; by default there are none.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is below 1.

    Examples:
        >>> from sdegen.nets import TimeEmbedding
        >>> TimeEmbedding(32, classes=10)(torch.rand(4), torch.tensor([0, 1, 2, 9])).shape
        torch.Size([4, 32])

    References:
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
        """The features of times t (B,), plus those of their labels where they are given.

        Args:
            t: one time per sample, (B,).
            label: int64 in 0 ... classes - 1, (B,); None stands for any class.

        Returns:
            features, (B, dim), in the dtype of the parameters.

        Raises:
            ValueError: labels of another shape, dtype or range, or labels for a network that was built without.
        """
        phase = t[:, None] * self.frequencies
        waves = torch.cat([phase.sin(), phase.cos()], 1)
        features: Tensor = self.mlp(waves.to(next(self.mlp.parameters()).dtype))
        if label is None:
            return features
        if self.label is None:
            raise ValueError("This network was built without classes, and it received a label; give it `classes=`.")
        if label.shape != t.shape or label.dtype is not torch.int64:
            raise ValueError(f"label must be int64 of shape {tuple(t.shape)}, not {label.dtype} {tuple(label.shape)}.")
        if label.device.type == "cpu" and bool(((label < 0) | (label >= self.label.num_embeddings)).any()):
            # An accelerator raises its own error; asking it here would stall every call.
            raise ValueError(f"label must lie in 0 ... {self.label.num_embeddings - 1}, and it is {label.tolist()}.")
        of_label: Tensor = self.label(label)
        return features + of_label


class MLP(nn.Module):
    """A residual network for points x (B, dim): every layer sees the time.

    With c the features of t and label, and h_0 = A x + a,

        h_{k+1} = h_k + W_k silu(h_k + S_k c) + b_k,    k = 0 ... depth - 1,    out = B silu(h_depth) + b

    Args:
        dim: d, the size of one sample.
        hidden: width of the layers.
        depth: number of residual layers.
        classes: number of labels; by default there are none.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is below 1.

    Examples:
        >>> from sdegen.nets import MLP
        >>> net = MLP(2, classes=3)
        >>> out = net(torch.randn(8, 2), torch.rand(8), label=torch.zeros(8, dtype=torch.int64))
        >>> out.shape, out.abs().max().item()  # it begins as the zero function
        (torch.Size([8, 2]), 0.0)
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
        """The network's output at x (B, dim), times t (B,) and labels (B,) or None; shaped like x.

        Raises:
            ValueError: a shape, or a label, that does not fit.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"This network takes x of shape (B, {self.dim}), and it received {tuple(x.shape)}.")
        c = self.time(_times(t, x), label)
        h: Tensor = self.first(x)
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            h = h + layer(F.silu(h + shift(c)))
        out: Tensor = self.last(F.silu(h))
        return out


class UNet(nn.Module):
    """A small U-Net for images x (B, C, H, W): H and W must be divisible by 2^(len(multipliers) - 1).

    Each level but the coarsest has one residual block on the way down and one on the way up, joined by a skip
    connection; the coarsest has two.

    Args:
        channels: C.
        width: channels of the finest level.
        multipliers: channels of each level, finest first, as multiples of `width`; H and W are halved from each level
            to the next.
        classes: number of labels; by default there are none.

    Raises:
        TypeError: an argument is not an integer, or a multiplier is none.
        ValueError: an argument is below 1, or there is no level.

    Examples:
        >>> from sdegen.nets import UNet
        >>> net = UNet(channels=3, width=16, multipliers=(1, 2, 2))
        >>> net(torch.randn(2, 3, 16, 12), torch.rand(2)).shape
        torch.Size([2, 3, 16, 12])

    References:
        U-Net: Convolutional Networks for Biomedical Image Segmentation, Ronneberger et al., 2015, arXiv:1505.04597.
        Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239 (the blocks).
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
        """The network's output at x (B, C, H, W), times t (B,) and labels (B,) or None; shaped like x.

        Raises:
            ValueError: a shape, or a label, that does not fit.
        """
        self._check(x)
        c = self.time(_times(t, x), label)
        h: Tensor = self.first(x)
        skips: list[Tensor] = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(block(h, c))
            h = shrink(skips[-1])
        for block in self.middle:
            h = block(h, c)
        for block, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            h = grow(F.interpolate(h, scale_factor=2.0, mode="nearest"))
            h = block(torch.cat([h, skips.pop()], 1), c)
        out: Tensor = self.last(F.silu(self.norm(h)))
        return out

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
        out: Tensor = self.skip(h) + inner
        return out


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _zero(layer: Layer) -> Layer:
    """The layer with weights and bias zero: a network begins as the zero function, a block as its skip."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _times(t: Tensor, x: Tensor) -> Tensor:
    if t.shape != x.shape[:1]:
        raise ValueError(f"This network takes one time per sample, shape {(x.shape[0],)}, not {tuple(t.shape)}.")
    return t
