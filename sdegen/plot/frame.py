"""What all pictures share: the palette, axes and their limits, numbers that may be drawn, and the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Array = NDArray[np.float64]
Limits = tuple[tuple[float, float], tuple[float, float]]
Value = TypeVar("Value")

INK, GREY = "#22223b", "#b8b8c4"
PALETTE = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that colour-blind readers tell apart (after Okabe and Ito, 2008), in the order in which panels take them."""

DOTS_PER_INCH = 150
MARGIN = 0.05
"""The part of the data's extent that is left free on every side."""
MOST_UNEQUAL = 4.0
"""How many times longer than the other one side of a plane may be that is drawn to one scale."""


def need_matplotlib() -> None:
    """An ImportError that names the command, unless matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("Pictures need matplotlib; install it with `pip install 'sdegen[plot]'`.") from error


def axes_for(ax: Axes | None, size: tuple[float, float] = (4.8, 4.0)) -> Axes:
    """`ax`, checked, or that of a new figure of `size` inches."""
    need_matplotlib()
    from matplotlib import axes, pyplot

    if ax is None:
        return pyplot.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, axes.Axes):
        raise TypeError(f"ax must be the Axes to draw on, such as pyplot.subplots()[1], and it is {ax!r}.")
    return ax


def panels_for(names: Sequence[str], ax: object, size: tuple[float, float], *, film: bool = False) -> list[Axes]:
    """One titled panel of `size` inches for every name in a new figure, at most four in a row; a film's is nobody's."""
    need_matplotlib()
    from matplotlib import figure, pyplot

    if ax is not None:
        raise TypeError(f"{len(names)} panels have a figure of their own: leave ax out, or draw them one by one.")
    kind = figure.Figure if film else pyplot.figure
    rows = -(-len(names) // 4)
    columns = -(-len(names) // rows)
    drawn = kind(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    all_panels = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, gridspec_kw={"wspace": 0.05})
    panels = [*all_panels.flat][: len(names)]
    for panel in [*all_panels.flat][len(names) :]:
        panel.remove()
    for panel, name in zip(panels, names, strict=True):
        panel.set_title(name, fontsize=13)
        panel.label_outer()
    return panels


def figure_of(axes: Sequence[Axes]) -> Figure:
    """The figure that the panels stand on."""
    from matplotlib.figure import Figure

    figure = axes[0].get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def mapping_of(name: str, value: object, kinds: tuple[type, ...], words: str) -> Mapping[str, object]:
    """`value`, a non-empty mapping from titles to values of these kinds; a TypeError or ValueError otherwise."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be {words}, or a mapping from titles to them, and it is {value!r}.")
    if not value:
        raise ValueError(f"{name} is an empty mapping, and there is nothing to draw.")
    for title, one in value.items():
        if not isinstance(title, str):
            raise TypeError(f"{name} must be a mapping from titles, and {title!r} is {type(title).__name__}.")
        if not isinstance(one, kinds):
            raise TypeError(f"{name}[{title!r}] must be {words}, and it is {one!r}.")
    return value


def numbers_of(name: str, x: object, shape: str, dims: tuple[int, ...], last: int | None = None) -> Array:
    """The finite numbers of a tensor of so many axes, the last of them of length `last`, in float64."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {shape}, and it is {type(x).__name__}.")
    if x.is_complex():
        raise TypeError(f"{name} must hold real numbers, and it has dtype {x.dtype}.")
    if x.ndim not in dims or (last is not None and x.shape[-1] != last):
        raise ValueError(f"{name} must have shape {shape}, and it has {tuple(x.shape)}.")
    if not x.numel():
        raise ValueError(f"{name} has shape {tuple(x.shape)}, and there is nothing to draw.")
    numbers: Array = x.detach().to("cpu", torch.float64).numpy()
    bad = int((~np.isfinite(numbers)).sum())
    if bad:
        raise ValueError(f"{name} must be finite, and {bad} of its {numbers.size} numbers are not.")
    return numbers


def extent(*arrays: Array) -> tuple[float, float]:
    """(low, high) around all numbers, with a margin on both sides; of one number, one unit around it."""
    low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
    margin = MARGIN * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def is_fresh(ax: Axes) -> bool:
    """Whether nothing was drawn yet, on it or on an Axes that shares its limits."""
    return not any(
        one.has_data() for shared in (ax.get_shared_x_axes(), ax.get_shared_y_axes()) for one in shared.get_siblings(ax)
    )


def widen(ax: Axes, limits: Limits, *, fresh: bool, aspect: bool = False) -> None:
    """Set the limits of a `fresh` Axes; let those of one that was drawn on reach at least so far."""
    for (low, high), get, put in (
        (limits[0], ax.get_xlim, ax.set_xlim),
        (limits[1], ax.get_ylim, ax.set_ylim),
    ):
        own = get()
        forward = low <= high
        if not fresh:
            low, high = (min(*own, low, high), max(*own, low, high))
            low, high = (low, high) if forward else (high, low)
        put(low, high)
    if aspect and of_one_scale(limits):
        ax.set_aspect("equal")


def of_one_scale(limits: Limits) -> bool:
    """Whether both sides can be drawn to one scale: columns of a table may have units of their own."""
    (left, right), (low, high) = limits
    return 1 / MOST_UNEQUAL <= (high - low) / (right - left) <= MOST_UNEQUAL


def dress(ax: Axes, x: str = "", y: str = "", *, bare: bool = False) -> None:
    """Labels that can be read at half the width, thin spines; a `bare` plane has no ticks."""
    if x:
        ax.set_xlabel(x, fontsize=12)
    if y:
        ax.set_ylabel(y, fontsize=12)
    ax.tick_params(labelsize=11, width=0.6, color=INK)
    ax.spines[:].set(color=GREY if bare else INK, linewidth=0.6)
    if bare:
        ax.set(xticks=[], yticks=[])
    else:
        ax.spines[["top", "right"]].set_visible(False)
    ax.title.set_fontsize(13)


def colours_of(color: str | Sequence[str] | None, n: int) -> list[str]:
    """One colour for each of n panels: the palette in its order, or what was given, again from its start at the end."""
    given = PALETTE if color is None else (color,) if isinstance(color, str) else tuple(color)
    if not given:
        raise ValueError("color must be a colour or a sequence of some, and it is empty.")
    return [given[i % len(given)] for i in range(n)]


def write(figure: Figure | SubFigure | Axes, file: str | Path) -> Path:
    """Write a figure to a file, at 150 dots an inch where it has dots, and close it.

    Args:
        figure: a Figure, or an Axes on it.
        file: where to; the suffix says how: .png, .svg, .pdf.

    Returns:
        the file's path.

    Raises:
        TypeError: what is no Figure and no Axes.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import tempfile, torch
        >>> from sdegen import plot
        >>> plot.write(plot.samples(torch.randn(100, 2)), tempfile.mkdtemp() + "/points.svg").name
        'points.svg'
    """
    need_matplotlib()
    from matplotlib import axes, pyplot
    from matplotlib.figure import Figure

    whole = figure.get_figure(root=True) if isinstance(figure, axes.Axes) else figure
    if not isinstance(whole, Figure):
        raise TypeError(f"figure must be a Figure or an Axes, and it is {figure!r}.")
    whole.savefig(file, dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.06)
    pyplot.close(whole)
    return Path(file)
