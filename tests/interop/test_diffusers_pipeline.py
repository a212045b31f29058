"""A pipeline of diffusers with a solver of sdegen: what it draws, how it is saved, what it refuses."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass

import pytest
import torch

import sdegen

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from sdegen.interop.diffusers import AdamsScheduler, SdegenPipeline, from_diffusers, from_pretrained, spacing
from sdegen.interop.diffusers.storing import CLASSES, restored, stored

SHAPE = (2, 3, 8, 8)
SOLVERS = [
    sdegen.AdamsUntil(1e-3, rtol=1e-3),  # for densities alone
    sdegen.Adams(5, order=2),
    sdegen.StochasticAdams(4, eta=0.5),
    sdegen.ODESolver("bosh3", rtol=1e-2, atol=1e-3),
    sdegen.SDESolver("heun", 3, grid=sdegen.PowerGrid(1.5, "t")),
    sdegen.Ancestral(4, variance="posterior"),
    sdegen.DDIM(eta=0.3, grid=sdegen.DDPM.linear().respaced(6)),
    sdegen.DPMSolver(4, 3, grid=sdegen.KarrasGrid(math.inf)),
    sdegen.UniPC(4),
    sdegen.DEIS(4),
    sdegen.SASolver(4),
    sdegen.Churn(sdegen.Heun(4, grid=sdegen.StretchedGrid(0.2)), 3.0),
    sdegen.Langevin(sdegen.Heun(3)),
    sdegen.Restart(sdegen.UniPC(4), times=2),
]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)


@dataclass(frozen=True)
class Mine(sdegen.Solver):
    """Goes nowhere."""

    def run(self, problem):
        return sdegen.Result(problem.y, [problem.u_from, problem.u_to])


def a_unet(**options):
    sizes = {"block_out_channels": (4, 4), "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 4}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(8, 3, 3, **blocks, **sizes, **options).double().eval()


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(3)
    return a_unet()


def pipeline(unet, solver=None, **config):
    pipe = SdegenPipeline(unet, DDPMScheduler(**{"clip_sample": False, **config}), solver)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("solver", SOLVERS[1:], ids=lambda solver: type(solver).__name__)
def test_it_draws_what_sample_draws(unet, solver):
    pipe = pipeline(unet, solver)
    x = sdegen.sample(from_diffusers(unet, pipe.scheduler), SHAPE, solver, generator=generator())
    assert torch.equal(pipe(2, generator=generator(), output_type="latent").images, x)
    assert torch.equal(pipeline(unet)(2, generator=generator(), solver=solver, output_type="latent").images, x)


def test_pixels_are_the_samples_from_0_to_1(unet):
    pipe = pipeline(unet, sdegen.Adams(3))
    x = pipe(2, generator=generator(), output_type="latent").images
    pixels = pipe(2, generator=generator(), output_type="pt").images
    assert torch.equal(pixels, (x / 2 + 0.5).clamp(0, 1))
    assert float(x.min()) < -1  # and some are clamped
    array = pipe(2, generator=generator(), output_type="np").images
    assert array.shape == (2, 8, 8, 3)
    torch.testing.assert_close(torch.from_numpy(array).permute(0, 3, 1, 2).double(), pixels, rtol=1e-6, atol=1e-6)
    (images,) = pipe(2, generator=generator(), return_dict=False)
    levels = (pixels[1, :, 2, 3] * 255).round().int().tolist()
    assert images[1].size == (8, 8)
    assert list(images[1].getpixel((3, 2))) == levels


def test_clipping_is_as_the_scheduler_says(unet):
    """One step of DDIM from the top ends at x_hat, in [-0.5, 0.5] where it is clipped."""
    solver = sdegen.DDIM(1)
    free, held = (
        pipeline(unet, solver, clip_sample=clip, clip_sample_range=0.5)(2, generator=generator(), output_type="latent")
        for clip in (False, True)
    )
    assert float(free.images.abs().max()) > 0.5
    torch.testing.assert_close(held.images, free.images.clamp(-0.5, 0.5), rtol=1e-12, atol=1e-12)


def test_conditions_reach_the_network():
    torch.manual_seed(3)
    pipe = pipeline(a_unet(num_class_embeds=4), sdegen.Adams(3))
    labels = torch.tensor([0, 3])
    x = pipe(2, generator=generator(), cond={"class_labels": labels}, output_type="latent").images
    ours = sdegen.sample(pipe.model, SHAPE, sdegen.Adams(3), generator=generator(), cond={"class_labels": labels})
    assert torch.equal(x, ours)
    others = pipe(2, generator=generator(), cond={"class_labels": labels.flip(0)}, output_type="latent").images
    assert not torch.allclose(x, others)


def test_one_generator_per_image(unet):
    pipe = pipeline(unet, sdegen.StochasticAdams(4))
    both = pipe(2, generator=[torch.Generator().manual_seed(k) for k in (1, 2)], output_type="latent").images
    second = pipe(1, generator=[torch.Generator().manual_seed(2)], output_type="latent").images
    torch.testing.assert_close(both[1:], second, rtol=1e-10, atol=1e-10)


def test_the_model_follows_the_scheduler_and_serves_every_verb(unet):
    pipe = pipeline(unet, sdegen.Adams(4))
    assert pipe.model.path == sdegen.DDPM.linear()
    pipe.scheduler = DDIMScheduler(beta_end=0.015, clip_sample=False)
    assert pipe.model.path == sdegen.DDPM.linear(1000, 1e-4, 0.015)
    pipe.scheduler = AdamsScheduler.from_config(pipe.scheduler.config)
    assert pipe.model.path == sdegen.DDPM.linear(1000, 1e-4, 0.015)
    x = pipe(2, generator=generator(), output_type="latent").images
    probes = sdegen.Hutchinson(1)
    logp = sdegen.log_prob(pipe.model, x, sdegen.Adams(8), trace=probes, generator=generator(), u=(0, 0.9))
    own = from_diffusers(unet, pipe.scheduler)
    same = sdegen.log_prob(own, x, sdegen.Adams(8), trace=probes, generator=generator(), u=(0, 0.9))
    torch.testing.assert_close(logp, same)


@every_solver
def test_every_solver_is_read_back_from_json(solver):
    text = json.dumps(stored(solver), allow_nan=False)
    assert restored(json.loads(text)) == solver


def test_every_solver_and_grid_of_sdegen_can_be_stored():
    names = {name for name in sdegen.__all__ if isinstance(getattr(sdegen, name), type)}
    kinds = {name for name in names if issubclass(getattr(sdegen, name), (sdegen.Solver, sdegen.Grid))}
    assert kinds - {"Grid", "Multistep", "OneStep", "Renoised", "Solver"} == set(CLASSES)
    assert set(CLASSES) >= {type(solver).__name__ for solver in SOLVERS}
    values = [torch.tensor([0.9, 0.1, 0.0], dtype=dtype) for dtype in (torch.float32, torch.float64)]
    knots = spacing(DDPMScheduler(), 7)
    for tensor in (*values, knots):
        back = restored(json.loads(json.dumps(stored(tensor))))
        assert type(back) is type(tensor)
        assert back.dtype is tensor.dtype
        assert torch.equal(back, tensor)


@pytest.mark.parametrize("solver", [SOLVERS[1], SOLVERS[6], SOLVERS[11], None], ids=repr)
def test_it_is_saved_and_loaded_with_its_solver(unet, tmp_path, solver):
    pipe = pipeline(unet, solver)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["solver"] == stored(solver)
    loaded = SdegenPipeline.from_pretrained(tmp_path, dtype=torch.float64)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.solver == solver
    assert from_pretrained(tmp_path).path == pipe.model.path
    drawn = [
        one(2, generator=generator(), solver=None if solver else sdegen.Adams(2), output_type="latent").images
        for one in (pipe, loaded)
    ]
    assert torch.equal(*drawn)


def test_a_new_solver_is_the_one_that_is_saved(unet, tmp_path):
    pipe = pipeline(unet, sdegen.Adams(9))
    pipe.solver = sdegen.Adams(3)
    pipe.save_pretrained(tmp_path)
    assert SdegenPipeline.from_pretrained(tmp_path).solver == sdegen.Adams(3)
    assert SdegenPipeline.from_pretrained(tmp_path, solver=sdegen.Adams(4)).solver == sdegen.Adams(4)


def test_it_opens_a_pipeline_of_diffusers_and_takes_its_parts(unet, tmp_path):
    theirs = DDPMPipeline(unet, DDPMScheduler(clip_sample=False))
    theirs.save_pretrained(tmp_path)
    pipes = [
        SdegenPipeline.from_pretrained(tmp_path, solver=sdegen.Adams(3), dtype=torch.float64),
        SdegenPipeline(**theirs.components, solver=sdegen.Adams(3)),
        pipeline(unet, sdegen.Adams(3)),
    ]
    first, *others = (pipe(2, generator=generator(), output_type="latent").images for pipe in pipes)
    assert all(torch.equal(first, x) for x in others)


@pytest.mark.parametrize(
    "solver", [Mine(), sdegen.SDESolver("euler", 3, w=lambda u: 0 * u)], ids=["a class of one's own", "a function"]
)
def test_what_json_cannot_hold_is_used_and_not_saved(unet, tmp_path, solver):
    pipe = pipeline(unet, solver)
    assert pipe(2, output_type="latent").images.shape == SHAPE
    with pytest.raises(
        ValueError, match=r"cannot be saved with its pipeline\. Set pipe\.solver = None before, and give"
    ):
        pipe.save_pretrained(tmp_path / "here")
    assert not (tmp_path / "here").exists()
    pipe.solver = None
    pipe.save_pretrained(tmp_path)
    loaded = SdegenPipeline.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"solver must be a Solver, such as Adams.*and it is None"):
        loaded(2)
    assert SdegenPipeline.from_pretrained(tmp_path, solver=solver).solver is solver


@pytest.mark.parametrize(
    "value",
    [
        {"name": "system", "steps": 3},
        {"name": "Multistep", "steps": 3},
        {"steps": 3},
        {"name": "Adams", "step": 3},
        {"name": "Adams", "steps": "three"},
        {"name": "Adams", "steps": 3, "grid": {"name": "PowerGrid", "p": -1.0}},
        {"name": "Tensor", "values": [0.1], "dtype": "object"},
        {"name": "float", "value": None},
    ],
    ids=repr,
)
def test_only_sdegens_own_is_read_back(unet, value):
    with pytest.raises(
        ValueError, match=re.escape(f"This is no solver that sdegen {sdegen.__version__} can read back:")
    ):
        SdegenPipeline(unet, DDPMScheduler(), value)


def test_bad_input_is_refused_before_the_network_is_called(unet):
    def refuse(*_):
        raise AssertionError

    hook = unet.register_forward_pre_hook(refuse)
    pipe = pipeline(unet, sdegen.Adams(3))
    with pytest.raises(TypeError, match=r"solver must be a Solver, such as Adams.*and it is 'dopri5'"):
        pipeline(unet, "dopri5")
    with pytest.raises(TypeError, match=r"solver must be a Solver, .*and it is 20"):
        pipe.solver = 20
    assert pipe.solver == sdegen.Adams(3)
    with pytest.raises(TypeError, match=r"solver must be a Solver, .*and it is <class"):
        pipe(2, solver=sdegen.Adams)
    with pytest.raises(TypeError, match=r"batch_size must be an integer, and 2\.5 is float"):
        pipe(2.5)
    with pytest.raises(ValueError, match="batch_size must be at least 1, and it is 0"):
        pipe(0)
    with pytest.raises(ValueError, match="Unknown output_type 'jpg'; choose one of 'pil', 'np', 'pt', 'latent'"):
        pipe(output_type="jpg")
    with pytest.raises(ValueError, match="A batch of 2 needs 2 generators, one per sample, and 1 were given"):
        pipe(2, generator=[generator()])
    with pytest.raises(TypeError, match="cond must be a mapping"):
        pipe(2, cond=torch.arange(2))
    with pytest.raises(ValueError, match="Unknown prediction_type 'noise'"):
        pipeline(unet, prediction_type="noise")
    hook.remove()


def test_a_network_without_a_size_is_refused():
    unet = a_unet()
    unet.register_to_config(sample_size=None)
    with pytest.raises(ValueError, match="UNet2DModel must tell its sample_size and in_channels, and they are None, 3"):
        pipeline(unet, sdegen.Adams(3))()


def test_the_bar_is_theirs_to_switch_off(unet, capsys):
    pipe = SdegenPipeline(unet, DDPMScheduler(), sdegen.Adams(3))
    pipe(output_type="latent")
    assert "3/3" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(output_type="latent")
    assert "3/3" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_torchvision_of_another_torch_is_no_matter_or_is_named(tmp_path):
    """Some modules of diffusers cannot be imported beside it, in some versions those of the pipelines."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text('raise RuntimeError("no operator torchvision::nms")')
    (tmp_path / "torchvision-0.1.dist-info").mkdir()
    (tmp_path / "torchvision-0.1.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.1\n")
    code = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, sdegen.interop.diffusers as interop\n"
        "scheduler = interop.AdamsScheduler()\n"
        "scheduler.set_timesteps(3)\n"
        "scheduler.step(torch.zeros(1, 3, 8, 8), scheduler.timesteps[0], torch.zeros(1, 3, 8, 8))\n"
        "try:\n    print(interop.SdegenPipeline)\nexcept ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    broken = "diffusers is installed and cannot be imported: "
    assert "SdegenPipeline'>" in done.stdout or (
        broken in done.stdout and "no operator torchvision::nms" in done.stdout
    )


def test_without_diffusers_the_package_opens_and_says_what_is_missing():
    code = (
        "import sys, sdegen.interop.diffusers as interop\n"
        "assert 'diffusers' not in sys.modules\n"
        "sys.modules['diffusers'] = None\n"
        "for name in ('AdamsScheduler', 'SdegenPipeline'):\n"
        "    try:\n"
        "        getattr(interop, name)\n"
        "    except ImportError as error:\n"
        "        says = f\"{name} needs diffusers, which is not installed: pip install 'sdegen[diffusers]'\"\n"
        "        assert str(error) == says, error\n"
        "    else:\n"
        "        raise AssertionError(name)\n"
        "assert not hasattr(interop, 'EulerScheduler')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
