"""sample_many and seeds: each sample is a function of the seed and its number, and the law is the model's."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import sdegen

SOLVERS = [
    sdegen.Adams(6),
    sdegen.SDESolver("srk", 6),
    sdegen.Ancestral(6),
    sdegen.StochasticAdams(6),
    sdegen.ODESolver("dopri5", steps_for="sample"),
    sdegen.Restart(sdegen.Heun(4)),
]


def mixture():
    return sdegen.GaussianMixture(torch.randn(4, 2), 0.3).model(sdegen.VPSDE())


def drawn(directory, model=None, shape=(11, 2), solver=SOLVERS[1], **settings):
    settings = {"batch_size": 4, "seed": 3, **settings}
    return sdegen.sample_many(mixture() if model is None else model, shape, solver, directory=directory, **settings)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_every_sample_is_that_of_its_own_generator(solver, tmp_path):
    model = mixture()
    whole = sdegen.sample(model, (11, 2), solver, generator=sdegen.seeds(11, 3))
    for batch_size in (4, 5, 20):
        found = drawn(tmp_path / f"{batch_size}", model, solver=solver, batch_size=batch_size)
        assert [len(chunk) for chunk in found.chunks()] == [min(batch_size, 11 - i) for i in range(0, 11, batch_size)]
        torch.testing.assert_close(found.tensor(), whole, rtol=0, atol=1e-12)
    nine = sdegen.sample(model, (9, 2), solver, generator=sdegen.seeds(20, 3)[2:11])
    torch.testing.assert_close(nine, whole[2:], rtol=0, atol=1e-12)


def test_the_samples_follow_the_law_of_an_exact_model(tmp_path):
    """Gaussian data: n |mean - m|^2 / s^2 and the spread are chi-squared, at a significance of 1e-6."""
    n, m, s = 20_000, torch.tensor([1.0, -2.0]), 0.5
    model = sdegen.Gaussian(m, s).model(sdegen.VPSDE())
    x = drawn(tmp_path, model, (n, 2), sdegen.Adams(20), batch_size=4096, seed=7).tensor()
    assert float((x.mean(0) - m).abs().max()) < 5 * s / math.sqrt(n)
    assert float((x.var(0) / s**2 - 1).abs().max()) < 5 * math.sqrt(2 / n) + 1e-3  # the solver's own is below 1e-3
    assert abs(float(torch.corrcoef(x.T)[0, 1])) < 5 / math.sqrt(n)
    neighbours = torch.corrcoef(torch.stack([x[:-1, 0], x[1:, 0]]))[0, 1]
    assert abs(float(neighbours)) < 5 / math.sqrt(n)


def test_conditions_are_cut_with_the_samples_and_shared_ones_are_not(tmp_path):
    def net(x, t, shift, table):
        assert table.shape == (4,)  # as long as a chunk
        return x + shift + table.sum()

    model = sdegen.ScoreModel(net, sdegen.VPSDE(), "v")
    cond = {"shift": torch.randn(11, 2), "table": sdegen.Shared(torch.ones(4))}
    expected = sdegen.sample(model, (11, 2), SOLVERS[0], generator=sdegen.seeds(11, 3), cond=cond)
    found = drawn(tmp_path, model, solver=SOLVERS[0], cond=cond)
    torch.testing.assert_close(found.tensor(), expected, rtol=0, atol=1e-12)
    cond["shift"] = cond["shift"] + 1
    with pytest.raises(ValueError, match=r"belongs to another computation, which differs in cond"):
        drawn(tmp_path, model, solver=SOLVERS[0], cond=cond)


def test_samples_are_read_by_number_by_chunk_and_by_a_loader(tmp_path):
    found = drawn(tmp_path)
    whole = found.tensor()
    assert (len(found), found.shape, found.dtype, found.complete) == (11, (11, 2), torch.float64, True)
    assert torch.equal(torch.cat(list(found.chunks())), whole)
    assert torch.equal(torch.stack(list(found)), whole)
    assert torch.equal(found[-1], whole[10])
    assert torch.equal(found[2:9:3], whole[2:9:3])
    assert torch.equal(found[[9, 0, 9]], whole[[9, 0, 9]])
    assert found[5:5].shape == (0, 2)
    assert torch.equal(torch.cat(list(DataLoader(found, batch_size=3))), whole)
    found[3].fill_(0.0)
    assert torch.equal(found[3], whole[3]), "a sample that was handed out is nobody else's"
    for wrong in (11, -12):
        with pytest.raises(IndexError, match=f"There is no sample {wrong} among 11"):
            found[wrong]
    for wrong in (1.0, True, "1"):
        with pytest.raises(TypeError, match=f"A sample has an integer number, and {wrong!r} is"):
            found[wrong]
    assert repr(found) == f"Samples((11, 2), float64, 3 of 3 files in {str(tmp_path)!r})"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_precision_comes_back_as_it_was_drawn(dtype, tmp_path):
    model = mixture()
    found = drawn(tmp_path, model, solver=SOLVERS[0], dtype=dtype, batch_size=11)
    assert found.dtype is found.tensor().dtype is dtype
    expected = sdegen.sample(model, (11, 2), SOLVERS[0], generator=sdegen.seeds(11, 3), dtype=dtype)
    assert torch.equal(found.tensor(), expected)


def test_a_damaged_chunk_is_drawn_again_and_nothing_else(tmp_path):
    model = mixture()
    found = drawn(tmp_path, model)
    whole, files = found.tensor(), [Path(path) for path in found.paths]
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 1
    files[1].write_bytes(data)
    assert not found.complete
    with pytest.raises(ValueError, match=r"Samples 4 to 7 are not in .* or their file is damaged"):
        found.tensor()
    before = [file.stat().st_mtime_ns for file in files]
    assert torch.equal(drawn(tmp_path, model).tensor(), whole)
    assert [file.stat().st_mtime_ns == then for file, then in zip(files, before, strict=True)] == [True, False, True]


def test_none_and_part_of_the_path(tmp_path):
    assert drawn(tmp_path / "none", shape=(0, 2)).tensor().shape == (0, 2)
    model = mixture()
    part = drawn(tmp_path / "part", model, u=(0.99, 0.2))
    expected = sdegen.sample(model, (11, 2), SOLVERS[1], generator=sdegen.seeds(11, 3), u=(0.99, 0.2))
    torch.testing.assert_close(part.tensor(), expected, rtol=0, atol=1e-12)


class Untouched(nn.Module):
    """A network nobody may call."""

    def forward(self, x, t):
        raise AssertionError("the network was called")


REFUSALS = {
    "model must be a ScoreModel": {"model": Untouched()},
    "solver must be a Solver, such as .* and it is 'euler'": {"solver": "euler"},
    r"shape must be \(B, ...\), .* and it is \(11,\)": {"shape": (11,)},
    "batch_size must be at least 1, and it is 0": {"batch_size": 0},
    "batch_size must be an integer, and None": {"batch_size": None},
    "seed must be at least 0, and it is -1": {"seed": -1},
    r"0 <= index < count, and it is \(2, 2\)": {"shard": (2, 2)},
    "cond must be a mapping": {"cond": 3},
    r"u = \(2.0, 0.0\) leaves the path": {"u": (2.0, 0.0)},
    "dtype must be a floating torch dtype": {"dtype": torch.int64},
    "device must name a torch device": {"device": "nowhere"},
    "Adaptive steps are shared by the batch .* one generator per sample needs fixed steps": {
        "solver": sdegen.SDESolver(adaptive=True)
    },
    r"cond\['names'\] is a list, and the batch is cut into rows": {"cond": {"names": ["a"] * 11}},
}


@pytest.mark.parametrize("words", REFUSALS)
def test_refused_before_the_first_network_call(words, tmp_path):
    changed = {"model": sdegen.ScoreModel(Untouched(), sdegen.VPSDE(), "v"), **REFUSALS[words]}
    with pytest.raises((TypeError, ValueError), match=words):
        drawn(tmp_path / "new", **changed)
    assert not list((tmp_path / "new").glob("*"))


def test_another_computation_a_waiting_network_and_a_bad_number(tmp_path):
    model = mixture()
    drawn(tmp_path, model)
    for name, words in (("seed", "seed .3 there, 4 here"), ("batch_size", "batch_size .4 there, 5 here")):
        with pytest.raises(ValueError, match=f"belongs to another computation, which differs in {words}"):
            drawn(tmp_path, model, **{name: {"seed": 4, "batch_size": 5}[name]})
    with pytest.raises(ValueError, match=re.escape("differs in shape ((11, 2) there, (12, 2) here)")):
        drawn(tmp_path, model, (12, 2))

    class DistributedDataParallel(Untouched):
        """By its name alone."""

    waiting = sdegen.ScoreModel(DistributedDataParallel(), sdegen.VPSDE(), "v")
    with pytest.raises(
        ValueError, match=r"The network is a DistributedDataParallel, whose processes wait .* pass model\.module"
    ):
        drawn(tmp_path / "new", waiting, shard=(0, 2))
    with pytest.raises(TypeError, match="directory must be a path, and 3 is int"):
        drawn(3)

    def lost(x, t):
        return torch.where(x.mean() > 1e9, x, math.nan * x)

    with pytest.raises(sdegen.NonFiniteError):
        drawn(tmp_path / "lost", sdegen.ScoreModel(lost, sdegen.VPSDE(), "v"))
    assert not list((tmp_path / "lost").glob("chunk*"))


def test_seeds_are_numbered_and_refused_by_name():
    def normals(generators):
        return torch.stack([torch.randn(3, generator=g) for g in generators])

    ten = normals(sdegen.seeds(10, 4))
    assert torch.equal(normals(sdegen.seeds(3, 4)), ten[:3])
    assert len(set(ten.flatten().tolist()) | set(normals(sdegen.seeds(10)).flatten().tolist())) == 60
    assert sdegen.seeds(0) == []
    assert sdegen.seeds(2, device="cpu")[0].device.type == "cpu"
    for wrong, words in (((-1,), "n must be at least 0"), ((2, -1), "seed must be at least 0, and it is -1")):
        with pytest.raises(ValueError, match=words):
            sdegen.seeds(*wrong)
    with pytest.raises(TypeError, match=r"n must be an integer, and 2\.5 is float"):
        sdegen.seeds(2.5)
    with pytest.raises(ValueError, match=r"device must name a torch device such as .* and it is 'nowhere'"):
        sdegen.seeds(2, device="nowhere")
