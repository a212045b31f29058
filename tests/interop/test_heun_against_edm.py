"""Heun and its churn against Algorithms 1 and 2 of Karras et al. (2022) in plain torch, and against k-diffusion."""

from __future__ import annotations

import math

import pytest
import torch

import sdegen

N, SHAPE, TOP = 9, (5, 3), 40.0
CHURN = {"churn": 3.0, "sigma_min": 0.05, "sigma_max": 30.0, "noise_scale": 1.003}
OPTIONS = {"algorithm 1": {}, "algorithm 2": CHURN, "algorithm 2, at most": {**CHURN, "churn": 6.0}}
PATHS = {0.01: sdegen.VESDE(0.01, 50.0), 0.0: sdegen.VPSDE()}  # by the sigma/alpha at which the solve ends


def noise_in(x, sigma):
    """A noise predictor in EDM's own x and sigma, that is x/alpha and sigma/alpha of any path."""
    return torch.tanh(0.3 * x + torch.log1p(sigma)[:, None]) + 0.2 * x


def denoised(x, sigma):
    """x_hat, as EDM and k-diffusion ask for it."""
    return x - sigma[:, None] * noise_in(x, sigma)


def edm(x, sigmas, noise, churn=0.0, sigma_min=0.0, sigma_max=math.inf, noise_scale=1.0):
    """Algorithm 2, and Algorithm 1 where churn is 0; every state, and the number of its network calls."""
    states, calls = [x], 0

    def slope(x, sigma):
        nonlocal calls
        calls += 1
        return (x - denoised(x, sigma.expand(len(x)))) / sigma

    for i in range(len(sigmas) - 1):
        gamma = min(churn / (len(sigmas) - 1), 2**0.5 - 1) if sigma_min <= sigmas[i] <= sigma_max else 0.0
        hat = sigmas[i] + gamma * sigmas[i]
        x = x + (hat**2 - sigmas[i] ** 2).sqrt() * noise_scale * noise[i]
        d = slope(x, hat)
        ahead = x + (sigmas[i + 1] - hat) * d
        if sigmas[i + 1] != 0:
            ahead = x + (sigmas[i + 1] - hat) * 0.5 * (d + slope(ahead, sigmas[i + 1]))
        x = ahead
        states.append(x)
    return states, calls


@pytest.fixture
def start():
    g = torch.Generator().manual_seed(5)
    return TOP * torch.randn(SHAPE, generator=g), torch.randn(N, *SHAPE, generator=g)


def ours(solver, x, end, noise=None):
    """Our solve from sigma/alpha = 40 down to `end`, in EDM's x."""
    path = PATHS[end]
    model = sdegen.ScoreModel(
        lambda x, t: noise_in(x / path.alpha(t)[:, None], path.sigma(t) / path.alpha(t)), path, "eps"
    )
    u = (TOP / (1 + TOP), end / (1 + end))
    solution = sdegen.solve(model, path.scale(u[0]) * (1 - u[0]) * x, solver, u=u, trajectory=True, noise=noise)
    alpha = (1 - solution.u) * path.scale(solution.u)
    return solution, solution.trajectory / alpha[:, None, None]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("end", PATHS, ids=["to sigma_min", "to zero"])
@pytest.mark.parametrize("grid", [sdegen.KarrasGrid(7, 0.02), sdegen.PowerGrid(3)], ids=["karras", "power"])
def test_heun_is_edms(start, options, end, grid):
    x, noise = start
    heun = sdegen.Heun(N, grid=grid)
    u = ours(heun, x, end)[0].u
    their_states, calls = edm(x, u / (1 - u), noise, **options)
    solver = sdegen.Churn(heun, **options) if options else heun
    solution, states = ours(solver, x, end, by_move(u, noise) if options else None)
    at_knots = [k for k, clock in enumerate(solution.u.tolist()) if clock in set(u.tolist())]
    torch.testing.assert_close(states[at_knots], torch.stack(their_states), rtol=1e-10, atol=1e-10)
    assert solution.calls == calls == (2 * N if end else 2 * N - 1)
    assert (len(solution.u) > N + 1) == bool(options)


def by_move(u, noise):
    """EDM has one draw a step; ours is one a move of the clock, of which Heun's own steps use none."""
    unused, rows = torch.full(SHAPE, 1e300), []
    for k, sigma in enumerate((u / (1 - u))[:-1].tolist()):
        rows += [noise[k], unused] if CHURN["sigma_min"] <= sigma <= CHURN["sigma_max"] else [unused]
    return torch.stack(rows)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_plain_loop_is_k_diffusions(monkeypatch, start, options):
    sampling = pytest.importorskip("k_diffusion.sampling")
    x, noise = start
    u = ours(sdegen.Heun(N, grid=sdegen.KarrasGrid(7)), x, 0.01)[0].u
    normals = iter(noise)
    monkeypatch.setattr(torch, "randn_like", lambda x: next(normals))
    names = {"churn": "s_churn", "sigma_min": "s_tmin", "sigma_max": "s_tmax", "noise_scale": "s_noise"}
    theirs = sampling.sample_heun(
        denoised, x, u / (1 - u), disable=True, **{names[name]: value for name, value in options.items()}
    )
    torch.testing.assert_close(edm(x, u / (1 - u), noise, **options)[0][-1], theirs, rtol=1e-10, atol=1e-10)
