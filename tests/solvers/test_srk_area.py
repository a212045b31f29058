"""The space-time area of srk, the integral of the Brownian path over a step: its size in the scheme and when drawn."""

from __future__ import annotations

import math

import pytest
import torch
from problems import coarsen

import sdegen

EXACT = sdegen.Gaussian([0.0], 2.0)


@pytest.mark.parametrize("path", [sdegen.CondOT(), sdegen.VPSDE()])
def test_an_area_alone_moves_a_step_like_the_path_it_belongs_to(path):
    """A Brownian path that comes back to where it began, W = 0, moves the state by its area: one step against 1000."""
    n, u = 1000, (0.5, 0.48)
    bow = 0.5 - (torch.arange(n) + 0.5) / n
    w = (bow / bow.square().sum().sqrt()).reshape(n, 1, 1)
    coarse = coarsen(w, torch.zeros_like(w), n)
    torch.testing.assert_close(coarse.flatten(), torch.tensor([0.0, 1.0]), rtol=0, atol=1e-3)
    model, x = EXACT.model(path), torch.zeros(1, 1)
    fine = sdegen.SDESolver("euler", grid=torch.linspace(*u, n + 1))
    step = sdegen.SDESolver("srk", grid=torch.tensor(u))
    moved = sdegen.solve(model, x, fine, u=u, noise=w).x, sdegen.solve(model, x, step, u=u, noise=coarse).x
    still = sdegen.solve(model, x, fine, u=u, noise=0 * w).x, sdegen.solve(model, x, step, u=u, noise=0 * coarse).x
    ours, true = float(moved[1] - still[1]), float(moved[0] - still[0])
    assert abs(true) > 1e-5
    assert abs(ours / true - 1) < 0.05


@pytest.mark.parametrize("several", [False, True], ids=["one generator", "one per sample"])
def test_drawn_increments_and_areas_have_the_law_of_given_ones(several):
    """Two long steps: the covariance of both states over 40 000 draws is that of unit impulses, significance 1e-6."""
    n, model = 40_000, EXACT.model(sdegen.CondOT())
    grid = torch.tensor([0.9, 0.3, 0.1])
    solver, u = sdegen.SDESolver("srk", grid=grid), (0.9, 0.1)
    impulses = torch.zeros(2, 2, 5, 1)
    for j in range(4):
        impulses[j // 2, j % 2, 1 + j] = 1
    states = sdegen.solve(model, torch.zeros(5, 1), solver, u=u, noise=impulses, trajectory=True).trajectory[1:, :, 0]
    response = states[:, 1:] - states[:, :1]
    covariance = response @ response.T
    areas = response[:, 1::2]
    assert float((areas.square().sum(1) / covariance.diagonal()).min()) > 0.1  # twice their size would be seen
    generator = [torch.Generator().manual_seed(i) for i in range(n)] if several else torch.Generator().manual_seed(0)
    x = torch.zeros(n, 1)
    drawn = sdegen.solve(model, x, solver, u=u, generator=generator, trajectory=True).trajectory[1:, :, 0]
    found = torch.cov(drawn)
    spread = (covariance.diagonal()[:, None] * covariance.diagonal() + covariance**2).sqrt() / math.sqrt(n)
    assert float(((found - covariance).abs() / spread).max()) < 5.1
    mean = drawn.mean(1) - states[:, 0]
    assert float((mean.abs() / (covariance.diagonal() / n).sqrt()).max()) < 5.1
