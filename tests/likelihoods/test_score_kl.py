"""score_kl under exact models: the divergence itself, by quadrature and by draws, with an honest error."""

from __future__ import annotations

import math

import pytest
import torch
from latents import THREE, by_quadrature, divergence, legendre, normal_nodes
from problems import OwnVP
from torch.distributions import Normal, kl_divergence

import sdegen
from sdegen.likelihoods.posterior import Clocks

Q = [(0.7, 0.4), (0.2, 0.05), (0.0, 1.2), (-1.0, 0.3)]
PATHS = [sdegen.CondOT(), sdegen.CondOT(0.01), sdegen.VPSDE(), sdegen.VESDE(), sdegen.EDM(), sdegen.DDPM.linear(1000)]


def repeated(mean, std, n):
    return torch.full((n, 1), mean), torch.full((n, 1), std)


@pytest.mark.parametrize(("mean", "std"), Q)
def test_the_bound_is_the_divergence_from_a_mixture(mean, std):
    """No cut-off at u = 0, and the noise end is the prior's own law."""
    found = by_quadrature(mean, std, THREE.model(sdegen.CondOT()))
    assert abs(found - divergence(mean, std, THREE.log_prob)) < 1e-7


@pytest.mark.parametrize(("mean", "std"), [(0.7, 0.4), (0.2, 0.005)])
def test_a_latent_that_holds_noise_is_scored_as_it_is(mean, std):
    """On a path from data noised to sigma_min the law is that of the state there, of which log_prob speaks too."""
    path = sdegen.CondOT(0.01)
    found = by_quadrature(mean, std, THREE.model(path))
    assert abs(found - divergence(mean, std, THREE.marginal(path, path.t_data).log_prob)) < 1e-7


class Late(OwnVP):
    """VP from a time at which data are noised already, and smaller: alpha is not 1 there."""

    t_data = 0.2


@pytest.mark.parametrize(
    "path", [sdegen.VPSDE(), sdegen.VESDE(), sdegen.CosineVPSDE(), Late()], ids=lambda p: type(p).__name__
)
def test_short_of_pure_noise_it_is_off_by_the_prior(path):
    """KL(q || p) is the integral + KL(q_T || p_T), and the bound has N(0, sigma_T^2) in place of p_T."""
    mean, std, end = 0.7, 0.4, THREE.marginal(path, path.t_noise)
    scale, noise = (float(part) for part in path.transition(path.t_data, path.t_noise))
    m, s = scale * mean, math.hypot(scale * std, noise)
    off = divergence(m, s, path.prior.log_prob) - divergence(m, s, end.log_prob)
    exact = divergence(mean, std, THREE.marginal(path, path.t_data).log_prob)
    assert abs(by_quadrature(mean, std, THREE.model(path)) - exact - off) < 1e-7


@pytest.mark.parametrize(("sigma_min", "u_min"), [(0.0, 0.05), (0.0, 0.4), (0.0, 0.8), (0.4, 0.4), (0.4, 0.6)])
def test_a_cut_off_under_an_exact_model(sigma_min, u_min):
    """Two Gaussians: the divergence at u_min, and that of q(z | y) from the draw about the model's conditional mean.

    In x = (u/(1-u))^2 - sigma_min^2 the state is z + sqrt(x) eps, and x the variance of the draw.
    """
    (m, s), (m_p, s_p), n = (0.7, 0.4), (-0.2, 0.9), 20_000
    x = (u_min / (1 - u_min)) ** 2 - sigma_min**2
    share, share_p = s**2 / (s**2 + x), s_p**2 / (s_p**2 + x)
    apart = (
        (1 - share_p) * (m - m_p),
        (share - share_p) * math.sqrt(s**2 + x),
    )  # of the two means, at a mean y and per std
    last = kl_divergence(Normal(0.0, math.sqrt(share * x)), Normal(0.0, math.sqrt(x))) + (
        apart[0] ** 2 + apart[1] ** 2
    ) / (2 * x)
    exact = kl_divergence(Normal(m, math.sqrt(s**2 + x)), Normal(m_p, math.sqrt(s_p**2 + x))) + last
    law = sdegen.Gaussian([m_p], math.sqrt(s_p**2 - sigma_min**2))  # which sigma_min then blurs
    bound = sdegen.score_kl(*repeated(m, s, n), law.model(sdegen.CondOT(sigma_min)), draws=4, u_min=u_min)
    assert abs(float(bound.value.mean() - exact)) < 4 * float(bound.value.std()) / math.sqrt(n)
    assert float(bound.value.std()) / math.sqrt(n) < 0.01


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize(("mean", "std"), Q[:2])
def test_draws_are_unbiased_and_know_their_error(path, mean, std):
    """Mean over repeats within 4 standard errors; the stated variance is that of the repeats."""
    n = 4000
    bound = sdegen.score_kl(*repeated(mean, std, n), THREE.model(path), draws=6)
    exact = divergence(mean, std, THREE.marginal(path, path.t_data).log_prob)
    assert bound.value.shape == bound.standard_error.shape == (n,)
    assert abs(float(bound.value.mean()) - exact) < 4 * float(bound.value.std()) / math.sqrt(n) + 1e-4
    stated, seen = bound.standard_error.square(), bound.value.var()
    assert abs(float(stated.mean() / seen) - 1) < 6 * float(stated.std() / seen + 1.5) / math.sqrt(n)


def test_several_values_add_up():
    """Independent values of very different deviations, in an event of two axes."""
    mean = torch.tensor([[[0.5, -1.0], [0.0, 2.0]]]).expand(3000, 2, 2)
    std = torch.tensor([[[0.5, 0.01], [1.0, 0.2]]]).expand(3000, 2, 2)
    prior = sdegen.Gaussian(torch.zeros(2, 2), 1.0).model(sdegen.CondOT())
    bound = sdegen.score_kl(mean, std, prior, draws=8)
    exact = kl_divergence(Normal(mean[0], std[0]), Normal(0.0, 1.0)).sum()
    assert abs(float(bound.value.mean() - exact)) < 4 * float(bound.value.std()) / math.sqrt(3000)


@pytest.mark.parametrize("std", [1e-4, 0.03, 1.0, 3.0])
def test_no_draw_is_rare_and_large(std):
    """The integrand over the density of the clocks is bounded: by a few times its mean, for posteriors of any width."""
    prior = sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT())
    bound = sdegen.score_kl(*repeated(0.5, std, 20_000), prior, draws=2)
    exact = kl_divergence(Normal(0.5, std), Normal(0.0, 1.0))
    assert float(bound.value.std()) < 3 * float(exact)
    assert float(bound.value.max()) < 40 * float(exact)


@pytest.mark.parametrize("path", [sdegen.CondOT(), sdegen.VPSDE()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("c", [1.0, 23436.0])
@pytest.mark.parametrize(
    ("a", "low"), [(1e-10, 0.0), (0.25, 0.0), (0.0, 1e-9), (0.0, 1e-5), (0.0, 1e-3), (-0.9e-4, 0.01 / 1.01)]
)
def test_clocks_are_even_in_w(path, a, low, c):
    """And keep their digits at both ends, also in single precision."""
    high, fraction = path.ends[1], torch.linspace(1e-3, 1 - 1e-3, 999)
    along = Clocks(torch.tensor([a]), c, low, high)

    def w(u):
        x = (u / (1 - u)) ** 2
        return torch.log(c + x) - torch.log(a + x)

    ends = [
        w(torch.tensor(u)) if 0 < u < 1 else torch.tensor(math.log(c) - math.log(a) if u == 0 else 0.0)
        for u in (low, high)
    ]
    torch.testing.assert_close(along.length, (ends[0] - ends[1])[None], rtol=1e-12, atol=1e-12)
    u = along.at(fraction)
    torch.testing.assert_close((ends[0] - w(u)) / along.length, fraction, rtol=0, atol=1e-9)
    single = Clocks(along.a.float(), c, low, high).at(fraction.float())
    torch.testing.assert_close(single.double(), u, rtol=1e-4, atol=0)
    assert along.at(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([low, high], abs=1e-7)


def test_single_precision_is_enough():
    mean, std = (part.float() for part in repeated(0.2, 1e-3, 20_000))
    bound = sdegen.score_kl(mean, std, THREE.model(sdegen.CondOT()), draws=8)
    assert bound.value.dtype is torch.float32
    exact = divergence(0.2, 1e-3, THREE.log_prob)
    assert abs(float(bound.value.mean()) - exact) < 4 * float(bound.value.std()) / math.sqrt(20_000)


def test_gradients_are_those_of_the_divergence():
    prior, n, h = THREE.model(sdegen.CondOT()), 20_000, 1e-5
    mean, std = (part.requires_grad_() for part in repeated(0.7, 0.4, n))
    sdegen.score_kl(mean, std, prior, draws=4).value.sum().backward()
    for grad, (dm, ds) in ((mean.grad, (h, 0.0)), (std.grad, (0.0, h))):
        up, down = (divergence(0.7 + sign * dm, 0.4 + sign * ds, THREE.log_prob) for sign in (1, -1))
        assert abs(float(grad.mean()) - (up - down) / (2 * h)) < 4 * float(grad.std()) / math.sqrt(n)


def test_a_mixture_prior_sums_its_component_out():
    """THEORY 9.4: the exact term of the GMVAE, and the looser one that keeps the component."""
    m, s = 0.3, 0.5
    law = sdegen.GaussianMixture([[-1.0], [1.0]], [0.4, 0.6], [0.3, 0.7])
    assert abs(-by_quadrature(m, s, law.model(sdegen.CondOT())) + 0.731504) < 1e-6
    z, w = normal_nodes(100)
    x, pi = m + s * z, torch.tensor([0.3, 0.7])
    logs = Normal(torch.tensor([-1.0, 1.0]), torch.tensor([0.4, 0.6])).log_prob(x[:, None]) + pi.log()
    r = torch.softmax(logs, 1)
    each = kl_divergence(Normal(m, s), Normal(torch.tensor([-1.0, 1.0]), torch.tensor([0.4, 0.6])))
    looser = -((w @ r) * each).sum() - w @ (r * (r / pi).log()).sum(1)
    assert abs(float(looser) + 1.727387) < 1e-6


def test_one_generator_per_sample_makes_a_sample_its_own():
    prior, (mean, std) = THREE.model(sdegen.VPSDE()), repeated(0.7, 0.4, 5)
    many = [torch.Generator().manual_seed(i) for i in range(5)]
    one = [torch.Generator().manual_seed(3)]
    together = sdegen.score_kl(mean, std, prior, generator=many).value[3:4]
    torch.testing.assert_close(together, sdegen.score_kl(mean[:1], std[:1], prior, generator=one).value)


def test_no_latents_have_no_bound():
    bound = sdegen.score_kl(torch.zeros(0, 1), torch.ones(0, 1), THREE.model(sdegen.VPSDE()))
    assert bound.value.shape == bound.standard_error.shape == (0,)


def test_the_nodes_integrate():
    """The quadrature that the laws above rest on."""
    x, w = legendre(1, -1.0, 2.0)
    assert abs(float((w * x**3).sum()) - 15 / 4) < 1e-12
    z, w = normal_nodes(10)
    assert abs(float((w * z**4).sum()) - 3) < 1e-12
