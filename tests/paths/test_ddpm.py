"""The DDPM chain as a path: schedules, what lies between the grid points, the integers a network was trained on."""

from __future__ import annotations

import math
import pickle
from decimal import Decimal, getcontext
from itertools import pairwise

import pytest
import torch
from chains import Counting
from problems import OwnFlow, slope

import sdegen

RANDOM = torch.rand(200, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.1 + 1e-5

STEEP = torch.tensor([0.01, 0.05, 0.03, 0.1, 0.02], dtype=torch.float64)  # where PCHIP would start with slope 0

BETAS = {"linear": sdegen.DDPM.linear().betas, "cosine": sdegen.DDPM.cosine().betas, "random": RANDOM, "steep": STEEP}

every_schedule = pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS.keys())

either_interpolant = pytest.mark.parametrize("smooth", [False, True], ids=["lines", "smooth"])


@every_schedule
@either_interpolant
def test_alpha_squared_is_the_product_of_the_chain(betas, smooth):
    """Against a product in decimals of 40 digits."""
    getcontext().prec = 40
    path, K = sdegen.DDPM(betas, smooth=smooth), len(betas)
    product, exact, missing = Decimal(1), [1.0], [0.0]
    for beta in betas.tolist():
        product *= 1 - Decimal(beta)
        exact.append(float(product))
        missing.append(float(1 - product))
    t = torch.arange(K + 1) / K
    torch.testing.assert_close(path.alpha(t) ** 2, torch.tensor(exact), rtol=1e-14, atol=0)
    torch.testing.assert_close(path.sigma(t) ** 2, torch.tensor(missing), rtol=1e-13, atol=0)
    torch.testing.assert_close(path.time(path.clock(t))[:-1], t[:-1], rtol=1e-11, atol=0)
    assert abs(float(path.time(path.clock(t[-1]))) - 1) < 1e-6  # a cubic may end flat, where t(u) has no slope


def test_the_usual_schedules():
    linear = sdegen.DDPM.linear(10, 0.01, 0.1)
    torch.testing.assert_close(linear.betas, torch.arange(1, 11) / 100, rtol=1e-14, atol=0)
    assert abs(float(sdegen.DDPM.linear().alpha(1.0)) ** 2 / 4.035830e-5 - 1) < 2e-7  # THEORY 2.1
    cosine, K, s = sdegen.DDPM.cosine(100, s=0.01, max_beta=0.99), 100, 0.01
    bars = torch.cos(0.5 * math.pi * (torch.arange(K + 1) / K + s) / (1 + s)) ** 2
    by_hand = torch.clamp(1 - bars[1:] / bars[:-1], max=0.99)
    torch.testing.assert_close(cosine.betas, by_hand, rtol=1e-10, atol=0)
    assert float(cosine.betas[-1]) == 0.99
    assert sdegen.DDPM.cosine(100, smooth=True).smooth


def test_from_path_is_the_path_on_its_grid():
    path = sdegen.VPSDE()
    for K in (1, 7, 300):
        chain, t = sdegen.DDPM.from_path(path, K), torch.arange(K + 1) / K
        assert chain.steps == len(chain.betas) == K
        torch.testing.assert_close(chain.alpha(t), path.alpha(t), rtol=1e-12, atol=0)
        torch.testing.assert_close(chain.clock(t), path.clock(t), rtol=1e-12, atol=0)
        scale, std = path.transition(t[:-1], t[1:])
        torch.testing.assert_close(torch.sqrt(1 - chain.betas), scale, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.sqrt(chain.betas), std, rtol=1e-10, atol=0)


@every_schedule
@either_interpolant
def test_from_path_undoes_the_chain(betas, smooth):
    again = sdegen.DDPM.from_path(sdegen.DDPM(betas, smooth=smooth), len(betas))
    torch.testing.assert_close(again.betas, betas, rtol=1e-10, atol=0)


def test_a_path_in_the_clock_of_flow_matching_is_a_chain_too():
    """Data at t = 1, pure noise at t = 0: step k runs from 1 - (k-1)/K to 1 - k/K."""
    K = 20
    chain = sdegen.DDPM.from_path(OwnFlow(), K, max_beta=0.9)
    alpha = OwnFlow().alpha(1 - torch.arange(K + 1) / K)
    exact = torch.clamp(1 - (alpha[1:] / alpha[:-1]) ** 2, max=0.9)
    torch.testing.assert_close(chain.betas, exact, rtol=1e-10, atol=0)
    assert float(chain.betas[-2]) < 0.9 == float(chain.betas[-1])


# Between the grid points


@every_schedule
def test_the_smooth_interpolant_has_a_continuous_slope(betas):
    K = len(betas)
    knots = torch.arange(1, K) / K
    jumps = {}
    for smooth in (False, True):
        path = sdegen.DDPM(betas, smooth=smooth)
        left, right = path.beta(knots - 1e-9 / K), path.beta(knots)
        jumps[smooth] = float(((right - left).abs() / (1e-3 + right)).max())
    assert jumps[True] < 1e-6
    assert jumps[False] > 1e-3


@every_schedule
@either_interpolant
def test_beta_is_the_slope_and_never_negative(betas, smooth):
    path, K, h = sdegen.DDPM(betas, smooth=smooth), len(betas), 1e-5
    t = (torch.arange(K)[:, None] + torch.tensor([0.1, 0.37, 0.5, 0.92])).flatten() / K
    slopes = (path.integrated_beta(t + h / K) - path.integrated_beta(t - h / K)) / (2 * h / K)
    beta = path.beta(t)
    torch.testing.assert_close(beta, slopes, rtol=1e-5, atol=1e-6 * float(beta.max()))
    assert bool((path.beta(torch.linspace(0, 1, 10 * K + 1)) >= 0).all())
    assert bool((torch.diff(path.integrated_beta(torch.linspace(0, 1, 50 * K + 1))) > 0).all())


@every_schedule
@either_interpolant
def test_clock_and_time_round_trip_to_rounding(betas, smooth):
    path = sdegen.DDPM(betas, smooth=smooth)
    u = torch.cat([torch.logspace(-12, -2.1, 41), torch.linspace(0.01, path.ends[1], 1001)])
    t = path.time(u)
    torch.testing.assert_close(path.clock(t), u, rtol=1e-12, atol=0)
    assert bool((torch.diff(t) > 0).all())
    assert bool(((t > 0) & (t <= 1 + 1e-12)).all())
    assert float(path.time(torch.zeros(()))) == 0.0


@either_interpolant
def test_drift_and_diffusion_belong_to_the_interpolant(smooth):
    """d Var/dt of unit-variance data is zero, and d alpha/dt = -beta alpha / 2, by central differences."""
    path, h = sdegen.DDPM.linear(20, 1e-3, 0.3, smooth=smooth), 1e-6
    t = (torch.arange(20)[:, None] + torch.tensor([0.2, 0.7])).flatten() / 20
    slopes = path.slopes(t)
    torch.testing.assert_close(slopes.alpha, (path.alpha(t + h) - path.alpha(t - h)) / (2 * h), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(slopes.sigma, (path.sigma(t + h) - path.sigma(t - h)) / (2 * h), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(path.diffusion(t) ** 2, path.beta(t), rtol=1e-10, atol=0)


def test_a_smooth_interpolant_keeps_the_order_of_a_network_that_sees_t():
    """rk4 on a chain of 20 steps against a solve that puts 60 steps between every two knots."""
    x, steps, orders = torch.linspace(-2, 2, 9)[:, None], [60, 90, 130, 190, 270, 390], {}

    def net(x, t):
        return torch.tanh(x) * (1 + torch.sin(9 * t[:, None]))

    for smooth in (False, True):
        path = sdegen.DDPM.linear(20, 1e-2, 0.4, smooth=smooth)
        model = sdegen.ScoreModel(net, path)
        knots = path.clock(torch.arange(20, -1, -1) / 20)
        fine = [a + (b - a) * torch.arange(60) / 60 for a, b in pairwise(knots)]
        end = sdegen.solve(model, x, sdegen.ODESolver("rk4", grid=torch.cat([*fine, knots[-1:]]))).x
        errors = []
        for n in steps:
            ours = sdegen.solve(model, x, sdegen.ODESolver("rk4", steps=n, grid=sdegen.PowerGrid(1))).x
            errors.append(float((ours - end).square().mean().sqrt()))
        orders[smooth] = slope(steps, errors)
    assert orders[True] > 3.5  # measured 4.2
    assert orders[False] < 2.8  # measured 2.1


# The integers a network was trained on


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@either_interpolant
def test_index_is_the_integer_exactly(dtype, smooth):
    K = 1000
    path, k = sdegen.DDPM.linear(K, smooth=smooth), torch.arange(1, K + 1)
    seen = path.index(k.to(dtype) / K)
    assert seen.dtype == dtype
    assert torch.equal(seen, (k - 1).to(dtype))
    below = path.index(torch.tensor([0.0, 1e-6, 3e-4, 0.99 / K], dtype=dtype))
    assert torch.equal(below, torch.zeros(4, dtype=dtype))
    between = path.index(torch.tensor([2.25, 17.5], dtype=dtype) / K)
    torch.testing.assert_close(between, torch.tensor([1.25, 16.5], dtype=dtype), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("K", [10, 333, 1000])
def test_every_verb_shows_the_network_whole_integers(dtype, K):
    net, path = Counting(), sdegen.DDPM.linear(K)
    model, x = sdegen.ScoreModel(net, path, "v", time=path.index), torch.randn(2, 1, dtype=dtype)
    down = torch.arange(K - 1, -1, -1, dtype=dtype)
    sdegen.solve(model, x, sdegen.Ancestral())
    assert torch.equal(torch.stack(net.times)[:, 0], down)
    net.times.clear()
    sdegen.solve(model, x, sdegen.DDIM())
    assert torch.equal(torch.stack(net.times)[:, 0], down)
    net.times.clear()
    sdegen.vlb(model, x)
    assert torch.equal(torch.stack(net.times)[:, 0].sort().values, down.flip(0))
    net.times.clear()
    sdegen.loss(model, torch.randn(4096, 1, dtype=dtype), times=sdegen.ChainTimes())
    (seen,) = net.times
    assert torch.equal(seen, seen.round())
    assert 0 <= float(seen.min()) <= float(seen.max()) <= K - 1


def test_a_network_of_integers_serves_another_path_by_its_log_snr():
    chain, vp = sdegen.DDPM.linear(), sdegen.VPSDE()

    def seen(t):
        return chain.index(chain.time(vp.clock(t)))

    t = torch.linspace(0.05, 0.98, 50)
    matching = chain.time(vp.clock(t))
    torch.testing.assert_close(chain.log_snr(matching), vp.log_snr(t), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(seen(t), 1000 * matching - 1, rtol=1e-10, atol=0)

    def net(x, k):
        return torch.tanh(x) * torch.cos(0.01 * k[:, None])

    ours, theirs = (sdegen.ScoreModel(net, p, time=f) for p, f in ((chain, chain.index), (vp, seen)))
    x, grid = torch.randn(5, 2), 0.97 * torch.linspace(1, 0, 41) ** 2
    noise = torch.randn(40, 5, 2)
    for solver in (
        sdegen.Ancestral(variance="posterior", grid=grid),
        sdegen.DDIM(grid=grid),
        sdegen.SDESolver(grid=grid),
        sdegen.ODESolver("rk4", grid=grid),
    ):
        given = None if solver.solves_ode else noise
        ends = [sdegen.solve(model, x, solver, u=(0.97, 0.0), noise=given).x for model in (ours, theirs)]
        torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


def test_respaced_grids_visit_their_steps():
    path = sdegen.DDPM.linear()
    for steps, spacing, k in (
        (50, "leading", [*range(981, 0, -20), 0]),
        (1000, "leading", list(range(1000, -1, -1))),
        (1000, "trailing", list(range(1000, -1, -1))),
        (50, "trailing", list(range(1000, -1, -20))),
        (3, "leading", [667, 334, 1, 0]),
        (3, "trailing", [1000, 667, 333, 0]),
        (1, "leading", [1, 0]),
        (1, "trailing", [1000, 0]),
    ):
        u = path.respaced(steps, spacing)
        assert u.dtype == torch.float64
        assert torch.equal(u, path.clock(torch.tensor(k, dtype=torch.float64) / 1000))
    net = Counting()
    model = sdegen.ScoreModel(net, path, time=path.index)
    grid = path.respaced(50)
    sdegen.solve(model, torch.randn(2, 1), sdegen.DDIM(grid=grid), u=(float(grid[0]), 0.0))
    torch.testing.assert_close(torch.stack(net.times)[:, 0], torch.arange(980.0, -1, -20), rtol=0, atol=1e-9)
    assert torch.equal(path.respaced(50), path.respaced(50, "leading"))


def test_an_index_is_whole_on_every_respaced_chain():
    path = sdegen.DDPM.linear()
    for spacing in ("leading", "trailing"):
        index = path.index(path.time(path.respaced(50, spacing)[:-1]))
        assert torch.equal(index, index.round())


# What must not happen quietly


def test_paths_that_do_not_start_at_the_data_themselves_are_refused():
    class Scaled(sdegen.GaussianPath):
        def alpha(self, t):
            return 2 * (1 - t)

        def sigma(self, t):
            return 3 * t

    class Blurred(sdegen.GaussianPath):
        def alpha(self, t):
            return torch.cos(0.5 + t)

        def sigma(self, t):
            return torch.sin(0.5 + t)

    with pytest.raises(ValueError, match="must be 1 at clean data"):
        sdegen.sample(sdegen.ScoreModel(lambda x, t: x, Scaled()), (2, 1), sdegen.Ancestral(5))
    with pytest.raises(ValueError, match="starts at clean data"):
        sdegen.DDPM.from_path(Blurred(), 4)
    with pytest.raises(TypeError, match="path must be"):
        sdegen.DDPM.from_path("vp", 4)
    for betas in (None, "abc", torch.tensor([0.1 + 0.1j])):
        with pytest.raises(TypeError, match=r"betas must (be|hold)"):
            sdegen.DDPM(betas)


def test_a_chain_is_pickled_without_its_copies():
    path = sdegen.DDPM.linear(10, 1e-3, 0.1, smooth=True)
    path._tables["elsewhere"] = path._tables["cpu"]
    again = pickle.loads(pickle.dumps(path))
    assert list(again._tables) == ["cpu"]
    assert torch.equal(again.alpha(torch.linspace(0, 1, 7)), path.alpha(torch.linspace(0, 1, 7)))
