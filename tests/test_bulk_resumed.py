"""sample_many: what counts as the same call, what is refused before a directory is made, indices, sources, devices."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import sdegen

EVENT = (2,)


def mixture():
    return sdegen.GaussianMixture([[0.0, 1.0], [1.0, 0.0]], 0.3).model(sdegen.VPSDE())


def drawn(directory, model=None, solver=None, **settings):
    settings = {"shape": (11, 2), "batch_size": 4, "seed": 3, **settings}
    shape = settings.pop("shape")
    model, solver = mixture() if model is None else model, sdegen.Adams(4) if solver is None else solver
    return sdegen.sample_many(model, shape, solver, directory=directory, **settings)


class Untouched(nn.Module):
    """A network nobody may call."""

    def forward(self, x, t):
        raise AssertionError("the network was called")


SAME = {
    "u": [(0.99, 0.125), [0.99, 0.125], (np.float64(0.99), np.float64(0.125)), (0.99, np.float32(0.125))],
    "batch_size": [4, np.int64(4), np.int8(4)],
    "seed": [3, np.int64(3)],
    "shape": [(11, 2), [11, 2], torch.Size((11, 2)), (np.int64(11), np.uint8(2))],
    "cond": [None, {}, OrderedDict()],
    "device": [None, "cpu", torch.device("cpu")],
    "dtype": [None, torch.float64],
}


@pytest.mark.parametrize("name", SAME)
def test_one_value_in_several_words_is_one_computation(name, tmp_path):
    found = [drawn(tmp_path, **{name: value}).tensor() for value in SAME[name]]
    assert all(torch.equal(x, found[0]) for x in found)


def test_another_part_of_the_path_is_another_computation(tmp_path):
    drawn(tmp_path, u=(0.99, 0.125))
    for u in (None, (0.99, 0.25), (0.993, 0.125)):
        with pytest.raises(ValueError, match=r"another computation, which differs in u \(\(0\.99, 0\.125\) the"):
            drawn(tmp_path, u=u)


@pytest.mark.parametrize("u", [(0.1, 0.9), (2.0, 0.0), (0.5, 0.5)])
def test_a_part_that_is_none_is_refused_before_a_directory_is_made(u, tmp_path):
    model = sdegen.ScoreModel(Untouched(), sdegen.VPSDE(), "v")
    for shard in ((0, 1), (7, 8)):  # the last has no chunk to draw
        with pytest.raises(ValueError, match=r"leaves the path|needs u with from > to"):
            drawn(tmp_path / "new", model, u=u, shard=shard)
    assert not (tmp_path / "new").exists()


def test_indices_in_arrays_and_tensors(tmp_path):
    found = drawn(tmp_path)
    whole = found.tensor()
    for which in (np.array([1, 9, -1]), torch.tensor([1, 9, -1]), np.array([1, 9, -1], dtype=np.int8)):
        assert torch.equal(found[which], whole[[1, 9, -1]])
    for none in (np.array([], dtype=int), torch.tensor([], dtype=torch.int64)):
        assert found[none].shape == (0, 2)
    for one in (np.array(3), torch.tensor(3), np.int64(3)):
        assert torch.equal(found[one], whole[3])
    for wrong in (torch.tensor([True, False]), np.array([1.5]), torch.tensor([[1, 2]]), np.array("a")):
        with pytest.raises(TypeError, match=r"A sample has an integer number, and .* is (bool|float|list|str)"):
            found[wrong]


@pytest.mark.parametrize("device", ["meta", *([] if torch.cuda.is_available() else ["cuda", torch.device("cuda", 1)])])
def test_a_device_that_is_not_there_is_refused(device, tmp_path):
    model = sdegen.ScoreModel(Untouched(), sdegen.VPSDE(), "v")
    words = f"device must be one that this torch can draw random numbers on, and it is '{device}'"
    with pytest.raises(ValueError, match=words):
        drawn(tmp_path / "new", model, device=device)
    with pytest.raises(ValueError, match=words):
        sdegen.sample(model, (3, 2), sdegen.Adams(4), device=device)
    with pytest.raises(ValueError, match=words):
        sdegen.seeds(3, device=device)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_precision_that_cannot_be_drawn_is_refused(dtype, tmp_path):
    model = sdegen.ScoreModel(Untouched(), sdegen.VPSDE(), "v")
    words = f"dtype must be that of numbers which can be drawn, one of .*float64.*, and it is {dtype}"
    with pytest.raises(ValueError, match=words):
        drawn(tmp_path / "new", model, dtype=dtype)
    with pytest.raises(ValueError, match=words):
        sdegen.sample(model, (3, 2), sdegen.Adams(4), dtype=dtype)
    assert not (tmp_path / "new").exists()


def test_a_table_as_long_as_a_chunk_stays_whole_in_a_solver_that_cuts_the_batch_itself(tmp_path):
    """No row of it belongs to a sample: it has as many rows as a chunk, or later as the samples that are left."""

    def net(x, t, table):
        assert table.shape == (4, 2)
        return torch.tanh(x) + table.mean(0) * t[:, None]

    model = sdegen.ScoreModel(net, sdegen.VPSDE(), "v")
    solver, cond = sdegen.ODESolver("dopri5", steps_for="sample"), {"table": torch.randn(4, 2)}
    found = drawn(tmp_path, model, solver, cond=cond).tensor()
    whole = sdegen.sample(model, (11, 2), solver, generator=sdegen.seeds(11, 3), cond=cond)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)


class Uniform:
    """A source of the user's own, which knows one generator; its deviation is its own affair."""

    std = 7.0

    def sample(self, shape, generator):
        return torch.rand(shape, generator=generator)


@pytest.mark.parametrize("shape", [(11, 2), (0, 2)])
def test_a_source_of_the_users_own_is_asked_with_one_generator_after_another(shape, tmp_path):
    path = sdegen.Interpolant(source=Uniform())
    model = sdegen.ScoreModel(lambda x, t: torch.sin(x), path, "velocity")
    start = torch.cat([torch.empty(0, 2), *(torch.rand(1, 2, generator=g) for g in sdegen.seeds(shape[0], 3))])
    expected = sdegen.sample(model, shape, sdegen.Adams(4), x_T=start)
    found = drawn(tmp_path, model, shape=shape).tensor()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    many = sdegen.sample(model, shape, sdegen.Adams(4), generator=sdegen.seeds(shape[0], 3))
    torch.testing.assert_close(many, expected, rtol=0, atol=1e-12)


def test_a_source_of_the_library_draws_what_it_drew():
    law = sdegen.GaussianMixture([[0.0, 1.0], [1.0, 0.0]], 0.3)
    path = sdegen.Interpolant(source=law)
    found = path.noise_like(torch.empty(5, 2), sdegen.seeds(5))
    assert torch.equal(found, law.sample(5, sdegen.seeds(5)))


def test_a_source_that_answers_in_another_shape_is_refused():
    class Flat:
        def sample(self, shape, generator):
            return torch.rand(len(shape) * shape[0], 3, generator=generator)

    path = sdegen.Interpolant(source=Flat())
    with pytest.raises(ValueError, match=r"The source's sample must have shape \(5, 2\), and it has \(10, 3\)"):
        path.noise_like(torch.empty(5, 2), sdegen.seeds(5))
