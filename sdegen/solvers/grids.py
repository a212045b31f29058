"""Grids: where on the clock a solver steps. A grid is a value; laid on a problem it gives the knots and a clock s(u).

    PowerGrid(p)             u = u_low + (u_high - u_low) s^p        s = 0 at the data end, 1 at the noise end
    PowerGrid(p, "t")        |t - t_data| likewise: PowerGrid(1, "t") is uniform in time, PowerGrid(2, "t") in sqrt(t)
    KarrasGrid(rho)          (u/(1-u))^(1/rho) linear in s, log(u/(1-u)) at rho = inf, and a last step to clean data
    StretchedGrid(p, gain)   ds/du proportional to u^-p A(u)^gain, A the factor by which a network's error enters dy/du
    a tensor                 the knots themselves

Knots are uniform in s, but where a grid says otherwise; towards noise the same knots are walked backwards. A solver
that interpolates between knots does so in s(u), in which the solution is smoother than in u.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv:2206.00364.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import summary
from sdegen.models.base import Model
from sdegen.paths.chain import Knots
from sdegen.paths.gaussian import GaussianPath

NODES = 20
"""Of a quadrature over a step."""
TABLE = 512
"""Pieces of the table behind a StretchedGrid's clock."""


class Stretch(NamedTuple):
    """A grid's clock s(u) between two ends, increasing, up to an affine map, and its inverse, on float64 tensors.

    Attributes:
        s: u to s.
        u: s to u.
    """

    s: Callable[[Tensor], Tensor]
    u: Callable[[Tensor], Tensor]


@cache
def quadrature() -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre on [0, 1], float64."""
    x, weights = np.polynomial.legendre.leggauss(NODES)
    with torch.inference_mode(False):  # they are kept for every later solve
        return torch.from_numpy(0.5 * (x + 1)), torch.from_numpy(0.5 * weights)


@dataclass(frozen=True, eq=False)
class Layout:
    """A grid on a problem, float64 on the CPU.

    Attributes:
        u: the steps + 1 knots.
        t: the path's time at the knots.
        clock: s(u), or None where the grid has none that is finite at both ends.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.CondOT())
        >>> layout = sdegen.PowerGrid(2).lay(model, 1.0, 0.0, 2)
        >>> layout.u, layout.t
        (tensor([1.0000, 0.2500, 0.0000], dtype=torch.float64), tensor([0.0000, 0.7500, 1.0000], dtype=torch.float64))
    """

    u: Tensor
    t: Tensor
    clock: Stretch | None = None

    __repr__ = summary

    @cached_property
    def s(self) -> Tensor:
        """The clock at the knots, after a ValueError if the grid has none."""
        if self.clock is None:
            raise ValueError("Adams needs a grid whose clock s(u) is finite at both ends, and this one has none.")
        return self.clock.s(self.u)

    @cached_property
    def moments(self) -> Tensor:
        """The integrals over u of xi^i, i = 0 ... 5, xi rising from 0 to 1 with s over every step, (N, 6).

        By parts they are i times the integral over xi of xi^(i-1) (u_{k+1} - u(xi)), which needs no slope of the clock.
        The nodes crowd at both ends, where u may be any power of s.
        """
        (x, weights), s, to_u = quadrature(), self.s, cast(Stretch, self.clock).u
        xi = x**3 * (10 - 15 * x + 6 * x**2)
        inside = to_u(torch.addcmul(s[:-1, None], torch.diff(s)[:, None], xi))
        rest = weights * 30 * (x * (1 - x)) ** 2 * (self.u[1:, None] - inside)
        powers = torch.linalg.vander(xi, N=5) * torch.arange(1, 6)
        return torch.cat([torch.diff(self.u)[:, None], rest @ powers], 1)


class Grid(ABC):
    """A value that lays knots between two clocks of a path: write your own by giving `lay`.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.CondOT())
        >>> sdegen.PowerGrid(1).lay(model, 1.0, 0.0, 4).u.tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    @abstractmethod
    def lay(self, model: Model, high: float, low: float, steps: int) -> Layout:
        """The knots between two clocks of the model's path.

        Args:
            model: with its path, and its `gain`.
            high: the upper clock, where the first knot lies.
            low: the lower clock, where the last one lies.
            steps: one less than the number of knots.

        Returns:
            the steps + 1 falling knots, their times, and the clock s(u) or None, in which `Adams` interpolates.
        """


@dataclass(frozen=True)
class PowerGrid(Grid):
    """A power of the step index: u_k = u_low + (u_high - u_low) (1 - k/N)^p.

    u is the straight clock sigma/(alpha + sigma), 0 at clean data and 1 at pure noise; the knots run from the path's
    noise end, k = 0, to its data end, k = N, or over the part that a verb is given by `u=(from, to)`.

    Args:
        p: 1 is uniform, a larger p crowds the knots towards the data; positive.
        clock: "u", the straight clock, or "t": the same formula for |t - t_data|, t the path's own time.

    Raises:
        TypeError: an argument of another type.
        ValueError: p is not positive, or the clock unknown.

    Examples:
        >>> model = sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT())
        >>> sdegen.solve(model, torch.zeros(1, 1), sdegen.Adams(4, grid=sdegen.PowerGrid(2))).u.tolist()
        [1.0, 0.5625, 0.25, 0.0625, 0.0]
    """

    p: float = 2.0
    clock: str = "u"

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.real("p", self.p, 0, strict=True)
        _checks.choice("clock", self.clock, ("u", "t"))

    def lay(self, model: Model, high: float, low: float, steps: int) -> Layout:
        """See `Grid.lay`."""
        path, shape = model.path, _falling(steps) ** self.p  # (1 - k/N)^p, k/N exact for p = 1
        if self.clock == "u":
            u = low + (high - low) * shape
            return Layout(u, path.time(u), _power(self.p, low, high - low, _same, _same))
        t_low, t_high = (_end_time(path, end) for end in (low, high))
        t = t_low + (t_high - t_low) * shape
        return Layout(path.clock(t), t, _power(self.p, t_low, t_high - t_low, path.time, path.clock))

    def at(self, s: Tensor, u_from: float, u_to: float) -> tuple[Tensor, Tensor]:
        """u and |du/ds| at s in [0, 1], for the smooth map behind PowerGrid(p): s = 0 at u_from, 1 at u_to."""
        low, high = sorted((u_from, u_to))
        falling = s if u_from > u_to else 1 - s
        return low + (high - low) * (1 - falling) ** self.p, (high - low) * self.p * (1 - falling) ** (self.p - 1)


@dataclass(frozen=True)
class KarrasGrid(Grid):
    """Uniform in a power of sigma/alpha = u/(1-u), and in its logarithm at rho = inf, with a last step to the data.

        (u/(1-u))^(1/rho) uniform from the noise end down to sigma_min^(1/rho), then the data end

    Args:
        rho: 7 in EDM; math.inf is uniform in log-SNR ("exponential sigmas").
        sigma_min: sigma/alpha at the last knot but one, where the data end lies below it.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument that is not positive; later, a problem from pure noise (u = 1), where sigma/alpha is
            infinite: start inside by u=(from, to); or one that starts below sigma_min.

    Examples:
        >>> model = sdegen.Gaussian([0.0], 1.0).model(sdegen.EDM(80.0))
        >>> u = sdegen.solve(model, torch.zeros(1, 1), sdegen.Heun(18, grid=sdegen.KarrasGrid(7, 0.002))).u
        >>> sigma = u / (1 - u)
        >>> [round(float(s), 3) for s in sigma[[0, 1, -2, -1]]]
        [80.0, 57.586, 0.002, 0.0]

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv:2206.00364.
    """

    rho: float = 7.0
    sigma_min: float = 0.002

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        if self.rho != math.inf:
            _checks.real("rho", self.rho, 0, strict=True)
        _checks.real("sigma_min", self.sigma_min, 0, strict=True)

    def lay(self, model: Model, high: float, low: float, steps: int) -> Layout:
        """See `Grid.lay`."""
        if high == 1:
            raise ValueError(
                f"{self!r} starts at u = 1, where sigma/alpha is infinite; start inside, such as by u=(0.99, {low:g})."
            )
        least = self.sigma_min / (1 + self.sigma_min)
        if low < high <= least:
            raise ValueError(
                f"{self!r} has its last knot but one at u = {least:g}, above the start at {high:g}: lower sigma_min."
            )
        extra = int(low < least)  # a step from sigma_min to the data end
        ends = torch.tensor([high, least if extra else low], dtype=torch.float64)
        top, bottom = self._scale(ends)
        u = self._clock(bottom + (top - bottom) * _falling(max(steps - extra, 1)))[: steps + 1 - extra]
        u = torch.cat([u, u.new_tensor([low])]) if extra else u
        finite = self.rho != math.inf or low > 0
        return Layout(u, model.path.time(u.clamp(low, high)), Stretch(self._scale, self._clock) if finite else None)

    def _scale(self, u: Tensor) -> Tensor:
        """(sigma/alpha)^(1/rho), or its logarithm."""
        ratio = u / (1 - u)
        return ratio.log() if self.rho == math.inf else ratio ** (1 / self.rho)

    def _clock(self, s: Tensor) -> Tensor:
        """The inverse of `_scale`."""
        ratio = s.exp() if self.rho == math.inf else s**self.rho
        return ratio / (1 + ratio)


@dataclass(frozen=True)
class StretchedGrid(Grid):
    """Knots uniform in a clock stretched where the solution bends, but for half steps at both ends.

        ds/du proportional to u^-p A(u)^gain        A = `Model.gain`, below 1/2 that at 1/2, or at the upper end

    A network that predicts eps has A = 1/(1-u): its errors are multiplied by 153 at the noise end of VP, and a step
    there must be short. Exact models and the velocity of `CondOT` have a constant A, and s is u^(1-p).

    Args:
        p: in [0, 1): how far the knots crowd towards the data.
        gain: how far they crowd where a network's errors are multiplied; not negative.

    Raises:
        TypeError: an argument of another type.
        ValueError: p outside [0, 1), or a negative gain.

    Examples:
        >>> model = sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT())
        >>> u = sdegen.StretchedGrid().lay(model, 1.0, 0.0, 10).u
        >>> steps = -u.diff()
        >>> bool(steps[0] < steps[1] and steps[-1] < steps[-2])  # half steps at both ends
        True
    """

    p: float = 0.3
    gain: float = 0.6

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.real("p", self.p, 0, 1)
        if self.p == 1:
            raise ValueError("p must lie in [0, 1), and it is 1: clean data would be infinitely far away.")
        _checks.real("gain", self.gain, 0)

    def lay(self, model: Model, high: float, low: float, steps: int) -> Layout:
        """See `Grid.lay`."""
        clock = self.clock(model, high, low)
        k = torch.arange(steps + 1, dtype=torch.float64)
        s = 1 - (k - 0.5).clamp(0, steps - 1) / max(steps - 1, 1) if steps > 1 else 1 - k  # half steps at both ends
        u = clock.u(s)
        return Layout(u, model.path.time(u.clamp(low, high)), clock)

    def clock(self, model: Model, high: float, low: float) -> Stretch:
        """s(u), from a table of ds/dq = A^gain over q = u^(1-p), linear between its knots and made when first asked."""
        power = 1 - self.p

        @cache
        def table() -> tuple[Tensor, ...]:
            angle = torch.linspace(0, math.pi / 2, TABLE + 1, dtype=torch.float64)
            u = low + (high - low) * torch.sin(angle) ** 2  # crowded at both ends
            A = model.gain(u.clamp(max(low, min(0.5, high)), high)) ** self.gain
            A = A.nan_to_num(posinf=float(A[A.isfinite()].max()))  # a singular end is refused by the query there
            q = u**power
            s = torch.cat([q.new_zeros(1), torch.cumsum(0.5 * (A[1:] + A[:-1]) * torch.diff(q), 0)])
            bend = (torch.diff(A) / torch.diff(q)).nan_to_num(0.0, 0.0, 0.0)  # knots of tiny intervals may coincide
            return u, q, A / s[-1], bend / s[-1], s / s[-1]

        def to_s(at: Tensor) -> Tensor:
            u, q, A, bend, s = table()
            i = (torch.searchsorted(u, at.contiguous(), right=True) - 1).clamp(0, TABLE - 1)
            x = at.clamp(low, high) ** power - q[i]
            return s[i] + x * (A[i] + 0.5 * bend[i] * x)

        def to_u(at: Tensor) -> Tensor:
            _, q, A, bend, s = table()
            at = at.clamp(0, 1).contiguous()
            i = (torch.searchsorted(s, at, right=True) - 1).clamp(0, TABLE - 1)
            rest = at - s[i]
            x = 2 * rest / (A[i] + torch.sqrt(A[i] ** 2 + 2 * bend[i] * rest))
            return ((q[i] + x) ** (1 / power)).clamp(low, high)

        return Stretch(to_s, to_u)


def _falling(steps: int) -> Tensor:
    """1 - k/N at k = 0 ... N."""
    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps


def _same(u: Tensor) -> Tensor:
    """The straight clock as its own time."""
    return u


def _power(
    p: float, start: float, length: float, time: Callable[[Tensor], Tensor], clock: Callable[[Tensor], Tensor]
) -> Stretch:
    """s with time(u) = start + length s^p."""
    return Stretch(
        lambda u: ((time(u) - start) / length).clamp(min=0) ** (1 / p), lambda s: clock(start + length * s**p)
    )


def check_grid(grid: object, steps: int | None) -> None:
    """A grid, or knots in u: a 1-D tensor with steps + 1 strictly monotone values in [0, 1]."""
    if isinstance(grid, Grid):
        return
    if not isinstance(grid, Tensor):
        hint = "; torch.as_tensor(grid) makes a tensor of an array" if isinstance(grid, np.ndarray) else ""
        raise TypeError(
            f"grid must be a Grid, such as PowerGrid(2), or a tensor of u, and {grid!r} is {type(grid).__name__}{hint}."
        )
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


def lay(grid: Grid | Tensor, model: Model, u_from: float, u_to: float, steps: int) -> Layout:
    """`grid` from u_from to u_to; the ends are met exactly. A tensor's knots have the clock of StretchedGrid()."""
    path, (low, high) = model.path, sorted((u_from, u_to))
    if isinstance(grid, Tensor):
        u = grid.detach().to("cpu", torch.float64).sort(descending=True).values
        near = 1e-12 if grid.dtype == torch.float64 else 1e-6
        if not (abs(float(u[0]) - high) <= near and abs(float(u[-1]) - low) <= near):
            raise ValueError(f"The grid runs from u = {float(u[0])} to {float(u[-1])}, the solve from {high} to {low}.")
        laid = Layout(u, path.time(u), StretchedGrid().clock(model, high, low))
    else:
        laid = grid.lay(model, high, low, steps)
    laid = _checked(laid, grid, steps, high, low)
    u, t, clock = laid.u, laid.t, laid.clock
    u[0], u[-1] = high, low
    t[0], t[-1] = (_end_time(path, end) for end in (high, low))
    return Layout(u, t, clock) if u_from > u_to else Layout(u.flip(0), t.flip(0), clock)


def _checked(laid: object, grid: object, steps: int, high: float, low: float) -> Layout:
    """A copy of what a grid laid, after a ValueError unless it is steps + 1 falling knots between the ends."""
    if not isinstance(laid, Layout) or not all(isinstance(n, Tensor) and n.ndim == 1 for n in (laid.u, laid.t)):
        raise TypeError(f"lay of {grid!r} must return a Layout(u, t, clock) of 1-D tensors, and it gave {laid!r}.")
    u, t = (n.detach().to("cpu", torch.float64).clone() for n in (laid.u, laid.t))
    meets = len(u) == len(t) == steps + 1 and max(abs(float(u[0]) - high), abs(float(u[-1]) - low)) <= 1e-6
    if not (meets and bool((torch.diff(u) < 0).all())):
        raise ValueError(
            f"{grid!r} must lay {steps + 1} knots, each below the one before, from u = {high} to {low}, each with its "
            f"time, and it laid u = {u.tolist()}, t = {t.tolist()}."
        )
    return Layout(u, t, laid.clock)


def _end_time(path: GaussianPath, u: float) -> float:
    """path.time(u), but exactly t_data or t_noise at the path's own ends."""
    if u in path.ends:
        return (path.t_data, path.t_noise)[path.ends.index(u)]
    return float(path.time(torch.tensor(u, dtype=torch.float64)))
