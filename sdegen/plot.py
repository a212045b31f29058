"""Pictures of results, with matplotlib: a leaf, which nothing in the library imports."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sdegen.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vPX<>*"


def calls_against_error(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Error against network calls on two logarithmic scales, one line for every solver that has errors.

    A method of order q falls like calls^-q, a straight line of slope -q.

    Args:
        comparison: what `compare` returned.
        ax: where to draw; by default a new figure, `ax.figure`.

    Returns:
        the axes.

    Raises:
        TypeError: no Comparison.
        ValueError: one without any finite error above zero, such as that of stochastic solvers.
        ImportError: matplotlib is not installed.
    """
    if not isinstance(comparison, Comparison):
        raise TypeError(f"comparison must be what sdegen.compare returned, and it is {comparison!r}.")
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in comparison.rows:
        if row.error is not None and 0 < row.error < math.inf:
            lines.setdefault(row.name, []).append((row.calls, row.error))
    if not lines:
        names = ", ".join(dict.fromkeys(row.name for row in comparison.rows))
        raise ValueError(f"None of the solvers {names} has an error to draw: those of stochastic solvers have none.")
    try:
        from matplotlib import pyplot, ticker
    except ImportError as error:
        raise ImportError("Pictures need matplotlib; install it with `pip install matplotlib`.") from error
    if ax is None:
        ax = pyplot.subplots(figsize=(6.0, 4.2), layout="constrained")[1]
    for i, (name, points) in enumerate(lines.items()):
        ax.loglog(*zip(*sorted(points), strict=True), marker=MARKERS[i % len(MARKERS)], markersize=4, label=name)
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.set(xlabel="network calls", ylabel="RMS error, best 98 % of the samples")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax
