"""Solvers are values: equal when they say the same, with tensors in them too, before and after a pickle."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import sdegen

GRID = torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64)
MAKERS = [
    lambda: sdegen.SDESolver("srk", 7, eta=0.5),
    lambda: sdegen.SDESolver(grid=GRID.clone()),
    lambda: sdegen.ODESolver("rk4", grid=GRID.clone()),
    lambda: sdegen.ODESolver("dopri5", rtol=1e-4),
    lambda: sdegen.Ancestral(2, variance=torch.tensor([0.0, 0.1])),
    lambda: sdegen.Ancestral(grid=sdegen.DDPM.linear(20).respaced(5)),
    lambda: sdegen.DDIM(9, eta=0.5, grid=sdegen.PowerGrid(3)),
    lambda: sdegen.DPMSolver(9, eta=0.5, grid=sdegen.PowerGrid(3)),
    lambda: sdegen.UniPC(grid=GRID.clone()),
    lambda: sdegen.Restart(sdegen.UniPC(grid=GRID.clone()), times=2),
]


@pytest.mark.parametrize("k", range(len(MAKERS)))
def test_a_solver_equals_its_copies_and_no_other(k):
    solver = MAKERS[k]()
    for twin in (MAKERS[k](), copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert twin == solver
        assert hash(twin) == hash(solver)
    for j, other in enumerate(MAKERS):
        assert (other() == solver) == (j == k)
    assert solver != "solver"


def test_tensors_are_compared_number_by_number():
    base = sdegen.SDESolver(grid=GRID)
    assert base != sdegen.SDESolver(grid=torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    assert base != sdegen.SDESolver(grid=GRID.float())
    assert base != sdegen.SDESolver(grid=torch.tensor([1.0, 0.4, 0.2, 0.0]))
    assert base != sdegen.SDESolver(steps=2)
    assert sdegen.Ancestral(2, variance=torch.tensor([0.0, 0.1])) != sdegen.Ancestral(2)
    twice = [sdegen.SDESolver(grid=GRID.clone()) for _ in range(2)]
    assert len({*twice, sdegen.SDESolver(steps=4)}) == 2
