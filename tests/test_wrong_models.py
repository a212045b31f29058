"""What is no model, path or solver is named, and what to give instead is said: before anything is called."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sdegen
from sdegen.models.base import instead_of_model

PATH, SHAPE = sdegen.CondOT(), (3, 2)


class Net(nn.Module):
    """Never to be called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        raise AssertionError("called")


class DistributedDataParallel(nn.parallel.DistributedDataParallel):
    """The real one wants a process group; this holds a module as it does."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


def model():
    return sdegen.ScoreModel(Net(), PATH, "velocity")


def compiled():
    return torch.compile(model(), backend="eager")


SAID = {
    "DataParallel": (lambda: nn.DataParallel(model()), "DataParallel around one: pass model.module"),
    "DDP": (lambda: DistributedDataParallel(model()), "DistributedDataParallel around one: pass model.module"),
    "EMA": (lambda: torch.optim.swa_utils.AveragedModel(model()), "AveragedModel around one: pass model.module"),
    "compiled": (compiled, "OptimizedModule around one: pass model._orig_mod"),
    "two": (lambda: nn.DataParallel(compiled()), "DataParallel around one: pass model.module._orig_mod"),
    "network": (Net, "the network Net: give ScoreModel(net, path, predicts)"),
    "wrapped network": (
        lambda: nn.DataParallel(Net()),
        "the network DataParallel: give ScoreModel(net, path, predicts)",
    ),
    "class": (lambda: sdegen.ScoreModel, "the class ScoreModel itself: call it, ScoreModel(...)"),
    "number": (lambda: 3, "3"),
}
X = torch.zeros(SHAPE)
VERBS = {
    "sample": lambda m: sdegen.sample(m, SHAPE, sdegen.Adams(4)),
    "solve": lambda m: sdegen.solve(m, X, sdegen.Adams(4)),
    "encode": lambda m: sdegen.encode(m, X),
    "decode": lambda m: sdegen.decode(m, X),
    "log_prob": lambda m: sdegen.log_prob(m, X),
    "log_likelihood": lambda m: sdegen.log_likelihood(m, X),
    "vlb": lambda m: sdegen.vlb(m, X),
    "iwae": lambda m: sdegen.iwae(m, X, samples=2),
    "continuous_vlb": lambda m: sdegen.continuous_vlb(m, X),
    "evaluate": lambda m: sdegen.evaluate(m, X),
    "compare": lambda m: sdegen.compare(m, {"Adams": sdegen.Adams}, x_T=X),
    "tune": lambda m: sdegen.tune(m, sdegen.Adams(4), x_T=X),
    "straightness": lambda m: sdegen.straightness(m, X),
}


def sentence(error: pytest.ExceptionInfo) -> str:
    assert error.type is TypeError
    return str(error.value)


@pytest.mark.parametrize("what", SAID)
def test_what_stands_in_its_place_is_named(what):
    make, says = SAID[what]
    whole = f"model must be a ScoreModel or the .model(path) of an exact target, and it is {says}."
    with pytest.raises(TypeError) as error:
        sdegen.sample(make(), SHAPE, sdegen.Adams(4))
    assert sentence(error) == whole
    with pytest.raises(TypeError) as error:
        sdegen.Clipped(make(), -1, 1)
    assert sentence(error) == f"A wrapper takes a model, such as a ScoreModel, and it was given {says}."


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_so(verb):
    with pytest.raises(TypeError) as error:
        VERBS[verb](nn.DataParallel(model()))
    assert sentence(error).endswith("and it is DataParallel around one: pass model.module.")


@pytest.mark.parametrize(("name", "loss"), [("loss", sdegen.loss), ("hybrid_loss", sdegen.hybrid_loss)])
@pytest.mark.parametrize("what", [name for name in SAID if name != "DDP"])
def test_what_cannot_be_trained_is_named(what, name, loss):
    make, says = SAID[what]
    with pytest.raises(TypeError) as error:
        loss(make(), X)
    assert sentence(error) == f"{name} needs a ScoreModel, whose network it trains, and model is {says}."


def test_gradients_are_averaged_by_the_network_and_a_wrapper_is_called_by_its_name():
    with pytest.raises(TypeError) as error:
        sdegen.loss(DistributedDataParallel(model()), X)
    assert sentence(error).endswith(
        "model is DistributedDataParallel around one: pass model.module, and to average gradients wrap the network, "
        "ScoreModel(DistributedDataParallel(net), path)."
    )
    with pytest.raises(TypeError, match=r"whose network it trains, and model is Clipped\.$"):
        sdegen.loss(sdegen.Clipped(model(), -1, 1), X)


def test_a_function_is_told_what_it_lacks():
    def velocity(x, t):
        return x

    assert instead_of_model(velocity).endswith(
        "velocity at " + hex(id(velocity)) + ">: give ScoreModel(net, path, predicts)"
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda: sdegen.ScoreModel(Net(), sdegen.VPSDE),
        lambda: sdegen.Gaussian(torch.zeros(2), 1.0).model(sdegen.VPSDE),
        lambda: model().on(sdegen.VPSDE),
        lambda: sdegen.Retimed(sdegen.VPSDE, 0, 2),
        lambda: sdegen.DDPM.from_path(sdegen.VPSDE, 10),
    ],
)
def test_a_class_is_no_path(ask):
    with pytest.raises(TypeError, match=r"^path must be a GaussianPath such as .* the class VPSDE itself: call it, "):
        ask()


def test_a_class_is_no_solver():
    m = model()
    with pytest.raises(TypeError, match=r"^solver must be .* it is the class Adams itself: call it, Adams\(...\)\.$"):
        sdegen.sample(m, SHAPE, sdegen.Adams)
    with pytest.raises(TypeError, match=r"not the class Adams itself: call it, Adams\(...\)\.$"):
        sdegen.encode(m, X, sdegen.Adams)


@pytest.mark.parametrize("x", [np.zeros(SHAPE), [[0.0, 0.0]], ((0.0, 0.0),)])
@pytest.mark.parametrize("verb", ["loss", "log_prob", "encode", "eps", "evaluate"])
def test_data_that_are_no_tensor_are_told_how_to_become_one(verb, x):
    m = model()
    ask = {"eps": lambda: m.eps(x, 0.5)}.get(verb, lambda: getattr(sdegen, verb)(m, x))
    name = {"eps": "x_t", "evaluate": "data"}.get(verb, "x")
    with pytest.raises(TypeError) as error:
        ask()
    says = f"{name} must be a tensor of shape (B, ...), and it is {type(x).__name__}: pass torch.as_tensor({name})."
    assert sentence(error) == says
