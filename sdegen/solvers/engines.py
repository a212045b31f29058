"""What the solvers on torchsde and torchdiffeq share: questions planned ahead, and whose line raised an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdegen.models.base import Query
from sdegen.solvers.base import Problem, Solver


def plan_stages(
    problem: Problem, u: Tensor, t: Tensor, coefficients: Mapping[float, tuple[Tensor, Tensor]]
) -> list[dict[float, Query]]:
    """For every step, the query c x_hat + d eps_hat at each fraction that a method asks for; knots keep their t."""
    known = {0.0: t[:-1], 1.0: t[1:]}
    columns = [
        problem.model.plan(problem.y, within(u, fraction), known.get(fraction), c, d)
        for fraction, (c, d) in coefficients.items()
    ]
    return [dict(zip(coefficients, step, strict=True)) for step in zip(*columns, strict=True)]


def within(u: Tensor, fraction: float) -> Tensor:
    """The clock at a fraction of every step: it is linear between knots, and exact at them."""
    return u[1:] if fraction == 1 else u[:-1] + fraction * (u[1:] - u[:-1])


def checkpointed(call: Callable[..., Tensor], problem: Problem, solver: Solver, package: str) -> Callable[..., Tensor]:
    """`call` for the loop of an engine, each a chunk of its own where activations are computed again."""
    every = problem.checkpoint_every
    if every is None:
        return call
    if every != 1:
        raise ValueError(
            f"{package} takes the steps of {solver!r}, and not in chunks of checkpoint_every = {every}: give 1, with "
            "which the backward pass computes one network call after another again, or a solver that marches."
        )
    return partial(checkpoint, call, use_reentrant=False)


def raised_inside(error: BaseException, package: str) -> bool:
    """Whether an engine's own line raised `error`, and not the network that it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0] == package
