"""Solvers side by side: the same latents, the same noise, and what every network call bought.

    error       (mean over the best 98 % of the samples of |x - x*|^2 / d)^(1/2)    x* the ODE's own end point
    distance    2 E|X - Y| - E|X - X'| - E|Y - Y'|                                  X the samples, Y the data

A few samples on the border of two modes end in one or the other by rounding alone, and would hide all others: hence the
98 %. A stochastic solver has no end point to come near; how far its samples are from data is its measure.

References:
    Energy statistics: A class of statistics based on distances, Szekely and Rizzo, 2013.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import check_model
from sdegen._checks import NonFiniteError
from sdegen.models.base import Cond, Model
from sdegen.sampling import Noise, solve
from sdegen.solvers import ODESolver, Solver

KEPT = 0.98
"""The share of the samples, best first, whose errors count."""


class Run(NamedTuple):
    """One solver on the latents.

    Attributes:
        name: the solver's, as the mapping has it.
        calls: network calls made.
        seconds: wall time of the solve, until the device had finished.
        error: RMS over the best 98 % of the samples and all dimensions, in units of the data; None for a stochastic
            solver, infinite for one whose state became NaN or infinite.
        distance: energy distance to the data, in units of the data; None without data.
    """

    name: str
    calls: int
    seconds: float
    error: float | None
    distance: float | None


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns; `str` or `print` shows it as a table.

    Attributes:
        rows: one `Run` for every solver and number of calls, in the order in which they were named.
    """

    rows: list[Run]

    def __str__(self) -> str:
        width = max(len("solver"), *(len(row.name) for row in self.rows))
        lines = [f"{'solver':{width}}{'calls':>8}{'seconds':>11}{'RMS error':>12}{'energy distance':>18}"]
        for name, calls, seconds, error, distance in self.rows:
            measured = f"{_shown(error, '.2e'):>12}{_shown(distance, '.4f'):>18}"
            lines.append(f"{name:{width}}{calls:8d}{seconds:11.4f}{measured}")
        return "\n".join(lines)


def _shown(value: float | None, digits: str) -> str:
    return "-" if value is None else f"{value:{digits}}"


def compare(
    model: Model,
    solvers: Mapping[str, Callable[[int], Solver]],
    *,
    x_T: Tensor,
    calls: Sequence[int] = (5, 10, 20, 50),
    noise: Noise = None,
    reference: Tensor | Solver | None = None,
    data: Tensor | None = None,
    cond: Cond = None,
) -> Comparison:
    """Run several solvers from the same latents at several numbers of network calls.

    Solvers of the ODE (an SDESolver, StochasticAdams or DDIM at eta = 0 is one) are measured by their error, all by the
    distance of their samples to data. One that comes back equal for two numbers of calls runs once.

    Args:
        model: a `ScoreModel`, or the `.model(path)` of an exact target.
        solvers: from a name to a function that maps a number of calls to a solver, such as
            `{"Adams": sdegen.Adams, "rk4": lambda n: sdegen.ODESolver("rk4", steps=n // 4)}`. A ValueError that it
            raises says that there is none for so few calls, and there will be no row.
        x_T: the latents, x at the noise end, (B, *event).
        calls: the numbers of calls.
        noise: standard normals (n, B, *event) with n at least the most calls, or a callable from k to them: every
            stochastic solver takes the k-th at its step k, not "srk" or adaptive ones, whose noise has another shape.
            By default every solver draws from one seed, itself drawn from torch's global generator.
        reference: the ODE's end points x*, shaped like x_T, or a solver for them; by default dopri8 at tolerance 1e-8,
            and 1e-6 below float64.
        data: samples to come near, (M, *event).
        cond: keyword arguments for the network, as in `sample`.

    Returns:
        the rows, which print as a table.

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, before the first network call.
        NonFiniteError: the reference became NaN or infinite.
    """
    check_model(model)
    x_T, built = latents(x_T, least=1), _built(solvers, calls)
    noise, data = _checked_noise(noise, x_T, max(calls)), _checked_data(data, x_T)
    fine = _checked_reference(reference, x_T)
    if fine is None and any(_follows_the_ode(solver) for _, _, solver in built):
        fine = fine_end(model, x_T, reference if isinstance(reference, Solver) else None, cond)
    seed = int(torch.randint(2**62, ())) if noise is None else None
    course = _Course(model, x_T, noise, seed, fine, data, cond)
    return Comparison([course.run(*entry) for entry in built])


@dataclass(frozen=True)
class _Course:
    """What is the same for every solver."""

    model: Model
    start: Tensor
    noise: Noise
    seed: int | None
    fine: Tensor | None
    data: Tensor | None
    cond: Cond

    def run(self, name: str, asked: int, solver: Solver) -> Run:
        """One solve, measured; a state that is lost on the way is infinitely far from everything."""
        noise = None if solver.solves_ode else self.noise
        generator = None if self.seed is None else torch.Generator(self.start.device).manual_seed(self.seed)
        began = time.perf_counter()
        try:
            solution = solve(self.model, self.start, solver, noise=noise, generator=generator, cond=self.cond)
        except NonFiniteError:
            x, made = torch.full_like(self.start, math.inf), asked
        else:
            x, made = solution.x, solution.calls
        x.flatten()[0].item()  # waits for the device
        seconds = time.perf_counter() - began
        error = rms_error(x, self.fine) if self.fine is not None and _follows_the_ode(solver) else None
        distance = energy_distance(x, self.data) if self.data is not None else None
        return Run(name, made, seconds, error, distance)


def fine_end(model: Model, x_T: Tensor, solver: Solver | None, cond: Cond) -> Tensor:
    """The ODE's end points from x_T by `solver`, or by dopri8 at a tolerance far below what few calls can reach."""
    if solver is None:
        solver = ODESolver("dopri8", rtol=1e-8 if x_T.dtype == torch.float64 else 1e-6)
    return solve(model, x_T, solver, cond=cond).x


def rms_error(x: Tensor, fine: Tensor, share: float = KEPT) -> float:
    """Over all dimensions and a share of the samples, best first, rounded down but at least one; (B, *event) both."""
    squares = (x - fine).square().flatten(1).mean(1)
    kept = max(1, int(share * len(squares)))
    return float(squares.nan_to_num(math.inf).sort().values[:kept].mean().sqrt())


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|: zero between equal laws alone, without bias, so at times below zero.

    Args:
        x: samples of X, (B, *event), at least two.
        y: samples of Y, (M, *event), at least two.

    Returns:
        the distance, in units of the data.

    Raises:
        TypeError: no floating tensors.
        ValueError: fewer than two samples, or events of two shapes.

    References:
        Energy statistics: A class of statistics based on distances, Szekely and Rizzo, 2013.
    """
    a, b = (_checks.batch(name, z, finite=False).flatten(1) for name, z in (("x", x), ("y", y)))
    if min(len(a), len(b)) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"The energy distance takes two samples or more of one shape, not {tuple(x.shape)} and {tuple(y.shape)}."
        )

    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.to(dtype), b.to(dtype)

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    distance = 2 * torch.cdist(a, b).mean() - within(a) - within(b)
    return float(distance.nan_to_num(math.inf))


def latents(x_T: object, least: int) -> Tensor:
    """x_T, a finite batch of at least `least` latents, in the precision that a solve has."""
    x = _checks.batch("x_T", x_T)
    if len(x) < least:
        raise ValueError(f"x_T must hold at least {least} latents, and it has shape {tuple(x.shape)}.")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _follows_the_ode(solver: Solver) -> bool:
    return solver.follows_ode


def _built(solvers: object, calls: object) -> list[tuple[str, int, Solver]]:
    """(name, calls, solver) of everything that will run."""
    if not isinstance(solvers, Mapping) or not all(isinstance(n, str) and callable(f) for n, f in solvers.items()):
        raise TypeError(f"solvers must map names to functions from a number of calls to a solver, not {solvers!r}.")
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise TypeError(f"calls must be a sequence of integers, and it is {calls!r}.")
    if not solvers or not calls:
        raise ValueError(f"There is nothing to compare in solvers = {solvers!r} and calls = {calls!r}.")
    for n in calls:
        _checks.whole("every number of calls", n)
    return [(name, *entry) for name, make in solvers.items() for entry in _built_by(name, make, calls)]


def _built_by(name: str, make: Callable[[int], Solver], calls: Sequence[int]) -> list[tuple[int, Solver]]:
    """(calls, solver) of one name, every solver once; none for the calls that its function has no solver for."""
    found: list[tuple[int, Solver]] = []
    refused: ValueError | None = None
    for n in calls:
        try:
            solver = make(n)
        except ValueError as error:
            refused = error
            continue
        if not isinstance(solver, Solver):
            raise TypeError(f"solvers[{name!r}]({n}) must return a solver, and it returned {solver!r}.")
        if not any(solver == other for _, other in found):
            found.append((n, solver))
    if not found:
        raise ValueError(f"solvers[{name!r}] has no solver for any of calls = {calls!r}: {refused}") from refused
    return found


def _checked_noise(noise: Noise, x: Tensor, most: int) -> Noise:
    if isinstance(noise, Tensor):
        if noise.ndim != x.ndim + 1 or noise.shape[1:] != x.shape or len(noise) < most:
            raise ValueError(
                f"noise must have shape (n, {', '.join(map(str, x.shape))}) with n at least {most}, the most calls, "
                f"and it has {tuple(noise.shape)}."
            )
        return _checks.batch("noise", noise, finite=noise.device.type == "cpu").__getitem__
    if noise is not None and not callable(noise):
        raise TypeError(f"noise must be a tensor of standard normals or a callable from k to them, not {noise!r}.")
    return noise


def _checked_data(data: object, x: Tensor) -> Tensor | None:
    if data is None:
        return None
    data = _checks.batch("data", data).to(x.device)
    if data.shape[1:] != x.shape[1:] or min(len(data), len(x)) < 2:
        raise ValueError(
            f"data must hold two samples or more shaped like the two latents or more of x_T, {tuple(x.shape)}, not "
            f"{tuple(data.shape)}."
        )
    return data


def _checked_reference(reference: object, x: Tensor) -> Tensor | None:
    """End points that were given; None where they are still to be solved for."""
    if isinstance(reference, Tensor):
        return _checks.noise_like(reference, x, "reference")
    if isinstance(reference, Solver) and not _follows_the_ode(reference):
        raise TypeError(f"reference must follow the ODE, without noise, and {reference!r} does not.")
    if reference is not None and not isinstance(reference, Solver):
        raise TypeError(f"reference must be the end points, a tensor, or a solver for them, not {reference!r}.")
    return None
