"""The bound of K draws on the probability of quantised data, against exact cell probabilities of a Gaussian."""

from __future__ import annotations

import math

import pytest
import torch

import sdegen

MEAN, STD = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.6, 0.4], dtype=torch.float64)
Q = sdegen.Quantized(16, -3.0, 3.0)
RK4 = sdegen.ODESolver("rk4", steps=12)


def gaussian_model():
    """The exact model: on CondOT the prior is the law at the noise end, so its density is the Gaussian's own."""
    return sdegen.Gaussian(MEAN, covariance=torch.diag(STD**2)).model(sdegen.CondOT())


def log_cells(q=Q):
    """log of the mass of every cell in each of the two dimensions, (2, L)."""
    edges = (q.low + q.cell * torch.arange(q.levels + 1) - MEAN[:, None]) / STD[:, None]
    return torch.diff(torch.special.ndtr(edges)).log()


def exact(n, q=Q):
    logs = log_cells(q)
    return logs[0][n[:, 0]] + logs[1][n[:, 1]]


def drawn(size, q=Q):
    g = torch.Generator().manual_seed(1)
    return torch.stack([torch.multinomial(logs.exp(), size, True, generator=g) for logs in log_cells(q)], 1)


def within(numbers, expected):
    """Five standard errors: a chance of about 6e-7."""
    assert abs(float(numbers.mean()) - expected) < 5 * float(numbers.std()) / math.sqrt(len(numbers))


class Tilted:
    """u = sqrt(V), V uniform: r(u | n) is the product of 2 u_i."""

    def sample(self, n, generator=None):
        u = torch.rand(n.shape, generator=generator, dtype=n.dtype).sqrt()
        return u, (2 * u).log().sum(1)


class Exact:
    """r(u | n) proportional to the density: by its inverse cdf within the cell."""

    def sample(self, n, generator=None):
        low = torch.special.ndtr((Q.low + Q.cell * n - MEAN) / STD)
        high = torch.special.ndtr((Q.low + Q.cell * (n + 1) - MEAN) / STD)
        between = low + (high - low) * torch.rand(n.shape, generator=generator)
        y = MEAN + STD * torch.special.ndtri(between)
        log_p = torch.distributions.Normal(MEAN, STD).log_prob(y) + math.log(Q.cell) - (high - low).log()
        return ((y - Q.low) / Q.cell - n).clamp(0, 1 - 1e-12), log_p.sum(1)


def gap(n, bound):
    """log P(n) - E log W, W the mean weight over P(n): the mean of W - 1 - log W, as E W = 1 (the next test)."""
    log_w = bound.log_prob - exact(n)
    return float((log_w.exp() - 1 - log_w).mean())


def test_the_gap_falls_with_the_draws_to_nothing():
    n, gaps = drawn(2000), {}
    for draws in (1, 4, 16):
        gaps[draws] = gap(n, sdegen.discrete_log_prob(gaussian_model(), n, Q, draws=draws, solver=RK4))
    assert gaps[1] > 0.04
    assert gaps[4] < 0.4 * gaps[1]
    assert gaps[16] < 0.4 * gaps[4]
    assert gaps[16] < 0.005


@pytest.mark.parametrize("dequantiser", [None, Tilted()])
@pytest.mark.parametrize("draws", [1, 3])
def test_the_mean_of_the_weights_is_the_probability(dequantiser, draws):
    """E of exp(bound) is P(n) with any law of u and any number of draws: the cell, the sign of log r, the mean."""
    g = [torch.Generator().manual_seed(i) for i in range(4000)] if dequantiser is None else torch.Generator()
    n = torch.tensor([[7, 8]]).expand(4000, 2)
    options = {"draws": draws, "dequantiser": dequantiser, "generator": g, "solver": RK4}
    bound = sdegen.discrete_log_prob(gaussian_model(), n, Q, **options)
    assert (bound.draws, bound.size, bound.kind) == (draws, 2, "bound")
    within((bound.log_prob - exact(n)).exp(), 1.0)
    assert draws == 1 or bool((bound.log_weights[:, 0] != bound.log_weights[:, 1]).all())
    assert float(bound.log_prob.mean()) < float(exact(n)[0]) - 1e-3


def test_the_right_law_of_u_leaves_no_gap():
    n = drawn(200)
    bound = sdegen.discrete_log_prob(gaussian_model(), n, Q, dequantiser=Exact(), solver=RK4)
    torch.testing.assert_close(bound.log_prob, exact(n), rtol=0, atol=1e-3)


def test_the_standard_error_is_the_spread_over_the_draws():
    n = torch.tensor([[9, 6]]).expand(2000, 2)
    bound = sdegen.discrete_log_prob(gaussian_model(), n, Q, draws=12, solver=RK4)
    assert float(bound.standard_error.mean()) == pytest.approx(float(bound.log_prob.std()), rel=0.1)
    assert bound.log_weights.shape == (2000, 12)
    assert sdegen.discrete_log_prob(gaussian_model(), n[:2], Q, solver=RK4).standard_error is None
    torch.testing.assert_close(bound.bits_per_dim, -bound.log_prob / (2 * math.log(2)))


def test_the_gap_is_half_the_square_of_the_standard_error():
    n = drawn(1000)
    bound = sdegen.discrete_log_prob(gaussian_model(), n, Q, draws=32, solver=RK4)
    assert gap(n, bound) == pytest.approx(float(bound.standard_error.square().mean()) / 2, rel=0.2)


class Middle:
    """u = 1/2 always, with a density that nobody checks: two calls differ by the trace alone."""

    def sample(self, n, generator=None):
        return torch.full_like(n, 0.5), n.new_zeros(len(n))


def test_the_trace_is_exact_in_any_dimension():
    weights = torch.randn(300, 300) / 30
    model, n = sdegen.ScoreModel(lambda x, t: x @ weights, sdegen.CondOT(), "velocity"), torch.randint(0, 16, (2, 300))
    euler = sdegen.ODESolver("euler", steps=2)
    one, two = (sdegen.discrete_log_prob(model, n, Q, dequantiser=Middle(), solver=euler).log_prob for _ in range(2))
    assert torch.equal(one, two)
    by_hand = sdegen.log_prob(model, Q.centre(n), euler, trace="exact") + 300 * math.log(Q.cell)
    torch.testing.assert_close(one, by_hand, rtol=1e-12, atol=0)


def shifted(x, t, shift, scale):
    """A network with a row per sample and a table for all of them, as long as the batch."""
    assert scale.shape == (3, 2)
    assert shift.shape == x.shape
    return torch.tanh(x * scale.mean(0) + shift + t[:, None])


def test_rows_conditions_and_generators_are_those_of_each_draw():
    """Weights by hand, from each sample's own generator; however many rows are solved at once."""
    model = sdegen.ScoreModel(shifted, sdegen.CondOT(), "velocity")
    n, shift, scale = torch.randint(0, 16, (3, 2)), torch.randn(3, 2), torch.randn(3, 2)
    g = [torch.Generator().manual_seed(i) for i in range(3)]
    u = torch.stack([torch.rand(2, generator=one) for _ in range(4) for one in g]).reshape(4, 3, 2)
    cond = {"shift": shift, "scale": sdegen.Shared(scale)}
    by_hand = [
        sdegen.log_prob(model, Q.low + Q.cell * (n + of_draw), RK4, trace="exact", cond=cond) + 2 * math.log(Q.cell)
        for of_draw in u
    ]
    for batch_size in (None, 1, 2, 3, 5, 12, 50):
        g = [torch.Generator().manual_seed(i) for i in range(3)]
        options = {"draws": 4, "cond": cond, "generator": g, "batch_size": batch_size, "solver": RK4}
        bound = sdegen.discrete_log_prob(model, n, Q, **options)
        torch.testing.assert_close(bound.log_weights, torch.stack(by_hand, 1), rtol=0, atol=1e-12)
    options["generator"], options["cond"] = g[1:2], {"shift": shift[1:2], "scale": sdegen.Shared(scale)}
    g[1].manual_seed(1)
    alone = sdegen.discrete_log_prob(model, n[1:2], Q, **options)
    torch.testing.assert_close(alone.log_weights[0], bound.log_weights[1], rtol=0, atol=1e-12)


def test_a_whole_condition_stays_whole_when_a_part_happens_to_be_as_long():
    """A table of two rows is one for all of three samples, and for parts of two rows as well."""

    def net(x, t, table):
        assert table.shape == (2, 2)
        return torch.tanh(x @ table)

    model, n = sdegen.ScoreModel(net, sdegen.CondOT(), "velocity"), torch.randint(0, 16, (3, 2))
    per_sample = sdegen.ODESolver("dopri5", rtol=1e-4, atol=1e-4, steps_for="sample")
    for solver in (RK4, per_sample):
        bound = sdegen.discrete_log_prob(
            model, n, Q, draws=2, cond={"table": torch.randn(2, 2)}, batch_size=2, solver=solver
        )
        assert bound.log_prob.shape == (3,)


def test_dtypes_and_an_empty_batch():
    n, g = drawn(50), torch.Generator()
    half, single = (
        sdegen.discrete_log_prob(gaussian_model(), n.to(dtype), Q, draws=2, generator=g.manual_seed(0), solver=RK4)
        for dtype in (torch.float16, torch.float32)
    )
    assert half.log_prob.dtype is torch.float32
    assert torch.equal(half.log_prob, single.log_prob)
    none = sdegen.discrete_log_prob(gaussian_model(), torch.empty(0, 2), Q, draws=3, solver=RK4)
    assert none.log_weights.shape == (0, 3)
    assert none.log_prob.shape == none.bits_per_dim.shape == (0,)


def test_the_global_generator_is_left_alone_where_one_is_given():
    before = torch.get_rng_state()
    n = drawn(5)
    one, two = (
        sdegen.discrete_log_prob(
            gaussian_model(), n, Q, draws=2, generator=torch.Generator().manual_seed(3), solver=RK4
        ).log_weights
        for _ in range(2)
    )
    assert torch.equal(one, two)
    assert torch.equal(before, torch.get_rng_state())


def test_the_bar_moves_once_a_solve(capsys):
    options = {"draws": 3, "batch_size": 4, "solver": RK4, "progress": True}
    sdegen.discrete_log_prob(gaussian_model(), drawn(4), Q, **options)
    assert "3/3" in capsys.readouterr().err
