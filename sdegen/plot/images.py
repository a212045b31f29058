"""Images in rows, one row for every solver."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sdegen import _checks
from sdegen.plot.frame import INK, Array, axes_for, mapping_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 0.07
"""The space between two images, in units of their shorter side."""

GROUND = "#dcdce4"


def grid(
    images: Tensor | Mapping[str, Tensor],
    ax: Axes | None = None,
    *,
    columns: int | None = None,
    span: tuple[float, float] = (-1.0, 1.0),
    cmap: str = "gray",
) -> Axes:
    """Images in rows with their names: one row for every solver, all from the same x_T, so that columns compare.

    Values outside `span` are drawn as its ends, NaN as the ground between the images.

    Args:
        images: (n, C, h, w), C of 1 or 3; or a mapping from names to such, one row each, or to (rows, n, C, h, w) for
            several rows of one name.
        ax: where to draw; by default a new figure, `ax.figure`.
        columns: how many images of a tensor stand in a row; by default as many as make a square.
        span: the values of black and white.
        cmap: the colours of images with one channel: "gray", or "gray_r" for dark ink on paper.

    Returns:
        the Axes.

    Raises:
        TypeError: what is no tensor of real numbers, no Axes.
        ValueError: images of another shape, no image, rows that do not match; `columns` for a mapping.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from sdegen import plot
        >>> rows = {"noise": torch.randn(6, 1, 8, 8), "black": -torch.ones(6, 1, 8, 8)}
        >>> ax = plot.grid(rows, Figure().subplots())
        >>> [label.get_text() for label in ax.get_yticklabels()], len(ax.images)
        (['noise', 'black'], 12)
    """
    low, high = _span(span)
    blocks = _blocks(images, columns)
    rows, across = sum(len(b) for b in blocks.values()), max(b.shape[1] for b in blocks.values())
    channels, height, width = next(iter(blocks.values())).shape[2:]
    gap = GAP * min(height, width)
    (right, step), down, ticks = (width + gap, height + gap), 0.0, {}
    names = 0.06 * max(len(name) for name in blocks)  # inches, too few: then no slack is left beside the images
    scale = 0.85 / min(height, width)
    ax = axes_for(ax, (scale * across * right + names + 0.1, scale * rows * step + 0.1))
    for name, block in blocks.items():
        ticks[name] = down + (len(block) * step - gap) / 2
        for row in block:
            for i, image in enumerate(row):
                place = (i * right, i * right + width, down + height, down)
                if channels == 1:
                    ax.imshow(image[0], cmap=cmap, vmin=low, vmax=high, extent=place, interpolation="nearest")
                else:
                    ax.imshow(_coloured(image, low, high), extent=place, interpolation="nearest")
            down += step
    ax.set(xlim=(-gap, across * right), ylim=(down, -gap), xticks=[], facecolor=GROUND)
    ax.set_yticks([y for name, y in ticks.items() if name], [name for name in ticks if name], fontsize=12)
    ax.tick_params(length=0, labelcolor=INK)
    ax.set_anchor("W")  # no slack between the names and the edge, which the layout would count twice
    ax.spines[:].set_visible(False)
    return ax


def _span(span: object) -> tuple[float, float]:
    """(black, white), checked."""
    if not isinstance(span, (tuple, list)) or len(span) != 2:
        raise TypeError(f"span must be (black, white), two numbers, and it is {span!r}.")
    low, high = (_checks.real("span", end) for end in span)
    if not low < high:
        raise ValueError(f"span must be (black, white), the lower number first, and it is {span!r}.")
    return low, high


def _blocks(images: object, columns: int | None) -> dict[str, Array]:
    """From names to (rows, n, C, h, w); images of a tensor alone have no name, and NaN ends their last row."""
    if isinstance(images, Tensor):
        x = _checked("images", images, (4,))
        n = math.ceil(math.sqrt(len(x))) if columns is None else min(_checks.whole("columns", columns), len(x))
        blank = np.full((-len(x) % n, *x.shape[1:]), math.nan)
        return {"": np.concatenate([x, blank]).reshape(-1, n, *x.shape[1:])}
    named = mapping_of("images", images, (Tensor,), "a tensor (n, C, h, w)")
    if columns is not None:
        raise ValueError(f"A mapping has its own rows: leave out columns = {columns!r}.")
    blocks = {}
    for name, one in named.items():
        x = _checked(f"images[{name!r}]", one, (4, 5))
        blocks[name] = x if x.ndim == 5 else x[None]
    shapes = {x.shape[1:] for x in blocks.values()}
    if len(shapes) > 1:
        raise ValueError(f"All rows must hold as many images of one shape, and they hold {sorted(shapes)}.")
    return blocks


def _checked(name: str, images: object, dims: tuple[int, ...]) -> Array:
    """Real images of one or three channels; of their numbers NaN alone need not be finite."""
    assert isinstance(images, Tensor)
    shape = "(n, C, h, w), C of 1 or 3" + ("" if dims == (4,) else ", or (rows, n, C, h, w)")
    if images.is_complex():
        raise TypeError(f"{name} must hold real numbers, and it has dtype {images.dtype}.")
    if images.ndim not in dims or images.shape[-3] not in (1, 3) or not images.numel():
        raise ValueError(f"{name} must have shape {shape}, and it has {tuple(images.shape)}.")
    numbers: Array = images.detach().to("cpu", torch.float64).numpy()
    if np.isinf(numbers).any():
        raise ValueError(f"{name} must be finite, or NaN where nothing is to be drawn, and it holds infinity.")
    return numbers


def _coloured(image: Array, low: float, high: float) -> Array:
    """(C, h, w) as red, green, blue and, 0 where there is NaN, opacity, (h, w, 4) in [0, 1]."""
    colours = ((image - low) / (high - low)).clip(0, 1).transpose(1, 2, 0)
    seen = ~np.isnan(colours).any(-1, keepdims=True)
    return np.concatenate([np.nan_to_num(colours), seen], -1)
