"""Gradients through a solve: against central differences, against known answers, and what changes around them."""

from __future__ import annotations

import math

import pytest
import torch
from differentiated import SOLVERS, STEPS, AdamsBashforth2, model_for
from torch import nn

import sdegen


def given_noise(solver, x):
    """Normals for a solver that adds noise, None for one that does not."""
    if solver.solves_ode or getattr(solver, "eta", 1) == 0:
        return None
    pair = (2,) if getattr(solver, "method", "") == "srk" else ()
    return torch.randn(STEPS, *pair, *x.shape)


@pytest.mark.parametrize("trajectory", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_are_central_differences(name, trajectory):
    """Of a loss on samples in x_T, every parameter, the condition and the noise."""
    solver, _ = SOLVERS[name]
    model, x, shift = model_for(solver), torch.randn(4, 2), torch.randn(4, 2)
    noise = given_noise(solver, x)
    weights = torch.randn(STEPS + 1, 4, 2)

    def loss(**kept):
        found = sdegen.solve(model, x, solver, cond={"shift": shift}, noise=noise, trajectory=trajectory, **kept)
        return (weights * found.trajectory).sum() if trajectory else found.x.square().sum()

    leaves = [leaf for leaf in (x, shift, noise, *model.parameters()) if leaf is not None]
    for leaf in leaves:
        leaf.requires_grad_(True)
    gradients = torch.autograd.grad(loss(differentiable=True), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert bool((gradient != 0).any())
        v, h, at = torch.randn_like(leaf), 1e-5, leaf.detach().clone()
        ends = []
        for moved in (at + h * v, at - h * v):
            leaf.data.copy_(moved)
            ends.append(float(loss()))
        leaf.data.copy_(at)
        difference, slope = (ends[0] - ends[1]) / (2 * h), float((gradient * v).sum())
        assert abs(slope - difference) < 1e-6 * max(1, abs(difference))


@pytest.mark.parametrize("name", ["ode rk4", "sde euler", "ddim"])
def test_sample_is_solve_with_a_graph(name):
    """The numbers are those of a sample without one; a start that is drawn is no leaf, one that is given is."""
    solver, _ = SOLVERS[name]
    model, shift = model_for(solver), torch.randn(4, 2)
    x_T = torch.randn(4, 2, requires_grad=True)

    def drawn(**kept):
        g = torch.Generator().manual_seed(3)
        return sdegen.sample(model, (4, 2), solver, cond={"shift": shift}, generator=g, **kept)

    assert not drawn().requires_grad
    assert torch.equal(drawn(), drawn(differentiable=True).detach())
    assert all(g is not None for g in torch.autograd.grad(drawn(differentiable=True).sum(), [*model.parameters()]))
    ours = torch.autograd.grad(drawn(differentiable=True, x_T=x_T).sum(), x_T)
    g = torch.Generator().manual_seed(3)
    solved = sdegen.solve(model, x_T, solver, cond={"shift": shift}, generator=g, differentiable=True)
    assert torch.equal(*ours, *torch.autograd.grad(solved.x.sum(), x_T))


@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.CondOT()], ids=repr)
@pytest.mark.parametrize("solver", [sdegen.ODESolver("rk4", steps=60), AdamsBashforth2(600)], ids=repr)
def test_encode_and_back_has_the_identity_for_its_jacobian(path, solver):
    """w . decode(encode(x)) has the gradient w, on an exact model: to the accuracy of the solver."""
    model, w = sdegen.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.6).model(path), torch.randn(6, 2)
    x = torch.randn(6, 2, requires_grad=True)
    z = sdegen.encode(model, x, solver, differentiable=True)
    back = sdegen.decode(model, z, solver, differentiable=True)
    ahead, identity = (torch.autograd.grad((w * end).sum(), x, retain_graph=True)[0] for end in (z, back))
    torch.testing.assert_close(identity, w, rtol=0, atol=1e-4)
    assert float((ahead - w).abs().max()) > 0.1


def test_an_exact_mixture_moved_to_another_path_is_differentiable():
    """The Jacobian of a Gaussian's flow is known: x = m + S^(1/2) z in the limit, dx/dz = sqrt(S) on CondOT."""
    model = sdegen.Gaussian([0.3, -0.2], 0.5).model(sdegen.VPSDE()).on(sdegen.CondOT())
    z = torch.randn(5, 2, requires_grad=True)
    x = sdegen.decode(model, z, sdegen.ODESolver("rk4", steps=100), differentiable=True)
    torch.testing.assert_close(*torch.autograd.grad(x.sum(), z), torch.full_like(z, 0.5), rtol=1e-6, atol=0)


def test_a_vector_field_trained_through_decode_reaches_the_known_answer():
    """dx/dt = a x + b carries N(0, 1) to N(0.7, 0.2^2) for a = log 0.2 and b = 0.7 a / (e^a - 1) alone."""
    a, b = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.tensor(0.1))
    flow = sdegen.vector_field(lambda x, t: a * x + b)
    z = torch.special.ndtri((torch.arange(200) + 0.5) / 200)[:, None]
    z = (z - z.mean()) / z.std()
    optimiser = torch.optim.LBFGS([a, b], max_iter=100, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure():
        optimiser.zero_grad()
        x = sdegen.decode(flow, z, sdegen.ODESolver("rk4", steps=20), differentiable=True)
        loss = (x.mean() - 0.7) ** 2 + (x.std() - 0.2) ** 2
        loss.backward()
        return loss

    optimiser.step(closure)
    slope = math.log(0.2)
    assert abs(float(a.detach()) - slope) < 1e-4
    assert abs(float(b.detach()) - 0.7 * slope / (math.exp(slope) - 1)) < 1e-4


class Modes(nn.Module):
    """A network that notes the modes its layers are in while it runs."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2)), []

    def forward(self, x, t):
        self.seen.append([module.training for module in self.net])
        return self.net(x)


def test_networks_keep_the_mode_they_are_in():
    """Training modules train and the others do not, and without `differentiable` nothing is trained or kept."""
    net = Modes()
    model, x, solver = sdegen.ScoreModel(net, sdegen.VPSDE(), "v"), torch.randn(8, 2), sdegen.Ancestral(3)
    net.net[1].eval()
    before = net.net[0].running_mean.clone()
    assert not sdegen.solve(model, x, solver).x.requires_grad
    assert net.seen == [[False] * 3] * 3
    assert torch.equal(net.net[0].running_mean, before)
    net.seen.clear()
    assert sdegen.solve(model, x, solver, differentiable=True).x.requires_grad
    assert net.seen == [[True, False, True]] * 3
    assert not torch.equal(net.net[0].running_mean, before)
    assert [module.training for module in net.net] == [True, False, True]


def test_half_precision_is_solved_in_single_and_has_its_gradient():
    model = sdegen.ScoreModel(lambda x, t: torch.tanh(x), sdegen.VPSDE(), "v")
    x = torch.randn(4, 2, dtype=torch.float16, requires_grad=True)
    end = sdegen.solve(model, x, sdegen.ODESolver("rk4", steps=5), differentiable=True).x
    (gradient,) = torch.autograd.grad(end.sum(), x)
    wide = x.detach().double().requires_grad_(True)
    known = torch.autograd.grad(
        sdegen.solve(model, wide, sdegen.ODESolver("rk4", steps=5), differentiable=True).x.sum(), wide
    )
    assert (end.dtype, gradient.dtype) == (torch.float16, torch.float16)
    torch.testing.assert_close(gradient.double(), *known, rtol=2e-3, atol=2e-3)
