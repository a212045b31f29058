"""Terms of the bounds that need no average: where steps fall, the decoder at a known x_hat, parts and paths."""

from __future__ import annotations

import pytest
import torch

import sdegen

CHAIN = sdegen.DDPM.linear(6, 0.05, 0.4)

POINT = torch.tensor([0.4, -0.1], dtype=torch.float64)

X = torch.tensor([[0.5, -0.75], [-0.25, 0.0], [1.0, -1.0]], dtype=torch.float64)


def towards_a_point(path):
    """A network whose x_hat is one point, whatever it is shown."""
    return sdegen.ScoreModel(lambda x, t: POINT.expand_as(x), path, "data")


def generators():
    return [torch.Generator().manual_seed(i) for i in range(3)]


def test_random_steps_fall_where_log_snr_is_lost():
    """k = 2 ... K with the share of log(1 + SNR) lost in step k - 1 to k; k = 1 once, for the decoder."""
    chain, n, draws, counts = sdegen.DDPM([0.05, 0.1, 0.6, 0.2, 0.3]), 4000, 8, torch.zeros(6)

    def net(x, t):
        counts.add_(torch.bincount(torch.round(5 * t).long(), minlength=6))
        return torch.tanh(x)

    sdegen.vlb(sdegen.ScoreModel(net, chain), torch.zeros(n, 1), draws=draws)
    bars = torch.cumprod(1 - chain.betas, 0)
    lost = -torch.diff(-torch.log1p(-bars))  # log(1 + SNR) = -log(1 - abar)
    shares = lost / lost.sum()
    assert counts[:2].tolist() == [0, n]
    assert bool((((counts[2:] / (n * draws)) - shares).abs() < 5 * (shares * (1 - shares) / (n * draws)).sqrt()).all())


def test_the_decoder_of_the_continuous_bound_sits_on_x_hat():
    """Where x_hat is one point, the decoder's term is known without the draw it is taken at."""
    decoder, u_min = sdegen.Discretized(9), 0.2
    bound = sdegen.continuous_vlb(towards_a_point(sdegen.VPSDE()), X, decoder=decoder, u_min=u_min, draws=2)
    by_hand = -decoder.log_prob(X, POINT, torch.tensor(u_min / (1 - u_min))).sum(1)
    torch.testing.assert_close(bound.decoder, by_hand, rtol=1e-12, atol=0)


def test_values_one_level_beyond_the_ends_are_refused():
    model, decoder = sdegen.ScoreModel(lambda x, t: x, CHAIN), sdegen.Discretized(5)
    for value in (-1.5, 1.5):
        x = torch.tensor([[0.5, value]])
        with pytest.raises(ValueError, match=r"1 values of x lie outside the decoder's range \[-1.0, 1.0\]"):
            sdegen.vlb(model, x, decoder=decoder)


def test_paths_of_one_sample_do_not_depend_on_the_batch_size():
    """With a generator per sample every path takes its draws in one piece, also where a call has room for several."""
    model, x = sdegen.ScoreModel(lambda x, t: torch.tanh(x), CHAIN), torch.randn(3, 2)

    def weights(size):
        return sdegen.iwae(model, x, 4, generator=generators(), batch_size=size).log_weights

    for size in (2, 4, 7, 100):
        torch.testing.assert_close(weights(size), weights(None), rtol=1e-12, atol=1e-12)


def test_the_decoder_of_iwae_sits_on_x_hat_too():
    """Against the Gaussian decoder on the same paths: the weights differ by the decoders alone, of variance beta_1."""
    decoder, model = sdegen.Discretized(9), towards_a_point(CHAIN)
    levels, density = (
        sdegen.iwae(model, X, 5, decoder=d, generator=torch.Generator().manual_seed(0)).log_weights
        for d in (decoder, "gaussian")
    )
    std = CHAIN.betas[0].sqrt()
    apart = decoder.log_prob(X, POINT, std) - torch.distributions.Normal(POINT, std).log_prob(X)
    torch.testing.assert_close(levels - density, apart.sum(1, keepdim=True).expand(3, 5), rtol=1e-9, atol=1e-9)


def test_optimal_variances_of_iwae_are_those_of_its_data():
    model, x = sdegen.ScoreModel(lambda x, t: torch.tanh(x), CHAIN), torch.randn(3, 2)
    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    fitted = sdegen.iwae(model, x, 2, variance="optimal", generator=one, batch_size=2)
    best = sdegen.optimal_variance(model, x, generator=other, batch_size=2)
    by_hand = sdegen.iwae(model, x, 2, variance=best, generator=other, batch_size=2)
    torch.testing.assert_close(fitted.log_weights, by_hand.log_weights, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(fitted.standard_error, by_hand.standard_error, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("verb", [sdegen.vlb, sdegen.continuous_vlb])
def test_parts_keep_their_standard_errors(verb):
    model, x = sdegen.ScoreModel(lambda x, t: torch.tanh(x), CHAIN), torch.randn(3, 2)
    whole, parts = (verb(model, x, draws=4, generator=generators(), batch_size=size) for size in (None, 2))
    assert whole.standard_error.shape == (3,)
    assert float(whole.standard_error.min()) > 0
    torch.testing.assert_close(parts.standard_error, whole.standard_error, rtol=1e-11, atol=1e-12)
