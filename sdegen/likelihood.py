"""Exact log-densities by the probability-flow ODE.

    log p(x) = log p_prior(x_noise) + d log r_noise - d log r_data + integral over u of div(eps_hat - x_hat)

from the data end to the noise end of the clock: both the right-hand side and the divergence are finite at u = 0, so
nothing is cut off. It is the density of the ODE model itself, whether or not its score is a gradient.

Song et al., 2021, arXiv:2011.13456; FFJORD, Grathwohl et al., 2019, arXiv:1810.01367.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._checks import NonFiniteError
from sdegen._shapes import Generators, event_size
from sdegen.dynamics import Hutchinson, Problem, check_differentiable, draw_probes, evaluating, products_at_once
from sdegen.models import Model
from sdegen.sampling import Cond, _check_model, _interval, _ode, _scale, _working
from sdegen.solvers import ODESolver

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
    solver: ODESolver | None = None,
    *,
    trace: str | Hutchinson = "auto",
    prior: Density | None = None,
    generator: Generators = None,
    cond: Cond = None,
    u: tuple[float, float] | None = None,
) -> Tensor:
    """Log-density of data `x` (B, *event) under the model's ODE, in nats, shape (B,).

    solver:    an ODESolver, by default "dopri8" at tolerance 1e-6; a looser one, such as "dopri5" at 1e-4, takes a
               fraction of its network calls.
    trace:     "exact": d products with the Jacobian a query; `Hutchinson(probes)`: an unbiased estimate; "auto": exact
               up to 256 dimensions, then Hutchinson(8).
    prior:     the density at the noise end, an object with `.log_prob`; by default N(0, sigma^2 I).

    generator: for the probes, a torch.Generator or one per sample.
    cond:      keyword arguments for the network.
    u:         (from, to), from < to: the log-density of x as x_t at u[0], with the prior at u[1].

    With an adaptive solver a sample moves with its batch-mates by an error of the solver's own size; on fixed steps,
    such as ODESolver("rk4", steps=40), not at all. Integrates in the dtype of `x` (at least float32) and calls the
    network in its own. Raises ValueError for a network that blocks gradients or is random, NonFiniteError for a
    log-density that is not finite, and as `solve` does. The result carries no gradient.
    """
    _check_model(model)
    x = _checks.batch("x", x)
    solver = _ode(solver)
    cond = _checks.conditions(cond)
    _checks.generators(generator, len(x), x.device)
    u_from, u_to = _interval(model, "noise", u)
    d = event_size(x.shape)
    if not isinstance(trace, Hutchinson):
        _checks.choice("trace", trace, ("exact", "auto"))
        trace = Hutchinson(AUTO_PROBES) if trace == "auto" and d > EXACT_UP_TO else None
    own = prior is not None  # a prior of the user's may well be zero somewhere
    prior = prior if own else model.path.prior_at(u_to)
    if not callable(getattr(prior, "log_prob", None)):
        raise TypeError(f"prior must have a method log_prob(x) -> (B,), and {prior!r} has none.")
    with torch.inference_mode(False), torch.no_grad(), evaluating(model):
        cond = {k: v.clone() if isinstance(v, Tensor) and v.is_inference() else v for k, v in cond.items()}
        y = _working(x) / _scale(model, u_from)
        if not len(x):
            return y.new_empty(0)
        problem = Problem(model, y, u_from, u_to, cond, probes=draw_probes(y, trace, generator))
        check_differentiable(problem)
        problem.chunk = products_at_once(problem)
        path = solver.run(problem)
        at_noise = prior.log_prob(_scale(model, u_to) * path.y)
        if not isinstance(at_noise, Tensor) or at_noise.shape != (len(x),):
            got = tuple(at_noise.shape) if isinstance(at_noise, Tensor) else type(at_noise).__name__
            raise ValueError(
                f"prior.log_prob must return one number a sample, shape ({len(x)},), and it returned {got}."
            )
        logp = at_noise + d * math.log(_scale(model, u_to) / _scale(model, u_from)) + path.divergence
        bad = int((torch.isnan(logp) | (logp == math.inf)).sum()) if own else int((~torch.isfinite(logp)).sum())
        if bad:
            raise NonFiniteError(
                f"The log-density of {bad} of {len(x)} samples is not finite at the noise end, u = {u_to:.6g}: the "
                "latents are too large for the precision; use float64, smaller steps or a tighter tolerance."
            )
        return logp
