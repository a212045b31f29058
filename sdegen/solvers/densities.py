"""Log-densities on a fixed grid by Adams' method: y by its steps, the divergence by a quadrature along them.

With D = eps_hat - x_hat, from the data end u_0 to the noise end u_N, each step k

    predicts   y_{k+1} by the polynomial through the last p slopes,
    asks       D_{k+1} there, and at every second knot div D too,
    corrects   y_{k+1} by the polynomial of one degree more,

so that N steps are N + 1 network calls, and half as many traces. Then

    log p(y_0) = log p(y_N) + integral of div D over u ~ log p(y_N) + sum over the second knots of W_j div D_j

with centred polynomials of degree 5. The error is estimated without a further network call,

    1/10 sum over k of |score_{k+1} . (corrected - predicted)|                                          the states
    + |quadrature of degree 5 - quadrature of degree 3|                                                 the integral
    + 0.8 K_13 min(1, K_13 / K_5),    K_m = sum over intervals of length |m-th difference of div D| / 2^(m-1)
    + the rounding of N steps

What a corrector moves is the predictor's error, an order larger than its own; weighed with the score it is in nats
(divergence.py). Where a network has kinks its divergence jumps, which the quadrature misses by up to half an interval:
a jump has K_m its size times the interval for every m, and a smooth function K_13 far below K_5. An estimated trace has
differences of its own, and is spared the third line, and where every query has another probe the second one too: those
would tell of the probes.

References:
    Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, section III.1.
    FFJORD, Grathwohl et al., 2019, arXiv:1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from sdegen.solvers.base import Problem, Result
from sdegen.solvers.divergence import Probes, in_nats
from sdegen.solvers.grids import Layout
from sdegen.solvers.loop import Ask, Memory, MemoryStep, march
from sdegen.solvers.polynomials import exact_rows, integral_weights
from sdegen.solvers.scheme import moved

SHARE = 0.1
"""Of what the corrector moves, that counts as the error of a step."""
POINTS = 6
"""Of the polynomials in the quadrature."""
KINK_ORDERS = (13, 5)
"""The orders of the differences that tell a jump of the divergence, which they show alike, from its bends."""
KINK_SHARE = 0.8
"""Of K_13, that counts as the error of a quadrature over kinks."""
STRIDE, FEW = 2, 12
"""The divergence is asked at every second knot, and at every one below this many steps."""


def solve_density(problem: Problem, knots: Layout, order: int) -> Result:
    """The state at the noise end and the integral of the divergence on the way, by N + 1 network calls for N steps."""
    steps = len(knots.u) - 1
    nodes = [*range(0, steps, STRIDE if steps >= FEW else 1), steps]
    begun = (problem.y.new_zeros(len(problem.y)),)
    result = march(replace(problem, probes=None), knots.u, knots.t, _stepping(problem, knots, order, nodes), begun)
    moves, values = result.memory[0], torch.stack(result.memory[1 + min(steps + 1, order) :])
    laid = Layout(knots.u[nodes], knots.t[nodes], knots.clock)
    weights = integral_weights(laid, POINTS)
    integral = torch.tensordot(weights.to(values), values, 1)
    size, probes = 0.5 * far(result.y, problem.u_to) + integral.detach().mean(1).abs(), cast(Probes, problem.probes)
    error = SHARE * moves + math.sqrt(steps) * torch.finfo(size.dtype).eps * size
    if not probes.fresh:
        error = error + _roughness(laid, weights, values.detach(), probes.exact)
    return replace(result, calls=steps + 1, divergence=integral, divergence_error=error, memory=())


def far(y: Tensor, u: float) -> Tensor:
    """|y/u|^2, (B,): how far out a latent is, d for noise."""
    return (y / u).flatten(1).square().sum(1)


def _stepping(problem: Problem, knots: Layout, order: int, nodes: Sequence[int]) -> MemoryStep:
    """The step of `march`; its memory: what correctors have moved (B,), the last slopes, all divergences (B, R)."""
    steps, u, model, cond, y = len(knots.u) - 1, knots.u, problem.model, problem.cond, problem.y
    predictor, corrector = exact_rows(knots, order, steps), exact_rows(knots, order + 1, steps, ahead=1)
    queries = list(model.plan(y, u, knots.t, -torch.ones_like(u), torch.ones_like(u)))
    numbers, clocks, d = {k: j for j, k in enumerate(nodes)}, u.tolist(), y[0].numel()

    def ask(y: Tensor, k: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """D at knot k, and its divergences where they are wanted."""
        if k not in numbers:
            return model.estimate(y, queries[k], cond), ()
        answer = problem.with_divergence(y, queries[k], numbers[k])
        return answer[:, :d].reshape(y.shape), (answer[:, d:],)

    def step(k: int, y: Tensor, _: Ask, memory: Memory) -> tuple[Tensor, Memory]:
        behind = 1 + min(k + 1, order)
        slopes, divergences = memory[1:behind], memory[behind:]
        if k == 0:
            D, divergences = ask(y, 0)
            slopes = (D,)
        predicted = moved(predictor[k], y, slopes)
        D, more = ask(predicted, k + 1)
        corrected = moved(corrector[k], y, (D, *slopes))
        with torch.no_grad():
            move = in_nats((corrected - predicted).flatten(1), predicted.flatten(1), D.flatten(1), clocks[k + 1])
            moves = memory[0] + move.abs()
        return corrected, (moves, *(D, *slopes)[:order], *divergences, *more)

    return step


def _roughness(nodes: Layout, weights: Tensor, values: Tensor, exact: bool) -> Tensor:
    """How far the quadrature of divergences (n, B, R) by these weights may be off, (B,)."""
    apart = weights - integral_weights(nodes, POINTS - 2)
    error: Tensor = torch.tensordot(apart.to(values), values, 1).mean(1).abs()
    if not exact:
        return error
    high, low = (_jumps(nodes, values[..., 0], order) for order in KINK_ORDERS)
    return error + KINK_SHARE * high * (high / low.clamp(min=torch.finfo(low.dtype).tiny)).clamp(max=1)


def _jumps(nodes: Layout, values: Tensor, order: int) -> Tensor:
    """The sum over the intervals of their length times |difference of this order|, 1 for a jump of 1, (B,)."""
    order = min(order, len(values) - 1)
    differences = torch.diff(values, order, 0).abs()
    middle = torch.arange(len(values) - 1).sub(order // 2).clamp(0, len(differences) - 1)
    lengths = torch.zeros(len(differences), dtype=torch.float64).index_add_(0, middle, torch.diff(nodes.u))
    total: Tensor = torch.tensordot(lengths.to(values), differences, 1)
    return 0.5 ** (order - 1) * total
