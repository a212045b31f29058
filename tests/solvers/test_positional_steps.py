"""ODESolver("rk4", 40) says what SDESolver("euler", 40) says."""

from __future__ import annotations

import pytest
import torch

import sdegen
from sdegen.solvers import ODE_METHODS

FIXED = [name for name, method in ODE_METHODS.items() if not method.adaptive]
ADAPTIVE = [name for name, method in ODE_METHODS.items() if method.adaptive]


@pytest.mark.parametrize("method", FIXED)
def test_the_second_argument_is_the_number_of_steps(method):
    solver = sdegen.ODESolver(method, 5)
    assert solver == sdegen.ODESolver(method, steps=5) == sdegen.ODESolver(steps=5, method=method)
    assert hash(solver) == hash(sdegen.ODESolver(method, steps=5))
    model = sdegen.Gaussian(torch.zeros(2), 0.5).model(sdegen.VPSDE())
    assert sdegen.solve(model, torch.randn(3, 2), solver).accepted == 5


@pytest.mark.parametrize("method", ADAPTIVE)
def test_an_adaptive_method_chooses_its_own(method):
    with pytest.raises(ValueError, match=rf"^'{method}' chooses its own steps from rtol and atol, and steps = 40, "):
        sdegen.ODESolver(method, 40)


def test_a_tolerance_is_named():
    with pytest.raises(TypeError, match=r"^steps must be an integer, and 1e-05 is float\.$"):
        sdegen.ODESolver("dopri5", 1e-5)
    with pytest.raises(TypeError, match="positional"):
        sdegen.ODESolver("rk4", 40, 1e-5)
