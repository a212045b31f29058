"""The trained networks that tests share are what they are said to be."""

from __future__ import annotations

import math
import runpy

import pytest
import torch
from networks import FOLDER, digits_unet, plane_mlp
from torch import Tensor

import sdegen
from sdegen.datasets import bits_per_dim, dequantise, digits, two_moons


def log_prob_of_moons(x: Tensor, std: float = 0.05, points: int = 4000) -> Tensor:
    """The exact log-density of `two_moons`, (B,): N(0, std^2) about half circles, by the midpoint rule in the angle."""
    angle = math.pi * (torch.arange(points) + 0.5) / points
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    both = torch.cat([upper, torch.tensor([1.0, 0.5]) - upper])
    centres = 4 / 3 * (both - torch.tensor([0.5, 0.25]))
    exponents = -torch.cdist(x, centres).square() / (2 * std**2)
    return exponents.logsumexp(1) - math.log(2 * points * 2 * math.pi * std**2)


def check_plane(model: sdegen.ScoreModel) -> None:
    """KL(data | model), from held-out points and the exact density, is a few hundredths of a nat (0.011 measured)."""
    x = two_moons(400)
    lost = log_prob_of_moons(x) - sdegen.log_prob(model, x, sdegen.ODESolver("dopri5", rtol=1e-4))
    assert -0.03 < lost.mean() < 0.05


def check_digits(model: sdegen.ScoreModel) -> None:
    """Below a fitted Gaussian by half a bit and more (1.94 to 2.94 measured), and the label is worth something."""
    seen, (images, labels) = dequantise(digits("train")[0]), digits("test")
    gaussian = sdegen.Gaussian(seen.mean(0), covariance=torch.cov(seen.flatten(1).T))
    chosen = torch.randperm(len(images))[:32]
    x, label = dequantise(images[chosen]), labels[chosen]

    def bits(cond: dict[str, Tensor] | None) -> Tensor:
        probes, draws = sdegen.Hutchinson(4), torch.Generator().manual_seed(0)
        solver = sdegen.ODESolver("rk4", steps=4)
        logp = sdegen.log_prob(model, x, solver, trace=probes, generator=draws, cond=cond)
        return bits_per_dim(logp, x.shape[1:]).mean()

    unlabelled = bits(None)
    assert unlabelled < bits_per_dim(gaussian.log_prob(x), x.shape[1:]).mean() - 0.5
    assert bits({"label": label}) < unlabelled - 0.03


def test_the_plane_mlp_knows_its_moons():
    check_plane(plane_mlp())


def test_the_digits_unet_codes_held_out_digits():
    check_digits(digits_unet())


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["plane", "digits"])
def test_the_script_still_trains_networks_as_good(name, tmp_path):
    torch.set_default_dtype(torch.float32)
    runpy.run_path(str(FOLDER / "train.py"))[f"train_{name}"](tmp_path)
    torch.set_default_dtype(torch.float64)
    check_plane(plane_mlp(tmp_path)) if name == "plane" else check_digits(digits_unet(tmp_path))


def test_the_networks_are_the_same_every_time_and_draw_nothing():
    state = torch.get_rng_state()
    for load, x in ((digits_unet, torch.randn(2, 1, 8, 8)), (plane_mlp, torch.randn(2, 2))):
        first, second = load(), load()
        assert torch.equal(first(x, 0.5), second(x, 0.5))
        assert not first.training
        assert not any(p.requires_grad for p in first.parameters())
        torch.set_rng_state(state)
        load()
        assert torch.equal(torch.get_rng_state(), state)
        torch.set_default_dtype(torch.float32)
        single = load()
        assert {p.dtype for p in single.parameters()} == {torch.float32}
        torch.set_default_dtype(torch.float64)
        rounded = single(x.float(), 0.5).double()
        assert torch.allclose(rounded, first(x, 0.5), rtol=0, atol=1e-4)
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) < 1_000_000
