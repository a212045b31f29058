"""Gradients through the known schemes: autograd against central differences, whole and computed again in chunks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdegen

SOLVERS = {
    "dpm-solver": sdegen.DPMSolver(5, 3),
    "sde-dpm-solver": sdegen.DPMSolver(5, eta=1.0),
    "unipc": sdegen.UniPC(5, 3),
    "deis": sdegen.DEIS(5),
    "sa-solver": sdegen.SASolver(5, 3, corrector_order=3),
    "heun": sdegen.Heun(5),
    "churn": sdegen.Churn(sdegen.Heun(5)),
    "langevin": sdegen.Langevin(sdegen.UniPC(5)),
    "restart": sdegen.Restart(sdegen.DPMSolver(5, eta=1.0), 0.2, 0.6),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_are_central_differences(name):
    """In the start, the weights and the noise."""
    solver = SOLVERS[name]
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    model = sdegen.ScoreModel(lambda x, t: net(x) * (1 + t[:, None]), sdegen.VPSDE(), "v")
    x, noise = torch.randn(3, 2), torch.randn(24, 3, 2)
    leaves = [x, *net.parameters(), noise]

    def loss(**kept):
        return sdegen.solve(model, x, solver, noise=lambda k: noise[k], **kept).x.square().sum()

    for leaf in leaves:
        leaf.requires_grad_(True)
    gradients = torch.autograd.grad(loss(differentiable=True), leaves, allow_unused=True)
    again = torch.autograd.grad(loss(differentiable=True, checkpoint_every=2), leaves, allow_unused=True)
    for leaf, gradient, twin in zip(leaves, gradients, again, strict=True):
        if gradient is None:
            assert leaf is noise
            assert solver in (SOLVERS["dpm-solver"], SOLVERS["unipc"], SOLVERS["deis"], SOLVERS["heun"])
            continue
        torch.testing.assert_close(twin, gradient)
        v, h, at, ends = torch.randn_like(leaf), 1e-5, leaf.detach().clone(), []
        for moved in (at + h * v, at - h * v):
            leaf.data.copy_(moved)
            ends.append(float(loss()))
        leaf.data.copy_(at)
        difference = (ends[0] - ends[1]) / (2 * h)
        assert abs(float((gradient * v).sum()) - difference) < 1e-6 * max(1, abs(difference))
