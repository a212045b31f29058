"""The chain as a path, both directions of the bridge, and the exact laws of ancestral sampling and DDIM on it."""

from __future__ import annotations

import math
import pickle
from decimal import Decimal, getcontext
from itertools import pairwise

import pytest
import torch
from problems import PATHS, OwnFlow, affine_law, mixture64, slope, start_law

import sdegen

S, M = 0.25, 0.8
RANDOM = torch.rand(200, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.1 + 1e-5
STEEP = torch.tensor([0.01, 0.05, 0.03, 0.1, 0.02], dtype=torch.float64)  # where PCHIP would start with slope 0
BETAS = {"linear": sdegen.DDPM.linear().betas, "cosine": sdegen.DDPM.cosine().betas, "random": RANDOM, "steep": STEEP}
every_schedule = pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS.keys())
either_interpolant = pytest.mark.parametrize("smooth", [False, True], ids=["lines", "smooth"])


class Counting:
    """A network that remembers what it was shown."""

    def __init__(self, doubled: bool = False):
        self.calls, self.times, self.doubled = 0, [], doubled

    def __call__(self, x, t, **cond):
        self.calls += 1
        self.times.append(t.clone())
        out = torch.tanh(x) * (1 + t.to(x).reshape(-1, *[1] * (x.ndim - 1)))
        return torch.cat([out, torch.cos(x)], 1) if self.doubled else out


def law_along(path, solver) -> tuple[float, float]:
    """Mean and variance of a chain of any length in three rows: b, a x_T + b, and b + every noise at once.

    The ratio of two differences of states gives a step's factor, and then the third row its deviation.
    """
    exact = sdegen.Gaussian([M], math.sqrt(S))
    x_T, push = torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([[0.0], [0.0], [1.0]])
    states = sdegen.solve(exact.model(path), x_T, solver, noise=lambda k: push, trajectory=True).trajectory[:, :, 0]
    gain, pushed = states[:, 1] - states[:, 0], states[:, 2] - states[:, 0]
    std = pushed[1:] - gain[1:] / gain[:-1] * pushed[:-1]
    mean, variance = start_law(exact.marginal(path, path.t_noise))
    total = gain[-1] ** 2 * variance + ((std * gain[-1] / gain[1:]) ** 2).sum()
    return float(gain[-1] * mean + states[-1, 0]), float(total)


def chain_law(solver, steps) -> tuple[float, float]:
    return law_along(sdegen.DDPM.from_path(sdegen.VPSDE(), steps), solver)


# The chain and its path


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
        given = None if isinstance(solver, sdegen.ODESolver) else noise
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


# Exact laws of the chain


@pytest.mark.parametrize(("variance", "frozen"), [("beta", 0.256658082543691), ("posterior", 0.219211868730530)])
def test_ancestral_sampling_of_a_chain_has_its_frozen_law(variance, frozen):
    path, solver = sdegen.DDPM.from_path(sdegen.VPSDE(), 100), sdegen.Ancestral(variance=variance)
    for mean, var in (affine_law(path, solver, S, M, 100), law_along(path, solver)):
        assert abs(mean / M - 1) < 1e-12
        assert abs(var / frozen - 1) < 1e-12


def test_the_variance_error_of_beta_has_its_constant():
    """THEORY 11.6: K (variance - S) tends to 0.74941 at the rate 1/K."""
    gaps = []
    for K in (100, 1000, 10_000):
        mean, var = chain_law(sdegen.Ancestral(variance="beta"), K)
        assert abs(mean / M - 1) < 1e-9
        gaps.append(abs(K * (var - S) - 0.74941))
    assert gaps[2] < 0.002 * 0.74941
    assert all(8 < a / b < 12 for a, b in pairwise(gaps))


@pytest.mark.slow
def test_the_constant_of_beta_by_ten_thousand_impulses():
    """The same without any algebra: one row for every normal, fed by a callable that never holds them all."""
    K = 10_000
    path = sdegen.DDPM.from_path(sdegen.VPSDE(), K)
    exact = sdegen.Gaussian([M], math.sqrt(S))
    x_T = torch.zeros(K + 2, 1)
    x_T[1] = 1

    def impulse(k):
        z = torch.zeros(K + 2, 1)
        z[2 + k] = 1
        return z

    x = sdegen.solve(exact.model(path), x_T, sdegen.Ancestral(variance="beta"), noise=impulse).x[:, 0]
    mean, variance = start_law(exact.marginal(path, 1.0))
    var = float((x[1] - x[0]) ** 2 * variance + ((x[2:] - x[0]) ** 2).sum())
    assert abs(float((x[1] - x[0]) * mean + x[0]) / M - 1) < 1e-9
    assert abs(K * (var - S) / 0.74941 - 1) < 0.002


def variance_error(K, variance) -> float:
    """THEORY 11.6: sum over k of (sigma_k^2 - v_k) (S sqrt(abar_{k-1}) / V_{k-1})^2, no noise in the last step."""
    B = sdegen.VPSDE().integrated_beta(torch.arange(K + 1) / K)
    bars, noise, beta = torch.exp(-B), -torch.expm1(-B), -torch.expm1(-torch.diff(B))
    V = bars * S + noise
    true = beta * V[:-1] / V[1:]
    used = beta.clone() if variance == "beta" else beta * noise[:-1] / noise[1:]
    used[0] = 0
    return float(((used - true) * (S * torch.sqrt(bars[:-1]) / V[:-1]) ** 2).sum())


@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("K", [7, 100, 4000])
def test_ancestral_sampling_has_the_variance_error_of_theory(K, variance):
    mean, var = chain_law(sdegen.Ancestral(variance=variance), K)
    assert abs(mean / M - 1) < 1e-9
    assert abs((var - S) / variance_error(K, variance) - 1) < 1e-8


def test_the_variance_error_of_posterior_grows_like_log_k():
    """K (variance - S) falls by beta(0) = 0.1 for every e-fold of K, at last: the sampler, then its sum further on."""
    scaled = [K * (chain_law(sdegen.Ancestral(variance="posterior"), K)[1] - S) for K in (250, 1000, 4000)]
    scaled += [K * variance_error(K, "posterior") for K in (16_000, 64_000, 256_000, 1_024_000)]
    gaps = [(b - a) / math.log(4) + 0.1 for a, b in pairwise(scaled)]
    assert all(gap < 0 for gap in gaps)
    assert all(0.1 < b / a < 0.6 for a, b in pairwise(gaps))
    assert abs(gaps[-1]) < 0.002


@pytest.mark.parametrize("path", ["vp", "subvp", "cosine", "ddpm", "condot"])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_ddim_is_the_euler_step_and_at_one_ancestral(path, p):
    path, steps = PATHS[path], 30
    model = sdegen.ScoreModel(Counting(), path, "v")
    x, noise, grid = torch.randn(6, 3), torch.randn(steps, 6, 3), sdegen.PowerGrid(p)

    def ends(*solvers, noise=None):
        given = [None if isinstance(s, sdegen.ODESolver) else noise for s in solvers]
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


# Variances that are estimated or learned


def steps_taken(target, path, solver, n, seed=0):
    """The deviation of every step but the last, read off a trajectory: (state - mean of the bridge) / normal."""
    g = torch.Generator().manual_seed(seed)
    model, d = target.model(path), math.prod(target.event_shape)
    x_T = target.marginal(path, path.t_noise).sample(n, g)
    noise = torch.randn(path.steps, *x_T.shape, generator=g)
    solution = sdegen.solve(model, x_T, solver, noise=noise, trajectory=True)
    found = []
    for i in range(path.steps - 1):
        t, s = float(solution.t[i]), float(solution.t[i + 1])
        c_t, c_x, _ = path.bridge(s, t)
        rest = solution.trajectory[i + 1] - c_t * solution.trajectory[i] - c_x * model.data(solution.trajectory[i], t)
        std = (rest * noise[i]).sum() / noise[i].square().sum()
        torch.testing.assert_close(rest, std * noise[i], rtol=1e-8, atol=1e-8)
        found.append(float(std))
    return torch.tensor(found).flip(0) ** 2, d


def test_optimal_variances_are_the_true_ones_on_gaussian_data():
    """sigma*^2 = v_k = beta_k V_{k-1} / V_k; the estimate's only error is that of mean |eps_hat|^2 over n d values."""
    path, n, d = sdegen.DDPM.linear(20, 1e-2, 0.4), 4096, 64
    target = sdegen.Gaussian(torch.linspace(-1, 1, d), math.sqrt(S))
    used, _ = steps_taken(target, path, sdegen.Ancestral(variance="optimal"), n)
    bars = torch.cat([torch.ones(1), torch.cumprod(1 - path.betas, 0)])
    V = bars * S + 1 - bars
    true = (path.betas * V[:-1] / V[1:])[1:]
    # variance = bridge + most (1 - m), and m = (1 - bars)/V times a chi-square of n d degrees over n d
    posterior = (path.betas * (1 - bars[:-1]) / (1 - bars[1:]))[1:]
    most = (bars[:-1] * (path.betas / (1 - bars[1:])) ** 2 * (1 - bars[1:]) / bars[1:])[1:]
    noise = most * ((1 - bars) / V)[2:] * math.sqrt(2 / (n * d))
    assert bool(((used - true).abs() < 6 * noise + 1e-12).all())
    assert bool(((true - posterior) > 20 * noise)[:8].all())  # neither of the fixed ones would pass
    assert bool(((path.betas[1:] - true) > 20 * noise)[:8].all())


@pytest.mark.parametrize("k", [2, 5, 10, 20])
def test_optimal_variances_are_near_the_true_ones_on_a_mixture(k):
    """sigma*^2 = (beta/alpha)(1 - beta E|score|^2/d), from exact draws of x_k, the expectation on fresh data."""
    path, target, n = sdegen.DDPM.linear(20, 1e-2, 0.4), mixture64(), 4096
    model, g = target.model(path), torch.Generator().manual_seed(k)
    x = target.marginal(path, k / 20).sample(n, g)
    grid, noise = path.clock(torch.tensor([k, k - 1, 0.0]) / 20), torch.randn(2, *x.shape, generator=g)
    solver, u = sdegen.Ancestral(variance="optimal", grid=grid), (float(grid[0]), 0.0)
    state = sdegen.solve(model, x, solver, u=u, noise=noise, trajectory=True).trajectory[1]
    c_t, c_x, _ = path.bridge((k - 1) / 20, k / 20)
    used = float(((state - c_t * x - c_x * model.data(x, k / 20)) / noise[0]).mean()) ** 2
    beta = float(path.betas[k - 1])
    fresh, _ = path.perturb(target.sample(10_000, g), k / 20, generator=g)
    true = beta / (1 - beta) * (1 - beta * float(model.score(fresh, k / 20).square().mean()))
    assert abs(used / true - 1) < 0.005
    assert k == 20 or abs(used / beta - 1) > 0.03


def test_optimal_from_pure_noise_is_beta():
    """On the cosine path the first step starts where alpha = 0, and x_hat knows nothing."""
    path, x, noise = sdegen.CosineVPSDE(), torch.randn(8, 3), torch.randn(2, 8, 3)
    model = sdegen.Gaussian(torch.zeros(3), 0.5).model(path)
    first = [
        sdegen.solve(model, x, sdegen.Ancestral(2, variance=v), noise=noise, trajectory=True).trajectory[1]
        for v in ("optimal", "beta")
    ]
    torch.testing.assert_close(*first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("place", "named"), [(1.0, "beta"), (-1.0, "posterior")])
@pytest.mark.parametrize("path", [sdegen.DDPM.linear(15, 1e-2, 0.3), sdegen.VPSDE(), sdegen.SubVPSDE()])
def test_learned_variances_at_their_ends_are_the_named_ones(path, place, named):
    def net(x, t):
        return torch.tanh(x) * t[:, None]

    def double(x, t):
        return torch.cat([net(x, t), torch.full_like(x, place)], 1)

    x, noise = torch.randn(4, 3), torch.randn(15, 4, 3)
    learned = sdegen.solve(
        sdegen.ScoreModel(double, path, learns_variance=True), x, sdegen.Ancestral(15, variance="learned"), noise=noise
    )
    fixed = sdegen.solve(sdegen.ScoreModel(net, path), x, sdegen.Ancestral(15, variance=named), noise=noise)
    torch.testing.assert_close(learned.x, fixed.x, rtol=1e-12, atol=1e-12)
    assert learned.calls == 15


def test_a_learned_variance_is_per_value_and_between_in_the_logarithm():
    """One step by hand: var = posterior^(1-place) beta^place, a place of its own in every value."""
    path = sdegen.DDPM.linear(15, 1e-2, 0.3)
    place = torch.linspace(-1, 1, 6).reshape(1, 6).expand(4, 6)
    x, z = torch.randn(4, 6), torch.randn(4, 6)
    model = sdegen.ScoreModel(lambda x, t: torch.cat([0 * x, place], 1), path, learns_variance=True)
    solver = sdegen.Ancestral(variance="learned")
    ends = [
        sdegen.solve(model, x, solver, noise=lambda k, s=s: s * z, trajectory=True).trajectory[1] for s in (0.0, 1.0)
    ]
    bars = torch.cumprod(1 - path.betas, 0)
    beta = path.betas[-1]
    posterior = beta * (1 - bars[-2]) / (1 - bars[-1])
    share = 0.5 * (place + 1)
    std = torch.exp(0.5 * (share * torch.log(beta) + (1 - share) * torch.log(posterior)))
    torch.testing.assert_close(ends[1] - ends[0], std * z, rtol=1e-10, atol=1e-12)


def test_the_own_output_of_a_network_that_learns_variance_is_its_prediction():
    path, net = sdegen.DDPM.linear(15), Counting(doubled=True)
    model, x = sdegen.ScoreModel(net, path, learns_variance=True), torch.randn(4, 3, 5)
    expected = net(x, torch.full((4,), 0.4))[:, :3]
    assert torch.equal(model(x, 0.4), expected)
    assert torch.equal(model.eps(x, 0.4), expected)
    half = sdegen.ScoreModel(Counting(), path, learns_variance=True)
    with pytest.raises(ValueError, match=r"\(4, 6, 5\)"):
        half(x, 0.4)


# Algorithm 1's times


def test_chain_times_are_uniform_on_the_chain():
    """Pearson's chi-square at significance 1e-6."""
    from scipy.stats import chi2

    K, n, cpu = 50, 200_000, torch.device("cpu")
    for path, times in (
        (sdegen.DDPM.linear(K), sdegen.ChainTimes()),
        (sdegen.VPSDE(), sdegen.ChainTimes(K)),
        (sdegen.CondOT(), sdegen.ChainTimes(K)),
    ):
        t, weight = times(path, n, torch.Generator().manual_seed(0), torch.float64, cpu)
        k = K * (t - path.t_data).abs()
        torch.testing.assert_close(k, k.round(), rtol=0, atol=1e-12 * K)
        counts = torch.bincount(k.round().long(), minlength=K + 1)
        assert int(counts[0]) == 0
        assert len(counts) == K + 1
        assert float((counts[1:] - n / K).square().sum() / (n / K)) < chi2.isf(1e-6, K - 1)
        assert torch.equal(weight, torch.ones(n))
    t, _ = sdegen.ChainTimes()(sdegen.DDPM.linear(), 4096, None, torch.float32, cpu)
    assert torch.equal(1 + sdegen.DDPM.linear().index(t), torch.round(1000 * t))


def test_algorithm_one_reaches_its_floor():
    """The mean over k of alpha^2 S / V at the exact eps, per value, within 5 standard errors."""
    path, n = sdegen.DDPM.linear(50, 1e-3, 0.2), 100_000
    target = sdegen.Gaussian([M, -M], math.sqrt(S))
    exact = target.model(path)
    model = sdegen.ScoreModel(lambda x, t: exact.eps(x, t), path)
    losses = sdegen.loss(model, target.sample(n), times=sdegen.ChainTimes(), reduction="none")
    bars = torch.cumprod(1 - path.betas, 0)
    floor = float((bars * S / (bars * S + 1 - bars)).mean())
    assert abs(float(losses.mean()) - floor) < 5 * float(losses.std()) / math.sqrt(n)


def test_a_network_trained_by_algorithm_one_reaches_the_floor():
    """By Adam, from zero to within 2 percent of the closed form; the excess of an affine net is known exactly."""
    K = 10
    path = sdegen.DDPM.linear(K, 1e-2, 0.3)
    table = torch.nn.Parameter(torch.zeros(K, 2))  # a weight and a bias for each k

    def net(x, k):
        weight, bias = table[k.long()].unbind(1)
        return weight[:, None] * x + bias[:, None]

    model, target = sdegen.ScoreModel(net, path, time=path.index), sdegen.Gaussian([M], math.sqrt(S))
    optimiser = torch.optim.Adam([table], lr=0.03)
    for step in range(600):
        optimiser.param_groups[0]["lr"] = 0.03 * (1 - step / 600)
        optimiser.zero_grad()
        sdegen.loss(model, target.sample(2048), times=sdegen.ChainTimes()).backward()
        optimiser.step()
    bars = torch.cumprod(1 - path.betas, 0)
    V = bars * S + 1 - bars
    weight, bias = table.detach().unbind(1)
    excess = (weight - torch.sqrt(1 - bars) / V) ** 2 * V + (weight * torch.sqrt(bars) * M + bias) ** 2
    assert float(excess.mean()) < 0.02 * float((bars * S / V).mean())


# What is refused, before the network is asked


CALLS = Counting()
CHAIN = sdegen.DDPM.linear(20, 1e-2, 0.3)
MODEL = sdegen.ScoreModel(CALLS, CHAIN)
X = torch.zeros(3, 2, dtype=torch.float64)


def generators(n):
    return [torch.Generator().manual_seed(i) for i in range(n)]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: sdegen.DDPM([]), ValueError, "1-D"),
        (lambda: sdegen.DDPM(torch.zeros(2, 3) + 0.1), ValueError, r"\(2, 3\)"),
        (lambda: sdegen.DDPM(torch.tensor(0.1)), ValueError, "1-D"),
        (lambda: sdegen.DDPM([0.1, -0.2]), ValueError, r"betas\[1\] is -0.2"),
        (lambda: sdegen.DDPM([0.1, 0.0]), ValueError, r"betas\[1\] is 0"),
        (lambda: sdegen.DDPM([0.1, 1.0, 2.0]), ValueError, r"betas\[1\] is 1"),
        (lambda: sdegen.DDPM([math.nan, 0.1]), ValueError, r"betas\[0\] is nan"),
        (lambda: sdegen.DDPM([0.1], smooth=1), TypeError, "smooth"),
        (lambda: sdegen.DDPM.linear(0), ValueError, "0"),
        (lambda: sdegen.DDPM.linear(10, 0.0, 0.1), ValueError, "beta_start"),
        (lambda: sdegen.DDPM.linear(10, 0.1, 1.0), ValueError, "beta_end"),
        (lambda: sdegen.DDPM.cosine(10, max_beta=1.0), ValueError, "max_beta"),
        (lambda: sdegen.DDPM.cosine(2.5), TypeError, "2.5"),
        (lambda: sdegen.DDPM.from_path(sdegen.CondOT(), 10), ValueError, "CondOT"),
        (lambda: sdegen.DDPM.from_path(sdegen.SubVPSDE(), 10), ValueError, "SubVPSDE"),
        (lambda: sdegen.DDPM.from_path(sdegen.VESDE(), 10), ValueError, "VESDE"),
        (lambda: sdegen.DDPM.from_path(sdegen.CosineVPSDE(), 10), ValueError, "max_beta"),
        (lambda: sdegen.DDPM.from_path(sdegen.VPSDE(0.1, 140.0), 1), ValueError, "max_beta"),
        (lambda: sdegen.DDPM.from_path(sdegen.VPSDE(), 0), ValueError, "0"),
        (lambda: CHAIN.respaced(21), ValueError, "21"),
        (lambda: CHAIN.respaced(0), ValueError, "0"),
        (lambda: CHAIN.respaced(5, "linspace"), ValueError, "'linspace'"),
        (lambda: CHAIN.index("3"), TypeError, "'3'"),
        (lambda: CHAIN.index(torch.tensor([3])), TypeError, "int64"),
        (lambda: sdegen.ChainTimes(0), ValueError, "0"),
        (lambda: sdegen.ChainTimes(2.0), TypeError, "2.0"),
        (lambda: sdegen.DDIM(0), ValueError, "0"),
        (lambda: sdegen.DDIM(10, eta=-0.1), ValueError, "-0.1"),
        (lambda: sdegen.DDIM(10, eta=1.5), ValueError, "1.5"),
        (lambda: sdegen.DDIM(10, eta=math.nan), ValueError, "nan"),
        (lambda: sdegen.DDIM(10, 0.5), TypeError, "positional"),
        (lambda: sdegen.Ancestral(10, "posterior"), TypeError, "positional"),
        (lambda: sdegen.ScoreModel(CALLS, CHAIN, learns_variance=1), TypeError, "learns_variance"),
    ],
)
def test_bad_options(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: sdegen.loss(MODEL, X, t=1.5), ValueError, "1.5"),
        (lambda: sdegen.loss(MODEL, X, t=-0.1), ValueError, "-0.1"),
        (lambda: sdegen.loss(MODEL, X, t=torch.tensor([0.1, 0.5, 2.0])), ValueError, "0.1, 2"),
        (lambda: sdegen.loss(MODEL, X, t=math.nan), ValueError, "nan"),
        (lambda: MODEL(X, 1.01), ValueError, "1.01"),
        (lambda: MODEL(X, -0.01), ValueError, "-0.01"),
        (lambda: MODEL.eps(X, 7.0), ValueError, "7"),
        (lambda: MODEL.score(X, torch.tensor([0.1, 0.2, 1.2])), ValueError, "1.2"),
        (lambda: MODEL.data(X, -1.0), ValueError, "-1"),
        (lambda: MODEL.v(X, math.inf), ValueError, "inf"),
        (lambda: MODEL.velocity(X, 1.5), ValueError, "1.5"),
        (lambda: sdegen.Gaussian([0.0, 0.0], 1.0).model(CHAIN).eps(X, 1.5), ValueError, "1.5"),
        (lambda: sdegen.solve(MODEL, X, sdegen.Ancestral(variance="learned")), ValueError, "learns_variance"),
        (
            lambda: sdegen.solve(MODEL, X, sdegen.Ancestral(variance="optimal"), generator=generators(3)),
            ValueError,
            "optimal_variance",
        ),
        (
            lambda: sdegen.sample(MODEL, (3, 2), sdegen.Ancestral(variance="optimal"), generator=generators(3)),
            ValueError,
            "optimal_variance",
        ),
        (lambda: sdegen.solve(MODEL, X, sdegen.Ancestral(variance=torch.ones(19))), ValueError, "20.*19"),
        (lambda: sdegen.solve(MODEL, X, sdegen.DDIM(grid=CHAIN.respaced(5))), ValueError, "grid runs"),
        (lambda: sdegen.solve(MODEL, X, sdegen.DDIM(), to="noise"), ValueError, "DDIM"),
        (lambda: sdegen.solve(MODEL, X, sdegen.DDIM(eta=0.5), noise=torch.zeros(19, 3, 2)), ValueError, "noise"),
        (
            lambda: sdegen.solve(sdegen.ScoreModel(CALLS, sdegen.VPSDE()), X, sdegen.DDIM()),
            ValueError,
            "DDIM needs steps",
        ),
        (
            lambda: sdegen.loss(sdegen.ScoreModel(CALLS, sdegen.VPSDE()), X, times=sdegen.ChainTimes()),
            ValueError,
            "ChainTimes needs steps",
        ),
        (lambda: sdegen.encode(MODEL, X, sdegen.DDIM()), TypeError, "DDIM"),
        (lambda: sdegen.log_prob(MODEL, X, sdegen.DDIM()), TypeError, "DDIM"),
    ],
)
def test_bad_input_is_refused_before_the_network_is_asked(call, error, says):
    CALLS.calls = 0
    with pytest.raises(error, match=says):
        call()
    assert CALLS.calls == 0


# Parts of a chain, and what must not happen quietly


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


def test_a_part_of_a_chain_takes_the_chains_own_knots():
    path, seen = sdegen.DDPM.linear(50, 1e-3, 0.1), []

    def net(x, t):
        seen.append(float(t[0]))
        return x

    model = sdegen.ScoreModel(net, path, time=path.index)
    u = tuple(float(path.clock(torch.tensor(k / 50))) for k in (25, 5))
    sdegen.solve(model, torch.zeros(2, 1), sdegen.Ancestral(), u=u)
    assert seen == list(range(24, 4, -1))


def test_an_index_is_whole_on_every_respaced_chain():
    path = sdegen.DDPM.linear()
    for spacing in ("leading", "trailing"):
        index = path.index(path.time(path.respaced(50, spacing)[:-1]))
        assert torch.equal(index, index.round())


def test_optimal_variance_cannot_run_away_where_the_batch_says_little():
    """Ten steps of a small batch from nearly pure noise: the first step's variance lies between the named ones."""
    path, target = sdegen.VPSDE(), sdegen.Gaussian(torch.tensor([0.8]), 0.5)
    noise = torch.ones(10, 64, 1)
    for seed in range(20):
        x_T = torch.randn(64, 1, generator=torch.Generator().manual_seed(seed))
        steps = {
            v: sdegen.solve(
                target.model(path), x_T, sdegen.Ancestral(10, variance=v), noise=noise, trajectory=True
            ).trajectory[1]
            for v in ("optimal", "beta", "posterior")
        }
        assert bool((steps["optimal"] <= steps["beta"] + 1e-9).all())
        assert bool((steps["optimal"] >= steps["posterior"] - 1e-9).all())


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
        with pytest.raises(TypeError, match="betas must be"):
            sdegen.DDPM(betas)


def test_a_chain_is_pickled_without_its_copies():
    path = sdegen.DDPM.linear(10, 1e-3, 0.1, smooth=True)
    path._tables["elsewhere"] = path._tables["cpu"]
    again = pickle.loads(pickle.dumps(path))
    assert list(again._tables) == ["cpu"]
    assert torch.equal(again.alpha(torch.linspace(0, 1, 7)), path.alpha(torch.linspace(0, 1, 7)))
