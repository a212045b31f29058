"""What LatentModel refuses, in sentences, and where nothing is looked at before it is called."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Laplace, MultivariateNormal

import sdegen

X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
UNIT = sdegen.Gaussian([0.0, 0.0], 1.0).model(sdegen.CondOT())
CALLS: list[str] = []
FAST = sdegen.Adams(4)


def encoder(x):
    CALLS.append("encoder")
    return x, torch.full_like(x, 0.5)


def decoder(z):
    CALLS.append("decoder")
    return z, torch.ones(1)


def net(x, t):
    CALLS.append("net")
    return x


def model(encode=encoder, decode=decoder, prior=UNIT, **options):
    return sdegen.LatentModel(encode, decode, prior, **options)


def pairs():
    return model(prior=sdegen.ScoreModel(net, sdegen.Interpolant(), "velocity"))


BUILT = {
    "no encoder": (lambda: model(None), TypeError, "encoder must be a module or a function of one tensor, .* None"),
    "a class": (lambda: model(decode=torch.nn.Linear), TypeError, "decoder must be a module or a function"),
    "no prior": (lambda: model(prior=net), TypeError, r"prior must be a model, .* give ScoreModel\(net, path"),
    "other shape": (
        lambda: model(latent_shape=(3,)),
        ValueError,
        r"latent_shape is \(3,\), and a latent of the exact prior has shape \(2,\)",
    ),
    "a number": (lambda: model(latent_shape=3), TypeError, "latent_shape must be .* a tuple such as .*, and it is 3"),
    "empty": (lambda: model(latent_shape=()), TypeError, r"latent_shape must be .*, and it is \(\)"),
    "size 0": (lambda: model(latent_shape=(0,)), ValueError, "every size in latent_shape must be at least 1, .* 0"),
}

ASKED = {
    "loss, pairs": (lambda: pairs().loss(X), ValueError, "score_kl needs a prior with a score"),
    "loss, none": (lambda: model().loss(X[:0]), ValueError, r"An empty batch, shape \(0, 2\), has no loss"),
    "loss, NaN": (lambda: model().loss(X * math.nan), ValueError, "x holds NaN or infinite values in 3 of its 3"),
    "loss, u_min": (lambda: model().loss(X, u_min=2.0), ValueError, "u_min must be a finite number in"),
    "elbo, list": (lambda: model().elbo([[0.0]]), TypeError, r"x must be a tensor of shape \(B, ...\), and it is list"),
    "elbo, draws": (lambda: model().elbo(X, draws=0), ValueError, "draws must be at least 1, and it is 0"),
    "elbo, solver": (lambda: model().elbo(X, solver=sdegen.SDESolver("euler", 5)), TypeError, "SDESolver"),
    "elbo, trace": (lambda: model().elbo(X, trace="best"), ValueError, "Unknown trace 'best'"),
    "elbo, cond": (lambda: model().elbo(X, cond=3), TypeError, "cond must be a mapping .* and it is int"),
    "elbo, parts": (lambda: model().elbo(X, batch_size=0), ValueError, "batch_size must be at least 1, and it is 0"),
    "iwae, samples": (lambda: model().iwae(X, 0), ValueError, "samples must be at least 1, and it is 0"),
    "iwae, trace": (
        lambda: model().iwae(X, 4, trace=sdegen.Hutchinson(2)),
        TypeError,
        r"needs the exact trace, 'exact' or Exact\(chunk\), and trace is Hutchinson\(probes=2\)",
    ),
    "sample, n": (lambda: model().sample(-1), ValueError, "n must be at least 0, and it is -1"),
    "sample, shape": (
        lambda: pairs().sample(2, FAST),
        ValueError,
        "shape of a latent is not known, .*latent_shape=...",
    ),
    "generators": (
        lambda: model().elbo(X, generator=[torch.Generator()]),
        ValueError,
        "A batch of 3 needs 3 generators, one per sample, and 1 were given",
    ),
}

RETURNED = {
    "std 0": (lambda: model(lambda x: (x, 0 * x)), "loss", ValueError, "std must be positive, and 6 of its 6 values"),
    "std -1, elbo": (
        lambda: model(lambda x: (x, 0 * x - 1)),
        "elbo",
        ValueError,
        "6 of its 6 values are not, the first of them -1",
    ),
    "latent of 3": (
        lambda: model(lambda x: (torch.zeros(3, 3), torch.ones(3, 3))),
        "loss",
        ValueError,
        r"A latent of the prior has shape \(2,\), and that of mean and std is \(3,\)",
    ),
    "stated shape": (
        lambda: model(prior=sdegen.ScoreModel(net, sdegen.VPSDE(), "v"), latent_shape=(1, 2)),
        "loss",
        ValueError,
        r"A latent of the prior has shape \(1, 2\), and that of mean and std is \(2,\)",
    ),
    "rows": (
        lambda: model(lambda x: (x[:2], x[:2] ** 2 + 1)),
        "elbo",
        ValueError,
        "The encoder must return one latent per sample, 3 rows, and it gave 2",
    ),
    "a tensor": (
        lambda: model(lambda x: x),
        "elbo",
        TypeError,
        r"encoder must return \(mean, std\), two tensors, or a law .* returned a tensor of shape \(3, 2\)",
    ),
    "three": (lambda: model(decode=lambda z: (z, z, z)), "loss", TypeError, "decoder must return .* a tuple of 3"),
    "a string": (lambda: model(decode=lambda z: (z, "1")), "loss", TypeError, "decoder must return .mean, std., two"),
    "decoder std": (lambda: model(decode=lambda z: (z, 0 * z)), "loss", ValueError, "std must be positive, and 6 of"),
    "decoder shape": (
        lambda: model(decode=lambda z: (z[:, :0], torch.ones(1))),
        "elbo",
        ValueError,
        r"mean and std of the decoder must broadcast against \(3, 2\), and they have shapes \(3, 0\) and \(1,\)",
    ),
    "not diagonal": (
        lambda: model(lambda x: MultivariateNormal(x, torch.eye(2))),
        "loss",
        TypeError,
        "needs a diagonal Gaussian from the encoder, .* returned a MultivariateNormal; elbo and iwae take any law",
    ),
    "law's shape": (
        lambda: model(lambda x: Laplace(x[:, :1], 1.0)),
        "elbo",
        ValueError,
        r"What the encoder draws must have shape \(3, 2\), and it has \(3, 1\)",
    ),
    "law's density": (
        lambda: model(decode=lambda z: MultivariateNormal(torch.zeros(2), torch.eye(2)).expand((5, 1))),
        "elbo",
        ValueError,
        r"log_prob of the decoder's law must give one number per sample, shape \(3,\), .* gave \(5, 3\)",
    ),
    "NaN": (
        lambda: model(decode=lambda z: (z * math.nan, torch.ones(1))),
        "elbo",
        sdegen.NonFiniteError,
        "of 3 latents",
    ),
}


@pytest.mark.parametrize("name", BUILT)
def test_what_it_is_not_built_from(name):
    build, kind, words = BUILT[name]
    with pytest.raises(kind, match=words):
        build()


@pytest.mark.parametrize("name", ASKED)
def test_what_is_refused_before_any_network_is_called(name):
    ask, kind, words = ASKED[name]
    CALLS.clear()
    with pytest.raises(kind, match=words):
        ask()
    assert not CALLS


@pytest.mark.parametrize("name", RETURNED)
def test_what_encoder_and_decoder_may_not_return(name):
    build, verb, kind, words = RETURNED[name]
    options = {} if verb == "loss" else {"solver": FAST}
    with pytest.raises(kind, match=words):
        getattr(build(), verb)(X, **options)


def test_a_generator_does_not_reach_another_library():
    foreign = model(lambda x: Laplace(x, 1.0))
    with pytest.raises(ValueError, match="generator= cannot reach a Laplace, the law of the encoder, which draws from"):
        foreign.elbo(X, solver=FAST, generator=torch.Generator())
    torch.manual_seed(1)
    one = foreign.elbo(X, solver=FAST).value
    torch.manual_seed(1)
    torch.testing.assert_close(one, foreign.elbo(X, solver=FAST).value)


def test_a_law_without_draws_is_no_decoder_to_sample_from():
    class Scored:
        def log_prob(self, x):
            return -x.abs()

    scored = model(decode=lambda z: Scored())
    assert scored.elbo(X, solver=FAST).value.shape == (3,)
    with pytest.raises(TypeError, match=r"law of the decoder has no method sample\(\) to draw by: a Scored"):
        scored.sample(2, FAST)


def test_no_data_have_no_bound():
    assert model().elbo(X[:0]).value.shape == (0,)
    assert model().iwae(X[:0], 3).log_weights.shape == (0, 3)
