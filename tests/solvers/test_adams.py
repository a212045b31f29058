"""Adams in a stretched clock: exact weights, classical coefficients, orders, one trajectory for all paths."""

from __future__ import annotations

import pytest
import torch
from chains import Counting
from problems import PATHS, ring, slope, two_modes
from scipy.integrate import quad

import sdegen
from sdegen.solvers.base import Problem

VP = sdegen.VPSDE()
GRIDS = {
    "stretched": None,
    "stretched further": sdegen.StretchedGrid(0.6),
    "power": sdegen.PowerGrid(2),
    "power of t": sdegen.PowerGrid(3, "t"),
    "karras": sdegen.KarrasGrid(),
    "own knots": torch.tensor([VP.ends[1], 0.7, 0.61, 0.4, 0.38, 0.2, 0.1, 0.02, 0.0]),
}


def laid(solver, model, to="data", steps=8):
    low, high = model.path.ends
    ends = (high, low) if to == "data" else (low, high)
    problem = Problem(model, torch.zeros(1, 2), *ends)
    return problem.lay(solver.own_grid if solver.grid is None else solver.grid, steps)


@pytest.mark.parametrize("to", ["data", "noise"])
@pytest.mark.parametrize("name", GRIDS)
def test_weights_integrate_polynomials_in_the_clock_exactly(name, to):
    """sum_j w_j s_j^i = integral of s(u)^i du over the step, for every degree below the number of answers."""
    solver = sdegen.Adams(8, 4, grid=GRIDS[name])
    knots = laid(solver, ring().model(VP), to)
    s = knots.clock.s(knots.u).tolist()
    for ahead, rows in ((0, solver.predictor(knots)), (1, solver.corrector(knots))):
        assert [len(row.weights) for row in rows] == [min(k + 1, 4) + ahead for k in range(8 - ahead)]
        for k, row in enumerate(rows):
            ends = s[k], s[k + 1]
            u0, u1 = knots.u[k].item(), knots.u[k + 1].item()
            for i in range(len(row.weights)):
                ours = sum(w * s[k + ahead - j] ** i for j, w in enumerate(row.weights))

                def rest(at, i=i, u1=u1):  # by parts: no slope of the clock
                    return i * at ** (i - 1) * (u1 - knots.clock.u(torch.tensor(at)).item())

                true = (u1 - u0) * ends[0] ** i + (quad(rest, *ends, epsabs=1e-14, limit=200)[0] if i else 0.0)
                assert abs(ours - true) < 1e-11 * abs(u1 - u0), (k, i)


CLASSICAL = {  # Adams-Bashforth and Adams-Moulton on equal steps, newest answer first
    2: ([3 / 2, -1 / 2], [5 / 12, 8 / 12, -1 / 12]),
    3: ([23 / 12, -16 / 12, 5 / 12], [9 / 24, 19 / 24, -5 / 24, 1 / 24]),
    4: (
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
        [251 / 720, 646 / 720, -264 / 720, 106 / 720, -19 / 720],
    ),
}


@pytest.mark.parametrize("order", CLASSICAL)
def test_on_equal_steps_the_weights_are_the_textbooks(order):
    solver = sdegen.Adams(9, order, grid=sdegen.PowerGrid(1))
    knots = laid(solver, ring().model(VP), steps=9)
    h = (knots.u[1] - knots.u[0]).item()
    for rows, weights in zip((solver.predictor(knots), solver.corrector(knots)), CLASSICAL[order], strict=True):
        torch.testing.assert_close(torch.tensor(rows[-1].weights) / h, torch.tensor(weights), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_it_predicts_asks_and_corrects(order):
    """The same numbers as the method written out: P, E, C with the answer at the predicted state, once a step."""
    target, steps = ring().model(VP), 12
    model, x = sdegen.ScoreModel(target.v, VP, "v"), torch.randn(5, 2)
    solver = sdegen.Adams(steps, order)
    knots = laid(solver, model, steps=steps)
    predict, correct = solver.predictor(knots), solver.corrector(knots)
    r = VP.scale(knots.u)
    y, before, answers = x / r[0], x / r[0], []
    for k in range(steps):
        u, x_t = knots.u[k], r[k] * y
        answers.insert(0, target.eps(x_t, knots.t[k]) - target.data(x_t, knots.t[k]))
        if k:
            before = before + sum(w * m for w, m in zip(correct[k - 1].weights, answers, strict=False))
        y = before + sum(w * m for w, m in zip(predict[k].weights, answers, strict=False))
        assert u > knots.u[k + 1]
    ours = sdegen.solve(model, x, solver)
    torch.testing.assert_close(ours.x, r[-1] * y, rtol=1e-11, atol=1e-11)
    assert ours.calls == ours.accepted == steps


@pytest.mark.parametrize(("order", "least"), [(1, 1.9), (2, 2.9), (3, 3.0), (4, 2.8)])
def test_it_has_its_order_both_ways(order, least):
    model, steps = two_modes().model(VP), [16, 32, 64, 128]
    x = torch.linspace(-2.5, 2.5, 41)[:, None]
    fine = sdegen.ODESolver("dopri8", rtol=1e-12, atol=1e-13)
    end = sdegen.decode(model, x, fine)
    down = [float((sdegen.decode(model, x, sdegen.Adams(n, order)) - end).abs().max()) for n in steps]
    up = [float((sdegen.encode(model, end, sdegen.Adams(n, order)) - x).abs().max()) for n in steps]
    assert slope(steps, down) > least
    assert slope(steps, up) > least


def test_higher_orders_are_worth_their_name_on_smooth_fields():
    model, x = two_modes().model(VP), torch.linspace(-2.5, 2.5, 41)[:, None]
    end = sdegen.decode(model, x, sdegen.ODESolver("dopri8", rtol=1e-12, atol=1e-13))
    errors = [float((sdegen.decode(model, x, sdegen.Adams(32, order)) - end).abs().max()) for order in (1, 2, 3)]
    assert errors[0] > 10 * errors[1] > 30 * errors[2]


def test_the_order_rises_with_the_steps():
    model = ring().model(VP)
    for steps, order in ((1, 1), (4, 1), (5, 2), (14, 2), (15, 3), (29, 3), (30, 4)):
        solver = sdegen.Adams(steps)
        assert max(len(row.weights) for row in solver.predictor(laid(solver, model, steps=steps))) == order


@pytest.mark.parametrize("asked", ["exact", "eps", "v"])
@pytest.mark.parametrize("order", [1, 4])
def test_all_paths_give_one_trajectory(order, asked):
    """The clock s(u) depends on the path through the network's gain alone, which for these is a function of u."""
    y, u = torch.randn(16, 2), (0.9, 0.02)
    ends = []
    for path in PATHS.values():
        model = ring().model(path)
        model = model if asked == "exact" else sdegen.ScoreModel(getattr(model, asked), path, asked)
        solver = sdegen.Adams(9, order) if asked != "v" else sdegen.Adams(9, order, grid=sdegen.StretchedGrid(gain=0.0))
        ends.append(sdegen.solve(model, path.scale(u[0]) * y, solver, u=u).y)
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-10, atol=1e-10)


def test_a_tensor_of_knots_has_the_stretched_clock():
    model, x = ring().model(VP), torch.randn(4, 2)
    own = laid(sdegen.Adams(8), model).u
    torch.testing.assert_close(
        sdegen.decode(model, x, sdegen.Adams(grid=own)),
        sdegen.decode(model, x, sdegen.Adams(8)),
        rtol=1e-13,
        atol=1e-13,
    )


@pytest.mark.parametrize("path", PATHS)
def test_it_is_finite_from_one_call_on(path):
    path = PATHS[path]
    for name in ("eps", "v", "data"):
        model = sdegen.ScoreModel(Counting(), path, name)
        u = (min(path.ends[1], 0.999), max(path.ends[0], 1e-3))
        for steps in (1, 2, 3, 4, 6):
            assert torch.isfinite(sdegen.solve(model, torch.randn(3, 2), sdegen.Adams(steps), u=u).x).all()


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: sdegen.Adams(), ValueError, "Adams needs steps"),
        (lambda: sdegen.Adams(0), ValueError, "steps must be at least 1, and it is 0"),
        (lambda: sdegen.Adams(8.0), TypeError, "8.0 is float"),
        (lambda: sdegen.Adams(8, 5), ValueError, "order must be at most 4, and it is 5"),
        (lambda: sdegen.Adams(8, 0), ValueError, "order must be at least 1, and it is 0"),
        (lambda: sdegen.Adams(8, True), TypeError, "True is bool"),
        (lambda: sdegen.Adams(8, grid=2.0), TypeError, "2.0 is float"),
        (lambda: sdegen.Adams(9, grid=torch.linspace(1, 0, 9)), ValueError, "needs 10 knots, and it has 9"),
    ],
)
def test_options_are_refused_in_a_sentence(make, kind, words):
    with pytest.raises(kind, match=words):
        make()


def test_problems_are_refused_before_the_first_call():
    net = Counting()
    x = torch.randn(3, 2)
    no_clock = sdegen.Adams(8, grid=sdegen.KarrasGrid(float("inf")))
    with pytest.raises(
        ValueError, match="a grid whose clock s\\(u\\) is finite at both ends, unlike KarrasGrid\\(rho=inf"
    ):
        sdegen.decode(sdegen.ScoreModel(net, VP), x, no_clock)
    with pytest.raises(ValueError, match=r"u = 1, where CondOT.* singular for 'eps'"):
        sdegen.decode(sdegen.ScoreModel(net, sdegen.CondOT()), x, sdegen.Adams(8))
    with pytest.raises(ValueError, match="starts at u = 1, where sigma/alpha is infinite"):
        sdegen.decode(sdegen.ScoreModel(net, sdegen.CondOT(), "v"), x, sdegen.Adams(8, grid=sdegen.KarrasGrid()))
    with pytest.raises(ValueError, match="noise= is for stochastic solvers"):
        sdegen.solve(sdegen.ScoreModel(net, VP), x, sdegen.Adams(8), noise=torch.randn(8, 3, 2))
    assert net.calls == 0
