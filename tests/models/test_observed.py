"""Linear observations: on Gaussian data the three methods are closed forms, "mmps" the posterior itself."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from problems import ring
from steered import LAW, MEAN, PATHS, SEEN, STD, A, is_the_same_model, posterior
from torch import nn

import sdegen
from sdegen.models.observed import _solved

every_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


@every_path
@pytest.mark.parametrize("kind", ["matrix", "callable"])
def test_mmps_makes_the_exact_posterior_of_a_gaussian(path, kind):
    operator = A if kind == "matrix" else lambda x: x @ A.T
    is_the_same_model(sdegen.Observed(LAW.model(path), operator, SEEN, STD), posterior().model(path))


@every_path
def test_pigdm_makes_the_exact_posterior_of_a_standard_normal(path):
    unit = sdegen.Gaussian(MEAN, 1.0).model(path)
    exact = posterior(MEAN, torch.eye(3)).model(path)
    is_the_same_model(sdegen.Observed(unit, A, SEEN, STD, "pigdm"), exact)


@every_path
@pytest.mark.parametrize("method", ["dps", "pigdm", "mmps"])
def test_each_method_is_its_formula(path, method):
    """eps_hat' = eps_hat - sigma grad log p(z | x_t), with J = d x_hat / d x_t by autograd."""
    model, t = ring().model(path), path.at(torch.tensor([0.3, 0.6, 0.9]))
    H, z = torch.tensor([[0.8, -0.4]]), torch.tensor([0.5])
    x = path.sigma(t)[:, None] * torch.randn(3, 2)
    found = sdegen.Observed(model, H, z, 0.2, method).eps(x, t)
    for b in range(3):
        alpha, sigma = path.alpha(t[b]), path.sigma(t[b])
        J = torch.autograd.functional.jacobian(lambda x: model.data(x[None], t[b])[0], x[b])  # noqa: B023
        spread = {
            "dps": torch.zeros(2, 2),
            "pigdm": sigma**2 / (alpha**2 + sigma**2) * torch.eye(2),
            "mmps": sigma**2 / alpha * J,
        }[method]
        S = 0.04 * torch.eye(1) + H @ spread @ H.T
        gradient = J.T @ H.T @ torch.linalg.solve(S, z - H @ model.data(x[b : b + 1], t[b])[0])
        expected = model.eps(x[b : b + 1], t[b])[0] - sigma * gradient
        torch.testing.assert_close(found[b], expected, rtol=1e-9, atol=1e-9)


def test_an_operator_may_be_bent():
    """A callable is taken by its derivative at x_hat: "dps" is then Guided by the misfit itself."""
    path = sdegen.VPSDE()
    model, x, t = ring().model(path), torch.randn(4, 2), torch.tensor([0.2, 0.4, 0.6, 0.8])
    z = torch.tensor([0.3, 0.1, 0.4])

    def bent(x):
        return torch.stack([x[:, 0] ** 2, torch.sin(x[:, 1]), x[:, 0] * x[:, 1]], 1)

    guided = sdegen.Guided(model, lambda x, t: -((z - bent(x)) ** 2).sum(1) / (2 * 0.25), of="data")
    torch.testing.assert_close(sdegen.Observed(model, bent, z, 0.5, "dps").eps(x, t), guided.eps(x, t))
    shifted = sdegen.Observed(model, lambda x: bent(x) + 1.0, z + 1.0, 0.5)
    torch.testing.assert_close(shifted.eps(x, t), sdegen.Observed(model, bent, z, 0.5).eps(x, t))


def test_pictures_are_seen_through_masks_and_coarse_grids():
    """An observation of any shape; a mask in a matrix and by indexing are one thing."""
    path, law = sdegen.VPSDE(), sdegen.Gaussian(torch.zeros(1, 4, 4), torch.linspace(0.3, 1.2, 16))
    x, t = torch.randn(3, 1, 4, 4), 0.4
    seen, rows = torch.randn(1, 4, 2), torch.eye(16).reshape(1, 4, 4, 16)[..., :2, :].reshape(8, 16)
    by_index = sdegen.Observed(law.model(path), lambda x: x[..., :2], seen, 0.1)
    by_matrix = sdegen.Observed(law.model(path), rows, seen.flatten(), 0.1)
    torch.testing.assert_close(by_index.eps(x, t), by_matrix.eps(x, t), rtol=1e-10, atol=1e-10)
    # every pixel for itself: known pixels have the product's variance, the others stay what they were
    scales = torch.linspace(0.3, 1.2, 16).reshape(1, 4, 4)
    gain = scales[..., :2] ** 2 / (scales[..., :2] ** 2 + 0.01)
    mean, std = torch.zeros(1, 4, 4), scales.clone()
    mean[..., :2], std[..., :2] = gain * seen, scales[..., :2] * (1 - gain).sqrt()
    exact = sdegen.Gaussian(mean, std.flatten()).model(path)
    torch.testing.assert_close(by_index.eps(x, t), exact.eps(x, t), rtol=1e-9, atol=1e-9)
    pool, coarse = nn.AvgPool2d(2), torch.randn(1, 2, 2)
    by_module = sdegen.Observed(law.model(path), pool, coarse, 0.1)
    rows = pool(torch.eye(16).reshape(16, 1, 4, 4)).flatten(1).T
    by_rows = sdegen.Observed(law.model(path), rows, coarse.flatten(), 0.1)
    torch.testing.assert_close(by_module.eps(x, t), by_rows.eps(x, t), rtol=1e-10, atol=1e-10)


def test_more_iterations_solve_more_of_a_large_system():
    """Of twenty values of twenty variances; by default "mmps" takes as many steps as values, up to 8, and 1 beyond."""
    path, variances = sdegen.VPSDE(), torch.logspace(-3, 0, 20)
    law = sdegen.Gaussian(torch.zeros(20), variances.sqrt())
    z, x = torch.linspace(-1, 1, 20), torch.randn(4, 20)
    mean, std = variances / (variances + 0.01) * z, (0.01 * variances / (variances + 0.01)).sqrt()
    exact = sdegen.Gaussian(mean, std).model(path).data(x, 0.3)
    off = []
    for n in (1, 8, 30):
        observed = sdegen.Observed(law.model(path), torch.eye(20), z, 0.1, iterations=n)
        off.append(float((observed.data(x, 0.3).detach() - exact).abs().max()))
    assert off[0] > 5 * off[1] > 1e4 * off[2]
    assert off[2] < 1e-10
    for few, mmps, pigdm in ((2, 2, 2), (8, 8, 8), (9, 1, 9), (20, 1, 20)):
        for method, default in (("mmps", mmps), ("pigdm", pigdm)):
            assert sdegen.Observed(law.model(path), torch.eye(20)[:few], z[:few], 0.1, method).iterations == default


def test_conjugate_gradients_solve_and_stop():
    """Exact after as many steps as values; what is solved, or not positive, stays finite."""
    root = torch.randn(4, 5, 5)
    S = root @ root.mT + 0.1 * torch.eye(5)
    b = torch.randn(4, 5)
    b[1] = 0
    S[3] = -torch.eye(5)
    found = _solved(lambda w: (S @ w[..., None]).squeeze(-1), b, 12)
    expected = torch.linalg.solve(S, b)
    expected[3] = 0
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["dps", "pigdm", "mmps"])
def test_one_network_call_a_query_and_nothing_keeps_a_graph(method):
    path, calls = sdegen.VPSDE(), []
    exact = LAW.model(path)

    def net(x, t):
        calls.append(len(x))
        return exact.v(x, t)

    observed = sdegen.Observed(sdegen.ScoreModel(net, path, "v"), A, SEEN, STD, method)
    x = sdegen.sample(observed, (4, 3), sdegen.StochasticAdams(9))
    assert calls == [4] * 9
    assert not x.requires_grad


def test_samples_of_a_mixture_are_near_its_posterior():
    """Of eight modes seen through their first coordinate, those that fit are found, at about their weights."""
    law = ring()
    observed = sdegen.Observed(law.model(sdegen.VPSDE()), torch.tensor([[1.0, 0.0]]), torch.tensor([1.2]), 0.1)
    g = torch.Generator().manual_seed(3)
    x = sdegen.sample(observed, (256, 2), sdegen.StochasticAdams(60), generator=g)
    assert float((x - torch.tensor([1.2, 0.0])).norm(dim=1).median()) < 0.2


def test_it_follows_the_model_to_another_precision():
    net = nn.Linear(3, 3).float()
    observed = sdegen.Observed(sdegen.ScoreModel(Timeless(net), sdegen.VPSDE()), A, SEEN, STD).float()
    start = torch.randn(4, 3)
    single = sdegen.solve(observed, start.float(), sdegen.Adams(4)).x
    assert sdegen.sample(observed, (4, 3), sdegen.Adams(4)).dtype == single.dtype == torch.float32
    double = sdegen.Observed(sdegen.ScoreModel(Timeless(copy.deepcopy(net).double()), sdegen.VPSDE()), A, SEEN, STD)
    torch.testing.assert_close(single.double(), sdegen.solve(double, start, sdegen.Adams(4)).x, rtol=1e-4, atol=1e-4)
    assert {name for name, _ in observed.named_buffers()} == {"observation", "A.matrix"}


class Timeless(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t):
        return self.net(x)


@pytest.mark.parametrize(
    ("operator", "observation", "std", "options", "kind", "words"),
    [
        (torch.ones(3), SEEN, STD, {}, ValueError, r"finite matrix \(m, d\) or a callable, and it has shape \(3,\)"),
        (A * math.nan, SEEN, STD, {}, ValueError, "A must be a finite matrix"),
        ("A", SEEN, STD, {}, TypeError, "A must be real numbers"),
        (A, torch.tensor([math.nan, 0]), STD, {}, ValueError, "observation must hold finite numbers"),
        (A, [], STD, {}, ValueError, "observation must hold finite numbers, at least one"),
        (A, SEEN, 0.0, {}, ValueError, "std must be a finite number in"),
        (A, SEEN, "1", {}, TypeError, "std must be a real number"),
        (A, SEEN, STD, {"method": "tmpd"}, ValueError, "Unknown method 'tmpd'; choose one of 'mmps', 'dps', 'pigdm'"),
        (A, SEEN, STD, {"iterations": 0}, ValueError, "iterations must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(operator, observation, std, options, kind, words):
    with pytest.raises(kind, match=words):
        sdegen.Observed(LAW.model(sdegen.VPSDE()), operator, observation, std, **options)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (torch.ones(2, 4), r"A has 4 columns, and an event \(3,\) has 3 values"),
        (torch.ones(1, 3), r"For one event A must give \(1, \*observed\), here \(1, 2\), and it gives \(1, 1\)"),
        (lambda x: x, r"here \(1, 2\), and it gives \(1, 3\)"),
        (lambda x: 1.0, "and it gives float"),
    ],
)
def test_an_operator_that_does_not_fit_is_refused_before_the_network_is_called(operator, words):
    def net(x, t):
        raise AssertionError("the network was called")

    observed = sdegen.Observed(sdegen.ScoreModel(net, sdegen.VPSDE()), operator, SEEN, STD)
    with pytest.raises(ValueError, match=words):
        sdegen.sample(observed, (2, 3), sdegen.Adams(3))


def test_pure_noise_and_pairs_are_refused():
    observed = sdegen.Observed(LAW.model(sdegen.CondOT()), A, SEEN, STD)
    with pytest.raises(ValueError, match=r"u=\(0\.999, 0\.0\) stays inside"):
        sdegen.sample(observed, (2, 3), sdegen.Adams(3))
    pairs = sdegen.ScoreModel(lambda x, t: x, sdegen.Interpolant(sdegen.CondOT()), "velocity")
    with pytest.raises(ValueError, match="An observation needs the score"):
        sdegen.Observed(pairs, A, SEEN, STD)
