"""Paths in the clock of flow matching: slopes, clocks, sources between data and data."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from flows import FLOWS, OT, VP, EightGaussians
from problems import OwnFlow, ring, start_law
from torch import Tensor

import sdegen
from sdegen.datasets import eight_gaussians


@pytest.mark.parametrize("path", FLOWS.values(), ids=FLOWS)
def test_slopes_clock_and_scale_of_the_flows(path):
    t = torch.linspace(path.t_noise, path.t_data, 301)[1:-1].requires_grad_()
    slopes = path.slopes(t)
    for value, given in ((path.alpha(t), slopes.alpha), (path.sigma(t), slopes.sigma)):
        (true,) = torch.autograd.grad(value.sum(), t)
        torch.testing.assert_close(given, true, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(slopes.variance, 2 * path.sigma(t) * slopes.sigma, rtol=1e-11, atol=1e-12)
    u = torch.linspace(*path.ends, 301)
    torch.testing.assert_close(path.clock(path.time(u)), u, rtol=0, atol=1e-13)
    torch.testing.assert_close(path.alpha(path.time(u)) + path.sigma(path.time(u)), path.scale(u), rtol=1e-13, atol=0)
    assert path.alpha(path.t_data) == 1
    if path.ends[1] == 1:
        assert (float(path.alpha(path.t_noise)), float(path.sigma(path.t_noise))) == (0, 1)


def test_the_trigonometric_flow_is_the_one_a_user_would_write():
    own, given, t = OwnFlow(), sdegen.Trigonometric(), torch.linspace(0, 1, 101)
    torch.testing.assert_close(given.alpha(t), own.alpha(t), rtol=0, atol=1e-15)
    torch.testing.assert_close(given.sigma(t), own.sigma(t), rtol=0, atol=1e-15)


def test_data_to_data_has_no_score():
    path = sdegen.Interpolant(OT, EightGaussians())
    calls = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return torch.zeros_like(x)

    model = sdegen.ScoreModel(net, path, "velocity")
    x = torch.randn(4, 2)
    for refused in (
        lambda: model.score(x, 0.5),
        lambda: sdegen.ScoreModel(net, path, "score"),
        lambda: sdegen.sample(model, (4, 2), sdegen.SDESolver("euler", 5)),
        lambda: sdegen.sample(model, (4, 2), sdegen.Ancestral(5)),
        lambda: sdegen.sample(model, (4, 2), sdegen.DDIM(5, eta=0.5)),
        lambda: sdegen.sample(model.on(sdegen.Trigonometric()), (4, 2), sdegen.SDESolver("euler", 5), x_T=x),
        lambda: sdegen.vlb(model, x, steps=5),
        lambda: sdegen.GaussianMixture([[0.0, 0.0]], 1.0).model(path),
        lambda: sdegen.sample(model, (4, 2), sdegen.ODESolver(), u=(0.5, 0.0)),
        lambda: sdegen.loss(sdegen.ScoreModel(net, OT, "velocity"), x, coupling=sdegen.OptimalTransport()),
        lambda: sdegen.Interpolant(VP, EightGaussians()),
    ):
        with pytest.raises(ValueError, match=r"\."):
            refused()
    with pytest.raises(TypeError, match="log_prob"):
        sdegen.log_prob(model, x)
    assert not calls
    g = torch.Generator().manual_seed(1)
    start = eight_gaussians(4, generator=torch.Generator().manual_seed(1))
    still = sdegen.sample(model, (4, 2), sdegen.ODESolver("euler", steps=3), generator=g, dtype=torch.float64)
    torch.testing.assert_close(still, start, rtol=0, atol=1e-14)
    assert torch.equal(sdegen.sample(model, (4, 2), sdegen.DDIM(3), x_T=x, dtype=torch.float64), x)


# What must not happen quietly


def test_bad_flows_are_refused():
    for refused, kind in (
        (lambda: sdegen.Retimed(OT, 1.0, 1.0), ValueError),
        (lambda: sdegen.Retimed(OT, math.nan, 1.0), ValueError),
        (lambda: sdegen.Retimed("condot", 0.0, 1.0), TypeError),
        (lambda: sdegen.Interpolant("condot"), TypeError),
        (lambda: sdegen.vector_field(3), TypeError),
        (lambda: sdegen.straightness(ring().model(OT), torch.randn(3, 2), sdegen.SDESolver("euler", 5)), TypeError),
    ):
        with pytest.raises(kind, match=r"\."):
            refused()


def test_knots_of_a_short_flow_are_where_they_should_be():
    """Steps of a retimed path fall on the same clocks as the path's own."""
    still = sdegen.ODESolver("euler", steps=5)
    models = [sdegen.ScoreModel(lambda x, t: 0 * x, p, "v") for p in FLOWS.values()]
    seen = [sdegen.solve(model, torch.zeros(1, 2), still) for model in models]
    for (one, other), (p, q) in zip(pairwise(seen), pairwise(FLOWS.values()), strict=True):
        if p.ends == q.ends:
            torch.testing.assert_close(one.u, other.u, rtol=0, atol=1e-15)


def test_start_law_helper_sees_the_flow_end():
    assert start_law(sdegen.Gaussian([0.8], 0.5).marginal(OT, OT.t_noise)) == pytest.approx((0, 1), abs=1e-12)


def test_a_mixture_is_a_source_like_any():
    source = sdegen.Gaussian([5.0, 5.0], 0.1)
    path = sdegen.Interpolant(OT, source)
    still = sdegen.ScoreModel(lambda x, t: 0 * x, path, "velocity")
    assert float(sdegen.sample(still, (50, 2), sdegen.ODESolver("euler", steps=2)).mean()) == pytest.approx(5, abs=0.1)
    x_t, z = path.perturb(torch.zeros(50, 2), 0.25)
    torch.testing.assert_close(x_t, 0.75 * z)
    assert float(z.mean()) == pytest.approx(5, abs=0.1)
    assert float(sdegen.loss(still, torch.zeros(50, 2))) == pytest.approx(25, abs=1)
    for refused in (lambda: path.transition(0.9, 0.5), lambda: path.bridge(0.9, 0.5)):
        with pytest.raises(ValueError, match="no transition kernels"):
            refused()
    for option in ({"weighting": sdegen.LikelihoodWeighting()}, {"times": sdegen.LikelihoodTimes()}):
        with pytest.raises(ValueError, match="score"):
            sdegen.loss(still, torch.zeros(50, 2), **option)
    with pytest.raises(TypeError, match="source must have"):
        sdegen.Interpolant(OT, "noise")

    class Density:
        def log_prob(self, x):
            return -x.square().sum(1)

    scored = sdegen.ScoreModel(lambda x, t: 0 * x, sdegen.Interpolant(OT, Density()), "velocity")
    for refused in (
        lambda: sdegen.sample(scored, (3, 2), sdegen.ODESolver("euler", steps=2)),
        lambda: sdegen.loss(scored, torch.zeros(3, 2)),
    ):
        with pytest.raises(ValueError, match="no method sample"):
            refused()
    assert sdegen.log_prob(scored, torch.ones(3, 2)).tolist() == pytest.approx([-2.0] * 3)
