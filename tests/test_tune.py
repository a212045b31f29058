"""tune: never worse on its pilots, no gain by luck, an ordinary solver; the figures it has to reach."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from networks import digits_unet, plane_mlp
from often import often
from problems import ring

import sdegen
from sdegen import tuning
from sdegen.comparison import rms_error
from sdegen.solvers import grids

PATH = sdegen.VPSDE()
F64 = torch.float64
FINE = sdegen.ODESolver("dopri8", rtol=1e-8)  # the one that tune measures against


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def ten_in_16() -> sdegen.GaussianMixture:
    g = torch.Generator().manual_seed(16)
    means = torch.randn(10, 16, generator=g, dtype=torch.float32)
    weights = torch.softmax(0.5 * torch.randn(10, generator=g, dtype=torch.float32), 0)
    return sdegen.GaussianMixture(means.double(), 0.3, weights.double())


def nine_narrow() -> sdegen.GaussianMixture:
    means = torch.tensor([[i, j] for i in (-1.0, 0.0, 1.0) for j in (-1.0, 0.0, 1.0)], dtype=F64)
    return sdegen.GaussianMixture(means, 0.05)


def ratio(model: sdegen.Model, tuned: sdegen.Solver, solver: sdegen.Solver, x_T: torch.Tensor, share=0.98) -> float:
    """How much of the solver's error the tuned one leaves at these latents."""
    fine = sdegen.decode(model, x_T, FINE)
    left, own = (rms_error(sdegen.decode(model, x_T, one), fine, share) for one in (tuned, solver))
    return left / own


@pytest.mark.parametrize("steps", [3, 5, 15, 30])
def test_it_is_never_worse_on_the_pilots_and_keeps_the_steps(steps):
    model, pilots = ring().model(PATH), normals(24, 2)
    solver = sdegen.Adams(steps)
    tuned = sdegen.tune(model, solver, pilots)
    assert isinstance(tuned, sdegen.Adams)
    assert tuned.steps == steps
    for share in (1.0, 0.98, 0.9):
        assert tuned is solver or ratio(model, tuned, solver, pilots, share) <= 0.9
    assert sdegen.tune(model, solver, pilots) == tuned


def test_it_gains_on_other_latents():
    model, pilots, others = ten_in_16().model(PATH), normals(64, 16, seed=1), normals(256, 16)
    for solver, most in ((sdegen.Adams(15), 0.7), (sdegen.ODESolver("heun3", steps=5), 0.8)):
        assert ratio(model, sdegen.tune(model, solver, pilots), solver, others) < most


def test_what_comes_back_is_an_ordinary_solver():
    model, x = ring().model(PATH), ring().sample(16)
    tuned = sdegen.tune(model, sdegen.Adams(60), normals(32, 2))
    z = sdegen.encode(model, x, tuned)
    torch.testing.assert_close(sdegen.decode(model, z, tuned), x, rtol=0, atol=2e-3)
    torch.testing.assert_close(sdegen.log_prob(model, x, tuned), ring().log_prob(x), rtol=0, atol=0.05)
    half = sdegen.tune(model, sdegen.ODESolver("midpoint", steps=4, norm="batch"), normals(32, 2).float())
    assert (half.method, half.steps, half.norm) == ("midpoint", 4, "batch")


def test_knots_of_ones_own_are_where_it_starts():
    knots = torch.linspace(1, 0, 7, dtype=F64) ** 4
    solver = sdegen.Adams(grid=knots * PATH.ends[1])
    tuned = sdegen.tune(ring().model(PATH), solver, normals(32, 2))
    assert tuned.steps == 6
    assert isinstance(tuned.grid, sdegen.Grid)


def test_a_solver_that_nothing_improves_comes_back_itself():
    solver = sdegen.Adams(1)
    assert sdegen.tune(ring().model(PATH), solver, normals(16, 2)) is solver


LOST, BETTER, SECOND, THIRD = (sdegen.PowerGrid(p) for p in (1.0, 1.5, 2.0, 3.0))


@dataclass(frozen=True)
class Planted(sdegen.Solver):
    """The fine solution plus errors that the grid decides; SECOND is a little better, BETTER as the options say."""

    steps: int
    grid: sdegen.Grid | None = None
    unit: float = 1e-3
    tail: float = 1.0  # the last 8 of 100 samples', on every grid but BETTER
    factor: float = 0.5
    worst: float = 1.0  # the first samples', on BETTER
    share: float = 0.02

    solves_ode = True

    def run(self, problem):
        if self.grid == LOST:
            raise sdegen.NonFiniteError("lost")
        result = FINE.run(problem)
        error = torch.ones_like(result.y)
        if self.grid == BETTER:
            error *= self.factor
            error[: round(self.share * len(error))] = self.worst
        else:
            error[-8:] = self.tail
        result.y = result.y + self.unit * error * (0.89 if self.grid == SECOND and self.tail == 1 else 1)
        return result


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, BETTER),
        ({"factor": 0.91}, SECOND),
        ({"worst": 50.0}, SECOND),  # bought by a few that nobody would count
        ({"factor": 1.0, "worst": 0.0, "tail": 20.0, "share": 0.0}, None),  # only the worst are better
        ({"factor": 0.8, "worst": 0.0, "tail": 20.0, "share": 0.0}, BETTER),
        ({"factor": 0.95, "worst": 0.0, "share": 0.25}, BETTER),
        ({"factor": 0.95, "worst": 0.0, "share": 0.05}, SECOND),
        ({"unit": 0.0}, None),
    ],
)
def test_the_largest_gain_is_taken_if_a_tenth_with_and_without_the_worst_samples(options, taken):
    planted, model = Planted(4, **options), sdegen.Gaussian([0.0, 1.0], 0.5).model(PATH)
    assert sdegen.tune(model, planted, normals(100, 2)).grid == taken


def test_a_gain_below_a_tenth_is_none(monkeypatch):
    monkeypatch.setattr(tuning, "GRIDS", (BETTER, THIRD))
    model = sdegen.Gaussian([0.0, 1.0], 0.5).model(PATH)
    for factor, taken in ((0.89, BETTER), (0.91, None)):
        assert sdegen.tune(model, Planted(4, factor=factor, worst=factor), normals(100, 2)).grid == taken


def test_the_conditions_reach_the_network():
    seen = []

    def net(x, t, label):
        seen.append(label)
        return 0.5 * x

    label = torch.arange(4)
    sdegen.tune(sdegen.ScoreModel(net, PATH), sdegen.ODESolver("euler", steps=2), normals(4, 2), cond={"label": label})
    assert all(torch.equal(one, label) for one in seen)


QUIET = [
    (sdegen.UniPC(6), 3),
    (sdegen.DEIS(6), 3),
    (sdegen.Heun(6), 1),
    (sdegen.DPMSolver(6), 3),
    (sdegen.DDIM(6), 1),
    (sdegen.SASolver(6, eta=0.0), 4),
    (sdegen.StochasticAdams(6, eta=0.0), 2),
    (sdegen.SDESolver("euler", 6, eta=0.0), 1),
]


@pytest.mark.parametrize(("solver", "orders"), QUIET, ids=[type(solver).__name__ for solver, _ in QUIET])
def test_every_solver_without_noise_is_tuned_in_the_orders_that_it_has(solver, orders, monkeypatch):
    tried = []

    def counting(model, x_T, candidate, **options):
        tried.append(candidate)
        return sdegen.solve(model, x_T, candidate, **options)

    monkeypatch.setattr(tuning, "solve", counting)
    model, pilots = ring().model(PATH), normals(32, 2)
    tuned = sdegen.tune(model, solver, pilots)
    assert (type(tuned), tuned.steps) == (type(solver), 6)
    assert len(tried) == 1 + 10 * orders
    fine = sdegen.decode(model, pilots, FINE)
    left, own = (rms_error(sdegen.solve(model, pilots, one).x, fine) for one in (tuned, solver))
    assert left <= own


def test_no_grid_of_the_list_is_refused():
    for path in (sdegen.CondOT(), PATH, sdegen.VESDE(), sdegen.DDPM.linear(100)):
        for predicts in ("eps", "data", "velocity"):
            model = sdegen.ScoreModel(lambda x, t: x, path, predicts)
            for grid in tuning.GRIDS:
                for steps in (1, 2, 50, 1000):
                    high, low = path.ends[::-1]
                    assert len(grids.lay(grid, model, high, low, steps).u) == steps + 1


def test_an_error_of_the_network_comes_through():
    shown = []

    def net(x, t):
        shown.append(float(t[0]))
        if len(shown) == 1 + fine + 7 + 3:  # in the first candidate
            raise ValueError("the network's own")
        return 0.5 * x

    model, fine = sdegen.ScoreModel(net, PATH), -99
    sdegen.decode(model, normals(4, 2), FINE)
    fine = len(shown)
    shown.clear()
    with pytest.raises(ValueError, match="the network's own"):
        sdegen.tune(model, sdegen.Adams(7), normals(4, 2))


def test_a_path_that_the_solver_refuses_is_refused_before_the_first_network_call():
    def net(x, t):
        raise AssertionError("asked")

    with pytest.raises(ValueError, match="DEIS cannot start at u = 1"):
        sdegen.tune(sdegen.ScoreModel(net, sdegen.CondOT(), "velocity"), sdegen.DEIS(5), normals(4, 2))


def test_it_costs_what_it_says():
    class Net(torch.nn.Module):
        calls = 0

        def forward(self, x, t):
            self.calls += 1
            return 0.5 * x

    model = sdegen.ScoreModel(Net(), PATH)
    pilots = normals(4, 2)
    sdegen.decode(model, pilots, sdegen.ODESolver("dopri8", rtol=1e-8))
    fine = model.net.calls
    for solver, solves in ((sdegen.Adams(7), 41), (sdegen.ODESolver("rk4", steps=2), 11)):
        model.net.calls = 0
        sdegen.tune(model, solver, pilots)
        assert model.net.calls == fine + solves * (7 if solves == 41 else 8)


REFUSED = [
    (sdegen.Adams(5), normals(1, 2), ValueError, "x_T must hold at least 2 latents, and it has shape \\(1, 2\\)"),
    (sdegen.Adams(5), [1.0], TypeError, "x_T must be a tensor"),
    (
        sdegen.StochasticAdams(5),
        normals(4, 2),
        TypeError,
        "tune measures .* a solver of the ODE.*StochasticAdams",
    ),
    (sdegen.SDESolver("euler", 50), normals(4, 2), TypeError, "tune measures .*SDESolver.* is none"),
    (sdegen.SASolver(50), normals(4, 2), TypeError, "tune measures .*SASolver.* is none"),
    (sdegen.DDIM(), normals(4, 2), ValueError, "tune chooses the grid of a solver with fixed steps"),
    (5, normals(4, 2), TypeError, "tune measures .* and 5 is none"),
    (
        sdegen.ODESolver("dopri5"),
        normals(4, 2),
        ValueError,
        "tune chooses the grid .* fixed steps.*dopri5",
    ),
    (
        sdegen.ODESolver("rk4", grid=sdegen.DDPM.linear(100).respaced(5)),
        normals(4, 2),
        ValueError,
        "tune chooses the grid of a solver with fixed steps between the path's ends",
    ),
]


@pytest.mark.parametrize(("solver", "x_T", "error", "words"), REFUSED)
def test_refusals_come_before_the_first_network_call(solver, x_T, error, words):
    def net(x, t):
        raise AssertionError("asked")

    with pytest.raises(error, match=words):
        sdegen.tune(sdegen.ScoreModel(net, PATH), solver, x_T)
    with pytest.raises(TypeError, match="model must be a ScoreModel"):
        sdegen.tune(net, solver, x_T)


BEST = {  # of 100 variants of other libraries' solvers, chosen anew for every number of calls
    "ring8": (ring, 2, 0.5, (4.0e-2, 1.5e-2, 3.6e-3, 2.5e-3, 1.9e-3, 1.2e-3, 2.9e-4)),
    "gmm16": (ten_in_16, 16, 0.5, (8.2e-2, 1.6e-2, 1.3e-2, 7.4e-3, 2.9e-3, 1.2e-3, 2.3e-4)),
    "narrow9": (nine_narrow, 2, 0.7, (3.93e-2, 1.30e-2, 8.75e-3, 2.74e-3, 1.14e-3, 5.86e-4, 2.68e-4)),
}


@pytest.mark.parametrize("name", often(BEST, "gmm16"))
def test_tuned_on_64_latents_it_halves_the_error_of_the_best_peer(name):
    target, d, most, best = BEST[name]
    model, pilots, others = target().model(PATH), normals(64, d, seed=7), normals(512, d, seed=1234)
    fine, logs = sdegen.decode(model, others, FINE), []
    for steps, peer in zip((5, 8, 10, 15, 20, 30, 50), best, strict=True):
        tuned = sdegen.tune(model, sdegen.Adams(steps), pilots)
        logs.append(math.log(rms_error(sdegen.decode(model, others, tuned), fine) / peer))
    assert math.exp(sum(logs) / len(logs)) <= most


@pytest.mark.parametrize(
    ("build", "shape", "steps"),
    [
        pytest.param(plane_mlp, (2,), 10, marks=pytest.mark.slow),
        *(pytest.param(plane_mlp, (2,), n, marks=pytest.mark.nightly) for n in (5, 20, 50)),
        *(pytest.param(digits_unet, (1, 8, 8), n, marks=pytest.mark.nightly) for n in (5, 10, 20, 50)),
    ],
)
def test_on_a_learned_network_it_is_never_worse_than_the_default_by_a_tenth(build, shape, steps):
    model, solver = build().double(), sdegen.Adams(steps)
    tuned = sdegen.tune(model, solver, normals(64, *shape, seed=7))
    assert tuned is solver or ratio(model, tuned, solver, normals(48 if shape[1:] else 512, *shape, seed=1234)) <= 1.1


def test_the_list_holds_the_defaults():
    assert sdegen.Adams(5).own_grid in tuning.GRIDS
    assert sdegen.PowerGrid(1.5) in tuning.GRIDS
    assert len(tuning.GRIDS) * len(tuning.ORDERS) <= 40
