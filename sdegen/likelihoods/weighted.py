"""Importance sampling: draws of the ODE model stand for another law, each with a weight.

A law is known up to a factor, pi(x) = exp(log_target(x)) / Z. With x_i ~ p drawn by the ODE and p its exact density,

    w_i = exp(log_target(x_i)) / p(x_i)          E w = Z          E[w f] / E[w] = the mean of f under pi

Over n draws, with W_i = w_i / sum of w, the mean of f is estimated by mu = sum of W_i f(x_i), with the error of the
delta method, n/(n-1) times the sum of W_i^2 (f(x_i) - mu)^2 under the root; log Z by the log of the mean weight, which
is too low by about half its squared error. Both errors say nothing of a part of pi where no draw fell.

References:
    Monte Carlo Theory, Methods and Examples, Owen, 2013, chapter 9.
    Boltzmann Generators: Sampling Equilibrium States of Many-Body Systems with Deep Learning, Noé et al., 2019,
    arXiv:1812.01729.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import batch_parts, check_model
from sdegen._shapes import Generators, summary
from sdegen._solving import prior_draws
from sdegen.likelihoods.density import log_prob
from sdegen.models.base import Cond, Model
from sdegen.sampling import ode_solver, solve
from sdegen.solvers.base import Solver, under_bar


class Estimate(NamedTuple):
    """A number that was estimated from draws.

    Attributes:
        value: the estimate.
        standard_error: of it, shaped alike; NaN for a single draw.

    Examples:
        >>> model = sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT())
        >>> mean = sdegen.importance(model, lambda x: -0.5 * x[:, 0] ** 2, 400, shape=(1,)).mean(lambda x: x)
        >>> bool(mean.value.abs() < 5 * mean.standard_error)
        True
    """

    value: Tensor
    standard_error: Tensor


@dataclass(frozen=True, eq=False)
class Importance:
    """Draws of a model, weighted to stand for a law known up to a factor.

    Attributes:
        samples: (n, *event).
        log_weights: log_target - log p, (n,), in nats, float64; -inf where the law has no mass.

    Examples:
        >>> model = sdegen.Gaussian([0.0], 2.0).model(sdegen.CondOT())
        >>> found = sdegen.importance(model, lambda x: -0.5 * x[:, 0] ** 2, 500, shape=(1,))
        >>> bool(found.effective_size < 500), f"{found.mean(lambda x: x[:, 0] ** 2).value:.0f}"  # that of N(0, 1)
        (True, '1')
    """

    samples: Tensor
    log_weights: Tensor

    __repr__ = summary

    @property
    def effective_size(self) -> Tensor:
        """Kish's (sum of w)^2 / sum of w^2, between 1 and n, 0-dimensional."""
        return 1 / self._weights().square().sum()

    @property
    def log_normaliser(self) -> Estimate:
        """log Z, the log of the mean weight, in nats: log E w, in expectation from below, and its standard error."""
        n = len(self.log_weights)
        relative = n * self._weights()
        error = ((relative - 1).square().sum() / (n - 1) / n).sqrt() if n > 1 else relative[0] * math.nan
        return Estimate(torch.logsumexp(self.log_weights, 0) - math.log(n), error)

    def mean(self, f: Callable[[Tensor], Tensor]) -> Estimate:
        """The mean of `f` under the law, and its standard error by the delta method.

        Args:
            f: from samples (n, *event) to real numbers or booleans (n, ...); what it says where a weight is zero does
                not count.

        Returns:
            The estimate and its standard error, (...), float64.

        Raises:
            TypeError: `f` returns no such tensor.
            ValueError: `f` returns a tensor of another length.

        Examples:
            >>> model = sdegen.Gaussian([0.0], 2.0).model(sdegen.CondOT())
            >>> found = sdegen.importance(model, lambda x: -0.5 * x[:, 0] ** 2, 500, shape=(1,))
            >>> f"{found.mean(lambda x: torch.ones(len(x))).value:.4f}"  # the weights are normalised
            '1.0000'
        """
        values, n = f(self.samples.clone()), len(self.samples)
        if not isinstance(values, Tensor) or values.is_complex():
            got = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"f must return a tensor of real numbers, and it returned {got}.")
        if not values.ndim or len(values) != n:
            raise ValueError(f"f must return one value per sample, shape ({n}, ...), not {tuple(values.shape)}.")
        weights = self._weights().reshape(-1, *[1] * (values.ndim - 1))
        values = torch.where(weights == 0, 0.0, values.detach().to(weights))
        mean = (weights * values).sum(0)
        spread = (weights * (values - mean)).square().sum(0)
        return Estimate(mean, (spread * n / (n - 1)).sqrt() if n > 1 else mean * math.nan)

    def _weights(self) -> Tensor:
        """The weights over their sum, (n,)."""
        return torch.softmax(self.log_weights, 0)


def importance(
    model: Model,
    log_target: Callable[[Tensor], Tensor],
    n: int,
    *,
    shape: Sequence[int],
    solver: Solver | None = None,
    generator: Generators = None,
    cond: Cond = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Importance:
    """Self-normalised importance sampling of a law known up to a factor, with the ODE model as proposal.

        log w_i = log_target(x_i) - log p(x_i),   x_i ~ p

    Draws start from the path's prior and follow the ODE to the data; a second solve, back towards noise, gives p, the
    density of `log_prob`, with the exact trace: the error of a random one would bias the weights. What the solver
    misses in log p is missing in log w.

    Args:
        model: as in `sample`; it should have mass wherever the law has some.
        log_target: from samples (B, *event) to their unnormalised log-density under the law, (B,), in nats; -inf where
            the law has no mass.
        n: the number of draws.
        shape: of one sample, (*event,).
        solver: one that solves the ODE both ways; by default those of `decode` and of `log_prob`.
        generator: for the draws, a torch.Generator or one per sample.
        cond: keyword arguments for the network, as in `sample`; a tensor with n rows has one per sample.
        batch_size: draws in one network call and in one call of `log_target`; all of them by default.
        progress: whether to show a bar, of the solve towards the data, or of the parts where there are several (needs
            tqdm).

    Returns:
        The draws and their log-weights, with `.effective_size`, `.log_normaliser` and `.mean(f)`.

    Raises:
        TypeError: an argument of another type, before the first network call; `log_target` returns no real tensor.
        ValueError: an argument that does not fit, before the first network call; `log_target` returns another shape,
            NaN or +inf, or -inf at every draw.
        NonFiniteError: a state or a log-density became NaN or infinite.

    Examples:
        >>> model = sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT())
        >>> found = sdegen.importance(model, lambda x: -0.5 * x[:, 0] ** 2, 100, shape=(1,))
        >>> f"{found.log_normaliser.value:.3f}"  # log sqrt(2 pi): the weights of an exact proposal are equal
        '0.919'

    References:
        Monte Carlo Theory, Methods and Examples, Owen, 2013, chapter 9.
    """
    check_model(model)
    if not callable(log_target):
        raise TypeError(f"log_target must be a function from samples to log-densities, and it is {log_target!r}.")
    sizes = _sizes(n, shape)
    towards_data, cond = ode_solver(solver), _checks.conditions(cond)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    parts = list(batch_parts(like.new_empty(n, 0), batch_size))
    conditions = [_checks.conditions_of_rows(cond, rows, n) for rows in parts]
    _checks.generators(generator, n, like.device)
    z = prior_draws(model, like.detach().new_empty(sizes), model.path.ends[1], generator)
    samples, log_weights = [], []
    for (rows, received), own_bar in under_bar(list(zip(parts, conditions, strict=True)), progress):
        x = solve(model, z[rows], towards_data, cond=received, progress=own_bar).x
        target = _checked_target(log_target(x.clone()), len(x))
        samples.append(x)
        log_weights.append(target - log_prob(model, x, solver, trace="exact", cond=received).double())
    result = Importance(torch.cat(samples), torch.cat(log_weights))
    if bool((result.log_weights == -math.inf).all()):
        raise ValueError(f"log_target is -inf at all of {n} draws of the model: no weight is positive.")
    return result


def _sizes(n: object, shape: object) -> tuple[int, ...]:
    """(n, *event)."""
    n = _checks.whole("n", n)
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"shape must be that of one sample, a tuple of integers such as (2,), and it is {shape!r}.")
    event = tuple(_checks.whole("every size in shape", size) for size in shape)
    if not event:
        raise ValueError("shape must be that of one sample, a tuple such as (2,), and it is ().")
    return n, *event


def _checked_target(value: object, n: int) -> Tensor:
    """What log_target returned for n samples, in float64 without a gradient."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"log_target must return a tensor of floating log-densities, and it returned {got}.")
    if value.shape != (n,):
        raise ValueError(
            f"log_target must return one number per sample, shape ({n},), and it returned {tuple(value.shape)}."
        )
    bad = int((value.isnan() | (value == math.inf)).sum())
    if bad:
        raise ValueError(f"log_target is NaN or +inf at {bad} of {n} samples; it may be -inf, where there is no mass.")
    return value.detach().double()
