"""One loss under its other names, adversarial variational Bayes and noise-contrastive estimation, and InfoNCE."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from classified import FAKE, KL, REAL, P, Q, fakes, minimised, of_state

import sdegen

A, S = 0.8, 0.5
"""The encoder q(z | x) = N(A x, S^2), to the prior N(0, 1), for x of N(0, 1)."""


def kl_to_prior(x):
    return 0.5 * (S**2 + (A * x) ** 2 - 1 - math.log(S**2))


def encoded(n):
    """x, a draw z of its posterior and one of the prior, (n, 1) each."""
    x = torch.randn(n, 1)
    return x, A * x + S * torch.randn(n, 1), torch.randn(n, 1)


def quadratic(weights):
    """The logit T(z, x) of second degree with these six weights."""

    def net(z, x):
        parts = (z**2, z * x, x**2, z, x, torch.ones_like(z))
        return torch.cat(parts, 1) @ weights

    return net


def quantiles(n):
    """The middles of n parts of N(0, 1) of equal weight, whose mean is an expectation up to 1/n, (n,)."""
    return torch.special.ndtri((torch.arange(n) + 0.5) / n)


def test_the_loss_is_least_at_the_exact_logit_whose_mean_is_the_posterior_s_divergence():
    """In expectation over x, z and the prior, to the accuracy of 300 by 300 quantiles."""
    x, eps = (part.flatten()[:, None] for part in torch.meshgrid(quantiles(300), quantiles(300), indexing="ij"))
    z = A * x + S * eps
    exact = torch.tensor([0.5 - 0.5 / S**2, A / S**2, -0.5 * A**2 / S**2, 0.0, 0.0, -math.log(S)])
    T = quadratic(exact)(z, x)
    assert abs(float((T - kl_to_prior(x)[:, 0]).mean())) < 5e-3

    def slope(weights):
        weights = weights.clone().requires_grad_()
        loss = sdegen.ratio_loss(quadratic(weights), z, eps, cond={"x": x})
        return torch.autograd.grad(loss, weights)[0]

    assert float(slope(exact).abs().max()) < 1e-3
    for i, shift in enumerate(0.1 * torch.eye(6)):
        assert float(slope(exact + shift)[i]) > 5e-3
        assert float(slope(exact - shift)[i]) < -5e-3


def test_and_of_the_logit_that_the_loss_is_least_at():
    """Over 16 trainings of a quadratic logit T(z, x), each asked at draws it has not seen."""
    off = []
    for _ in range(16):
        x, z, from_prior = encoded(3000)
        weights = minimised(lambda w: sdegen.ratio_loss(quadratic(w), z, from_prior, cond={"x": x}), 6)  # noqa: B023
        x, z, _ = encoded(3000)
        off.append(float(quadratic(weights)(z, x).mean() - kl_to_prior(x).mean()))
    off = torch.tensor(off)
    assert abs(float(off.mean())) < 4 * float(off.std()) / 4 < 0.1


@pytest.mark.parametrize("k", [1, 3, 10])
def test_noise_contrastive_estimation_finds_the_law_and_its_normaliser(k):
    """Three free numbers s: exp(s) is p, and sums to 1 though nothing told it to."""
    s = minimised(lambda s: sdegen.ratio_loss(of_state(s - Q.log()), REAL, fakes(k)), 3)
    torch.testing.assert_close(s.exp(), P, rtol=0, atol=1e-7)
    assert float(s.exp().sum()) == pytest.approx(1, abs=1e-7)
    energies = (7 * P).log()  # p up to a factor: what is left to find is log 7
    c = minimised(lambda c: sdegen.ratio_loss(of_state(energies - c - Q.log()), REAL, fakes(k)), 1)
    assert float(c) == pytest.approx(math.log(7), abs=1e-7)


def information(k):
    """KL(law of (x_0 ... x_k) with x_0 real || the same with a random one real): what they tell of its place."""
    total = 0.0
    for states in itertools.product(range(3), repeat=k + 1):
        states = torch.tensor(states)
        others = Q[states].prod()
        ratios = (P / Q)[states]
        total += float(others * ratios[0] * (ratios[0] / ratios.mean()).log())
    return total


def batches(k):
    """Every real state beside every k fakes, as often as they come: (4^(k+1), 1) and (k, 4^(k+1), 1)."""
    rows = torch.tensor(list(itertools.product(range(4), repeat=k + 1)))
    return REAL[rows[:, 0]], FAKE[rows[:, 1:].T]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_contrastive_bound_is_what_the_places_tell(k):
    """At T = log p/q, known up to a constant; less for any other logit, below KL(p || q) and log(k + 1)."""
    real, others = batches(k)
    for constant in (0.0, 3.0):
        found = math.log(k + 1) - float(sdegen.contrastive_loss(of_state((P / Q).log() + constant), real, others))
        assert found == pytest.approx(information(k), abs=1e-13)
        assert found < min(KL, math.log(k + 1))
    for _ in range(10):
        T = (P / Q).log() + torch.randn(3)
        assert math.log(k + 1) - float(sdegen.contrastive_loss(of_state(T), real, others)) < information(k)


def test_more_fakes_bring_the_bound_to_the_divergence():
    bounds = [information(k) for k in (1, 2, 4, 6)]
    assert bounds == sorted(bounds)
    ratios = P / Q
    others = FAKE.repeat(125, 1)[:, None].expand(500, 4, 1)  # as many of each state as q says: sum of p/q is 500
    found = math.log(501) - float(sdegen.contrastive_loss(of_state(ratios.log()), REAL, others))
    assert found == pytest.approx(KL - float((P * ((ratios + 500) / 501).log()).sum()), abs=1e-13)
    assert found == pytest.approx(KL, abs=1e-3)


def test_pairs_are_bounded_by_their_mutual_information():
    """(x, c) of correlation rho, fakes with the same c: 255 of them come near -log(1 - rho^2)/2."""
    rho, n, k = 0.8, 2000, 255
    c = torch.randn(n, 1)
    real = torch.cat([rho * c + (1 - rho**2) ** 0.5 * torch.randn(n, 1), c], 1)
    others = torch.cat([torch.randn(k, n, 1), c.expand(k, n, 1)], 2)
    exact = -0.5 * math.log(1 - rho**2)

    def logit(pairs):  # log p(x | c)/p(x), less what is of c alone
        x, c = pairs.unbind(1)
        return (rho * x * c - 0.5 * rho**2 * x**2) / (1 - rho**2)

    found = math.log(k + 1) - float(sdegen.contrastive_loss(logit, real, others))
    assert abs(found - exact) < 4 * rho / n**0.5 + 0.03  # the density's log has deviation rho; InfoNCE's own gap


def test_one_call_in_the_module_s_precision_with_gradients_to_all():
    calls = []

    class Logit(torch.nn.Linear):
        def forward(self, x):
            calls.append((tuple(x.shape), x.dtype))
            return super().forward(x.flatten(1))[:, 0]

    real, others = (torch.randn(shape, requires_grad=True) for shape in ((4, 2, 3), (5, 4, 2, 3)))
    loss = sdegen.contrastive_loss(Logit(6, 1).bfloat16(), real, others)
    loss.backward()
    assert calls == [((24, 2, 3), torch.bfloat16)]
    assert loss.dtype is torch.float32
    assert bool((real.grad != 0).any())
    assert bool((others.grad != 0).any())
