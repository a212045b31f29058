"""The verbs that move samples along a path: sample, encode, decode, and solve, which says how it went."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import check_model, interval, scale_at, solving, straight, warn_of_tiny_alpha
from sdegen._shapes import Generators, summary
from sdegen.callbacks import Callback, Told, check_callback
from sdegen.models.base import Cond, Model
from sdegen.paths.priors import Normal
from sdegen.solvers import ODESolver
from sdegen.solvers.base import Problem, Result, Solver

LATENT_SOLVER = ODESolver("dopri8", rtol=1e-6)
"""The default of encode and decode."""

SIGNAL_LEFT = 0.05
"""Up to this alpha/sigma, N(0, sigma^2) passes for the law of x_t of data of unit scale."""

Noise = Tensor | Callable[[int], Tensor] | None


@dataclass(frozen=True)
class Solution:
    """What `solve` returns, for n accepted steps on a batch of B samples.

    Attributes:
        x: the end point, (B, *event).
        trajectory: every step's state, (n + 1, B, *event), or None unless asked for.
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
        progress: show a bar (needs tqdm).
        differentiable: keep the graph for a backward pass, see `solve`; a start that is drawn has no gradient.
        checkpoint_every: see `solve`.

    Returns:
        the samples, (B, *event).

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, before the first network call.
        NonFiniteError: a state became NaN or infinite.
    """
    check_model(model)
    _check_solver(solver)
    check_gradients(model, solver, differentiable, checkpoint_every)
    shape = _checks.batch_shape(shape)
    dtype, device = _dtype_and_device(model, dtype, device)
    _checks.generators(generator, shape[0], device)
    ends = interval(model, "data", u, solver.span)
    warn_of_tiny_alpha(model, *ends, fixed=solver.span is not None)
    if x_T is None:
        start = prior_draws(model, torch.empty(shape, dtype=dtype, device=device), ends[0], generator)
        if u is not None and 1 - ends[0] > SIGNAL_LEFT * ends[0]:
            warnings.warn(
                f"Starting at u = {ends[0]:g} from N(0, sigma^2) assumes that the data no longer show there, and "
                f"alpha/sigma is {(1 - ends[0]) / ends[0]:.3g}: give x_T, draws of x_t at that clock.",
                UserWarning,
                stacklevel=2,
            )
    else:
        start = _checks.batch("x_T", x_T).to(device, dtype)
        if tuple(start.shape) != shape:
            raise ValueError(f"x_T must have the shape of the samples, {shape}, and it has {tuple(start.shape)}.")
    received, noise = _network_arguments(cond), _checked_noise(noise, solver)
    with solving(model, differentiable):
        problem = Problem(
            model,
            straight(model, start, ends[0], differentiable),
            *ends,
            received,
            noise,
            generator,
            progress=progress,
            checkpoint_every=checkpoint_every,
            shared=_checks.shared_names(cond),
        )
        result = checked_result(solver.run(problem), solver) if len(start) else _empty(problem)
        return (scale_at(model, result.u[-1]) * result.y).to(dtype)


def encode(
    model: Model,
    x: Tensor,
    solver: Solver | None = None,
    *,
    cond: Cond = None,
    u: tuple[float, float] | None = None,
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
        differentiable: keep the graph for a backward pass, see `solve`; the default solver is adaptive and has none.
        checkpoint_every: see `solve`.

    Returns:
        z, (B, *event).

    Raises:
        TypeError: as `solve`, and for a solver that does not solve the ODE.
        ValueError: as `solve`.
        NonFiniteError: as `solve`.
    """
    return solve(
        model,
        x,
        ode_solver(solver),
        to="noise",
        cond=cond,
        u=u,
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
        differentiable: as in `encode`.
        checkpoint_every: see `solve`.

    Returns:
        x, (B, *event).

    Raises:
        TypeError: as `encode`.
        ValueError: as `encode`.
        NonFiniteError: as `encode`.
    """
    return solve(
        model,
        z,
        ode_solver(solver, both_ways=False),
        to="data",
        cond=cond,
        u=u,
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
        progress: show a bar (needs tqdm).
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
    """
    check_model(model)
    x = _checks.batch("x", x)
    _check_solver(solver)
    check_gradients(model, solver, differentiable, checkpoint_every)
    _checks.choice("end", to, ("data", "noise"))
    check_callback(callback, solver, checkpoint_every)
    ends = interval(model, to, u, solver.span)
    if to == "data":
        warn_of_tiny_alpha(model, *ends, fixed=solver.span is not None)
    _checks.generators(generator, len(x), x.device)
    received, noise = _network_arguments(cond), _checked_noise(noise, solver)
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
        result = checked_result(solver.run(problem), solver) if len(x) else _empty(problem)
        if told is not None and len(x):
            told.check()
        return _solution(model, result, x.dtype)


def ode_solver(solver: Solver | None, both_ways: bool = True) -> Solver:
    """`solver`, which must solve the ODE, both ways or to the data alone, or the default."""
    if solver is None:
        return LATENT_SOLVER
    if not isinstance(solver, Solver) or not getattr(solver, "solves_ode" if both_ways else "follows_ode"):
        wrong = _checks.described(solver)
        raise TypeError(f"Only the ODE can be solved both ways: give Adams or an ODESolver, not {wrong}.")
    return solver


def prior_draws(model: Model, like: Tensor, u: float, generator: Generators) -> Tensor:
    """Draws from the path's prior at the clock `u`, shaped like `like`."""
    prior, z = model.path.prior_at(u), model.path.noise_like(like, generator)
    return z * prior.std if isinstance(prior, Normal) else z


def checked_result(result: object, solver: Solver) -> Result:
    """What `solver.run` returned, after a TypeError unless it is a Result."""
    if not isinstance(result, Result):
        raise TypeError(f"run of {solver!r} must return a Result, such as march gives, and it returned {result!r}.")
    return result


def _check_solver(solver: object) -> None:
    if not isinstance(solver, Solver):
        wrong = _checks.described(solver)
        raise TypeError(f"solver must be a Solver, such as Adams(20) or SDESolver('euler', 500), and it is {wrong}.")


def check_gradients(model: Model, solver: Solver, differentiable: bool, checkpoint_every: int | None) -> None:
    """A solve keeps its graph where it was told to, its solver can and gradients are on."""
    if not isinstance(differentiable, bool):
        raise TypeError(f"differentiable must be True or False, and it is {differentiable!r}.")
    if checkpoint_every is not None and not differentiable:
        raise ValueError(
            f"checkpoint_every = {checkpoint_every!r} is about a backward pass, and without differentiable=True there "
            "is none."
        )
    if checkpoint_every is not None:
        _checks.whole("checkpoint_every", checkpoint_every)
    if differentiable and not solver.differentiable:
        raise ValueError(
            f"differentiable=True needs fixed steps, and {solver!r} chooses its own; take one such as "
            "ODESolver('rk4', steps=20)."
        )
    if differentiable and not torch.is_grad_enabled():
        raise ValueError(
            "differentiable=True keeps the graph of the solve, and gradients are switched off here, by torch.no_grad "
            "or torch.inference_mode."
        )
    if differentiable:
        _check_paths(model)


def _check_paths(model: Model) -> None:
    """No path in the model has parameters: of their gradients only a part would come out."""
    for path in (part.path for part in model.modules() if isinstance(part, Model)):
        t = torch.tensor(0.5 * (path.t_data + path.t_noise), dtype=torch.float64)
        if path.alpha(t).requires_grad or path.sigma(t).requires_grad:
            raise ValueError(
                f"The gradients of a solve do not reach its path, and {path!r} asks for them: give it alpha and sigma "
                "without, by detach()."
            )


def _checked_noise(noise: Noise, solver: Solver) -> Noise:
    if noise is not None and not (isinstance(noise, Tensor) or callable(noise)):
        raise TypeError(f"noise must be a tensor of standard normals or a callable from k to them, not {noise!r}.")
    if noise is not None and solver.solves_ode:
        raise ValueError(f"noise= is for stochastic solvers, and {solver!r} solves an ODE.")
    if isinstance(noise, Tensor):
        _checks.batch("noise", noise, finite=noise.device.type == "cpu")
    return noise


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
    x = (scale_at(model, result.u[-1]) * result.y).to(dtype)
    cost = (result.calls, result.accepted, result.rejected, result.error)
    return Solution(x, trajectory, t, u, *cost, y=result.y, sample_calls=result.sample_calls)


def _empty(problem: Problem) -> Result:
    """An empty batch arrives without a query."""
    y, u = problem.y, [problem.u_from, problem.u_to]
    return Result(y, u, [y, y] if problem.trajectory else [])


def _dtype_and_device(
    model: Model, dtype: torch.dtype | None, device: torch.device | str | None
) -> tuple[torch.dtype, torch.device]:
    """What was asked for, else what the model's parameters have, else the defaults."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating torch dtype, and it is {dtype!r}.")
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        device = first.device if device is None else torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must name a torch device such as 'cpu' or 'cuda', and it is {device!r}.") from error
    return dtype or first.dtype, device
