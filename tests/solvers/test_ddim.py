"""DDIM: the Euler step at eta = 0, ancestral sampling at eta = 1, and its exact law between."""

from __future__ import annotations

import math

import pytest
import torch
from chains import Counting, M, S
from problems import PATHS, affine_law

import sdegen


@pytest.mark.parametrize("path", ["vp", "subvp", "cosine", "ddpm", "condot"])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_ddim_is_the_euler_step_and_at_one_ancestral(path, p):
    path, steps = PATHS[path], 30
    model = sdegen.ScoreModel(Counting(), path, "v")
    x, noise, grid = torch.randn(6, 3), torch.randn(steps, 6, 3), sdegen.PowerGrid(p)

    def ends(*solvers, noise=None):
        given = [None if s.solves_ode else noise for s in solvers]
        return [sdegen.solve(model, x, s, noise=z, trajectory=True) for s, z in zip(solvers, given, strict=True)]

    ddim, euler = ends(sdegen.DDIM(steps, grid=grid), sdegen.ODESolver("euler", steps=steps, grid=grid))
    torch.testing.assert_close(ddim.trajectory, euler.trajectory, rtol=1e-13, atol=1e-13)
    assert ddim.calls == steps
    ddim, ancestral = ends(
        sdegen.DDIM(steps, eta=1.0, grid=grid), sdegen.Ancestral(steps, variance="posterior", grid=grid), noise=noise
    )
    torch.testing.assert_close(ddim.trajectory, ancestral.trajectory, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_has_its_exact_law(eta):
    """THEORY 5.4 iterated by hand on Gaussian data: factor, offset and deviation of every step."""
    K = 40
    path = sdegen.DDPM.from_path(sdegen.VPSDE(), K)
    t = torch.arange(K, -1, -1) / K
    alpha, sigma = path.alpha(t).tolist(), path.sigma(t).tolist()
    V = [a**2 * S + s**2 for a, s in zip(alpha, sigma, strict=True)]
    mean, var = alpha[0] * M, V[0]
    for i in range(K):
        (a_t, a_s), (s_t, s_s) = alpha[i : i + 2], sigma[i : i + 2]
        fresh = s_s**2 * (s_t**2 - (a_t / a_s) ** 2 * s_s**2) / s_t**2
        x_hat, eps_hat = a_t * S / V[i], s_t / V[i]
        factor = a_s * x_hat + math.sqrt(s_s**2 - eta**2 * fresh) * eps_hat
        mean, var = a_s * M + factor * (mean - a_t * M), factor**2 * var + eta**2 * fresh
    ours = affine_law(path, sdegen.DDIM(eta=eta), S, M, K)
    assert abs(ours[0] / mean - 1) < 1e-10
    assert abs(ours[1] / var - 1) < 1e-10


def test_ddim_needs_no_noise_at_eta_zero_and_none_in_its_last_step():
    path = sdegen.DDPM.linear(12, 1e-2, 0.3)
    model, x = sdegen.ScoreModel(Counting(), path), torch.randn(3, 2)
    g = torch.Generator().manual_seed(4)
    assert torch.equal(sdegen.solve(model, x, sdegen.DDIM(), generator=g).x, sdegen.solve(model, x, sdegen.DDIM()).x)
    noise = torch.randn(12, 3, 2)
    other = noise.clone()
    other[-1] += 1
    for solver in (sdegen.DDIM(eta=0.7), sdegen.Ancestral(variance="posterior"), sdegen.Ancestral(variance="optimal")):
        ends = [sdegen.solve(model, x, solver, noise=z).x for z in (noise, other)]
        assert torch.equal(*ends)


@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.CondOT(), sdegen.DDPM.from_path(sdegen.VPSDE(), 50)], ids=repr)
def test_a_chain_that_stops_on_the_way_adds_its_last_noise(path):
    """Ancestral("posterior") is DDIM(1) on any part of a path, and has the law of x_t there."""
    target, u = sdegen.Gaussian(torch.zeros(1), 0.1), (0.9, 0.3)
    x, noise = torch.randn(6, 1), torch.randn(10, 6, 1)
    solvers = (sdegen.Ancestral(10, variance="posterior"), sdegen.DDIM(10, eta=1.0))
    one, other = (sdegen.solve(target.model(path), x, s, u=u, noise=noise).x for s in solvers)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    silent = noise.clone()
    silent[-1] = 0
    assert not torch.allclose(sdegen.solve(target.model(path), x, solvers[0], u=u, noise=silent).x, one)


def test_noise_needs_a_score():
    model = sdegen.ScoreModel(Counting(), sdegen.Interpolant(sdegen.CondOT()), "velocity")
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="DDIM with eta > 0 needs the score, and this model was trained on pairs"):
        sdegen.solve(model, x, sdegen.DDIM(3, eta=0.5))
    sdegen.solve(model, x, sdegen.DDIM(3))
