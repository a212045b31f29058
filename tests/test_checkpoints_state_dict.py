"""Weights know what they were trained to answer, in every way that torch carries them about."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from problems import OwnVP
from safetensors.torch import load_model, save_model
from test_checkpoints import bits, network, same_weights
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sdegen


def model(predicts="v", path=None, seed=1, **options):
    return sdegen.ScoreModel(network(seed), path or sdegen.VPSDE(), predicts, **options)


CHAIN = sdegen.DDPM.linear(20, 1e-3, 0.3)
OTHERS = {
    "predicts": (model("eps"), r"predicts \(v there, eps here\)\. Give ScoreModel the same arguments; to start from"),
    "path": (
        model(path=sdegen.CosineVPSDE()),
        r"path \(VPSDE\(.*\) there, CosineVPSDE\(.*\) here: alpha is .* noise\)",
    ),
    "both": (
        model("eps", sdegen.CosineVPSDE()),
        r"predicts \(v there, eps here\); path \(VPSDE.* CosineVPSDE.*\)\. Give",
    ),
    "rate": (model(path=sdegen.VPSDE(0.1, 20.01)), r"path \(VPSDE\(.*20.0\) there, VPSDE\(.*20.01\) here: alpha is"),
    "pairs": (model(path=sdegen.Interpolant(sdegen.VPSDE())), r"path \(VPSDE.* there, Interpolant.* here: their sou"),
    "variance": (model(learns_variance=True), r"learns_variance \(False there, True here\)"),
    "time": (model(time=lambda t: 1000 * t), r"time \(none there, a callable here\)"),
    "units": (model(standardize=sdegen.Standardize(0.0, 2.0)), r"standardize \(False there, True here\)"),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_weights_of_another_model_are_refused_before_any_is_loaded(name, strict):
    other, match = OTHERS[name]
    before = copy.deepcopy(other)
    with pytest.raises(ValueError, match="weights of another model, which differs in .*" + match):
        other.load_state_dict(model(seed=2).state_dict(), strict=strict)
    assert same_weights(other, before)


class Trained(sdegen.GaussianPath, nn.Module):
    """A path whose rate is trained, a module: its numbers are weights too."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def alpha(self, t):
        return torch.exp(-self.rate * t**2)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-2 * self.rate * t**2))


def test_a_path_that_trains_is_loaded_with_the_weights(tmp_path):
    ours = model(path=Trained(4.0))
    theirs = model(path=Trained(5.0), seed=2)
    assert str(theirs.load_state_dict(ours.state_dict())) == "<All keys matched successfully>"
    assert theirs.path.rate.item() == 4.0
    sdegen.save(tmp_path / "m.safetensors", ours)
    assert sdegen.load(tmp_path / "m.safetensors", network(2), path=Trained(5.0)).path.rate.item() == 4.0


@pytest.mark.parametrize("path", [sdegen.VESDE(), sdegen.EDM(), CHAIN, OwnVP(), sdegen.Retimed(CHAIN, 2, -1)], ids=str)
def test_the_same_model_takes_them(path):
    ours, theirs = model("eps", path), model("eps", copy.deepcopy(path), 2)
    assert str(theirs.load_state_dict(ours.state_dict())) == "<All keys matched successfully>"
    assert same_weights(ours, theirs)


def test_a_time_of_the_users_own_is_taken_for_another():
    """The path's index, and the same rounded by hand: nobody can compare two functions."""
    theirs = model(path=CHAIN, time=lambda t: CHAIN.index(t).round(), seed=2)
    theirs.load_state_dict(model(path=CHAIN, time=CHAIN.index).state_dict())
    with pytest.raises(ValueError, match=r"differs in time \(a callable there, none here\)"):
        model(path=CHAIN).load_state_dict(theirs.state_dict())


def test_a_state_from_before_is_loaded_after_a_warning():
    old = model().state_dict()
    del old["_extra_state"]
    theirs = model("eps", seed=2)
    with pytest.warns(
        UserWarning, match=r"no '_extra_state', so that nobody can tell whether its weights predict 'eps' on"
    ):
        assert str(theirs.load_state_dict(old)) == "<All keys matched successfully>"
    assert same_weights(model(), theirs)
    inside = nn.ModuleDict({"flow": model("eps", seed=2)})
    with pytest.warns(UserWarning, match=r"no 'flow._extra_state'"):
        inside.load_state_dict({f"flow.{name}": value for name, value in old.items()})
    del old["net.last.bias"]
    model("eps", seed=2).load_state_dict(old, strict=False)  # a part of a model is loaded as before
    with pytest.raises(RuntimeError, match="Missing key"):
        model().load_state_dict({"_extra_state": model().state_dict()["_extra_state"]})


def carried(name, ours, theirs, folder):
    """Load `ours` into `theirs` in one of the ways of the field."""
    if name == "torch.save":
        held = io.BytesIO()
        torch.save(ours.state_dict(), held)
        held.seek(0)
        theirs.load_state_dict(torch.load(held, weights_only=True))
    elif name == "assign":
        theirs.load_state_dict(ours.state_dict(), assign=True)
    elif name == "half":
        theirs.half().load_state_dict({n: v.half() for n, v in ours.half().state_dict().items()})
    elif name == "safetensors":
        save_model(ours, str(folder / "m.safetensors"))
        load_model(theirs, str(folder / "m.safetensors"))
    elif name == "compiled":
        compiled = (torch.compile(each, backend="eager") for each in (theirs, ours))
        next(compiled).load_state_dict(next(compiled).state_dict())
    elif name == "averaged":
        AveragedModel(theirs, use_buffers=True).module.load_state_dict(AveragedModel(ours).module.state_dict())
        theirs.load_state_dict({n[7:]: v for n, v in AveragedModel(ours).state_dict().items() if n != "n_averaged"})
    elif name == "distributed.checkpoint":
        set_model_state_dict(theirs, get_model_state_dict(ours))
    else:
        accelerate = pytest.importorskip("accelerate")
        accelerator = accelerate.Accelerator(cpu=True)
        prepared = accelerator.prepare(ours)
        accelerator.save_state(str(folder / "state"))
        with torch.no_grad():
            for p in prepared.parameters():
                p.zero_()
        accelerator.load_state(str(folder / "state"))
        theirs.load_state_dict(accelerator.get_state_dict(prepared))
        accelerator.free_memory()


WAYS = ["torch.save", "assign", "half", "safetensors", "compiled", "averaged", "distributed.checkpoint"]


@pytest.mark.filterwarnings("ignore:.*pin_memory")
@pytest.mark.parametrize("name", [*WAYS, pytest.param("accelerate", marks=pytest.mark.slow)])
def test_every_way_of_the_field_carries_them(name, tmp_path):
    ours, theirs = model(), model(seed=2)
    carried(name, ours, theirs, tmp_path)
    assert same_weights(ours, theirs)
    if name != "accelerate":
        with pytest.raises(ValueError, match=r"differs in predicts \(v there, eps here\)"):
            carried(name, model(), model("eps", seed=2), tmp_path)


def test_averaging_goes_on_as_before():
    ours = model()
    average = AveragedModel(ours, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(ours)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(1)
    average.update_parameters(ours)
    for p, q in zip(average.module.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.9)
    again = copy.deepcopy(average)
    again.load_state_dict(average.state_dict())
    assert bits(again.module.state_dict()["_extra_state"]) == bits(ours.state_dict()["_extra_state"])


def test_what_they_say_is_json_in_numbers():
    state = model().state_dict()
    said = bytes(map(int, state["_extra_state"].tolist())).decode()
    assert next(iter(state)) == "_extra_state"
    assert said.startswith(
        '{"schema": 1, "predicts": "v", "learns_variance": false, "time": "none", "standardize": false, "sigma_data"'
    )
    with torch.device("meta"):
        assert model().state_dict()["_extra_state"].device.type == "cpu"
