"""What modules say of themselves, memory that tensors share, and scalings: a file fits them or is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from test_checkpoints import bits, network, same_weights
from torch import nn
from torch.optim.swa_utils import AveragedModel

import sdegen


def refused(file, net, match, error=ValueError, **options):
    before = {name: bits(value) for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    with pytest.raises(error, match=match):
        sdegen.load(file, net, **options)
    after = {name: bits(value) for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    assert before == after


class Says(nn.Linear):
    """A layer with a state of its own beside its tensors."""

    def __init__(self, said: object = None):
        super().__init__(2, 2)
        self.said = said

    def get_extra_state(self) -> object:
        return self.said

    def set_extra_state(self, state: object) -> None:
        self.said = state


@pytest.mark.parametrize("inner", [False, True])
def test_what_a_module_says_of_itself_is_there_on_both_sides_or_on_neither(tmp_path, inner):
    file, plain = tmp_path / "m.safetensors", nn.Linear(2, 2)
    wrap = (lambda net: nn.Sequential(net)) if inner else (lambda net: net)
    name = r"'net\.0\._extra_state'" if inner else r"'net\._extra_state'"
    sdegen.save(file, sdegen.ScoreModel(wrap(Says({"calls": 3})), sdegen.VPSDE()))
    refused(file, wrap(plain), rf"m.safetensors' holds .* another network: {name} is the state of .* there and absent")
    for kept in (None, {"calls": 3}, "words", torch.ones(2)):
        sdegen.save(file, sdegen.ScoreModel(wrap(Says(kept)), sdegen.VPSDE()))
        empty = Says(7)
        sdegen.load(file, wrap(empty))
        assert torch.equal(empty.said, kept) if isinstance(kept, torch.Tensor) else empty.said == kept
    sdegen.save(file, sdegen.ScoreModel(wrap(plain), sdegen.VPSDE()))
    refused(
        file, wrap(Says()), rf"m.safetensors' holds .* another network: {name} is absent there and the state of get"
    )


class Named(nn.Linear):
    """Tensors whose names end in that of a state that is none."""

    def __init__(self, size: int):
        super().__init__(2, 2)
        self.register_buffer("my_extra_state", torch.arange(float(size)))


def test_a_tensor_whose_name_ends_alike_is_a_tensor(tmp_path):
    file = tmp_path / "m.safetensors"
    sdegen.save(file, sdegen.ScoreModel(Named(3), sdegen.VPSDE()))
    refused(file, Named(4), r"another network: 'net.my_extra_state' is \(3,\) float64 there and \(4,\) float64 here")
    refused(file, nn.Linear(2, 2), r"'net.my_extra_state' is \(3,\) float64 there and absent here")
    net = Named(3)
    net.my_extra_state.zero_()
    assert sdegen.load(file, net).net.my_extra_state.tolist() == [0, 1, 2]


VIEWS = {
    "transposed": ((3, 2), lambda a: a.t()),
    "square": ((2, 2), lambda a: a.t()),
    "slice": ((4,), lambda a: a[1:3]),
    "flat": ((2, 3), lambda a: a.reshape(-1)),
    "same": ((2, 3), lambda a: a),
}


class Views(nn.Module):
    """A parameter and a buffer that is a view of it, or one alike with memory of its own."""

    def __init__(self, name: str, tied: bool):
        super().__init__()
        shape, view = VIEWS[name]
        self.a = nn.Parameter(torch.randn(shape))
        self.register_buffer("b", view(self.a.data) if tied else torch.randn(view(self.a.data).shape))


@pytest.mark.parametrize("name", VIEWS)
def test_tensors_that_are_views_of_one_another_take_only_what_fits(name, tmp_path):
    file = tmp_path / "m.safetensors"
    sdegen.save(file, sdegen.ScoreModel(Views(name, tied=False), sdegen.VPSDE()))
    refused(
        file, Views(name, tied=True), r"m.safetensors' holds .* another network: 'net.a' does not keep what is load"
    )
    ours = Views(name, tied=True)
    sdegen.save(file, sdegen.ScoreModel(ours, sdegen.VPSDE()))
    for tied in (True, False):
        again = sdegen.load(file, Views(name, tied)).net
        assert same_weights(again, ours)


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: torch.compile(net, backend="eager"), nn.DataParallel])
def test_scalings_of_another_size_are_refused(tmp_path, wrap):
    file, path = tmp_path / "m.safetensors", sdegen.EDM()
    ours = sdegen.ScoreModel(sdegen.Preconditioned(network()), path, "data")
    sdegen.save(file, ours)
    match = r"weights of another model, which differs in sigma_data \(0.5 there, 2.0 here\)"
    refused(file, wrap(sdegen.Preconditioned(network(2), 2.0)), "m.safetensors' holds the " + match)
    theirs = sdegen.ScoreModel(sdegen.Preconditioned(network(2), 2.0), path, "data")
    before = copy.deepcopy(theirs)
    with pytest.raises(ValueError, match=match):
        theirs.load_state_dict(ours.state_dict())
    assert same_weights(theirs, before)
    refused(file, network(2), r"differs in sigma_data \(0.5 there, none here\)")
    x, t = torch.randn(3, 2), torch.rand(3) + 0.1
    assert torch.equal(sdegen.load(file, wrap(sdegen.Preconditioned(network(2))))(x, t), ours(x, t))


def test_an_average_of_the_network_is_filled_by_its_inside(tmp_path):
    file = tmp_path / "m.safetensors"
    sdegen.save(file, sdegen.ScoreModel(network(), sdegen.VPSDE()))
    refused(file, AveragedModel(network(2)), "net is an AveragedModel, and .*: pass averaged.module.", TypeError)
    average = AveragedModel(network(2))
    assert same_weights(sdegen.load(file, average.module).net, network())
    sdegen.save(file, sdegen.ScoreModel(average, sdegen.VPSDE()))  # a network like any other
    assert same_weights(sdegen.load(file, AveragedModel(network(3))).net, average)


def test_a_network_in_parts_is_gathered_first(tmp_path):
    """DTensors, as fully_shard makes them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    file, net = tmp_path / "m.safetensors", nn.Linear(2, 2)
    sdegen.save(file, sdegen.ScoreModel(nn.Linear(2, 2), sdegen.VPSDE()))
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", world_size=1, rank=0)
    try:
        mesh = init_device_mesh("cpu", (1,))
        net.weight = nn.Parameter(distribute_tensor(net.weight.detach(), mesh, [Replicate()]))
        with pytest.raises(
            ValueError, match=r"'net.weight' is a DTensor, in parts .*: gather it first, by full_tensor"
        ):
            sdegen.save(file, sdegen.ScoreModel(net, sdegen.VPSDE()))
        with pytest.raises(
            ValueError, match=r"net is in parts, 'net.weight' is a DTensor: load into it first, and sha"
        ):
            sdegen.load(file, net)
        gathered = {"weight": net.weight.full_tensor()}
        sdegen.save(file, sdegen.ScoreModel(nn.Linear(2, 2), sdegen.VPSDE()), **gathered)
        assert torch.equal(sdegen.load_state(file)["weight"], gathered["weight"])
    finally:
        torch.distributed.destroy_process_group()
