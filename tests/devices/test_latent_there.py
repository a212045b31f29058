"""Latents on the pretend device: the numbers of the CPU, a loss that never waits, NaN for a std not positive."""

from __future__ import annotations

import pytest
import torch
from cases import PATHS, Net, few, network, same
from pretend import counted, held, put
from torch import nn

import sdegen

MEAN = torch.tensor([[0.3, -1.0], [0.0, 2.0]], dtype=torch.float64)
STD = torch.tensor([[0.5, 1.2], [0.01, 0.3]], dtype=torch.float64)
KL_PATHS = ["vp", "ve", "ddpm", "condot"]


def two_step(n):
    return sdegen.ODESolver("midpoint", steps=n)


class Half(nn.Module):
    """Encoder and decoder: (mean, std) from one layer, or std a number."""

    def __init__(self, number=False):
        super().__init__()
        self.net, self.number = nn.Linear(2, 2), number

    def forward(self, x):
        return self.net(x), 0.5 if self.number else self.net(x).exp()


def autoencoder():
    torch.manual_seed(4)
    prior = sdegen.ScoreModel(Net(), PATHS["vp"], "v")
    return sdegen.LatentModel(Half(), Half(number=True), prior, latent_shape=(2,))


def fields(bound):
    return bound.value, bound.standard_error


@pytest.mark.parametrize("path", KL_PATHS)
def test_score_kl(path):
    same(lambda m, *q: fields(sdegen.score_kl(*q, m, draws=4)), network(PATHS[path]), MEAN, STD)
    exact = sdegen.GaussianMixture(torch.randn(3, 2), 0.5).model(PATHS[path])
    same(lambda m, *q: fields(sdegen.score_kl(*q, m, draws=4)), exact, MEAN, STD)
    model, q = put(network(PATHS[path])), put((MEAN, STD))
    few(lambda n: sdegen.score_kl(*q, model, draws=n))


def test_the_loss_waits_for_nothing():
    same(lambda m, x: m.loss(x, draws=4), autoencoder(), MEAN)
    model, x = put(autoencoder()), put(MEAN)
    counted(lambda: model.loss(x))
    _, waits = counted(lambda: model.loss(x).backward())
    assert not waits, dict(waits)


def test_bounds_and_samples():
    same(lambda m, x: fields(m.elbo(x, draws=2, solver=two_step(4))), autoencoder(), MEAN)
    same(lambda m, x: m.iwae(x, 3, solver=two_step(4), batch_size=4).log_weights, autoencoder(), MEAN)
    same(lambda m, _: m.sample(3, two_step(4)), autoencoder(), MEAN)
    model, x = put(autoencoder()), put(MEAN)
    few(lambda n: model.elbo(x, draws=2, solver=two_step(n)))


def test_a_std_that_is_not_positive_is_nan_there():
    model, mean, std = put(network(PATHS["vp"])), put(MEAN), put(torch.tensor([[0.5, -0.5], [0.1, 0.2]]))
    bound, _ = counted(lambda: sdegen.score_kl(mean, std, model, draws=2))
    assert held(bound.value).isnan().tolist() == [True, False]
