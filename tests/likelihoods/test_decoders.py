"""Decoders: the mass of every level to its last tail, gradients, and bounds in levels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from chains import Counting, levels

import sdegen


def log_mass(a, b):
    """log of the normal mass of [a, b] by Gauss-Legendre, with no cdf: reflected into a + b > 0 and scaled by 1/a."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    flip = a + b < 0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    peak = np.maximum(a, 0)
    low, high = np.maximum(a, -39), np.minimum(b, peak + np.minimum(39, 45 / np.maximum(peak, 1e-300)))
    node, weight = np.polynomial.legendre.leggauss(400)
    z = low[..., None] + 0.5 * (high - low)[..., None] * (node + 1)
    inside = (weight * np.exp(-0.5 * (z - peak[..., None]) * (z + peak[..., None]))).sum(-1)
    return np.log(inside * 0.5 * (high - low)) - 0.5 * peak**2 - 0.5 * np.log(2 * np.pi)


DECODERS = [sdegen.Discretized(), sdegen.Discretized(17, 1 / 17 - 1, 1 - 1 / 17), sdegen.Discretized(2, 0.0, 1.0)]


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_probabilities_of_all_levels_add_up_to_one(decoder):
    mean = torch.linspace(-1.5, 1.5, 61)[:, None]
    for std in (1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.5, 1.0, 10.0):
        log_p = decoder.log_prob(levels(decoder), mean, torch.tensor(std))
        assert bool(torch.isfinite(log_p).all())
        torch.testing.assert_close(log_p.exp().sum(1), torch.ones(61), rtol=0, atol=1e-12)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("std", [1e-3, 1e-2, 0.1, 10.0])
def test_discretised_log_probabilities_are_right_in_every_tail(decoder, std):
    x, mean = levels(decoder), torch.linspace(-1.5, 1.5, 41)[:, None]
    half = 0.5 * (decoder.high - decoder.low) / (decoder.levels - 1)
    low, high = ((x + side * half - mean) / std for side in (-1, 1))
    low[:, 0], high[:, -1] = -math.inf, math.inf
    exact = torch.from_numpy(log_mass(low.numpy(), high.numpy()))
    torch.testing.assert_close(decoder.log_prob(x, mean, torch.tensor(std)), exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("decoder", DECODERS)
def test_discretised_gradients_are_finite_and_right(decoder):
    x = levels(decoder)[:, None].expand(decoder.levels, 7)
    for std in (1e-3, 1e-2, 1.0, 10.0):
        mean = torch.linspace(-1.5, 1.5, 7).expand(decoder.levels, 7).clone().requires_grad_(True)
        scale = torch.full_like(mean, std).requires_grad_(True)
        slopes = torch.autograd.grad(decoder.log_prob(x, mean, scale).sum(), (mean, scale))
        h = 1e-5 * std
        for name, slope in zip(("mean", "std"), slopes, strict=True):
            assert bool(torch.isfinite(slope).all())
            shift = {"mean": (h, 0.0), "std": (0.0, h)}[name]
            with torch.no_grad():
                up = decoder.log_prob(x, mean + shift[0], scale + shift[1])
                down = decoder.log_prob(x, mean - shift[0], scale - shift[1])
            torch.testing.assert_close(slope, (up - down) / (2 * h), rtol=1e-4, atol=1e-4 / std)


def test_the_discretised_bound_counts_levels():
    """L_0 is -log of the cell's mass at mean x_hat and deviation sigma_1, the rest of the bound is as before."""
    decoder, chain = sdegen.Discretized(17, 1 / 17 - 1, 1 - 1 / 17), sdegen.DDPM.linear(6, 0.01, 0.4)
    x, noise = levels(decoder)[torch.randint(0, 17, (5, 2, 3))], torch.randn(5, 2, 3)
    model = sdegen.ScoreModel(Counting(), chain)
    ours, plain = sdegen.vlb(model, x, decoder=decoder, noise=noise), sdegen.vlb(model, x, noise=noise)
    assert torch.equal(ours.transitions, plain.transitions)
    beta = float(chain.betas[0])
    x_1 = math.sqrt(1 - beta) * x + math.sqrt(beta) * noise
    by_hand = -decoder.log_prob(x, model.data(x_1, 1 / 6), torch.tensor(math.sqrt(beta))).sum((1, 2))
    torch.testing.assert_close(ours.decoder, by_hand, rtol=1e-10, atol=0)
    torch.testing.assert_close(ours.bits_per_dim, ours.total / (6 * math.log(2)))
    # a fine grid of levels: P(x) is the density times the width of a cell
    fine = sdegen.Discretized(20_001, -3.0, 3.0)
    on = levels(fine)[torch.randint(8000, 12_000, (5, 2, 3))]
    width = math.log(6 / 20_000)
    for bound in (
        lambda d: sdegen.vlb(model, on, decoder=d, noise=noise).total,
        lambda d: (
            sdegen.continuous_vlb(model, on, decoder=d, u_min=0.05, generator=torch.Generator().manual_seed(0)).total
        ),
        lambda d: -sdegen.iwae(model, on, 3, decoder=d, generator=torch.Generator().manual_seed(0)).log_prob,
    ):
        torch.testing.assert_close(bound(fine), bound("gaussian") - 6 * width, rtol=1e-4, atol=1e-3)


def test_data_off_the_levels_is_refused():
    decoder = sdegen.Discretized()
    decoder.check(levels(decoder)[None])
    decoder.check(levels(decoder)[None].float())
    with pytest.raises(ValueError, match="1 values of x lie between the 256 levels"):
        decoder.check(torch.tensor([[0.0, 1.0]]))
    with pytest.raises(ValueError, match="2 values of x lie outside"):
        decoder.check(torch.tensor([[-1.01, 1.01, 1.0]]))
    middle = sdegen.Discretized(17, 1 / 17 - 1, 1 - 1 / 17)
    middle.check(2 * (torch.arange(17)[None] + 0.5) / 17 - 1)
    with pytest.raises(ValueError, match="outside"):
        middle.check(torch.tensor([[-1.0]]))


@pytest.mark.parametrize(
    ("data", "decoder", "named"),
    [
        (sdegen.Quantized(17), sdegen.Discretized(17), r"Quantized\(17, -1, 1\)"),
        (sdegen.Quantized(256, 0.0, 1.0), sdegen.Discretized(256, 0.0, 1.0), r"Quantized\(256, 0, 1\)"),
        (sdegen.Quantized.centred(17), sdegen.Quantized(17).decoder, r"Quantized.centred\(17, -1, 1\)"),
        (sdegen.Quantized.centred(4, 0.0, 3.0), sdegen.Quantized(4, 0.0, 3.0).decoder, r"Quantized.centred\(4, 0, 3\)"),
    ],
    ids=repr,
)
def test_data_of_the_other_convention_are_not_blamed(data, decoder, named):
    x = data.centre(torch.arange(data.levels))[None]
    for numbers in (x, x.float(), x[:, 1:-1]):
        with pytest.raises(ValueError, match=rf"They all are levels of {named}: give its .decoder\.$"):
            decoder.check(numbers)
    with pytest.raises(ValueError, match=r"without dequantisation noise\.$"):
        decoder.check(x[:, 1:2] + 0.3 * data.cell)
    data.decoder.check(x)
