"""Checkpoints that are refused: another network's, what cannot be stored, and what is no model. Nothing is changed."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from test_checkpoints import Odd, bits, network
from torch import nn
from torch.optim.swa_utils import AveragedModel

import sdegen
from sdegen.nets import MLP


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "model.safetensors"
    sdegen.save(file, sdegen.ScoreModel(network(), sdegen.VPSDE(), "v"))
    return file


class Tied(nn.Module):
    """Two layers, one matrix if `tied`."""

    def __init__(self, tied: bool = False):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        if tied:
            self.b.weight = self.a.weight


class Fails(MLP):
    """A network whose last module refuses what it is given, once the others are loaded."""

    def __init__(self):
        super().__init__(2, 8, 1)
        self.last.register_load_state_dict_post_hook(self.no)

    @staticmethod
    def no(module, keys):
        if not module.weight.eq(0).all():
            raise RuntimeError("no, thank you")


def refused(file, net, match, error=ValueError, **options):
    before = {name: bits(value) for name, value in net.state_dict().items()}
    with pytest.raises(error, match=match):
        sdegen.load(file, net, **options)
    assert {name: bits(value) for name, value in net.state_dict().items()} == before


def test_another_network_is_refused_by_its_first_tensor(file):
    whose = r"model.safetensors' holds the weights of another network: "
    refused(file, network(2, 16), whose + r"'net.time.mlp.0.weight' is \(8, 22\) float64 there and \(16, 22\) float64")
    refused(file, network(2).float(), whose + r"'net.time.mlp.0.weight' is \(8, 22\) float64 .* \(8, 22\) float32 here")
    refused(file, MLP(2, 8, 2), whose + r"'net.layers.1.weight' is absent there and \(8, 8\) float64 here")
    refused(file, MLP(2, 8, 1, classes=3), whose + r"'net.time.label.weight' is absent there and \(3, 8\) float64 here")
    deep = file.with_name("deep.safetensors")
    sdegen.save(deep, sdegen.ScoreModel(MLP(2, 8, 2), sdegen.VPSDE(), "v"))
    refused(deep, network(2), "another network: 'net.layers.1.weight' is .*8, 8.* float64 there and absent here")
    lazy = nn.LazyLinear(3)
    with pytest.raises(ValueError, match=whose + "'net.weight' is absent there and a tensor without a shape yet here"):
        sdegen.load(file, lazy)
    with pytest.raises(ValueError, match=r"net is on the meta device and has no memory: give it some, net.to_empty"):
        sdegen.load(file, network(2).to("meta"))


def test_weights_of_two_layers_do_not_fit_one_that_is_used_twice(tmp_path):
    file = tmp_path / "model.safetensors"
    sdegen.save(file, sdegen.ScoreModel(Tied(), sdegen.VPSDE()))
    refused(file, Tied(tied=True), "another network: 'net.a.weight' does not keep what is loaded here, as if it shared")
    sdegen.save(file, sdegen.ScoreModel(Tied(tied=True), sdegen.VPSDE()))
    for tied in (False, True):
        net = sdegen.load(file, Tied(tied)).net
        assert torch.equal(net.a.weight, net.b.weight)


def test_a_load_that_fails_halfway_is_undone(file):
    refused(file, Fails(), "no, thank you", RuntimeError)


def test_only_a_network_is_filled(file):
    for net in (sdegen.ScoreModel(network(), sdegen.VPSDE()), lambda x, t: x, None):
        with pytest.raises(
            TypeError, match=r"net must be the network itself, an nn.Module to fill, and it is (Sc|<fu|No)"
        ):
            sdegen.load(file, net)


def test_only_a_model_whose_weights_are_in_sight_is_saved(file):
    before = file.read_bytes()
    model = sdegen.ScoreModel(network(), sdegen.VPSDE())

    class Mine(sdegen.ScoreModel):
        pass

    own = r"Only ScoreModel itself can be written, since Mine is code, .*: save ScoreModel\(model.net, model.path, mod"
    bare = r"and it is the network MLP: give ScoreModel\(net, path, predicts\)\."
    for other, match in (
        (sdegen.Clipped(model, -1, 1), "must be a ScoreModel, and it is Clipped: save the ScoreModel insid"),
        (Mine(network(), sdegen.VPSDE()), own),
        (AveragedModel(Mine(network(), sdegen.VPSDE())), own),
        (network(), bare),
        (AveragedModel(network()), bare),
        (sdegen.ScoreModel, r"and it is the class ScoreModel itself: call it, ScoreModel\(\.\.\.\)\."),
        (None, r"model must be a ScoreModel, and it is None\."),
    ):
        with pytest.raises(TypeError, match=match):
            sdegen.save(file, other)
    with pytest.raises(TypeError, match=r"must be an nn.Module, whose weights can be seen, and it is <bound method"):
        sdegen.save(file, sdegen.ScoreModel(network().forward, sdegen.VPSDE()))
    assert file.read_bytes() == before


LOOP: list[object] = []
LOOP.append(LOOP)
HOLDS = "and a checkpoint holds dicts, lists and tuples of tensors, numbers, strings, bytes, bools and None"
UNSTORABLE = {
    "object": ({"a": [object()]}, TypeError, rf"state\.x\.a\.0 is of type object, {HOLDS}"),
    "array": (torch.ones(2).numpy(), TypeError, rf"state\.x is of type ndarray, {HOLDS}"),
    "complex": (1j, TypeError, rf"state\.x is of type complex, {HOLDS}"),
    "set": ({"a": {1}}, TypeError, rf"state\.x\.a is of type set, {HOLDS}"),
    "network": (nn.Linear(1, 1), TypeError, rf"state\.x is of type Linear, {HOLDS}"),
    "key": ({(1, 2): 0}, TypeError, r"The keys of state\.x must be strings or integers, and \(1, 2\) is tuple"),
    "bool key": ({True: 0}, TypeError, r"The keys of state\.x must be strings or integers, and True is bool"),
    "complex tensor": ([torch.ones(2) * 1j], ValueError, r"'state\.x\.0' has dtype complex64, and a .* plain tensors"),
    "sparse": (torch.eye(2).to_sparse(), ValueError, r"'state\.x' is sparse_coo, and a checkpoint holds plain tensors"),
    "meta": (torch.ones(2, device="meta"), ValueError, r"'state\.x' is on the meta device, without numbers, and a"),
    "lazy": (nn.LazyLinear(2).weight, ValueError, r"'state\.x' is of type UninitializedParameter, and a checkpoint"),
    "loop": (LOOP, ValueError, "The state holds itself, or is nested too deeply"),
}


@pytest.mark.parametrize("name", UNSTORABLE)
def test_what_cannot_be_stored_is_refused_by_its_name(name, file):
    value, error, match = UNSTORABLE[name]
    before = file.read_bytes()
    with pytest.raises(error, match=match):
        sdegen.save(file, sdegen.ScoreModel(network(), sdegen.VPSDE()), x=value)
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_numbers_without_end_belong_into_tensors(file, monkeypatch):
    monkeypatch.setattr("sdegen._container.LONGEST", 20_000)
    with pytest.raises(ValueError, match=r"too many numbers outside tensors: \d+ characters; use tensors"):
        sdegen.save(file, sdegen.ScoreModel(network(), sdegen.VPSDE()), curve=[0.1] * 10_000)


def test_a_complex_network_is_refused_by_its_tensor(file):
    net = Odd()
    net.register_buffer("waves", torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"tensor 'net.waves' has dtype complex64, and a checkpoint holds plain tens"):
        sdegen.save(file, sdegen.ScoreModel(net, sdegen.VPSDE()))


def test_without_safetensors_the_extra_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    model = sdegen.ScoreModel(network(), sdegen.VPSDE())
    for call in (
        lambda: sdegen.save(file, model),
        lambda: sdegen.load(file, network()),
        lambda: sdegen.load_state(file),
    ):
        with pytest.raises(ImportError, match=r"safetensors is not installed: pip install 'sdegen\[train\]'\."):
            call()


def test_a_file_that_is_not_there_is_an_oserror(tmp_path):
    for load in (sdegen.load_state, lambda file: sdegen.load(file, network())):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "none.safetensors")
        with pytest.raises(IsADirectoryError):
            load(tmp_path)


def test_a_saved_model_is_not_changed(file):
    model = sdegen.ScoreModel(network(), sdegen.VPSDE())
    before = copy.deepcopy(model.state_dict())
    sdegen.save(file, model, raw=model.state_dict())
    for name, value in model.state_dict().items():
        assert bits(value) == bits(before[name])
    assert all(p.requires_grad for p in model.parameters())
