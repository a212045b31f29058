"""StochasticAdams: exact integrals, the exact law on Gaussian data, known chains at order 1, small bias of log p."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from problems import PATHS, affine_law, ring, slope
from scipy.integrate import quad

import sdegen
from sdegen.solvers.base import Problem

VP = sdegen.VPSDE()


def knots_of(solver, model, steps):
    problem = Problem(model, torch.zeros(1, 2), model.path.ends[1], model.path.ends[0])
    return problem.lay(solver.own_grid if solver.grid is None else solver.grid, steps)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("path", ["vp", "condot", "ve"])
def test_rows_are_the_formula(path, eta):
    """y_v = (v/u) e^(-eta^2 h) y + v (1+eta^2) int e^(l - eta^2 (l_v - l)) x_hat dl + v sqrt(1 - e^(-2 eta^2 h)) z."""
    model, steps, level = ring().model(PATHS[path]), 7, eta**2
    solver = sdegen.StochasticAdams(steps, eta=eta)
    u = knots_of(solver, model, steps).u.tolist()
    rows = solver.predictor(knots_of(solver, model, steps))

    def log_ratio(u):
        return math.inf if u == 0 else -math.inf if u == 1 else math.log((1 - u) / u)

    for k, row in enumerate(rows[:-1] if u[-1] == 0 else rows):
        lu, lv, v = log_ratio(u[k]), log_ratio(u[k + 1]), u[k + 1]
        kept = 1.0 if eta == 0 else math.exp(-level * (lv - lu))
        assert row.keep == pytest.approx(v / u[k] * kept, rel=1e-12, abs=1e-15)
        assert row.std == pytest.approx(v * math.sqrt(-math.expm1(-2 * level * (lv - lu)) if level else 0.0), rel=1e-12)

        def mass(l, lv=lv, v=v):
            return v * (1 + level) * math.exp(l - level * (lv - l))

        def along(l, k=k, mass=mass):  # the line through the last two answers, 1 at the newest and 0 at the one before
            return mass(l) * (1 / (1 + math.exp(l)) - u[k - 1]) / (u[k] - u[k - 1])

        low = max(lu, lv - 60 / (1 + level))  # e^-60 of the mass lies below
        whole = quad(mass, low, lv, epsabs=1e-14, epsrel=1e-12)[0]
        assert sum(row.weights) == pytest.approx(whole, rel=1e-9)
        if k:
            newest = quad(along, low, lv, epsabs=1e-14, epsrel=1e-12)[0]
            assert row.weights[0] == pytest.approx(newest, rel=1e-8)
    if u[-1] == 0:
        last = rows[-1]
        assert (last.keep, last.std, sum(last.weights)) == pytest.approx((0.0, 0.0, 1.0), abs=1e-12)


@pytest.mark.parametrize("S", [1.0, 0.25, 0.01, 1e-4])
def test_its_law_is_its_rows_propagated(S):
    """On N(m, S) x_hat = m + K (y - (1-u) m): the state and the last answer are jointly Gaussian at every knot."""
    m, steps = 0.8, 12
    model = sdegen.Gaussian(torch.tensor([m]), math.sqrt(S)).model(VP)
    solver = sdegen.StochasticAdams(steps)
    knots = knots_of(solver, model, steps)
    u_T = knots.u[0]
    mean = torch.stack([(1 - u_T) * m, torch.tensor(0.0)])
    covariance = torch.diag(torch.stack([(1 - u_T) ** 2 * S + u_T**2, torch.tensor(0.0)]))
    for row, u in zip(solver.predictor(knots), knots.u[:-1], strict=True):
        K = (1 - u) * S / ((1 - u) ** 2 * S + u**2)
        offset = m - K * (1 - u) * m
        w = [*row.weights, 0.0][:2]
        A = torch.tensor([[row.keep + w[0] * K, w[1]], [K, 0.0]])
        mean = A @ mean + torch.stack([w[0] * offset, offset])
        covariance = A @ covariance @ A.T + torch.diag(torch.tensor([row.std**2, 0.0]))
    ours = affine_law(VP, solver, S, m, steps)
    assert ours == pytest.approx((float(mean[0]), float(covariance[0, 0])), rel=1e-10)


@pytest.mark.parametrize("S", [1.0, 0.25, 0.01, 1e-4])
@pytest.mark.parametrize("path", ["vp", "subvp", "cosine", "ddpm", "condot"])
def test_fifty_calls_give_the_variance_to_one_percent(path, S):
    mean, variance = affine_law(PATHS[path], sdegen.StochasticAdams(50), S, 0.8, 50)
    assert mean == pytest.approx(0.8, abs=1e-3)
    assert variance == pytest.approx(S, rel=0.01)


@pytest.mark.parametrize(("order", "eta", "least"), [(1, 1.0, 0.9), (2, 1.0, 1.8), (2, 0.0, 1.9), (1, 0.0, 0.9)])
def test_it_has_its_order_in_law(order, eta, least):
    steps = [32, 64, 128, 256]
    laws = [affine_law(VP, sdegen.StochasticAdams(n, order=order, eta=eta), 0.25, 0.8, n)[1] for n in steps]
    assert slope(steps, [abs(v - 0.25) for v in laws]) > least


@pytest.mark.parametrize("path", ["vp", "cosine", "condot"])
def test_at_order_one_it_is_the_posterior_chain_and_ddim(path):
    model, steps, grid = ring().model(PATHS[path]), 11, sdegen.PowerGrid(2)
    x, noise = torch.randn(6, 2), torch.randn(11, 6, 2)
    for eta, other in (
        (1.0, sdegen.Ancestral(steps, variance="posterior", grid=grid)),
        (0.0, sdegen.DDIM(steps, grid=grid)),
    ):
        solver = sdegen.StochasticAdams(steps, order=1, eta=eta, grid=grid)
        ours, theirs = (sdegen.solve(model, x, s, noise=noise).x for s in (solver, other))
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_a_sample_does_not_depend_on_its_batch_mates():
    model = ring().model(VP)

    def draw(seeds):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return sdegen.sample(model, (len(seeds), 2), sdegen.StochasticAdams(8), generator=generators)

    torch.testing.assert_close(draw([3, 4, 5])[1:2], draw([4]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("calls", "bound"),
    [pytest.param(10, 0.25, marks=pytest.mark.nightly), pytest.param(20, 0.12, marks=pytest.mark.nightly), (50, 0.03)],
)
def test_the_bias_of_log_p_is_small(calls, bound):
    """100 000 samples of eight modes: mean log p against the closed form, to two standard errors."""
    target, n = ring(), 100_000
    g = torch.Generator().manual_seed(1)
    x = sdegen.sample(target.model(VP), (n, 2), sdegen.StochasticAdams(calls), generator=g)
    true = target.log_prob(target.sample(400_000, torch.Generator().manual_seed(2)))
    ours = target.log_prob(x)
    error = math.hypot(float(ours.std()) / n**0.5, float(true.std()) / len(true) ** 0.5)
    assert abs(float(ours.mean() - true.mean())) < bound + 2 * error


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: sdegen.StochasticAdams(), ValueError, "StochasticAdams needs steps"),
        (lambda: sdegen.StochasticAdams(-1), ValueError, "-1"),
        (lambda: sdegen.StochasticAdams(8, order=3), ValueError, "order must be at most 2, and it is 3"),
        (lambda: sdegen.StochasticAdams(8, eta=-0.5), ValueError, "-0.5"),
        (lambda: sdegen.StochasticAdams(8, eta=True), TypeError, "True is bool"),
    ],
)
def test_options_are_refused_in_a_sentence(make, kind, words):
    with pytest.raises(kind, match=words):
        make()


def test_it_runs_towards_the_data_alone_and_needs_a_score():
    model, x = ring().model(VP), torch.randn(3, 2)
    with pytest.raises(ValueError, match="StochasticAdams runs from noise to data"):
        sdegen.solve(model, x, sdegen.StochasticAdams(5), to="noise")
    with pytest.raises(TypeError, match="Only the ODE can be solved both ways"):
        sdegen.encode(model, x, sdegen.StochasticAdams(5))


def test_too_few_steps_of_two_calls_are_warned_of():
    for method in ("srk", "midpoint", "heun", "log_ode"):
        with pytest.warns(sdegen.AccuracyWarning, match=f"'{method}', steps=5.*StochasticAdams\\(10\\)"):
            sdegen.SDESolver(method, 5)
    with pytest.warns(sdegen.AccuracyWarning, match="SASolver\\(20\\).*at least 50 steps"):
        sdegen.SASolver(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for quiet in (
            lambda: sdegen.SDESolver("srk", 15),
            lambda: sdegen.SDESolver("euler", 5),
            lambda: sdegen.SASolver(50),
            lambda: sdegen.SASolver(20, eta=0.0),
            lambda: sdegen.SDESolver("srk", 5, eta=0.0),
            lambda: sdegen.SDESolver("srk", 5, grid=sdegen.PowerGrid(4)),
        ):
            quiet()
