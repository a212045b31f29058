"""What a solve does with its arguments and its ends: refusals, times as the grid has them, and a last look."""

from __future__ import annotations

import math

import pytest
import torch
from problems import PATHS

import sdegen


def never(x, t):
    raise AssertionError("The network must not be called.")


@pytest.mark.parametrize(
    "make",
    [
        lambda: sdegen.SDESolver("euler", 3, eta=True),
        lambda: sdegen.ODESolver("dopri5", rtol=True),
        lambda: sdegen.PowerGrid(True),
    ],
)
def test_a_truth_value_is_no_number(make):
    with pytest.raises(TypeError, match="must be a real number, and True is bool"):
        make()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_noise_that_is_not_finite_is_refused(value):
    model, noise = sdegen.ScoreModel(never, sdegen.VPSDE()), torch.randn(3, 4, 2)
    noise[1, 2, 0] = value
    for solver in (sdegen.SDESolver("euler", 3), sdegen.Ancestral(3), sdegen.DDIM(3, eta=0.5)):
        with pytest.raises(ValueError, match="noise holds NaN or infinite values in 1 of its 3"):
            sdegen.solve(model, torch.randn(4, 2), solver, noise=noise)


@pytest.mark.parametrize("to", ["data", "noise"])
def test_the_times_of_a_solve_are_those_of_its_grid(to):
    """To the last digit, and not the inverse of their clocks."""
    path = sdegen.VPSDE()
    model = sdegen.ScoreModel(lambda x, t: x, path, "v")
    solver = sdegen.ODESolver("euler", steps=7, grid=sdegen.PowerGrid(1, "t"))
    t = torch.arange(7, -1, -1, dtype=torch.float64) / 7
    assert torch.equal(sdegen.solve(model, torch.randn(4, 2), solver, to=to).t, t if to == "data" else t.flip(0))


@pytest.mark.parametrize("solver", [sdegen.Ancestral(5), sdegen.ODESolver("rk4", steps=5), sdegen.ODESolver("dopri5")])
def test_ends_beyond_the_path_by_rounding_are_its_ends(solver):
    path = sdegen.VPSDE()
    model, x = sdegen.ScoreModel(lambda x, t: torch.tanh(x), path, "v"), torch.randn(4, 2)
    low, high = path.ends

    def solved(u):
        return sdegen.solve(model, x, solver, u=u, generator=torch.Generator().manual_seed(0))

    rounded, exact = solved((high + 5e-13, low - 5e-13)), solved(None)
    assert rounded.u.tolist() == exact.u.tolist()
    assert torch.equal(rounded.x, exact.x)


def test_a_grid_in_single_precision_meets_the_ends_and_y_is_x_over_r():
    path = sdegen.VESDE()
    (low, high), model = path.ends, sdegen.ScoreModel(lambda x, t: torch.tanh(x), path, "v")
    grid = torch.linspace(high, low, 6, dtype=torch.float64).float()
    for to in ("data", "noise"):
        solution = sdegen.solve(model, torch.randn(4, 2), sdegen.ODESolver("rk4", grid=grid), to=to)
        first, last = (high, low) if to == "data" else (low, high)
        assert solution.u[[0, -1]].tolist() == [first, last]
        torch.testing.assert_close(solution.x, path.scale(last) * solution.y, rtol=1e-14, atol=0)
        assert float(path.scale(last) - 1) > 0.009


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_a_solve_runs_from_end_to_end_of_the_time(path):
    """To the last digit, whatever the inverse of the clock says there."""
    model = sdegen.ScoreModel(lambda x, t: torch.tanh(x), path, "v")
    solution = sdegen.solve(model, torch.randn(2, 2), sdegen.ODESolver("midpoint", steps=3))
    assert solution.t[[0, -1]].tolist() == [path.t_noise, path.t_data]
    assert solution.u[[0, -1]].tolist() == [path.ends[1], path.ends[0]]


@pytest.mark.parametrize(
    "solver",
    [sdegen.SDESolver("euler", 5), sdegen.ODESolver("euler", steps=5), sdegen.Ancestral(5), sdegen.DDIM(5)],
    ids=repr,
)
def test_the_end_is_looked_at_however_few_the_steps(solver):
    asked = []

    def lost_at_last(x, t):
        asked.append(t)
        return torch.tanh(x) * (math.nan if len(asked) == 5 else 1)

    with pytest.raises(sdegen.NonFiniteError, match="in 4 of 4 samples at the clock u = 0 or"):
        sdegen.solve(sdegen.ScoreModel(lost_at_last, sdegen.VPSDE(), "v"), torch.randn(4, 2), solver)
    assert len(asked) == 5


@pytest.mark.parametrize("to", ["data", "noise"])
def test_a_solve_from_a_clock_to_itself_is_refused(to):
    with pytest.raises(ValueError, match=rf"A solve to the {to} needs u with from . to, and it is \(0.5, 0.5\)"):
        sdegen.solve(
            sdegen.ScoreModel(never, sdegen.VPSDE()), torch.randn(4, 2), sdegen.ODESolver(), to=to, u=(0.5, 0.5)
        )
