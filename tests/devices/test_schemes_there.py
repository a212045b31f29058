"""The known schemes on the pretend device: the numbers of the CPU, and no wait that grows with the steps."""

from __future__ import annotations

import pytest
import torch
from cases import INSIDE, few, network, same
from pretend import put

import sdegen
from sdegen.solvers import SCHEMES


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme(name):
    model, x, u = network(sdegen.VPSDE()), torch.randn(4, 2), INSIDE["data"]

    def solved(model, x):
        solution = sdegen.solve(model, x, SCHEMES[name].solver(8), u=u, trajectory=True)
        return solution.x, solution.trajectory

    same(solved, model, x)
    model, x = put(model), put(x)
    longest = 36 if SCHEMES[name].order else 10  # what is re-noised moves up to three times a step
    few(lambda n: sdegen.solve(model, x, SCHEMES[name].solver(n), u=u), long=longest)
