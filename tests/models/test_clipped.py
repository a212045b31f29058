"""Clipped: x_hat stays where the data are, by clipping or by dynamic thresholding, whoever asks."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from problems import ring
from steered import PATHS

import sdegen

every_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


def states(path, n=9):
    t = path.at(torch.linspace(0.1, 0.9, n))
    return path.sigma(t)[:, None] * torch.randn(n, 2) + path.alpha(t)[:, None], t


@every_path
@pytest.mark.parametrize("low_high", [(-0.5, 0.5), (0.0, 1.0)])
def test_x_hat_is_clipped_and_eps_hat_goes_with_it(path, low_high):
    model, (x, t) = ring().model(path), states(path)
    clipped = sdegen.Clipped(model, *low_high)
    x_hat = model.data(x, t).clamp(*low_high)
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    eps = (x - alpha * x_hat) / sigma
    torch.testing.assert_close(clipped.data(x, t), x_hat, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(clipped.eps(x, t), eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(clipped.v(x, t), alpha * eps - sigma * x_hat, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("low_high", [(-0.2, 0.2), (0.0, 1.0)])
@pytest.mark.parametrize("quantile", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("most", [1.0, 1.7, math.inf])
def test_dynamic_thresholding_is_the_formula(low_high, quantile, most):
    path, law = sdegen.VPSDE(), sdegen.Gaussian(torch.randn(50), 0.6)
    model = law.model(path)
    x, t = 2 * torch.randn(4, 50), torch.tensor([0.1, 0.4, 0.7, 1.0])
    middle, half = 0.5 * sum(low_high), 0.5 * (low_high[1] - low_high[0])
    z = (model.data(x, t) - middle) / half
    s = torch.quantile(z.abs(), quantile, dim=1, keepdim=True).clamp(1, most)
    expected = middle + half * z.clamp(-s, s) / s
    found = sdegen.Clipped(model, *low_high, quantile=quantile, most=most).data(x, t)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_at_clean_data_it_is_the_models_own_answer():
    path = sdegen.VPSDE()
    model, x = ring().model(path), 3 * torch.randn(5, 2)
    for options in ({}, {"quantile": 0.9}):
        torch.testing.assert_close(sdegen.Clipped(model, -1, 1, **options).eps(x, 0.0), model.eps(x, 0.0))


@every_path
def test_data_inside_the_range_are_left_as_they_are(path):
    """Every sampler and density of the unclipped model, where nothing reaches the range's ends."""
    model = ring().model(path)
    clipped, x = sdegen.Clipped(model, -5.0, 5.0), torch.randn(4, 2)
    u, data = (0.93, path.ends[0]), ring().sample(4)
    for solver in (sdegen.Adams(6), sdegen.SDESolver(steps=6), sdegen.Ancestral(6)):
        noise = None if solver.solves_ode else torch.randn(6, 4, 2)
        found = [sdegen.solve(m, x, solver, u=u, noise=noise).x for m in (clipped, model)]
        torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)
    logps = [sdegen.log_prob(m, data, sdegen.Adams(24)) for m in (clipped, model)]
    torch.testing.assert_close(*logps, rtol=1e-9, atol=1e-9)


def test_an_imperfect_network_on_the_cosine_chain_explodes_unless_it_is_clipped():
    """alpha is 5e-5 at its start, where an error of eps is multiplied by 20 000 in x_hat."""
    chain = sdegen.DDPM.cosine(1000)
    exact = sdegen.Gaussian([0.2, -0.2], 0.5).model(chain)
    model = sdegen.ScoreModel(lambda x, t: exact.eps(x.clamp(-3, 3), t) + 0.03, chain)
    x, noise, solver = torch.randn(64, 2), torch.randn(1000, 64, 2), sdegen.Ancestral()
    with pytest.warns(sdegen.AccuracyWarning, match=r"u=\(0.999, 0.0\).*sdegen.Clipped\(model, low, high\)"):
        bare = sdegen.solve(model, x, solver, noise=noise).x
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clipped = sdegen.Clipped(model, -2.0, 2.0)
        held = sdegen.solve(clipped, x, solver, noise=noise).x
        sdegen.solve(sdegen.Guided(clipped, lambda x, t: 0 * x.sum(1)), x, sdegen.Adams(5))
    assert float(bare.std()) > 3
    assert abs(float(held.std()) - 0.54) < 0.15
    assert float(held.abs().max()) <= 2


def test_the_density_is_what_is_not_gathered_at_the_ends():
    """The clipped ODE takes every start whose x_hat ends beyond the range to its end: the rest has a density."""
    path = sdegen.VPSDE()
    clipped = sdegen.Clipped(sdegen.Gaussian([0.8], 0.5).model(path), -1.0, 1.0)
    x = torch.linspace(-1.0, 1.0, 403)[1:-1, None]
    solver = sdegen.ODESolver("rk4", steps=200)
    inside = float(torch.trapezoid(sdegen.log_prob(clipped, x, solver).exp(), x[:, 0]))
    fractions = (torch.arange(2000) + 0.5) / 2000
    starts = float(path.sigma(torch.tensor(1.0))) * torch.special.ndtri(fractions)[:, None]
    ends = sdegen.solve(clipped, starts, solver).x
    gathered = float((ends.abs() > 1 - 1e-9).double().mean())
    assert 0.2 < gathered < 0.4
    assert abs(inside + gathered - 1) < 5e-3


def test_it_moves_with_the_model_and_costs_one_call():
    calls = []
    path = sdegen.VPSDE()

    def net(x, t):
        calls.append(len(x))
        return torch.tanh(x)

    clipped = sdegen.Clipped(sdegen.ScoreModel(net, path), -0.5, 0.5).on(sdegen.CondOT())
    sdegen.sample(clipped, (3, 2), sdegen.Adams(5), u=(0.9, 0.0), x_T=torch.randn(3, 2))
    assert calls == [3] * 5
    assert clipped.clips
    assert clipped.on(path).clips


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "words"),
    [
        ((1.0, 1.0), {}, ValueError, "low must be below high, and they are 1.0 and 1.0"),
        ((2.0, 1.0), {}, ValueError, "low must be below high"),
        ((math.nan, 1.0), {}, ValueError, "low must be a finite number"),
        ((-1.0, math.inf), {}, ValueError, "high must be a finite number"),
        ((-1.0, "1"), {}, TypeError, "high must be a real number"),
        ((-1.0, 1.0), {"quantile": 0.0}, ValueError, "quantile must be above 0"),
        ((-1.0, 1.0), {"quantile": 1.1}, ValueError, r"quantile must be a finite number in \[0, 1\]"),
        ((-1.0, 1.0), {"quantile": 0.9, "most": 0.5}, ValueError, "most must be a finite number"),
        ((-1.0, 1.0), {"most": 2.0}, ValueError, "most is about dynamic thresholding"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, kind, words):
    with pytest.raises(kind, match=words):
        sdegen.Clipped(ring().model(sdegen.VPSDE()), *arguments, **options)
