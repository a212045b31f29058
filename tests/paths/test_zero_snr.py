"""Chains whose last beta is 1: alpha falls linearly to 0 in that step, and the path ends in pure noise, at u = 1."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from chains import DATA, Counting, M, S, Theory, nodes
from problems import affine_law, ring, zero_snr

import sdegen

SHORT = zero_snr(sdegen.DDPM.linear(20, 1e-2, 0.4))
CHAINS = {
    "rescaled": zero_snr(sdegen.DDPM.linear(1000)).betas,
    "short": SHORT.betas,
    "abrupt": torch.tensor([0.01, 0.02, 0.01, 1.0], dtype=torch.float64),
    "two": torch.tensor([0.3, 1.0], dtype=torch.float64),
    "one": torch.ones(1, dtype=torch.float64),
}

every_chain = pytest.mark.parametrize("betas", CHAINS.values(), ids=CHAINS.keys())
either = pytest.mark.parametrize("smooth", [False, True], ids=["lines", "smooth"])


def v_model(path, law=DATA):
    """An exact v-network: singular nowhere."""
    return sdegen.ScoreModel(law.model(path).v, path, "v")


# The path


@every_chain
@either
def test_the_last_step_is_a_straight_line_to_pure_noise(betas, smooth):
    path, K, q = sdegen.DDPM(betas, smooth=smooth), len(betas), torch.linspace(0, 1, 9)
    t = (K - 1 + q) / K
    start = torch.prod(1 - betas[:-1]).sqrt()
    torch.testing.assert_close(path.alpha(t), start * (1 - q), rtol=1e-11, atol=0)
    torch.testing.assert_close(path.sigma(t) ** 2 + path.alpha(t) ** 2, torch.ones(9), rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.exp(-0.5 * path.integrated_beta(t)), path.alpha(t), rtol=1e-13, atol=0)
    assert path.ends == (0.0, 1.0)
    assert path.prior.std == 1.0
    assert [float(f(1.0)) for f in (path.alpha, path.sigma, path.clock)] == [0.0, 1.0, 1.0]
    assert float(path.log_snr(1.0)) == -math.inf
    assert float(path.beta(1.0)) == float(path.integrated_beta(1.0)) == math.inf
    assert float(path.time(1.0)) == 1.0


@every_chain
@either
def test_before_the_last_step_it_is_the_chain_without_it(betas, smooth):
    if len(betas) == 1:
        pytest.skip("there is nothing before the last step")
    path, rest, K = sdegen.DDPM(betas, smooth=smooth), sdegen.DDPM(betas[:-1]), len(betas)
    knots = torch.arange(K, dtype=torch.float64)
    torch.testing.assert_close(path.alpha(knots / K), rest.alpha(knots / (K - 1)), rtol=1e-14, atol=0)
    torch.testing.assert_close(path.sigma(knots / K), rest.sigma(knots / (K - 1)), rtol=1e-14, atol=0)


@every_chain
@either
def test_slopes_are_autograds_up_to_pure_noise(betas, smooth):
    """Inside every step, at the last knot and at t = 1, where B is infinite and its slopes are not."""
    path, K = sdegen.DDPM(betas, smooth=smooth), len(betas)
    t = torch.cat([(torch.arange(K)[:, None] + torch.tensor([0.1, 0.5, 0.9])).flatten() / K, torch.ones(1)])
    t = t.requires_grad_()
    slopes = path.slopes(t)
    for f, stated in zip((path.alpha, path.sigma, lambda t: path.sigma(t) ** 2), slopes, strict=True):
        torch.testing.assert_close(torch.autograd.grad(f(t).sum(), t)[0], stated, rtol=1e-8, atol=1e-14)
    torch.testing.assert_close(slopes.variance, -2 * path.alpha(t) * slopes.alpha, rtol=1e-12, atol=0)
    (of_clock,) = torch.autograd.grad(path.clock(t[-1:]).sum(), t)
    torch.testing.assert_close(of_clock[-1], -slopes.alpha[-1], rtol=1e-12, atol=0)
    beta, g = path.beta(t[:-1]), path.diffusion(t[:-1])
    torch.testing.assert_close(g**2, beta, rtol=1e-9, atol=0)


def test_the_slope_of_a_chain_is_autograds_at_its_knots():
    for path in (SHORT, sdegen.DDPM.linear(20, 1e-2, 0.4, smooth=True)):
        t = (torch.arange(1, 21) / 20).requires_grad_()
        (slope,) = torch.autograd.grad(path.alpha(t).sum(), t)
        torch.testing.assert_close(slope, path.slopes(t).alpha, rtol=1e-12, atol=0)


@every_chain
@either
def test_the_clock_is_inverted_up_to_pure_noise(betas, smooth):
    path = sdegen.DDPM(betas, smooth=smooth)
    u = torch.cat([torch.logspace(-12, -2.1, 41), torch.linspace(0.01, 1, 1001), 1 - torch.logspace(-3, -12, 20)])
    u = u.sort().values
    t = path.time(u)
    torch.testing.assert_close(path.clock(t), u, rtol=1e-12, atol=0)
    assert bool((torch.diff(t) > 0).all())
    single = path.time(u.float())
    assert single.dtype == torch.float32
    assert float(single[-1]) == 1
    torch.testing.assert_close(path.clock(single.double()), u, rtol=1e-4, atol=1e-6)


def test_a_smooth_chain_has_no_kink_before_its_last_step():
    for betas in (CHAINS["rescaled"], SHORT.betas):
        path, at = sdegen.DDPM(betas, smooth=True), 1 - 1 / len(betas)
        left, right = float(path.beta(at - 1e-9 / len(betas))), float(path.beta(at))
        assert left == pytest.approx(right, rel=1e-6) == pytest.approx(2 * len(betas), rel=1e-6)
    abrupt = sdegen.DDPM(CHAINS["abrupt"], smooth=True)  # the last slope is cut where B would fall
    assert bool((torch.diff(abrupt.integrated_beta(torch.linspace(0, 1, 1001))) > 0).all())


def test_it_is_a_value_like_any_chain():
    path = zero_snr(sdegen.DDPM.linear(10))
    _ = path.ends, path.prior
    for same in (sdegen.DDPM(path.betas.tolist()), copy.deepcopy(path), pickle.loads(pickle.dumps(path))):
        assert same == path
        assert hash(same) == hash(path)
        assert torch.equal(same.alpha(torch.linspace(0, 1, 7)), path.alpha(torch.linspace(0, 1, 7)))
    assert path != sdegen.DDPM([*path.betas.tolist()[:-1], 0.999])
    assert repr(path) == "DDPM(10 betas from 0.0001 to 1)"


def test_its_integers_and_its_shorter_chains():
    path = zero_snr(sdegen.DDPM.linear(1000))
    k = torch.arange(1, 1001)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(path.index(k.to(dtype) / 1000), (k - 1).to(dtype))
    trailing, leading = path.respaced(50, "trailing"), path.respaced(50)
    assert float(trailing[0]) == 1.0
    assert torch.equal((path.time(trailing) * 1000).round().long(), torch.arange(1000, -1, -20))
    assert float(leading[0]) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solvers_show_the_network_whole_integers(dtype):
    path, net = zero_snr(sdegen.DDPM.linear(333)), Counting()
    model, x = sdegen.ScoreModel(net, path, "v", time=path.index), torch.randn(2, 1, dtype=dtype)
    for solver in (sdegen.Ancestral(), sdegen.DDIM()):
        net.times.clear()
        sdegen.solve(model, x, solver)
        assert torch.equal(torch.stack(net.times)[:, 0], torch.arange(332, -1, -1, dtype=dtype))


# What it refuses


@pytest.mark.parametrize(
    ("betas", "says"),
    [
        ([0.1, 1.0, 0.2], r"below 1, but for the last, which may be 1, and betas\[1\] is 1.0"),
        ([1.0, 1.0], r"below 1, but for the last, which may be 1, and betas\[0\] is 1.0"),
        ([0.1, 1.5], r"betas\[1\] is 1.5"),
        ([0.1, math.inf], r"betas\[1\] is inf"),
        ([0.0], r"betas\[0\] is 0.0"),
    ],
)
def test_one_is_refused_anywhere_but_last(betas, says):
    with pytest.raises(ValueError, match=says):
        sdegen.DDPM(betas)


def test_other_chains_keep_their_limits():
    for make, says in (
        (lambda: sdegen.DDPM.linear(10, 0.1, 1.0), r"beta_end must be a finite number in \(0, 1\), and it is 1.0"),
        (lambda: sdegen.DDPM.cosine(10, max_beta=1.0), r"max_beta must be a finite number in \(0, 1\), and it is 1.0"),
        (lambda: sdegen.DDPM.from_path(SHORT, 20), "reaches pure noise within a step.*give max_beta"),
    ):
        with pytest.raises(ValueError, match=says):
            make()
    cut = sdegen.DDPM.from_path(SHORT, 20, max_beta=0.9)
    torch.testing.assert_close(cut.betas, SHORT.betas.clamp(max=0.9), rtol=1e-10, atol=0)


@pytest.mark.parametrize("predicts", ["eps", "score"])
def test_a_noise_network_is_not_asked_at_pure_noise(predicts):
    calls = []
    model = sdegen.ScoreModel(lambda x, t: calls.append(1) or x, SHORT, predicts)
    for solver in (sdegen.DDIM(), sdegen.Ancestral(), sdegen.Adams(8)):
        with pytest.raises(ValueError, match=rf"at u = 1, where .* is singular for '{predicts}'"):
            sdegen.sample(model, (2, 1), solver)
    assert not calls
    sdegen.solve(model, torch.zeros(2, 1), sdegen.DDIM(), u=(0.9, 0.0))
    assert calls


# Sampling and likelihood from u = 1


@pytest.mark.parametrize("predicts", ["v", "data"])
def test_trailing_ddim_is_the_textbooks(predicts):
    """x_s = alpha_s x_hat + sigma_s eps_hat in the chain's own numbers, from pure noise on."""
    path = zero_snr(sdegen.DDPM.linear(1000))
    exact, x_T = ring().model(path), torch.randn(5, 2, generator=torch.Generator().manual_seed(3))
    model = sdegen.ScoreModel(exact.v if predicts == "v" else exact.data, path, predicts)
    ours = sdegen.solve(model, x_T, sdegen.DDIM(grid=path.respaced(20, "trailing"))).x
    alpha = torch.cat([torch.ones(1), torch.cumprod(1 - path.betas, 0).sqrt()])
    x = x_T
    for k in range(1000, 0, -50):
        a, sigma, t = alpha[k], (1 - alpha[k] ** 2).sqrt(), torch.full((5,), k / 1000)
        v = exact.v(x, t)
        x_hat, eps_hat = a * x - sigma * v, sigma * x + a * v
        x = alpha[k - 50] * x_hat + (1 - alpha[k - 50] ** 2).sqrt() * eps_hat
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("variance", ["beta", "posterior", "optimal"])
def test_the_ancestral_chain_has_theorys_law(variance):
    """Mean and variance of the chain, by its own recursion on N(m, S) from N(0, 1)."""
    theory = Theory(SHORT)
    mean, spread = 0.0, 1.0
    for k in range(20, 0, -1):
        bar, before, beta, V = theory.bars[k], theory.bars[k - 1], theory.beta[k - 1], theory.V[k]
        c_t, c_x = (1 - beta).sqrt() * (1 - before) / (1 - bar), before.sqrt() * beta / (1 - bar)
        gain = c_t + c_x * bar.sqrt() * S / V  # x_hat = m + sqrt(bar) S / V (x - sqrt(bar) m)
        fresh = theory.variances[variance][k - 1] if k > 1 else 0.0
        mean = gain * mean + c_x * M * (1 - bar * S / V)
        spread = gain**2 * spread + fresh
    solver = sdegen.Ancestral(variance=theory.optimal if variance == "optimal" else variance)
    assert affine_law(SHORT, solver, S, M, 20) == pytest.approx((float(mean), float(spread)), rel=1e-11)


def test_a_learned_variance_lies_between_the_named_ones():
    """A network that answers +1 or -1 throughout is the chain with the kernel's variance, or the bridge's."""
    exact, x_T = DATA.model(SHORT), torch.randn(3, 1, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(20, 3, 1, generator=torch.Generator().manual_seed(6))
    for position, name in ((1.0, "beta"), (-1.0, "posterior")):

        def net(x, t, position=position):
            return torch.cat([exact.v(x, t), torch.full_like(x, position)], 1)

        learned = sdegen.ScoreModel(net, SHORT, "v", learns_variance=True)
        ours = sdegen.solve(learned, x_T, sdegen.Ancestral(variance="learned"), noise=noise).x
        fixed = sdegen.solve(exact, x_T, sdegen.Ancestral(variance=name), noise=noise).x
        torch.testing.assert_close(ours, fixed, rtol=1e-10, atol=1e-12)


def test_optimal_variances_begin_with_those_of_the_exact_chain():
    x, eps = nodes()
    got = sdegen.optimal_variance(v_model(SHORT), x, noise=eps)
    torch.testing.assert_close(got, Theory(SHORT).optimal, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_the_bound_is_theorys_and_its_prior_costs_nothing(variance):
    x, eps = nodes()
    bound, theory = sdegen.vlb(v_model(SHORT), x, variance=variance, noise=eps), Theory(SHORT)
    before = theory.bars[-2]
    tilde = 1 - before  # the last posterior knows nothing of x_K
    var = 1.0 if variance == "beta" else tilde
    last = 0.5 * (torch.log(var / tilde) - 1 + tilde / var) + before * S / (2 * var)
    expected = torch.cat([theory.transitions(variance)[:-1], last[None]])
    torch.testing.assert_close(bound.transitions.mean(0), expected, rtol=1e-9, atol=1e-12)
    assert not bound.prior.any()
    assert float(bound.decoder.mean()) == pytest.approx(theory.decoder(variance), rel=1e-9)


@either
def test_the_exact_density_is_the_closed_form(smooth):
    law = sdegen.Gaussian(torch.tensor([0.8, -0.3]), covariance=torch.tensor([[0.5, 0.3], [0.3, 0.25]]))
    path = sdegen.DDPM(CHAINS["rescaled"], smooth=smooth)
    model, x = v_model(path, law), law.sample(7, generator=torch.Generator().manual_seed(4))
    adams = 1e-6 if smooth else 3e-5  # its clock has the kinks of the lines, as on a chain of other betas (1.5e-5)
    for solver, tolerance in ((sdegen.Adams(100), adams), (sdegen.ODESolver("dopri8", rtol=1e-9), 1e-8)):
        torch.testing.assert_close(sdegen.log_prob(model, x, solver), law.log_prob(x), rtol=0, atol=tolerance)
        there = sdegen.encode(model, x, solver)
        torch.testing.assert_close(sdegen.decode(model, there, solver), x, rtol=0, atol=tolerance)


def test_times_and_losses_reach_pure_noise():
    """The exact network's loss is the irreducible one: E |v - v_hat|^2 = S / V on N(m, S), uniform over the steps."""
    x, eps = nodes()
    rows = x.repeat(20, 1), eps.repeat(20, 1), (torch.arange(1, 21) / 20).repeat_interleave(4)
    got = sdegen.loss(v_model(SHORT), rows[0], noise=rows[1], t=rows[2], reduction="none")
    V = SHORT.alpha(rows[2]) ** 2 * S + SHORT.sigma(rows[2]) ** 2
    torch.testing.assert_close(got.reshape(20, 4).mean(1), (S / V)[::4], rtol=1e-10, atol=1e-12)
    for times in (sdegen.LikelihoodTimes(), sdegen.ClockTimes(), sdegen.ChainTimes()):
        t, weight = times(SHORT, 4096, torch.Generator().manual_seed(1), torch.float64, torch.device("cpu"))
        assert bool((t.isfinite() & weight.isfinite() & (t > 0) & (t <= 1)).all())
    draws, many = torch.Generator().manual_seed(2), x.repeat(2500, 1)
    bound = sdegen.continuous_vlb(v_model(SHORT), many, draws=16, generator=draws)
    snr = ((1 - bound.u[0]) / bound.u[0]) ** 2  # at the noise end it is 0, and so is the prior's term
    exact = 0.5 * math.log(1 + S * snr) + 0.5 * (math.log(2 * math.pi / snr) + S * snr / (1 + S * snr))
    assert float(bound.prior.abs().max()) < 1e-12
    assert abs(float(bound.total.mean()) - exact) < 5 * float(bound.total.std()) / len(many) ** 0.5
