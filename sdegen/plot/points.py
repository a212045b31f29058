"""Points in the plane, as scattered dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, overload

from torch import Tensor

from sdegen.plot.frame import (
    Array,
    Limits,
    axes_for,
    colours_of,
    dress,
    extent,
    figure_of,
    is_fresh,
    mapping_of,
    numbers_of,
    of_one_scale,
    panels_for,
    widen,
)

SLATE = "#9a9cac"

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@overload
def samples(
    x: Tensor, ax: Axes | None = None, *, data: Tensor | None = None, color: str | Sequence[str] | None = None
) -> Axes: ...


@overload
def samples(
    x: Mapping[str, Tensor], ax: None = None, *, data: Tensor | None = None, color: str | Sequence[str] | None = None
) -> Figure: ...


def samples(
    x: Tensor | Mapping[str, Tensor],
    ax: Axes | None = None,
    *,
    data: Tensor | None = None,
    color: str | Sequence[str] | None = None,
) -> Axes | Figure:
    """Points in the plane as dots, or one panel for each of several sets of them, over data in grey.

    Panels share their limits, which hold every point of all of them. To compare solvers, draw from one x_T:
    {name: sample(model, x_T.shape, solver, x_T=x_T) for name, solver in solvers.items()}.

    Args:
        x: the points, (n, 2); or a mapping from titles to points, one panel each.
        ax: where to draw one set; by default a new figure, `ax.figure`.
        data: points (m, 2) to draw in grey behind them, in every panel.
        color: a colour, or one for each panel; by default those of `PALETTE`.

    Returns:
        the Axes; the Figure of a mapping.

    Raises:
        TypeError: points that are no tensor, no Axes, an `ax` for a mapping.
        ValueError: points of another shape, none, or not finite.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from sdegen import plot
        >>> ax = plot.samples(torch.randn(100, 2), Figure().subplots())
        >>> ax.collections[0].get_offsets().shape
        (100, 2)
    """
    shape = "(n, 2)"
    behind = [] if data is None else [numbers_of("data", data, shape, (2,), 2)]
    if isinstance(x, Tensor):
        points = numbers_of("x", x, shape, (2,), 2)
        ax = axes_for(ax)
        _scatter(ax, behind, points, colours_of(color, 1)[0], _limits(points, *behind))
        return ax
    named = mapping_of("x", x, (Tensor,), f"a tensor of shape {shape}")
    sets = [numbers_of(f"x[{name!r}]", one, shape, (2,), 2) for name, one in named.items()]
    limits = _limits(*sets, *behind)
    (left, right), (low, high) = limits
    height = min(max(2.6 * (high - low) / (right - left), 1.3), 5.0) if of_one_scale(limits) else 2.6
    axes = panels_for(list(named), ax, (2.6, height + 0.35))
    for panel, points, shade in zip(axes, sets, colours_of(color, len(sets)), strict=True):
        _scatter(panel, behind, points, shade, limits)
    return figure_of(axes)


def _limits(*sets: Array) -> Limits:
    """The limits that hold all points."""
    return extent(*(s[:, 0] for s in sets)), extent(*(s[:, 1] for s in sets))


def _scatter(ax: Axes, behind: list[Array], points: Array, color: str, limits: Limits) -> None:
    """Dots that are the smaller the more there are."""
    fresh = is_fresh(ax)
    for dots, shade, order in (*((b, SLATE, 1) for b in behind), (points, color, 2)):
        size = min(max(12_000 / len(dots), 3), 30)
        many = len(dots) > 2000
        ax.scatter(dots[:, 0], dots[:, 1], s=size, color=shade, alpha=0.55, linewidths=0, zorder=order, rasterized=many)
    widen(ax, limits, fresh=fresh, aspect=True)
    dress(ax, bare=of_one_scale(limits))
