"""The standard error of an estimated trace is the spread over repeats, and fresh probes make it small."""

from __future__ import annotations

import math

import pytest
import torch
from mixtures import TARGETS, anisotropic64
from problems import PATHS

import sdegen

VP = PATHS["vp"]


def spread(model, x, solver, repeats, probes=1, seed=0):
    """(RMS over points of the deviation over repeats, RMS of the reported error)."""
    ours = sdegen.log_likelihood(
        model,
        x.repeat_interleave(repeats, 0),
        solver,
        trace=sdegen.Hutchinson(probes),
        generator=torch.Generator().manual_seed(seed),
    )
    found = ours.log_prob.reshape(len(x), repeats).std(1).square().mean().sqrt()
    reported = None if ours.probe_error is None else float(ours.probe_error.square().mean().sqrt())
    return float(found), reported


@pytest.mark.parametrize(
    ("solver", "probes"),
    [
        (sdegen.Adams(40), 2),
        (sdegen.Adams(120), 4),
        (sdegen.AdamsUntil(first=40), 4),
        (sdegen.ODESolver("rk4", steps=20), 4),
    ],
    ids=["adams", "adams more", "until", "rk4"],
)
def test_the_reported_error_is_the_spread(solver, probes):
    """200 repeats at four points of an anisotropic target in 64 dimensions: within 15 %."""
    target = anisotropic64()
    x = target.sample(4, generator=torch.Generator().manual_seed(0))
    found, reported = spread(target.model(VP), x, solver, 200, probes)
    assert abs(reported / found - 1) < 0.15


def test_of_an_adaptive_solver_too():
    target = TARGETS["gmm16"]()
    x = target.sample(4, generator=torch.Generator().manual_seed(0))
    found, reported = spread(target.model(VP), x, sdegen.ODESolver("dopri8", rtol=1e-2), 200, 4)
    assert abs(reported / found - 1) < 0.15


@pytest.mark.parametrize("name", ["gmm16", pytest.param("mix64", marks=pytest.mark.slow)])
def test_fresh_probes_cut_the_spread_of_a_kept_one_ten_times(name):
    """121 traces, one probe each: against the one vector that adaptive steps keep."""
    target = TARGETS[name]()
    x = target.sample(6, generator=torch.Generator().manual_seed(0))
    kept, _ = spread(target.model(VP), x, sdegen.ODESolver("dopri8", rtol=1e-2), 60)
    fresh, unknown = spread(target.model(VP), x, sdegen.Adams(240), 60)
    assert unknown is None
    assert kept > 10 * fresh


def test_the_default_takes_fresh_ones_too():
    target = TARGETS["gmm16"]()
    x = target.sample(4, generator=torch.Generator().manual_seed(0))
    kept, _ = spread(target.model(VP), x, sdegen.ODESolver("dopri8", rtol=1e-2), 40, 2)
    fresh, _ = spread(target.model(VP), x, sdegen.AdamsUntil(), 40, 2)
    assert kept > 2.5 * fresh


def test_more_probes_narrow_it():
    """16 have a quarter of one's deviation: replicates are independent."""
    target = TARGETS["gmm16"]()
    x = target.sample(2, generator=torch.Generator().manual_seed(0))
    one, _ = spread(target.model(VP), x, sdegen.Adams(30), 200, 1)
    many, _ = spread(target.model(VP), x, sdegen.Adams(30), 200, 16)
    assert abs(one / many / 4 - 1) < 0.2


class Wide(torch.nn.Module):
    """dx/dt = x A(t) with a random matrix in 1024 dimensions: its trace is known, and z . A z is far from it."""

    def __init__(self, d=1024):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.A = torch.randn(d, d, generator=g) / d**0.5
        self.scales = torch.linspace(-1, 1, d).exp()

    def forward(self, x, t):
        return 0.1 * (x @ self.A * self.scales) * (1 + t[:, None])


def test_1024_dimensions():
    """Within four standard errors of the closed form, log p = log N(z) + 0.15 trace, by the default trace."""
    net = Wide()
    model, x = sdegen.vector_field(net), torch.randn(12, 1024)
    ours = sdegen.log_likelihood(model, x, sdegen.Adams(40), generator=torch.Generator().manual_seed(2))
    trace = 0.15 * float((net.A.diagonal() * net.scales).sum())
    true = torch.distributions.Normal(0.0, 1.0).log_prob(ours.latent).sum(1) - trace
    pulls = (ours.log_prob - true) / ours.probe_error
    assert float(pulls.abs().max()) < 6
    assert 0.4 < float(pulls.square().mean().sqrt()) < 2
    one = sdegen.log_prob(model, x[:1], sdegen.Adams(4), trace="exact")
    few = sdegen.log_likelihood(model, x[:1], sdegen.Adams(4), trace=sdegen.Hutchinson(64))
    assert abs(float(one - few.log_prob)) < 4 * float(few.probe_error)


@pytest.mark.parametrize("path", [pytest.param("vp", marks=pytest.mark.slow), "condot"])
def test_no_cut_off_with_variances_from_a_ten_thousandth_to_ten(path):
    """64 dimensions, where a stop at t = 1e-3 is wrong by nats: the closed form, to 1e-6."""
    path, variances = PATHS[path], torch.logspace(-4, 1, 64)
    target = sdegen.GaussianMixture(torch.zeros(1, 64), variances.sqrt()[None])
    x = target.sample(2)
    prior = target.marginal(path, path.t_noise)
    for solver, allowed in ((sdegen.AdamsUntil(1e-3), 1e-4), (sdegen.ODESolver("dopri8", rtol=1e-7), 1e-6)):
        ours = sdegen.log_prob(target.model(path), x, solver, prior=prior)
        assert float((ours - target.log_prob(x)).abs().max()) < allowed


@pytest.mark.slow
def test_no_cut_off_in_1024_dimensions():
    """The same in 1024, trace exact: 512 traces of 1024 products of a diagonal flow."""
    path, variances = PATHS["condot"], torch.logspace(-4, 1, 1024)
    target = sdegen.GaussianMixture(torch.zeros(1, 1024), variances.sqrt()[None])
    x = target.sample(1)
    ours = sdegen.log_likelihood(target.model(path), x, sdegen.Adams(320), trace=sdegen.Exact(64))
    error = (ours.log_prob - target.log_prob(x)).abs()
    assert float(error.max()) < 1e-2
    assert bool((error <= ours.solver_error).all())
    assert math.isfinite(float(ours.log_prob))
