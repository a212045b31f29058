"""The verbs that move samples along a path: sample, encode, decode, and solve, which they all are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import Solver, check_model, check_solver, interval, ode_solver, scale_at, working
from sdegen._shapes import Generators
from sdegen.models.model import Cond, Model
from sdegen.paths.gaussian import Normal
from sdegen.solvers import ODESolver
from sdegen.solvers.base import Path, Problem, evaluating


@dataclass(frozen=True)
class Solution:
    """What `solve` returns, for n accepted steps on a batch of B samples.

    x:          the end point, (B, *event).
    trajectory: every step's state, (n + 1, B, *event), or None unless asked for.
    t, u:       the n + 1 knots in the path's time and on the straight clock, float64 on the CPU.
    calls:      network calls. accepted, rejected: steps.
    error:      (B,), for an adaptive ODE solver: the sum over its accepted steps of the local error estimate of each
                sample, in units of the tolerance atol + rtol |y|; None otherwise.
    """

    x: Tensor
    trajectory: Tensor | None
    t: Tensor
    u: Tensor
    calls: int
    accepted: int
    rejected: int
    error: Tensor | None


def sample(
    model: Model,
    shape: tuple[int, ...],
    solver: Solver,
    *,
    generator: Generators = None,
    cond: Cond = None,
    x_T: Tensor | None = None,
    noise: Tensor | Callable[[int], Tensor] | None = None,
    u: tuple[float, float] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw samples of `shape` (B, *event) by solving from noise to data.

    model:     a `ScoreModel`, or the `.model(path)` of an exact target.
    solver:    an `SDESolver`, `ODESolver`, `Ancestral` or `DDIM`.
    generator: a torch.Generator, or one per sample: a sample then does not depend on its batch-mates (an adaptive
               ODESolver's shared steps still move it by an error of its own size; an adaptive SDESolver refuses).
    cond:      keyword arguments for the network.

    x_T:       the start, shaped like the samples, instead of a draw from N(0, sigma^2 I) at the noise end.
    noise:     standard normals for a stochastic solver, see `solve`.
    u:         (from, to): only this part of the path.
    dtype, device: of the samples; by default those of the model's parameters.
    progress:  show a bar (needs tqdm).

    Raises TypeError or ValueError for bad input before the first network call, NonFiniteError if a state diverges.
    """
    check_model(model)
    shape = _checks.batch_shape(shape)
    dtype, device = _dtype_and_device(model, dtype, device)
    _checks.generators(generator, shape[0], device)
    if x_T is None:
        u_from, _ = interval(model, "data", u)
        prior, start = model.path.prior_at(u_from), torch.empty(shape, dtype=dtype, device=device)
        start = model.path.noise_like(start, generator) * (prior.std if isinstance(prior, Normal) else 1.0)
    else:
        start = _checks.batch("x_T", x_T).to(device, dtype)
        if tuple(start.shape) != shape:
            raise ValueError(f"x_T must have the shape of the samples, {shape}, and it has {tuple(start.shape)}.")
    options = {"u": u, "noise": noise, "generator": generator, "cond": cond, "progress": progress}
    return solve(model, start, solver, to="data", **options).x


def encode(
    model: Model,
    x: Tensor,
    solver: ODESolver | None = None,
    *,
    cond: Cond = None,
    u: tuple[float, float] | None = None,
) -> Tensor:
    """The latent z = x_T of data `x` (B, *event) under the ODE, unscaled; `solver` defaults to that of `log_prob`."""
    return solve(model, x, ode_solver(solver), to="noise", cond=cond, u=u).x


def decode(
    model: Model,
    z: Tensor,
    solver: ODESolver | None = None,
    *,
    cond: Cond = None,
    u: tuple[float, float] | None = None,
) -> Tensor:
    """The data whose latent is `z` (B, *event): the inverse of `encode`."""
    return solve(model, z, ode_solver(solver), to="data", cond=cond, u=u).x


def solve(
    model: Model,
    x: Tensor,
    solver: Solver,
    *,
    to: str = "data",
    u: tuple[float, float] | None = None,
    noise: Tensor | Callable[[int], Tensor] | None = None,
    generator: Generators = None,
    cond: Cond = None,
    trajectory: bool = False,
    progress: bool = False,
) -> Solution:
    """Solve from `x` (B, *event), a state at one end of the path, to the other.

    to:         "data" or "noise", the end to reach.
    u:          (from, to) on the straight clock: only this part of the path; x is then x_t at u[0].
    noise:      makes a stochastic solver a deterministic function: standard normals (steps, B, *event), step 0 at the
                start; "srk" takes (steps, 2, B, *event), the second for the space-time area; or a callable from the
                step k to its normals. The increment of step k is sqrt(h_k) z_k; Ancestral does not use the last.
    trajectory: keep every step's state. Other arguments as in `sample`.

    The network runs in eval mode without gradients and is put back afterwards. Raises as `sample` does.
    """
    check_model(model)
    x = _checks.batch("x", x)
    check_solver(solver)
    _checks.choice("end", to, ("data", "noise"))
    u_from, u_to = interval(model, to, u)
    cond = _checks.conditions(cond)
    _checks.generators(generator, len(x), x.device)
    if noise is not None and not (isinstance(noise, Tensor) or callable(noise)):
        raise TypeError(f"noise must be a tensor of standard normals or a callable from k to them, not {noise!r}.")
    with torch.inference_mode(False), torch.no_grad(), evaluating(model):
        start = working(x) / scale_at(model, u_from)
        problem = Problem(model, start, u_from, u_to, cond, noise, generator, trajectory, progress)
        path = solver.run(problem) if len(x) else _empty(problem)
        return _solution(model, path, x.dtype)


def _solution(model: Model, path: Path, dtype: torch.dtype) -> Solution:
    """Back from straight coordinates to x = r y."""
    u = torch.tensor(path.u, dtype=torch.float64)
    t = model.path.time(u) if path.times is None else torch.tensor(path.times, dtype=torch.float64)
    trajectory = None
    if path.states:
        scale = model.path.scale(u).tolist()
        trajectory = torch.stack([(r * y).to(dtype) for r, y in zip(scale, path.states, strict=True)])
    x = (scale_at(model, path.u[-1]) * path.y).to(dtype)
    return Solution(x, trajectory, t, u, path.calls, path.accepted, path.rejected, path.error)


def _empty(problem: Problem) -> Path:
    """An empty batch arrives without a query."""
    y, u = problem.y, [problem.u_from, problem.u_to]
    return Path(y, u, [y, y] if problem.trajectory else [])


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
