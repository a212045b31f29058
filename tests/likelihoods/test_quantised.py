"""Quantised data as one value: cells, both conventions, an exact inverse, and the code length of a known density."""

from __future__ import annotations

import math

import pytest
import torch

import sdegen
from sdegen.datasets import bits_per_dim, dequantise

VALUES = [
    sdegen.Quantized(),
    sdegen.Quantized(17),
    sdegen.Quantized(2, 0.0, 1.0),
    sdegen.Quantized(100, -3.0, 0.7),
    sdegen.Quantized(256, 0.0, 256.0),
    sdegen.Quantized(3, 5.0, 5.25),
    sdegen.Quantized.centred(),
    sdegen.Quantized.centred(17, 0.0, 1.0),
]
DTYPES = [torch.float16, torch.float32, torch.float64]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("q", VALUES, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantise_undoes_dequantise_for_every_draw_and_at_every_edge(q, dtype):
    n = torch.arange(q.levels, dtype=dtype)[:, None].expand(-1, 300).clone()
    y = q.dequantise(n, seeded())
    assert y.dtype is dtype
    assert torch.equal(q.quantise(y), n)
    for u in (0.0, 0.5, 1 - torch.finfo(dtype).eps / 2, 1.0):  # n + u may round up to n + 1
        y = q.spread(n, torch.full_like(n, u))
        assert torch.equal(q.quantise(y), n)
        assert q.low - 1e-3 * q.cell <= float(y.min())
        assert float(y.max()) < q.high
    assert torch.equal(q.quantise(q.centre(n)), n)


@pytest.mark.parametrize("q", VALUES, ids=repr)
def test_y_is_uniform_on_the_cell(q):
    n = torch.arange(q.levels)[:, None].expand(-1, 5000)
    inside = (q.dequantise(n, seeded()) - q.low) / q.cell - n
    assert abs(float(inside.mean()) - 1 / 2) < 5 / math.sqrt(12 * n.numel())
    assert abs(float(inside.square().mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / n.numel())
    assert float(inside.min()) > -1e-9
    assert float(inside.max()) < 1 + 1e-9


def test_what_lies_beyond_the_edges_belongs_to_the_outermost_levels():
    q = sdegen.Quantized(4, 0.0, 2.0)
    y = torch.tensor([-math.inf, -7.0, -1e-9, 0.0, 0.499, 0.5, 1.999, 2.0, 9.0, math.inf])
    assert q.quantise(y).tolist() == [0, 0, 0, 0, 0, 1, 3, 3, 3, 3]
    assert bool(q.quantise(torch.tensor([math.nan])).isnan().all())


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_two_conventions_are_two_values(levels):
    """Levels in the middle of cells from -1 to 1, or at -1 and 1 themselves: the decoders are those of before."""
    assert sdegen.Quantized(levels).decoder == sdegen.Discretized(levels, 1 / levels - 1, 1 - 1 / levels)
    assert sdegen.Quantized.centred(levels).decoder == sdegen.Discretized(levels)
    n = torch.arange(levels, dtype=torch.float64)
    torch.testing.assert_close(sdegen.Quantized.centred(levels).centre(n), 2 * n / (levels - 1) - 1, rtol=0, atol=1e-15)
    torch.testing.assert_close(sdegen.Quantized(levels).centre(n), (2 * n + 1) / levels - 1, rtol=0, atol=1e-15)
    for q in (sdegen.Quantized(levels), sdegen.Quantized.centred(levels)):
        q.decoder.check(q.centre(n)[None])
        assert q.decoder.cell == pytest.approx(q.cell, rel=1e-14)


def test_the_decoder_gives_each_level_the_mass_of_its_cell():
    """Inner cells have the mass of a normal density's integral over them, (low + n c, low + (n+1) c)."""
    q, law = sdegen.Quantized(11, -0.4, 1.8), torch.distributions.Normal(0.5, 0.3)
    n = torch.arange(11)
    edges = q.low + q.cell * torch.arange(12)
    mass = law.cdf(edges[1:]) - law.cdf(edges[:-1])
    mass[0], mass[-1] = law.cdf(edges[1]), 1 - law.cdf(edges[-2])
    found = q.decoder.log_prob(q.centre(n), torch.tensor(0.5), torch.tensor(0.3))
    torch.testing.assert_close(found.exp(), mass, rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    ("q", "offset"),
    [
        (sdegen.Quantized(), 7.0),
        (sdegen.Quantized(256, 0.0, 1.0), 8.0),
        (sdegen.Quantized(256, 0.0, 256.0), 0.0),
        (sdegen.Quantized.centred(), 6.994353436858857),
    ],
    ids=repr,
)
def test_bits_per_dim_adds_the_cell(q, offset):
    log_prob = torch.tensor([-3.0, 0.0, 50.0])
    expected = -log_prob / (12 * math.log(2)) + offset
    torch.testing.assert_close(q.bits_per_dim(log_prob, (3, 2, 2)), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(q.bits_per_dim(log_prob, 12), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_functions_of_the_data_sets_are_calls_of_it(levels):
    q, n = sdegen.Quantized(levels), torch.randint(0, levels, (7, 1, 3, 3))
    assert torch.equal(dequantise(n, levels, seeded()), q.dequantise(n, seeded()))
    u = (torch.rand(n.shape, generator=seeded()).argsort(0) + _second_draw(n.shape)) / 7
    assert torch.equal(dequantise(n, levels, seeded()), 2 / levels * (n + u) - 1)  # the numbers of before
    log_prob = torch.randn(5)
    before = -log_prob / (9 * math.log(2)) + math.log2(levels / 2)
    assert torch.equal(bits_per_dim(log_prob, (1, 3, 3), levels), before)


def _second_draw(shape):
    g = seeded()
    torch.rand(shape, generator=g)
    return torch.rand(shape, generator=g)


def test_with_one_generator_per_sample_nobody_depends_on_batch_mates():
    q, n = sdegen.Quantized(17), torch.randint(0, 17, (6, 2, 3))
    together = q.dequantise(n, [seeded(i) for i in range(6)])
    for i in (0, 4):
        assert torch.equal(q.dequantise(n[i : i + 1], [seeded(i)]), together[i : i + 1])
    u = (q.dequantise(torch.zeros(4000, 2), [seeded(i) for i in range(4000)]) - q.low) / q.cell
    assert abs(float(u.mean()) - 0.5) < 5 / math.sqrt(12 * 8000)
    assert abs(float(torch.corrcoef(u.T)[0, 1])) < 5 / math.sqrt(4000)


def test_integers_take_the_default_dtype_and_uint8_is_one():
    q, n = sdegen.Quantized(), torch.arange(256, dtype=torch.uint8)[:, None]
    torch.set_default_dtype(torch.float32)
    y = q.dequantise(n)
    assert y.dtype is torch.float32
    assert torch.equal(q.quantise(y).to(torch.uint8), n)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sdegen.Quantized(1), ValueError, "levels must be at least 2, and it is 1"),
        (lambda: sdegen.Quantized(256.0), TypeError, "256.0"),
        (lambda: sdegen.Quantized(4, 1.0, 1.0), ValueError, "low must be below high, and they are 1.0 and 1.0"),
        (lambda: sdegen.Quantized(4, math.nan), ValueError, "nan"),
        (lambda: sdegen.Quantized.centred(4, 2.0, 1.0), ValueError, "low must be below high, and they are 2.0 and 1.0"),
        (lambda: sdegen.Quantized().dequantise(torch.ones(3, 2, dtype=torch.bool)), TypeError, "dtype torch.bool"),
        (lambda: sdegen.Quantized().dequantise(torch.ones(3, 2) * 1j), TypeError, "whole numbers.*complex128"),
        (lambda: sdegen.Quantized().dequantise([[1]]), TypeError, "whole numbers, and this is list"),
        (lambda: sdegen.Quantized().dequantise(torch.tensor([[256]])), ValueError, "from 0 to 255, .*is 256.0"),
        (lambda: sdegen.Quantized().dequantise(torch.tensor([[0.5]])), ValueError, "value is 0.5; Quantized.quantise"),
        (lambda: sdegen.Quantized().dequantise(torch.ones(2, 2), [seeded()]), ValueError, "2 generators.*1 were given"),
        (lambda: sdegen.Quantized().dequantise(torch.ones(2, 2), 3), TypeError, "generator must be .*3 is int"),
        (lambda: sdegen.Quantized().dequantise(torch.ones(2, 2).bfloat16()), ValueError, "bfloat16 is too coarse"),
        (lambda: sdegen.Quantized(4096).quantise(torch.ones(2).half()), ValueError, "float16 is too coarse.*4096"),
        (lambda: sdegen.Quantized(1000).centre(torch.ones(2).half()), ValueError, "float16 is too coarse"),
        (lambda: sdegen.Quantized(2, 1e9, 1e9 + 1).centre(torch.ones(2).float()), ValueError, "float32 is too coarse"),
        (lambda: sdegen.Quantized().quantise(torch.ones(2).long()), TypeError, "y must be .*int64"),
        (
            lambda: sdegen.Quantized().spread(torch.ones(2), torch.ones(2).long()),
            TypeError,
            "u must be a tensor of real",
        ),
        (lambda: sdegen.Quantized().spread(torch.ones(2), torch.ones(3)), ValueError, r"\(2,\), and it has \(3,\)"),
        (lambda: sdegen.Quantized().quantise(0.3), TypeError, "y must be .*float"),
        (lambda: sdegen.Quantized().bits_per_dim(torch.ones(2), (3, 0)), ValueError, "at least 1, and it is 0"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert str(caught.value).endswith(".")
