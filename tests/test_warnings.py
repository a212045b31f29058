"""What is assumed in silence by others is said here: a start in mid-path, a network that stays in training mode."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from problems import ring
from torch import nn

import sdegen

SOLVER = sdegen.ODESolver("euler", steps=2)


def test_a_start_in_mid_path_without_a_state_says_what_it_assumes():
    model = ring().model(sdegen.VPSDE())
    with pytest.warns(UserWarning, match=r"u = 0\.3 .*alpha/sigma is 2\.33: give x_T"):
        sdegen.sample(model, (3, 2), SOLVER, u=(0.3, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sdegen.sample(model, (3, 2), SOLVER, u=(0.3, 0.0), x_T=torch.zeros(3, 2))
        sdegen.sample(model, (3, 2), SOLVER, u=(0.99, 0.0))
        sdegen.sample(ring().model(sdegen.CondOT()), (3, 2), SOLVER, u=(0.999, 0.0))
        sdegen.sample(model, (3, 2), SOLVER)
        sdegen.sample(ring().model(sdegen.VESDE(0.01, 3.0)), (3, 2), SOLVER)  # the path's own end, as its prior says


class Bare(nn.Module):
    """A network with dropout, callable in the usual order."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))

    def forward(self, x, t=None):
        return self.layers(x)


def in_a_closure(net):
    return lambda x, t: net(x, t)


class Holder:
    """An object that is called and holds the network; or whose method is."""

    def __init__(self, net):
        self.net, self.named = net, {"net": net}

    def __call__(self, x, t):
        return self.net(x)

    def ask(self, x, t):
        return self.net(x)


def through(net, x, t):
    return net(x)


def behind_an_object(net):
    holder = Holder(net)
    return lambda x, t: holder.net(x)


HIDING = {
    "holder": Holder,
    "method of a holder": lambda net: Holder(net).ask,
    "closure over a holder": behind_an_object,
    "argument of a partial": lambda net: functools.partial(through, net),
    "closure": in_a_closure,
    "partial": lambda net: functools.partial(in_a_closure(net)),
    "method": lambda net: net.forward,
}


@pytest.mark.parametrize("how", HIDING)
def test_a_module_hidden_in_a_function_is_warned_of_in_training_mode(how):
    net = Bare()
    model = sdegen.ScoreModel(HIDING[how](net), sdegen.VPSDE(), "v")
    for call in (
        lambda: sdegen.sample(model, (3, 2), sdegen.ODESolver("dopri5", rtol=0.5)),
        lambda: sdegen.solve(model, torch.zeros(3, 2), SOLVER),
        lambda: sdegen.vlb(model, torch.zeros(3, 2), steps=3),
    ):
        with pytest.warns(UserWarning, match=r"hides .*Dropout is in training mode"):
            call()
    net.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sdegen.sample(model, (3, 2), SOLVER)


def test_a_module_in_sight_is_switched_without_a_word():
    net = Bare()
    model = sdegen.ScoreModel(net, sdegen.VPSDE(), "v")
    x = torch.randn(4, 2)
    ends = [sdegen.solve(model, x, SOLVER).x for _ in range(2)]
    assert torch.equal(*ends)
    assert all(module.training for module in net.modules())
    sdegen.sample(sdegen.ScoreModel(nn.Sequential(nn.Identity()).forward, sdegen.VPSDE()), (0, 2), SOLVER)
