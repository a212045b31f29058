"""Re-noising: a solver whose state goes up the clock again, by exact noise, and down by the solver.

From the clock u up to w, y_w is drawn from the path's own transition, so that a state with the law of the path at u
gets that at w, whatever the data:

    y_w = q y_u + sqrt(w^2 - q^2 u^2) z,     q = (1-w)/(1-u)          sigma^2/alpha^2 grows by what z adds

What the solver did wrong on its way to u, the noise makes good. Three of the field's methods are this one move, made at
other knots, with rho = sigma/alpha = u/(1-u):

    Churn       before a step, up by a factor 1 + gamma in rho; the step starts there
    Langevin    after a step, up by a factor sqrt(1 + 4 snr^2) in rho, and one step back to the knot, several times
    Restart     at one knot, up to another, and down again by all the steps between, several times

Langevin's corrector, x + delta score + sqrt(2 delta) z, is the second to first order in delta = 2 (snr sigma)^2: the
noise adds 2 delta to the variance, and the step back follows the score for half of it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.solvers.base import Problem, Result, Solver
from sdegen.solvers.grids import Layout
from sdegen.solvers.loop import march
from sdegen.solvers.scheme import Move, Row, Scheme, calls_of, stepping, times_at


@dataclass(frozen=True, eq=False)
class Renoised(Solver):
    """A solver on a clock that goes down and up: write your own by giving `legs`.

    Every leg is a solve of its own: a multistep scheme has no memory at its first step. `noise=` holds the normals of
    every move, (n, B, *event) for the n + 1 clocks of `Solution.u`: a deterministic solver's moves do not use theirs.

    Args:
        solver: what goes down: a `Multistep` or `OneStep`.
        noise_scale: the noise is multiplied by it; 1 is exact.

    Raises:
        TypeError: an option of another type.
        ValueError: options that are wrong or do not fit together.

    Examples:
        >>> class Twice(sdegen.Renoised):
        ...     def legs(self, knots, top):
        ...         return [knots[:-1], knots[-4:]]  # near the data up once, and down again
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> sdegen.solve(model, torch.randn(4, 1), Twice(sdegen.DPMSolver(10))).calls
        12
    """

    solver: Scheme
    noise_scale: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        if not isinstance(self.solver, Scheme):
            raise TypeError(
                f"{type(self).__name__} goes down by a Multistep or OneStep solver, such as Heun or DPMSolver, and "
                f"{self.solver!r} is {type(self.solver).__name__}."
            )
        _checks.real("noise_scale", self.noise_scale, 0)

    @property
    def span(self) -> tuple[float, float] | None:
        """See `Solver.span`."""
        return self.solver.span

    @abstractmethod
    def legs(self, knots: Sequence[float], top: float) -> Sequence[Sequence[float]]:
        """The ways down, each from at or above the end of the one before.

        Args:
            knots: the clocks at which the solver steps, falling.
            top: the highest clock that the model knows; no leg may start above it.

        Returns:
            for every leg the clocks at which the solver steps; the first starts at or above knots[0], the last ends at
            knots[-1].
        """

    def run(self, problem: Problem) -> Result:
        """Carry the state along the legs: used by `sdegen.solve`."""
        if problem.u_to > problem.u_from:
            raise ValueError(f"{type(self).__name__} runs from noise to data; use Adams or an ODESolver towards noise.")
        laid, model, scheme = self.solver.laid(problem), problem.model, self.solver
        legs = self._legs(laid.u.tolist(), min(model.path.ends[1], model.clocks[1]))
        time = times_at(model.path, laid, [u for leg in legs for u in leg])
        clocks, moves = [float(laid.u[0])], list[Move]()
        for leg in legs:
            if leg[0] > clocks[-1]:
                model.needs_score(type(self).__name__)
                moves.append(Move([], [self._up(clocks[-1], leg[0])]))
                clocks.append(leg[0])
            clocks += leg[1:]
            moves += scheme.moves(Layout(*_knots(leg, time), laid.clock))
        u, t = _knots(clocks, time)
        result = march(problem, u, t, stepping(scheme, problem, u, t, moves), memory=())
        result.calls = calls_of(moves)
        return result

    def _legs(self, knots: Sequence[float], top: float) -> Sequence[Sequence[float]]:
        """`legs`, after a ValueError unless they lead from the first knot to the last, each going down."""
        legs, end, name = self.legs(knots, top), knots[0], type(self).__name__
        for leg in legs:
            if not (len(leg) > 1 and end <= leg[0] <= max(top, knots[0]) and all(u > v for u, v in pairwise(leg))):
                raise ValueError(f"A leg of {name} must go down from u = {end} or above, at most {top}: not {leg}.")
            end = leg[-1]
        if end != knots[-1]:
            raise ValueError(f"The last leg of {name} must end at u = {knots[-1]}, and it ends at {end}.")
        return legs

    def _up(self, u: float, w: float) -> Row:
        """From the clock u up to w, given the state at u."""
        keep = (1 - w) / (1 - u)
        return Row(keep, (), self.noise_scale * math.sqrt((w - keep * u) * (w + keep * u)))


def _knots(clocks: Sequence[float], time: Mapping[float, float]) -> tuple[Tensor, Tensor]:
    """(u, t) in float64."""
    return torch.tensor(clocks, dtype=torch.float64), torch.tensor([time[u] for u in clocks], dtype=torch.float64)


def _raised(u: float, factor: float, top: float) -> float:
    """The clock where rho = u/(1-u) is `factor` times what it is at u, but not above `top`."""
    return min(factor * u / (1 - u + factor * u), top)


@dataclass(frozen=True, eq=False)
class Churn(Renoised):
    """Before each step up by a factor 1 + gamma in rho = sigma/alpha, then the step from there: EDM's churn.

        gamma = min(churn / N, sqrt(2) - 1)   where rho lies in [sigma_min, sigma_max], else 0;   N steps

    Around `Heun`, it is EDM's stochastic sampler, with S_churn = churn, S_tmin = sigma_min, S_tmax = sigma_max and
    S_noise = noise_scale. Every step is the solver's first: take a one-step scheme. No state goes above the path's own
    noise end.

    Args:
        solver: what steps: a `OneStep` such as `Heun`, or a `Multistep` of order 1.
        churn: how much noise in all; 0 for none. 40 in EDM on ImageNet, with sigma_min = 0.05, sigma_max =
            50, noise_scale = 1.003.
        sigma_min: no noise where sigma/alpha is below it.
        sigma_max: no noise where it is above.
        noise_scale: the noise is multiplied by it; 1 is exact.

    Raises:
        TypeError: an option of another type.
        ValueError: an option that is negative, or sigma_min above sigma_max.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> x = sdegen.sample(model, (20_000, 1), sdegen.Churn(sdegen.Heun(40), 10.0))
        >>> f"{x.mean():.1f} {x.std():.1f}"
        '1.0 0.5'

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv:2206.00364.
    """

    churn: float = 40.0
    sigma_min: float = field(default=0.0, kw_only=True)
    sigma_max: float = field(default=math.inf, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.real("churn", self.churn, 0)
        _checks.real("sigma_min", self.sigma_min, 0)
        if self.sigma_max != math.inf:
            _checks.real("sigma_max", self.sigma_max, self.sigma_min)

    def legs(self, knots: Sequence[float], top: float) -> list[list[float]]:
        """See `Renoised.legs`."""
        factor = 1 + min(self.churn / (len(knots) - 1), math.sqrt(2) - 1)
        churned = [u < 1 and self.sigma_min <= u / (1 - u) <= self.sigma_max for u in knots[:-1]]
        starts = [_raised(u, factor, top) if more else u for u, more in zip(knots[:-1], churned, strict=True)]
        return [[max(start, u), v] for start, (u, v) in zip(starts, pairwise(knots), strict=True)]


@dataclass(frozen=True, eq=False)
class Langevin(Renoised):
    """After each step a Langevin corrector: up by noise, and one step of the solver back to the knot, several times.

        rho up to rho sqrt(1 + 4 snr^2)          that is Langevin's step delta = 2 (snr sigma)^2, see the module's page

    Song et al. take delta from the ratio of the norms of noise and score, delta = 2 (snr |z|/|score|)^2, averaged over
    the batch. Here both norms are the expected ones, |z|/|score| = sigma: a sample does not depend on its batch-mates,
    and the law of the path is kept whatever snr is, to the error of the step back. (Each sample's own norms would spoil
    it: a step that depends on the state has another law at rest.) Every step is the solver's first, and none is
    corrected at clean data: take a one-step scheme, or DPMSolver(steps, 1) for one call a correction.

    Args:
        solver: what steps and corrects: a `OneStep` such as `Heun`, or a `Multistep` of order 1.
        snr: the signal-to-noise ratio of a correction, positive.
        times: corrections after each step; 0 for none.
        noise_scale: the noise is multiplied by it; 1 is exact.

    Raises:
        TypeError: an option of another type.
        ValueError: an option out of its range.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> solver = sdegen.Langevin(sdegen.DPMSolver(20, 1), snr=0.16)
        >>> sdegen.solve(model, torch.randn(4, 1), solver).calls  # one more for each knot but the last
        39

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
    """

    snr: float = 0.16
    times: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.real("snr", self.snr, 0, strict=True)
        _checks.whole("times", self.times, least=0)

    def legs(self, knots: Sequence[float], top: float) -> list[list[float]]:
        """See `Renoised.legs`."""
        factor, legs = math.sqrt(1 + 4 * self.snr**2), list[list[float]]()
        for u, v in pairwise(knots):
            legs += [[u, v], *([[_raised(v, factor, top), v]] * (self.times if v > 0 else 0))]
        return legs if self.times else [list(knots)]


@dataclass(frozen=True, eq=False)
class Restart(Renoised):
    """At one knot up by noise, and down again by the solver's steps between, several times.

    Args:
        solver: what steps: any `Multistep` or `OneStep`.
        low: the clock u at which it restarts: the solver's knot nearest to it.
        high: the clock u up to which noise is added, between low and 1; `Solution.u` tells both.
        times: how often; 0 is the solver itself.
        noise_scale: the noise is multiplied by it; 1 is exact.

    Raises:
        TypeError: an option of another type.
        ValueError: low and high that are no interval; later, one that does not lie inside the solve.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> u = sdegen.solve(model, torch.randn(4, 1), sdegen.Restart(sdegen.DPMSolver(20), times=2)).u
        >>> int((u.diff() > 0).sum())  # the clock goes up twice
        2

    References:
        Restart Sampling for Improving Generative Processes, Xu et al., 2023, arXiv:2306.14878.
    """

    low: float = 0.1
    high: float = 0.5
    times: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        low = _checks.real("low", self.low, 0, 1, strict=True)
        _checks.real("high", self.high, low, 1, strict=True)
        _checks.whole("times", self.times, least=0)

    def legs(self, knots: Sequence[float], top: float) -> list[list[float]]:
        """See `Renoised.legs`."""
        turn = min(range(len(knots)), key=lambda k: abs(knots[k] - self.low))
        if not (knots[-1] <= self.low and knots[turn] < self.high <= min(knots[0], top)):
            raise ValueError(
                f"The restart from u = {self.low} up to {self.high} must lie inside the solve from u = {knots[0]} to "
                f"{knots[-1]}, with a knot near its lower end, and the nearest is {knots[turn]}."
            )
        if not self.times:
            return [list(knots)]
        again = [self.high, *(u for u in knots[: turn + 1] if u < self.high)]
        rest = [list(knots[turn:])] if turn < len(knots) - 1 else []
        return [list(knots[: turn + 1])] * (turn > 0) + [again] * self.times + rest
