"""The way from noise to data as a GIF, solvers side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdegen import _checks
from sdegen.models.base import Model
from sdegen.plot.curves import Curves, all_curves, densities_behind, label_axes, line_width, shared_limits
from sdegen.plot.frame import Array, Limits, colours_of, figure_of, mapping_of, panels_for, widen
from sdegen.sampling import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image as Picture

FRAME = 0.06
"""Seconds between two pictures: a GIF counts in hundredths."""

DOTS_PER_INCH = 90
REST = 1.5
"""Seconds for which the last picture stands before all starts again."""


def animate(
    solutions: Solution | Mapping[str, Solution],
    file: str | Path,
    model: Model | None = None,
    *,
    seconds: float = 5.0,
    straight: bool = False,
    color: str | Sequence[str] | None = None,
) -> Path:
    """A GIF of how samples come about, the SDE beside the ODE from the same noise.

    Numbers are lines that grow over the densities p_t, as in `trajectories`; points move through the plane, coloured by
    where they started: the order of their first coordinates there. All panels show the same clock u, which passes
    evenly; between two knots of a solver its states are interpolated.

    Args:
        solutions: what `solve(..., trajectory=True)` returned, or a mapping from titles to such, one panel each; from
            one x_T and over one interval of the clock.
        file: where to, a name that ends in .gif.
        model: an exact model, for the densities behind lines; with `straight`, any model that has the path.
        seconds: how long it takes, at 100 pictures in 6 seconds, without the rest at its end.
        straight: draw y = x/(alpha + sigma), as in `trajectories`.
        color: of lines, as in `trajectories`.

    Returns:
        the file's path.

    Raises:
        TypeError: what is no Solution, no Model.
        ValueError: as `trajectories`; another suffix; solutions over different intervals of the clock.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import sdegen, tempfile, torch
        >>> from sdegen import plot
        >>> model = sdegen.GaussianMixture([[-1.0], [1.0]], 0.2).model(sdegen.VPSDE())
        >>> ode = sdegen.solve(model, torch.randn(5, 1), sdegen.Adams(20), trajectory=True)
        >>> plot.animate({"ODE": ode}, tempfile.mkdtemp() + "/ode.gif", model, seconds=0.2).name
        'ode.gif'
    """
    path = Path(file)
    if path.suffix != ".gif":
        raise ValueError(f"file must end in .gif, and it is {str(file)!r}.")
    if model is not None and not isinstance(model, Model):
        raise TypeError(f"model must be a Model, such as GaussianMixture(...).model(path), and it is {model!r}.")
    count = max(2, round(_checks.real("seconds", seconds, low=0.0, strict=True) / FRAME))
    given = {"": solutions} if isinstance(solutions, Solution) else solutions
    named = mapping_of("solutions", given, (Solution,), "what solve(..., trajectory=True) returned")
    each = all_curves("solutions", named, model, straight)
    clocks = _clocks([one for one in named.values() if isinstance(one, Solution)], count)
    shown = [_at(curves, *clock) for curves, clock in zip(each, clocks, strict=True)]
    limits = shared_limits(each)
    axes = panels_for(list(named), None, (3.2, 3.4) if each[0].in_plane else (4.2, 3.0), film=True)
    draws = [
        _stage(panel, curves, model, straight, shade, limits)
        for panel, curves, shade in zip(axes, shown, colours_of(color, len(each)), strict=True)
    ]
    _write(axes[0], draws, count, path)
    return path


def _clocks(solutions: list[Solution], count: int) -> list[tuple[Array, Array]]:
    """For every solution its own knots u and the clocks of the pictures, the same for all."""
    knots: list[Array] = [solution.u.numpy() for solution in solutions]
    ends = {(round(float(u[0]), 9), round(float(u[-1]), 9)) for u in knots}
    if len(ends) > 1:
        raise ValueError(f"All panels show one clock, and the solutions go over u = {sorted(ends)}.")
    even = np.linspace(float(knots[0][0]), float(knots[0][-1]), count)
    return [(u, even) for u in knots]


def _at(curves: Curves, knots: Array, clocks: Array) -> Curves:
    """The states and times at other clocks, by straight lines between the knots."""
    sign = 1.0 if knots[-1] >= knots[0] else -1.0
    place = np.interp(sign * clocks, sign * knots, np.arange(len(knots)))
    before = np.minimum(place.astype(int), max(len(knots) - 2, 0))
    part = place - before
    after = np.minimum(before + 1, len(knots) - 1)
    states = (1 - part)[:, None, None] * curves.states[before] + part[:, None, None] * curves.states[after]
    return Curves((1 - part) * curves.time[before] + part * curves.time[after], states, curves.noisy_first)


def _stage(
    ax: Axes, curves: Curves, model: Model | None, straight: bool, color: str, limits: Limits
) -> Callable[[int], None]:
    """A panel with its limits and labels, and what draws picture k on it."""
    if curves.in_plane:
        draw = _moving_points(ax, curves, "u" if straight else "t")
    else:
        densities_behind(ax, model, limits, straight)
        draw = _growing_lines(ax, curves, color)
    widen(ax, limits, fresh=True, aspect=curves.in_plane)
    label_axes(ax, curves, straight)
    if not curves.in_plane:
        ax.label_outer()
    return draw


def _moving_points(ax: Axes, curves: Curves, clock: str) -> Callable[[int], None]:
    """Dots coloured by the order of their first coordinates at the start; the time below."""
    from matplotlib.colors import LinearSegmentedColormap

    states = curves.states
    order = states[0, :, 0].argsort().argsort()
    colours = LinearSegmentedColormap.from_list("blue to red", ["#0072b2", "#a07bb0", "#d55e00"])
    size = float(np.clip(9000 / len(order), 5, 40))
    dots = ax.scatter(states[0, :, 0], states[0, :, 1], s=size, c=order, cmap=colours, linewidths=0, alpha=0.85)

    def draw(k: int) -> None:
        dots.set_offsets(states[k])
        ax.set_xlabel(f"${clock}$ = {curves.time[k]:.2f}", fontsize=12)

    return draw


def _growing_lines(ax: Axes, curves: Curves, color: str) -> Callable[[int], None]:
    """Lines up to the present state, and a dot there."""
    time, states = curves.time, curves.states[..., 0]
    lines = ax.plot(time[:1], states[:1], color=color, lw=line_width(states.shape[1]), alpha=0.9)
    heads = ax.scatter(np.full(len(lines), time[0]), states[0], s=12, color=color, linewidths=0, zorder=3)

    def draw(k: int) -> None:
        for line, path in zip(lines, states[: k + 1].T, strict=True):
            line.set_data(time[: k + 1], path)
        heads.set_offsets(np.stack([np.full(len(lines), time[k]), states[k]], 1))

    return draw


def _write(ax: Axes, draws: list[Callable[[int], None]], count: int, path: Path) -> None:
    """All pictures in the colours of the last one, without dithering, so that a file holds but what changes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure = figure_of([ax])
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DOTS_PER_INCH)
    pictures = []
    for k in range(count):
        for draw in draws:
            draw(k)
        canvas.draw()  # type: ignore[no-untyped-call]  # of matplotlib
        figure.set_layout_engine("none")  # what is laid out once does not move from picture to picture
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]  # of matplotlib
        pictures.append(Image.fromarray(pixels[..., :3].copy()))
    chart = _chart(pictures[-1])
    first, *rest = [picture.quantize(palette=chart, dither=Image.Dither.NONE) for picture in pictures]
    duration = [*(count - 1) * [round(1000 * FRAME)], round(1000 * REST)]
    first.save(path, save_all=True, append_images=rest, duration=duration, loop=0, optimize=False)


def _chart(picture: Picture) -> Picture:
    """The colours of a picture, of which that of its ground, in the corner, is exact: no other is near it."""
    from PIL import Image

    found, chart = picture.quantize(255, dither=Image.Dither.NONE), Image.new("P", (1, 1))
    ground = np.asarray(picture)[0, 0].astype(int)
    colours = np.array(found.getpalette() or [], dtype=int).reshape(-1, 3)
    colours[np.abs(colours - ground).max(1) < 8] = ground  # Pillow looks a colour up by its first six bits
    chart.putpalette([int(part) for part in colours.flatten()])
    return chart
