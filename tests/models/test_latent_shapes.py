"""Shapes that a decoder may return mean one thing, or are refused; values that are NaN, -inf or whole numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, Normal

import sdegen

UNIT = sdegen.Gaussian([0.0, 0.0], 1.0).model(sdegen.CondOT())
FAST = sdegen.Adams(4)
X = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MANY = r"each has as many axes, the first of them for the samples or of size 1, or is a single number"


def encoder(x):
    mean = x.flatten(1)[:, :2].double()
    return mean, torch.full_like(mean, 0.5)


def model(decoder):
    return sdegen.LatentModel(encoder, decoder, UNIT)


FIT = {
    "numbers": lambda z: (torch.zeros(len(z), 3), 1.0),
    "one row": lambda z: (torch.zeros(1, 3), torch.ones(1, 3)),
    "one row, a number": lambda z: (torch.zeros(1, 3), torch.ones(())),
    "a number": lambda z: (torch.tensor(0.0), torch.ones(len(z), 3)),
    "one std per sample": lambda z: (torch.zeros(1, 3), torch.ones(len(z), 1)),
    "one std per value": lambda z: (torch.zeros(len(z), 3), torch.ones(3)),
    "all": lambda z: (torch.zeros(len(z), 3), torch.ones(len(z), 3)),
}


@pytest.mark.parametrize("name", FIT)
def test_what_broadcasts_is_one_law_per_sample(name):
    """The shape of the draws, that they are not shared, and the log-density."""
    one = model(FIT[name])
    x = one.sample(5, FAST, batch_size=2)
    assert x.shape == (5, 3)
    assert len(x.unique()) == 15
    one.loss(X)
    exact = Normal(0.0, 1.0).log_prob(X).sum(1)
    torch.testing.assert_close(one._decoded(X[:, :2]).log_prob(X), exact)


@pytest.mark.parametrize("std", [0.5, torch.tensor(0.5), torch.full((2,), 0.5), torch.full((1, 2), 0.5)], ids=repr)
def test_the_std_of_an_encoder_broadcasts_too(std):
    def mean_and_std(x):
        return encoder(x)[0], std

    spread = sdegen.LatentModel(mean_and_std, FIT["numbers"], UNIT)
    for verb in ("loss", "elbo"):
        found, all_written = (
            getattr(m, verb)(X, generator=torch.Generator().manual_seed(0)) for m in (spread, model(FIT["numbers"]))
        )
        torch.testing.assert_close(*(v if verb == "loss" else v.value for v in (found, all_written)))


MISFIT = {
    "no rows": (lambda z: (torch.zeros(3), torch.ones(3)), r"\(3,\) and \(3,\)"),
    "no event": (lambda z: (z.sum(1), torch.ones(1)), r"\(3,\) and \(1,\)"),
    "other rows": (lambda z: (torch.zeros(2, 3), 1.0), r"\(2, 3\) and \(\)"),
}


@pytest.mark.parametrize("name", MISFIT)
@pytest.mark.parametrize("verb", ["loss", "elbo", "sample"])
def test_what_could_mean_two_things_is_refused(name, verb):
    """Three samples of three values: a shape (3,) would fit either."""
    decoder, shapes = MISFIT[name]
    against = r"\(3, \*event\)" if verb == "sample" else r"\(3, 3\)"
    words = f"mean and std of the decoder must broadcast against {against}, and they have shapes {shapes}: {MANY}"
    options = {} if verb == "loss" else {"solver": FAST}
    with pytest.raises(ValueError, match=words):
        getattr(model(decoder), verb)(3 if verb == "sample" else X, **options)


def test_a_mean_and_a_std_of_other_events_are_refused_by_the_draw():
    odd = model(lambda z: (torch.zeros(len(z), 3), torch.ones(len(z), 4)))
    with pytest.raises(
        ValueError, match=r"broadcast against \(2, \*event\), and they have shapes \(2, 3\) and \(2, 4\)"
    ):
        odd.sample(2, FAST)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_law_without_rows_draws_no_samples(batch_size):
    with pytest.raises(
        ValueError, match=r"What the decoder draws must have shape \(., \*event\), .* of shape \(3,\): "
    ):
        model(lambda z: Bernoulli(torch.full((3,), 0.5))).sample(4, FAST, batch_size=batch_size)
    with pytest.raises(
        ValueError, match=r"What the decoder draws must have shape \(., \*event\), .* of shape \(3, 2\): "
    ):
        model(lambda z: Bernoulli(torch.full((3, 2), 0.5))).sample(4, FAST, batch_size=batch_size)
    with pytest.raises(
        ValueError, match=r"What the encoder draws must have shape \(3, \*event\), .* of shape \(2,\): "
    ):
        sdegen.LatentModel(lambda x: Categorical(torch.ones(2, 3)), lambda z: (z, 1.0), UNIT).elbo(X, solver=FAST)


def test_none_are_an_empty_batch():
    assert model(lambda z: (z @ torch.ones(2, 3), 1.0)).sample(0, FAST).shape == (0, 3)
    assert model(lambda z: Bernoulli(logits=z)).sample(0, FAST).shape == (0, 2)


def test_values_of_a_law_are_summed_over_the_whole_event():
    x = torch.randint(0, 2, (3, 1, 4, 4)).double()
    values = []
    for wrap in (lambda law: law, lambda law: Independent(law, 1), lambda law: Independent(law, 3)):
        torch.manual_seed(1)
        by_value = model(lambda z, wrap=wrap: wrap(Bernoulli(logits=z[:, :1, None, None].expand(-1, 1, 4, 4))))
        values.append(by_value.elbo(x, solver=FAST).value)
    for value in values[:2]:
        torch.testing.assert_close(value, values[2])


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_whole_numbers_are_handed_over_as_floats(kind):
    levels = model(lambda z: Categorical(logits=torch.arange(6.0).expand(len(z), 3, 6)))
    x = torch.tensor([[0, 1, 0], [1, 1, 0]]).to(kind)
    for verb in ("loss", "elbo"):
        with pytest.raises(
            TypeError, match=f"x must have .* has {kind}: pass x.float.., in which .* Categorical, take"
        ):
            getattr(levels, verb)(x)
    assert torch.isfinite(levels.loss(x.float()))
    assert levels.sample(4, FAST).dtype is torch.int64


def test_a_decoder_that_is_not_finite_is_told_of_by_the_loss():
    broken = torch.tensor([[1.0], [math.nan], [1.0]])
    words = "The log-density of the decoder of 1 of 3 samples is NaN or infinite"
    with pytest.raises(sdegen.NonFiniteError, match=words):
        model(lambda z: (z @ torch.ones(2, 3) * broken, 1.0)).loss(X)
    with pytest.raises(sdegen.NonFiniteError, match=words):
        model(lambda z: (X * broken.nan_to_num(nan=math.inf), 1.0)).loss(X)


class Given:
    """A law whose log-densities are stated, one for each of the latents."""

    def __init__(self, values):
        self.values = values

    def log_prob(self, x):
        return self.values


def test_an_impossible_draw_is_a_weight_of_zero():
    half = model(lambda z: Given(torch.where(torch.arange(len(z)) % 2 == 0, 0.0, -math.inf)))
    one = X[:1]
    bound = half.elbo(one, draws=4, solver=FAST)
    assert (bound.value.tolist(), bound.standard_error.tolist()) == ([-math.inf], [math.inf])
    found = half.iwae(one, 6, solver=FAST)
    kept = found.log_weights[:, ::2]
    torch.testing.assert_close(found.log_prob, torch.logsumexp(kept, 1) - math.log(6))
    assert torch.isfinite(found.standard_error).all()
    assert 1 <= float(found.effective_samples) <= 3
    none = model(lambda z: Given(torch.full((len(z),), -math.inf))).iwae(one, 6, solver=FAST)
    assert float(none.log_prob) == -math.inf
    assert none.effective_samples.isnan().all()


def test_an_infinite_weight_is_an_error():
    certain = model(lambda z: Given(torch.where(torch.arange(len(z)) == 1, math.inf, 0.0)))
    with pytest.raises(sdegen.NonFiniteError, match="The log-weight of 1 of 6 latents is NaN or infinite"):
        certain.iwae(X, 2, solver=FAST)
