"""Paths and times of the user's own, tables on another device, names of files, and where a warning points."""

from __future__ import annotations

import warnings
from collections import namedtuple

import pretend
import pytest
import torch
from pretend import PretendDevice, PretendTensor
from problems import OwnVP
from test_checkpoints import alike, network, same_weights
from torch import nn

import sdegen


class Indexed(OwnVP):
    """A path of the user's own with an index."""

    def index(self, t):
        return 999 * t


def test_a_path_that_lacks_the_index_that_the_network_saw(tmp_path):
    file, own = tmp_path / "m.safetensors", Indexed()
    sdegen.save(file, sdegen.ScoreModel(network(), own, time=own.index))
    with pytest.raises(
        ValueError, match=r"saved with time=path.index, and .*Own.* has no index: give the path that has"
    ):
        sdegen.load(file, network(2), path=OwnVP())
    again = Indexed()
    assert sdegen.load(file, network(2), path=again).time == again.index
    given = lambda t: 999 * t  # noqa: E731
    for path in (OwnVP(), again):
        assert sdegen.load(file, network(2), path=path, time=given).time is given
    with pytest.raises(
        ValueError, match=r"saved with time=path.index, and the time= given is another: its network saw"
    ):
        sdegen.load(file, network(2), path=Indexed(), time=lambda t: 1000 * t)
    with pytest.raises(TypeError, match="time must be callable"):
        sdegen.load(file, network(2), path=Indexed(), time=3)


class Table(sdegen.GaussianPath):
    """alpha from a table, which lives on one device."""

    def __init__(self, device="cpu", last: float = 0.1, table: torch.Tensor | None = None):
        self.table = torch.linspace(1.0, last, 101, dtype=torch.float64).to(device) if table is None else table

    def alpha(self, t):
        place = 100 * t
        low = place.floor().clamp(0, 99).long()
        part = place - low
        return (self.table[low] * (1 - part) + self.table[low + 1] * part).to(t.dtype)

    def sigma(self, t):
        return torch.sqrt(1 - self.alpha(t) ** 2)


def carried(last: float) -> sdegen.ScoreModel:
    """A model on the pretend device, with the table of its path."""
    path = Table(last=last)
    path.table = pretend.put(path.table)
    model = sdegen.ScoreModel(pretend.put(network(2)), Table(table=path.table), "v")
    assert isinstance(model.path.table, PretendTensor)
    return model


def test_a_table_on_another_device_is_asked_there():
    ours = sdegen.ScoreModel(network(), Table(), "v")
    state = ours.state_dict()
    with PretendDevice():
        carried(0.1).load_state_dict(carried(0.1).state_dict())
        for theirs in (carried(0.2).state_dict(), state):
            other = carried(0.3)
            with pytest.raises(ValueError, match=r"differs in path \(Table.* there, Table.* here: alpha is .* there"):
                other.load_state_dict(theirs)
    with pytest.raises(ValueError, match=r"differs in path \(Table.* there, Table.* here: alpha is .* there"):
        sdegen.ScoreModel(network(), Table(last=0.2), "v").load_state_dict(state)


def test_a_table_that_cannot_be_asked_leaves_the_portrait_out(tmp_path):
    file, lost = tmp_path / "m.safetensors", Table("meta")
    ours = sdegen.ScoreModel(network(), lost, "v")
    theirs = sdegen.ScoreModel(network(2), Table(), "v")
    assert str(theirs.load_state_dict(ours.state_dict())) == "<All keys matched successfully>"
    with pytest.raises(ValueError, match=r"differs in predicts \(v there, eps here\)\. Give"):
        sdegen.ScoreModel(network(2), Table(), "eps").load_state_dict(ours.state_dict())
    sdegen.save(file, ours)
    for path in (Table("meta"), Table()):
        assert same_weights(sdegen.load(file, network(2), path=path), ours)


@pytest.mark.filterwarnings("ignore:for net.*no-op")  # torch takes the pretend device for one without values
@pytest.mark.filterwarnings("ignore:for _units.*no-op")
def test_the_units_go_to_the_device_of_the_network(tmp_path):
    file, units = tmp_path / "m.safetensors", sdegen.Standardize(torch.tensor([1e3, 0.1]), torch.tensor([3.0, 7.0]))
    sdegen.save(file, sdegen.ScoreModel(network(), sdegen.VPSDE(), standardize=units))
    net = pretend.put(network(2))
    with PretendDevice():
        found = sdegen.load(file, net).standardize
        assert isinstance(found.mean, PretendTensor)
        assert isinstance(found.std, PretendTensor)
        assert torch.equal(found.mean.cpu(), units.mean)
        assert torch.equal(net.first.weight.cpu(), network().first.weight)


Pair = namedtuple("Pair", "a b")


def test_tuples_come_back_as_tuples_and_turned_signs_turned(tmp_path):
    """A tensor with torch's lazy sign, as the imaginary part of a conjugate has it, holds the numbers that it shows."""
    file, turned = tmp_path / "m.safetensors", torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert turned.is_neg()
    sdegen.save(file, sdegen.ScoreModel(network(), sdegen.VPSDE()), pair=Pair(1, (2.0, [3])), turned=turned, none=())
    found = sdegen.load_state(file)
    assert found["turned"].tolist() == [-2.0, 4.0]
    assert alike({n: found[n] for n in ("pair", "none")}, {"pair": (1, (2.0, [3])), "none": ()})
    net = nn.Linear(2, 2)
    net.register_buffer("turned", turned)
    again = nn.Linear(2, 2)
    again.register_buffer("turned", torch.tensor([1 + 1j, 1 + 1j]).conj().imag)
    sdegen.save(file, sdegen.ScoreModel(net, sdegen.VPSDE()))
    assert sdegen.load(file, again).net.turned.tolist() == [-2.0, 4.0]


def test_a_file_is_named_by_a_path(tmp_path):
    model = sdegen.ScoreModel(network(), sdegen.VPSDE())
    for file, said in ((None, "None"), (3, "3"), (b"m.safetensors", "b'm.safet"), (open, "<built-in")):
        for call in (
            lambda: sdegen.save(file, model),  # noqa: B023
            lambda: sdegen.load(file, network(2)),  # noqa: B023
            lambda: sdegen.load_state(file),  # noqa: B023
        ):
            with pytest.raises(TypeError, match=f"file must be a path, a str or an os.PathLike, and it is {said}"):
                call()


def test_what_is_no_network_is_described_with_what_to_give(tmp_path):
    file = tmp_path / "m.safetensors"
    sdegen.save(file, sdegen.ScoreModel(network(), sdegen.VPSDE()))
    whose, model = (
        "net must be the network itself, an nn.Module to fill, and it is ",
        sdegen.ScoreModel(network(), OwnVP()),
    )
    for net, match in (
        (model, r"ScoreModel, a model: pass its network, model\.net\."),
        (torch.compile(model, backend="eager"), r"OptimizedModule, a model: pass its network, model\.net\."),
        (nn.Linear, r"the class Linear itself: call it, Linear\(\.\.\.\)\."),
    ):
        with pytest.raises(TypeError, match=whose + match):
            sdegen.load(file, net)
    with pytest.raises(TypeError, match=r"and it is the class VPSDE itself: call it, VPSDE\(\.\.\.\)\."):
        sdegen.load(file, network(2), path=sdegen.VPSDE)
    with pytest.raises(TypeError, match=r"an nn.Module, whose weights can be seen, and it is the class Linear itself"):
        sdegen.save(file, sdegen.ScoreModel(nn.Linear, sdegen.VPSDE()))


@pytest.mark.parametrize("nested", [False, True])
def test_the_warning_of_a_state_from_before_points_to_the_line_that_loads(nested):
    model = sdegen.ScoreModel(network(), sdegen.VPSDE())
    whole = nn.ModuleDict({"a": nn.ModuleDict({"b": model})}) if nested else model
    old = {name: value for name, value in whole.state_dict().items() if not name.endswith("_extra_state")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        whole.load_state_dict(old)
    assert [each.filename for each in caught] == [__file__]
