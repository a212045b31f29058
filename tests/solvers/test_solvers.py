"""Solvers: frozen exact laws, orders, network calls, grids and golden steps."""

from __future__ import annotations

import math

import pytest
import torch
from problems import PATHS, affine_law, coarsen, ring, slope, two_modes

import sdegen
from sdegen.solvers import ODE_METHODS, SDE_METHODS

FROZEN = [  # S, m, eta, variance after 100 Euler steps on PowerGrid(2), VP 0.1/20, exact start
    (0.25, 0.8, 1.0, 0.2523536796339106),
    (0.01, 1.2, 1.0, 0.0101903667664928),
    (1e-4, 0.5, 1.0, 1.062921167666384e-4),
    (0.25, 0.8, 0.0, 0.2425359104410408),
    (0.01, 1.2, 0.0, 0.009602299663472397),
    (1e-4, 0.5, 0.0, 8.937634462556598e-5),
]


@pytest.mark.parametrize(("S", "m", "eta", "variance"), FROZEN)
def test_euler_has_its_exact_law(S, m, eta, variance):
    law = affine_law(sdegen.VPSDE(), sdegen.SDESolver("euler", 100, eta=eta, grid=sdegen.PowerGrid(2)), S, m, 100)
    assert abs(law[0] / m - 1) < 1e-12
    assert abs(law[1] / variance - 1) < 1e-10


def test_euler_with_anderson_s_profile_on_a_grid_uniform_in_sqrt_t():
    solver = sdegen.SDESolver("euler", 100, w=lambda u: (2 * u / (1 - u)).sqrt(), grid=sdegen.PowerGrid(2, "t"))
    mean, variance = affine_law(sdegen.VPSDE(), solver, 0.25, 0.8, 100)
    assert abs(mean / 0.8 - 1) < 1e-12
    assert abs(variance / 0.2512875423283314 - 1) < 1e-10


@pytest.mark.parametrize(("variance", "frozen"), [("beta", 0.256658082543691), ("posterior", 0.219211868730530)])
def test_ancestral_has_its_exact_law(variance, frozen):
    grid = sdegen.PowerGrid(1, "t")
    law = affine_law(sdegen.VPSDE(), sdegen.Ancestral(100, variance=variance, grid=grid), 0.25, 0.8, 100)
    assert abs(law[0] / 0.8 - 1) < 1e-12
    assert abs(law[1] / frozen - 1) < 1e-10
    # the same chain, observed: the default on the DDPM path that is this SDE on its grid
    t = torch.arange(0, 101) / 100
    chain = sdegen.DDPM(-torch.expm1(-torch.diff(sdegen.VPSDE().integrated_beta(t))))
    law = affine_law(chain, sdegen.Ancestral(variance=variance), 0.25, 0.8, 100)
    assert abs(law[1] / frozen - 1) < 1e-9


def test_ancestral_takes_variances_in_the_order_of_the_betas():
    betas = torch.linspace(1e-3, 0.2, 20)
    path = sdegen.DDPM(betas)
    own = affine_law(path, sdegen.Ancestral(variance=betas), 0.25, 0.8, 20)
    by_name = affine_law(path, sdegen.Ancestral(variance="beta"), 0.25, 0.8, 20)
    assert abs(own[1] / by_name[1] - 1) < 1e-12


@pytest.mark.parametrize("path", ["vp", "subvp", "cosine", "ddpm", "condot"])
@pytest.mark.parametrize(("S", "m"), [(1.0, 0.3), (0.25, 0.8), (0.01, 1.2), (1e-4, 0.5)])
def test_the_default_grid_is_good_on_every_path(path, S, m):
    mean, variance = affine_law(PATHS[path], sdegen.SDESolver("euler", 100), S, m, 100)
    assert abs(mean / m - 1) < 1e-9
    assert abs(variance / S - 1) < 0.1


@pytest.mark.parametrize("method", SDE_METHODS)
def test_law_order_of_sde_methods(method):
    """Variance on N(0.8, 0.25), PowerGrid(2) on VP, N = 64 to 256."""
    eta = 0.3 if method == "reversible_heun" else 1.0
    steps = [64, 128, 256]
    laws = [
        affine_law(sdegen.VPSDE(), sdegen.SDESolver(method, n, eta=eta, grid=sdegen.PowerGrid(2)), 0.25, 0.8, n)
        for n in steps
    ]
    assert abs(slope(steps, [abs(variance - 0.25) for _, variance in laws]) - SDE_METHODS[method].order) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("method", SDE_METHODS)
def test_strong_order_of_sde_methods(method):
    """Root mean square distance to a fine solve on the same Brownian path: the mixture, u from 0.9 to 0.1, uniform."""
    fine, batch = 1024, 1000
    g = torch.Generator().manual_seed(2)
    w, area = torch.randn(2, fine, batch, 1, generator=g)
    path, target = sdegen.VPSDE(), two_modes()
    x = target.marginal(path, float(path.time(0.9))).sample(batch, g)
    eta = 0.3 if method == "reversible_heun" else 1.0

    def end(method, n):
        noise = coarsen(w, area, fine // n)
        solver = sdegen.SDESolver(method, n, eta=eta, grid=sdegen.PowerGrid(1))
        noise = noise if method == "srk" else noise[:, 0]
        return sdegen.solve(target.model(path), x, solver, u=(0.9, 0.1), noise=noise).x

    exact, steps = end("srk", fine), [16, 32, 64, 128]
    order = slope(steps, [float((end(method, n) - exact).square().mean().sqrt()) for n in steps])
    assert abs(order - SDE_METHODS[method].strong) < 0.25
    if method == "srk":
        assert order >= 1.5


@pytest.mark.parametrize("method", [name for name, method in ODE_METHODS.items() if not method.adaptive])
def test_order_of_fixed_grid_ode_methods(method):
    """Distance to the exact end point on the mixture, where no symmetry flatters a method, PowerGrid(2) on VP.

    (On Gaussian data the explicit midpoint rule gains an order: V(u) is a quadratic.)
    """
    target, path = two_modes(), sdegen.VPSDE()
    model, x = target.model(path), torch.linspace(-2, 2, 33)[:, None]
    exact = sdegen.solve(model, x, sdegen.ODESolver("dopri8", rtol=1e-13)).x
    steps = [64, 128, 256] if ODE_METHODS[method].order < 4 else [32, 64, 128]
    ends = [sdegen.solve(model, x, sdegen.ODESolver(method, steps=n, grid=sdegen.PowerGrid(2))).x for n in steps]
    order = slope(steps, [float((end - exact).square().mean().sqrt()) for end in ends])
    assert abs(order - ODE_METHODS[method].order) < 0.25


@pytest.mark.parametrize("method", [name for name, method in ODE_METHODS.items() if method.adaptive])
def test_adaptive_ode_methods_follow_their_tolerance(method):
    """The exact flow of Gaussian data (THEORY 11.2): an error that falls with the tolerance."""
    target, path = sdegen.Gaussian([0.8], 0.5), sdegen.VPSDE()
    model, x = target.model(path), torch.linspace(-2, 2, 9)[:, None]
    alpha, V = float(path.alpha(1.0)), float(path.alpha(1.0)) ** 2 * 0.25 + float(path.sigma(1.0)) ** 2
    exact = 0.8 + 0.5 / math.sqrt(V) * (x - alpha * 0.8)
    errors = [
        float((sdegen.solve(model, x, sdegen.ODESolver(method, rtol=tol)).x - exact).abs().max())
        for tol in (1e-3, 1e-6)
    ]
    assert errors[1] < 2e-4
    assert errors[1] < 0.05 * errors[0]


@pytest.mark.parametrize("method", SDE_METHODS)
def test_network_calls_of_sde_methods(method):
    calls = []
    model = sdegen.ScoreModel(lambda x, t: calls.append(1) or torch.zeros_like(x), sdegen.VPSDE())
    solution = sdegen.solve(model, torch.zeros(2, 3), sdegen.SDESolver(method, 17, eta=0.2))
    expected = 18 if method == "reversible_heun" else 17 * SDE_METHODS[method].calls
    assert len(calls) == solution.calls == expected
    assert (solution.accepted, solution.rejected, solution.error) == (17, 0, None)


@pytest.mark.parametrize("method", ODE_METHODS)
def test_network_calls_of_ode_methods(method):
    calls = []
    model = sdegen.ScoreModel(lambda x, t: calls.append(1) or torch.tanh(x), sdegen.VPSDE())
    scheme = ODE_METHODS[method]
    solver = sdegen.ODESolver(method, rtol=1e-3) if scheme.adaptive else sdegen.ODESolver(method, steps=17)
    solution = sdegen.solve(model, torch.ones(2, 3), solver)
    steps = solution.accepted + solution.rejected
    assert len(calls) == solution.calls == steps * scheme.calls + (2 if scheme.adaptive else 0)
    assert scheme.adaptive or steps == 17
    assert (solution.error is not None) == scheme.adaptive


def test_network_calls_of_ancestral():
    calls = []
    model = sdegen.ScoreModel(lambda x, t: calls.append(1) or torch.zeros_like(x), sdegen.VPSDE())
    assert sdegen.solve(model, torch.zeros(2, 3), sdegen.Ancestral(17)).calls == len(calls) == 17


def test_euler_through_torchsde_is_a_bare_loop_to_the_bit():
    model, x, noise = ring().model(sdegen.VPSDE()), torch.randn(32, 2), torch.randn(50, 32, 2)
    u = sdegen.VPSDE().ends[1] * (torch.arange(50, -1, -1) / 50) ** 2
    y, one = x / float(sdegen.VPSDE().scale(u[0])), torch.ones(1)
    for k in range(50):
        h = u[k] - u[k + 1]
        gamma = 1 / torch.clamp(1 - u[k], min=0.1)
        (query,) = model.plan(y, u[k] * one, None, h * one, (-h - h * gamma) * one)
        y = y + model.estimate(y, query, {}) + (torch.sqrt(2 * u[k] * gamma) * h.sqrt()) * noise[k]
    y = y * float(sdegen.VPSDE().scale(torch.tensor(0.0)))
    assert torch.equal(sdegen.solve(model, x, sdegen.SDESolver("euler", 50), noise=noise).x, y)


def test_one_ancestral_step_is_the_ddpm_formula():
    """Ho et al. 2020, Algorithm 2: x_{k-1} = (x_k - beta_k eps / sqrt(1 - abar_k)) / sqrt(alpha_k) + sigma_k z."""
    betas = torch.linspace(1e-3, 0.2, 20)
    path, bars = sdegen.DDPM(betas), torch.cumprod(1 - betas, 0)
    model = sdegen.ScoreModel(lambda x, t: torch.tanh(x) * t[:, None], path)
    x, noise = torch.randn(4, 2), torch.randn(20, 4, 2)
    out = sdegen.solve(model, x, sdegen.Ancestral(), noise=noise, trajectory=True)
    for k in range(20, 0, -1):
        beta, bar = betas[k - 1], bars[k - 1]
        x = (x - beta * torch.tanh(x) * (k / 20) / torch.sqrt(1 - bar)) / torch.sqrt(1 - beta)
        if k > 1:
            x = x + torch.sqrt(beta) * noise[20 - k]
        torch.testing.assert_close(out.trajectory[21 - k], x, rtol=1e-11, atol=1e-11)
        assert float(out.t[21 - k]) == (k - 1) / 20


def test_grids_land_where_they_say():
    path = sdegen.VPSDE()
    model, x = ring().model(path), torch.randn(1, 2)
    high = path.ends[1]
    fraction = torch.arange(10, -1, -1) / 10
    for solver, u in (
        (sdegen.SDESolver(steps=10), high * fraction**2),
        (sdegen.ODESolver("rk4", steps=10, grid=sdegen.PowerGrid(3)), high * fraction**3),
        (sdegen.SDESolver(steps=10, grid=sdegen.PowerGrid(1, "t")), path.clock(fraction)),
        (sdegen.SDESolver(steps=10, grid=sdegen.PowerGrid(2, "t")), path.clock(fraction**2)),
        (sdegen.SDESolver(grid=high * fraction), high * fraction),
        (sdegen.Ancestral(grid=high * fraction.flip(0)), high * fraction),
    ):
        solution = sdegen.solve(model, x, solver)
        torch.testing.assert_close(solution.u, u, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(path.clock(solution.t), solution.u, rtol=1e-12, atol=1e-15)
    flow = sdegen.solve(ring().model(sdegen.CondOT()), x, sdegen.SDESolver(steps=10, grid=sdegen.PowerGrid(1, "t")))
    torch.testing.assert_close(flow.t, 1 - fraction, rtol=1e-12, atol=1e-15)
    forth = sdegen.solve(model, x, sdegen.ODESolver("rk4", steps=10, grid=sdegen.PowerGrid(2)), to="noise")
    torch.testing.assert_close(forth.u.flip(0), high * fraction**2, rtol=1e-12, atol=1e-15)
    part = sdegen.solve(model, x, sdegen.SDESolver(steps=10), u=(0.8, 0.2))
    torch.testing.assert_close(part.u, 0.2 + 0.6 * fraction**2, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("method", ["euler", "srk", "heun", "midpoint"])
def test_adaptive_sde_trajectories_hold_the_states(method):
    """At eta = 0 every recorded state lies on the ODE's exact trajectory, the first on the start itself."""
    model, x = ring().model(sdegen.VPSDE()), torch.randn(4, 2)
    solver = sdegen.SDESolver(method, eta=0.0, adaptive=True, rtol=1e-4, atol=1e-4)
    solution = sdegen.solve(model, x, solver, trajectory=True)
    torch.testing.assert_close(solution.trajectory[0], x)
    tight = sdegen.ODESolver("dopri8", rtol=1e-9)
    for k in (len(solution.u) // 3, 2 * len(solution.u) // 3):
        exact = sdegen.solve(model, x, tight, u=(float(solution.u[0]), float(solution.u[k]))).x
        torch.testing.assert_close(solution.trajectory[k], exact, rtol=0, atol=2e-2)


@pytest.mark.parametrize("method", ["euler", "srk", "heun", "log_ode", "reversible_heun"])
def test_adaptive_sde_reaches_the_law(method):
    """Mean and variance of 4000 samples of N(0.8, 0.25) within 6 standard errors plus a tolerance-sized bias."""
    target, path, n = sdegen.Gaussian([0.8], 0.5), sdegen.VPSDE(), 4000
    g = torch.Generator().manual_seed(0)
    eta = 0.3 if method == "reversible_heun" else 1.0
    x = target.marginal(path, 1.0).sample(n, g)
    solver = sdegen.SDESolver(method, eta=eta, adaptive=True, rtol=3e-3, atol=3e-3)
    solution = sdegen.solve(target.model(path), x, solver, generator=g, trajectory=method != "reversible_heun")
    assert abs(float(solution.x.mean()) - 0.8) < 6 * 0.5 / math.sqrt(n) + 0.005
    assert abs(float(solution.x.var()) / 0.25 - 1) < 6 * math.sqrt(2 / n) + 0.03
    if method != "reversible_heun":
        assert solution.trajectory.shape == (solution.accepted + 1, n, 1)
        assert torch.equal(solution.trajectory[-1], solution.x)
    assert bool((torch.diff(solution.u) < 0).all())


def test_trajectories_hold_every_state():
    model, x = ring().model(sdegen.VPSDE()), torch.randn(4, 2)
    for solver in (
        sdegen.SDESolver("srk", 12),
        sdegen.ODESolver("rk4", steps=12),
        sdegen.ODESolver("dopri5"),
        sdegen.Ancestral(12),
    ):
        g = torch.Generator().manual_seed(0)
        whole = sdegen.solve(model, x, solver, generator=g, trajectory=True)
        assert whole.trajectory.shape == (len(whole.u), 4, 2) == (whole.accepted + 1, 4, 2)
        torch.testing.assert_close(whole.trajectory[0], x)
        assert torch.equal(whole.trajectory[-1], whole.x)
        assert torch.equal(whole.x, sdegen.solve(model, x, solver, generator=g.manual_seed(0)).x)
    ode = sdegen.solve(model, x, sdegen.ODESolver("dopri8", rtol=1e-10), trajectory=True)
    middle = len(ode.u) // 2
    rest = sdegen.solve(
        model, ode.trajectory[middle], sdegen.ODESolver("dopri8", rtol=1e-10), u=(float(ode.u[middle]), 0.0)
    )
    torch.testing.assert_close(rest.x, ode.x, rtol=1e-7, atol=1e-8)


def test_reported_error_is_per_sample():
    """One number a sample, positive, and at most one tolerance for every accepted step."""
    model = ring().model(sdegen.VPSDE())
    x = torch.cat([torch.randn(4, 2), torch.full((1, 2), 9.0)])
    error = sdegen.solve(model, x, sdegen.ODESolver("dopri5", rtol=1e-6, norm="sample")).error
    assert error.shape == (5,)
    assert bool((error > 0).all())
    assert float(error.max()) <= sdegen.solve(model, x, sdegen.ODESolver("dopri5", rtol=1e-6)).accepted


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: sdegen.SDESolver("eulr", 10), ValueError, "'eulr'.*'euler'.*'reversible_heun'"),
        (lambda: sdegen.SDESolver("euler"), ValueError, "steps"),
        (lambda: sdegen.SDESolver("euler", 0), ValueError, "0"),
        (lambda: sdegen.SDESolver("euler", -3), ValueError, "-3"),
        (lambda: sdegen.SDESolver("euler", 2.5), TypeError, "2.5"),
        (lambda: sdegen.SDESolver("euler", True), TypeError, "True"),
        (lambda: sdegen.SDESolver("euler", "8"), TypeError, "'8'"),
        (lambda: sdegen.SDESolver("euler", 10, eta=-1.0), ValueError, "-1"),
        (lambda: sdegen.SDESolver("euler", 10, eta=math.nan), ValueError, "nan"),
        (lambda: sdegen.SDESolver("euler", 10, rtol=1e-3), ValueError, "adaptive"),
        (lambda: sdegen.SDESolver("euler", 10, adaptive=True), ValueError, "10"),
        (lambda: sdegen.SDESolver("euler", adaptive=True, rtol=0.0), ValueError, "rtol"),
        (lambda: sdegen.SDESolver("euler", adaptive="no"), TypeError, "'no'"),
        (lambda: sdegen.SDESolver("euler", 10, grid="quadratic"), TypeError, "'quadratic'"),
        (lambda: sdegen.SDESolver("euler", 10, grid=torch.linspace(0, 1, 10)), ValueError, "11 knots"),
        (lambda: sdegen.SDESolver(grid=torch.tensor([0.0, 0.5, 0.2])), ValueError, "monotone"),
        (lambda: sdegen.SDESolver("reversible_heun", 10, grid=sdegen.PowerGrid(2, "t")), ValueError, "smooth"),
        (lambda: sdegen.SDESolver("euler", 10, w=3), ValueError, "callable"),
        (lambda: sdegen.SDESolver("euler", 10, eta=0.5, w=lambda u: u), ValueError, "0.5"),
        (lambda: sdegen.SDESolver("euler", 10, noise_level=2), TypeError, "noise_level"),
        (lambda: sdegen.SDESolver("euler", 10, 0.5), TypeError, "positional"),
        (lambda: sdegen.ODESolver("rk45"), ValueError, "'rk45'.*'dopri5'"),
        (lambda: sdegen.ODESolver("explicit_adams", steps=10), ValueError, "explicit_adams"),
        (lambda: sdegen.ODESolver("rk4"), ValueError, "steps"),
        (lambda: sdegen.ODESolver("rk4", steps=4, rtol=1e-3), ValueError, "0.001"),
        (lambda: sdegen.ODESolver("dopri5", steps=10), ValueError, "10"),
        (lambda: sdegen.ODESolver("dopri5", rtol=0.0), ValueError, "0"),
        (lambda: sdegen.ODESolver("dopri5", rtol=-1e-3), ValueError, "-0.001"),
        (lambda: sdegen.ODESolver("dopri5", rtol=math.nan), ValueError, "nan"),
        (lambda: sdegen.ODESolver("dopri5", atol=math.inf), ValueError, "inf"),
        (lambda: sdegen.ODESolver("dopri5", norm="max"), ValueError, "'max'"),
        (lambda: sdegen.ODESolver("dopri5", max_steps=0), ValueError, "0"),
        (lambda: sdegen.ODESolver("dopri5", 1e-5), TypeError, "steps must be an integer, and 1e-05 is float"),
        (lambda: sdegen.Ancestral(0), ValueError, "0"),
        (lambda: sdegen.Ancestral(10, variance="large"), ValueError, "'large'.*'beta'"),
        (lambda: sdegen.Ancestral(10, variance=-torch.ones(10)), ValueError, "non-negative"),
        (lambda: sdegen.PowerGrid(0), ValueError, "0"),
        (lambda: sdegen.PowerGrid(2, "lambda"), ValueError, "'lambda'"),
        (lambda: sdegen.Hutchinson(0), ValueError, "0"),
    ],
)
def test_bad_options(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_solvers_are_frozen_values():
    assert sdegen.SDESolver("euler", 10) == sdegen.SDESolver("euler", 10)
    with pytest.raises(AttributeError):
        sdegen.SDESolver("euler", 10).steps = 3


@pytest.mark.parametrize("solver", [sdegen.SDESolver(steps=5), sdegen.SDESolver("srk", 5), sdegen.Ancestral(5)])
def test_drawn_noise_is_one_fresh_draw_a_step(solver):
    """What a generator draws: the start, then (B, *event) a step (srk: (B, 2, *event)), each used in its own step."""
    model, g = ring().model(sdegen.VPSDE()), torch.Generator().manual_seed(5)
    drawn = sdegen.sample(model, (3, 2), solver, generator=g)
    g.manual_seed(5)
    x_T = sdegen.VPSDE().prior.std * torch.randn(3, 2, generator=g)
    if getattr(solver, "method", "") == "srk":
        noise = torch.stack([torch.randn(3, 2, 2, generator=g).transpose(0, 1) for _ in range(5)])
    else:
        noise = torch.stack([torch.randn(3, 2, generator=g) for _ in range(5)])
    assert torch.equal(drawn, sdegen.sample(model, (3, 2), solver, x_T=x_T, noise=noise))


def test_default_grids():
    fraction = torch.arange(8, -1, -1) / 8
    model, x, high = ring().model(sdegen.VPSDE()), torch.zeros(1, 2), sdegen.VPSDE().ends[1]
    for solver, p in (
        (sdegen.SDESolver(steps=8), 2),
        (sdegen.ODESolver("rk4", steps=8), 1.5),
        (sdegen.Ancestral(8), 2),
    ):
        torch.testing.assert_close(sdegen.solve(model, x, solver).u, high * fraction**p, rtol=1e-12, atol=1e-15)
    chain = sdegen.DDPM(torch.linspace(1e-3, 0.2, 8))
    assert torch.equal(sdegen.solve(ring().model(chain), x, sdegen.Ancestral()).t, fraction)


@pytest.mark.parametrize("to", ["data", "noise"])
def test_adaptive_steps_see_the_same_sde(to):
    """At any s the drift and the noise of an adaptive solve are those of base.py at u(s), times du/ds."""
    from sdegen.solvers.base import Problem
    from sdegen.solvers.sde import _AnyTime

    model, high = ring().model(sdegen.CondOT()), 0.97
    u_from, u_to = (high, 0.0) if to == "data" else (0.0, high)
    problem = Problem(model, torch.randn(4, 2), u_from, u_to)
    rhs = _AnyTime(sdegen.SDESolver(adaptive=True, eta=0.8), problem)
    s, h = 0.3, 1e-6
    at = [high * (1 - r) ** 2 if to == "data" else high * r**2 for r in (s - h, s, s + h)]
    u, rate = at[1], (at[2] - at[0]) / (2 * h)
    gamma = 0.8**2 / max(1 - u, 0.1)
    y = torch.randn(4, 2)
    exact = model.eps(y, 1 - u), model.data(y, 1 - u)  # on CondOT y = x_t and t = 1 - u
    drift = (exact[0] - exact[1]) * rate - gamma * exact[0] * abs(rate)
    torch.testing.assert_close(rhs.f(torch.tensor(s), y), drift, rtol=1e-7, atol=1e-8)
    level = math.sqrt(2 * u * gamma * abs(rate))
    torch.testing.assert_close(
        rhs.g_prod(torch.tensor(s), y, torch.ones(4, 2)), torch.full((4, 2), level), rtol=1e-7, atol=0
    )
