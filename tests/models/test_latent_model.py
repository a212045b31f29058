"""LatentModel trained and drawn from: its loss against closed forms and differences, samples, modes, printing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

import sdegen
from sdegen.nets import MLP, UNet

UNIT = sdegen.Gaussian([0.0, 0.0], 1.0).model(sdegen.CondOT())


class Encoder(nn.Module):
    def __init__(self, d=3, k=2):
        super().__init__()
        self.net = nn.Linear(d, 2 * k)

    def forward(self, x):
        mean, log_std = self.net(x).chunk(2, 1)
        return mean, log_std.exp()


class Decoder(nn.Module):
    def __init__(self, d=3, k=2):
        super().__init__()
        self.net = nn.Linear(k, d)
        self.log_std = nn.Parameter(torch.tensor(-0.5))

    def forward(self, z):
        return self.net(z), self.log_std.exp()


def trainable(path=None, predicts="v"):
    net = MLP(2, hidden=8, depth=1)
    for p in net.parameters():
        p.data = 0.3 * torch.randn_like(p)
    prior = sdegen.ScoreModel(net, path or sdegen.VPSDE(), predicts)
    return sdegen.LatentModel(Encoder(), Decoder(), prior, latent_shape=(2,))


def analytic(model, x):
    """-E log p(x | z) + KL(q || N(0, I)) of a linear decoder, the loss of a plain VAE, (B,)."""
    (mean, std), W, s = model.encoder(x), model.decoder.net.weight, model.decoder.log_std.exp()
    missed = ((x - model.decoder.net(mean)) ** 2).sum(1) + (std**2 @ W.square().sum(0))
    reconstruction = missed / (2 * s**2) + x.shape[1] * (s.log() + 0.5 * math.log(2 * math.pi))
    return reconstruction + kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1)


def test_under_a_standard_normal_it_is_the_loss_of_a_vae():
    """In value and in gradient, within the error of repeated draws."""
    model, x, repeats = sdegen.LatentModel(Encoder(), Decoder(), UNIT), torch.randn(400, 3), 30
    parameters = list(model.parameters())
    drawn = [model.loss(x, draws=4) for _ in range(repeats)]
    exact = analytic(model, x).mean()

    def flat(loss):
        return torch.cat([loss[None], *(g.flatten() for g in torch.autograd.grad(loss, parameters))]).detach()

    found = torch.stack([flat(loss) for loss in drawn])
    z = (found.mean(0) - flat(exact)) / (found.std(0) / math.sqrt(repeats))
    assert float(z.abs().max()) < 5  # of 21 numbers, by a t of 29 degrees
    assert float(found[:, 0].std()) < 0.05 * float(exact.detach())


@pytest.mark.parametrize(
    "path", [sdegen.VPSDE(), sdegen.CondOT(0.3), sdegen.VESDE(sigma_min=0.3)], ids=lambda p: type(p).__name__
)
def test_under_an_exact_prior_it_is_the_elbo(path):
    """One latent, one prior, whichever way it is asked: on a path from noised data, that of the state there."""
    n, law = 3000, sdegen.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.2)
    model = sdegen.LatentModel(Encoder(), Decoder(), law.model(path))
    x = torch.randn(1, 3).expand(n, 3)
    elbo = model.elbo(x, solver=sdegen.ODESolver("rk4", steps=20)).value
    with torch.no_grad():
        losses = torch.stack([model.loss(part, draws=4) for part in x.split(100)])
    error = math.hypot(float(elbo.std()) / math.sqrt(n), float(losses.std()) / math.sqrt(len(losses)))
    assert abs(float(losses.mean() + elbo.mean())) < 4 * error + 1e-3


@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.CondOT()], ids=lambda p: type(p).__name__)
def test_gradients_reach_all_three_and_equal_finite_differences(path):
    model, x, h = trainable(path), torch.randn(5, 3), 1e-6

    def loss():
        return model.loss(x, generator=torch.Generator().manual_seed(3))

    loss().backward()
    for part in (model.encoder, model.decoder, model.prior):
        for p in part.parameters():
            direction = torch.randn_like(p)
            with torch.no_grad():
                p += h * direction
                up = loss()
                p -= 2 * h * direction
                down = loss()
                p += h * direction
            torch.testing.assert_close((up - down) / (2 * h), (p.grad * direction).sum(), rtol=1e-5, atol=1e-6)
        assert any(bool((p.grad != 0).any()) for p in part.parameters())


@pytest.mark.parametrize("predicts", ["v", "eps"])
def test_training_takes_a_loop_of_five_lines(predicts):
    """The bound rises by more than 5 nats, and does not pass the log-density of the data's law."""
    torch.manual_seed(1)
    law = sdegen.GaussianMixture([[-1.0, 0.0, 1.0], [1.0, 1.0, 0.0]], 0.3)
    model = trainable(predicts=predicts)
    x = law.sample(2000)

    def bound():
        with torch.no_grad():
            losses = torch.stack([model.loss(part, draws=16) for part in x.split(50)])
        return -float(losses.mean()), float(losses.std()) / math.sqrt(len(losses))

    before, _ = bound()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        loss = model.loss(law.sample(128))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after, error = bound()
    best = float(law.log_prob(x).mean())
    assert after > before + 5
    assert after < best + 4 * error
    assert torch.isfinite(model.elbo(x[:20], solver=sdegen.Adams(20)).value).all()


def test_latents_may_be_images():
    class Conv(nn.Module):
        def forward(self, x):
            return x[:, :1, ::2, ::2], torch.full_like(x[:, :1, ::2, ::2], 0.5)

    prior = sdegen.ScoreModel(UNet(1, 8, (1, 2)), sdegen.VPSDE(), "v")
    model = sdegen.LatentModel(
        Conv(),
        lambda z: (z.repeat_interleave(2, 2).repeat_interleave(2, 3), 0.5),
        prior,
        latent_shape=(1, 4, 4),
    ).float()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float32)
    assert model.loss(x).dtype is torch.float32
    assert model.sample(2, sdegen.Adams(3)).shape == (2, 1, 8, 8)
    assert model.elbo(x, draws=2, solver=sdegen.Adams(3), trace=sdegen.Hutchinson(1)).value.shape == (3,)


def test_samples_have_the_law_of_the_model():
    """x = W z + b + s noise with z ~ N(m, 0.8^2): mean and covariance within 5 standard errors."""
    n, law = 20_000, sdegen.Gaussian([0.4, -0.2], 0.8)
    model = sdegen.LatentModel(Encoder(), Decoder(), law.model(sdegen.CondOT()))
    x = model.sample(n, sdegen.ODESolver("rk4", steps=8), batch_size=7000)
    W, b, s = model.decoder.net.weight, model.decoder.net.bias, model.decoder.log_std.exp()
    covariance = (0.64 * W @ W.T + s**2 * torch.eye(3)).detach()
    z = (x.mean(0) - (W @ law.mean + b).detach()) / (covariance.diag() / n).sqrt()
    assert float(z.abs().max()) < 5
    spread = (covariance.diag()[:, None] * covariance.diag() + covariance**2) / n
    assert float(((torch.cov(x.T) - covariance) / spread.sqrt()).abs().max()) < 5
    assert not x.requires_grad


def test_the_solver_is_the_one_that_is_given():
    calls = []
    prior = sdegen.ScoreModel(lambda z, t: calls.append(len(z)) or 0 * z, sdegen.VPSDE(), "v")
    model = sdegen.LatentModel(Encoder(), Decoder(), prior, latent_shape=(2,))
    model.sample(5, sdegen.Adams(3), batch_size=3)
    assert calls == [3, 3, 3, 2, 2, 2]


def test_torch_s_own_normals_are_gaussians_like_any_other():
    x, encoder = torch.randn(4, 3), Encoder()
    losses = []
    for wrap in (lambda q: q, lambda q: Normal(*q), lambda q: Independent(Normal(*q), 1)):
        model = sdegen.LatentModel(lambda x, wrap=wrap: wrap(encoder(x)), Decoder(), UNIT)
        torch.nn.init.ones_(model.decoder.net.weight)
        torch.nn.init.ones_(model.decoder.net.bias)
        losses.append(model.loss(x, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


def test_generators_govern_everything():
    model = sdegen.LatentModel(Encoder(), Decoder(), UNIT)
    x, before = torch.randn(3, 3), torch.get_rng_state()

    def all_of_it(make):
        loss = model.loss(x, generator=make())
        elbo = model.elbo(x, draws=2, solver=sdegen.Adams(5), trace=sdegen.Hutchinson(1), generator=make())
        return torch.cat([loss[None], elbo.value, model.sample(3, sdegen.Adams(5), generator=make()).flatten()])

    for make in (
        lambda: torch.Generator().manual_seed(1),
        lambda: [torch.Generator().manual_seed(i) for i in range(3)],
    ):
        torch.testing.assert_close(all_of_it(make), all_of_it(make), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_bounds_and_samples_are_in_eval_mode_and_the_loss_is_not():
    seen = []

    class Watching(Decoder):
        def forward(self, z):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(z)

    model = sdegen.LatentModel(Encoder(), Watching(), UNIT)
    x = torch.randn(2, 3)
    model.loss(x)
    model.elbo(x, solver=sdegen.Adams(4))
    model.iwae(x, 2, solver=sdegen.Adams(4))
    model.sample(2, sdegen.Adams(4))
    assert seen == [(True, True)] + [(False, False)] * 3
    assert model.training


def test_a_function_that_hides_a_dropout_is_told_of():
    hidden = nn.Sequential(nn.Dropout(0.5), Encoder())
    model = sdegen.LatentModel(lambda x: hidden(x), Decoder(), UNIT)
    with pytest.warns(UserWarning, match="encoder is a function that hides Sequential, whose Dropout is in training"):
        model.elbo(torch.randn(2, 3), solver=sdegen.Adams(4))


def test_it_prints_in_one_line():
    assert repr(sdegen.LatentModel(Encoder(), Decoder(), UNIT)) == (
        "LatentModel(encoder=Encoder, decoder=Decoder, prior=ExactModel(Gaussian(event (2,)), "
        "CondOT(sigma_min=0.0)), latent_shape=(2,))"
    )


def test_its_state_is_that_of_its_parts():
    one, two, x = trainable(), trainable(), torch.randn(2, 3)
    two.load_state_dict(one.state_dict())
    losses = [model.loss(x, generator=torch.Generator().manual_seed(1)) for model in (one, two)]
    torch.testing.assert_close(*losses)
