"""Grids: where on the clock a solver steps. A grid is a value; `knots` lays it on a path.

    PowerGrid(p)        u_k = u_low + (u_high - u_low) (1 - k/N)^p     k = 0 at the noise end, k = N at the data end
    PowerGrid(p, "t")   |t - t_data| likewise: PowerGrid(1, "t") is uniform in time, PowerGrid(2, "t") in sqrt(t)

Towards noise the same knots are walked backwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.paths.chain import Knots
from sdegen.paths.gaussian import GaussianPath


class Grid(ABC):
    """A value that lays knots between two clocks of a path; a tensor of clocks serves as well."""

    @abstractmethod
    def lay(self, path: GaussianPath, high: float, low: float, steps: int) -> tuple[Tensor, Tensor]:
        """(u, t) at steps + 1 knots from the clock `high` down to `low`, float64 on the CPU."""


@dataclass(frozen=True)
class PowerGrid(Grid):
    """A power of the step index: u_k = u_low + (u_high - u_low) (1 - k/N)^p.

    Args:
        p: 1 is uniform, a larger p crowds the knots towards the data; positive.
        clock: "u", the straight clock, or "t", the path's own time, counted from the data.

    Raises:
        TypeError: an argument of another type.
        ValueError: p is not positive, or the clock unknown.
    """

    p: float = 2.0
    clock: str = "u"

    def __post_init__(self) -> None:
        _checks.real("p", self.p, 0, strict=True)
        _checks.choice("clock", self.clock, ("u", "t"))

    def lay(self, path: GaussianPath, high: float, low: float, steps: int) -> tuple[Tensor, Tensor]:
        """See `Grid.lay`."""
        shape = (torch.arange(steps, -1, -1, dtype=torch.float64) / steps) ** self.p  # (1 - k/N)^p, k/N exact for p = 1
        if self.clock == "u":
            u = low + (high - low) * shape
            return u, path.time(u)
        t_low, t_high = (_end_time(path, end) for end in (low, high))
        t = t_low + (t_high - t_low) * shape
        return path.clock(t), t

    def at(self, s: Tensor, u_from: float, u_to: float) -> tuple[Tensor, Tensor]:
        """u and |du/ds| at s in [0, 1], for the smooth map behind PowerGrid(p): s = 0 at u_from, 1 at u_to."""
        low, high = sorted((u_from, u_to))
        falling = s if u_from > u_to else 1 - s
        return low + (high - low) * (1 - falling) ** self.p, (high - low) * self.p * (1 - falling) ** (self.p - 1)


def check_grid(grid: object, steps: int | None) -> None:
    """A grid, or knots in u: a 1-D tensor with steps + 1 strictly monotone values in [0, 1]."""
    if isinstance(grid, Grid):
        return
    if not isinstance(grid, Tensor):
        raise TypeError(f"grid must be a PowerGrid or a tensor of u, and {grid!r} is {type(grid).__name__}.")
    gaps = torch.diff(grid.double()) if grid.ndim == 1 and grid.is_floating_point() else grid.new_zeros(0)
    monotone = len(gaps) > 0 and bool((gaps > 0).all() or (gaps < 0).all())
    if not monotone or not bool(((grid >= 0) & (grid <= 1)).all()):
        raise ValueError(
            f"A grid of u must be 1-D, floating and strictly monotone in [0, 1], and it is {grid.tolist()}."
        )
    if steps is not None and len(grid) != steps + 1:
        raise ValueError(f"A grid for {steps} steps needs {steps + 1} knots, and it has {len(grid)}.")


def steps_on(grid: Grid | Tensor | None, steps: int | None) -> int | None:
    """The number of steps: that of a tensor's knots, else what was asked for."""
    return len(grid) - 1 if isinstance(grid, Tensor) else steps


def span_of(grid: Grid | Tensor | None) -> tuple[float, float] | None:
    """(u_high, u_low) of a grid that carries its own ends, a chain's `Knots`; None for every other."""
    return (float(grid[0]), float(grid[-1])) if isinstance(grid, Knots) else None


def knots(grid: Grid | Tensor, path: GaussianPath, u_from: float, u_to: float, steps: int) -> tuple[Tensor, Tensor]:
    """(u, t) at the steps + 1 knots from u_from to u_to, float64 on the CPU; the ends are met exactly."""
    low, high = sorted((u_from, u_to))
    if isinstance(grid, Tensor):
        u = grid.detach().to("cpu", torch.float64).sort(descending=True).values
        near = 1e-12 if grid.dtype == torch.float64 else 1e-6
        if not (abs(float(u[0]) - high) <= near and abs(float(u[-1]) - low) <= near):
            raise ValueError(f"The grid runs from u = {float(u[0])} to {float(u[-1])}, the solve from {high} to {low}.")
        t = path.time(u)
    else:
        u, t = grid.lay(path, high, low, steps)
    u[0], u[-1] = high, low
    t[0], t[-1] = (_end_time(path, end) for end in (high, low))
    return (u, t) if u_from > u_to else (u.flip(0), t.flip(0))


def _end_time(path: GaussianPath, u: float) -> float:
    """path.time(u), but exactly t_data or t_noise at the path's own ends."""
    if u in path.ends:
        return (path.t_data, path.t_noise)[path.ends.index(u)]
    return float(path.time(torch.tensor(u, dtype=torch.float64)))
