"""What a state says of its model survives arithmetic on all of its entries, and whatever else it became is refused."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from test_checkpoints import bits, network, same_weights
from torch import Tensor

import sdegen
from sdegen.models.identity import as_tensor, from_tensor

KEY = "_extra_state"
State = dict[str, Tensor]


def model(predicts="v", seed=1):
    return sdegen.ScoreModel(network(seed).float(), sdegen.VPSDE(), predicts)


def ema(decay: float, dtype: torch.dtype = torch.float32):
    def averaged(states: list[State]) -> State:
        found = {n: v.to(dtype) for n, v in states[0].items()}
        for _ in range(1000):
            found[KEY] = decay * found[KEY] + (1 - decay) * states[1][KEY].to(dtype)
        return {n: v if n == KEY else decay**1000 * v + (1 - decay**1000) * states[1][n] for n, v in found.items()}

    return averaged


def in_place(states: list[State]) -> State:
    found = {n: v.clone() for n, v in states[0].items()}
    for _ in range(100):
        for n, v in states[1].items():
            found[n].mul_(0.999).add_(v, alpha=0.001)
    return found


WAYS = {
    **{f"ema {decay}": ema(decay) for decay in (0.9, 0.99, 0.999, 0.9999)},
    "ema bfloat16": ema(0.9999, torch.bfloat16),
    "in place": in_place,
    "mean": lambda states: {n: sum(s[n] for s in states) / 3 for n in states[0]},
    "stacked": lambda states: {n: torch.stack([s[n] for s in states]).mean(0) for n in states[0]},
    "lerp": lambda states: {n: torch.lerp(v, states[1][n], 0.3) for n, v in states[0].items()},
    "noise": lambda states: {n: v + 1e-3 * v.norm() / v.numel() * torch.randn_like(v) for n, v in states[0].items()},
    "bfloat16": lambda states: {n: v.bfloat16() for n, v in states[0].items()},
    "half": lambda states: {n: v.half() for n, v in states[0].items()},
    "uint8": lambda states: {**states[0], KEY: states[0][KEY].to(torch.uint8)},
}


@pytest.mark.parametrize("name", WAYS)
def test_an_average_over_the_whole_state_still_says_what_it_is(name):
    """And so does a state with noise on it, or in another dtype."""
    found = WAYS[name]([model(seed=seed).state_dict() for seed in (1, 2, 3)])
    taken = model(seed=4)
    assert str(taken.load_state_dict(found)) == "<All keys matched successfully>"
    assert not same_weights(taken, model(seed=4))
    with pytest.raises(ValueError, match=r"weights of another model, which differs in predicts \(v there, eps here\)"):
        model("eps").load_state_dict(found)


def test_every_entry_is_a_tensor_of_real_numbers(tmp_path):
    state = model().state_dict()
    assert all(v.is_floating_point() and bool(v.norm().isfinite()) for v in state.values())
    save_file(state, tmp_path / "state.safetensors")
    torch.save(state, tmp_path / "state.pt")
    for found in (load_file(tmp_path / "state.safetensors"), torch.load(tmp_path / "state.pt", weights_only=True)):
        model("v", 2).load_state_dict(found)
        assert bits(found[KEY]) == bits(state[KEY])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_states_of_all_models_are_of_one_length_so_that_a_copy_in_place_is_told_too(tmp_path):
    """torch.distributed.checkpoint copies into the tensors of the model that reads."""
    chain = sdegen.DDPM.linear(1000)
    states = [
        sdegen.ScoreModel(network(), path, "eps", time=getattr(path, "index", None)).state_dict()[KEY]
        for path in (chain, sdegen.EDM(), sdegen.Retimed(chain, 2, -1), sdegen.CondOT(1e-5))
    ]
    assert {tuple(state.shape) for state in states} == {(2048,)}
    dcp.save(model().state_dict(), checkpoint_id=str(tmp_path), no_dist=True)
    for predicts in ("v", "eps"):
        theirs = model(predicts, 2)
        state = theirs.state_dict()
        dcp.load(state, checkpoint_id=str(tmp_path), no_dist=True)
        if predicts == "eps":
            with pytest.raises(ValueError, match=r"differs in predicts \(v there, eps here\)"):
                theirs.load_state_dict(state)
        else:
            theirs.load_state_dict(state)
            assert same_weights(theirs, model())


def said(**changes) -> Tensor:
    """The state of `model()` with other words in it."""
    return as_tensor({**from_tensor(model().state_dict()[KEY]), **changes})


def characters(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.float32)


MALFORMED = {
    "none": None,
    "array": np.zeros(3),
    "words": "v",
    "zeros": torch.zeros(2048),
    "nan": torch.full((2048,), torch.nan),
    "inf": torch.full((2048,), torch.inf),
    "garbage": torch.linspace(-300, 300, 2048),
    "empty": torch.zeros(0),
    "matrix": torch.ones(3, 3),
    "complex": torch.ones(3) * 1j,
    "list": characters("[]"),
    "deep": characters("[" * 100_000),
    "nothing": characters("{}"),
    "no schema": characters('{"predicts": "v", "schema": null}'),
    "no path": said(path=[]),
    "no curve": said(path={"t": 3}),
    "no numbers": said(path={"alpha": ["a"]}),
    "NaN": said(path={"sigma": [float("nan")]}),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_state_that_says_nothing_is_refused_in_one_sentence(name):
    theirs = model(seed=2)
    before = copy.deepcopy(theirs)
    with pytest.raises(ValueError, match=r"^The '_extra_state' of a ScoreModel is not what state_dict\(\) wrote"):
        theirs.load_state_dict({**model().state_dict(), KEY: MALFORMED[name]})
    assert same_weights(theirs, before)


LATER = {
    "schema": (said(schema=2), r"in schema 2, which"),
    "key": (said(frame="polar", guided=3), r"with 'frame', 'guided', which"),
    "key of a path": (said(path={"path": "Bent", "gamma": [1.0]}), r"with 'gamma', which"),
}


@pytest.mark.parametrize("name", LATER)
def test_a_state_of_a_later_version_is_refused_as_such(name):
    state, match = LATER[name]
    with pytest.raises(ValueError, match="This state was written by a later sdegen, " + match):
        model().load_state_dict({**model().state_dict(), KEY: state})


def test_a_state_that_says_less_is_compared_as_far_as_it_goes():
    known = from_tensor(model().state_dict()[KEY])
    assert known["schema"] == 1
    for name in known.keys() - {"predicts"}:
        fewer = characters(json.dumps({n: v for n, v in known.items() if n != name}))
        model(seed=2).load_state_dict({**model().state_dict(), KEY: fewer})
        with pytest.raises(ValueError, match=r"differs in predicts \(v there, eps here\)\."):
            model("eps").load_state_dict({**model().state_dict(), KEY: fewer})
    for name in known["path"]:
        fewer = said(path={n: v for n, v in known["path"].items() if n != name})
        model(seed=2).load_state_dict({**model().state_dict(), KEY: fewer})
    other = sdegen.ScoreModel(network(), sdegen.CosineVPSDE(), "v")
    with pytest.raises(ValueError, match=r"differs in path \(a path there, CosineVPSDE\(s=0.008\) here: alpha is"):
        other.load_state_dict({**other.state_dict(), KEY: said(path={"alpha": known["path"]["alpha"]})})
