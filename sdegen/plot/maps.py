"""Maps of the plane: a density or the error of its logarithm, and a model's velocity or score as arrows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, overload, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import check_model
from sdegen.likelihoods.density import log_likelihood
from sdegen.models.base import Cond, Model
from sdegen.models.exact import ExactModel
from sdegen.plot.frame import (
    INK,
    Array,
    Limits,
    axes_for,
    dress,
    extent,
    figure_of,
    is_fresh,
    mapping_of,
    numbers_of,
    panels_for,
    widen,
)
from sdegen.solvers.base import Solver

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

SQUARE: Limits = ((-3.0, 3.0), (-3.0, 3.0))
"""Where a map is drawn unless its limits are given: data of unit scale lie inside."""

LOWEST = 10.0
"""A map of log p ends this many nats below its highest value."""


@runtime_checkable
class Law(Protocol):
    """What has a log-density, as mixtures and the distributions of torch have."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Log-density of points (B, 2), in nats, (B,)."""


Drawable = Model | Law | Tensor


@overload
def density(
    law: Drawable,
    ax: Axes | None = None,
    *,
    limits: Limits | Tensor = SQUARE,
    points: int = 100,
    log: bool = False,
    error: bool = False,
    solver: Solver | None = None,
    cond: Cond = None,
    batch_size: int = 10_000,
) -> Axes: ...


@overload
def density(
    law: Mapping[str, Drawable],
    ax: None = None,
    *,
    limits: Limits | Tensor = SQUARE,
    points: int = 100,
    log: bool = False,
    error: bool = False,
    solver: Solver | None = None,
    cond: Cond = None,
    batch_size: int = 10_000,
) -> Figure: ...


def density(
    law: Drawable | Mapping[str, Drawable],
    ax: Axes | None = None,
    *,
    limits: Limits | Tensor = SQUARE,
    points: int = 100,
    log: bool = False,
    error: bool = False,
    solver: Solver | None = None,
    cond: Cond = None,
    batch_size: int = 10_000,
) -> Axes | Figure:
    """The map of a density in the plane, at the middles of points x points cells; several share one scale of colours.

    Args:
        law: a model, whose log-density is `log_likelihood`'s; what has `.log_prob`, such as a `GaussianMixture`; or the
            numbers themselves, (rows, columns), the lowest row first: log-densities, or with `error` their errors. Or a
            mapping from titles to these, one panel each.
        ax: where to draw one; by default a new figure, `ax.figure`.
        limits: ((left, right), (low, high)), or points (n, 2) around which to draw them.
        points: how many cells a side has; numbers have their own.
        log: draw log p in nats, down to 10 nats below its highest value, instead of p.
        error: draw the error of log p that `log_likelihood` reports, in nats, on a logarithmic scale.
        solver: of a model's log-density; by default that of `log_likelihood`.
        cond: keyword arguments for the network.
        batch_size: so many points are asked for at a time, which bounds the memory.

    Returns:
        the Axes; the Figure of a mapping.

    Raises:
        TypeError: what has no density, no Axes, an `ax` for a mapping.
        ValueError: limits that are none, `error` of what has none, densities that are NaN.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import sdegen
        >>> from matplotlib.figure import Figure
        >>> from sdegen import plot
        >>> law = sdegen.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.3)
        >>> ax = plot.density(law, Figure().subplots(), points=40)
        >>> ax.images[0].get_array().shape
        (40, 40)
    """
    window = _window(limits)
    _checks.whole("points", points, least=2)
    _checks.whole("batch_size", batch_size)

    def values(name: str, one: object) -> Array:
        return _shown(_numbers(name, one, window, points, error, solver, cond, batch_size), log, error)

    words = "a Model, a law with .log_prob, or log-densities (rows, columns)"
    if isinstance(law, Mapping):
        named = mapping_of("law", law, (Model, Law, Tensor), words)
        maps = [values(f"law[{name!r}]", one) for name, one in named.items()]
        axes = panels_for(list(named), ax, (2.9, 0.5 + 2.6 * _height(window)))
    elif isinstance(law, (Model, Law, Tensor)):
        maps = [values("law", law)]
        axes = [axes_for(ax, (5.0, 0.5 + 4.0 * _height(window)))]
    else:
        raise TypeError(f"law must be {words}, or a mapping from titles to them, and it is {law!r}.")
    _draw_maps(axes, maps, window, log, error)
    return figure_of(axes) if isinstance(law, Mapping) else axes[0]


def field(
    model: Model,
    t: float,
    ax: Axes | None = None,
    *,
    kind: str = "velocity",
    limits: Limits | Tensor = SQUARE,
    points: int = 21,
    cond: Cond = None,
) -> Axes:
    """A model's velocity or score in the plane at one time, as arrows over the density p_t where the model is exact.

    The velocity is dx/dt of the probability-flow ODE in the path's own time: on a path whose data are at t = 0 it
    points away from them. The longest arrow is as long as two cells. Over another density, draw that first on `ax`.

    Args:
        model: a `ScoreModel`, or the exact `.model(path)` of a mixture.
        t: the path's time.
        ax: where to draw; by default a new figure, `ax.figure`.
        kind: "velocity" or "score".
        limits: ((left, right), (low, high)), or points (n, 2) around which to draw.
        points: how many arrows a side has.
        cond: keyword arguments for the network.

    Returns:
        the Axes.

    Raises:
        TypeError: no Model, no Axes.
        ValueError: another kind, a time off the path, an answer that is not (n, 2) or not finite.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import sdegen
        >>> from matplotlib.figure import Figure
        >>> from sdegen import plot
        >>> model = sdegen.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.3).model(sdegen.VPSDE())
        >>> ax = plot.field(model, 0.3, Figure().subplots(), kind="score", points=11)
        >>> ax.collections[0].U.shape
        (121,)
    """
    check_model(model)
    _checks.choice("kind", kind, ("velocity", "score"))
    _checks.whole("points", points, least=2)
    window = _window(limits)
    x = _cells(window, points, points)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, dtype=torch.float64))
    with torch.no_grad():
        answer = getattr(model, kind)(x.to(like), t, cond)
    arrows = numbers_of(f"the {kind} of the model", answer, f"({len(x)}, 2)", (2,), 2)
    ax = axes_for(ax, (4.8, 0.2 + 4.6 * _height(window)))
    fresh = is_fresh(ax)
    cell = min(right - left for left, right in window) / points
    wide = _wider(window[0], cell), _wider(window[1], cell)
    if isinstance(model, ExactModel):
        p = _shown(_numbers("model", model.mixture.marginal(model.path, t), wide, 200), False, False)
        ax.imshow(p, origin="lower", extent=(*wide[0], *wide[1]), cmap="Blues", alpha=0.7, interpolation="bilinear")
    longest = float(np.hypot(*arrows.T).max()) or 1.0
    ax.quiver(
        *x.numpy().T, *arrows.T, color=INK, pivot="mid", angles="xy", scale_units="xy", scale=longest / (2 * cell)
    )
    widen(ax, wide, fresh=fresh, aspect=True)
    dress(ax, bare=True)
    return ax


def _wider(ends: tuple[float, float], by: float) -> tuple[float, float]:
    return ends[0] - by / 2, ends[1] + by / 2  # half of the longest arrow reaches out of the outermost cell's middle


def _window(limits: object) -> Limits:
    """((left, right), (low, high)), checked, or those of points."""
    if isinstance(limits, Tensor):
        x = numbers_of("limits", limits, "(n, 2), points around which to draw,", (2,), 2)
        return extent(x[:, 0]), extent(x[:, 1])
    try:
        ends = np.array(limits, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"limits must be ((left, right), (low, high)) or points (n, 2), not {limits!r}.") from error
    if ends.shape != (2, 2) or not (np.isfinite(ends).all() and (ends[:, 0] < ends[:, 1]).all()):
        raise ValueError(f"limits must be ((left, right), (low, high)), each growing, and they are {limits!r}.")
    (left, right), (low, high) = ends.tolist()
    return (left, right), (low, high)


def _height(window: Limits) -> float:
    """Of a panel, in widths."""
    (left, right), (low, high) = window
    return float(np.clip((high - low) / (right - left), 0.4, 2.0))


def _cells(window: Limits, rows: int, columns: int) -> Tensor:
    """The middles of the cells, (rows * columns, 2), the lowest row first, float64."""
    sides = [
        low + (high - low) * (torch.arange(n, dtype=torch.float64) + 0.5) / n
        for (low, high), n in zip(window, (columns, rows), strict=True)
    ]
    return torch.cartesian_prod(sides[1], sides[0]).flip(1)


def _numbers(
    name: str,
    law: object,
    window: Limits,
    points: int,
    error: bool = False,
    solver: Solver | None = None,
    cond: Cond = None,
    batch_size: int = 10_000,
) -> Tensor:
    """Log-densities, or their errors, at the middles of the cells: (rows, columns)."""
    if isinstance(law, Tensor):
        if law.ndim != 2:
            raise ValueError(f"{name} must have shape (rows, columns), and it has {tuple(law.shape)}.")
        return law.detach().cpu()
    x = _cells(window, points, points)
    if isinstance(law, Model):
        like = next((p for p in law.parameters() if p.is_floating_point()), x)
        found = log_likelihood(law, x.to(like), solver, cond=cond, batch_size=batch_size)
        return (found.error if error else found.log_prob).reshape(points, points).cpu()
    if error:
        raise ValueError(f"Only a Model's log-density comes with its error, and {name} is {law!r}.")
    ask: Callable[[Tensor], Tensor] = law.log_prob  # type: ignore[attr-defined]  # a Law: looked at by the caller
    with torch.no_grad():
        parts = [ask(part.to(torch.get_default_dtype())).detach().cpu() for part in x.split(batch_size)]
    values = torch.cat(parts)
    if values.shape != (len(x),):
        raise ValueError(f"log_prob of {name} must return one number per point, and it returned {tuple(values.shape)}.")
    return values.reshape(points, points)


def _shown(values: Tensor, log: bool, error: bool) -> Array:
    """What the map shows of log-densities or errors: NaN and +infinity are refused, p = 0 is a number."""
    if error:
        return numbers_of("the error", values, "(rows, columns)", (2,))
    p = values.double()
    if log:
        p = p.clamp(min=float(p[p > -torch.inf].max()) - LOWEST) if bool((p > -torch.inf).any()) else p
    return numbers_of("the density", p if log else p.exp(), "(rows, columns)", (2,))


def _draw_maps(axes: list[Axes], maps: list[Array], window: Limits, log: bool, error: bool) -> None:
    """Maps on one scale of colours, and the bar that tells it."""
    low, high = min(m.min() for m in maps), max(m.max() for m in maps)
    from matplotlib.colors import LogNorm, Normalize

    norm: Normalize
    if error:
        positive = [m[m > 0] for m in maps if (m > 0).any()]
        norm = LogNorm(min(m.min() for m in positive), high) if positive else Normalize(0, 1)
    else:
        norm = Normalize(max(low, high - LOWEST) if log else 0.0, high)
    around, colours = (*window[0], *window[1]), "viridis" if error else "magma"
    for panel, values in zip(axes, maps, strict=True):
        fresh = is_fresh(panel)
        drawn = panel.imshow(values, origin="lower", extent=around, cmap=colours, norm=norm, interpolation="bilinear")
        widen(panel, window, fresh=fresh, aspect=True)
        dress(panel, bare=True)
        panel.spines[:].set_visible(False)
    label = r"error of $\log p$, nats" if error else r"$\log p$, nats" if log else "$p$"
    beside = axes[-1].inset_axes((1.03, 0.0, 0.045, 1.0))
    bar = axes[-1].figure.colorbar(drawn, cax=beside)
    bar.set_label(label, fontsize=12)
    bar.ax.tick_params(labelsize=10, width=0.6)
    bar.outline.set_visible(False)
