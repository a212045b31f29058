"""The data sets where an accelerator holds them, and values that no moment shows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sdegen.datasets import checkerboard, dequantise, eight_gaussians, swiss_roll, two_moons


class Elsewhere(torch.Tensor):
    """A tensor that says it lives on an accelerator."""

    device = property(lambda self: torch.device("cuda"))


def test_dequantise_turns_what_is_no_level_into_nan_on_an_accelerator(monkeypatch):
    """Looking at the values would wait for the device: only y says which they were."""
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.full(shape, 0.5))
    images = torch.tensor([[0.0, 17.0], [-1.0, 16.0], [3.5, 8.0], [math.nan, 1.0]])
    y = dequantise(images.as_subclass(Elsewhere)).as_subclass(Tensor)
    assert y.isnan().tolist() == [[False, True], [True, False], [True, False], [True, False]]
    assert y.nan_to_num(0).abs().max() < 1


def test_dequantise_needs_no_values():
    assert dequantise(torch.zeros(2, 1, 8, 8, device="meta", dtype=torch.int64)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("toy", [two_moons, checkerboard])
def test_toys_are_drawn_where_their_generator_lives(toy, monkeypatch):
    """torch.rand and torch.randn are asked for the generator's device."""
    asked = []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *a, device, **k: asked.append(device) or rand(*a, device=device, **k))
    toy(3, generator=torch.Generator())
    toy(3)
    assert asked == [torch.device("cpu"), None]


@pytest.mark.parametrize(
    ("toy", "option"),
    [(two_moons, "noise"), (swiss_roll, "noise"), (eight_gaussians, "std")],
    ids=lambda v: str(v)[:20],
)
def test_noise_of_toys_is_isotropic(toy, option):
    """The same draw with and without noise: what is between them is N(0, s^2 I), its coordinates independent."""
    n, s = 40_000, 0.3
    blurred, clean = (toy(n, **{option: level}, generator=torch.Generator().manual_seed(0)) for level in (s, 0.0))
    z = (blurred - clean) / s
    second = z.T @ z / n
    assert abs(float(second[0, 1])) < 5 / math.sqrt(n)
    assert float((second.diagonal() - 1).abs().max()) < 5 * math.sqrt(2 / n)


def test_every_square_of_the_checkerboard_is_filled_evenly():
    """A square's draws have mean 1/2, variance 1/12 and no correlation within it."""
    x = checkerboard(80_000, generator=torch.Generator().manual_seed(0))
    cell = (x.floor().long() + 2) @ torch.tensor([4, 1])
    for square in cell.unique():
        inside = (x - x.floor())[cell == square] - 0.5
        n = len(inside)
        assert float(inside.mean(0).abs().max()) < 5 / math.sqrt(12 * n)
        assert float((inside.square().mean(0) - 1 / 12).abs().max()) < 5 / math.sqrt(180 * n)
        assert abs(float(inside.prod(1).mean())) < 5 / (12 * math.sqrt(n))
