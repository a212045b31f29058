"""LatentModel's bounds on log p(x): closed forms of the linear-Gaussian model, of IWAE's gap, of the GMVAE's term."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

import sdegen

SHARP = sdegen.ODESolver("dopri8", rtol=1e-8)
FAST = sdegen.ODESolver("rk4", steps=8)
W = torch.tensor([[1.0, 0.5], [0.0, -1.0], [0.7, 0.3]], dtype=torch.float64)
PRIOR, NOISE = sdegen.Gaussian(torch.tensor([0.4, -0.2], dtype=torch.float64), 0.8), 0.6


def score_prior(law=PRIOR):
    """A network that happens to be right: the prior is a ScoreModel like any other."""
    exact = law.model(sdegen.CondOT())
    return sdegen.ScoreModel(lambda z, t: exact.velocity(z, t), sdegen.CondOT(), "velocity")


def decoder(z):
    return z @ W.T, torch.tensor(NOISE)


def posterior(x):
    """q = p(z | x), a full Gaussian."""
    precision = W.T @ W / NOISE**2 + torch.eye(2) / 0.8**2
    covariance = torch.linalg.inv(precision)
    return (x @ W / NOISE**2 + PRIOR.mean / 0.8**2) @ covariance, covariance


def log_evidence(x):
    law = MultivariateNormal(PRIOR.mean @ W.T, 0.8**2 * W @ W.T + NOISE**2 * torch.eye(3))
    return law.log_prob(x)


def linear(spread=1.0):
    def encoder(x):
        mean, covariance = posterior(x)
        return MultivariateNormal(mean, spread * covariance)

    return sdegen.LatentModel(encoder, decoder, score_prior(), latent_shape=(2,))


def test_the_elbo_at_the_posterior_is_the_evidence():
    x = torch.randn(8, 3)
    bound = linear().elbo(x, solver=SHARP)
    assert bound.standard_error is None
    torch.testing.assert_close(bound.value, log_evidence(x), rtol=0, atol=1e-6)
    several = linear().elbo(x, draws=3, solver=SHARP)
    assert float(several.standard_error.max()) < 1e-6
    torch.testing.assert_close(linear().iwae(x, 3, solver=SHARP).log_prob, log_evidence(x), rtol=0, atol=1e-6)


def test_a_diagonal_posterior_too():
    """Columns of W at right angles: (mean, std) says it all, and so do torch's own Normals."""
    turned = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    variance = 1 / (torch.tensor([2.0, 4.0]) / NOISE**2 + 1)
    x = torch.randn(5, 3)
    mean, std = variance * (x @ turned) / NOISE**2, variance.sqrt().expand(5, 2)
    evidence = MultivariateNormal(torch.zeros(3), turned @ turned.T + NOISE**2 * torch.eye(3)).log_prob(x)
    prior = sdegen.Gaussian([0.0, 0.0], 1.0).model(sdegen.CondOT())
    for law in ((mean, std), Normal(mean, std), Independent(Normal(mean, std), 1)):
        model = sdegen.LatentModel(lambda x, law=law: law, lambda z: (z @ turned.T, torch.tensor([NOISE])), prior)
        torch.testing.assert_close(model.elbo(x, solver=SHARP).value, evidence, rtol=0, atol=1e-6)


def test_the_gap_of_iwae():
    """THEORY 9.2: it falls with K, and at K = 16 it is (E w^2/p^2 - 1)/(2K), 4/3 for a doubled covariance in 2-D."""
    n = 4000
    x = torch.randn(1, 3).expand(n, 3)
    weights = linear(spread=2.0).iwae(x, 16, solver=FAST).log_weights - log_evidence(x)[:, None]
    gaps = {}
    for K in (1, 4, 16):
        bound = torch.logsumexp(weights[:, :K], 1) - math.log(K)
        gaps[K] = -float(bound.mean()), float(bound.std()) / math.sqrt(n)
    assert gaps[1][0] > gaps[4][0] > gaps[16][0]
    assert abs(gaps[1][0] - (1 - math.log(2))) < 4 * gaps[1][1]  # KL(q || p(z | x))
    assert abs(gaps[16][0] - (4 / 3 - 1) / 32) < 4 * gaps[16][1]


def test_the_standard_error_of_the_elbo():
    n, x = 2000, torch.randn(1, 3)
    bound = linear(spread=2.0).elbo(x.expand(n, 3), draws=4, solver=FAST)
    stated, seen = bound.standard_error.square(), bound.value.var()
    assert abs(float(stated.mean() / seen) - 1) < 6 * float(stated.std() / seen + 1.5) / math.sqrt(n)


def test_the_mixture_term_of_the_gmvae():
    """THEORY 9.4: the ELBO of a mixture prior has the exact term, -0.731504, not the looser -1.727387."""
    n = 4000
    law = sdegen.GaussianMixture([[-1.0], [1.0]], [0.4, 0.6], [0.3, 0.7])
    model = sdegen.LatentModel(
        lambda x: (torch.full_like(x, 0.3), torch.full_like(x, 0.5)),
        lambda z: (torch.zeros(len(z), 1), torch.tensor(1 / math.sqrt(2 * math.pi))),
        law.model(sdegen.CondOT()),
    )
    bound = model.elbo(torch.zeros(n, 1), solver=FAST)
    assert abs(float(bound.value.mean()) + 0.731504) < 4 * float(bound.value.std()) / math.sqrt(n)


class Flow(nn.Module):
    """A law that only promises rsample and log_prob: an affine flow of features of x."""

    def __init__(self, x):
        super().__init__()
        self.mean, covariance = posterior(x)
        self.root = torch.linalg.cholesky(covariance)

    def rsample(self):
        return self.mean + torch.randn_like(self.mean) @ self.root.T

    def log_prob(self, z):
        white = torch.linalg.solve_triangular(self.root, (z - self.mean).T, upper=False).T
        return Normal(0.0, 1.0).log_prob(white) - self.root.diag().log()  # one number per value


def test_a_flow_as_posterior():
    x = torch.randn(4, 3)
    model = sdegen.LatentModel(lambda x: Flow(x), decoder, score_prior())
    torch.testing.assert_close(model.elbo(x, solver=SHARP).value, log_evidence(x), rtol=0, atol=1e-6)


def test_a_flow_of_zuko_as_posterior():
    """Untrained and conditional: the ELBO is off by its divergence from p(z | x), the mean weight is the evidence."""
    zuko = pytest.importorskip("zuko")

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = zuko.flows.MAF(features=2, context=3, transforms=2, hidden_features=(8,))

        def forward(self, x):
            return self.flow(x)

    torch.manual_seed(0)
    n, model = 4000, sdegen.LatentModel(Encoder(), decoder, score_prior(), latent_shape=(2,))
    x = 0.3 * torch.randn(1, 3)
    found = model.elbo(x.expand(n, 3), solver=FAST).value
    with torch.no_grad():
        q = model.encoder(x.expand(n, 3))
        z = q.sample()
        missed = q.log_prob(z) - MultivariateNormal(*posterior(x)).log_prob(z)
    error = math.hypot(float(found.std()), float(missed.std())) / math.sqrt(n)
    assert float(missed.mean()) > 10 * error
    assert abs(float(found.mean() + missed.mean() - log_evidence(x))) < 4 * error
    weights = (model.iwae(x, n, solver=FAST).log_weights - log_evidence(x)).exp()
    assert abs(float(weights.mean()) - 1) < 4 * float(weights.std()) / math.sqrt(n)
    assert sum(p.numel() for p in model.parameters()) > 0


def test_a_bernoulli_decoder_by_the_sum():
    """log p(x) of binary x under a latent of one value, by quadrature of the ELBO's parts at K large."""
    x = torch.tensor([[1.0, 0.0, 1.0]])
    model = sdegen.LatentModel(
        lambda x: (torch.zeros(len(x), 1), torch.ones(len(x), 1)),
        lambda z: torch.distributions.Bernoulli(logits=z * torch.tensor([1.0, -2.0, 0.5])),
        sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT()),
    )
    z = torch.linspace(-9, 9, 4001)[:, None]
    likelihood = torch.distributions.Bernoulli(logits=z * torch.tensor([1.0, -2.0, 0.5])).log_prob(x).sum(1)
    exact = torch.logsumexp(likelihood + Normal(0.0, 1.0).log_prob(z[:, 0]), 0) + math.log(18 / 4000)
    bound = model.iwae(x, 4000, solver=FAST)
    assert abs(float(bound.log_prob - exact)) < 4 * float(bound.standard_error) + 1e-3
    drawn = model.sample(2000, sdegen.ODESolver("rk4", steps=4))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert abs(float(drawn.mean()) - 0.5) < 0.04


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_parts_of_a_batch_change_nothing(batch_size):
    """With one generator per sample, all draws of a sample in one part or in several."""
    x, model = torch.randn(3, 3), sdegen.LatentModel(lambda x: (x[:, :2], x[:, :2] ** 2 + 0.1), decoder, score_prior())

    def bound(**options):
        generator = [torch.Generator().manual_seed(i) for i in range(3)]
        return model.iwae(x, 4, solver=FAST, generator=generator, **options).log_weights

    torch.testing.assert_close(bound(batch_size=batch_size), bound())


def test_conditions_of_the_prior_follow_their_samples():
    """A prior that is moved by its condition: q = p(z | x) has to move with it."""
    exact = sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT())
    prior = sdegen.ScoreModel(
        lambda z, t, shift: exact.velocity(z - t[:, None] * shift, t) + shift, sdegen.CondOT(), "velocity"
    )
    x, shift = torch.randn(3, 1), torch.tensor([[0.0], [2.0], [-1.0]])
    model = sdegen.LatentModel(lambda x: ((x + shift) / 2, 0 * x + math.sqrt(0.5)), lambda z: (z, torch.ones(1)), prior)
    bound = model.elbo(x, draws=2, solver=SHARP, cond={"shift": shift})
    torch.testing.assert_close(bound.value, Normal(shift, math.sqrt(2)).log_prob(x)[:, 0], rtol=0, atol=1e-6)
