"""The paths that a solve took, in time or in the plane, and the densities p_t that they cross."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
import torch

from sdegen.models.base import Model
from sdegen.models.exact import ExactModel
from sdegen.plot.frame import (
    GREY,
    INK,
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
    panels_for,
    widen,
)
from sdegen.sampling import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

TIMES, HEIGHTS = 241, 361
"""The points at which p_t is computed, in time and in x; in between its colours are interpolated."""

SHADES = ["#ffffff", "#cfd2dd", "#7b8098"]
"""Of p_t: lighter than any line drawn over them."""


class Curves(NamedTuple):
    """What is drawn of one solve.

    Attributes:
        time: n + 1 knots, the path's time or, `straight`, the clock.
        states: (n + 1, B, d), d of 1 or 2.
        noisy_first: whether the first knot is nearer the noise than the last.
    """

    time: Array
    states: Array
    noisy_first: bool

    @property
    def in_plane(self) -> bool:
        """Whether the states are points, not numbers."""
        return bool(self.states.shape[-1] == 2)

    @property
    def limits(self) -> Limits:
        """Of the axes: around the points of the plane; or time, from noise to data, and around the numbers."""
        if self.in_plane:
            return extent(self.states[..., 0]), extent(self.states[..., 1])
        ends = (float(self.time[0]), float(self.time[-1]))
        return ends if self.noisy_first else ends[::-1], extent(self.states)


@overload
def trajectories(
    solution: Solution,
    model: Model | None = None,
    ax: Axes | None = None,
    *,
    straight: bool = False,
    color: str | Sequence[str] | None = None,
) -> Axes: ...


@overload
def trajectories(
    solution: Mapping[str, Solution],
    model: Model | None = None,
    ax: None = None,
    *,
    straight: bool = False,
    color: str | Sequence[str] | None = None,
) -> Figure: ...


def trajectories(
    solution: Solution | Mapping[str, Solution],
    model: Model | None = None,
    ax: Axes | None = None,
    *,
    straight: bool = False,
    color: str | Sequence[str] | None = None,
) -> Axes | Figure:
    """The paths of a solve: numbers against time, noise on the left, over the densities p_t; points in the plane.

    Panels share their limits, which hold every state of all of them. The density behind is that of
    `GaussianMixture.marginal(path, t)`, drawn where the model is exact and an event is one number; its darkness grows
    like its square root, so that the wide law of the noise is seen beside the narrow one of the data.

    Args:
        solution: what `solve(..., trajectory=True)` returned; or a mapping from titles to such, one panel each.
        model: an exact model, `GaussianMixture.model(path)`, for the densities behind; with `straight`, any model that
            has the path of the solve.
        ax: where to draw one solve; by default a new figure, `ax.figure`.
        straight: draw y = x/(alpha + sigma), against the clock u: the coordinates in which every path is straight.
        color: a colour, or one for each panel; by default those of `PALETTE`.

    Returns:
        the Axes; the Figure of a mapping.

    Raises:
        TypeError: what is no Solution, no Model, no Axes; an `ax` for a mapping.
        ValueError: a Solution without its trajectory, events of more than two dimensions, `straight` without a model.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import sdegen, torch
        >>> from matplotlib.figure import Figure
        >>> from sdegen import plot
        >>> model = sdegen.GaussianMixture([[-1.0], [1.0]], 0.2).model(sdegen.VPSDE())
        >>> solution = sdegen.solve(model, torch.randn(5, 1), sdegen.Adams(20), trajectory=True)
        >>> ax = plot.trajectories(solution, model, Figure().subplots())
        >>> len(ax.get_lines()), [float(end) for end in ax.get_xlim()]
        (5, [1.0, 0.0])
    """
    if model is not None and not isinstance(model, Model):
        raise TypeError(f"model must be a Model, such as GaussianMixture(...).model(path), and it is {model!r}.")
    if isinstance(solution, Solution):
        drawn = curves_of("solution", solution, model, straight)
        ax = axes_for(ax, (4.8, 4.0) if drawn.in_plane else (6.4, 3.4))
        _draw(ax, drawn, model, straight, colours_of(color, 1)[0], drawn.limits)
        return ax
    words = "what solve(..., trajectory=True) returned"
    named = mapping_of("solution", solution, (Solution,), words)
    each = all_curves("solution", named, model, straight)
    axes = panels_for(list(named), ax, (3.4, 3.4) if each[0].in_plane else (5.0, 3.4))
    limits = shared_limits(each)
    for panel, drawn, shade in zip(axes, each, colours_of(color, len(each)), strict=True):
        _draw(panel, drawn, model, straight, shade, limits)
        panel.label_outer()
    return figure_of(axes)


def all_curves(name: str, named: Mapping[str, object], model: Model | None, straight: bool) -> list[Curves]:
    """The curves of several solutions, which must be all numbers or all points."""
    each = [curves_of(f"{name}[{title!r}]", one, model, straight) for title, one in named.items()]
    sizes = {curves.states.shape[-1] for curves in each}
    if len(sizes) > 1:
        raise ValueError(f"The panels of {name} must have events of one size, and these have {sorted(sizes)}.")
    return each


def shared_limits(each: Sequence[Curves]) -> Limits:
    """The limits that hold all curves of all panels."""
    (lefts, rights), (lows, highs) = (zip(*(c.limits[axis] for c in each), strict=True) for axis in (0, 1))
    first = each[0].limits[0]
    outwards = (min, max) if first[0] <= first[1] else (max, min)
    return (outwards[0](lefts), outwards[1](rights)), (min(lows), max(highs))


def curves_of(name: str, solution: object, model: Model | None, straight: bool) -> Curves:
    """The numbers to draw of one solution, checked."""
    if not isinstance(solution, Solution):
        raise TypeError(f"{name} must be what solve(..., trajectory=True) returned, and it is {solution!r}.")
    if solution.trajectory is None:
        raise ValueError(f"{name} has no trajectory: solve with trajectory=True keeps every step's state.")
    states = solution.trajectory
    shape = "(n + 1, B, 1) or (n + 1, B, 2)"
    if states.ndim != 3 or states.shape[-1] not in (1, 2):
        raise ValueError(
            f"The trajectory of {name} must have shape {shape}, and it has {tuple(states.shape)}: keep one or two "
            "coordinates, as dataclasses.replace(solution, trajectory=solution.trajectory[..., :1]) does."
        )
    if straight:
        if model is None:
            raise ValueError("The straight coordinates y = x/(alpha + sigma) need the path: give model= too.")
        states = states.to("cpu", torch.float64) / model.path.scale(solution.u)[:, None, None]
    time = numbers_of(f"the time of {name}", solution.u if straight else solution.t, "(n + 1,)", (1,))
    noisy_first = bool(solution.u[0] >= solution.u[-1])
    return Curves(time, numbers_of(f"the trajectory of {name}", states, shape, (3,)), noisy_first)


def marginals(model: ExactModel, time: Array, x: Array, straight: bool) -> Array:
    """p_t(x) at every x and time, (len(x), len(time)); of y = x/r at every clock where `straight`."""
    columns, heights = [], torch.from_numpy(x)[:, None]
    for moment in torch.from_numpy(time):
        t = float(model.path.time(moment)) if straight else float(moment)
        r = float(model.path.scale(moment)) if straight else 1.0
        columns.append(r * model.mixture.marginal(model.path, t).log_prob(r * heights).exp())
    values: Array = torch.stack(columns, 1).numpy()
    return values


def densities_behind(ax: Axes, model: Model | None, limits: Limits, straight: bool) -> AxesImage | None:
    """The map of p_t, from side to side and from bottom to top, where the model tells it and an event is one number."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    if not isinstance(model, ExactModel) or model.mixture.event_shape != (1,):
        return None
    time, x = np.linspace(*limits[0], TIMES), np.linspace(*limits[1], HEIGHTS)
    values = marginals(model, time, x, straight)
    norm = PowerNorm(0.5, 0, float(np.quantile(values, 0.998)))
    halves = 0.5 * (time[1] - time[0]), 0.5 * (x[1] - x[0])  # so that every number is the middle of its pixel
    around = (time[0] - halves[0], time[-1] + halves[0], x[0] - halves[1], x[-1] + halves[1])
    return ax.imshow(
        values,
        origin="lower",
        extent=around,
        cmap=LinearSegmentedColormap.from_list("white to slate", SHADES),
        norm=norm,
        interpolation="bilinear",
        aspect="auto",
        zorder=0,
    )


def line_width(n: int) -> float:
    """Of n lines: the more, the thinner."""
    return float(np.clip(16 / n**0.75, 0.6, 1.4))


def label_axes(ax: Axes, drawn: Curves, straight: bool) -> None:
    """What the axes show."""
    if drawn.in_plane:
        dress(ax, bare=True)
    else:
        dress(ax, "$u$, from noise to data" if straight else "$t$, from noise to data", "$y$" if straight else "$x_t$")


def _draw(ax: Axes, drawn: Curves, model: Model | None, straight: bool, color: str, limits: Limits) -> None:
    """One panel."""
    fresh, states = is_fresh(ax), drawn.states
    width = line_width(states.shape[1])
    if drawn.in_plane:
        ax.plot(states[..., 0], states[..., 1], color=color, lw=width, alpha=0.6, zorder=1)
        for end, shade in ((0, GREY), (-1, INK)) if drawn.noisy_first else ((-1, GREY), (0, INK)):
            ax.scatter(states[end, :, 0], states[end, :, 1], s=9, color=shade, linewidths=0, zorder=2)
    else:
        densities_behind(ax, model, limits, straight)
        ax.plot(drawn.time, states[..., 0], color=color, lw=width, alpha=0.9, zorder=1)
    widen(ax, limits, fresh=fresh, aspect=drawn.in_plane)
    label_axes(ax, drawn, straight)
