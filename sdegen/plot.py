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
        TypeError: no Comparison, or no Axes.
        ValueError: a comparison without any finite error above zero, such as that of stochastic solvers.
        ImportError: matplotlib is not installed.

    Examples:
        >>> from sdegen.plot import calls_against_error
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> solvers = {"Adams": sdegen.Adams, "DDIM": sdegen.DDIM}
        >>> ax = calls_against_error(sdegen.compare(model, solvers, x_T=torch.randn(64, 1), calls=[5, 10]))
        >>> [line.get_label() for line in ax.lines]
        ['Adams', 'DDIM']
    """
    if not isinstance(comparison, Comparison):
        raise TypeError(f"comparison must be what sdegen.compare returned, and it is {comparison!r}.")
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in comparison.rows:
        if row.error is not None and 0 < row.error < math.inf:
            lines.setdefault(row.name, []).append((row.calls, row.error))
    if not lines:
        raise ValueError(_nothing_to_draw(comparison))
    try:
        from matplotlib import axes, pyplot, ticker
    except ImportError as error:
        raise ImportError("Pictures need matplotlib; install it with `pip install matplotlib`.") from error
    if ax is not None and not isinstance(ax, axes.Axes):
        raise TypeError(f"ax must be the Axes to draw on, such as pyplot.subplots()[1], and it is {ax!r}.")
    if ax is None:
        ax = pyplot.subplots(figsize=(6.0, 4.2), layout="constrained")[1]
    for i, (name, points) in enumerate(lines.items()):
        label = f" {name}" if name.startswith("_") else name  # matplotlib leaves "_..." out of its legend
        ax.loglog(*zip(*sorted(points), strict=True), marker=MARKERS[i % len(MARKERS)], markersize=4, label=label)
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.set(xlabel="network calls", ylabel="RMS error, best 98 % of the samples")
    ax.grid(alpha=0.3)
    ax.legend()
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
