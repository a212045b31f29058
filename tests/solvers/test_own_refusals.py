"""What users write themselves, grids and schemes, is looked at before the first network call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from chains import Counting
from problems import ring

import sdegen
from sdegen import Layout, Row, Stage

VP = sdegen.VPSDE()
SOLVERS = {
    "rk4": lambda grid: sdegen.ODESolver("rk4", steps=5, grid=grid),
    "sde": lambda grid: sdegen.SDESolver("euler", 5, grid=grid),
    "ancestral": lambda grid: sdegen.Ancestral(5, grid=grid),
    "adams": lambda grid: sdegen.Adams(5, grid=grid),
    "stochastic": lambda grid: sdegen.StochasticAdams(5, grid=grid),
}


@dataclass(frozen=True)
class Own(sdegen.Grid):
    """Lays what it is told to."""

    what: Callable

    def lay(self, model, high, low, steps):
        return self.what(model.path, torch.linspace(high, low, steps + 1))


def laid(path, u):
    return Layout(u, path.time(u), None)


GRIDS = {
    "too many": lambda path, u: laid(path, torch.linspace(float(u[0]), 0.0, 11)),
    "too few": lambda path, u: laid(path, torch.linspace(float(u[0]), 0.0, 3)),
    "rising": lambda path, u: laid(path, u.flip(0)),
    "repeated": lambda path, u: laid(path, u[[0, 1, 2, 2, 4, 5]]),
    "NaN": lambda path, u: Layout(u * float("nan"), path.time(u), None),
    "other ends": lambda path, u: laid(path, 0.1 + 0.5 * u),
    "times too few": lambda path, u: Layout(u, path.time(u)[:-1], None),
}


def refused(solver, words, kind=ValueError):
    net = Counting()
    with pytest.raises(kind, match=words):
        sdegen.solve(sdegen.ScoreModel(net, VP), torch.randn(3, 2), solver)
    assert net.calls == 0


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_lays_as_many_falling_knots_as_were_asked_for(name, solver):
    refused(SOLVERS[solver](Own(GRIDS[name])), "must lay 6 knots, each below the one before, from u = 0.99")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("what", [None, [1.0, 0.0], (1, 2, 3)], ids=repr)
def test_a_grid_lays_a_layout(what, solver):
    refused(SOLVERS[solver](Own(lambda path, u: what)), "must return a Layout", TypeError)


def test_a_grid_keeps_its_knots():
    knots = torch.linspace(VP.ends[1], 0.0, 6) + 1e-9
    before, x = knots.clone(), torch.randn(3, 2)
    own = sdegen.solve(ring().model(VP), x, SOLVERS["rk4"](Own(lambda path, u: Layout(knots, path.time(u), None))))
    assert torch.equal(knots, before)
    assert own.u.tolist()[::5] == [VP.ends[1], 0.0]


def test_knots_that_coincide_by_rounding_are_refused():
    for grid in (sdegen.PowerGrid(300), sdegen.StretchedGrid(0.9999)):
        refused(sdegen.Adams(12, grid=grid), "must lay 13 knots")


def test_karras_refuses_a_start_below_its_sigma_min():
    model, x = ring().model(VP), torch.randn(3, 2)
    for rho in (7.0, float("inf")):
        with pytest.raises(ValueError, match=r"last knot but one at u = 0\.00199601, above the start at 0\.0015"):
            sdegen.solve(model, x, sdegen.UniPC(4, grid=sdegen.KarrasGrid(rho)), u=(0.0015, 0.0))


def test_adams_steps_over_tiny_intervals():
    """The table of its clock then has knots that coincide."""
    model, x = sdegen.ScoreModel(ring().model(VP).eps, VP), torch.randn(3, 2)
    for u, width in ((0.99, 1e-11), (0.5, 1e-12)):
        y = sdegen.solve(model, x, sdegen.Adams(4), u=(u, u - width)).x
        torch.testing.assert_close(y, x, rtol=1e-8, atol=1e-8)


def scheme(predicted, corrected=None, asked="slope"):
    @dataclass(frozen=True, eq=False)
    class Own(sdegen.Multistep):
        solves_ode = True
        asks = asked

        def predictor(self, knots):
            return predicted(torch.diff(knots.u).tolist())

        def corrector(self, knots):
            return corrected(torch.diff(knots.u).tolist()) if corrected else []

    return Own(4)


def euler(h):
    return [Row(1.0, (a,)) for a in h]


NONSENSE = {
    "a weight too many": (
        lambda h: [Row(1.0, (1.5 * a, -0.5 * a)) for a in h],
        "Row 0 .* weighs 2 answers, and only 1",
    ),
    "a row too many": (lambda h: euler([*h, 0.1]), "must give 4 rows, each a Row, and it gave 5"),
    "a row too few": (lambda h: euler(h[1:]), "must give 4 rows, each a Row, and it gave 3"),
    "no rows": (lambda h: [], "must give 4 rows, each a Row, and it gave 0"),
    "None": (lambda h: None, "must give 4 rows, each a Row, and it gave None"),
    "tuples": (lambda h: [(1.0, (a,), 0.0) for a in h], "each a Row, and it gave 4 of .'tuple'"),
    "a weight for weights": (lambda h: [Row(1.0, a) for a in h], "must hold finite numbers"),
    "NaN": (lambda h: [Row(float("nan"), (a,)) for a in h], "must hold finite numbers"),
    "negative noise": (lambda h: [Row(1.0, (a,), -0.1) for a in h], "no negative std"),
    "noise in an ODE": (lambda h: [Row(1.0, (a,), 0.1) for a in h], "its rows add noise"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_multistep_scheme_states_rows_that_fit(name):
    rows, words = NONSENSE[name]
    refused(scheme(rows), words)


def test_a_corrector_states_rows_that_fit():
    refused(scheme(euler, lambda h: [Row(1.0, (a, a, a)) for a in h[1:]]), "Row 0 .* weighs 3 answers, and only 2")
    refused(scheme(euler, lambda h: euler([*h, *h])), "must give 0 or 3 rows")
    refused(scheme(euler, lambda h: [Row(0.9, (a,)) for a in h[1:]]), "must keep alike")


def test_the_answer_asked_for_is_one_there_is():
    with pytest.raises(ValueError, match="Unknown answer to ask for 'velocity'"):
        scheme(euler, asked="velocity")


def one_step(stages_of):
    @dataclass(frozen=True, eq=False)
    class Own(sdegen.OneStep):
        solves_ode = True

        def stages(self, u, v):
            return stages_of(u, v)

    return Own(3)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (lambda u, v: [], "at least one Stage"),
        (lambda u, v: None, "at least one Stage"),
        (lambda u, v: [(v, Row(1.0, (v - u,)))], "at least one Stage"),
        (lambda u, v: [Stage(77.0, Row(1.0, (v - u,)))], "must lie at u = 0.4.*, and it lies at 77"),
        (lambda u, v: [Stage(v, Row(1.0, (v - u, 99.0)))], "Stage 0 .* weighs 2 answers, and only 1"),
    ],
)
def test_a_one_step_scheme_states_stages_that_fit(stages, words):
    refused(one_step(stages), words)


def test_decode_takes_what_follows_the_ode_and_encode_only_what_goes_both_ways():
    model, z = ring().model(VP), torch.randn(16, 2)
    fine = sdegen.decode(model, z, sdegen.ODESolver("dopri5", rtol=1e-9))
    for solver in (sdegen.UniPC(200), sdegen.DEIS(200), sdegen.Heun(200), sdegen.DPMSolver(200), sdegen.DDIM(2000)):
        assert solver.follows_ode
        torch.testing.assert_close(sdegen.decode(model, z, solver), fine, rtol=0, atol=0.01)
        with pytest.raises(TypeError, match="Only the ODE can be solved both ways"):
            sdegen.encode(model, z, solver)
    for solver in (sdegen.DPMSolver(9, eta=0.5), sdegen.Churn(sdegen.Heun(9)), sdegen.StochasticAdams(9)):
        assert not solver.follows_ode
        with pytest.raises(TypeError, match="Only the ODE"):
            sdegen.decode(model, z, solver)


def test_re_noising_runs_towards_the_data_alone():
    for outer in (sdegen.Churn, sdegen.Restart, lambda inner: sdegen.Restart(inner, times=0)):
        with pytest.raises(ValueError, match=r"(Churn|Restart) runs from noise to data"):
            sdegen.solve(ring().model(VP), torch.randn(3, 2), outer(sdegen.Adams(5)), to="noise")


def test_numbers_are_equal_whatever_their_type():
    assert sdegen.DPMSolver(8, eta=1) == sdegen.DPMSolver(8, eta=1.0)
    assert hash(sdegen.Churn(sdegen.Heun(8), 40)) == hash(sdegen.Churn(sdegen.Heun(8), 40.0))
    assert sdegen.Adams(8) != sdegen.Adams(9)
