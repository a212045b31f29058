"""Networks whose kernels differentiate once, or one product at a time: torch.compile and fused attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdegen
from sdegen._arguments import evaluating
from sdegen._derivatives import twice_differentiable, uncompiled
from sdegen.likelihoods.gradients import products_at_once


class Net(nn.Module):
    def __init__(self, hides=False):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 4))
        self.hides = hides

    def forward(self, x, t):
        return self.inner(x.detach() if self.hides else x) * (1 + t[:, None])


def looked_at(net, shape=(8, 4), probes=4):
    """What is found out about a network."""
    model = sdegen.ScoreModel(net, sdegen.CondOT(), "velocity")
    with evaluating(model):
        return products_at_once(model, torch.randn(shape), (0.0, 1.0), {}, probes)


def compiled(how, hides=False):
    """A network and the same one compiled, by the call or in place; without a C++ compiler."""
    pytest.importorskip("torch._dynamo")
    torch.manual_seed(0)
    net = Net(hides)
    if how == "wrapped":
        return net, torch.compile(net, backend="aot_eager")
    other = Net(hides)
    other.load_state_dict(net.state_dict())
    other.compile(backend="aot_eager")
    return net, other


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6 cannot switch it off")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_network_passes_and_gives_every_product(how):
    net, fast = compiled(how)
    assert looked_at(fast) > 1
    with pytest.raises(ValueError, match="blocks gradients"):
        looked_at(compiled(how, hides=True)[1])
    x, t, z = torch.randn(5, 4), torch.rand(5), torch.ones(3, 5, 4)
    with uncompiled():
        y = x.clone().requires_grad_(True)
        v, expected = fast(y, t), net(y, t)
        products = [torch.autograd.grad((f * f).sum(), y, create_graph=True)[0] for f in (v, expected)]
        batched = torch.autograd.grad(v, y, z, retain_graph=True, is_grads_batched=True)[0]
        second = [torch.autograd.grad(p.square().sum(), y, retain_graph=True)[0] for p in products]
    torch.testing.assert_close(products[0], products[1])
    torch.testing.assert_close(second[0], second[1])
    assert batched.shape == (3, 5, 4)


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6 cannot switch it off")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("every", [None, 5])
def test_the_density_of_a_compiled_network_is_differentiable(every):
    """Its steps are computed again uncompiled in the backward pass too."""
    slopes = []
    for net in compiled("wrapped"):
        x = torch.linspace(-1, 1, 8).reshape(2, 4).requires_grad_(True)
        model = sdegen.ScoreModel(net, sdegen.CondOT(), "velocity")
        found = sdegen.log_likelihood(model, x, sdegen.Adams(12), differentiable=True, checkpoint_every=every)
        slopes.append(torch.autograd.grad(found.log_prob.sum(), x)[0])
    torch.testing.assert_close(*slopes)


class Attention(nn.Module):
    """Attention of eight tokens, by the module or by the function."""

    def __init__(self, by_module):
        super().__init__()
        self.module = nn.MultiheadAttention(8, 2, batch_first=True) if by_module else nn.Linear(8, 24)

    def forward(self, x, t):
        if isinstance(self.module, nn.MultiheadAttention):
            return self.module(x, x, x, need_weights=False)[0]
        q, k, v = (part[:, None] for part in self.module(x).chunk(3, -1))
        return nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]


def unet():
    diffusers = pytest.importorskip("diffusers")
    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 4}
    return diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **kinds, **sizes).eval()


class Images(nn.Module):
    def __init__(self, blind=False):
        super().__init__()
        self.unet, self.blind = unet(), blind

    def forward(self, x, t):
        return self.unet(x.detach() if self.blind else x, t).sample


@pytest.mark.parametrize("by_module", [True, False])
def test_attention_passes(by_module):
    torch.manual_seed(0)
    for probes in (1, 4):
        assert looked_at(Attention(by_module).eval(), (6, 8, 8), probes) >= 1


def test_a_network_whose_backward_pass_cannot_be_batched_takes_single_products():
    torch.manual_seed(0)
    assert looked_at(Images(), (4, 1, 8, 8)) == 1
    with pytest.raises(ValueError, match="blocks gradients"):
        looked_at(Images(blind=True), (4, 1, 8, 8))


@pytest.mark.parametrize("make", [lambda: Attention(True), lambda: Attention(False), Images])
def test_attention_is_twice_differentiable_where_the_call_is_made_inside(make):
    torch.manual_seed(0)
    net = make().double()
    shape = (2, 1, 8, 8) if isinstance(net, Images) else (2, 8, 8)
    x, t, z = torch.randn(shape), torch.rand(2), torch.randn(shape)

    def product(x):
        with twice_differentiable():
            value = net(x, t)
        (found,) = torch.autograd.grad((value * z).sum(), x, create_graph=True)
        return (found * z).sum()

    x.requires_grad_(True)
    (slope,) = torch.autograd.grad(product(x), x)
    h, way = 1e-5, torch.randn(shape)
    ahead, behind = (product((x + s * h * way).detach().requires_grad_(True)) for s in (1, -1))
    torch.testing.assert_close((slope * way).sum(), (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)
