"""What every verb that solves does with its arguments: gradients, parts of a batch, noise, starts, precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators
from sdegen.models.base import Model
from sdegen.paths.priors import Normal
from sdegen.solvers.base import Solver

Noise = Tensor | Callable[[int], Tensor] | None
"""Standard normals for a stochastic solver, or a callable from the step k to its own."""

DRAWN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The precisions in which torch draws."""


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


def check_parts(solver: Solver, batch_size: int | None, trajectory: bool) -> None:
    """The parts of a batch have a size, and where every step's state is wanted the same steps."""
    if batch_size is not None and _checks.whole("batch_size", batch_size) and trajectory and not solver.differentiable:
        raise ValueError(
            f"trajectory=True with batch_size needs steps that all parts share, and {solver!r} chooses its own: solve "
            "the parts one by one."
        )


def checked_noise(noise: Noise, solver: Solver) -> Noise:
    if noise is not None and not (isinstance(noise, Tensor) or callable(noise)):
        raise TypeError(f"noise must be a tensor of standard normals or a callable from k to them, not {noise!r}.")
    if noise is not None and solver.solves_ode:
        raise ValueError(f"noise= is for stochastic solvers, and {solver!r} solves an ODE.")
    if isinstance(noise, Tensor):
        _checks.batch("noise", noise, finite=noise.device.type == "cpu")
    return noise


def prior_draws(model: Model, like: Tensor, u: float, generator: Generators) -> Tensor:
    """Draws from the path's prior at the clock `u`, shaped like `like`."""
    prior, z = model.path.prior_at(u), model.path.noise_like(like, generator)
    return z * prior.std if isinstance(prior, Normal) else z


def dtype_and_device(
    model: Model, dtype: torch.dtype | None, device: torch.device | str | None
) -> tuple[torch.dtype, torch.device]:
    """What was asked for, else what the model's parameters have, else the defaults."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating torch dtype, and it is {dtype!r}.")
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    dtype = dtype or first.dtype
    if dtype not in DRAWN:
        raise ValueError(f"dtype must be that of numbers which can be drawn, one of {DRAWN}, and it is {dtype}.")
    return dtype, torch_device(first.device if device is None else device)


def torch_device(device: torch.device | str) -> torch.device:
    """The device of this name, which is there and can draw."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must name a torch device such as 'cpu' or 'cuda', and it is {device!r}.") from error
    try:
        torch.Generator(device=found)
    except RuntimeError as error:
        raise ValueError(
            f"device must be one that this torch can draw random numbers on, and it is {str(found)!r}."
        ) from error
    return found
