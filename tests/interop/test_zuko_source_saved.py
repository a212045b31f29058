"""A file knows the flow that its model was trained with, and refuses another; as it knew no flow, it takes any."""

from __future__ import annotations

import copy

import pytest
import torch
import zuko
from torch import nn

import sdegen
from sdegen.interop.zuko import source
from sdegen.models.identity import as_tensor, from_tensor
from sdegen.nets import MLP

KINDS = "(Interpolant|Retimed).*"
WORDS = rf"{KINDS} there, {KINDS} here: the numbers of their sources, such as the weights of a flow"


def flow(seed=0, d=2, transforms=1):
    torch.manual_seed(seed)
    return zuko.flows.NSF(features=d, transforms=transforms, hidden_features=[8])


def model(law, wrap=lambda path: path):
    return sdegen.ScoreModel(MLP(2, 8, 1), wrap(sdegen.Interpolant(source=law)), "velocity")


class Own:
    """A law of the user's own, that holds these."""

    def __init__(self, **held):
        self.__dict__ |= held

    def sample(self, shape, generator=None):
        return torch.randn(shape, generator=generator)


def refused(saved, here, file):
    """By load with a path and by load_state_dict, before a weight is changed."""
    sdegen.save(file, saved)
    with pytest.raises(ValueError, match=rf"was saved with another path than the one given: {WORDS}"):
        sdegen.load(file, MLP(2, 8, 1), path=here.path)
    before = copy.deepcopy(here.net.state_dict())
    with pytest.raises(ValueError, match=rf"weights of another model, which differs in path \({WORDS}\)\. Give"):
        here.load_state_dict(saved.state_dict())
    assert all(torch.equal(before[name], value) for name, value in here.net.state_dict().items())


@pytest.mark.parametrize("wrap", [lambda path: path, sdegen.Retimed], ids=["itself", "retimed"])
def test_another_flow_is_refused_and_the_same_one_taken(tmp_path, wrap):
    file, saved, trained = tmp_path / "m.safetensors", model(source(flow()), wrap), flow()
    with torch.no_grad():
        list(trained.parameters())[-1].add_(1e-4)
    for other in (flow(1), flow(d=3), flow(transforms=2), trained):
        refused(saved, model(source(other), wrap), file)
    for same in (flow(), copy.deepcopy(saved.path.source.flow), flow().float()):
        again = model(source(same), wrap)
        assert sdegen.load(file, MLP(2, 8, 1), path=again.path).path is again.path
        again.load_state_dict(saved.state_dict())


def test_a_flow_whose_state_is_loaded_is_the_same(tmp_path):
    file, saved, other = tmp_path / "m.safetensors", model(source(flow())), flow(1)
    sdegen.save(file, saved)
    other.load_state_dict(saved.path.source.flow.state_dict())
    assert sdegen.load(file, MLP(2, 8, 1), path=sdegen.Interpolant(source=source(other))).predicts == "velocity"


def test_what_was_saved_before_the_flow_was_known_is_loaded():
    saved, here = model(source(flow())), model(source(flow(1)))
    known = from_tensor(saved.get_extra_state())
    assert {"source_size", "source_digest"} <= known["path"].keys()
    known["path"] = {name: known["path"][name] for name in ("path", "score", "source", "t", "alpha", "sigma")}
    here.load_state_dict({**saved.state_dict(), "_extra_state": as_tensor(known)})
    for name, weight in saved.net.state_dict().items():
        assert torch.equal(here.net.state_dict()[name], weight)


def test_sources_of_ones_own_are_known_by_their_networks_alone(tmp_path):
    file = tmp_path / "m.safetensors"
    bare = from_tensor(model(Own(rate=3.0, _last=torch.randn(2))).get_extra_state())
    assert not {"source_size", "source_digest"} & bare["path"].keys()
    sdegen.save(file, model(Own(rate=3.0)))
    for other in (Own(rate=4.0), Own(_last=torch.randn(2))):
        assert sdegen.load(file, MLP(2, 8, 1), path=sdegen.Interpolant(source=other)).path.source is other
    refused(model(Own(event_size=2)), model(Own(event_size=3)), file)
    refused(model(Own(_net=nn.Linear(2, 2))), model(Own(_net=nn.Linear(2, 2))), file)
    table = torch.linspace(0.1, 2, 500).exp()
    sdegen.save(file, model(Own(table=table)))
    rounded = Own(table=table.nextafter(torch.tensor(9.0)))  # as another machine might compute it
    assert sdegen.load(file, MLP(2, 8, 1), path=sdegen.Interpolant(source=rounded)).path.source is rounded


def test_a_source_without_numbers_yet_is_not_asked_for_them():
    for net in (nn.LazyLinear(2), nn.Linear(2, 2, device="meta")):
        known = from_tensor(model(Own(net=net)).get_extra_state())
        assert "source_digest" not in known["path"]
