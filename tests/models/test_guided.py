"""Guidance by a gradient: on Gaussian data with the exact weight it is the posterior's own model, everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from steered import COVARIANCE, LAW, MEAN, PATHS, ends, is_the_same_model, log_evidence, posterior
from torch import nn

import sdegen

every_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


class Counted(nn.Module):
    """The exact eps of the Gaussian data, counted."""

    def __init__(self, path):
        super().__init__()
        self.exact, self.calls = LAW.model(path), 0

    def forward(self, x, t):
        self.calls += 1
        return self.exact.v(x, t)


@every_path
def test_an_exact_classifier_makes_the_exact_posterior(path):
    is_the_same_model(sdegen.Guided(LAW.model(path), log_evidence(path)), posterior().model(path))


@every_path
def test_a_linear_weight_of_the_estimate_tilts_the_law(path):
    """E[exp(b x) | x_t] is exp(b x_hat) times a constant: with of="data" the model is that of N(m + S b, S)."""
    b = torch.tensor([0.4, -0.3, 0.8])
    tilted = sdegen.Gaussian(MEAN + COVARIANCE @ b, covariance=COVARIANCE)
    is_the_same_model(sdegen.Guided(LAW.model(path), lambda x, t: x @ b, of="data"), tilted.model(path))


@pytest.mark.parametrize("scale", [0.0, 0.5, lambda u: 2 * u])
def test_the_score_gains_the_gradient_times_the_scale(scale):
    path, w = sdegen.VPSDE(), torch.tensor([1.0, 2.0, 3.0])
    model = LAW.model(path)
    guided = sdegen.Guided(model, lambda x, t: torch.sin(x @ w) * t, scale)
    x, t = torch.randn(4, 3), torch.tensor([0.1, 0.3, 0.6, 1.0])
    u = path.clock(t)
    factor = scale(u) if callable(scale) else torch.full_like(u, scale)
    gradient = (torch.cos(x @ w) * t)[:, None] * w
    torch.testing.assert_close(
        guided.score(x, t), model.score(x, t) + factor[:, None] * gradient, rtol=1e-11, atol=1e-11
    )


def test_what_it_was_made_for_stays_on_another_path():
    """The weight goes on being asked with the x_t and the t of its own path."""
    for own in (sdegen.VPSDE(), sdegen.CondOT()):
        guided = sdegen.Guided(LAW.model(own), log_evidence(own))
        for path in (sdegen.CondOT(), sdegen.VESDE(), sdegen.VPSDE()):
            moved, exact, x = guided.on(path), posterior().model(path), torch.randn(4, 3)
            u = (0.9, max(0.0, path.ends[0]))
            found = [sdegen.solve(m, x, sdegen.ODESolver("rk4", steps=5), u=u).x for m in (moved, exact)]
            torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("of", ["x_t", "data"])
def test_one_network_call_a_query_and_nothing_keeps_a_graph(of):
    path = sdegen.VPSDE()
    net = Counted(path)
    guided = sdegen.Guided(sdegen.ScoreModel(net, path, "v"), lambda x, t: -x.square().sum(1), of=of)
    out = sdegen.sample(guided, (4, 3), sdegen.Adams(7))
    assert net.calls == 7
    assert not out.requires_grad
    with torch.no_grad():
        assert not guided.eps(torch.randn(4, 3), 0.5).requires_grad
    with torch.inference_mode():
        x = torch.randn(4, 3)
        held = guided.eps(x, 0.5)
    torch.testing.assert_close(held.clone(), guided.eps(x.clone(), 0.5).detach())


@pytest.mark.parametrize("of", ["x_t", "data"])
def test_gradients_pass_through_a_guided_solve(of):
    """Of the end with respect to the start and to a weight's parameter, against central differences."""
    path, b = sdegen.VPSDE(), torch.tensor(0.3, requires_grad=True)
    model = LAW.model(path)

    def end(start, b):
        guided = sdegen.Guided(model, lambda x, t: b * torch.cos(x).sum(1), of=of)
        return sdegen.solve(guided, start, sdegen.Adams(6), differentiable=True, u=(0.7, 0.0)).x.square().sum()

    x = torch.randn(2, 3, requires_grad=True)
    slopes = torch.autograd.grad(end(x, b), (x, b))
    h, z = 1e-5, torch.randn(2, 3)
    along = (end(x + h * z, b) - end(x - h * z, b)) / (2 * h)
    torch.testing.assert_close((slopes[0] * z).sum(), along, rtol=1e-7, atol=1e-7)
    of_b = (end(x, b + h) - end(x, b - h)) / (2 * h)
    torch.testing.assert_close(slopes[1], of_b, rtol=1e-7, atol=1e-7)


def test_a_weight_that_is_a_module_is_a_part_of_the_model():
    """It follows the model to a dtype, is put in eval mode, and its state is the model's."""

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drop, self.seen = nn.Linear(3, 2), nn.Dropout(0.5), []

        def forward(self, x, t, label):
            self.seen.append((self.training, tuple(label.shape), x.dtype))
            return self.linear(self.drop(x)).log_softmax(1).gather(1, label[:, None])[:, 0]

    path = sdegen.VPSDE()
    classifier = Classifier()

    class Net(nn.Linear):
        def forward(self, x, t, label):
            return super().forward(x)

    guided = sdegen.Guided(sdegen.ScoreModel(Net(3, 3), path), classifier).float()
    assert {"log_weight.linear.weight"} <= guided.state_dict().keys()
    label = torch.tensor([0, 1, 1, 0])
    sdegen.sample(guided, (4, 3), sdegen.Adams(3), cond={"label": label})
    assert classifier.training
    assert classifier.seen == [(False, (4,), torch.float32)] * 3
    logps = [
        sdegen.log_prob(guided, torch.ones(4, 3), sdegen.Adams(8), cond={"label": label}, batch_size=size, check=False)
        for size in (4, 3)
    ]
    torch.testing.assert_close(*logps, rtol=1e-5, atol=1e-5)


def test_a_learned_variance_is_forwarded_without_a_graph():
    chain = sdegen.DDPM.linear(8, 0.05, 0.4)
    net = nn.Linear(3, 6)
    inner = sdegen.ScoreModel(lambda x, t: net(x), chain, learns_variance=True)
    guided = sdegen.Guided(inner, lambda x, t: 0 * x.sum(1), of="data")
    x, noise, solver = torch.randn(2, 3), torch.randn(8, 2, 3), sdegen.Ancestral(variance="learned")
    found = [sdegen.solve(m, x, solver, noise=noise).x for m in (guided, inner)]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    assert not found[0].requires_grad


def test_pure_noise_is_refused_with_the_part_that_stays_inside():
    calls = []
    for path in (sdegen.CondOT(), sdegen.CosineVPSDE()):
        guided = sdegen.Guided(LAW.model(path), lambda x, t: calls.append(x) or x.sum(1))
        with pytest.raises(ValueError, match=r"u=\(0\.999, 0\.0\) stays inside"):
            sdegen.sample(guided, (2, 3), sdegen.Adams(4))
        with pytest.raises(ValueError, match=r"u=\(0\.0, 0\.999\) stays inside"):
            sdegen.log_prob(guided, torch.zeros(2, 3))
    assert not calls
    assert sdegen.sample(guided, (2, 3), sdegen.Adams(4), u=ends(path)).shape == (2, 3)


def refused(weight, kind, words):
    calls = []

    def net(x, t):
        calls.append(x)
        return x

    guided = sdegen.Guided(sdegen.ScoreModel(net, sdegen.VPSDE()), weight)
    with pytest.raises(kind, match=words):
        sdegen.sample(guided, (2, 3), sdegen.Adams(4))
    assert not calls


def test_bad_weights_are_refused_before_the_network_is_called():
    refused(lambda x, t: x.sum(), ValueError, r"shape \(2,\), one number per sample, not \(\)")
    refused(lambda x, t: x, ValueError, r"shape \(2,\), one number per sample, not \(2, 3\)")
    refused(lambda x, t: 1.0, ValueError, "one number per sample, not float")
    refused(lambda x, t: x.detach().sum(1), ValueError, "without a gradient")
    refused(lambda x, t: x.sum(1) * math.nan, sdegen.NonFiniteError, "log_weight is NaN in 2 of 2 samples")


def test_bad_arguments_are_refused():
    model = LAW.model(sdegen.VPSDE())
    with pytest.raises(TypeError, match="log_weight must be callable as log_weight"):
        sdegen.Guided(model, 1.0)
    with pytest.raises(ValueError, match="Unknown of 'x'; choose one of 'x_t', 'data'"):
        sdegen.Guided(model, lambda x, t: x.sum(1), of="x")
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="scale must be a finite number"):
            sdegen.Guided(model, lambda x, t: x.sum(1), bad)
    with pytest.raises(TypeError, match="scale must be a real number"):
        sdegen.Guided(model, lambda x, t: x.sum(1), "1")
    with pytest.raises(TypeError, match="A wrapper takes a model"):
        sdegen.Guided(lambda x, t: x, lambda x, t: x.sum(1))
    pairs = sdegen.ScoreModel(lambda x, t: x, sdegen.Interpolant(sdegen.CondOT()), "velocity")
    with pytest.raises(ValueError, match="needs the score"):
        sdegen.Guided(pairs, lambda x, t: x.sum(1))
