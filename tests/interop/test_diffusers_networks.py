"""How networks of diffusers are asked: conditions, time, attention under a density, dtypes and pickles."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from unets import SIZES, diffusers, unet

import sdegen
from sdegen.interop.diffusers import from_diffusers

SMOOTH = diffusers.DDPMScheduler(clip_sample=False)


def text_unet():
    """One with cross-attention and added conditions, as SDXL's."""
    blocks = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    torch.manual_seed(3)
    return diffusers.UNet2DConditionModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        cross_attention_dim=6,
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=9,
        **SIZES,
    ).eval()


def test_class_labels_arrive_unchanged():
    net = unet(num_class_embeds=5)
    model, x = from_diffusers(net, SMOOTH), torch.randn(4, 1, 4, 4)
    label = torch.tensor([0, 4, 2, 2])
    k = torch.tensor([1, 250, 500, 1000])
    out = model.eps(x, k / 1000, {"class_labels": label})
    assert torch.equal(out, net(x, k - 1, class_labels=label).sample)
    assert not torch.allclose(out, net(x, k - 1, class_labels=label.flip(0)).sample)


class Times(nn.Module):
    """Keeps the timesteps it was shown; its answer in every form that networks have."""

    def __init__(self, form="sample"):
        super().__init__()
        self.weight, self.seen, self.form = nn.Parameter(torch.zeros(1)), [], form

    def forward(self, x, timestep):
        self.seen.append(timestep)
        out = 0.1 * x
        return {"tensor": out, "tuple": (out, None), "sample": diffusers.models.unets.unet_2d.UNet2DOutput(out)}[
            self.form
        ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_whole_chain_shows_the_integers_exactly(dtype):
    net = Times().to(dtype)
    sdegen.sample(from_diffusers(net, SMOOTH), (2, 1, 4, 4), sdegen.Ancestral())
    seen = torch.stack(net.seen)
    assert seen.dtype is dtype
    assert torch.equal(seen, torch.arange(999, -1, -1).to(dtype)[:, None].expand(-1, 2))


def test_every_form_of_an_answer_is_unpacked():
    x = torch.randn(2, 1, 4, 4)
    for form in ("tensor", "tuple", "sample"):
        assert torch.equal(from_diffusers(Times(form), SMOOTH)(x, 0.5), 0.1 * x)


def test_every_keyword_reaches_a_text_network_and_is_cut_with_the_batch():
    net, x = text_unet(), torch.randn(5, 1, 4, 4)
    model = from_diffusers(net, SMOOTH)
    added = {"text_embeds": torch.randn(5, 5), "time_ids": torch.randn(5, 2)}
    cond = {"encoder_hidden_states": torch.randn(5, 3, 6), "added_cond_kwargs": added}
    assert torch.equal(model.eps(x, 0.5, cond), net(x, torch.full((5,), 499.0), **cond).sample)
    solver = sdegen.ODESolver("rk4", steps=2)
    together = sdegen.log_prob(model, x, solver, trace=sdegen.Hutchinson(1), cond=cond, generator=generators())
    parts = sdegen.log_prob(
        model, x, solver, trace=sdegen.Hutchinson(1), cond=cond, generator=generators(), batch_size=2
    )
    torch.testing.assert_close(parts, together, rtol=1e-10, atol=1e-10)
    other = {**cond, "added_cond_kwargs": {name: part.flip(0) for name, part in added.items()}}
    assert not torch.allclose(model.eps(x, 0.5, other), model.eps(x, 0.5, cond), rtol=1e-3)


def generators():
    return [torch.Generator().manual_seed(k) for k in range(5)]


def test_a_dict_that_has_no_rows_is_refused_where_the_batch_is_cut():
    net, x = text_unet(), torch.randn(4, 1, 4, 4)
    cond = {"added_cond_kwargs": {"text_embeds": torch.randn(4, 5), "time_ids": torch.randn(2)}}
    words = r"cond\['added_cond_kwargs'\] is a dict, and the batch is cut into rows: .*a dict of such tensors, or"
    with pytest.raises(TypeError, match=words):
        sdegen.log_prob(from_diffusers(net, SMOOTH), x, cond=cond, batch_size=2)


def test_the_density_goes_through_attention():
    """The exact trace of 16 dimensions is that of the plain kernel, and of the Jacobian by rows."""
    model, x = from_diffusers(unet(), SMOOTH), torch.randn(2, 1, 4, 4)
    solver = sdegen.ODESolver("rk4", steps=3)
    logp = sdegen.log_prob(model, x, solver, trace="exact", u=(0.1, 0.9))
    with sdpa_kernel(SDPBackend.MATH):
        plain = sdegen.log_prob(model, x, solver, trace="exact", u=(0.1, 0.9))
    torch.testing.assert_close(logp, plain, rtol=1e-9, atol=1e-9)
    one_by_one = sdegen.log_prob(model, x, solver, trace=sdegen.Exact(chunk=1), u=(0.1, 0.9))
    torch.testing.assert_close(logp, one_by_one, rtol=1e-9, atol=1e-9)


def test_the_density_has_a_gradient_through_attention():
    """By two backward passes, as by a central difference."""
    model, x = from_diffusers(unet(), SMOOTH), torch.randn(1, 1, 4, 4)
    h, way, solver = 1e-5, torch.randn(1, 1, 4, 4), sdegen.Adams(3)

    def logp(x):
        return sdegen.log_likelihood(model, x, solver, differentiable=True, u=(0.1, 0.9)).log_prob.sum()

    start = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(logp(start), start)
    difference = (logp(x + h * way) - logp(x - h * way)).detach() / (2 * h)
    torch.testing.assert_close((slope * way).sum(), difference, rtol=1e-6, atol=1e-7)


def test_a_model_of_a_network_can_be_pickled():
    x, flow = torch.randn(2, 1, 4, 4), diffusers.FlowMatchEulerDiscreteScheduler()
    for scheduler in (SMOOTH, diffusers.DDPMScheduler(), flow):
        model = from_diffusers(unet(), scheduler)
        again = pickle.loads(pickle.dumps(model))
        assert again.path == model.path
        torch.testing.assert_close(again.data(x, 0.5), model.data(x, 0.5), rtol=0, atol=0)


def test_a_loaded_network_is_on_every_path():
    """Sampled as a flow: the same states in straight coordinates."""
    model, y = from_diffusers(unet(), SMOOTH), torch.randn(2, 1, 4, 4)
    r = model.path.scale(torch.tensor(0.9))
    x, other = (
        sdegen.solve(m, start, sdegen.DDIM(5), u=(0.9, 0.0)).x
        for m, start in ((model, r * y), (model.on(sdegen.CondOT()), y))
    )
    torch.testing.assert_close(x, other, rtol=1e-10, atol=1e-10)
