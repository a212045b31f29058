"""Exact log-densities by the probability-flow ODE, and how far to trust them.

    log p(x) = log p_prior(x_noise) + d log r_noise - d log r_data + integral over u of div(eps_hat - x_hat)

from the data end to the noise end of the clock: both the right-hand side and the divergence are finite at u = 0, so
nothing is cut off. It is the density of the ODE model itself, whether or not its score is a gradient. Three things
keep the number from the log-density of the data's law, apart from the network's own error: the solver's steps, the
probes of an estimated trace, and the prior, which is not quite the law of the data at the noise end.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
    FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models, Grathwohl et al., 2019,
    arXiv:1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import (
    batch_parts,
    check_model,
    interval,
    scale_at,
    solving,
    straight,
    units_at,
    warn_of_tiny_alpha,
)
from sdegen._checks import NonFiniteError
from sdegen._derivatives import uncompiled
from sdegen._shapes import Generators, event_size, generator_of_rows, summary
from sdegen._solving import check_gradients
from sdegen.likelihoods.gap import prior_gap
from sdegen.likelihoods.gradients import products_at_once
from sdegen.models.base import Cond, Model
from sdegen.models.masked import MASK, Masked, checked_mask, count, log_normal_at_zero, without_padding
from sdegen.paths.priors import Normal
from sdegen.sampling import checked_result, ode_solver
from sdegen.solvers import AdamsUntil, Exact, Hutchinson, ODESolver
from sdegen.solvers.base import Problem, Result, Solver, under_bar
from sdegen.solvers.divergence import Probes, Trace, standard_error
from sdegen.solvers.grids import steps_on
from sdegen.solvers.scheme import Scheme

DENSITY_SOLVER = AdamsUntil(1e-3, first=120)
"""The default of log_likelihood and log_prob: on mixtures and trained networks the true errors are a tenth of 1e-3."""
ROUNDING = 8
"""Units of the last place of what a log-density is summed from, of which its error is never below."""
EXACT_UP_TO, FEW_PROBES_FROM = 256, 1024
"""trace="auto" is exact up to so many dimensions, and takes fewer probes beyond so many."""


class Density(Protocol):
    """Anything with `.log_prob(x) -> (B,)`."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each sample, in nats."""


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """What `log_likelihood` returns for B samples, in nats.

    Attributes:
        log_prob: log-densities, (B,).
        latent: x at the noise end, (B, *event).
        solver_error: an estimate of how far the solver's steps leave each log-density off, (B,), not negative; None
            where the solver has none, or the path a source, whose score nobody knows. With probes that are fresh at
            every query it speaks of the states alone: what the quadrature misses drowns in their spread.
        probe_error: one standard error of an estimated trace, (B,); 0 for the exact one, None for a single probe.
        prior_gap: how far the prior's log-density at the latent is from that of the data's law there, (B,), not
            negative; 0 on a path that ends in pure noise, None where no `data` were given, or within a path that has a
            source of its own.
        calls: network calls.
        accepted: steps taken.
        rejected: steps tried in vain.
        kind: "density", that of the ODE; no bound.

    Examples:
        >>> model = sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT())
        >>> found = sdegen.log_likelihood(model, torch.zeros(1, 1))
        >>> found.kind, found.log_prob.shape, bool(found.solver_error < 1e-3)
        ('density', torch.Size([1]), True)
    """

    log_prob: Tensor
    latent: Tensor
    solver_error: Tensor | None
    probe_error: Tensor | None
    prior_gap: Tensor | None
    calls: int
    accepted: int
    rejected: int

    kind: ClassVar[str] = "density"

    __repr__ = summary

    @property
    def error(self) -> Tensor:
        """The sum of the errors that are known, (B,)."""
        return sum((e for e in self._errors.values() if e is not None), torch.zeros_like(self.log_prob.detach()))

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names of the errors that are not."""
        return tuple(name for name, error in self._errors.items() if error is None)

    @property
    def _errors(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in ("solver_error", "probe_error", "prior_gap")}


def log_likelihood(
    model: Model,
    x: Tensor,
    solver: Solver | None = None,
    *,
    trace: str | Trace = "auto",
    prior: Density | None = None,
    data: Tensor | None = None,
    generator: Generators = None,
    cond: Cond = None,
    u: tuple[float, float] | None = None,
    differentiable: bool = False,
    checkpoint_every: int | None = None,
    check: bool = True,
    second_solve: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
    mask: Tensor | None = None,
) -> LogLikelihood:
    """Log-density of data under the model's ODE, in nats, with error bars.

    It is computed in the dtype of `x`, at least float32; the network is called in its own. A sample's number does not
    depend on its batch-mates, but for the rounding of the network's kernels and, with an adaptive ODESolver other than
    steps_for="sample", by an error of the size of its tolerance.

    Args:
        model: a `ScoreModel`, or the `.model(path)` of an exact target.
        x: the data, (B, *event).
        solver: one that solves the ODE; by default AdamsUntil(1e-3, first=120), which doubles its steps until the error
            it estimates is below 1e-3 nats; the true one is mostly a tenth of that. What is worse after the last round
            has its number and its error, with an AccuracyWarning. Adams(160) has a cost known beforehand,
            ODESolver("dopri8", rtol=1e-8) is for more digits.
        trace: "exact" or `Exact(chunk)`, d products with the Jacobian a trace; `Hutchinson(probes)`, an unbiased
            estimate; "auto", exact up to 256 dimensions, then Hutchinson(4), beyond 1024 Hutchinson(2).
        prior: the density at the noise end, an object with `.log_prob`; by default N(0, sigma^2 I).
        data: draws from the law of the data, (n, *event), for the `prior_gap` alone. On VP that gap is the floor of
            every solver, 1e-4 to 1e-2 nats; a prior fitted to the data, such as
            Gaussian(mean, covariance=...).marginal(path, path.t_noise), takes most of it away.
        generator: for the probes, a torch.Generator or one per sample.
        cond: keyword arguments for the network, as in `sample`.
        u: (from, to) on the straight clock sigma/(alpha + sigma), from < to: the log-density of x as x_t at u[0], with
            the prior at u[1].
        differentiable: keep the graph of `.log_prob` and `.latent`, for gradients in x, in parameters, conditions: on
            fixed steps, such as Adams(80). The network stays in the mode it is in.
        checkpoint_every: as in `solve`.
        check: whether the gradient of a network is held against differences the first time it is met, by three
            network calls on a few rows.
        second_solve: whether a solver without an error estimate of its own solves once more, at ten times the tolerance
            or with half the steps, for the difference.
        batch_size: rows of x in one network call; all of them by default. On the draws of probes it acts as in `vlb`.
        progress: whether to show a bar, of the steps of every round of the solver, or of the parts where there are
            several (needs tqdm).
        mask: True where a value is there and False where it pads, bools that broadcast against x: the log-density is
            that of the values that are there, as a law on so many dimensions, and the network sees 0 in the padding.
            What it needs to know of the mask it receives by `cond`. The latent's padding is 0.

    Returns:
        the log-densities with their errors.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument that does not fit, a network that blocks gradients or is random.
        NonFiniteError: a state or a log-density became NaN or infinite.

    Examples:
        >>> law = sdegen.GaussianMixture([[-1.0], [1.0]], 0.3)
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> found = sdegen.log_likelihood(law.model(sdegen.CondOT()), x)
        >>> bool(((found.log_prob - law.log_prob(x)).abs() < 1e-3).all()), found.probe_error.tolist()
        (True, [0.0, 0.0])

    References:
        FFJORD, Grathwohl et al., 2019, arXiv:1810.01367.
        Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
    """
    check_model(model)
    x = _checks.batch("x", x)
    solver = DENSITY_SOLVER if solver is None else ode_solver(solver)
    check_gradients(model, solver, differentiable, checkpoint_every)
    cond = _checks.conditions(cond)
    _checks.generators(generator, len(x), x.device)
    model, x, cond = _masked(model, x, cond, mask, prior, data)
    trace, data = _checked_trace(trace, event_size(x.shape)), _checked_data(data, x, model)
    knows = solver.knows_its_error and model.path.source is None
    coarser = _coarser(solver) if second_solve and not knows else None
    fresh = solver.takes_fresh_probes and coarser is None
    ends = interval(model, "noise", u, solver.span)
    warn_of_tiny_alpha(model, *ends, fixed=solver.span is not None)
    end = _End(_checked_prior(prior, model, ends[1], event_size(x.shape)), prior is not None, data)
    parts = []
    with solving(model, differentiable), nullcontext() if trace == Hutchinson(1) else uncompiled():
        for rows, own_bar in under_bar(list(batch_parts(x, batch_size)), progress):
            conditions = _checks.conditions_of_rows(cond, rows, len(x))
            y = without_padding(straight(model, x[rows], ends[0], differentiable), conditions)
            probes = trace.draw(y, generator_of_rows(generator, rows), fresh)
            with torch.no_grad():
                at_once = products_at_once(model, y, ends, conditions, probes.count, check)
            problem = Problem(
                model,
                y,
                *ends,
                _checks.network_arguments(conditions),
                progress=own_bar,
                probes=probes,
                chunk=at_once if trace.chunk is None or at_once == 1 else trace.chunk,
                differentiable=differentiable,
                checkpoint_every=checkpoint_every,
                shared=_checks.shared_names(conditions),
            )
            part = end.score(_dense(solver.run(problem), solver), problem)
            if coarser is not None:
                second = coarser.run(replace(problem, progress=False))
                part = _with_second(part, end.score(_dense(second, coarser), problem))
            parts.append(part)
        return _joined(parts) if parts else _of_none(straight(model, x, ends[0]))


def log_prob(
    model: Model,
    x: Tensor,
    solver: Solver | None = None,
    *,
    trace: str | Trace = "auto",
    prior: Density | None = None,
    generator: Generators = None,
    cond: Cond = None,
    u: tuple[float, float] | None = None,
    check: bool = True,
    batch_size: int | None = None,
    progress: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Log-density of data under the model's ODE, in nats, (B,): `log_likelihood` without its errors.

    Args:
        model: as in `log_likelihood`.
        x: the data, (B, *event).
        solver: as in `log_likelihood`: by default AdamsUntil(1e-3, first=120), to 1e-3 nats by its own estimate.
        trace: as in `log_likelihood`: exact up to 256 dimensions by default.
        prior: as in `log_likelihood`.
        generator: as in `log_likelihood`.
        cond: as in `log_likelihood`.
        u: as in `log_likelihood`.
        check: as in `log_likelihood`.
        batch_size: as in `log_likelihood`.
        progress: as in `log_likelihood`.
        mask: as in `log_likelihood`.

    Returns:
        the log-density, (B,), without a gradient.

    Raises:
        TypeError: as `log_likelihood`.
        ValueError: as `log_likelihood`.
        NonFiniteError: as `log_likelihood`.

    Examples:
        >>> model = sdegen.Gaussian([0.0, 0.0], 1.0).model(sdegen.CondOT())
        >>> f"{sdegen.log_prob(model, torch.zeros(1, 2)).item():.3f}"  # -log(2 pi)
        '-1.838'
    """
    return log_likelihood(
        model,
        x,
        solver,
        trace=trace,
        prior=prior,
        generator=generator,
        cond=cond,
        u=u,
        check=check,
        batch_size=batch_size,
        progress=progress,
        mask=mask,
    ).log_prob


@dataclass(frozen=True)
class _End:
    """What turns the end of a solve into a log-density: the prior there, whose it is, and draws of the data."""

    prior: Density
    own: bool
    data: Tensor | None

    def score(self, result: Result, problem: Problem) -> LogLikelihood:
        """The log-densities of one solve."""
        model, d, mask = problem.model, event_size(problem.y.shape), cast("Tensor | None", problem.cond.get(MASK))
        low, high = (scale_at(model, end) for end in (problem.u_from, problem.u_to))
        z, divergence = high * result.y, cast(Tensor, result.divergence).reshape(len(result.y), -1)
        at_noise = self._at_noise(z)
        there = at_noise.new_full((), d) if mask is None else count(mask).to(at_noise)
        if isinstance(self.prior, Normal):
            at_noise = at_noise - (d - there) * log_normal_at_zero(self.prior.std)
        units = units_at(model, problem.u_from)
        scale = there * math.log(high / low) - (0.0 if units is None else units.log_volume(z, mask))
        logp = at_noise + divergence.mean(1) + scale
        _refuse_non_finite(logp, self.own or model.path.source is not None, problem.u_to)
        error = result.divergence_error if model.path.source is None else None  # with a source nobody knows the score
        if error is not None:
            size = (at_noise.abs() + divergence.abs().mean(1) + scale.abs()).detach()
            error = error.detach() + ROUNDING * torch.finfo(logp.dtype).eps * size
        cost = (result.calls, result.accepted, result.rejected)
        gap = self._gap(z.detach(), at_noise.detach(), problem.u_to, high, model.path.source is not None)
        probes = _probe_error(divergence.detach(), cast(Probes, problem.probes).exact)
        return LogLikelihood(logp, z, error, probes, gap, *cost)

    def _at_noise(self, z: Tensor) -> Tensor:
        logp = self.prior.log_prob(z)
        if not isinstance(logp, Tensor) or logp.shape != (len(z),):
            got = tuple(logp.shape) if isinstance(logp, Tensor) else type(logp).__name__
            raise ValueError(
                f"prior.log_prob must return one number per sample, shape ({len(z)},), and it returned {got}."
            )
        return logp

    def _gap(self, z: Tensor, logp: Tensor, u: float, scale: float, sourced: bool) -> Tensor | None:
        if u == 1 and not self.own:
            return torch.zeros_like(logp)
        if self.data is None or sourced:
            return None
        return prior_gap(z, logp, self.data, (1 - u) * scale, u * scale)


def _dense(result: object, solver: Solver) -> Result:
    """What a solver's `run` returned, after a ValueError if its density is not there."""
    result = checked_result(result, solver)
    if result.divergence is None:
        raise ValueError(f"{solver!r} solves the ODE without its density: its Result has no divergence.")
    return result


def _probe_error(divergence: Tensor, exact: bool) -> Tensor | None:
    if exact:
        return torch.zeros_like(divergence[:, 0])
    return standard_error(divergence) if divergence.shape[1] > 1 else None


def _with_second(first: LogLikelihood, second: LogLikelihood) -> LogLikelihood:
    """The first, with the difference of the second as its solver's error, and the cost of both."""
    cost = {name: getattr(first, name) + getattr(second, name) for name in ("calls", "accepted", "rejected")}
    return replace(first, solver_error=(first.log_prob - second.log_prob).detach().abs(), **cost)


def _of_none(y: Tensor) -> LogLikelihood:
    """The empty batch."""
    none = y.new_zeros(0)
    return LogLikelihood(none, y, none, none, none, 0, 0, 0)


def _joined(parts: Sequence[LogLikelihood]) -> LogLikelihood:
    """The parts of a batch in one."""

    def column(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else torch.cat(values)

    return LogLikelihood(
        torch.cat([part.log_prob for part in parts]),
        torch.cat([part.latent for part in parts]),
        column("solver_error"),
        column("probe_error"),
        column("prior_gap"),
        sum(part.calls for part in parts),
        sum(part.accepted for part in parts),
        sum(part.rejected for part in parts),
    )


def _coarser(solver: Solver) -> Solver | None:
    """The same solver at ten times the tolerance or with half the steps; None for one that has neither."""
    if isinstance(solver, ODESolver) and not solver.differentiable:
        return replace(solver, rtol=10 * solver.rtol, atol=10 * (solver.rtol if solver.atol is None else solver.atol))
    if not isinstance(solver, (ODESolver, Scheme)):
        return None
    grid, steps = solver.grid, steps_on(solver.grid, solver.steps) or 0
    if steps < 2:
        return None
    if isinstance(grid, Tensor):  # every second knot, and both ends
        return replace(solver, grid=torch.cat([grid[:-1:2], grid[-1:]]), steps=None)
    return replace(solver, steps=steps // 2)


def _checked_trace(trace: str | Trace, d: int) -> Trace:
    """The value that a name stands for."""
    if isinstance(trace, (Exact, Hutchinson)):
        return trace
    if _checks.choice("trace", trace, ("exact", "auto")) == "exact" or d <= EXACT_UP_TO:
        return Exact()
    return Hutchinson(4 if d <= FEW_PROBES_FROM else 2)


def _masked(
    model: Model, x: Tensor, cond: Mapping[str, object], mask: Tensor | None, prior: Density | None, data: Tensor | None
) -> tuple[Model, Tensor, Mapping[str, object]]:
    """The model of the values that are there, the data without their padding, and the mask among the conditions."""
    if mask is None:
        return model, x, cond
    if prior is not None or data is not None or model.path.source is not None:
        raise ValueError(
            "A mask leaves every sample a dimension of its own, and only the path's own N(0, sigma^2) has a density on "
            "all of them: give neither prior nor data, on a path without a source of its own."
        )
    there = checked_mask(mask, x)
    return Masked(model), torch.where(there, x, 0.0), {**cond, MASK: there}


def _checked_data(data: Tensor | None, x: Tensor, model: Model) -> Tensor | None:
    """Draws of the data, with the event of `x`, in the network's units."""
    if data is None:
        return None
    _checks.batch("data", data)
    if data.shape[1:] != x.shape[1:] or len(data) < 2:
        raise ValueError(
            f"data must be two draws or more with the event of x, {tuple(x.shape[1:])}, and has {tuple(data.shape)}."
        )
    return data if model.standardize is None else model.standardize(data)


def _checked_prior(prior: Density | None, model: Model, u: float, d: int) -> Density:
    """The law at the noise end; one that tells its `event_size` is held to the data's before any network call."""
    prior = model.path.prior_at(u) if prior is None else prior
    if not callable(getattr(prior, "log_prob", None)):
        raise TypeError(f"prior must have a method log_prob(x) -> (B,), and {prior!r} has none.")
    size = getattr(prior, "event_size", d)
    if size != d:
        raise ValueError(f"x has {d} values a sample, and the prior is a law over {size}: {prior!r}.")
    return prior


def _refuse_non_finite(logp: Tensor, may_vanish: bool, u: float) -> None:
    """A prior of the user's may well be zero somewhere; nothing else may."""
    bad = int((torch.isnan(logp) | (logp == math.inf)).sum() if may_vanish else (~torch.isfinite(logp)).sum())
    if bad:
        raise NonFiniteError(
            f"The log-density of {bad} of {len(logp)} samples is not finite at the noise end, u = {u:.6g}: the latents "
            "are too large for the precision; use float64, smaller steps or a tighter tolerance."
        )
