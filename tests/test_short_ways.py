"""How many of the package's own frames lie between a verb and the network: a traceback a user can read."""

from __future__ import annotations

import functools
import os
import sys

import pytest
import torch
from problems import ring
from torch import nn

import sdegen

PACKAGE = os.path.dirname(sdegen.__file__) + os.sep
X = torch.zeros(3, 2)


class Depth(nn.Module):
    """A network that counts the package's frames above it, the most of all its calls."""

    def __init__(self, channels: int = 1):
        super().__init__()
        self.deepest, self.channels = 0, channels

    def forward(self, x, t):
        frame, own = sys._getframe(), 0
        while frame is not None:
            own += frame.f_code.co_filename.startswith(PACKAGE)
            frame = frame.f_back
        self.deepest = max(self.deepest, own)
        return torch.cat([0.1 * x] * self.channels, 1)


@functools.cache
def models() -> dict[str, sdegen.ScoreModel]:
    plain = sdegen.ScoreModel(Depth(), sdegen.DDPM.linear(20, 1e-3, 0.3), "v")
    learned = sdegen.ScoreModel(Depth(2), sdegen.DDPM.linear(20, 1e-3, 0.3), "v", learns_variance=True)
    return {"plain": plain, "learned": learned}


ENGINES = [
    *(sdegen.SDESolver(method, 4, eta=0.3) for method in sdegen.solvers.SDE_METHODS),
    sdegen.SDESolver("euler", adaptive=True, rtol=0.5, atol=0.5),
    sdegen.ODESolver("rk4", steps=4),
    sdegen.ODESolver("dopri5", rtol=1e-2),
]
MARCHES = [
    sdegen.Ancestral(4),
    sdegen.Ancestral(4, variance="optimal"),
    sdegen.Ancestral(4, variance="learned"),
    sdegen.DDIM(4, eta=0.5),
    sdegen.UniPC(4),
    sdegen.DPMSolver(4, eta=1.0),
    sdegen.Heun(4),
    sdegen.Churn(sdegen.Heun(4)),
    sdegen.Restart(sdegen.UniPC(4)),
    sdegen.ODESolver("dopri5", rtol=1e-2, steps_for="sample"),
]


def deepest(call, kind: str = "plain") -> int:
    model = models()[kind]
    model.net.deepest = 0
    call(model)
    assert model.net.deepest > 0
    return model.net.deepest


@pytest.mark.parametrize("solver", [*ENGINES, *MARCHES], ids=repr)
def test_from_solve_and_sample_to_the_network(solver):
    kind = "learned" if getattr(solver, "variance", "") == "learned" else "plain"
    most = 4 if solver in ENGINES else 5
    assert deepest(lambda m: sdegen.solve(m, X, solver), kind) <= most
    assert deepest(lambda m: sdegen.sample(m, (3, 2), solver), kind) <= most + 1


@pytest.mark.parametrize("solver", [s for s in ENGINES if s.solves_ode], ids=repr)
def test_from_log_prob_to_the_network(solver):
    for trace in ("exact", sdegen.Hutchinson(1)):
        assert deepest(lambda m, trace=trace: sdegen.log_likelihood(m, X, solver, trace=trace)) <= 5


def test_from_log_prob_by_a_sample_s_own_steps_to_the_network():
    for trace in ("exact", sdegen.Hutchinson(1)):
        assert deepest(lambda m, trace=trace: sdegen.log_likelihood(m, X, MARCHES[-1], trace=trace)) <= 6


def test_from_the_losses_and_bounds_to_the_network():
    assert deepest(lambda m: sdegen.loss(m, X)) <= 3
    assert deepest(lambda m: sdegen.vlb(m, X)) <= 7
    assert deepest(lambda m: sdegen.vlb(m, X, draws=4)) <= 7


def test_a_wrapper_adds_two():
    class Doubled(sdegen.Wrapped):
        def change(self, D, y, u, r, t, cond):
            return 2 * D(y, cond=cond)

    for solver, most in ((sdegen.SDESolver(steps=4), 4), (sdegen.DDIM(4), 5)):
        assert deepest(lambda m, s=solver: sdegen.solve(m.on(sdegen.CondOT()), X, s, u=(0.8, 0.1))) <= most + 2
        assert deepest(lambda m, s=solver: sdegen.solve(Doubled(m), X, s)) <= most + 2


def test_a_plain_model_needs_no_frame_of_its_own():
    """The count itself: a network asked directly is one frame below forward and predict."""
    assert deepest(lambda m: m(X, 0.5)) == 2
    assert ring().model(sdegen.VPSDE()).exact
