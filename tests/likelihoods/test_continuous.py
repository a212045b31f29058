"""The bound of infinitely many steps: closed form, limit of the chain, the same on every path."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from chains import DATA, M, S, Theory, nodes

import sdegen

LOG_2PI = math.log(2 * math.pi)


def continuous_terms(path, u_min):
    """Prior, integral and first latent of the exact model on N(m, S), averaged (THEORY 11.4)."""
    high = path.ends[1]
    snr = [((1 - u) / u) ** 2 for u in (u_min, high)]
    integral = 0.5 * math.log((1 + S * snr[0]) / (1 + S * snr[1]))
    return 0.5 * snr[1] * (S + M**2), integral, 0.5 * (LOG_2PI - math.log(snr[0]) + S * snr[0] / (1 + S * snr[0]))


@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.CondOT(), sdegen.SubVPSDE(), sdegen.CosineVPSDE()])
@pytest.mark.parametrize("u_min", [1e-3, 0.4])
def test_the_continuous_bound_has_its_closed_form(path, u_min):
    n = 20_000
    x = DATA.sample(n, torch.Generator().manual_seed(0))
    bound = sdegen.continuous_vlb(
        DATA.model(path), x, u_min=u_min, draws=16, generator=torch.Generator().manual_seed(1)
    )
    for term, exact in zip(
        (bound.prior, bound.transitions.sum(1), bound.decoder), continuous_terms(path, u_min), strict=True
    ):
        assert abs(float(term.mean()) - exact) <= 5 * float(term.std()) / math.sqrt(n)
    assert abs(float(bound.total.mean()) - sum(continuous_terms(path, u_min))) < 5 * float(bound.total.std()) / n**0.5


def test_the_prior_term_of_the_continuous_bound_is_the_chain_s():
    chain, x = sdegen.DDPM.linear(20, 1e-2, 0.1), torch.randn(5, 2)
    target = sdegen.Gaussian(torch.zeros(2), 0.5)
    of_limit, of_chain = sdegen.continuous_vlb(target.model(chain), x, draws=2), sdegen.vlb(target.model(chain), x)
    bar = float(Theory(chain).bars[-1])
    torch.testing.assert_close(of_limit.prior, 0.5 * bar / (1 - bar) * x.square().sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(of_limit.prior, of_chain.prior, rtol=1e-12, atol=0)


def test_the_continuous_bound_is_tight_and_knows_its_error():
    """With the exact score it is the entropy but for the ends; the error is the spread over repeats of one sample."""
    n, model = 20_000, DATA.model(sdegen.VPSDE())
    assert abs(sum(continuous_terms(sdegen.VPSDE(), 1e-3)) - DATA.entropy) < 1e-4
    for draws in (2, 16):
        bound = sdegen.continuous_vlb(model, torch.full((n, 1), 1.3), draws=draws)
        sums, squared = bound.transitions.sum(1), bound.standard_error.square()
        assert bound.transitions.shape == (n, draws)
        assert abs(float(squared.mean() / sums.var()) - 1) < 6 * float(squared.std() / sums.var() + 1.5) / math.sqrt(n)


def test_the_chain_tends_to_the_continuous_bound():
    """THEORY 4.4: the sum of the posterior chain's terms exceeds the integral by O(1/K), and the sum is known."""
    x, noise = nodes()
    u_min, path = 0.05, sdegen.VPSDE()
    exact = continuous_terms(path, u_min)[1]
    log_snr = [2 * math.log((1 - u) / u) for u in (u_min, path.ends[1])]
    gaps = []
    for K in (100, 200, 400):
        lam = torch.linspace(log_snr[0], log_snr[1], K)
        grid = torch.cat([torch.zeros(1), torch.sigmoid(-lam / 2)])
        grid[-1] = path.ends[1]
        bound = sdegen.vlb(DATA.model(path), x, grid=grid, noise=noise, variance="posterior")
        gaps.append(float(bound.transitions.mean(0).sum()) - exact)
    m = S * torch.exp(lam) / (1 + S * torch.exp(lam))
    step = (log_snr[0] - log_snr[1]) / 399
    assert abs(gaps[2] / float(0.25 * step**2 * (m**2).sum()) - 1) < 0.02
    assert all(1.9 < a / b < 2.1 for a, b in pairwise(gaps))


def test_the_continuous_bound_does_not_know_the_path():
    """One wrong field in straight coordinates: to rounding on two paths with the same ends, else within the errors."""
    n = 20_000

    def model(path):
        def net(x, t):
            u = path.clock(t)[:, None]
            y = x / path.scale(u)
            x_hat = torch.tanh(y)
            return path.alpha(t)[:, None] * (y - (1 - u) * x_hat) / u - path.sigma(t)[:, None] * x_hat

        return sdegen.ScoreModel(net, path, "v")

    x = DATA.sample(n, torch.Generator().manual_seed(0))
    chain = sdegen.DDPM.from_path(sdegen.VPSDE(), 40)
    bounds = [
        sdegen.continuous_vlb(model(path), x, u_min=0.02, draws=8, generator=torch.Generator().manual_seed(seed))
        for path, seed in ((sdegen.VPSDE(), 0), (chain, 0), (sdegen.CondOT(), 1))
    ]
    torch.testing.assert_close(bounds[1].transitions, bounds[0].transitions, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(bounds[1].total, bounds[0].total, rtol=1e-7, atol=1e-9)
    for term in ("decoder", "transitions"):
        one, other = (getattr(bound, term).reshape(n, -1).sum(1) for bound in bounds[::2])
        # between the two noise ends, log-SNR -10 and less, the integrand is at most |D_hat - D|^2 u' : below 1e-3
        slack = 1e-3 if term == "transitions" else 0
        assert abs(float(one.mean() - other.mean())) < 5 * math.sqrt(float(one.var() + other.var()) / n) + slack


def test_the_continuous_bound_starts_where_a_chain_was_trained():
    lowest = []

    def net(x, t):
        lowest.append(float(t.min()))
        return x

    path = sdegen.DDPM.linear(20, 1e-2, 0.3)
    sdegen.continuous_vlb(sdegen.ScoreModel(net, path), DATA.sample(4), draws=8)
    assert min(lowest) == pytest.approx(1 / 20)
