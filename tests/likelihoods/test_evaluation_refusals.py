"""evaluate refuses in full sentences and before the first network call; a directory by what differs."""

from __future__ import annotations

import shutil
import tempfile

import pytest
import torch
from torch import nn

import sdegen
from sdegen.likelihoods.evaluation import evaluate

SOLVER = sdegen.ODESolver("rk4", steps=2)
X = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(10, 2)


class Scaled(nn.Module):
    """A linear network with a setting; with `asked` false it must not be called."""

    def __init__(self, scale=1.0, asked=True):
        super().__init__()
        self.scale, self._asked = scale, asked
        self.weight = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64))

    def forward(self, x, t, shift=None):
        assert self._asked, "the network was asked"
        return self.scale * x @ self.weight + (0 if shift is None else shift)


def model(scale=1.0, predicts="velocity", path=None, asked=True):
    return sdegen.ScoreModel(Scaled(scale, asked), sdegen.CondOT() if path is None else path, predicts)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A directory that holds a whole evaluation."""
    directory = tmp_path_factory.mktemp("whole")
    assert evaluate(model(), X, directory=directory, solver=SOLVER, batch_size=4, cond={"shift": X}).complete
    return directory


def trained():
    found = model(asked=False)
    found.net.weight.data[1, 1] += 1e-15
    return found


OTHERS = {
    "weights": (trained, {}, r"model \(another ScoreModel\)"),
    "network's settings": (lambda: model(1.5, asked=False), {}, r"model \(another ScoreModel\)"),
    "prediction": (lambda: model(predicts="v", asked=False), {}, r"model \(another ScoreModel\)"),
    "path": (lambda: model(path=sdegen.CondOT(0.01), asked=False), {}, r"model \(another ScoreModel\)"),
    "class": (lambda: model(asked=False).on(sdegen.VPSDE()), {}, r"model \(ScoreModel there, OnPath here\)"),
    "data": (None, {"data": X + 1e-15}, r"data \(another float64 tensor \(10, 2\)\)"),
    "fewer data": (None, {"data": X[:8], "cond": {"shift": X[:8]}}, r"data \(.*\(10, 2\) there, .*\(8, 2\) here\)"),
    "precision": (None, {"data": X.float()}, r"data \(float64 tensor \(10, 2\) there, float32 tensor"),
    "seed": (None, {"seed": 1}, r"seed \(0 there, 1 here\)"),
    "chunks": (None, {"batch_size": 5}, r"batch_size \(4 there, 5 here\)"),
    "solver": (None, {"solver": sdegen.ODESolver("rk4", steps=3)}, r"solver \(.*steps=2.* there, .*steps=3.* here\)"),
    "default solver": (None, {"solver": None}, r"solver \(.*steps=2.* there, None here\)"),
    "trace": (None, {"trace": sdegen.Hutchinson(1)}, r"trace \('auto' there, Hutchinson\(probes=1\) here\)"),
    "conditions": (None, {"cond": {"shift": 2 * X}}, r"cond \("),
    "no conditions": (None, {"cond": None}, r"cond \("),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_directory_of_another_evaluation_is_refused_by_name(name, finished):
    make, changed, words = OTHERS[name]
    options = {"data": X, "directory": finished, "solver": SOLVER, "batch_size": 4, "cond": {"shift": X}, **changed}
    with pytest.raises(ValueError, match=f"belongs to another computation, which differs in {words}.*give another"):
        evaluate((make or (lambda: model(asked=False)))(), **options)


def test_the_same_evaluation_is_known_again_whatever_does_not_count(finished, tmp_path, monkeypatch):
    """Training mode, gradients, the copy of the model, its shard and the directory's name."""
    kept = shutil.copytree(finished, tmp_path / "moved")
    same = model(asked=False).train()
    same.net.weight.grad = torch.ones(2, 2)
    options = {"directory": str(kept), "solver": SOLVER, "batch_size": 4, "cond": {"shift": X.clone()}}
    assert evaluate(same, X.clone(), shard=(4, 7), **options).complete
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert evaluate(same, X, **options).complete
    assert same.training


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"shard": (3, 3)}, ValueError, r"shard must be \(index, count\) with 0 <= index < count, and it is \(3, 3\)"),
        ({"shard": 1}, TypeError, "shard must be a pair"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, and it is 0"),
        ({"batch_size": 2.5}, TypeError, r"batch_size must be an integer, and 2\.5 is float"),
        ({"seed": -1}, ValueError, "seed must be at least 0, and it is -1"),
        ({"seed": None}, TypeError, "seed must be an integer, and None is NoneType"),
        ({"draws": 0}, ValueError, "draws must be at least 1, and it is 0"),
        ({"draws": 4}, ValueError, r"draws=4 are those of quantised data: give quantized="),
        ({"solver": sdegen.SDESolver("euler", 4)}, TypeError, "Only the ODE can be solved both ways"),
        ({"solver": "rk4"}, TypeError, "Only the ODE can be solved both ways"),
        ({"trace": "some"}, ValueError, "Unknown trace 'some'"),
        ({"directory": 7}, TypeError, "directory must be a path, and 7 is int"),
        ({"quantized": 256}, TypeError, r"quantized must be a Quantized, such as Quantized\(256\), and it is 256"),
        ({"cond": [X]}, TypeError, "cond must be a mapping"),
        ({"cond": {"shift": [1.0] * 10}}, TypeError, r"cond\['shift'\] is a list, .* Shared\(value\)"),
        ({"data": X.long()}, TypeError, r"torch.int64: whole .* Give quantized=Quantized\(levels\), or .* dequantised"),
        ({"data": X.numpy()}, TypeError, "data must be a tensor of shape .*, and it is ndarray"),
        ({"data": X[:, 0]}, ValueError, r"data must have shape \(B, ...\)"),
        ({"data": X[:0]}, ValueError, r"The mean over an empty data set, shape \(0, 2\), does not exist"),
        ({"data": X / 0}, ValueError, "data holds NaN or infinite values in 10 of its 10 samples"),
        ({"model": "net"}, TypeError, "model must be a ScoreModel"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_call(options, kind, words):
    arguments = {"model": model(asked=False), "data": X, "solver": SOLVER, "batch_size": 4, **options}
    with pytest.raises(kind, match=words):
        evaluate(**arguments)


class DistributedDataParallel(nn.Module):
    """Called like torch's, which needs a process group."""

    def __init__(self):
        super().__init__()
        self.module = Scaled(asked=False)


def test_a_network_with_collective_operations_is_refused_on_several_shards():
    wrapped = sdegen.ScoreModel(DistributedDataParallel(), sdegen.CondOT(), "velocity")
    with pytest.raises(ValueError, match=r"is a DistributedDataParallel, .* wait for ever: pass model\.module, whole"):
        evaluate(wrapped, X, shard=(0, 2))


def test_a_directory_that_cannot_be_written_is_refused_before_the_first_call(tmp_path, finished, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"directory must be a folder, and '.*file' is a file"):
        evaluate(model(asked=False), X, solver=SOLVER, directory=tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        evaluate(model(asked=False), X, solver=SOLVER, directory=tmp_path / "file" / "inside")

    def read_only(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(PermissionError, match="Permission denied"):
        evaluate(model(asked=False), X, solver=SOLVER, directory=tmp_path / "new")
    assert evaluate(
        model(asked=False), X, directory=finished, solver=SOLVER, batch_size=4, cond={"shift": X}
    ).complete, "a finished one need not be written to"
