"""Gradients of a log-density: in the data, in parameters and conditions, against central differences."""

from __future__ import annotations

import pytest
import torch
from mixtures import counting
from torch import nn

import sdegen

SOLVERS = {
    "adams": sdegen.Adams(14),
    "few": sdegen.Adams(5),
    "rk4": sdegen.ODESolver("rk4", steps=4),
    "order 2": sdegen.Adams(9, 2),
}
TRACES = {"exact": "exact", "hutchinson": sdegen.Hutchinson(1), "three": sdegen.Hutchinson(3)}


class Net(nn.Module):
    """A small network with parameters, a condition per sample and one for all."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, t, shift, scale):
        return self.last(torch.tanh(self.first(torch.cat([x + shift, t[:, None]], 1)))) * scale


class Attended(nn.Module):
    """Three tokens of width four that attend to each other, by the module or by the function."""

    def __init__(self, by_module):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True) if by_module else nn.Linear(4, 12)

    def forward(self, x, t):
        x = x * (1 + t[:, None, None])
        if isinstance(self.inner, nn.MultiheadAttention):
            return self.inner(x, x, x, need_weights=False)[0]
        return nn.functional.scaled_dot_product_attention(*self.inner(x).chunk(3, -1))


def unet():
    """A diffusers U-Net with attention, on images 8 x 8."""
    diffusers = pytest.importorskip("diffusers")
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )
    return nn.ModuleDict({"net": net.double().eval()}), lambda x, t: net(x, 1000 * t).sample


def check(value, leaves, h=1e-5, relative=1e-7):
    """Gradients of `value(differentiable)` along a random direction of every leaf against central differences."""
    for leaf in leaves:
        leaf.requires_grad_(True)
    gradients = torch.autograd.grad(value(True), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert bool((gradient != 0).any())
        v, at, ends = torch.randn_like(leaf), leaf.detach().clone(), []
        for k in (2, 1, -1, -2):
            leaf.data.copy_(at + k * h * v)
            ends.append(float(value(False).detach()))
        leaf.data.copy_(at)
        difference = (8 * (ends[1] - ends[2]) - (ends[0] - ends[3])) / (12 * h)
        assert abs(float((gradient * v).sum()) - difference) < relative * max(1, abs(difference))
    return gradients


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_are_central_differences(name, trace):
    """Of the log-densities and the latents, in x, every parameter and both conditions."""
    model, x = sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v"), torch.randn(4, 3)
    shift, scale, w, v = torch.randn(4, 3), torch.rand(3), torch.randn(4), torch.randn(4, 3)

    def value(differentiable):
        found = sdegen.log_likelihood(
            model,
            x,
            SOLVERS[name],
            trace=TRACES[trace],
            generator=[torch.Generator().manual_seed(i) for i in range(4)],
            cond={"shift": shift, "scale": sdegen.Shared(scale)},
            differentiable=differentiable,
            data=torch.ones(3, 3),
            batch_size=3,
        )
        assert found.log_prob.requires_grad == found.latent.requires_grad == differentiable
        for error in (found.error, found.solver_error, found.probe_error, found.prior_gap):
            assert error is None or not error.requires_grad
        return (w * found.log_prob).sum() + (v * found.latent).sum()

    check(value, [x, shift, scale, *model.parameters()], h=1e-3)


@pytest.mark.parametrize(("trace", "every"), [("exact", 4), ("hutchinson", 1), ("three", 4), ("hutchinson", 100)])
def test_checkpoints_give_the_same_gradients(trace, every):
    """To 1e-12, probes included, with any number of steps at once; so do the values."""
    model, x = sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v"), torch.randn(4, 3, requires_grad=True)
    shift = torch.randn(4, 3, requires_grad=True)
    leaves, found = [x, shift, *model.parameters()], []
    for checkpoint_every in (None, every):
        ours = sdegen.log_likelihood(
            model,
            x,
            sdegen.Adams(15),
            trace=TRACES[trace],
            generator=torch.Generator().manual_seed(1),
            cond={"shift": shift, "scale": 0.7},
            differentiable=True,
            checkpoint_every=checkpoint_every,
        )
        found.append([ours.log_prob.detach(), *torch.autograd.grad(ours.log_prob.sum(), leaves)])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("every", "again"), [(None, 0), (1, 15), (4, 15)])
def test_checkpoints_call_the_network_again(every, again):
    """Every call once more in the backward pass: of 15 for 14 steps, or none where all activations are kept."""
    model, net = counting()
    ours = sdegen.log_likelihood(
        model, torch.randn(3, 2), sdegen.Adams(14), differentiable=True, checkpoint_every=every
    )
    net.rows.clear()
    ours.log_prob.sum().backward()
    assert len(net.rows) == again


def test_checkpoints_without_a_generator():
    """The probes of the backward pass are those of the forward pass."""
    model, x = sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v"), torch.randn(4, 3, requires_grad=True)
    cond, found = {"shift": torch.zeros(4, 3), "scale": 1.0}, []
    for every in (None, 3):
        torch.manual_seed(5)
        ours = sdegen.log_likelihood(
            model,
            x,
            sdegen.Adams(9),
            trace=sdegen.Hutchinson(1),
            cond=cond,
            differentiable=True,
            checkpoint_every=every,
        )
        found.append(torch.autograd.grad(ours.log_prob.sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("checkpoint_every", [None, 2])
@pytest.mark.parametrize("trace", ["exact", sdegen.Hutchinson(1)], ids=str)
@pytest.mark.parametrize("by_module", [True, False])
def test_through_attention(by_module, trace, checkpoint_every):
    """Whose fused kernels have one derivative alone, while a log-density's gradient needs two."""
    model, x = sdegen.ScoreModel(Attended(by_module), sdegen.CondOT(), "velocity"), torch.randn(3, 3, 4)

    def value(differentiable):
        return _sum(model, x, trace, differentiable, checkpoint_every if differentiable else None)

    check(value, [x, *model.parameters()], h=1e-3)


def _sum(model, x, trace, differentiable, checkpoint_every=None, steps=6):
    ours = sdegen.log_likelihood(
        model,
        x,
        sdegen.Adams(steps),
        trace=trace,
        generator=torch.Generator().manual_seed(2),
        differentiable=differentiable,
        checkpoint_every=checkpoint_every,
    )
    return ours.log_prob.sum()


def test_through_a_unet_of_diffusers():
    parts, call = unet()
    model, x = sdegen.ScoreModel(call, sdegen.VPSDE(), "eps"), torch.randn(2, 1, 8, 8)
    some = [p for name, p in parts.named_parameters() if "to_q.weight" in name or "conv_out.weight" in name]
    assert len(some) >= 2
    check(lambda d: _sum(model, x, sdegen.Hutchinson(1), d, steps=3), [x, *some[:3]], h=1e-3)


def test_the_network_keeps_its_mode_and_a_plain_solve_keeps_no_graph():
    net = Net().train()
    model, x = sdegen.ScoreModel(net, sdegen.VPSDE(), "v"), torch.randn(2, 3, requires_grad=True)
    seen = []
    net.register_forward_hook(lambda module, *_: seen.append(module.training))
    cond = {"shift": torch.zeros(2, 3), "scale": 1.0}
    sdegen.log_likelihood(model, x, sdegen.Adams(3), cond=cond)
    seen.clear()
    plain = sdegen.log_likelihood(model, x, sdegen.Adams(3), cond=cond)
    assert not plain.log_prob.requires_grad
    assert not sdegen.log_prob(model, x, sdegen.Adams(3), cond=cond).requires_grad
    assert set(seen) == {False}
    seen.clear()
    kept = sdegen.log_likelihood(model, x, sdegen.Adams(3), cond=cond, differentiable=True)
    assert set(seen[-4:]) == {True}
    assert torch.equal(plain.log_prob, kept.log_prob.detach())
    assert net.training


def test_a_second_solve_keeps_the_graph_of_the_first_alone():
    model, x = sdegen.vector_field(lambda x, t: torch.sin(x)), torch.randn(3, 2, requires_grad=True)
    solver = sdegen.ODESolver("rk4", steps=6)
    ours = sdegen.log_likelihood(model, x, solver, differentiable=True, second_solve=True)
    assert not ours.solver_error.requires_grad
    plain = sdegen.log_likelihood(model, x, solver, differentiable=True)
    for found in (ours, plain):
        assert not found.error.requires_grad
    torch.testing.assert_close(
        *(torch.autograd.grad(found.log_prob.sum(), x)[0] for found in (ours, plain)), rtol=1e-12, atol=1e-12
    )


def test_the_gradient_in_x_is_the_score():
    """Of an exact mixture: d log p / dx, to the accuracy of the solver."""
    target = sdegen.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.6)
    path, x = sdegen.CondOT(), torch.randn(5, 2, requires_grad=True)
    ours = sdegen.log_likelihood(target.model(path), x, sdegen.Adams(160), differentiable=True)
    expected = torch.autograd.grad(target.log_prob(x).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(ours.log_prob.sum(), x)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "solver", [sdegen.AdamsUntil(), sdegen.ODESolver("dopri8", rtol=1e-4), sdegen.ODESolver("dopri5")], ids=repr
)
def test_refused_where_the_solver_chooses_its_steps(solver):
    model, x = sdegen.vector_field(lambda x, t: torch.sin(x)), torch.randn(3, 2)
    with pytest.raises(ValueError, match=r"differentiable=True needs fixed steps, and .* chooses its own"):
        sdegen.log_likelihood(model, x, solver, differentiable=True)
    with pytest.raises(ValueError, match="differentiable=True needs fixed steps"):
        sdegen.log_likelihood(model, x, differentiable=True)  # the default is one of them


def test_refused_without_gradients():
    model, x = sdegen.vector_field(lambda x, t: 1 / 0), torch.randn(3, 2)
    for switch in (torch.no_grad, torch.inference_mode):
        with switch(), pytest.raises(ValueError, match="differentiable=True keeps the graph of the solve"):
            sdegen.log_likelihood(model, x, sdegen.Adams(3), differentiable=True)
    with pytest.raises(ValueError, match="checkpoint_every = 3 is about a backward pass"):
        sdegen.log_likelihood(model, x, sdegen.Adams(3), checkpoint_every=3)
    with pytest.raises(TypeError, match="differentiable must be True or False, and it is 1"):
        sdegen.log_likelihood(model, x, sdegen.Adams(3), differentiable=1)
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, and it is 0"):
        sdegen.log_likelihood(model, x, sdegen.Adams(3), differentiable=True, checkpoint_every=0)
