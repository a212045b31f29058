"""Compiled, averaged and distributed models are saved as what they are made of, and filled as what they are."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from test_checkpoints import network, same_weights
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import sdegen


class Inside(nn.Module):
    """A network with another in it, compiled or not, and names that look like wrappers'."""

    def __init__(self, wrap=lambda module: module, seed: int = 1):
        super().__init__()
        self.module = wrap(network(seed))
        self.last = nn.Sequential(nn.Linear(2, 2), wrap(nn.Linear(2, 2)))

    def forward(self, x, t):
        return self.last(self.module(x, t))


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


@pytest.fixture
def distributed(tmp_path):
    """One process of gloo, which is enough for the wrapper."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", world_size=1, rank=0)
    yield DistributedDataParallel
    torch.distributed.destroy_process_group()


@pytest.fixture
def wrap(request):
    known = {"compiled": compiled, "parallel": nn.DataParallel}
    if request.param in known:
        return known[request.param]
    ddp = request.getfixturevalue("distributed")
    kinds = {"ddp": ddp, "compiled ddp": lambda m: compiled(ddp(m)), "ddp compiled": lambda m: ddp(compiled(m))}
    return kinds[request.param]


ALL = ["compiled", "parallel", "ddp", "compiled ddp", "ddp compiled"]


@pytest.mark.parametrize("wrap", ALL, indirect=True)
def test_a_wrapped_model_or_network_is_saved_bare_and_either_is_filled(wrap, tmp_path):
    file, bare = tmp_path / "model.safetensors", sdegen.ScoreModel(Inside(), sdegen.VPSDE(), "v")
    names = [name for name in bare.state_dict() if name != "_extra_state"]
    for model in (wrap(bare), sdegen.ScoreModel(wrap(bare.net), sdegen.VPSDE(), "v")):
        sdegen.save(file, model)
        assert sorted(load_file(file)) == sorted(["_extra_state", *names])
        for net in (Inside(seed=2), wrap(Inside(seed=2))):
            again = sdegen.load(file, net)
            assert again.net is net
            x, t = torch.randn(3, 2), torch.rand(3)
            assert torch.equal(again(x, t), bare(x, t))


def test_a_network_that_is_compiled_in_parts(tmp_path):
    file, bare = tmp_path / "model.safetensors", sdegen.ScoreModel(Inside(), sdegen.VPSDE(), "v")
    sdegen.save(file, sdegen.ScoreModel(Inside(compiled), sdegen.VPSDE(), "v"))
    net = sdegen.load(file, Inside(seed=2)).net
    assert sorted(load_file(file)) == sorted(bare.state_dict())
    sdegen.save(file, sdegen.ScoreModel(net, sdegen.VPSDE(), "v"))
    again = sdegen.load(file, Inside(compiled, seed=3))
    names = [name.replace("_orig_mod.", "") for name in again.state_dict()]
    assert names == list(bare.state_dict())
    assert same_weights(again.net.module._orig_mod, net.module)


def test_an_average_is_saved_as_the_model_it_is(tmp_path):
    file, model = tmp_path / "model.safetensors", sdegen.ScoreModel(network(), sdegen.VPSDE())
    average = AveragedModel(model)
    average.update_parameters(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    sdegen.save(file, average, raw=model.state_dict(), average=average.state_dict())
    assert same_weights(sdegen.load(file, network(2)), average.module)
    state = sdegen.load_state(file)
    again = AveragedModel(sdegen.ScoreModel(network(2), sdegen.VPSDE()))
    again.load_state_dict(state["average"])
    model.load_state_dict(state["raw"])
    assert again.n_averaged == 1
    assert all(bool((p == 0).all()) for p in model.parameters())
