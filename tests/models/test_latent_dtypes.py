"""LatentModel in half precision, in mixed precision, and the dtype of what it draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdegen
from sdegen.nets import MLP

HALF = [torch.bfloat16, torch.float16]
FAST = sdegen.Adams(6)
DTYPES = pytest.mark.parametrize("dtype", HALF, ids=str)


class Both(nn.Module):
    """(mean, std) by one layer; notes the dtype of what it is given."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.net, self.seen = nn.Linear(inputs, 2 * outputs), set()

    def forward(self, x):
        self.last = x
        self.seen.add(x.dtype)
        mean, log_std = self.net(x).chunk(2, 1)
        return mean, (0.3 * log_std).exp()


def trained_along(dtype):
    torch.manual_seed(0)
    prior = sdegen.ScoreModel(MLP(2, hidden=8, depth=1), sdegen.VPSDE(), "v")
    return sdegen.LatentModel(Both(3, 2), Both(2, 3), prior, latent_shape=(2,)).to(dtype)


@DTYPES
def test_a_model_in_half_precision_is_the_model_in_double_to_its_digits(dtype):
    """Numbers are in float32; samples in the decoder's dtype."""
    model, double = trained_along(dtype), trained_along(dtype).double()
    x = torch.randn(4, 3, dtype=dtype)

    def numbers(model, x):
        return (
            model.loss(x, draws=32, generator=torch.Generator().manual_seed(1)),
            model.elbo(x, draws=400, solver=FAST).value,
            model.iwae(x, 400, solver=FAST).log_prob,
        )

    for half, wanted in zip(numbers(model, x), numbers(double, x.double()), strict=True):
        assert half.dtype is torch.float32
        torch.testing.assert_close(half.double(), wanted, rtol=0.1, atol=0.5)
    model.loss(x).backward()
    assert all(p.grad is not None and p.grad.dtype is dtype for p in model.parameters())
    assert model.sample(3, FAST).dtype is dtype
    assert model.encoder.seen == model.decoder.seen == {dtype}


@DTYPES
def test_log_densities_are_summed_in_single_precision(dtype):
    """A decoder's (mean, std), or its Bernoulli, of 4096 values, where the sum in half precision is off by tens."""
    size = 4096
    flat = sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT())
    x = torch.ones(1, size, dtype=dtype)
    torch.manual_seed(0)
    mean, logits = torch.randn(2, 1, size).to(dtype)

    def encoder(x):
        return torch.zeros(1, 1), torch.ones(1, 1)

    for law in ((mean, torch.ones((), dtype=dtype)), torch.distributions.Bernoulli(logits=logits)):
        model = sdegen.LatentModel(encoder, lambda z, law=law: law, flat)
        values = (
            torch.distributions.Normal(mean.double(), 1.0).log_prob(x.double())
            if isinstance(law, tuple)
            else torch.distributions.Bernoulli(logits=logits.double()).log_prob(x.double())
        )
        found = model.elbo(x, solver=sdegen.Adams(40)).value  # the encoder's law is the prior
        # what Bernoulli rounds value by value, it rounds without bias
        torch.testing.assert_close(found.double(), values.sum(1), rtol=0, atol=0.05 if isinstance(law, tuple) else 1.5)


def test_every_module_is_called_in_its_own_dtype():
    """Encoder, prior and decoder in three dtypes, whatever x is."""
    model = trained_along(torch.float32)
    model.encoder.double()
    model.decoder.to(torch.bfloat16)
    x = torch.randn(4, 3, dtype=torch.float32)
    model.loss(x).backward()
    assert torch.isfinite(model.elbo(x, solver=FAST).value).all()
    assert model.encoder.seen == {torch.float64}
    assert model.decoder.seen == {torch.bfloat16}
    assert trained_along(torch.float64).loss(x).dtype is torch.float64


def drawn(prior, decoder, shape=(2,), encoder=lambda x: (x, x)):
    seen = []
    model = sdegen.LatentModel(encoder, lambda z: seen.append(z.dtype) or decoder(z), prior, latent_shape=shape)
    return model.sample(2, FAST).dtype, seen[0]


def test_latents_are_drawn_in_the_dtype_of_their_prior():
    torch.set_default_dtype(torch.float32)
    net = sdegen.ScoreModel(MLP(2, hidden=8, depth=1).double(), sdegen.VPSDE(), "v")
    assert drawn(net, lambda z: (z, 1.0), encoder=nn.Linear(3, 2)) == (torch.float64, torch.float64)
    exact = sdegen.Gaussian(torch.zeros(2, dtype=torch.float64), 1.0).model(sdegen.CondOT())
    assert drawn(exact, lambda z: (z, 1.0)) == (torch.float64, torch.float64)
    assert (
        drawn(sdegen.Guided(exact.on(sdegen.VPSDE()), lambda z, t: 0 * z.sum(1)), lambda z: (z, 1.0))[1].itemsize == 8
    )
    function = sdegen.ScoreModel(lambda z, t: 0 * z, sdegen.VPSDE(), "v")
    assert drawn(function, lambda z: (z, 1.0)) == (torch.float32, torch.float32)
    model = sdegen.LatentModel(nn.Linear(3, 2), Both(2, 3).double(), function, latent_shape=(2,))
    assert model.sample(2, FAST).dtype is torch.float64
    assert not torch.equal(model.decoder.last.float().double(), model.decoder.last)  # with all the digits of its own


@DTYPES
def test_draws_in_half_precision_are_rounded_and_not_drawn_in_it(dtype):
    prior, drawn = sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT()), []
    for kind in (torch.float32, dtype):
        law = torch.zeros(1, 9, dtype=kind), torch.ones((), dtype=kind)
        model = sdegen.LatentModel(lambda x: x, lambda z, law=law: law, prior)
        drawn.append(model.sample(50, FAST, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(drawn[0].to(dtype), drawn[1])
