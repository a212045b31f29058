"""Exact targets against torch.distributions and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from problems import PATHS, mixture64, ring

import sdegen

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def targets():
    g = torch.Generator().manual_seed(5)
    means = torch.randn(3, 2, generator=g)
    A = torch.randn(3, 2, 2, generator=g)
    return {
        "isotropic": sdegen.GaussianMixture(means, 0.3, [0.2, 0.3, 0.5]),
        "per component": sdegen.GaussianMixture(means, [0.1, 0.5, 1.0]),
        "diagonal": sdegen.GaussianMixture(means, torch.tensor([[0.1, 1.0], [0.4, 0.2], [0.3, 0.3]])),
        "full": sdegen.GaussianMixture(means, covariances=A @ A.mT + 0.05 * torch.eye(2)),
        "gaussian": sdegen.Gaussian([0.5, -1.0], covariance=[[1.0, 0.3], [0.3, 0.2]]),
    }


every_target = pytest.mark.parametrize("name", list(targets()))


def test_log_prob_equals_torch_distributions():
    g = torch.Generator().manual_seed(5)
    means, A = torch.randn(3, 2, generator=g), torch.randn(3, 2, 2, generator=g)
    S = A @ A.mT + 0.05 * torch.eye(2)
    w = torch.tensor([0.2, 0.3, 0.5])
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(w), torch.distributions.MultivariateNormal(means, S)
    )
    x = 2 * torch.randn(50, 2)
    torch.testing.assert_close(sdegen.GaussianMixture(means, weights=w, covariances=S).log_prob(x), law.log_prob(x))


@every_path
@every_target
def test_score_is_the_gradient_of_the_marginal_log_density(path, name):
    target = targets()[name]
    t = path.t_data + 0.37 * (path.t_noise - path.t_data)
    x = path.perturb(target.sample(20), t)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(target.marginal(path, t).log_prob(x).sum(), x)
    torch.testing.assert_close(target.model(path).score(x.detach(), t), gradient, rtol=1e-9, atol=1e-10)


@every_target
def test_samples_have_the_moments(name):
    target = targets()[name]
    x = target.sample(50_000, torch.Generator().manual_seed(1))
    quadrature = torch.cartesian_prod(*[torch.linspace(-8, 8, 401)] * 2)
    p = target.log_prob(quadrature).exp() * (16 / 400) ** 2
    assert abs(float(p.sum()) - 1) < 1e-6
    for power in (lambda y: y, lambda y: y**2, lambda y: y.prod(1, keepdim=True), lambda y: y**4):
        exact = (p[:, None] * power(quadrature)).sum(0)
        drawn = power(x)
        assert float(((drawn.mean(0) - exact).abs() / drawn.std(0)).max()) < 5 / math.sqrt(len(x))


def test_events_of_any_shape_and_both_precisions(device):
    means = torch.randn(2, 3, 4, dtype=torch.float32, device=device)
    target = sdegen.GaussianMixture(means, 0.5)
    x = target.sample(6, torch.Generator(device).manual_seed(0))
    assert x.shape == (6, 3, 4)
    assert (x.dtype, x.device.type) == (torch.float32, device.type)
    flat = sdegen.GaussianMixture(means.double().flatten(1), 0.5)
    torch.testing.assert_close(target.log_prob(x).double(), flat.log_prob(x.double().flatten(1)), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(target.log_prob(x.double()), flat.log_prob(x.double().flatten(1)))
    out = sdegen.sample(target.model(sdegen.VPSDE()), (5, 3, 4), sdegen.SDESolver(steps=20), device=device)
    assert out.shape == (5, 3, 4)


def test_log_prob_is_differentiable_and_integrates_to_one():
    target = ring(0.2)
    axis = torch.linspace(-3, 3, 301)
    grid = torch.cartesian_prod(axis, axis)
    total = float(target.log_prob(grid).exp().sum()) * float(axis[1] - axis[0]) ** 2
    assert abs(total - 1) < 1e-10
    x = target.sample(5).requires_grad_()
    assert torch.autograd.gradcheck(target.log_prob, x)


def test_full_covariance_in_64_dimensions():
    target = mixture64()
    x = target.sample(4, torch.Generator().manual_seed(0))
    parts = [
        torch.distributions.MultivariateNormal(m, (q * v) @ q.T).log_prob(x) + w
        for m, q, v, w in zip(target._means, target._rotations, target._variances, target._log_weights, strict=True)
    ]
    torch.testing.assert_close(target.log_prob(x), torch.logsumexp(torch.stack(parts), 0))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: sdegen.GaussianMixture([0.0, 1.0], 0.1), ValueError, r"\(2,\)"),
        (lambda: sdegen.GaussianMixture([[0.0], [1.0]]), ValueError, "exactly one"),
        (lambda: sdegen.GaussianMixture([[0.0], [1.0]], 0.1, covariances=[[1.0]]), ValueError, "exactly one"),
        (lambda: sdegen.GaussianMixture([[0.0], [1.0]], [0.1, -0.2]), ValueError, "-0.2"),
        (lambda: sdegen.GaussianMixture([[0.0], [1.0]], 0.1, [0.5, 0.2, 0.3]), ValueError, "weights"),
        (lambda: sdegen.GaussianMixture([[0.0], [1.0]], 0.1, [1.0, 0.0]), ValueError, "weights"),
        (lambda: sdegen.GaussianMixture([[0.0], [math.nan]], 0.1), ValueError, "nan"),
        (lambda: sdegen.Gaussian([0.0, 0.0], covariance=[[1.0, 2.0], [2.0, 1.0]]), ValueError, "positive definite"),
        (lambda: sdegen.Gaussian([0.0, 0.0], covariance=[[1.0, 0.5], [0.0, 1.0]]), ValueError, "symmetric"),
        (lambda: sdegen.Gaussian(0.0, 1.0), ValueError, "event"),
        (lambda: ring().sample(2.5), TypeError, "2.5"),
        (lambda: ring().log_prob(torch.ones(3, 4)), ValueError, r"\(3, 4\)"),
        (lambda: ring().model("vp"), TypeError, "'vp'"),
    ],
)
def test_bad_input(make, error, says):
    with pytest.raises(error, match=says):
        make()
