"""Schemes of the user's own on the two loops: those of the docstrings, by law, and what a loop does with any rows."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass

import pytest
import torch
from problems import PATHS, ring, slope, two_modes

import sdegen
from sdegen.solvers.multistep import answers_kept, joined_rows


def printed(kind: type[sdegen.Solver], name: str, last: str) -> type[sdegen.Solver]:
    """The scheme that a docstring prints, from its decorator to its last line."""
    text = inspect.cleandoc(kind.__doc__)
    (program,) = re.findall(rf"(    @dataclass(?:(?!@dataclass).)*?{re.escape(last)})", text, re.S)
    assert len(program.splitlines()) <= 10
    names = {"sdegen": sdegen, "torch": torch, "dataclass": dataclass}
    exec(textwrap.dedent(program), names)
    return names[name]


AdamsBashforth2 = printed(sdegen.Multistep, "AdamsBashforth2", "return [sdegen.Row(1.0, (h[0],)), *later]")
Midpoint = printed(sdegen.OneStep, "Midpoint", "sdegen.Row(1.0, (h,)))]")


@dataclass(frozen=True, eq=False)
class RK4(sdegen.OneStep):
    """The classical method: four answers, the newest first."""

    solves_ode = True

    def stages(self, u, v):
        h, half = v - u, 0.5 * (u + v)
        rows = [(half, (h / 2,)), (half, (h / 2, 0.0)), (v, (h, 0.0, 0.0)), (v, (h / 6, h / 3, h / 3, h / 6))]
        return [sdegen.Stage(clock, sdegen.Row(1.0, weights)) for clock, weights in rows]


@pytest.mark.parametrize(("make", "order", "calls"), [(AdamsBashforth2, 2, 1), (Midpoint, 2, 2), (RK4, 4, 4)])
@pytest.mark.parametrize("path", ["vp", "condot", "ve", "own vp"])
def test_the_fitted_order(make, order, calls, path):
    path = PATHS[path]
    model, u = two_modes().model(path), (0.9, 0.1)
    x = torch.linspace(-1.5, 1.5, 16)[:, None] * float(path.scale(0.9))
    exact = sdegen.solve(model, x, sdegen.ODESolver("dopri8", rtol=1e-12, atol=1e-13), u=u).x
    steps = [16, 32, 64, 128]
    solutions = [sdegen.solve(model, x, make(n), u=u) for n in steps]
    assert [s.calls for s in solutions] == [calls * n for n in steps]
    assert abs(slope(steps, [float((s.x - exact).abs().max()) for s in solutions]) - order) < 0.25


@pytest.mark.parametrize("make", [AdamsBashforth2, Midpoint, RK4])
def test_schemes_of_slopes_go_both_ways_and_carry_the_density(make):
    target, path = ring(), sdegen.CondOT()
    model, x = target.model(path), ring().sample(6)
    there_and_back = sdegen.decode(model, sdegen.encode(model, x, make(200)), make(200))
    assert float((there_and_back - x).abs().max()) < 2e-2
    errors = [float((sdegen.log_prob(model, x, make(n)) - target.log_prob(x)).abs().max()) for n in (128, 256)]
    assert errors[1] < errors[0] / 3
    one = sdegen.log_prob(model, x, make(40), trace=sdegen.Hutchinson(1))
    assert one.shape == (6,)


def test_the_midpoint_is_the_engines():
    model, x = ring().model(sdegen.VPSDE()), torch.randn(5, 2)
    theirs = sdegen.solve(model, x, sdegen.ODESolver("midpoint", steps=9, grid=sdegen.PowerGrid(2)), trajectory=True)
    ours = sdegen.solve(model, x, Midpoint(9), trajectory=True)
    torch.testing.assert_close(ours.trajectory, theirs.trajectory)


def test_a_stage_at_a_knot_is_shown_the_knots_own_time():
    """t is exactly k/K at the knots of a chain, and the path's time between them."""
    path, seen = sdegen.DDPM.linear(8, 1e-3, 0.3), []

    def net(x, t):
        seen.append(float(t[0]))
        return 0.1 * x

    sdegen.solve(sdegen.ScoreModel(net, path), torch.zeros(2, 2), RK4(8, grid=sdegen.PowerGrid(1, "t")))
    assert seen[::4] == [k / 8 for k in range(8, 0, -1)]
    assert seen[3::4] == [k / 8 for k in range(7, -1, -1)]
    assert all(k < 8 * t < k + 1 for k, t in zip(range(7, -1, -1), seen[1::4], strict=True))


def test_answers_are_kept_as_long_as_a_later_row_needs_them():
    """A row that looks back less than the next one does not make it forget."""
    rows = [sdegen.Row(1.0, [1.0] * n) for n in (1, 1, 3, 2, 1, 1)]
    assert answers_kept(rows) == [1, 2, 1, 0, 0, 0]

    @dataclass(frozen=True, eq=False)
    class Uneven(sdegen.Multistep):
        def predictor(self, knots):
            return [sdegen.Row(1.0, weights) for weights in ((0.0,), (0.0,), (0.0, 0.0, 1.0))]

    path = sdegen.CondOT()
    times = [
        float(path.clock(t))
        for t in sdegen.solve(
            sdegen.ScoreModel(lambda x, t: t[:, None].expand_as(x), path, "velocity"), torch.zeros(1, 1), Uneven(3)
        ).t
    ]
    end = sdegen.solve(
        sdegen.ScoreModel(lambda x, t: t[:, None].expand_as(x), path, "velocity"), torch.zeros(1, 1), Uneven(3)
    )
    assert times[0] == 1
    assert float(end.x) == pytest.approx(0.0)  # the velocity at t = 0, the first answer of three


def test_predictor_and_corrector_must_keep_alike():
    rows = [sdegen.Row(1.0, (0.5,)), sdegen.Row(1.0, (0.5,))]
    assert joined_rows(rows, [sdegen.Row(1.0, (0.25, 0.25))])[1].weights == pytest.approx([0.75, -0.25])
    with pytest.raises(ValueError, match=r"step 0 must keep alike: 1.0 and 0.9"):
        joined_rows(rows, [sdegen.Row(0.9, (0.25, 0.25))])


def test_what_is_not_a_scheme_of_slopes_has_no_density():
    @dataclass(frozen=True, eq=False)
    class OnData(sdegen.OneStep):
        solves_ode = True
        asks = "data"

        def stages(self, u, v):
            return [sdegen.Stage(v, sdegen.Row(v / u, (1 - v / u,)))]

    model, x = ring().model(sdegen.VPSDE()), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="OnData works on the data, and a log-density needs slopes"):
        sdegen.log_prob(model, x, OnData(4))
