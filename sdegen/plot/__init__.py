"""Pictures of samples, of the way to them and of densities, with matplotlib: `pip install 'sdegen[plot]'`.

    samples                points in the plane, or one panel for every solver, data behind
    trajectories           the paths of a solve, the exact densities p_t behind them
    animate                the same as a GIF, solvers side by side
    density, field         the map of a density; the velocity or the score as arrows
    grid                   images in rows
    calls_against_error    what `compare` found
    write                  a figure to a file, at 150 dots an inch, and closed

All take plain tensors and return what they drew on, the Axes or, where a mapping asks for one panel for each of its
names, the Figure. Panels that are to be compared share their limits and their colours. Nothing is shown, and no setting
of matplotlib is changed. This package is a leaf: nothing else in the library imports it.
"""

from sdegen.plot.curves import trajectories
from sdegen.plot.errors import calls_against_error
from sdegen.plot.film import animate
from sdegen.plot.frame import PALETTE, write
from sdegen.plot.images import grid
from sdegen.plot.maps import density, field
from sdegen.plot.points import samples

__all__ = [
    "PALETTE",
    "animate",
    "calls_against_error",
    "density",
    "field",
    "grid",
    "samples",
    "trajectories",
    "write",
]
