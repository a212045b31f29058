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
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import batch_parts, check_model, interval, straight
from sdegen._checks import NonFiniteError
from sdegen._solving import Noise
from sdegen.models.base import Cond, Model
from sdegen.sampling import solve
from sdegen.solvers import ODESolver, Problem, Solver
from sdegen.solvers.base import bar

KEPT = 0.98
"""The share of the samples, best first, whose errors count."""

PAIRS_AT_ONCE = 2**24
"""Distances of `energy_distance` that are held at a time."""


class Run(NamedTuple):
    """One solver on the latents.

    Attributes:
        name: the solver's, as the mapping has it.
        calls: network calls made; of a state that was lost, the calls asked for.
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
        rows: one for every solver and number of calls, in the order in which they were named, with its `name`, its
            network `calls`, its `seconds`, its `error` against the ODE's end points, None for a stochastic solver, and
            the energy `distance` of its samples to the data, None without data. Both are infinite for a state that
            was lost.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> comparison = sdegen.compare(model, {"Adams": sdegen.Adams}, x_T=torch.randn(64, 1), calls=[5, 10])
        >>> [(row.name, row.calls) for row in comparison.rows]
        [('Adams', 5), ('Adams', 10)]
    """

    rows: list[Run]

    def __str__(self) -> str:
        table = [("solver", "calls", "seconds", "RMS error", "energy distance")]
        for name, calls, seconds, error, distance in self.rows:
            table.append((name, str(calls), f"{seconds:.4f}", _cell(error), _cell(distance)))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in table]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *line[1:]]) for row, line in zip(table, lines, strict=True)
        )


def _cell(value: float | None) -> str:
    """A number of the table with three digits; a dash where there is none."""
    return "-" if value is None else f"{value:.2e}"


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
    batch_size: int | None = None,
    progress: bool = False,
) -> Comparison:
    """Run several solvers from the same latents at several numbers of network calls.

    Solvers that add no noise (`Solver.follows_ode`) are measured by their error, all by the distance of their samples
    to data. One that comes back equal for two numbers of calls runs once. What a solver refuses before its first
    network call, such as this path, is raised before any solver runs.

    Args:
        model: a `ScoreModel`, or the `.model(path)` of an exact target.
        solvers: from a name to a function that maps a number of calls to a solver, such as
            `{"Adams": sdegen.Adams, "rk4": lambda n: sdegen.ODESolver("rk4", steps=n // 4)}`. A ValueError that it
            raises says that there is none for so few calls, and there will be no row.
        x_T: the latents, x at the noise end, (B, *event).
        calls: the numbers of calls.
        noise: standard normals (n, B, *event) with n at least the most calls, or a callable from k to them: every
            stochastic solver takes the k-th at its move k from knot to knot, of which Churn and Langevin may make more
            than network calls; not "srk" or adaptive ones, whose noise has another shape. By default every solver draws
            from one seed, itself drawn from torch's global generator.
        reference: the ODE's end points x*, shaped like x_T, or a solver without noise for them; by default dopri8 at
            tolerance 1e-8, and 1e-6 below float64.
        data: samples to come near, (M, *event).
        cond: keyword arguments for the network, as in `sample`.
        batch_size: samples in one network call, as in `solve`, all of them by default. Without `noise` the parts draw
            theirs in turn. `calls` then are those of one part, on average, `seconds` those of all.
        progress: show a bar, a step for every row (needs tqdm).

    Returns:
        the rows, which print as a table.

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, a solver that refuses this problem or whose grid carries its own
            start, before the first network call; what a solver refuses later, when its turn comes.
        NonFiniteError: the reference became NaN or infinite.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> solvers = {"Adams": sdegen.Adams, "DDIM": sdegen.DDIM}
        >>> rows = sdegen.compare(model, solvers, x_T=torch.randn(64, 1), calls=[20]).rows
        >>> rows[0].error < 0.1 * rows[1].error
        True
    """
    check_model(model)
    x_T, entries = latents(x_T, least=1), _entries(solvers, calls)
    normals, data = _checked_noise(noise, x_T, max(calls)), _checked_data(data, x_T)
    fine = _checked_reference(reference, x_T)
    for entry in entries:
        _rehearse(entry, model, x_T, normals, len(noise) if isinstance(noise, Tensor) else None)
    if fine is None and any(entry.solver.follows_ode for entry in entries):
        fine = fine_end(model, x_T, reference if isinstance(reference, Solver) else None, cond, batch_size)
    seed = int(torch.randint(2**62, ())) if noise is None else None
    course, rows = _Course(model, x_T, normals, seed, fine, data, cond, batch_size), []
    with bar(len(entries), progress) as row_done:
        for entry in entries:
            rows.append(course.run(entry))
            row_done()
    return Comparison(rows)


class _Entry(NamedTuple):
    """One solver and the number of calls it was made for."""

    name: str
    calls: int
    solver: Solver

    def __str__(self) -> str:
        return f"solvers[{self.name!r}]({self.calls})"


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
    batch_size: int | None

    def run(self, entry: _Entry) -> Run:
        """One solve, measured; a state that is lost on the way is infinitely far from everything."""
        name, calls, solver = entry
        noise = None if solver.solves_ode else self.noise
        generator = None if self.seed is None else torch.Generator(self.start.device).manual_seed(self.seed)
        began = time.perf_counter()
        try:
            solution = solve(
                self.model,
                self.start,
                solver,
                noise=noise,
                generator=generator,
                cond=self.cond,
                batch_size=self.batch_size,
            )
        except NonFiniteError:
            x = torch.full_like(self.start, math.inf)
        else:
            x, parts = solution.x, len(list(batch_parts(self.start, self.batch_size)))
            calls = -(-solution.calls // parts)
        x.flatten()[0].item()  # waits for the device
        seconds = time.perf_counter() - began
        error = rms_error(x, self.fine) if self.fine is not None and solver.follows_ode else None
        distance = energy_distance(x, self.data) if self.data is not None else None
        return Run(name, calls, seconds, error, distance)


def fine_end(model: Model, x_T: Tensor, solver: Solver | None, cond: Cond, batch_size: int | None) -> Tensor:
    """The ODE's end points from x_T by `solver`, or by dopri8 at a tolerance far below what few calls can reach."""
    if solver is None:
        solver = ODESolver("dopri8", rtol=1e-8 if x_T.dtype == torch.float64 else 1e-6)
    return solve(model, x_T, solver, cond=cond, batch_size=batch_size).x


def rms_error(x: Tensor, fine: Tensor, share: float = KEPT) -> float:
    """Over all dimensions and a share of the samples, best first, rounded down but at least one; (B, *event) both."""
    squares = (x - fine).square().flatten(1).mean(1)
    kept = max(1, int(share * len(squares)))
    return float(squares.nan_to_num(math.inf, math.inf).sort().values[:kept].mean().sqrt())


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

    Examples:
        >>> x, y = torch.randn(1000, 1), torch.randn(1000, 1)
        >>> sdegen.energy_distance(x, y) < 0.05 < sdegen.energy_distance(x, y + 1)
        True

    References:
        Energy statistics: A class of statistics based on distances, Szekely and Rizzo, 2013.
    """
    a, b = (_checks.batch(name, z, finite=False).flatten(1) for name, z in (("x", x), ("y", y)))
    if min(len(a), len(b)) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"The energy distance takes two samples or more of one shape, not {tuple(x.shape)} and {tuple(y.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.detach().to(dtype), b.detach().to(dtype)
    across = _sum_of_distances(a, b) / (len(a) * len(b))
    within = sum(_sum_of_distances(z, z) / (len(z) * (len(z) - 1)) for z in (a, b))
    distance = float(2 * across - within)
    return distance if math.isfinite(distance) else math.inf


def _sum_of_distances(a: Tensor, b: Tensor) -> Tensor:
    """The sum of |a_i - b_j| over all pairs of rows, in float64, some rows at a time and without matrix products."""
    sums = [
        torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist").sum(dtype=torch.float64)
        for rows in a.split(max(1, PAIRS_AT_ONCE // len(b)))
    ]
    return torch.stack(sums).sum()


def latents(x_T: object, least: int) -> Tensor:
    """x_T, a finite batch of at least `least` latents, in the precision that a solve has."""
    x = _checks.batch("x_T", x_T)
    if len(x) < least:
        number = "one latent" if least == 1 else f"{least} latents"
        raise ValueError(f"x_T must hold at least {number}, and it has shape {tuple(x.shape)}.")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _entries(solvers: object, calls: object) -> list[_Entry]:
    """Everything that will run."""
    if not isinstance(solvers, Mapping) or not all(isinstance(n, str) and callable(f) for n, f in solvers.items()):
        raise TypeError(f"solvers must map names to functions from a number of calls to a solver, not {solvers!r}.")
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise TypeError(f"calls must be a sequence of integers, and it is {calls!r}.")
    if not solvers or not calls:
        raise ValueError(f"There is nothing to compare in solvers = {solvers!r} and calls = {calls!r}.")
    wanted = tuple(_checks.whole("every number of calls", n) for n in calls)
    return [entry for name, make in solvers.items() for entry in _entries_of(name, make, wanted)]


def _entries_of(name: str, make: Callable[[int], Solver], calls: Sequence[int]) -> list[_Entry]:
    """Those of one name, every solver once; none for the calls that its function has no solver for."""
    entries: list[_Entry] = []
    refusal: ValueError | None = None
    for n in calls:
        try:
            entry = _Entry(name, n, make(n))
        except ValueError as error:
            refusal = error
            continue
        if not isinstance(entry.solver, Solver):
            raise TypeError(f"{entry} must return a solver, and it returned {entry.solver!r}.")
        if entry.solver.span is not None:
            raise ValueError(f"{entry} has a grid that starts at u = {entry.solver.span[0]:g}, not where x_T lies.")
        if not any(entry.solver == other.solver for other in entries):
            entries.append(entry)
    if not entries:
        raise ValueError(f"solvers[{name!r}] has no solver for any of calls = {calls!r}: {refusal}") from refusal
    return entries


class _Begun(Exception):  # noqa: N818  # no error
    """A solver under rehearsal has made its plans and would call the network."""


@dataclass
class _Rehearsal(Problem):
    """A problem whose loop does not begin: every solver asks for its bar when its plans are made."""

    total: int | None = None

    def bar(self, total: int | None) -> NoReturn:
        """See `Problem.bar`."""
        self.total = total
        raise _Begun


def _rehearse(entry: _Entry, model: Model, x: Tensor, noise: Noise, number: int | None) -> None:
    """What a solver refuses before its first network call, or a ValueError if it takes more normals than `number`."""

    def begin(*asked: object) -> NoReturn:
        raise _Begun

    silent = copy(model)  # a solver of the user's may ask without a bar
    vars(silent).update(estimate=begin, estimate_with_variance=begin)
    with torch.inference_mode(False), torch.no_grad():
        ends = interval(model, "data", None)
        problem = _Rehearsal(silent, straight(model, x, ends[0]), *ends, generator=torch.Generator(x.device))
        problem.noise = None if entry.solver.solves_ode else noise
        try:
            with suppress(_Begun, NonFiniteError):
                entry.solver.run(problem)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{entry} cannot solve this problem: {error}") from error
    if number is not None and not entry.solver.follows_ode and (problem.total or 0) > number:
        raise ValueError(
            f"{entry} takes {problem.total} normals, more than noise has, {number}; give a callable from k to them."
        )


def _checked_noise(noise: Noise, x: Tensor, most: int) -> Noise:
    """A callable from k to the normals of move k, or None where every solver draws its own."""
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
    """Samples shaped like x, on its device, or None."""
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
    if isinstance(reference, Solver) and not reference.follows_ode:
        raise TypeError(f"reference must follow the ODE, without noise, and {reference!r} does not.")
    if isinstance(reference, Solver) and reference.span is not None:
        raise ValueError(f"reference has a grid that starts at u = {reference.span[0]:g}, not where x_T lies.")
    if reference is not None and not isinstance(reference, Solver):
        raise TypeError(f"reference must be the end points, a tensor, or a solver for them, not {reference!r}.")
    return None
