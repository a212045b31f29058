"""Grids: knots, clocks and the gain of a network's error that stretches them."""

from __future__ import annotations

import math

import pytest
import torch
from problems import PATHS, ring
from torch import nn

import sdegen
from sdegen.solvers.grids import lay

GRIDS = (
    sdegen.PowerGrid(1),
    sdegen.PowerGrid(2.5),
    sdegen.PowerGrid(2, "t"),
    sdegen.KarrasGrid(),
    sdegen.KarrasGrid(math.inf),
    sdegen.StretchedGrid(),
    sdegen.StretchedGrid(0.5, gain=1.5),
)


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("path", PATHS)
def test_knots_run_between_the_ends_and_clocks_invert(path, grid):
    path = PATHS[path]
    model = sdegen.ScoreModel(ring().model(path).eps, path)
    high, low = min(path.ends[1], 0.99), max(path.ends[0], 0.01)
    for steps in (1, 2, 7):
        laid = lay(grid, model, high, low, steps)
        assert len(laid.u) == len(laid.t) == steps + 1
        assert (laid.u[0], laid.u[-1]) == (high, low)
        assert (torch.diff(laid.u) < 0).all()
        torch.testing.assert_close(path.clock(laid.t), laid.u, rtol=1e-9, atol=1e-9)
        u = torch.linspace(low, high, 101)
        torch.testing.assert_close(laid.clock.u(laid.clock.s(u)), u, rtol=1e-9, atol=1e-9)
        back = lay(grid, model, low, high, steps)
        assert torch.equal(back.u.flip(0), laid.u)


def test_karras_is_uniform_in_the_power_of_sigma_over_alpha():
    model = ring().model(sdegen.VPSDE())
    high = model.path.ends[1]
    for rho in (7.0, 3.0, math.inf):
        u = lay(sdegen.KarrasGrid(rho, sigma_min=0.01), model, high, 0.0, 10).u
        ratio = u / (1 - u)
        assert ratio[-1] == 0
        assert ratio[-2] == pytest.approx(0.01, rel=1e-12)
        stretched = ratio[:-1].log() if rho == math.inf else ratio[:-1] ** (1 / rho)
        gaps = torch.diff(stretched)
        torch.testing.assert_close(gaps, gaps[0].expand_as(gaps), rtol=1e-8, atol=1e-10)


def test_an_exact_model_stretches_by_a_power_alone():
    """ds/du = u^-p: knots uniform in u^(1-p), but for half steps at both ends."""
    model, steps = ring().model(sdegen.CondOT()), 6
    u = lay(sdegen.StretchedGrid(0.3), model, 1.0, 0.0, steps).u
    s = torch.tensor([5.0, 4.5, 3.5, 2.5, 1.5, 0.5, 0.0]) / 5
    torch.testing.assert_close(u, s ** (1 / 0.7), rtol=1e-12, atol=1e-14)


def test_a_network_stretches_where_its_error_grows():
    """Between knots the integral of u^-p A(max(u, 1/2))^gain is the same, halved at the ends."""
    path = sdegen.VPSDE()
    model = sdegen.ScoreModel(nn.Identity(), path)
    u = lay(sdegen.StretchedGrid(0.3, gain=0.6), model, path.ends[1], 0.0, 8).u
    q = torch.linspace(0, path.ends[1] ** 0.7, 2_000_001)
    density = (1 / (1 - (q ** (1 / 0.7)).clamp(min=0.5))) ** 0.6
    total = torch.cat([q.new_zeros(1), torch.cumsum(0.5 * (density[1:] + density[:-1]) * torch.diff(q), 0)])
    s = total[torch.searchsorted(q, u**0.7).clamp(max=len(q) - 1)] / total[-1]
    torch.testing.assert_close(s, torch.tensor([7.0, 6.5, 5.5, 4.5, 3.5, 2.5, 1.5, 0.5, 0.0]) / 7, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["eps", "score", "data", "velocity", "v"])
@pytest.mark.parametrize("path", ["vp", "condot", "ve", "subvp"])
def test_the_gain_is_how_an_error_enters_the_slope(path, name):
    """A change of a x + b eps by one moves eps_hat - x_hat by the gain over sqrt(a^2 + b^2)."""
    path = PATHS[path]
    u, delta = torch.tensor([0.2, 0.5, 0.9]), 1e-3
    t, r = path.time(u), path.scale(u)
    x, one = torch.zeros(3, 1), torch.ones(3)
    ends = [sdegen.ScoreModel(lambda x_t, t, c=c: torch.full_like(x_t, c), path, name) for c in (0.0, delta)]
    slopes = [m.estimate(x, m.plan(x, u, t, -one, one).rows(slice(None), x), {})[:, 0] for m in ends]
    a, b, m = sdegen.models.base.prediction_row(name, path, t, (1 - u) * r, u * r)
    moved = (slopes[1] - slopes[0]).abs() / (m.abs() * delta) * torch.hypot(a, b)
    torch.testing.assert_close(ends[0].gain(u), moved, rtol=1e-9, atol=1e-9)


def test_a_moved_model_asks_its_network_and_an_exact_one_has_gain_one():
    net = sdegen.ScoreModel(nn.Identity(), sdegen.VPSDE())
    u = torch.linspace(0.01, 0.99, 9)
    torch.testing.assert_close(net.on(sdegen.CondOT()).gain(u), 1 / (1 - u), rtol=1e-12, atol=0)
    assert torch.equal(ring().model(sdegen.VPSDE()).gain(u), torch.ones(9))


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: sdegen.StretchedGrid(1), ValueError, "it is 1"),
        (lambda: sdegen.StretchedGrid(-0.1), ValueError, "-0.1"),
        (lambda: sdegen.StretchedGrid(gain=-1), ValueError, "-1"),
        (lambda: sdegen.StretchedGrid("0.3"), TypeError, "'0.3'"),
        (lambda: sdegen.KarrasGrid(0), ValueError, "0"),
        (lambda: sdegen.KarrasGrid(7, 0), ValueError, "sigma_min"),
        (lambda: sdegen.KarrasGrid(math.nan), ValueError, "nan"),
    ],
)
def test_options_are_refused_in_a_sentence(make, kind, words):
    with pytest.raises(kind, match=words):
        make()
