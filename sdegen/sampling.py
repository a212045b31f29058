"""The verbs that move samples along a path: sample, encode, decode, and solve, which says how it went."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import check_model, interval, solving, state, straight, warn_of_tiny_alpha
from sdegen._shapes import Generators, summary
from sdegen._solving import Noise, check_gradients, check_parts, checked_noise, dtype_and_device, prior_draws
from sdegen.callbacks import Callback, Told, check_callback
from sdegen.models.base import Cond, Model
from sdegen.solvers import ODESolver
from sdegen.solvers.base import Problem, Result, Solver, joined

LATENT_SOLVER = ODESolver("dopri8", rtol=1e-6)
"""The default of encode and decode."""

SIGNAL_LEFT = 0.05
"""Up to this alpha/sigma, N(0, sigma^2) passes for the law of x_t of data of unit scale."""


@dataclass(frozen=True)
class Solution:
    """What `solve` returns, for n accepted steps on a batch of B samples.

    Of a batch that was solved in parts, `calls`, `accepted` and `rejected` are sums over the parts, and where these
    chose steps of their own, `t` and `u` hold the two ends.

    Attributes:
        x: the end point, (B, *event).
        trajectory: every step's state, (n + 1, B, *event), in the network's units, or None unless asked for.
        t: the n + 1 knots in the path's time, float64 on the CPU.
        u: the same on the straight clock.
        calls: network calls.
        accepted: steps taken.
        rejected: steps tried in vain.
        error: (B,), for an adaptive ODE solver: the sum over its accepted steps of the local error estimate of each
            sample, in units of the tolerance atol + rtol |y|; None otherwise.
        y: the end point in straight coordinates, x / (alpha + sigma), in the precision of the solve.
        sample_calls: (B,) integers, with `ODESolver(steps_for="sample")`: the network calls that each sample took part
            in; None otherwise. `calls` then counts evaluations of a shrinking batch, `accepted` and `rejected` are
            sums over the samples, `t` and `u` hold the two ends.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.CondOT())
        >>> solution = sdegen.solve(model, torch.randn(64, 1), sdegen.Adams(4, grid=sdegen.PowerGrid(1)))
        >>> solution.u.tolist(), solution.calls
        ([1.0, 0.75, 0.5, 0.25, 0.0], 4)
    """

    x: Tensor
    trajectory: Tensor | None
    t: Tensor
    u: Tensor
    calls: int
    accepted: int
    rejected: int
    error: Tensor | None
    y: Tensor
    sample_calls: Tensor | None = None

    __repr__ = summary


def sample(
    model: Model,
    shape: tuple[int, ...],
    solver: Solver,
    *,
    generator: Generators = None,
    cond: Cond = None,
    x_T: Tensor | None = None,
    noise: Noise = None,
    u: tuple[float, float] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    differentiable: bool = False,
    checkpoint_every: int | None = None,
) -> Tensor:
    """Draw samples by solving from noise to data.

    Args:
        model: a `ScoreModel`, or the `.model(path)` of an exact target.
        shape: (B, *event).
        solver: `Adams` for the ODE and `StochasticAdams` for the SDE in few network calls; `ODESolver`, `SDESolver`,
            `Ancestral`, another `Solver`, or one of your own.
        generator: a torch.Generator, or one per sample: a sample then does not depend on its batch-mates, but for the
            rounding of the network's own kernels (the shared steps of an adaptive ODESolver still move it by an error
            of its own size, unless steps_for="sample"; an adaptive SDESolver refuses).
        cond: keyword arguments for the network. A tensor whose first dimension is B holds one row per sample, unless
            it is `Shared`.
        x_T: the start, shaped like the samples, instead of a draw from N(0, sigma^2 I) at the noise end.
        noise: standard normals for a stochastic solver, see `solve`.
        u: (from, to) on the straight clock sigma/(alpha + sigma), 1 at pure noise and 0 at clean data: only this part
            of the path. Where data still show through at `from`, give x_T: the draw from N(0, sigma^2 I) assumes that
            they do not, and a warning says so.
        dtype: of the samples; by default that of the model's parameters.
        device: of the samples; by default that of the model's parameters.
        batch_size: samples in one network call, see `solve`; all of them by default. More than fit into memory are for
            `sample_many`.
        progress: show a bar (needs tqdm).
        differentiable: keep the graph for a backward pass, see `solve`; a start that is drawn has no gradient.
        checkpoint_every: see `solve`.

    Returns:
        the samples, (B, *event).

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, before the first network call.
        NonFiniteError: a state became NaN or infinite.

    Examples:
        >>> law = sdegen.GaussianMixture([[-1.0], [1.0]], 0.3)
        >>> x = sdegen.sample(law.model(sdegen.VPSDE()), (20_000, 1), sdegen.StochasticAdams(30))
        >>> f"{x.mean().abs():.1f} {x.var():.1f}"  # 1 + 0.3^2
        '0.0 1.1'
    """
    check_model(model)
    check_solver(solver)
    check_gradients(model, solver, differentiable, checkpoint_every)
    shape, noise = _checks.batch_shape(shape), checked_noise(noise, solver)
    dtype, device = dtype_and_device(model, dtype, device)
    _checks.generators(generator, shape[0], device)
    _checks.conditions(cond)
    u_from = interval(model, "data", u, solver.span)[0]
    if x_T is None:
        start = prior_draws(model, torch.empty(shape, dtype=dtype, device=device), u_from, generator)
        if u is not None and 1 - u_from > SIGNAL_LEFT * u_from:
            warnings.warn(
                f"Starting at u = {u_from:g} from N(0, sigma^2) assumes that the data no longer show there, and "
                f"alpha/sigma is {(1 - u_from) / u_from:.3g}: give x_T, draws of x_t at that clock.",
                UserWarning,
                stacklevel=_checks.stacklevel_outside(),
            )
    else:
        start = _checks.batch("x_T", x_T).to(device, dtype)
        if tuple(start.shape) != shape:
            raise ValueError(f"x_T must have the shape of the samples, {shape}, and it has {tuple(start.shape)}.")
    return solve(
        model,
        start,
        solver,
        u=u,
        noise=noise,
        generator=generator,
        cond=cond,
        batch_size=batch_size,
        progress=progress,
        differentiable=differentiable,
        checkpoint_every=checkpoint_every,
    ).x


def encode(
    model: Model,
    x: Tensor,
    solver: Solver | None = None,
    *,
    cond: Cond = None,
    u: tuple[float, float] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    differentiable: bool = False,
    checkpoint_every: int | None = None,
) -> Tensor:
    """The latent of data under the ODE: z = x_T, unscaled.

    Args:
        model: as in `sample`.
        x: the data, (B, *event).
        solver: one that solves the ODE; by default "dopri8" at tolerance 1e-6.
        cond: keyword arguments for the network.
        u: (from, to) on the straight clock sigma/(alpha + sigma), 1 at pure noise and 0 at clean data: only this part
            of the path.
        batch_size: samples in one network call, see `solve`; all of them by default.
        progress: show a bar (needs tqdm).
        differentiable: keep the graph for a backward pass, see `solve`; the default solver is adaptive and has none.
        checkpoint_every: see `solve`.

    Returns:
        z, (B, *event).

    Raises:
        TypeError: as `solve`, and for a solver that does not solve the ODE.
        ValueError: as `solve`.
        NonFiniteError: as `solve`.

    Examples:
        >>> model = sdegen.GaussianMixture([[-1.0], [1.0]], 0.3).model(sdegen.VPSDE())
        >>> x = torch.tensor([[0.5], [1.5]])
        >>> z = sdegen.encode(model, x)
        >>> torch.allclose(sdegen.decode(model, z), x, atol=1e-4)
        True
    """
    return solve(
        model,
        x,
        ode_solver(solver),
        to="noise",
        cond=cond,
        u=u,
        batch_size=batch_size,
        progress=progress,
        differentiable=differentiable,
        checkpoint_every=checkpoint_every,
    ).x


def decode(
    model: Model,
    z: Tensor,
    solver: Solver | None = None,
    *,
    cond: Cond = None,
    u: tuple[float, float] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    differentiable: bool = False,
    checkpoint_every: int | None = None,
) -> Tensor:
    """The data whose latent under the ODE is z: the inverse of `encode`.

    Args:
        model: as in `sample`.
        z: the latents, x at the noise end, (B, *event).
        solver: one that solves the ODE; by default "dopri8" at tolerance 1e-6.
        cond: keyword arguments for the network.
        u: (from, to) on the straight clock sigma/(alpha + sigma), 1 at pure noise and 0 at clean data: only this part
            of the path; z is then x_t at u[0].
        batch_size: as in `encode`.
        progress: as in `encode`.
        differentiable: as in `encode`.
        checkpoint_every: see `solve`.

    Returns:
        x, (B, *event).

    Raises:
        TypeError: as `encode`.
        ValueError: as `encode`.
        NonFiniteError: as `encode`.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.CondOT())
        >>> sdegen.decode(model, torch.tensor([[0.0], [2.0]])).round(decimals=3).tolist()  # 1 + 0.5 z
        [[1.0], [2.0]]
    """
    return solve(
        model,
        z,
        ode_solver(solver, both_ways=False),
        to="data",
        cond=cond,
        u=u,
        batch_size=batch_size,
        progress=progress,
        differentiable=differentiable,
        checkpoint_every=checkpoint_every,
    ).x


def solve(
    model: Model,
    x: Tensor,
    solver: Solver,
    *,
    to: str = "data",
    u: tuple[float, float] | None = None,
    noise: Noise = None,
    generator: Generators = None,
    cond: Cond = None,
    trajectory: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
    differentiable: bool = False,
    checkpoint_every: int | None = None,
    callback: Callback | None = None,
) -> Solution:
    """Solve from a state at one end of the path to the other, and say how it went.

    The network runs in eval mode without gradients and is put back afterwards, unless the solve is `differentiable`.

    Args:
        model: as in `sample`.
        x: the state to start from, (B, *event).
        solver: as in `sample`; not every solver goes towards noise.
        to: "data" or "noise", the end to reach.
        u: (from, to) on the straight clock sigma/(alpha + sigma), 1 at pure noise and 0 at clean data: only this part
            of the path; x is then x_t at u[0].
        noise: makes a stochastic solver a deterministic function: standard normals (steps, B, *event), step 0 at the
            start; "srk" takes (steps, 2, B, *event), the second for the space-time area; or a callable from the step k
            to its normals. The increment of step k is sqrt(h_k) z_k; Ancestral does not use the last.
        generator: for the normals that are drawn, as in `sample`.
        cond: keyword arguments for the network, as in `sample`.
        trajectory: keep every step's state.
        batch_size: samples in one network call; all of them by default. A part of the batch is solved after another:
            with one generator per sample, or without noise, a sample stays as it was, to the rounding of the network's
            kernels; with a single generator, or none, the parts draw their noise in turn, which is other noise. An
            adaptive ODESolver chooses its steps for each part, unless steps_for="sample".
        progress: show a bar, of the steps, or of the parts where there are several (needs tqdm).
        differentiable: keep the graph, so that autograd reaches `x`, the model's parameters, `cond` and given `noise`
            through every step; for solvers with fixed steps. The path, the grid and the solver's own numbers are
            constants. Modules keep the mode they are in: call `model.eval()` first where dropout or batch
            normalisation must not act.
        checkpoint_every: None keeps the activations of all network calls for the backward pass. A number k keeps the
            states between chunks of k steps, and the backward pass takes the steps of one chunk after another again:
            twice the network calls, k/N of the activations. It is 1 for an ODESolver or SDESolver, whose loop is its
            engine's, and every network call then is a chunk. Normals are drawn once; what the network draws itself, as
            dropout does, is repeated by setting torch's global generators back and putting them right again. Batch
            normalisation in training mode counts a chunk twice.
        callback: called as callback(k, u, x, x_hat) after every step k = 0, 1, ...: u is the clock it arrived at, a
            number, x the state there and x_hat = E[x | x_t] as the step's last network answer has it, both
            (B, *event), in units and in the dtype of the data, without a graph. (A move that asks nothing leaves x_hat
            as it was, NaN before the first answer.) They are copies: nothing that it does to them, or returns, changes
            the solve. For solvers whose loop is `march`, so not for `ODESolver` and `SDESolver`.

    Returns:
        the end point, its cost and, on request, the way there.

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, before the first network call.
        NonFiniteError: a state became NaN or infinite.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.VPSDE())
        >>> solution = sdegen.solve(model, torch.randn(64, 1), sdegen.Adams(20), trajectory=True)
        >>> solution.calls, solution.trajectory.shape
        (20, torch.Size([21, 64, 1]))
    """
    check_model(model)
    x = _checks.batch("x", x)
    check_solver(solver)
    check_gradients(model, solver, differentiable, checkpoint_every)
    _checks.choice("end", to, ("data", "noise"))
    check_callback(callback, solver, checkpoint_every, batch_size)
    check_parts(solver, batch_size, trajectory)
    ends = interval(model, to, u, solver.span)
    if to == "data":
        warn_of_tiny_alpha(model, *ends, fixed=solver.span is not None)
    _checks.generators(generator, len(x), x.device)
    received, noise = _network_arguments(cond), checked_noise(noise, solver)
    told = None if callback is None else Told(callback, model, x.dtype, repr(solver))
    with solving(model, differentiable):
        problem = Problem(
            model if told is None else told.model,
            straight(model, x, ends[0], differentiable),
            *ends,
            received,
            noise,
            generator,
            trajectory,
            progress,
            checkpoint_every=checkpoint_every,
            shared=_checks.shared_names(cond),
            callback=told,
        )
        results = []
        for part in problem.parts(batch_size) if len(x) else ():
            results.append(checked_result(solver.run(part), solver))  # noqa: PERF401  # a list's own frame, below 3.12
        if told is not None and len(x):
            told.check()
        return _solution(model, joined(results) if results else _empty(problem), x.dtype)


def ode_solver(solver: Solver | None, both_ways: bool = True) -> Solver:
    """`solver`, which must solve the ODE, both ways or to the data alone, or the default."""
    if solver is None:
        return LATENT_SOLVER
    if not isinstance(solver, Solver) or not getattr(solver, "solves_ode" if both_ways else "follows_ode"):
        wrong = _checks.described(solver)
        raise TypeError(f"Only the ODE can be solved both ways: give Adams or an ODESolver, not {wrong}.")
    return solver


def checked_result(result: object, solver: Solver) -> Result:
    """What `solver.run` returned, after a TypeError unless it is a Result."""
    if not isinstance(result, Result):
        raise TypeError(f"run of {solver!r} must return a Result, such as march gives, and it returned {result!r}.")
    return result


def check_solver(solver: object) -> None:
    """A TypeError unless it is one."""
    if not isinstance(solver, Solver):
        raise TypeError(
            "solver must be a Solver, such as Adams(20) or SDESolver('euler', 500), and it is "
            f"{_checks.described(solver)}."
        )


def _network_arguments(cond: Cond) -> dict[str, object]:
    return _checks.network_arguments(_checks.conditions(cond))


def _solution(model: Model, result: Result, dtype: torch.dtype) -> Solution:
    """Back from straight coordinates to x = r y."""
    u = torch.tensor(result.u, dtype=torch.float64)
    t = model.path.time(u) if result.times is None else torch.tensor(result.times, dtype=torch.float64)
    trajectory = None
    if result.states:
        scale = model.path.scale(u).tolist()
        trajectory = torch.stack([(r * y).to(dtype) for r, y in zip(scale, result.states, strict=True)])
    x = state(model, result.y, result.u[-1]).to(dtype)
    cost = (result.calls, result.accepted, result.rejected, result.error)
    return Solution(x, trajectory, t, u, *cost, y=result.y, sample_calls=result.sample_calls)


def _empty(problem: Problem) -> Result:
    """An empty batch arrives without a query."""
    y, u = problem.y, [problem.u_from, problem.u_to]
    return Result(y, u, [y, y] if problem.trajectory else [])
