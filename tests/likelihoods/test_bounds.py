"""What all bounds share: batches, conditions, generators, network calls, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from chains import DATA, Counting
from torch import nn

import sdegen


def conditional(x, t, shift, scale):
    return torch.tanh(x * scale + shift[:, None] * t[:, None])


@pytest.mark.parametrize("draws", [None, 4])
def test_a_sample_does_not_depend_on_its_batch_mates(draws):
    chain = sdegen.DDPM.linear(10, 0.02, 0.4)
    model, x, shift = sdegen.ScoreModel(conditional, chain), torch.randn(5, 2), torch.randn(5)

    def bound(rows, batch_size=None):
        g = [torch.Generator().manual_seed(i) for i in rows]
        cond = {"shift": shift[rows], "scale": 0.7}
        return sdegen.vlb(model, x[rows], cond=cond, generator=g, draws=draws, batch_size=batch_size)

    whole = bound([0, 1, 2, 3, 4])
    for other in (bound([3, 1]), bound([3, 1], 1)):
        torch.testing.assert_close(other.total, whole.total[[3, 1]], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.transitions, whole.transitions[[3, 1]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bound([0, 1, 2, 3, 4], 2).total, whole.total, rtol=1e-12, atol=1e-12)


def test_a_sample_of_the_continuous_bound_does_not_either():
    model, x, shift = sdegen.ScoreModel(conditional, sdegen.VPSDE(), "v"), torch.randn(5, 2), torch.randn(5)

    def total(rows, batch_size=None):
        g = [torch.Generator().manual_seed(i) for i in rows]
        cond = {"shift": shift[rows], "scale": 0.7}
        return sdegen.continuous_vlb(model, x[rows], cond=cond, generator=g, draws=4, batch_size=batch_size).total

    whole = total([0, 1, 2, 3, 4])
    torch.testing.assert_close(total([3, 1]), whole[[3, 1]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total([0, 1, 2, 3, 4], 2), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variance", ["beta", "posterior", "optimal"])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_batches_give_the_same_numbers(variance, batch_size):
    chain, x, noise = sdegen.DDPM.linear(10, 0.02, 0.4), torch.randn(7, 2), torch.randn(7, 2)
    sizes = []

    def net(x, t, shift, scale):
        sizes.append(len(x))
        return conditional(x, t, shift, scale)

    model, cond = sdegen.ScoreModel(net, chain), {"shift": torch.randn(7), "scale": torch.tensor(0.7)}
    whole = sdegen.vlb(model, x, variance=variance, cond=cond, noise=noise)
    sizes.clear()
    parts = sdegen.vlb(model, x, variance=variance, cond=cond, noise=noise, batch_size=batch_size)
    torch.testing.assert_close(parts.total, whole.total, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(parts.transitions, whole.transitions, rtol=1e-11, atol=1e-12)
    assert max(sizes) == min(batch_size, 7)
    found = sdegen.iwae(model, x, 3, cond=cond, batch_size=batch_size)
    assert found.log_weights.shape == (7, 3)
    forms = [sdegen.optimal_variance(model, x, cond=cond, noise=noise, batch_size=size) for size in (None, batch_size)]
    torch.testing.assert_close(*forms, rtol=1e-11, atol=0)


def test_network_calls_of_the_bounds():
    net = Counting()
    chain = sdegen.DDPM.linear(10, 0.02, 0.4)
    model, x = sdegen.ScoreModel(net, chain), torch.randn(6, 2)

    def calls(verb, *arguments, **options):
        net.calls = 0
        verb(model, x, *arguments, **options)
        return net.calls

    assert calls(sdegen.vlb) == 10
    assert calls(sdegen.vlb, batch_size=4) == 20
    assert calls(sdegen.vlb, draws=4) == 5
    assert calls(sdegen.vlb, variance="optimal") == 20
    assert calls(sdegen.optimal_variance) == 10
    assert calls(sdegen.iwae, 3) == 30
    assert calls(sdegen.continuous_vlb, draws=6) == 7
    net.calls = 0
    sdegen.entropy_form(model, sdegen.Gaussian(torch.zeros(2), 1.0), x)
    assert net.calls == 10
    doubled = Counting(doubled=True)
    sdegen.hybrid_loss(sdegen.ScoreModel(doubled, chain, learns_variance=True), x)
    assert doubled.calls == 1


def test_bounds_leave_the_model_and_the_global_generator_alone():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x, t):
            return self.drop(x)

    net, chain = Dropping(), sdegen.DDPM.linear(5, 0.02, 0.4)
    model, x, noise = sdegen.ScoreModel(net, chain), torch.randn(4, 2), torch.randn(4, 2)
    state = torch.get_rng_state()
    first, second = (sdegen.vlb(model, x, noise=noise) for _ in range(2))
    assert torch.equal(first.total, second.total)
    sdegen.iwae(model, x, 2, generator=torch.Generator().manual_seed(0))
    sdegen.continuous_vlb(model, x, generator=torch.Generator().manual_seed(0), draws=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert net.drop.training


def test_single_precision_and_empty_batches():
    chain = sdegen.DDPM.linear()
    net = nn.Linear(2, 2).float()
    model = sdegen.ScoreModel(lambda x, t: net(x), chain)
    x, noise = torch.randn(4, 2).float(), torch.randn(4, 2).float()
    narrow = sdegen.vlb(model, x, noise=noise)
    net.double()
    wide = sdegen.vlb(model, x.double(), noise=noise.double())
    assert narrow.total.dtype == torch.float32
    torch.testing.assert_close(narrow.total.double(), wide.total, rtol=1e-4, atol=1e-3)
    assert sdegen.vlb(model, x[:0].double()).total.shape == (0,)
    assert sdegen.iwae(model, x[:0].double(), 3).log_prob.shape == (0,)


# What is refused, before the network is asked


NET = Counting()

CHAIN = sdegen.DDPM.linear(20, 1e-2, 0.3)

MODEL = sdegen.ScoreModel(NET, CHAIN)

DOUBLED = Counting(doubled=True)

LEARNED = sdegen.ScoreModel(DOUBLED, CHAIN, learns_variance=True)

X = torch.zeros(3, 2, dtype=torch.float64)

HALF = torch.full((3, 2), 0.5, dtype=torch.float64)

EIGHT_BITS = sdegen.Discretized()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: sdegen.vlb(NET, X), TypeError, "model"),
        (lambda: sdegen.vlb(MODEL, X.int()), TypeError, "int32"),
        (lambda: sdegen.vlb(MODEL, X[:, 0]), ValueError, r"\(3,\)"),
        (lambda: sdegen.vlb(MODEL, X + math.nan), ValueError, "NaN"),
        (lambda: sdegen.vlb(MODEL, X, noise=X[:2]), ValueError, r"\(2, 2\)"),
        (lambda: sdegen.vlb(MODEL, X, variance="large"), ValueError, "'large'"),
        (lambda: sdegen.vlb(MODEL, X, variance=torch.ones(19)), ValueError, "20.*19"),
        (lambda: sdegen.vlb(MODEL, X, variance=torch.zeros(20)), ValueError, "positive"),
        (lambda: sdegen.vlb(MODEL, X, variance="learned"), ValueError, "learns_variance"),
        (lambda: sdegen.vlb(MODEL, X, decoder="bernoulli"), ValueError, "'bernoulli'"),
        (lambda: sdegen.vlb(MODEL, HALF, decoder=EIGHT_BITS), ValueError, "between the 256 levels"),
        (lambda: sdegen.vlb(MODEL, HALF + 1, decoder=EIGHT_BITS), ValueError, "outside"),
        (lambda: sdegen.vlb(MODEL, X, draws=3), ValueError, "even.*3"),
        (lambda: sdegen.vlb(MODEL, X, draws=0), ValueError, "0"),
        (lambda: sdegen.vlb(MODEL, X, draws=2.0), TypeError, "2.0"),
        (lambda: sdegen.vlb(MODEL, X, batch_size=0), ValueError, "0"),
        (lambda: sdegen.vlb(MODEL, X, batch_size=1.5), TypeError, "1.5"),
        (lambda: sdegen.vlb(MODEL, X, cond=[1]), TypeError, "cond"),
        (lambda: sdegen.vlb(MODEL, X, generator=[torch.Generator()]), ValueError, "3 generators"),
        (lambda: sdegen.vlb(sdegen.ScoreModel(NET, sdegen.VPSDE()), X), ValueError, "steps"),
        (lambda: sdegen.vlb(MODEL, X, u=(0.5, 0.1)), ValueError, r"needs u with from < to, and it is \(0.5, 0.1\)"),
        (lambda: sdegen.vlb(MODEL, X, u=0.1), TypeError, r"u must be a pair \(from, to\).* 0.1"),
        (lambda: sdegen.vlb(sdegen.ScoreModel(NET, sdegen.CondOT()), X, steps=5), ValueError, "singular for 'eps'"),
        (lambda: sdegen.vlb(sdegen.ScoreModel(NET, sdegen.DDPM([0.5])), X, variance="posterior"), ValueError, "single"),
        (lambda: sdegen.vlb(MODEL, X, u=(0, 0.5), grid=CHAIN.respaced(5)), ValueError, "grid runs"),
        (lambda: sdegen.iwae(MODEL, X, 0), ValueError, "0"),
        (lambda: sdegen.iwae(MODEL, X, 2.0), TypeError, "2.0"),
        (lambda: sdegen.iwae(MODEL, X, variance="learned"), ValueError, "learns_variance"),
        (lambda: sdegen.iwae(MODEL, HALF, decoder=EIGHT_BITS), ValueError, "between"),
        (lambda: sdegen.iwae(MODEL, X, batch_size=-1), ValueError, "-1"),
        (lambda: sdegen.continuous_vlb(MODEL, X, draws=5), ValueError, "even.*5"),
        (lambda: sdegen.continuous_vlb(MODEL, X, u_min=0.0), ValueError, "u_min"),
        (lambda: sdegen.continuous_vlb(MODEL, X, u_min=0.9), ValueError, "u_min"),
        (lambda: sdegen.continuous_vlb(MODEL, X, u_min=1.0), ValueError, "u_min"),
        (lambda: sdegen.continuous_vlb(MODEL, HALF, decoder=EIGHT_BITS), ValueError, "between"),
        (lambda: sdegen.continuous_vlb(MODEL, X, u=(0.1, 0.9)), ValueError, r"u = \(0.1, 0.9\) leaves the path"),
        (lambda: sdegen.continuous_vlb(MODEL, X, u=(0.2, 0.5), u_min=0.1), ValueError, r"u_min .* \(0.2, 0.5\)"),
        (lambda: sdegen.continuous_vlb(MODEL, X, u=(0, 0.05)), ValueError, r"u_min .* \(0.0, 0.05\), and it is 0.09"),
        (lambda: sdegen.optimal_variance(MODEL, X[:, 0]), ValueError, "shape"),
        (lambda: sdegen.optimal_variance(sdegen.ScoreModel(NET, sdegen.VPSDE()), X), ValueError, "steps"),
        (lambda: sdegen.hybrid_loss(MODEL, X), ValueError, "learns_variance"),
        (lambda: sdegen.hybrid_loss(DATA.model(CHAIN), X), TypeError, "ScoreModel"),
        (lambda: sdegen.hybrid_loss(LEARNED, X, weight=-1.0), ValueError, "-1"),
        (lambda: sdegen.hybrid_loss(LEARNED, X[:0]), ValueError, "empty"),
        (lambda: sdegen.hybrid_loss(LEARNED, HALF, decoder=EIGHT_BITS), ValueError, "between"),
        (lambda: sdegen.entropy_form(MODEL, sdegen.GaussianMixture([[0.0]], 1.0), X), TypeError, "Gaussian"),
        (lambda: sdegen.entropy_form(MODEL, DATA, X), ValueError, r"\(B, 1\)"),
        (lambda: sdegen.entropy_form(MODEL, sdegen.Gaussian([0.0, 0.0], 1.0), X, variance="learned"), ValueError, "le"),
        (lambda: sdegen.Discretized(1), ValueError, "1"),
        (lambda: sdegen.Discretized(256.0), TypeError, "256.0"),
        (lambda: sdegen.Discretized(256, 1.0, -1.0), ValueError, "low must be below"),
        (lambda: sdegen.Discretized(256, math.nan), ValueError, "nan"),
    ],
)
def test_bad_input_is_refused_before_the_network_is_asked(call, error, says):
    NET.calls = DOUBLED.calls = 0
    with pytest.raises(error, match=says):
        call()
    assert NET.calls == DOUBLED.calls == 0


@pytest.mark.parametrize("verb", [sdegen.vlb, sdegen.iwae, sdegen.continuous_vlb])
def test_a_bound_that_is_not_finite_is_refused(verb):
    model = sdegen.ScoreModel(lambda x, t: x + math.nan, CHAIN)
    with pytest.raises(sdegen.NonFiniteError, match="3 of 3"):
        verb(model, X)


def test_a_network_that_fails_and_a_batch_that_is_empty_are_named():
    broken = sdegen.ScoreModel(lambda x, t: x * math.nan, sdegen.DDPM.linear(5, 1e-2, 0.3))
    x = DATA.sample(4)
    for refused in (
        lambda: sdegen.optimal_variance(broken, x),
        lambda: sdegen.vlb(broken, x, variance="optimal"),
        lambda: sdegen.vlb(broken, x),
        lambda: sdegen.iwae(broken, x, 2),
        lambda: sdegen.continuous_vlb(broken, x, draws=2),
        lambda: sdegen.entropy_form(broken, DATA, x),
    ):
        with pytest.raises(sdegen.NonFiniteError, match=r"finite|NaN"):
            refused()
    for refused in (
        lambda: sdegen.optimal_variance(broken, x[:0]),
        lambda: sdegen.entropy_form(broken, DATA, x[:0]),
    ):
        with pytest.raises(ValueError, match="empty batch"):
            refused()
