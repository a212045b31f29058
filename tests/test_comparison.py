"""compare: its columns against closed forms, the same start and noise for all, and what it refuses."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from problems import ring, slope
from torch import nn

import sdegen
from sdegen import comparison
from sdegen.comparison import Run, rms_error

PATH = sdegen.VPSDE()
F64 = torch.float64


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def euler(n: int) -> sdegen.ODESolver:
    return sdegen.ODESolver("euler", steps=n, grid=sdegen.PowerGrid(1))


def rk4(n: int) -> sdegen.ODESolver:
    return sdegen.ODESolver("rk4", steps=n // 4)


class Counting(nn.Module):
    """eps of the standard normal on VP: its own input times sigma; it counts its calls and keeps the first input."""

    def __init__(self):
        super().__init__()
        self.calls, self.inputs = 0, []

    def forward(self, x, t, **cond):
        self.calls += 1
        self.inputs.append((float(t[0]), x.clone(), cond))
        return PATH.sigma(t)[:, None].to(x) * x


@dataclass(frozen=True)
class Lost(sdegen.Solver):
    """A solver whose state becomes NaN."""

    solves_ode = True

    def run(self, problem):
        raise sdegen.NonFiniteError("lost")


def counting() -> sdegen.ScoreModel:
    return sdegen.ScoreModel(Counting(), PATH)


def test_eulers_error_is_the_closed_form():
    """Data N(0, S): y follows the deviation of its law, and Euler multiplies it by 1 + h (u - (1-u) S) / variance."""
    S, x_T = 0.3, normals(200, 1)
    model = sdegen.Gaussian(torch.zeros(1, dtype=F64), math.sqrt(S)).model(PATH)
    low, high = PATH.ends
    scale = 1 / float(PATH.scale(torch.tensor(high, dtype=F64)))  # r = 1 at the data

    def variance(u):
        return (1 - u) ** 2 * S + u**2

    comparison = sdegen.compare(model, {"Euler": euler}, x_T=x_T, calls=(5, 20))
    nearest = x_T.abs().flatten().sort().values[:196]
    for row in comparison.rows:
        u = [high + (low - high) * k / row.calls for k in range(row.calls + 1)]
        factor = math.prod(1 + (v - w) * (w - (1 - w) * S) / variance(w) for w, v in pairwise(u))
        off = scale * abs(factor - math.sqrt(variance(low) / variance(high)))
        assert row.error == pytest.approx(off * float(nearest.square().mean().sqrt()), rel=1e-6)
        assert row.distance is None


def test_the_worst_two_in_a_hundred_do_not_count():
    fine = torch.zeros(100, 3, dtype=F64)
    x = fine + 0.5
    x[[3, 50]] = 100.0
    assert rms_error(x, fine) == 0.5
    x[[3, 50]] = math.nan
    assert rms_error(x, fine) == 0.5
    x[60] = 100.0
    assert rms_error(x, fine) > 5
    assert rms_error(x[:1], fine[:1]) == 0.5
    assert rms_error(x[:60], fine[:60]) == 0.5  # the best 58.8, rounded down
    x[5:9] = math.nan
    assert rms_error(x, fine) == math.inf


def test_the_order_of_a_method_is_seen_in_the_rows():
    solvers = {"1": euler, "2": lambda n: sdegen.ODESolver("midpoint", steps=n // 2), "4": rk4, "3": sdegen.Adams}
    asked = (160, 320, 640)
    model = sdegen.Gaussian(torch.zeros(2, dtype=F64), 0.6).model(PATH)
    reference = sdegen.ODESolver("dopri8", rtol=1e-12)
    rows = sdegen.compare(model, solvers, x_T=normals(20, 2), calls=asked, reference=reference).rows
    assert [row.calls for row in rows] == [*asked] * 4
    for name in solvers:
        found = [row for row in rows if row.name == name]
        assert slope([row.calls for row in found], [row.error for row in found]) > int(name) - 0.2


def test_a_solver_is_no_distance_from_itself_and_one_from_what_is_moved_by_one():
    model, x_T = ring().model(PATH), normals(30, 2)
    same = sdegen.compare(model, {"a": sdegen.Adams}, x_T=x_T, calls=[7], reference=sdegen.Adams(7))
    assert same.rows[0].error == 0
    end = sdegen.decode(model, x_T, sdegen.Adams(7))
    moved = sdegen.compare(model, {"a": sdegen.Adams}, x_T=x_T, calls=[7], reference=end + 1)
    assert moved.rows[0].error == pytest.approx(1, abs=1e-12)


def test_calls_are_those_that_reach_the_network_from_the_same_latents():
    model, x_T, seen = counting(), normals(6, 2), 0
    cond = {"label": torch.arange(6)}
    solvers = {"rk4": rk4, "Adams": sdegen.Adams, "DDIM": sdegen.DDIM, "SDE": lambda n: sdegen.SDESolver("srk", n // 2)}
    comparison = sdegen.compare(model, solvers, x_T=x_T, calls=(5, 9), reference=x_T, cond=cond)
    assert [row.calls for row in comparison.rows] == [4, 8, 5, 9, 5, 9, 4, 8]
    assert model.net.calls == sum(row.calls for row in comparison.rows)
    for row in comparison.rows:
        t, x, received = model.net.inputs[seen]
        assert t == PATH.t_noise
        torch.testing.assert_close(x, x_T, rtol=1e-12, atol=0)
        assert torch.equal(received["label"], cond["label"])
        seen += row.calls
        assert row.seconds > 0


def test_equal_solvers_run_once_and_those_that_cannot_be_built_have_no_row():
    solvers = {"rk4": rk4, "dopri5": lambda n: sdegen.ODESolver("dopri5", rtol=1e-2)}
    rows = sdegen.compare(counting(), solvers, x_T=normals(4, 2), calls=(2, 4, 5, 8)).rows
    assert [(row.name, row.calls) for row in rows[:-1]] == [("rk4", 4), ("rk4", 8)]
    assert rows[-1].name == "dopri5"
    assert len(rows) == 3


def test_stochastic_solvers_have_no_error_and_share_their_noise():
    model, x_T, data = ring().model(PATH), normals(50, 2), ring().sample(80)
    solvers = {"a": sdegen.StochasticAdams, "b": sdegen.StochasticAdams, "still": lambda n: sdegen.DDIM(n, eta=0.0)}

    def distances(**options):
        rows = sdegen.compare(model, solvers, x_T=x_T, calls=[6], data=data, **options).rows
        assert [row.error is None for row in rows] == [True, True, False]
        return [row.distance for row in rows]

    torch.manual_seed(1)
    first = distances()
    assert first[0] == first[1]
    assert distances()[0] != first[0]
    torch.manual_seed(1)
    assert distances() == first
    noise = normals(9, 50, 2, seed=3)
    x = sdegen.solve(model, x_T, sdegen.StochasticAdams(6), noise=noise[:6]).x
    expected = sdegen.energy_distance(x, data)
    assert distances(noise=noise)[:2] == distances(noise=lambda k: noise[k])[:2] == [expected, expected]


def test_without_noise_an_sde_solver_is_measured_against_the_ode():
    solvers = {"sde": lambda n: sdegen.SDESolver("euler", n, eta=0.0, grid=sdegen.PowerGrid(1)), "ode": euler}
    noise = normals(5, 20, 2)
    sde, ode = sdegen.compare(ring().model(PATH), solvers, x_T=normals(20, 2), calls=[5], noise=noise).rows
    assert sde.error == pytest.approx(ode.error, rel=1e-12)


def test_no_fine_solution_is_made_where_nobody_is_compared_with_it():
    model = counting()
    sdegen.compare(model, {"SDE": sdegen.StochasticAdams}, x_T=normals(4, 2), calls=[3])
    assert model.net.calls == 3


def test_a_lost_state_is_infinitely_far_away_and_the_others_go_on():
    solvers = {"lost": lambda n: Lost(), "Adams": sdegen.Adams}
    lost, kept = sdegen.compare(counting(), solvers, x_T=normals(4, 2), calls=[3], data=normals(9, 2)).rows
    assert lost.error == lost.distance == math.inf
    assert kept.error < math.inf


def test_the_energy_distance_of_a_few_points_by_hand():
    x, y = (torch.tensor(z)[:, None] for z in ([0.0, 1.0], [0.0, 3.0]))
    assert sdegen.energy_distance(x, y) == 2 * 6 / 4 - 1 - 3
    near, far = normals(400, 3), normals(400, 3, seed=1)
    assert abs(sdegen.energy_distance(near, far)) < 0.02
    assert sdegen.energy_distance(near, far + 100.0) == pytest.approx(2 * 100 * math.sqrt(3), rel=0.03)


def test_the_energy_distance_keeps_the_digits_of_single_precision(monkeypatch):
    near, far = (1e3 + 1e-3 * normals(60, 2, seed=i).float() for i in (0, 1))
    exact = sdegen.energy_distance(near.double(), far.double())
    assert sdegen.energy_distance(near, far.requires_grad_()) == pytest.approx(exact, rel=1e-3)
    monkeypatch.setattr(comparison, "PAIRS_AT_ONCE", 200)  # three rows and a last one
    assert sdegen.energy_distance(near.double(), far.double()) == pytest.approx(exact, rel=1e-9)


def test_the_energy_distance_holds_few_pairs_at_a_time(monkeypatch):
    held, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *a, **b: held.append(cdist(*a, **b)) or held[-1])
    monkeypatch.setattr(comparison, "PAIRS_AT_ONCE", 1000)
    sdegen.energy_distance(normals(100, 1), normals(300, 1))
    assert max(pairs.numel() for pairs in held) <= 1000
    assert sum(pairs.numel() for pairs in held) == 100 * 300 + 100**2 + 300**2


def test_an_error_that_overflows_is_infinite():
    assert rms_error(torch.tensor([[1e200], [0.0]]), torch.zeros(2, 1), share=1) == math.inf
    assert sdegen.energy_distance(torch.tensor([[0.0], [math.inf]]), torch.zeros(2, 1)) == math.inf


def test_a_reference_is_any_solver_without_noise():
    model, x_T = ring().model(PATH), normals(30, 2)
    fine = sdegen.solve(model, x_T, sdegen.UniPC(200)).x
    for reference in (sdegen.UniPC(200), fine):
        (row,) = sdegen.compare(model, ADAMS, x_T=x_T, calls=[7], reference=reference).rows
        assert row.error == rms_error(sdegen.decode(model, x_T, sdegen.Adams(7)), fine)


def test_what_a_solver_refuses_on_this_path_comes_before_the_first_network_call():
    def net(x, t):
        raise AssertionError("asked")

    model = sdegen.ScoreModel(net, sdegen.CondOT(), "velocity")
    with pytest.raises(ValueError, match=r"solvers\['Heun'\]\(5\) cannot solve .*: Heun cannot start at u = 1"):
        sdegen.compare(model, {**ADAMS, "Heun": sdegen.Heun}, x_T=normals(4, 2), calls=(5,))


def test_a_rehearsal_asks_no_network_and_draws_nothing():
    """Nor does it of a solver without a bar."""

    @dataclass(frozen=True)
    class Blind(sdegen.Solver):
        def run(self, problem):
            u = torch.full((1,), 0.5, dtype=F64)
            (query,) = problem.model.plan(problem.y, u, None, u, u)
            return sdegen.Result(
                problem.model.estimate(problem.y, query, problem.cond), [problem.u_from, problem.u_to], calls=1
            )

    solvers = {"blind": lambda n: Blind(), "learned": sdegen.Ancestral, "sde": lambda n: sdegen.SDESolver(steps=n)}
    model, noise = counting(), normals(13, 4, 2)
    rows = sdegen.compare(model, solvers, x_T=normals(4, 2), calls=[3], noise=noise).rows
    assert model.net.calls == sum(row.calls for row in rows) == 7
    corrected = {"Langevin": lambda n: sdegen.Langevin(sdegen.Heun(n))}
    sdegen.compare(model, corrected, x_T=normals(4, 2), calls=[5], noise=noise)  # 13 moves
    state = torch.get_rng_state()
    sdegen.compare(model, corrected, x_T=normals(4, 2), calls=[5], noise=lambda k: noise[k])
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_is_measured_in_single():
    x_T, model = normals(16, 2).half(), ring().model(PATH)
    half, single = (sdegen.compare(model, ADAMS, x_T=x, calls=[30]).rows[0].error for x in (x_T, x_T.float()))
    assert half == single > 0


def test_the_table_is_aligned_and_says_what_is_not_there():
    solvers = {"Adams": sdegen.Adams, "a long name": sdegen.StochasticAdams}
    comparison = sdegen.compare(ring().model(PATH), solvers, x_T=normals(9, 2), calls=(4, 12))
    lines = str(comparison).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("  ")[0] == "solver"
    assert [word in lines[0] for word in ("calls", "seconds", "RMS error", "energy distance")] == [True] * 4
    assert lines[2].split()[:2] == ["Adams", "12"]
    assert f"{comparison.rows[1].error:.2e}" in lines[2]
    assert lines[4].split()[-2:] == ["-", "-"]


def test_columns_stay_apart_and_small_numbers_are_seen():
    rows = [Run("a", 123456789, 123456.7, 1.234e-5, 1.234e-7), Run("longer name", 5, 0.1, math.inf, None)]
    head, first, second = str(sdegen.Comparison(rows)).splitlines()
    assert first == "a            123456789  123456.7000   1.23e-05         1.23e-07"
    assert re.split(" {2,}", head) == ["solver", "calls", "seconds", "RMS error", "energy distance"]
    assert re.split(" {2,}", second) == ["longer name", "5", "0.1000", "inf", "-"]
    assert re.split(" {2,}", str(sdegen.Comparison([]))) == re.split(" {2,}", head)


X = normals(4, 2)
ADAMS = {"Adams": sdegen.Adams}
REFUSED = [
    ({"solvers": [sdegen.Adams]}, TypeError, "solvers must map names to functions"),
    ({"solvers": {"Adams": sdegen.Adams(5)}}, TypeError, "solvers must map names to functions"),
    ({"solvers": {}}, ValueError, "nothing to compare in solvers = {}"),
    ({"solvers": {"five": lambda n: n}}, TypeError, "solvers\\['five'\\]\\(5\\) must return a solver, .* returned 5"),
    (
        {"solvers": {"rk4": rk4}, "calls": (2, 3)},
        ValueError,
        "'rk4'\\] has no solver for any of calls = \\(2, 3\\):",
    ),
    ({"calls": 5}, TypeError, "calls must be a sequence of integers, and it is 5"),
    ({"calls": (5, 0)}, ValueError, "every number of calls must be at least 1, and it is 0"),
    ({"calls": (5.0,)}, TypeError, "every number of calls must be an integer, and 5.0 is float"),
    ({"calls": ()}, ValueError, "nothing to compare"),
    ({"x_T": X[0]}, ValueError, "x_T must have shape \\(B, ...\\)"),
    ({"x_T": X[:0]}, ValueError, "x_T must hold at least one latent, .*\\(0, 2\\)"),
    ({"x_T": X * math.nan}, ValueError, "x_T holds NaN or infinite values in 4"),
    ({"noise": X}, ValueError, "noise must have shape \\(n, 4, 2\\) with n at least 5.*\\(4, 2\\)"),
    ({"noise": normals(4, 4, 2)}, ValueError, "n at least 5, the most calls, and it has \\(4, 4, 2\\)"),
    ({"noise": 3}, TypeError, "noise must be a tensor of standard normals or a callable .* not 3"),
    ({"reference": 3}, TypeError, "reference must be the end points, a tensor, or a solver for them, not 3"),
    ({"reference": X[:2]}, ValueError, "reference must have the shape of x, \\(4, 2\\), and it has \\(2, 2\\)"),
    ({"reference": sdegen.Ancestral(5)}, TypeError, "reference must follow the ODE.*Ancestral"),
    (
        {"data": normals(9, 3)},
        ValueError,
        "data must hold two samples or more shaped like .*4, 2\\), not \\(9, 3\\)",
    ),
    ({"data": [1.0]}, TypeError, "data must be a tensor"),
    ({"cond": 3}, TypeError, "cond must be a mapping"),
    (
        {"solvers": {"5": lambda n: sdegen.DPMSolver(grid=sdegen.DDPM.linear(100).respaced(n))}},
        ValueError,
        "solvers\\['5'\\]\\(5\\) has a grid that starts at u = 0\\.\\d+, not where x_T lies",
    ),
    (
        {"reference": sdegen.ODESolver("rk4", grid=sdegen.DDPM.linear(100).respaced(9))},
        ValueError,
        "reference has a grid that starts at u = 0\\.\\d+, not where x_T lies",
    ),
    (
        {"solvers": {**ADAMS, "Langevin": lambda n: sdegen.Langevin(sdegen.Heun(n))}, "noise": normals(10, 4, 2)},
        ValueError,
        "solvers\\['Langevin'\\]\\(5\\) takes 13 normals, more than noise has, 10; give a callable",
    ),
    (
        {"solvers": {**ADAMS, "adaptive": lambda n: sdegen.SDESolver(adaptive=True)}, "noise": normals(5, 4, 2)},
        ValueError,
        "'adaptive'\\]\\(5\\) cannot solve this problem: Adaptive steps are shared .* noise= needs fixed steps",
    ),
    (
        {"solvers": {**ADAMS, "high": lambda n: sdegen.Restart(sdegen.Heun(n), high=0.999)}},
        ValueError,
        "solvers\\['high'\\]\\(5\\) cannot solve this problem: The restart from u = 0.1 up to 0.999",
    ),
]


@pytest.mark.parametrize(("options", "error", "words"), REFUSED)
def test_refusals_come_before_the_first_network_call(options, error, words):
    model = counting()
    options = {"solvers": ADAMS, "x_T": X, "calls": (5,), **options}
    with pytest.raises(error, match=words):
        sdegen.compare(model, **options)
    assert model.net.calls == 0


def test_other_refusals():
    with pytest.raises(TypeError, match="model must be a ScoreModel"):
        sdegen.compare(3, ADAMS, x_T=X)
    with pytest.raises(ValueError, match="takes two samples or more of one shape, not \\(4, 2\\) and \\(1, 2\\)"):
        sdegen.energy_distance(X, X[:1])
    with pytest.raises(AttributeError):
        sdegen.Comparison([]).rows = []
