"""Loading pipelines of diffusers: what is read, what is refused and in which words, and what is imported."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from unets import diffusers, saved, unet

import sdegen
from sdegen.interop.diffusers import from_diffusers, from_pretrained

LOCAL = {"local_files_only": True}


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path, unet(), diffusers.DDPMScheduler(clip_sample=False))


def rewritten(folder, name, change):
    """A JSON file of the pipeline, changed."""
    file = folder / name
    entries = json.loads(file.read_text())
    change(entries)
    file.write_text(json.dumps(entries))


def test_a_pipeline_is_loaded_with_its_weights(folder):
    """In eval mode, in torch's default dtype or another, by a path or by its name, its own clipping or none."""
    x = torch.randn(2, 1, 4, 4)
    model = from_pretrained(folder, **LOCAL)
    assert not model.training
    assert isinstance(model, sdegen.ScoreModel)
    torch.testing.assert_close(model.eps(x, 0.3), unet()(x, 299).sample, rtol=0, atol=0)
    single = from_pretrained(str(folder), dtype=torch.float32, device="cpu", clip=(-1, 1), **LOCAL)
    assert {p.dtype for p in single.parameters()} == {torch.float32}
    assert (single.low, single.high) == (-1, 1)


def test_a_config_that_leaves_out_what_came_later_has_their_defaults(folder):
    """Checkpoints of 2022 name neither prediction nor spacing."""
    rewritten(
        folder, "scheduler/scheduler_config.json", lambda c: [c.pop(k) for k in ("prediction_type", "clip_sample")]
    )
    model = from_pretrained(folder, **LOCAL)
    assert isinstance(model, sdegen.Clipped)
    assert model.model.predicts == "eps"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model_index.json", r"has no model_index\.json, which a pipeline's save_pretrained writes\.$"),
        (
            "scheduler/scheduler_config.json",
            r"cannot be loaded as DDPMScheduler: .*scheduler_config\.json",
        ),
        ("unet/config.json", r"unet of .* cannot be loaded as UNet2DModel: .*config\.json"),
        (
            "unet/diffusion_pytorch_model.safetensors",
            r"unet of .* as UNet2DModel: .*diffusion_pytorch_",
        ),
    ],
)
def test_a_missing_file_is_named(folder, name, words):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=words) as told:
        from_pretrained(folder, **LOCAL)
    assert str(folder) in str(told.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("unet"), r"model_index\.json of .* names no 'unet'; it holds scheduler\.$"),
        (lambda c: c.pop("scheduler"), r"names no 'scheduler'; it holds unet\.$"),
        (lambda c: c.update(unet=[None, None]), "names no 'unet'"),
        (lambda c: c.update(transformer=c.pop("unet")), "names no 'unet'; .*transformer.* A transformer is no U-Net"),
        (lambda c: c.update(unet=["diffusers", "Unknown"]), r"^The diffusers that is installed has no class Unknown"),
        (
            lambda c: c.update(unet=["os", "system"]),
            r"unet of .* is os\.system, and only classes of diffusers",
        ),
        (lambda c: c.update(scheduler=["diffusers", "EDMEulerScheduler"]), "EDMEulerScheduler is no scheduler that"),
    ],
)
def test_an_index_without_what_is_needed_is_refused(folder, change, words):
    rewritten(folder, "model_index.json", change)
    with pytest.raises(ValueError, match=words):
        from_pretrained(folder, **LOCAL)


def test_a_scheduler_of_our_own_is_loaded_too(folder, monkeypatch):
    module = ModuleType("sdegen.interop.diffusers.own")
    module.DDIMScheduler = type("DDIMScheduler", (diffusers.DDIMScheduler,), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    rewritten(folder, "model_index.json", lambda c: c.update(scheduler=[module.__name__, "DDIMScheduler"]))
    assert from_pretrained(folder, **LOCAL).path.steps == 1000


def test_what_is_no_pipeline_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json is not valid JSON"):
        from_pretrained(tmp_path, **LOCAL)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"model_index\.json must hold an object, and it holds \[\]\.$"):
        from_pretrained(tmp_path, **LOCAL)
    for absent in (tmp_path / "none", "nobody/at-home"):
        with pytest.raises(ValueError, match=r"(none|at-home)' is no directory, and the Hub gave no model_index\.json"):
            from_pretrained(absent, **LOCAL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip": True}, r"clip must be None, False or two numbers \(low, high\), and it is True"),
        ({"clip": (1, 2, 3)}, r"clip must be None, False or two numbers \(low, high\), and it is \(1, 2, 3\)"),
        ({"dtype": "float32"}, r"dtype must be a torch\.dtype or None, and it is 'float32'"),
        ({"local_files_only": 1}, "local_files_only must be True or False, and it is 1"),
    ],
)
def test_arguments_of_another_type_are_refused(folder, options, words):
    with pytest.raises(TypeError, match=words):
        from_pretrained(folder, **{**LOCAL, **options})
    with pytest.raises(TypeError, match="directory_or_id must be a path or a name on the Hub, and it is 3"):
        from_pretrained(3)


def ddpm(**options):
    return diffusers.DDPMScheduler(**options)


@pytest.mark.parametrize(
    ("scheduler", "kind", "words"),
    [
        (
            lambda: diffusers.HeunDiscreteScheduler,
            TypeError,
            "scheduler must be a scheduler of diffusers, with a config",
        ),
        (lambda: 3, TypeError, "scheduler must be a scheduler of diffusers, with a config, and it is 3"),
        (
            diffusers.EDMEulerScheduler,
            ValueError,
            "^EDMEulerScheduler is no scheduler that a path is known for",
        ),
        (lambda: ddpm(prediction_type="odd"), ValueError, "Unknown prediction_type 'odd'; choose one of 'epsilon'"),
        (
            lambda: diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"),
            ValueError,
            "Unknown prediction_type 'flow_prediction'; choose one of 'epsilon', 'sample', 'v_prediction'",
        ),
        (lambda: ddpm(beta_schedule="laplace"), ValueError, "Unknown beta_schedule 'laplace'; choose one of 'linear'"),
        (
            lambda: ddpm(variance_type="learned"),
            ValueError,
            "variance_type 'learned' is refused: .* the variance",
        ),
        (
            lambda: ddpm(trained_betas=[0.1, 0.2]),
            ValueError,
            r"trained_betas must be num_train_timesteps = 1000 numbers, not of \(2,\)\.$",
        ),
        (lambda: ddpm(beta_end=1.5), ValueError, r"beta.* and betas\[\d+\] is 1\.0"),
        (
            lambda: diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
            ValueError,
            "timestep_type 'continuous' is refused",
        ),
        (
            lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
            ValueError,
            "invert_sigmas=True is refused",
        ),
    ],
)
def test_a_scheduler_that_means_nothing_here_is_refused(scheduler, kind, words):
    with pytest.raises(kind, match=words):
        from_diffusers(unet(), scheduler())


@pytest.mark.parametrize("key", ["beta_start", "beta_schedule", "num_train_timesteps", "prediction_type"])
def test_a_missing_entry_is_named(key):
    """In a config that no constructor of diffusers filled."""
    kept = {name: value for name, value in ddpm().config.items() if name != key}
    scheduler = type("DDPMScheduler", (SimpleNamespace,), {})(config=kept)
    with pytest.raises(ValueError, match=rf"^The config of the DDPMScheduler lacks '{key}'; it holds "):
        from_diffusers(unet(), scheduler)


def test_arguments_of_from_diffusers_are_checked():
    with pytest.raises(TypeError, match="unet must be callable as unet"):
        from_diffusers(None, ddpm())
    with pytest.raises(ValueError, match=r"clip must be \(low, high\) with low below high, and it is \(1, -1\)"):
        from_diffusers(unet(), ddpm(), clip=(1, -1))


def test_a_scheduler_that_inherits_is_what_it_inherits_from():
    own = type("Own", (diffusers.DDIMScheduler,), {})
    scheduler = own(clip_sample=False)
    before = copy.deepcopy(scheduler)
    assert from_diffusers(unet(), scheduler).path.steps == 1000
    assert before.__dict__.keys() == scheduler.__dict__.keys()


def run(code, folder):
    """A new interpreter with `folder` before everything else on its path."""
    program = f"import sys\nsys.path.insert(0, {str(folder)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_diffusers_is_imported_where_it_is_needed_alone(tmp_path):
    """Not by sdegen, nor by sdegen.interop.diffusers, nor for a network and a scheduler one already has."""
    code = (
        "import sdegen, sdegen.interop, sdegen.interop.diffusers, types\n"
        "from sdegen.interop.diffusers import from_diffusers, from_pretrained\n"
        "config = dict(num_train_timesteps=10, beta_schedule='linear', beta_start=0.01, beta_end=0.3,\n"
        "              prediction_type='epsilon', clip_sample=True)\n"
        "scheduler = type('DDPMScheduler', (types.SimpleNamespace,), {})(config=config)\n"
        "model = from_diffusers(lambda x, t: x, scheduler)\n"
        "assert model.path.steps == 10 and 'diffusers' not in sys.modules\n"
        "sys.modules['diffusers'] = None\n"
        "try:\n    from_pretrained('.')\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = run(code, tmp_path)
    assert done.stderr == ""
    expected = "from_pretrained needs diffusers, which is not installed: pip install 'sdegen[diffusers]'"
    assert done.stdout.strip() == expected


@pytest.mark.slow
def test_a_torchvision_of_another_torch_is_named(folder, tmp_path_factory):
    """diffusers' own U-Nets cannot be imported beside it; everything that does not need them works."""
    broken = tmp_path_factory.mktemp("broken")
    (broken / "torchvision").mkdir()
    (broken / "torchvision" / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")'
    )
    (broken / "torchvision-0.1.dist-info").mkdir()
    (broken / "torchvision-0.1.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.1\n")
    code = (
        "import torch, sdegen\n"
        "from sdegen.interop.diffusers import from_diffusers, from_pretrained, spacing\n"
        "from diffusers import DDIMScheduler\n"
        "model = from_diffusers(torch.nn.Identity(), DDIMScheduler())\n"
        "assert spacing(DDIMScheduler(), 4).shape == (5,)\n"
        f"try:\n    from_pretrained({str(folder)!r}, local_files_only=True)\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = run(code, broken)
    assert "operator torchvision::nms does not exist" in done.stdout, done.stderr
    assert done.stdout.startswith("diffusers is installed and cannot be imported: ")
    assert done.stdout.strip().endswith("Install the torchvision that was built for this torch, or uninstall it.")
