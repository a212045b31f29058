"""README's programs, as printed: the first alone, the chapters on small tensors, what users write by law."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

import sdegen
from sdegen.datasets import two_moons
from sdegen.nets import MLP, UNet

README = (Path(__file__).parent.parent / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture(autouse=True)
def _single_precision():
    torch.set_default_dtype(torch.float32)


def program(*words: str) -> str:
    """The one program that holds all these words."""
    (found,) = [text for text in PROGRAMS if all(word in text for word in words)]
    return found


@pytest.mark.slow
def test_the_quickstart_runs_as_printed(tmp_path, monkeypatch, capsys):
    """A newcomer pastes it: its model beats the fitted Gaussian by far, and comes back from its file."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(PROGRAMS[0], names)
    train, test, model = (names[name] for name in ("train", "test", "model"))
    gaussian = sdegen.Gaussian(train.mean(0).double(), covariance=torch.cov(train.T).double())
    printed = float(re.search(r"samples: (\S+) nats", capsys.readouterr().out)[1])
    assert printed > float(gaussian.log_prob(test.double()).mean()) + 0.5
    for x in (names["ode"], names["sde"]):
        assert sdegen.energy_distance(names["units"](x), names["units"](test)) < 0.03
    assert (tmp_path / "samples.png").stat().st_size > 10_000
    again = sdegen.load("model.safetensors", sdegen.nets.MLP(2))
    assert torch.equal(sdegen.log_prob(again, test[:5]), sdegen.log_prob(model, test[:5]))
    assert len(PROGRAMS[0].strip().splitlines()) - PROGRAMS[0].strip().count("\n\n") <= 15


def test_the_page_begins_with_the_quickstart():
    page = (Path(__file__).parent.parent / "docs" / "quickstart.md").read_text()
    assert PROGRAMS[0] in page


def test_a_whole_training_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, labels, make = torch.randn(130, 1, 8, 8), torch.arange(130) % 10, lambda: UNet(width=8, classes=10)
    names = {
        "torch": torch,
        "sdegen": sdegen,
        "net": make(),
        "same_net": make(),
        "data": x[:100],
        "labels": labels[:100],
    }
    names |= {"held_out": x[100:], "their_labels": labels[100:]}
    exec(program("sdegen.sample_many("), names)
    assert names["many"].complete
    assert sdegen.load_state("model.safetensors") == {"note": "anything plain", "step": 20}


@pytest.mark.nightly  # and in `.ci/run`
def test_the_loop_of_ones_own_runs_as_printed():
    """Samples land on the moons, densities are those of a trained model."""
    names: dict[str, object] = {}
    exec(program("from sdegen.datasets import two_moons"), names)
    assert float(names["logp"].mean()) > -2.0  # a standard normal fitted to the moons has -2.6
    assert names["x"].shape == (64, 2)
    assert names["exact"].log_prob(names["x"].double()).shape == (64,)


def test_the_chapters_run():
    """DDPM, flows and gradients on small tensors: the later lines use what the earlier ones named."""
    x, levels = torch.randn(4, 2), (2 * torch.randint(0, 256, (2, 3, 8, 8)) / 255 - 1).float()
    ddpm = {"net": UNet(channels=3, width=8), "betas": torch.linspace(1e-3, 0.3, 20), "x": levels, "images": levels}
    flow, tuned = {"net": MLP(2, 16), "x": x}, {"net": MLP(2, 16), "z": x, "reward": lambda x: x.sum(1)}
    chapters = ((ddpm, "sdegen.DDPM(betas)"), (flow, "= sdegen.CondOT()  #"), (tuned, "differentiable=True"))
    for names, words in chapters:
        text = program(words).replace("(64, 3, 32, 32)", "(2, 3, 8, 8)").replace("200", "20")
        exec(text, {"sdegen": sdegen, **names})
    assert all(parameter.grad is not None for parameter in tuned["net"].parameters())


def test_likelihoods_have_errors(tmp_path, capsys):
    model, x = sdegen.ScoreModel(MLP(2, 16), sdegen.VPSDE(), "v"), two_moons(20)
    names = {"sdegen": sdegen, "model": model, "x": x, "data": two_moons(100)}
    exec(program("log_likelihood(").replace('"scores"', repr(str(tmp_path))), names)
    assert capsys.readouterr().out.count("tensor(") == 3
    assert names["scored"].calls == 161
    assert names["held_out"].complete


def test_solvers_are_compared_and_tuned(capsys):
    names = {"sdegen": sdegen, "data": two_moons(100), "model": sdegen.ScoreModel(MLP(2, 16), sdegen.VPSDE(), "v")}
    exec(program("sdegen.compare(").replace("512", "64"), names)
    assert [row.calls for row in names["comparison"].rows] == [5, 10, 20, 50, 4, 8, 20, 48, 5, 10, 20, 50]
    assert capsys.readouterr().out.startswith("solver ")
    assert names["solver"].steps == 10
    assert names["x"].shape == (64, 2)


def test_every_program_is_run_here_or_for_its_law():
    known = [
        "np.hstack(",
        "sdegen.sample_many(",
        "from sdegen.datasets import two_moons",
        "sdegen.compare(",
        "sdegen.DDPM(betas)",
        "= sdegen.CondOT()  #",
        "log_likelihood(",
        "differentiable=True",
        "class Ralston",
        "class AdamsBashforth2",
        "class HalfCosine",
        "class Mirrored",
        "one label in seven",
        "sdegen.Guided(free",
        "known: a mask",
        "sdegen.LatentModel(",
        "from_pretrained(",
    ]
    assert len(PROGRAMS) == len(known)
    for word in known:
        program(word)


def test_the_solver_is_the_one_of_the_docstring():
    """Whose order tests/solvers/test_own_solver.py fits."""
    ours, theirs = (re.sub(r"\s+", "", text) for text in (program("class Ralston"), sdegen.Solver.__doc__))
    assert ours.removeprefix("fromdataclassesimportdataclass") in theirs


def test_the_multistep_scheme_is_the_one_of_the_docstring():
    """Whose order tests/solvers/test_own_schemes.py fits."""
    ours, theirs = (re.sub(r"\s+", "", text) for text in (program("AdamsBashforth2"), sdegen.Multistep.__doc__))
    assert ours in theirs


def test_the_path_is_the_trigonometric_one():
    names = {"sdegen": sdegen, "torch": torch}
    exec(program("class HalfCosine"), names)
    own, known = names["HalfCosine"](), sdegen.Trigonometric()
    target = sdegen.GaussianMixture(torch.tensor([[0.0], [1.0]], dtype=torch.float64), 0.3)
    x, solver = torch.randn(8, 1, dtype=torch.float64), sdegen.ODESolver("rk4", steps=20)
    ends = [sdegen.solve(target.model(path), x, solver).x for path in (own, known)]
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


def test_the_mirrored_model_is_the_mean_of_both_sides():
    names = {"sdegen": sdegen, "torch": torch}
    exec(program("class Mirrored"), names)
    law = sdegen.GaussianMixture([[1.0, -1.0], [0.5, 0.2]], 0.3)
    model, x = law.model(sdegen.VPSDE()), torch.randn(6, 2)
    both = 0.5 * (model.eps(x, 0.5) + model.eps(x.flip(-1), 0.5).flip(-1))
    torch.testing.assert_close(names["Mirrored"](model).eps(x, 0.5), both, rtol=1e-5, atol=1e-5)


@pytest.mark.nightly  # and in `.ci/run`
def test_conditional_training_runs_as_printed():
    """Four samples in five are nearer the mean image of their own label than those of the others."""
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(program("one label in seven"), names)
    means = torch.stack([names["images"][names["labels"] == c].mean(0) for c in range(10)])
    apart = torch.cdist(names["x"].flatten(1), (2 * (means + 0.5) / 17 - 1).flatten(1))
    assert float((apart.argmin(1) == torch.arange(100) % 10).float().mean()) > 0.8


def test_latents_ratios_flows_and_mixtures_run():
    """As printed: with exact networks the ELBO is log p(x), and the corrected model has the data's density."""
    zuko, mixture = pytest.importorskip("zuko"), pytest.importorskip("sklearn.mixture")
    torch.set_default_dtype(torch.float64)
    path, unit = sdegen.CondOT(), sdegen.Gaussian([0.0, 0.0], 1.0)
    other = sdegen.Gaussian([0.5, 0.0], 1.0)  # the data's law, and the model's is N(0, I)
    x, fake, flow = other.sample(50), unit.sample(50), zuko.flows.NICE(features=2)
    names = {"sdegen": sdegen, "path": path, "net": unit.model(path).v, "model": unit.model(path), "x": x, "fake": fake}
    names |= {"encoder": lambda x: (0.5 * x, torch.full_like(x, 0.5**0.5)), "decoder": lambda z: (z, 0 * z + 1)}
    names |= {"mean": 0.5 * x, "std": torch.full_like(x, 0.5), "flow": flow}
    names |= {"fitted": mixture.GaussianMixture(2, random_state=0).fit(x.numpy())}
    at = {t: (other.marginal(path, t), unit.marginal(path, t)) for t in (0.2, 0.6, 1.0)}
    names |= {"last_logit": lambda x: at[1.0][0].log_prob(x) - at[1.0][1].log_prob(x)}
    names |= {"logit": lambda x, t: (0.5 * x[:, 0] * t - 0.125 * t**2) / (t**2 + (1 - t) ** 2)}  # of the noised laws
    exec(program("sdegen.LatentModel("), names)
    true = sdegen.Gaussian([0.0, 0.0], 2**0.5).log_prob(x)
    torch.testing.assert_close(names["elbo"], true, rtol=0, atol=1e-2)
    torch.testing.assert_close(names["iwae"], true, rtol=0, atol=1e-2)
    divergence = (0.5 * (0.25 + (0.5 * x) ** 2 - 1) - math.log(0.5)).sum(1)
    assert bool(((names["kl"].value - divergence).abs() < 6 * names["kl"].standard_error + 0.05).all())
    t = torch.tensor(0.6)
    score = names["corrected"].score(x, t)
    torch.testing.assert_close(score, other.model(path).score(x, t), rtol=1e-8, atol=1e-8)
    assert 0 < float(names["apart"].value) < 0.2
    assert names["target"].log_prob(x).shape == names["learned"].source.log_prob(x).shape == (50,)


def test_guided_models_sample():
    """As printed, on exact models: conditional samples lie on their mode, observed ones where they were seen."""
    path = sdegen.VPSDE()
    laws = [sdegen.Gaussian([m, -m], 0.2) for m in (-1.0, 1.0)]
    free = sdegen.GaussianMixture([[-1.0, 1.0], [1.0, -1.0]], 0.2).model(path)

    def net(x, t, label):
        every = torch.stack([m.model(path).eps(x, t) for m in laws] + [free.eps(x, t)], 1)
        return every[torch.arange(len(x)), label.clamp(max=2)]

    names = {"sdegen": sdegen, "free": free, "model": sdegen.ScoreModel(net, path), "x_t": torch.randn(4, 2), "t": 0.5}
    names |= {"labels": torch.arange(64) % 2, "log_weight": lambda x, t: x.sum(1), "reward": lambda x, t: x.sum(1)}
    names |= {"A": torch.tensor([[1.0, 0.0]]), "z": torch.tensor([1.0])}
    exec(program("sdegen.Guided(free").replace("x = sdegen.sample(guided", "of_labels = sdegen.sample(guided"), names)
    sign = 2.0 * names["labels"] - 1
    assert float((names["of_labels"] - sign[:, None] * torch.tensor([1.0, -1.0])).norm(dim=1).max()) < 1
    assert float((names["x"] - torch.tensor([1.0, -1.0])).norm(dim=1).median()) < 0.5
    assert names["x_hat"].shape == names["eps_hat"].shape == (4, 2)


def test_editing_and_filling_in():
    """Replacement fills the second value in with what goes with the first."""
    path = sdegen.VPSDE()
    image, known = torch.tensor([[1.0, 0.0]]).expand(32, 2), torch.tensor([[True, False]])
    names = {"sdegen": sdegen, "torch": torch, "path": path, "image": image, "known": known}
    names["model"] = sdegen.GaussianMixture([[-1.0, 1.0], [1.0, -1.0]], 0.2).model(path)
    exec(program("known: a mask"), names)
    assert float((names["x"][:, 1] + 1).abs().median()) < 0.3
    torch.testing.assert_close(names["x"][:, 0], image[:, 0])
    assert float((names["edited"] - torch.tensor([1.0, -1.0])).norm(dim=1).median()) < 0.5


def test_checkpoints_of_diffusers_are_loaded(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    sizes = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 8), "norm_num_groups": 4}
    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    diffusers.DDPMPipeline(diffusers.UNet2DModel(**sizes, **plain), diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    names = {"sdegen": sdegen}
    exec(program("from_pretrained(").replace('"checkpoint"', repr(str(tmp_path))), names)
    assert names["logp"].shape == (4,)
