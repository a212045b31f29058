"""Steps of a sample's own on the pretend device: the numbers of the CPU, and one wait for an attempted step."""

from __future__ import annotations

import pytest
from cases import INSIDE, PATHS, SLOW, marked, network, same
from problems import ring
from torch import randn

import sdegen


@pytest.mark.parametrize("to", INSIDE)
@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_one_wait_in_an_attempt(method, to):
    """Beside it a few at the start, where the coefficients move; none as samples leave, and none in the engine."""
    attempts, stages = [], {"dopri5": 6, "dopri8": 13}[method]

    def call(model, x):
        solver = sdegen.ODESolver(method, rtol=1e-6, steps_for="sample")
        solution = sdegen.solve(model, x, solver, to=to, u=INSIDE[to])
        attempts.append((solution.calls - 2) // stages)
        assert len({*solution.sample_calls.tolist()}) > 1
        return solution.x, solution.error, solution.sample_calls

    waits = same(call, ring().model(PATHS["vp"]), 2 * randn(9, 2))
    assert attempts[0] == attempts[1] > 4
    assert waits.total() <= attempts[0] + 15, dict(waits)


@pytest.mark.parametrize("path", marked([name for name in PATHS if name not in SLOW]))
def test_every_path(path):
    solver = sdegen.ODESolver("dopri5", rtol=1e-4, steps_for="sample")
    same(lambda model, x: sdegen.solve(model, x, solver, u=INSIDE["data"]).x, network(PATHS[path]), randn(4, 2))


def test_a_density_with_conditions():
    solver = sdegen.ODESolver("dopri5", rtol=1e-4, steps_for="sample")
    same(
        lambda m, x, s: sdegen.log_prob(m, x, solver, cond={"shift": s}, u=INSIDE["noise"]),
        network(PATHS["vp"]),
        randn(4, 2),
        randn(4, 2),
    )
