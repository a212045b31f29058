"""Chains are values, lists keep their digits, and a shorter chain carries its start."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import sdegen
from sdegen.paths.chain import Knots


@pytest.fixture
def _single_precision():
    torch.set_default_dtype(torch.float32)  # put back by the fixture of every test


@pytest.mark.parametrize("smooth", [False, True])
def test_equal_chains_are_equal(smooth):
    path = sdegen.DDPM.linear(10, smooth=smooth)
    for same in (
        sdegen.DDPM.linear(10, smooth=smooth),
        sdegen.DDPM(path.betas.tolist(), smooth=smooth),
        copy.deepcopy(path),
        copy.copy(path),
        pickle.loads(pickle.dumps(path)),
    ):
        assert same == path
        assert hash(same) == hash(path)
        assert sdegen.Interpolant(same) == sdegen.Interpolant(path)
        assert sdegen.Retimed(same, 0.0, 10.0) == sdegen.Retimed(path, 0.0, 10.0)
    for other in (
        sdegen.DDPM.linear(11, smooth=smooth),
        sdegen.DDPM.linear(10, 2e-4, smooth=smooth),
        sdegen.DDPM.linear(10, smooth=not smooth),
        sdegen.VPSDE(),
        None,
    ):
        assert other != path
    assert len({path, sdegen.DDPM.linear(10, smooth=smooth), sdegen.DDPM.linear(10, smooth=not smooth)}) == 2


def test_used_chains_stay_equal_and_keep_their_numbers():
    path = sdegen.DDPM.linear(10)
    _ = path.ends, path.prior
    again = pickle.loads(pickle.dumps(path))
    assert again == path == sdegen.DDPM.linear(10)
    t = torch.linspace(0.0, 1.0, 7)
    assert torch.equal(again.alpha(t), path.alpha(t))


def test_a_chain_does_not_change_with_the_betas_it_was_given():
    betas = torch.linspace(1e-3, 0.1, 10)
    path = sdegen.DDPM(betas)
    betas.mul_(2)
    assert path == sdegen.DDPM(betas / 2)


@pytest.mark.usefixtures("_single_precision")
def test_betas_in_a_list_keep_their_digits():
    betas = [1e-4, 0.02, 0.3]
    for given in (betas, tuple(betas), np.array(betas)):
        assert sdegen.DDPM(given).betas.tolist() == betas
    assert sdegen.DDPM(torch.tensor(betas)).betas[0] == torch.tensor(1e-4).double()  # a tensor has the digits it has


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_a_shorter_chain_is_knots_and_else_a_tensor(spacing):
    path = sdegen.DDPM.linear(100)
    grid = path.respaced(7, spacing)
    assert isinstance(grid, Knots)
    assert isinstance(grid, torch.Tensor)
    assert (grid.dtype, grid.shape) == (torch.float64, (8,))
    assert (float(grid[0]) < path.ends[1]) == (spacing == "leading")
    assert float(grid[-1]) == 0
    for plain in (grid[:-1], grid[0], grid + 1, 1 - grid, torch.diff(grid), grid.clone(), path.time(grid)):
        assert type(plain) is torch.Tensor
    for same in (copy.copy(grid), copy.deepcopy(grid), pickle.loads(pickle.dumps(grid))):
        assert type(same) is Knots
        assert torch.equal(same, grid)
    solver = sdegen.Ancestral(grid=grid)
    assert type(copy.deepcopy(solver).grid) is Knots
    assert "Knots" in repr(grid)


def test_knots_visit_the_steps_they_name():
    path = sdegen.DDPM.linear(1000)
    k = (path.time(path.respaced(50)) * 1000).round().long().tolist()
    assert k == [*range(981, 0, -20), 0]
    k = (path.time(path.respaced(50, "trailing")) * 1000).round().long().tolist()
    assert k == [*range(1000, 0, -20), 0]


def test_a_deep_copy_of_knots_shares_nothing():
    grid = sdegen.DDPM.linear(10).respaced(5)
    other = copy.deepcopy(grid)
    other.zero_()
    assert float(grid[0]) > 0


def test_the_knots_of_a_long_chain_are_rounded_once():
    betas = torch.linspace(1e-5, 5e-3, 4000, dtype=torch.float64)
    gains = (-torch.log1p(-betas)).tolist()
    B = sdegen.DDPM(betas).integrated_beta(torch.arange(4001, dtype=torch.float64) / 4000)
    exact = torch.tensor([math.fsum(gains[:k]) for k in range(0, 4001, 50)], dtype=torch.float64)
    torch.testing.assert_close(B[::50], exact, rtol=2.3e-16, atol=0)
