"""The two right-hand sides: one trajectory for all paths, marginals kept for every noise profile, divergences."""

from __future__ import annotations

import math

import pytest
import torch
from problems import PATHS, OwnFlow, OwnVP, affine_law, mixture64, ring
from torch import nn

import sdegen
from sdegen.solvers.base import Problem

ALL = {**PATHS, "own vp": OwnVP(), "own flow": OwnFlow()}

SOLVERS = {
    "ode rk4": sdegen.ODESolver("rk4", steps=7),
    "ode dopri5": sdegen.ODESolver("dopri5", rtol=1e-3),
    "sde euler": sdegen.SDESolver("euler", 9),
    "sde srk": sdegen.SDESolver("srk", 9, eta=0.5),
    "sde heun": sdegen.SDESolver("heun", 9),
    "sde w": sdegen.SDESolver("midpoint", 9, w=lambda u: 1.3 * u.sqrt()),
    "ancestral": sdegen.Ancestral(9, variance="posterior", grid=sdegen.PowerGrid(2)),
    "dpm-solver": sdegen.DPMSolver(9, 3),
    "sde-dpm-solver": sdegen.DPMSolver(9, eta=1.0),
    "unipc": sdegen.UniPC(9, 3),
    "deis": sdegen.DEIS(9),
    "sa-solver": sdegen.SASolver(9),
    "heun": sdegen.Heun(9, grid=sdegen.PowerGrid(2)),
    "churn": sdegen.Churn(sdegen.Heun(9, grid=sdegen.PowerGrid(2)), 2.0),
    "langevin": sdegen.Langevin(sdegen.UniPC(9), 0.1),
    "restart": sdegen.Restart(sdegen.DPMSolver(9), 0.2, 0.6, times=2),
}


@pytest.mark.parametrize("asked", ["exact", "eps", "v"])
@pytest.mark.parametrize("name", SOLVERS)
def test_all_paths_give_one_trajectory_in_straight_coordinates(name, asked):
    """From the same y at the same u, with the same noise, y = x/r is the same on every path, to rounding.

    As a network for "eps" or "v" the exact model is asked at (x_t, t), so that r(u) and t(u) count too.
    """
    target, solver, u = ring(), SOLVERS[name], (0.9, 0.02)
    y = torch.randn(16, 2)
    noise = None
    if not solver.solves_ode:
        noise = torch.randn((40, 2, 16, 2) if getattr(solver, "method", "") == "srk" else (40, 16, 2)).__getitem__
    ends = []
    for path in ALL.values():
        start, end = path.scale(u[0]), path.scale(u[1])
        model = target.model(path)
        model = model if asked == "exact" else sdegen.ScoreModel(getattr(model, asked), path, asked)
        ends.append(sdegen.solve(model, start * y, solver, u=u, noise=noise).x / end)
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-12, atol=1e-12 if asked == "exact" else 2e-12)


def test_a_real_network_moves_alike_through_any_prediction():
    """The trajectory depends on the estimate, not on how the network writes it."""
    path = sdegen.VPSDE()
    target = ring().model(path)
    x = torch.randn(8, 2)
    noise = torch.randn(12, 8, 2)
    ends = [
        sdegen.solve(
            sdegen.ScoreModel(getattr(target, name), path, name),
            x,
            sdegen.SDESolver(steps=12),
            noise=noise,
            u=(0.99, 0.01),
        ).x
        for name in ("eps", "score", "data", "velocity", "v")
    ]
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-8, atol=1e-8)


PROFILES = {
    "eta 0.5": {"eta": 0.5},
    "eta 1": {"eta": 1.0},
    "eta 2": {"eta": 2.0},
    "anderson": {"w": lambda u: (2 * u / (1 - u)).sqrt()},
    "kappa 1/4": {"w": lambda u: (0.5 * u).sqrt()},
    "kappa 4": {"w": lambda u: (8 * u).sqrt()},
    "constant": {"w": lambda u: 0.7 + 0 * u},
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", ["vp", "condot"])
def test_marginals_are_kept_for_every_profile(path, profile):
    """Richardson-extrapolated exact affine laws of the second-order midpoint scheme hit N(m, S)."""
    if profile == "anderson" and path == "condot":
        pytest.skip("w is infinite at u = 1, which is refused elsewhere")
    S, m = 0.25, 0.8
    # u = 0 is never queried by midpoint; a constant profile is far from zero there, so steps must be small
    laws = [affine_law(PATHS[path], sdegen.SDESolver("midpoint", n, **PROFILES[profile]), S, m, n) for n in (200, 400)]
    mean, variance = (fine + (fine - coarse) / 3 for coarse, fine in zip(*laws, strict=True))
    assert abs(mean - m) < 2e-6
    assert abs(variance / S - 1) < (3e-3 if profile == "constant" else 2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_towards_noise_the_marginals_are_kept_too(eta):
    path, S, m = sdegen.VPSDE(), 0.25, 0.8
    target = sdegen.Gaussian([m], math.sqrt(S))
    n = 400
    x = torch.zeros(n + 2, 1)
    x[1] = 1
    noise = torch.zeros(n, n + 2, 1)
    noise[torch.arange(n), torch.arange(n) + 2] = 1
    out = sdegen.solve(target.model(path), x, sdegen.SDESolver("midpoint", n, eta=eta), to="noise", noise=noise).x[:, 0]
    b, a, c = out[0], out[1] - out[0], out[2:] - out[0]
    alpha, sigma = float(path.alpha(1.0)), float(path.sigma(1.0))
    assert abs(float(a * m + b) - alpha * m) < 1e-4
    assert abs(float(a**2 * S + (c**2).sum()) / (alpha**2 * S + sigma**2) - 1) < 1e-3


class Field(nn.Module):
    """A smooth network with an anisotropic, non-symmetric Jacobian."""

    def __init__(self, d):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d, 32), nn.Tanh(), nn.Linear(32, d)).double()

    def forward(self, x, t):
        return self.layers(x.flatten(1)).reshape(x.shape) * (1 + t.reshape(-1, *[1] * (x.ndim - 1)))


def with_divergence(model, y, query, trace, seed=0):
    """The answer and its divergence, the mean of all estimates."""
    probes = trace.draw(y, torch.Generator().manual_seed(seed), fresh=False)
    joined = Problem(model, y, 0.0, 1.0, probes=probes).with_divergence(y, query, 0)
    return joined[:, : y[0].numel()].reshape(y.shape), joined[:, y[0].numel() :].mean(1)


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 1, 3)])
def test_exact_divergence_is_the_trace_of_the_jacobian(shape):
    d = math.prod(shape[1:])
    model = sdegen.ScoreModel(Field(d), sdegen.VPSDE())
    y = torch.randn(shape)
    one = torch.ones(1)
    (query,) = model.plan(y, 0.4 * one, None, -one, one)
    value, divergence = with_divergence(model, y, query, sdegen.Exact())
    (single,) = model.plan(y[:1], 0.4 * one, None, -one, one)
    for b in range(len(y)):
        jacobian = torch.autograd.functional.jacobian(lambda row: model.estimate(row, single, {}), y[b : b + 1])
        torch.testing.assert_close(divergence[b], jacobian.reshape(d, d).trace())
    torch.testing.assert_close(value, model.estimate(y, query, {}).detach())


def test_hutchinson_is_unbiased_with_the_variance_of_theory():
    """On an anisotropic target: mean tr A, variance 2 (|A_s|_F^2 - sum A_ii^2) per probe (THEORY 6.2), 1/P for P."""
    model = sdegen.ScoreModel(Field(6), sdegen.VPSDE())
    y = torch.randn(1, 6).expand(20_000, 6)
    one = torch.ones(1)
    (query,) = model.plan(y, 0.4 * one, None, -one, one)
    (single,) = model.plan(y[:1], 0.4 * one, None, -one, one)
    jacobian = torch.autograd.functional.jacobian(lambda row: model.estimate(row, single, {}), y[:1]).reshape(6, 6)
    A = 0.5 * (jacobian + jacobian.T)
    variance = float(2 * ((A**2).sum() - (A.diagonal() ** 2).sum()))
    for probes in (1, 4):
        _, estimate = with_divergence(model, y, query, sdegen.Hutchinson(probes), probes)
        error = float(estimate.mean() - jacobian.trace()) / math.sqrt(variance / probes / len(y))
        assert abs(error) < 5
        assert abs(float(estimate.var()) * probes / variance - 1) < 0.1


def test_hamiltonian_fields_have_no_divergence():
    """THEORY 8.5: off-diagonal blocks only; the exact trace is 0 to the bit, one probe is not, their mean is."""

    class Hamiltonian(nn.Module):
        def forward(self, x, t):
            q, p = x.chunk(2, 1)
            return torch.cat([torch.sin(p), -torch.tanh(q)], 1)

    path = sdegen.CondOT()
    y = torch.randn(1, 6).expand(4000, 6)
    model = sdegen.ScoreModel(Hamiltonian(), path, "velocity")
    one = torch.ones(1)
    (query,) = model.plan(y, 0.5 * one, None, -one, one)
    _, exact = with_divergence(model, y, query, sdegen.Exact())
    assert float(exact.abs().max()) == 0
    _, probed = with_divergence(model, y, query, sdegen.Hutchinson(1))
    assert float(probed.std()) > 0.1
    assert abs(float(probed.mean())) < 5 * float(probed.std()) / math.sqrt(4000)


def test_continuity_equation_holds():
    """Fokker-Planck of the ODE in straight coordinates: d log p/du = -div b - b . grad log p, by finite differences."""
    target, path = mixture64(), sdegen.CondOT()  # on CondOT y = x_t and t = 1 - u
    model = target.model(path)
    u, h = 0.37, 1e-4
    y = path.perturb(target.sample(4), 1 - u)[0]
    one = torch.ones(1)
    (query,) = model.plan(y, u * one, None, -one, one)
    b, divergence = with_divergence(model, y, query, sdegen.Exact())
    change = (target.marginal(path, 1 - u - h).log_prob(y) - target.marginal(path, 1 - u + h).log_prob(y)) / (2 * h)
    torch.testing.assert_close(change, -divergence - (b * model.score(y, 1 - u)).sum(1), rtol=1e-5, atol=1e-5)


def test_profiles_are_checked():
    model, x = ring().model(sdegen.CondOT()), torch.zeros(2, 2)
    bad = [
        (lambda u: (2 * u / (1 - u)).sqrt(), "finite"),
        (lambda u: u - 0.5, "non-negative"),
        (lambda u: torch.ones(3), "shape"),
        (lambda u: 1.0, "float"),
    ]
    for w, says in bad:
        with pytest.raises(ValueError, match=says):
            sdegen.solve(model, x, sdegen.SDESolver(steps=4, w=w))
    with pytest.raises(ValueError, match="u = 0"):  # heun queries u = 0, where w^2/u has no limit
        sdegen.solve(model, x, sdegen.SDESolver("heun", 4, w=lambda u: 0.5 + 0 * u))
