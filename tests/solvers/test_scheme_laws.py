"""The known schemes by law: fitted orders, exact laws on Gaussian data, rows exact for polynomials, network calls."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import PATHS, affine_law, slope, start_law, two_modes

import sdegen
from sdegen.solvers.multistep import joined_rows

ORDERS = {  # fitted on u from 0.9 to 0.1; the first step, of first order, allows no more than 2 without a corrector
    "DDIM as DPM-Solver++ 1": (lambda n: sdegen.DPMSolver(n, 1), 1),
    "DPM-Solver++ 2M": (lambda n: sdegen.DPMSolver(n), 2),
    "DPM-Solver++ 3M": (lambda n: sdegen.DPMSolver(n, 3), 2),
    "UniPC 1": (lambda n: sdegen.UniPC(n, 1), 2),
    "UniPC 2": (lambda n: sdegen.UniPC(n), 2),
    "UniPC 3": (lambda n: sdegen.UniPC(n, 3), 2),
    "DEIS 1": (lambda n: sdegen.DEIS(n, 1), 1),
    "DEIS 2": (lambda n: sdegen.DEIS(n, 2), 2),
    "DEIS 3": (lambda n: sdegen.DEIS(n), 2),
    "SA-Solver ODE 1": (lambda n: sdegen.SASolver(n, 1, corrector_order=0, eta=0.0), 1),
    "SA-Solver ODE": (lambda n: sdegen.SASolver(n, eta=0.0), 2),
    "Heun": (lambda n: sdegen.Heun(n), 2),
}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("path", ["vp", "condot"])
def test_the_fitted_order(name, path):
    make, order = ORDERS[name]
    model, u = two_modes().model(PATHS[path]), (0.9, 0.1)
    x = torch.linspace(-1.5, 1.5, 16)[:, None] * float(PATHS[path].scale(0.9))
    exact = sdegen.solve(model, x, sdegen.ODESolver("dopri8", rtol=1e-12, atol=1e-13), u=u).x
    steps = [32, 64, 128, 256]
    errors = [float((sdegen.solve(model, x, make(n), u=u).x - exact).abs().max()) for n in steps]
    fitted = slope(steps, errors)
    assert fitted > order - 0.15, fitted
    assert fitted < order + 0.2 or name in ("UniPC 3", "DPM-Solver++ 3M", "DEIS 3", "UniPC 2"), fitted


# On Gaussian data x_hat is affine in y, and so is every state: the law of state and history jointly

STOCHASTIC = {
    "SDE-DPM-Solver++ 1": lambda n: sdegen.DPMSolver(n, 1, eta=1.0),
    "SDE-DPM-Solver++ 2M": lambda n: sdegen.DPMSolver(n, 2, eta=1.0),
    "SDE-DPM-Solver++ 2M, eta 0.5": lambda n: sdegen.DPMSolver(n, 2, eta=0.5),
    "SA-Solver 2, 2": lambda n: sdegen.SASolver(n),
    "SA-Solver 3, 3": lambda n: sdegen.SASolver(n, 3, corrector_order=3),
    "SA-Solver 2, 0, eta 0.7": lambda n: sdegen.SASolver(n, 2, corrector_order=0, eta=0.7),
}


def propagated(path, solver, S, m):
    """Mean and variance at the end: (y, m_0, m_1, ...) is Gaussian, and a row is a linear map of it."""
    model = sdegen.Gaussian(torch.tensor([m]), math.sqrt(S)).model(path)
    problem = sdegen.Problem(model, torch.zeros(1, 1), path.ends[1], path.ends[0])
    knots = solver.laid(problem)
    r = float(path.scale(path.ends[1]))
    exact = sdegen.Gaussian(torch.tensor([m]), math.sqrt(S))
    mean_x, variance_x = start_law(exact.marginal(path, path.t_noise))
    size = 6
    mean, cov = np.zeros(size), np.zeros((size, size))
    mean[0], cov[0, 0] = mean_x / r, variance_x / r**2
    rows = joined_rows(solver.predictor(knots), solver.corrector(knots))
    for row, u in zip(rows, knots.u.tolist(), strict=False):
        gain = (1 - u) * S / ((1 - u) ** 2 * S + u**2)
        ask = np.eye(size, k=-1)  # answers move one place down
        ask[0], ask[1] = 0, 0
        ask[0, 0], ask[1, 0] = 1, gain
        mean = ask @ mean
        mean[1] += m - gain * (1 - u) * m
        cov = ask @ cov @ ask.T
        move = np.eye(size)
        move[0, 0] = row.keep
        move[0, 1 : 1 + len(row.weights)] = row.weights
        mean, cov = move @ mean, move @ cov @ move.T
        cov[0, 0] += row.std**2
    r = float(path.scale(path.ends[0]))
    return r * mean[0], r**2 * cov[0, 0]


@pytest.mark.parametrize("path", ["vp", "condot", "ve"])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_law_of_the_samples_is_that_of_the_rows(name, path):
    for S in (1.0, 0.01):
        solver = STOCHASTIC[name](12)
        law = affine_law(PATHS[path], solver, S, 0.8, 12)
        assert law == pytest.approx(propagated(PATHS[path], solver, S, 0.8), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "order", "within"),
    [
        ("SDE-DPM-Solver++ 1", 1, 0.15),
        ("SDE-DPM-Solver++ 2M", 2, 0.02),
        ("SDE-DPM-Solver++ 2M, eta 0.5", 2, 0.02),
        ("SA-Solver 2, 2", 2, 0.1),
        ("SA-Solver 3, 3", 2, 0.1),
    ],
)
def test_the_fitted_order_of_the_law(name, order, within):
    """The error of the variance on N(0.8, 0.25), from the exact start on VP."""
    steps = [64, 128, 256, 512]
    errors = [abs(affine_law(PATHS["vp"], STOCHASTIC[name](n), 0.25, 0.8, n)[1] / 0.25 - 1) for n in steps]
    assert slope(steps, errors) > order - 0.35
    assert errors[0] < within
