"""The weights of Adams' density: exact on polynomials in the grid's clock."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import PATHS, ring

import sdegen
from sdegen.solvers.base import Problem
from sdegen.solvers.polynomials import exact_rows, integral_weights

GRIDS = {
    "u^2": sdegen.PowerGrid(2),
    "t^2": sdegen.PowerGrid(2, "t"),
    "u": sdegen.PowerGrid(1),
    "stretched": sdegen.StretchedGrid(gain=0.0),
}


def laid(grid, steps, path="vp", ends=None):
    path = PATHS[path]
    problem = Problem(ring().model(path), torch.zeros(1, 2), *(ends or path.ends))
    return problem.lay(grid, steps)


def integrals(knots, power):
    """The integral of s(u)^power over u from every knot to the next, by 40 nodes: u(s) is smooth between them."""
    x, w = (torch.from_numpy(n) for n in np.polynomial.legendre.leggauss(40))
    s = knots.clock.s(knots.u)
    length, u = torch.diff(s), knots.u
    inside = s[:-1, None] + length[:, None] * 0.5 * (x + 1)
    if power == 0:
        return torch.diff(u)
    rest = (0.5 * w * power * inside ** (power - 1) * knots.clock.u(inside)).sum(1) * length
    return s[1:] ** power * u[1:] - s[:-1] ** power * u[:-1] - rest


@pytest.mark.parametrize("path", ["vp", "condot", "cosine"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 17, 40])
def test_quadrature_is_exact_on_polynomials(steps, grid, path):
    """Of degree `points` - 1 in s, over the whole way; where there are fewer knots, of theirs."""
    knots = laid(GRIDS[grid], steps, path)
    s = knots.clock.s(knots.u)
    for points in (4, 6):
        weights = integral_weights(knots, points)
        for power in range(min(points, steps + 1)):
            expected = float(integrals(knots, power).sum())
            allowed = 1e-5 if steps == 1 else 1e-8  # one step of VP's clock is hard on any quadrature
            assert abs(float((weights * s**power).sum()) - expected) < allowed * max(1, abs(expected))


@pytest.mark.parametrize("points", [4, 6])
@pytest.mark.parametrize("steps", [12, 13])
def test_quadrature_on_uniform_knots(steps, points):
    """On uniform knots the weights are those of the mirror image, and h away from the ends."""
    weights = integral_weights(laid(GRIDS["u"], steps, "condot"), points)
    torch.testing.assert_close(weights, weights.flip(0), rtol=0, atol=1e-12)
    inside = weights[points : steps + 1 - points]
    torch.testing.assert_close(inside, torch.full_like(inside, 1 / steps), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("most", [1, 2, 4, 5])
def test_rows_are_exact_on_polynomials(most, ahead, grid):
    """The value at the knot `ahead` first and backwards, as many as there are; nothing else is weighed."""
    knots = laid(GRIDS[grid], 9)
    s, rows = knots.clock.s(knots.u), exact_rows(knots, most, 9 - ahead, ahead)
    assert len(rows) == 9 - ahead
    for power in range(most):
        expected = integrals(knots, power)
        for k, row in enumerate(rows):
            weights = torch.tensor(row.weights)
            known = min(most, k + 1 + ahead)
            assert (row.keep, row.std) == (1, 0)
            assert bool((weights[known:] == 0).all())
            if power < known:
                values = s[[k + ahead - j for j in range(known)]] ** power
                assert abs(float((weights[:known] * values).sum()) - float(expected[k])) < 1e-9


def test_a_grid_without_a_clock_is_refused():
    model, x = ring().model(sdegen.VPSDE()), torch.zeros(2, 2)
    grid = sdegen.KarrasGrid(float("inf"))
    with pytest.raises(ValueError, match=r"Adams needs a grid whose clock s\(u\) is finite at both ends"):
        sdegen.log_prob(model, x, sdegen.Adams(20, grid=grid))
    with pytest.raises(ValueError, match=r"Adams needs a grid whose clock s\(u\) is finite at both ends"):
        sdegen.log_prob(model, x, sdegen.AdamsUntil(grid=grid))
