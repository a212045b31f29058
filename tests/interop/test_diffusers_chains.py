"""A U-Net saved and loaded with diffusers: our chains are the chains of its schedulers, number for number."""

from __future__ import annotations

import math

import pytest
import torch
from unets import diffusers, double, gap, saved, their_chain, unet

import sdegen
from sdegen.interop.diffusers import from_diffusers, from_pretrained, spacing

STEPS, SHAPE = 6, (2, 1, 4, 4)
VARIANCES = {"fixed_small": "posterior", "fixed_large": "beta", "learned_range": "learned"}
SCHEDULES = {
    "linear": {},
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {},
    "sigmoid": {"beta_end": 0.01},
}


def betas_by_hand(name, beta_start=1e-4, beta_end=0.02, steps=1000):
    """In float64, from the formulas of the papers."""
    q = torch.arange(steps) / (steps - 1)
    if name == "linear":
        return beta_start + (beta_end - beta_start) * q
    if name == "scaled_linear":
        return (math.sqrt(beta_start) + (math.sqrt(beta_end) - math.sqrt(beta_start)) * q) ** 2
    if name == "sigmoid":
        return beta_start + (beta_end - beta_start) / (1 + torch.exp(6 - 12 * q))
    abar = torch.cos((torch.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return torch.clamp(1 - abar[1:] / abar[:-1], max=0.999)


@pytest.fixture
def start():
    g = torch.Generator().manual_seed(11)
    return torch.randn(SHAPE, generator=g), torch.randn(STEPS, *SHAPE, generator=g)


def our_chain(model, scheduler, x, noise, variance):
    return sdegen.solve(model, x, sdegen.Ancestral(variance=variance, grid=spacing(scheduler, STEPS)), noise=noise).x


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_loaded_chain_is_theirs(monkeypatch, tmp_path, start, schedule, prediction, variance):
    """With their tables in float64 to rounding, as they are to the accuracy of float32."""
    options = {"beta_schedule": schedule, "prediction_type": prediction, "variance_type": variance}
    net = unet(learns_variance=variance == "learned_range")
    scheduler = diffusers.DDPMScheduler(clip_sample=False, **options, **SCHEDULES[schedule])
    model = from_pretrained(saved(tmp_path, net, scheduler), local_files_only=True)
    ours = our_chain(model, scheduler, *start, VARIANCES[variance])
    for tables, tolerance in ((True, 1e-10), (False, 2e-4)):
        theirs = diffusers.DDPMScheduler.from_config(scheduler.config)
        theirs.set_timesteps(STEPS)
        if tables:
            double(theirs, betas_by_hand(schedule, **SCHEDULES[schedule]))
        assert gap(ours, their_chain(monkeypatch, theirs, net, *start)) < tolerance


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_betas_are_computed_in_double_precision(schedule):
    for zero in (False, True):
        theirs = diffusers.DDPMScheduler(
            beta_schedule=schedule, prediction_type="sample", rescale_betas_zero_snr=zero, **SCHEDULES[schedule]
        )
        ours = from_diffusers(unet(), theirs).path.betas
        assert ours.dtype is torch.float64
        # where alphas_cumprod falls to 1e-9, theirs in float32 has no digit left of it
        most = {"squaredcos_cap_v2": 2e-2}.get(schedule, 2e-4) if zero else 2e-5
        torch.testing.assert_close(ours[:-1], theirs.betas[:-1].double(), rtol=most, atol=1e-6)
        assert (float(ours[-1]) == 1) == zero
        if not zero:
            torch.testing.assert_close(ours, betas_by_hand(schedule, **SCHEDULES[schedule]), rtol=1e-10, atol=1e-14)


def test_trained_betas_are_taken_as_they_are():
    betas = torch.linspace(0.01, 0.3, 12).tolist()
    theirs = diffusers.DDIMScheduler(num_train_timesteps=12, trained_betas=betas)
    assert from_diffusers(unet(), theirs).path == sdegen.DDPM(betas)


@pytest.mark.parametrize("spaced", ["leading", "trailing"])
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_is_theirs(monkeypatch, start, spaced, clean, eta):
    """Also where it ends at the first alphas_cumprod; 1000 = 8 * 125, so that trailing keeps to its grid."""
    theirs = diffusers.DDIMScheduler(
        timestep_spacing=spaced, set_alpha_to_one=clean, steps_offset=int(spaced == "leading"), clip_sample=False
    )
    x, noise = start[0], torch.randn(8, *SHAPE)
    theirs.set_timesteps(8)
    net = unet()
    grid = spacing(theirs, 8)
    ours = sdegen.solve(from_diffusers(net, theirs), x, sdegen.DDIM(grid=grid, eta=eta), noise=noise if eta else None)
    assert ours.calls == 8
    assert (ours.u[-1] == 0) == clean
    double(theirs, betas_by_hand("linear"))
    for k, z in zip(theirs.timesteps, noise, strict=True):
        x = theirs.step(net(x, k).sample, k, x, eta=eta, variance_noise=z).prev_sample.detach()
    assert gap(ours.x, x) < 1e-10


CLIPS = {
    "static": {"clip_sample": True, "clip_sample_range": 0.8},
    "dynamic": {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.4},
    "dynamic wins": {"thresholding": True, "clip_sample": True, "sample_max_value": 1.4},
}


@pytest.mark.parametrize("options", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_clipped_chain_is_theirs(monkeypatch, tmp_path, start, options, prediction):
    net, x = unet(), (3 * start[0], start[1])  # so large that most values are clipped
    theirs = diffusers.DDPMScheduler(prediction_type=prediction, **{"clip_sample": False, **options})
    model = from_pretrained(saved(tmp_path, net, theirs), local_files_only=True)
    assert isinstance(model, sdegen.Clipped)
    ours = our_chain(model, theirs, *x, "posterior")
    theirs.set_timesteps(STEPS)
    double(theirs, betas_by_hand("linear"))
    assert gap(ours, their_chain(monkeypatch, theirs, net, *x)) < 1e-10
    free = from_diffusers(net, theirs, clip=False)
    assert not isinstance(free, sdegen.Clipped)
    assert gap(our_chain(free, theirs, *x, "posterior"), ours) > 1e-2


@pytest.mark.parametrize("options", CLIPS.values(), ids=CLIPS)
def test_a_clipped_ddim_is_the_one_whose_noise_goes_with_the_clipped_data(start, options):
    net, x = unet(), 3 * start[0]
    theirs = diffusers.DDIMScheduler(steps_offset=1, **{"clip_sample": False, **options})
    theirs.set_timesteps(STEPS)
    ours = sdegen.solve(from_diffusers(net, theirs), x, sdegen.DDIM(grid=spacing(theirs, STEPS))).x
    double(theirs, betas_by_hand("linear"))
    for k in theirs.timesteps:
        x = theirs.step(net(x, k).sample, k, x, use_clipped_model_output=True).prev_sample.detach()
    assert gap(ours, x) < 1e-10


def test_the_bounds_are_the_schedulers_or_ones_own():
    net = unet()
    bounds = [
        (diffusers.DDPMScheduler(), None, (-1, 1, None, math.inf)),
        (diffusers.DDPMScheduler(clip_sample_range=2.5), None, (-2.5, 2.5, None, math.inf)),
        (diffusers.UniPCMultistepScheduler(thresholding=True), None, (-1, 1, 0.995, 1.0)),
        (diffusers.EulerDiscreteScheduler(), (0, 1), (0, 1, None, math.inf)),
        (diffusers.DDPMScheduler(thresholding=True), (-2.0, 1.0), (-2, 1, None, math.inf)),
    ]
    for scheduler, clip, expected in bounds:
        model = from_diffusers(net, scheduler, clip=clip)
        assert (model.low, model.high, model.quantile, model.most) == expected
    for scheduler, clip in ((diffusers.DDPMScheduler(), False), (diffusers.EulerDiscreteScheduler(), None)):
        assert isinstance(from_diffusers(net, scheduler, clip=clip), sdegen.ScoreModel)
