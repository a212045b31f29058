"""Laws of the data sets: supports, moments, the split, and the code length of a known density."""

from __future__ import annotations

import builtins
import math

import numpy as np
import pytest
import torch

from sdegen.datasets import bits_per_dim, checkerboard, dequantise, digits, eight_gaussians, swiss_roll, two_moons

TOYS = [two_moons, eight_gaussians, checkerboard, swiss_roll]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def within(statistic, expected, standard_error):
    """Five standard errors: a chance of about 6e-7."""
    assert abs(float(statistic) - expected) < 5 * float(standard_error), (float(statistic), expected)


@pytest.mark.parametrize("toy", TOYS)
def test_toys_are_centred_and_of_order_one(toy):
    x = toy(100_000, generator=seeded())
    for column in x.T:
        within(column.mean(), 0.0, column.std() / math.sqrt(len(x)))
    rms = x.square().mean().sqrt()
    assert 0.9 < rms < 1.2
    assert x.abs().max() < 2.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("toy", TOYS)
def test_toys_follow_the_default_dtype(toy, dtype):
    torch.set_default_dtype(dtype)
    x = toy(5)
    assert x.shape == (5, 2)
    assert x.dtype is dtype


@pytest.mark.parametrize("toy", TOYS)
def test_a_generator_is_the_only_source_of_randomness(toy):
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = toy(50, generator=seeded(1)), toy(50, generator=seeded(1)), toy(50, generator=seeded(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch_before, torch.get_rng_state())
    torch.manual_seed(3)
    once = toy(50)
    torch.manual_seed(3)
    assert torch.equal(once, toy(50))
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


def test_two_moons_without_noise_are_two_half_circles():
    x = two_moons(4000, noise=0.0, generator=seeded())
    upper = x - torch.tensor([-2 / 3, -1 / 3])
    lower = x - torch.tensor([2 / 3, 1 / 3])
    on_upper = ((upper.norm(dim=1) - 4 / 3).abs() < 1e-6) & (upper[:, 1] > -1e-6)
    on_lower = ((lower.norm(dim=1) - 4 / 3).abs() < 1e-6) & (lower[:, 1] < 1e-6)
    assert bool((on_upper | on_lower).all())
    within(on_upper.double().mean(), 0.5, 0.5 / math.sqrt(4000))


def test_two_moons_noise_has_its_own_standard_deviation():
    clean, noisy = (two_moons(50_000, noise=s, generator=seeded()) for s in (0.0, 0.3))
    within((noisy - clean).std(), 0.3, 0.3 / math.sqrt(2 * 100_000))


def test_eight_gaussians_have_eight_equal_isotropic_modes():
    n, std = 80_000, 0.05
    x = eight_gaussians(n, std=std, generator=seeded())
    k = torch.arange(8)
    means = math.sqrt(2) * torch.stack([(k * math.pi / 4).cos(), (k * math.pi / 4).sin()], 1)
    mode = torch.cdist(x, means).argmin(1)
    for j in range(8):
        mine = x[mode == j] - means[j]
        within(len(mine) / n, 1 / 8, math.sqrt(7 / 64 / n))
        for column in mine.T:
            within(column.mean(), 0.0, std / math.sqrt(len(mine)))
            within(column.std(), std, std / math.sqrt(2 * len(mine)))
    second_moment = x.T @ x / n
    assert torch.allclose(second_moment, (1 + std**2) * torch.eye(2), atol=0.03)


def test_checkerboard_is_uniform_on_the_even_squares():
    n = 80_000
    x = checkerboard(n, generator=seeded())
    cell = x.floor().long()
    assert bool((cell.sum(1) % 2 == 0).all())
    assert x.min() >= -2
    assert x.max() <= 2
    counts = torch.bincount((cell[:, 0] + 2) * 4 + cell[:, 1] + 2, minlength=16)
    assert int((counts > 0).sum()) == 8
    for count in counts[counts > 0]:
        within(count / n, 1 / 8, math.sqrt(7 / 64 / n))
    inside = x - x.floor()
    for column in inside.T:
        within(column.mean(), 1 / 2, 1 / math.sqrt(12 * n))
        within(column.square().mean(), 1 / 3, math.sqrt(4 / 45 / n))


def test_swiss_roll_without_noise_is_a_spiral():
    x = 7 * swiss_roll(4000, noise=0.0, generator=seeded()) + torch.tensor([2.0, 2 / (3 * math.pi)])
    radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    turns = (radius - angle) / (2 * math.pi)
    assert torch.allclose(turns, turns.round(), atol=1e-9)
    within(radius.mean(), 3 * math.pi, 3 * math.pi / math.sqrt(12 * 4000))


def test_digits_split_is_disjoint_covering_and_stratified():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    (train, train_labels), (test, test_labels) = digits("train"), digits("test")
    assert train.shape == (1437, 1, 8, 8)
    assert test.shape == (360, 1, 8, 8)
    both = torch.cat([train, test]).flatten(1).numpy()
    labels = torch.cat([train_labels, test_labels]).numpy()
    data = load_digits()
    rows = np.column_stack([both, labels])
    reference = np.column_stack([data.data, data.target])
    assert np.array_equal(rows[np.lexsort(rows.T)], reference[np.lexsort(reference.T)])
    share = torch.bincount(test_labels) / torch.bincount(torch.from_numpy(labels))
    assert bool(((share - 0.2).abs() < 0.01).all())
    assert sorted(train.unique().tolist()) == list(range(17))


def test_digits_split_depends_on_its_seed_alone():
    pytest.importorskip("sklearn")
    before = torch.get_rng_state()
    first = digits("test")[0]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, digits("test")[0])
    assert not torch.equal(first, digits("test", seed=1)[0])


def test_digits_without_scikit_learn_names_the_extra(monkeypatch):
    genuine = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"sdegen\[examples\]"):
        digits()


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantise_is_uniform_on_the_cell_of_each_level(levels):
    n = torch.arange(levels).repeat(2000)
    y = dequantise(n, levels, generator=seeded())
    cell = (y + 1) * levels / 2
    assert torch.equal(cell.floor().long(), n)
    inside = cell - n
    within(inside.mean(), 1 / 2, 1 / math.sqrt(12 * len(n)))
    within(inside.square().mean(), 1 / 3, math.sqrt(4 / 45 / len(n)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dequantise_stays_below_one(dtype, monkeypatch):
    top = torch.full((3,), 16, dtype=dtype)
    nearly_one = 1 - torch.finfo(dtype).eps / 2
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.full(shape, nearly_one, dtype=dtype))
    y = dequantise(top)
    assert y.dtype is dtype
    assert bool((y < 1).all())


def test_dequantise_reads_integers_and_its_generator():
    images = torch.arange(17, dtype=torch.uint8)
    before = torch.get_rng_state()
    y = dequantise(images, generator=seeded(4))
    assert y.dtype is torch.get_default_dtype()
    assert torch.equal(y, dequantise(images.double(), generator=seeded(4)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_uniform_density_costs_log2_of_the_levels(levels):
    d = 64
    log_prob = torch.full((3,), -d * math.log(2.0))
    for event in (d, (1, 8, 8), torch.Size([4, 16])):
        assert torch.allclose(bits_per_dim(log_prob, event, levels), torch.full((3,), math.log2(levels)), atol=1e-12)


def test_bits_per_dim_of_a_piecewise_constant_density_is_the_entropy():
    """p(y) = P(n) L/2 on the cell of n makes Jensen's inequality an equality: the mean code length is the entropy."""
    levels = 5
    P = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    entropy = -(P * P.log2()).sum()
    y = dequantise(torch.arange(levels), levels, generator=seeded())
    log_prob = (P * levels / 2).log()[((y + 1) * levels / 2).floor().long()]
    assert torch.allclose((P * bits_per_dim(log_prob, 1, levels)).sum(), entropy, atol=1e-12)


def test_bits_per_dim_bounds_the_code_length_of_the_levels():
    """For a density that varies within the cells, the mean over u exceeds -log2 P(n)."""
    normal = torch.distributions.Normal(-0.2, 0.3)
    images = torch.arange(17).repeat_interleave(20_000)
    bound = bits_per_dim(normal.log_prob(dequantise(images, generator=seeded())), 1).reshape(17, -1).mean(1)
    edges = 2 * torch.arange(18) / 17 - 1
    exact = -(normal.cdf(edges[1:]) - normal.cdf(edges[:-1])).log2()
    assert bool((bound > exact - 1e-3).all())  # at the mode the gap is below the noise of the mean
    assert float((bound - exact).max()) > 0.05
    assert torch.allclose(bound, exact, atol=0.2)


def test_dequantisation_noise_is_spread_evenly_over_the_batch():
    """Every pixel's u falls once into each of n equal parts, and pixels are not tied to each other."""
    u = (dequantise(torch.zeros(50, 3, 2, dtype=torch.float64), generator=seeded()) + 1) * 17 / 2
    parts = (u.flatten(1) * 50).floor().long()
    assert torch.equal(parts.sort(0).values, torch.arange(50)[:, None].expand(50, 6))
    correlation = torch.corrcoef(u.flatten(1).T) - torch.eye(6)
    assert float(correlation.abs().max()) < 5 / math.sqrt(50)


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_counts(toy, n, error):
    with pytest.raises(error, match=str(n)):
        toy(n)


@pytest.mark.parametrize("toy", TOYS)
def test_bad_generators(toy):
    with pytest.raises(TypeError, match="7"):
        toy(3, generator=7)


@pytest.mark.parametrize(
    ("call", "error", "received"),
    [
        (lambda: two_moons(3, noise=-0.5), ValueError, "-0.5"),
        (lambda: swiss_roll(3, noise=float("nan")), ValueError, "nan"),
        (lambda: eight_gaussians(3, std="wide"), TypeError, "wide"),
        (lambda: digits("validation"), ValueError, "validation"),
        (lambda: digits(seed=-1), ValueError, "-1"),
        (lambda: dequantise(torch.tensor([0, 17])), ValueError, "17"),
        (lambda: dequantise(torch.tensor([3.0, -1.0])), ValueError, "-1"),
        (lambda: dequantise(torch.tensor([0.5])), ValueError, "0.5"),
        (lambda: dequantise(torch.tensor([float("nan")])), ValueError, "nan"),
        (lambda: dequantise([1, 2]), TypeError, "list"),
        (lambda: dequantise(torch.tensor([True])), TypeError, "bool"),
        (lambda: dequantise(torch.tensor([1]), levels=1), ValueError, "1"),
        (lambda: dequantise(torch.tensor([1]), generator=5), TypeError, "5"),
        (lambda: bits_per_dim(torch.zeros(2), 0), ValueError, "0"),
        (lambda: bits_per_dim(torch.zeros(2), (8, 1.5)), TypeError, "1.5"),
    ],
)
def test_bad_input_is_named(call, error, received):
    with pytest.raises(error, match=received) as caught:
        call()
    assert str(caught.value).endswith(".")
