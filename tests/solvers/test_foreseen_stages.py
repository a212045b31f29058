"""An adaptive solve plans the stages of an attempt before it, at torchdiffeq's own clocks, to the last digit."""

from __future__ import annotations

import pytest
import torch
from pretend import counted, put
from problems import OwnVP, ring

import sdegen
from sdegen.solvers import ODE_METHODS, ode

ADAPTIVE = [name for name, method in ODE_METHODS.items() if method.adaptive]


def solver(method, **options):
    return sdegen.ODESolver(method, rtol=1e-4 if ODE_METHODS[method].order >= 5 else 1e-2, **options)


def start(dtype=torch.float64):
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)


class Watched(sdegen.Wrapped):
    """Counts how often questions are prepared, and at how many clocks."""

    def __init__(self, model):
        super().__init__(model)
        self.plans: list[int] = []

    def change(self, D, y, u, r, t, cond):
        return D(y, cond=cond)

    def query(self, u, t, c, d, e):
        self.plans.append(len(u))
        return super().query(u, t, c, d, e)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("to", ["data", "noise"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_every_stage_is_foreseen(method, to, dtype):
    """Plans: one for the two ends, one for the probe of the first step, and at most one for each attempt."""
    model = Watched(ring().model(sdegen.VPSDE()))
    solution = sdegen.solve(model, start(dtype), solver(method), to=to)
    attempts = solution.accepted + solution.rejected
    assert len(model.plans) <= 2 + attempts
    assert sum(model.plans) <= 3 + solution.calls


class Singly(ode._AnyTime):
    """Plans a question when it comes."""

    def _foresee(self, clock, length):
        pass


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.VESDE(), sdegen.CondOT(), OwnVP()], ids=repr)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_numbers_are_those_of_questions_planned_when_they_come(monkeypatch, method, path, dtype):
    model, x = ring().model(path), start(dtype)
    foreseen = [sdegen.solve(model, x, solver(method), to=to, trajectory=True) for to in ("data", "noise")]
    monkeypatch.setattr(ode, "_AnyTime", Singly)
    for to, ours in zip(("data", "noise"), foreseen, strict=True):
        theirs = sdegen.solve(model, x, solver(method), to=to, trajectory=True)
        assert (ours.calls, ours.accepted, ours.rejected) == (theirs.calls, theirs.accepted, theirs.rejected)
        torch.testing.assert_close(ours.u, theirs.u, rtol=1e-12, atol=0)
        torch.testing.assert_close(ours.trajectory, theirs.trajectory, rtol=0, atol=50 * torch.finfo(dtype).eps)


def test_a_density_is_foreseen_too():
    model = Watched(ring().model(sdegen.VPSDE()))
    sdegen.log_prob(model, start(), sdegen.ODESolver("dopri8", rtol=1e-4))
    assert max(model.plans) > 6
    assert model.plans.count(1) <= 1


def test_a_clock_that_was_not_foreseen_is_planned_when_it_comes(monkeypatch):
    """As after a torchdiffeq with stages elsewhere: slower, and the same numbers."""
    model, x = ring().model(sdegen.VPSDE()), start()
    expected = sdegen.solve(model, x, solver("dopri5")).x
    whole = ode._AnyTime._foresee
    monkeypatch.setattr(ode._AnyTime, "_foresee", lambda self, clock, length: whole(self, clock, 0.9 * length))
    watched = Watched(model)
    found = sdegen.solve(watched, x, solver("dopri5"))
    assert watched.plans.count(1) > found.calls / 2
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-13)


def test_an_accelerator_is_asked_for_its_clock_once_an_attempt():
    """And for the length of the attempt, and whether the state is finite; every attempt moves one table of numbers."""
    model, x = put(ring().model(sdegen.VPSDE())), put(start())
    solution, waits = counted(lambda: sdegen.solve(model, x, solver("dopri5")))
    own = sum(n for place, n in waits.items() if place.startswith("sdegen.solvers.ode"))
    attempts = solution.accepted + solution.rejected
    assert own <= 2 * attempts + 5, dict(waits)
    assert sum(n for place, n in waits.items() if place.startswith("sdegen")) <= 4 * attempts + 12, dict(waits)
