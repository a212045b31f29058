"""`Adams` as a scheduler of diffusers: the numbers of `sample` in diffusers' own pipeline, from the same start."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

import sdegen

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from sdegen.interop.diffusers import AdamsScheduler, from_diffusers, from_pretrained

SHAPE = (2, 3, 8, 8)
PREDICTIONS = ["epsilon", "sample", "v_prediction"]


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(3)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    return UNet2DModel(8, 3, 3, **blocks, **sizes).double().eval()


@pytest.fixture
def start():
    return torch.randn(SHAPE)


def ddpm(**config):
    return DDPMScheduler(**{"clip_sample": False, **config})


def walk(net, scheduler, x, steps):
    """Diffusers' loop, as its pipelines write it."""
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


def same(ours, theirs, tolerance=1e-12):
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < tolerance


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 5, 15, 30])  # Adams has order 1, 2, 3, 4 from 1, 5, 15, 30 steps
def test_it_is_adams_in_diffusers_own_loop(unet, start, prediction, steps):
    theirs = ddpm(prediction_type=prediction)
    ours = sdegen.sample(from_diffusers(unet, theirs), SHAPE, sdegen.Adams(steps), x_T=start)
    same(walk(unet, AdamsScheduler.from_config(theirs.config), start, steps), ours)


def test_their_pipeline_draws_what_sample_draws(unet):
    """Twice: the answers of the first run are forgotten. Their pipeline starts from N(0, 1)."""
    pipe = DDPMPipeline(unet, AdamsScheduler.from_config(ddpm().config))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    runs = [pipe(2, generator=generator, num_inference_steps=7, output_type="np").images for _ in range(2)]
    generator = torch.Generator().manual_seed(5)
    for images in runs:
        start = torch.randn(SHAPE, generator=generator)
        x = sdegen.sample(from_diffusers(unet, ddpm()), SHAPE, sdegen.Adams(7), x_T=start)
        same(torch.from_numpy(images).permute(0, 3, 1, 2), (x / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("steps", [1, 6])
def test_it_asks_once_a_step_where_sample_asks(unet, start, steps):
    """The first time is the last one trained on, and none is at the data end."""
    seen = {"theirs": [], "ours": []}
    name = "theirs"
    hook = unet.register_forward_pre_hook(lambda _, arguments: seen[name].append(float(arguments[1].flatten()[0])))
    scheduler = AdamsScheduler.from_config(ddpm().config)
    walk(unet, scheduler, start, steps)
    name = "ours"
    sdegen.sample(from_diffusers(unet, ddpm()), SHAPE, sdegen.Adams(steps), x_T=start)
    hook.remove()
    assert len(seen["theirs"]) == steps
    assert seen["theirs"][0] == 999.0
    assert seen["theirs"] == pytest.approx(seen["ours"], abs=1e-9)
    assert scheduler.timesteps.tolist() == seen["theirs"]


def test_a_run_that_was_broken_off_leaves_nothing_behind(unet, start):
    scheduler = AdamsScheduler.from_config(ddpm().config)
    once = walk(unet, scheduler, start, 9)
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps[:3]:
        scheduler.step(torch.full(SHAPE, 100.0), t, start)
    assert torch.equal(walk(unet, scheduler, start, 9), once)


def test_it_takes_the_order_of_adams(unet, start):
    scheduler = AdamsScheduler.from_config(ddpm().config, adams_order=2)
    solvers = [sdegen.Adams(20, order=order) for order in (2, None)]
    asked, default = (sdegen.sample(from_diffusers(unet, ddpm()), SHAPE, solver, x_T=start) for solver in solvers)
    same(walk(unet, scheduler, start, 20), asked)
    assert float((asked - default).abs().max()) > 1e-6


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("DDPMScheduler", {}),  # clips, as its class does where nothing is said
        ("DDPMScheduler", {"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.9}),
        ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "clip_sample": False}),
        ("PNDMScheduler", {"beta_schedule": "scaled_linear", "skip_prk_steps": True}),
        ("DPMSolverMultistepScheduler", {"trained_betas": [1e-3, 2e-2, 0.3], "num_train_timesteps": 3}),
        ("UniPCMultistepScheduler", {"num_train_timesteps": 100, "beta_end": 0.1}),
        ("DEISMultistepScheduler", {"prediction_type": "sample"}),
        ("EulerDiscreteScheduler", {"beta_start": 0.00085, "beta_end": 0.012}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ],
)
def test_it_reads_the_config_of_every_scheduler_with_a_path(unet, start, kind, config):
    """What the other class leaves to its defaults, too, which diffusers would replace by ours."""
    theirs = getattr(diffusers, kind)(**config)
    ours = sdegen.sample(from_diffusers(unet, theirs), SHAPE, sdegen.Adams(5), x_T=start)
    same(walk(unet, AdamsScheduler.from_config(theirs.config), start, 5), ours)


def test_what_a_file_leaves_out_is_what_its_own_class_fills_in():
    """Old files on the Hub lack entries that came later."""
    old = {"_class_name": "DDPMScheduler", "beta_schedule": "linear"}
    assert AdamsScheduler.from_config(old).config["clip_sample"]
    assert not AdamsScheduler.from_config({"beta_schedule": "linear"}).config["clip_sample"]


def test_it_starts_where_sample_does():
    path = sdegen.DDPM.linear()
    scheduler = AdamsScheduler()
    assert scheduler.init_noise_sigma == float(path.sigma(torch.tensor(1.0)))
    assert 0.9999 < scheduler.init_noise_sigma < 1


def test_it_is_saved_with_a_pipeline_and_loaded(unet, tmp_path, start, caplog):
    scheduler = AdamsScheduler.from_config(ddpm(beta_end=0.015).config, adams_order=2)
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path, dtype=torch.float64)
    assert isinstance(loaded.scheduler, AdamsScheduler)
    assert "not expected" not in caplog.text  # of entries that it keeps for the scheduler that they came from
    names = {name for name in loaded.scheduler.config if not name.startswith("_")}
    assert {name: loaded.scheduler.config[name] for name in names} == {name: scheduler.config[name] for name in names}
    assert torch.equal(walk(loaded.unet, loaded.scheduler, start, 6), walk(unet, scheduler, start, 6))
    ours = sdegen.sample(from_pretrained(tmp_path, dtype=torch.float64), SHAPE, sdegen.Adams(6, order=2), x_T=start)
    same(walk(unet, scheduler, start, 6), ours)
    back = DDPMScheduler.from_config(loaded.scheduler.config).config
    assert (back.beta_end, back.clip_sample, back.timestep_spacing) == (0.015, False, "leading")


def test_the_learned_variance_is_left_aside(start):
    theirs = ddpm(variance_type="learned_range")
    six = torch.cat([torch.tanh(start), torch.full(SHAPE, 50.0)], 1)
    scheduler, plain = (AdamsScheduler.from_config(s.config) for s in (theirs, ddpm()))
    for one in (scheduler, plain):
        one.set_timesteps(4)
    ours = scheduler.step(six, 999, start).prev_sample
    assert torch.equal(ours, plain.step(torch.tanh(start), 999, start).prev_sample)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    x = torch.randn(SHAPE).to(dtype)
    half, single = (AdamsScheduler.from_config(ddpm().config) for _ in range(2))
    for one in (half, single):
        one.set_timesteps(5)
    for t in half.timesteps:
        (ours,) = half.step(torch.tanh(x), t, x, return_dict=False)
        theirs = single.step(torch.tanh(x).float(), t, x.float()).prev_sample
        assert theirs.dtype is torch.float32
        assert torch.equal(ours, theirs.to(dtype))


def test_it_warns_where_a_network_is_asked_almost_in_pure_noise():
    """As `sample` does."""
    config = ddpm(beta_schedule="squaredcos_cap_v2").config
    with pytest.warns(sdegen.AccuracyWarning, match="alpha/sigma is 4.9e-05") as caught:
        AdamsScheduler.from_config(config).set_timesteps(5)
    assert [warning.filename for warning in caught] == [__file__]
    AdamsScheduler.from_config(config, clip_sample=True).set_timesteps(5)


@pytest.mark.parametrize("steps", [2.5, True, "10", None])
def test_the_number_of_steps_is_an_integer(steps):
    with pytest.raises(TypeError, match=rf"num_inference_steps must be an integer, and {re.escape(repr(steps))} is"):
        AdamsScheduler().set_timesteps(steps)


def test_there_is_a_step_at_least():
    with pytest.raises(ValueError, match="num_inference_steps must be at least 1, and it is 0"):
        AdamsScheduler().set_timesteps(0)


def test_a_step_that_is_not_due_is_refused(start):
    scheduler = AdamsScheduler()
    with pytest.raises(ValueError, match=r"step was called before set_timesteps, with timestep 999"):
        scheduler.step(start, 999, start)
    scheduler.set_timesteps(3)
    first, second, third = scheduler.timesteps
    with pytest.raises(
        ValueError, match=rf"step 0 is that of timestep 999\.0, and step was called with .*{float(second):.2f}"
    ):
        scheduler.step(start, second, start)
    assert not scheduler._answers
    scheduler.step(start, float(first), start)
    with pytest.raises(ValueError, match=r"step 1 is that of timestep .*, and step was called with nan"):
        scheduler.step(start, float("nan"), start)
    for t in (second.float(), third):
        scheduler.step(start, t, start)
    with pytest.raises(ValueError, match=r"step was called after the 3 steps of set_timesteps\(3\), with timestep 999"):
        scheduler.step(start, 999, start)


def test_an_answer_of_another_shape_is_refused(start):
    scheduler = AdamsScheduler()
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match=r"must return a tensor of shape \(2, 3, 8, 8\) for such an x_t, and gave"):
        scheduler.step(start[:, :2], 999, start)


def test_a_flow_has_no_betas_and_is_told_so(unet, start):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler = AdamsScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    same(
        walk(unet, scheduler, start, 5), sdegen.sample(from_diffusers(unet, theirs), SHAPE, sdegen.Adams(5), x_T=start)
    )
    for config in (theirs.config, {**theirs.config, "_class_name": "FlowMatchEulerDiscreteScheduler"}):
        with pytest.raises(
            ValueError, match=r"no beta_schedule but .*, shift, .*For flow matching give AdamsScheduler\(use"
        ):
            AdamsScheduler.from_config(config)


def test_a_config_without_betas_or_with_an_unknown_schedule_is_refused():
    with pytest.raises(
        ValueError, match=r"the config of a scheduler with betas, and this one has no beta_schedule but .* rho"
    ):
        AdamsScheduler.from_config(diffusers.EDMEulerScheduler().config)
    with pytest.raises(ValueError, match="'bend'"):
        AdamsScheduler(beta_schedule="bend")


def test_pure_noise_needs_another_prediction_than_epsilon():
    with pytest.raises(ValueError, match="'epsilon' is refused at zero terminal SNR"):
        AdamsScheduler(rescale_betas_zero_snr=True)
