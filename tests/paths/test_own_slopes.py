"""Slopes by autograd under every mode of it, and checks that know the span of a path."""

from __future__ import annotations

import pytest
import torch
from problems import OwnFlow, OwnVP

import sdegen

MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("make", [OwnVP, OwnFlow])
def test_slopes_need_no_gradients_around_them(make, mode):
    fractions = torch.linspace(0.05, 0.95, 7)
    outside = make().slopes(fractions)
    with mode():
        path = make()
        assert 0 <= path.ends[0] < path.ends[1] <= 1
        inside = path.slopes(fractions.clone())
    assert all(torch.equal(a.clone(), b) for a, b in zip(inside, outside, strict=True))


class Slow(sdegen.GaussianPath):
    """CondOT over a time of any length."""

    def __init__(self, span):
        self.t_noise = span

    def alpha(self, t):
        return 1 - t / self.t_noise

    def sigma(self, t):
        return t / self.t_noise


@pytest.mark.parametrize("span", [1e-6, 1.0, 1e6])
def test_contradictions_are_measured_by_the_span(span):
    class WrongSlopes(Slow):
        def slopes(self, t):
            a, s, v = super().slopes(t)
            return a, 1.01 * s, v

    class WrongTime(Slow):
        def time(self, u):
            return u * self.t_noise * 1.01

    assert Slow(span).ends == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"slopes\(t\).sigma"):
        _ = WrongSlopes(span).ends
    with pytest.raises(ValueError, match=r"time\(clock\(t\)\).*must be t"):
        _ = WrongTime(span).ends
