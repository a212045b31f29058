"""Laws of the patches: which pixel each is made of, that held-out ones share none with the rest, and refusals."""

from __future__ import annotations

import builtins
from types import SimpleNamespace

import pytest
import torch

from sdegen.datasets import patches

pytest.importorskip("sklearn")
pytest.importorskip("PIL")


@pytest.fixture
def maps(monkeypatch):
    """Photographs whose pixels say where they stand: row and column modulo 256, and which picture, row and column."""
    row, column = torch.meshgrid(torch.arange(427), torch.arange(640), indexing="ij")
    rest = row // 256 + 2 * (column // 256)
    pictures = [torch.stack([row % 256, column % 256, rest + 8 * k], 2).to(torch.uint8).numpy() for k in (0, 1)]
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: SimpleNamespace(images=pictures))


def places(x):
    """(picture, row, column) of every pixel of patches of such photographs, each (n, size, size)."""
    row, column, rest = x.long().unbind(1)
    return rest // 8, row + 256 * (rest % 2), column + 256 * (rest % 8 // 2)


@pytest.mark.parametrize("size", [16, 8, 32])
def test_a_held_out_pixel_is_a_margin_away_from_every_pixel_to_train_on(maps, size):
    columns = [places(patches(split, size=size))[2].unique() for split in ("train", "test")]
    apart = (columns[0][:, None] - columns[1]).abs().min()
    assert apart == 17  # 16 columns between them
    assert columns[1].tolist() == [128 * k + 48 + j for k in range(5) for j in range(32)]
    beyond = {column for k in range(5) for column in range(128 * k + 32, 128 * k + 96)}
    assert set(columns[0].tolist()) <= set(range(640)) - beyond


def test_train_takes_every_column_that_is_neither_held_out_nor_margin(maps):
    columns = places(patches("train", size=1, stride=1))[2].unique().tolist()
    assert columns == [c for c in range(640) if not 32 <= c % 128 < 96]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_patch_is_a_square_of_one_photograph_and_each_stands_on_the_lattice_once(maps, split):
    picture, row, column = places(patches(split, size=8, stride=8))
    assert torch.equal(picture, picture[:, :1, :1].expand_as(picture))
    assert torch.equal(row - row[:, :1, :1], torch.arange(8)[:, None].expand_as(row))
    assert torch.equal(column - column[:, :1, :1], torch.arange(8).expand_as(column))
    corners = torch.stack([picture[:, 0, 0], row[:, 0, 0], column[:, 0, 0]], 1)
    pixels = torch.stack([picture.flatten(), row.flatten(), column.flatten()], 1)
    assert len(corners.unique(dim=0)) == len(corners)
    assert len(pixels.unique(dim=0)) == len(pixels)  # with stride = size none overlap
    assert set(corners[:, 0].tolist()) == {0, 1}
    assert set(corners[:, 1].tolist()) == set(range(0, 420, 8))


@pytest.mark.parametrize(("split", "number"), [("train", 12772), ("test", 5150)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_photographs_give_whole_levels_in_the_default_dtype_and_the_same_ones_always(split, number, dtype):
    torch.set_default_dtype(dtype)
    before = torch.get_rng_state()
    x = patches(split)
    assert x.shape == (number, 3, 16, 16)
    assert x.dtype is dtype
    assert torch.equal(x, x.floor())
    assert (x.min(), x.max()) == (0, 255)
    assert torch.equal(x, patches(split))
    assert torch.equal(before, torch.get_rng_state())


def test_channels_are_red_green_and_blue():
    """The flower is orange: of the brightest patches of the second half, red exceeds green, and green blue."""
    x = patches("test").mean((2, 3))[2575:]
    red, green, blue = x[x[:, 0].argsort(descending=True)[:200]].mean(0)
    assert red > green + 20 > blue + 40


@pytest.mark.parametrize(
    ("argument", "error", "words"),
    [
        ({"split": "valid"}, ValueError, "split .*'valid'"),
        ({"size": 33}, ValueError, "size must be at most 32.*it is 33"),
        ({"size": 0}, ValueError, "size .*0"),
        ({"size": 16.5}, TypeError, "size .*16.5"),
        ({"stride": 0}, ValueError, "stride .*0"),
        ({"stride": "4"}, TypeError, "stride .*'4'"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_with_its_value(argument, error, words):
    with pytest.raises(error, match=words):
        patches(**argument)


@pytest.mark.parametrize("absent", ["sklearn", "PIL"])
def test_what_is_not_installed_is_named_with_its_extra(monkeypatch, absent):
    genuine = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == absent:
            raise ImportError(name)
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"Pillow.*sdegen\[examples\]"):
        patches()
