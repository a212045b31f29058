"""What `compare` found, as lines: error against network calls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sdegen.comparison import Comparison
from sdegen.plot.frame import PALETTE, axes_for, dress

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
        the Axes.

    Raises:
        TypeError: no Comparison, or no Axes.
        ValueError: a comparison without any finite error above zero, such as that of stochastic solvers.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import sdegen, torch
        >>> from matplotlib.figure import Figure
        >>> from sdegen import plot
        >>> model = sdegen.GaussianMixture([[-1.0], [1.0]], 0.3).model(sdegen.VPSDE())
        >>> found = sdegen.compare(model, {"Adams": sdegen.Adams}, x_T=torch.randn(8, 1), calls=(5, 10))
        >>> ax = plot.calls_against_error(found, Figure().subplots())
        >>> ax.get_lines()[0].get_xdata().tolist()
        [5, 10]
    """
    if not isinstance(comparison, Comparison):
        raise TypeError(f"comparison must be what sdegen.compare returned, and it is {comparison!r}.")
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in comparison.rows:
        if row.error is not None and 0 < row.error < math.inf:
            lines.setdefault(row.name, []).append((row.calls, row.error))
    if not lines:
        raise ValueError(_nothing_to_draw(comparison))
    ax = axes_for(ax, (6.0, 4.2))
    from matplotlib import ticker

    for i, (name, points) in enumerate(lines.items()):
        label = f" {name}" if name.startswith("_") else name  # matplotlib leaves "_..." out of its legend
        look = {"marker": MARKERS[i % len(MARKERS)], "color": PALETTE[i % len(PALETTE)]}
        ax.loglog(*zip(*sorted(points), strict=True), markersize=5, lw=1.4, label=label, **look)
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.grid(alpha=0.3)
    ax.legend(fontsize=11, frameon=False)
    dress(ax, "network calls", "RMS error, best 98 % of the samples")
    return ax


def _nothing_to_draw(comparison: Comparison) -> str:
    """Why no row has a finite error above zero."""
    if not comparison.rows:
        return "The comparison has no rows, and there is nothing to draw."
    errors = {row.error for row in comparison.rows}
    reasons = {
        None: "stochastic solvers have none",
        0.0: "that of the reference itself is 0",
        math.inf: "that of a lost state is infinite",
    }
    names = ", ".join(dict.fromkeys(row.name for row in comparison.rows))
    why = ", ".join(reason for error, reason in reasons.items() if error in errors)
    return f"None of the solvers {names} has an error to draw: {why}."
