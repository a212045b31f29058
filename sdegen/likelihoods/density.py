"""Exact log-densities by the probability-flow ODE.

    log p(x) = log p_prior(x_noise) + d log r_noise - d log r_data + integral over u of div(eps_hat - x_hat)

from the data end to the noise end of the clock: both the right-hand side and the divergence are finite at u = 0, so
nothing is cut off. It is the density of the ODE model itself, whether or not its score is a gradient.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
    FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models, Grathwohl et al., 2019,
    arXiv:1810.01367.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import check_model, evaluating, interval, scale_at, straight
from sdegen._checks import NonFiniteError
from sdegen._shapes import Generators, event_size
from sdegen.likelihoods.gradients import products_at_once
from sdegen.models.base import Cond, Model
from sdegen.sampling import checked_result, ode_solver
from sdegen.solvers.base import Problem, Solver
from sdegen.solvers.divergence import Hutchinson, draw_probes

EXACT_UP_TO = 256
"""The number of dimensions up to which trace="auto" takes the exact trace."""
AUTO_PROBES = 8


class Density(Protocol):
    """Anything with `.log_prob(x) -> (B,)`."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each sample, in nats."""


def log_prob(
    model: Model,
    x: Tensor,
    solver: Solver | None = None,
    *,
    trace: str | Hutchinson = "auto",
    prior: Density | None = None,
    generator: Generators = None,
    cond: Cond = None,
    u: tuple[float, float] | None = None,
) -> Tensor:
    """Log-density of data under the model's ODE, in nats.

    It is computed in the dtype of `x`, at least float32; the network is called in its own. How much the result of one
    sample depends on the others in the batch: with an adaptive solver, by an error of the size of its tolerance; on
    fixed steps, such as ODESolver("rk4", steps=40), and with ODESolver("dopri8", steps_for="sample"), by the rounding
    of the network's kernels alone. The first call with
    a network costs three more network calls on a few rows, which test whether its gradient can be trusted.

    Args:
        model: a `ScoreModel`, or the `.model(path)` of an exact target.
        x: the data, (B, *event).
        solver: one that solves the ODE, by default "dopri8" at tolerance 1e-6; a looser one, such as "dopri5" at 1e-4,
            takes a fraction of its network calls. Tolerances are absolute in y: keep them far below the data's scale.
        trace: "exact", d products with the Jacobian a query; `Hutchinson(probes)`, an unbiased estimate; "auto", exact
            up to 256 dimensions, then Hutchinson(8).
        prior: the density at the noise end, an object with `.log_prob`; by default N(0, sigma^2 I).
        generator: for the probes, a torch.Generator or one per sample.
        cond: keyword arguments for the network, as in `sample`.
        u: (from, to), from < to: the log-density of x as x_t at u[0], with the prior at u[1].

    Returns:
        the log-density, (B,), without a gradient.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument that does not fit, a network that blocks gradients or is random.
        NonFiniteError: a state or a log-density became NaN or infinite.

    References:
        FFJORD, Grathwohl et al., 2019, arXiv:1810.01367.
        Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
    """
    check_model(model)
    x = _checks.batch("x", x)
    solver = ode_solver(solver)
    cond = _checks.conditions(cond)
    _checks.generators(generator, len(x), x.device)
    ends = interval(model, "noise", u, solver.span)
    probes = _probes(trace, event_size(x.shape))
    density = _density(prior, model, ends[1])
    with evaluating(model):
        y = straight(model, x, ends[0])
        if not len(x):
            return y.new_empty(0)
        vectors = draw_probes(y, probes, generator)
        chunk = products_at_once(model, y, ends, cond, len(vectors))
        received, shared = _checks.network_arguments(cond), _checks.shared_names(cond)
        problem = Problem(model, y, *ends, received, probes=vectors, chunk=chunk, shared=shared)
        result = checked_result(solver.run(problem), solver)
        if result.divergence is None:
            raise ValueError(f"{solver!r} solves the ODE without its density: its Result has no divergence.")
        logp = _at_noise(density, scale_at(model, ends[1]) * result.y) + result.divergence
        logp = logp + event_size(x.shape) * math.log(scale_at(model, ends[1]) / scale_at(model, ends[0]))
        _refuse_non_finite(logp, prior is not None or model.path.source is not None, ends[1])
        return logp


def _probes(trace: str | Hutchinson, d: int) -> Hutchinson | None:
    """What stands for the trace: None for the exact one."""
    if isinstance(trace, Hutchinson):
        return trace
    _checks.choice("trace", trace, ("exact", "auto"))
    return Hutchinson(AUTO_PROBES) if trace == "auto" and d > EXACT_UP_TO else None


def _density(prior: Density | None, model: Model, u: float) -> Density:
    prior = model.path.prior_at(u) if prior is None else prior
    if not callable(getattr(prior, "log_prob", None)):
        raise TypeError(f"prior must have a method log_prob(x) -> (B,), and {prior!r} has none.")
    return prior


def _at_noise(prior: Density, z: Tensor) -> Tensor:
    logp = prior.log_prob(z)
    if not isinstance(logp, Tensor) or logp.shape != (len(z),):
        got = tuple(logp.shape) if isinstance(logp, Tensor) else type(logp).__name__
        raise ValueError(f"prior.log_prob must return one number per sample, shape ({len(z)},), and it returned {got}.")
    return logp


def _refuse_non_finite(logp: Tensor, may_vanish: bool, u: float) -> None:
    """A prior of the user's may well be zero somewhere; nothing else may."""
    bad = int((torch.isnan(logp) | (logp == math.inf)).sum() if may_vanish else (~torch.isfinite(logp)).sum())
    if bad:
        raise NonFiniteError(
            f"The log-density of {bad} of {len(logp)} samples is not finite at the noise end, u = {u:.6g}: the latents "
            "are too large for the precision; use float64, smaller steps or a tighter tolerance."
        )
