"""Time samplers: each estimates the mean over uniform time, on every path and every span of its clock."""

from __future__ import annotations

import math

import pytest
import torch
from problems import PATHS, OwnFlow, OwnVP

import sdegen
from sdegen.training import times as sampling

RETIMED = {
    "vp, 3 to -1": sdegen.Retimed(sdegen.VPSDE(), 3.0, -1.0),
    "ve, 0 to 1000": sdegen.Retimed(sdegen.VESDE(), 0.0, 1000.0),
    "condot, 0 to 5": sdegen.Retimed(sdegen.CondOT(), 0.0, 5.0),
    "ddpm, 1 to 0": sdegen.Retimed(sdegen.DDPM.linear(50, 1e-3, 0.2), 1.0, 0.0),
}
ALL = {
    **PATHS,
    "own vp": OwnVP(),
    "own flow": OwnFlow(),
    "trigonometric": sdegen.Trigonometric(),
    "condot, blurred": sdegen.CondOT(0.05),
    "ve, wide": sdegen.VESDE(0.002, 1348.0),
    "smooth ddpm": sdegen.DDPM.cosine(30, smooth=True),
    "interpolant": sdegen.Interpolant(),
    **RETIMED,
}
every_path = pytest.mark.parametrize("path", ALL.values(), ids=ALL.keys())
CPU = torch.device("cpu")
SAMPLERS = [sdegen.UniformTimes(), sdegen.LowDiscrepancyTimes(), sdegen.ClockTimes(), sdegen.ChainTimes(7)]


def fraction_of(path, t):
    return (t - path.t_data) / (path.t_noise - path.t_data)


def midpoints(n, generator, dtype, device):
    """In the place of uniform draws: sums over them are integrals."""
    return ((torch.arange(n, dtype=torch.float64) + 0.5) / n).to(torch.promote_types(dtype, torch.float32))


@every_path
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_clock_times_keep_the_mean_over_uniform_time(path, dtype, monkeypatch):
    """By the midpoint rule on the draws: E[weight f(t)] = mean of f, for a wave, a square and 1."""
    monkeypatch.setattr(sampling, "uniform", midpoints)
    t, weight = sdegen.ClockTimes()(path, 150_000, None, dtype, CPU)
    s = fraction_of(path, t.double())
    for f, mean in ((torch.ones_like, 1), (torch.square, 1 / 3), (lambda s: torch.cos(3 * s), math.sin(3) / 3)):
        assert float((weight.double() * f(s)).mean()) == pytest.approx(mean, rel=5e-5)  # kinks of a chain, and rounding


@every_path
def test_clock_times_are_uniform_on_the_clock_in_single_precision(path):
    """Kolmogorov and Smirnov, and the mean over uniform time by Monte-Carlo, both at significance 1e-6."""
    n = 50_000
    t, weight = sdegen.ClockTimes()(path, n, torch.Generator().manual_seed(5), torch.float32, CPU)
    assert t.shape == weight.shape == (n,)
    assert t.dtype == weight.dtype == torch.float32
    assert float(t.min()) >= min(path.t_data, path.t_noise)
    assert float(t.max()) <= max(path.t_data, path.t_noise)
    low, high = path.ends
    u = ((path.clock(t.double()) - low) / (high - low)).sort().values
    exact = (torch.arange(n) + 0.5) / n
    assert float((u - exact).abs().max()) < 2.7 / math.sqrt(n)
    assert bool((torch.isfinite(weight) & (weight >= 0)).all())
    values = weight.double() * torch.square(fraction_of(path, t.double()))
    assert abs(float(values.mean()) - 1 / 3) < 4.9 * float(values.std()) / math.sqrt(n)


def test_clock_times_on_ve_begin_at_the_data_end():
    """u = u_noise times a uniform number, as one writes it by hand, would begin below sigma_min: at negative times."""
    path = sdegen.VESDE(0.5, 2.0)
    t, _ = sdegen.ClockTimes()(path, 10_000, torch.Generator().manual_seed(0), torch.float32, CPU)
    assert 0 <= float(t.min()) < 1e-3
    assert 1 - 1e-3 < float(t.max()) <= 1


def test_clock_times_are_independent_and_each_sample_has_its_own_generator():
    path = sdegen.VPSDE()
    each = [torch.Generator().manual_seed(i) for i in range(5)]
    t, weight = sdegen.ClockTimes()(path, 5, each, torch.float64, CPU)
    alone = sdegen.ClockTimes()(path, 1, [torch.Generator().manual_seed(3)], torch.float64, CPU)
    assert torch.equal(torch.stack([t[3:4], weight[3:4]]), torch.stack(alone))
    one, two = sdegen.ClockTimes()(path, 20_000, torch.Generator().manual_seed(0), torch.float64, CPU)[0].split(10_000)
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 4.9 / math.sqrt(10_000)


def test_without_importance_the_mean_is_over_the_clock():
    path, g = sdegen.VESDE(), torch.Generator()
    t, weight = sdegen.ClockTimes()(path, 8, g.manual_seed(0), torch.float32, CPU)
    again, ones = sdegen.ClockTimes(importance=False)(path, 8, g.manual_seed(0), torch.float32, CPU)
    assert torch.equal(t, again)
    assert torch.equal(ones, torch.ones(8, dtype=torch.float32))
    assert not torch.equal(weight, ones)
    with pytest.raises(TypeError, match=r"importance must be True or False.*'no'"):
        sdegen.ClockTimes(importance="no")


def test_the_weight_is_0_where_the_clock_runs_infinitely_fast(monkeypatch):
    monkeypatch.setattr(sampling, "uniform", lambda n, *_: torch.tensor([0.0, 0.5, 1.0], dtype=torch.float32))
    for name in ("vp", "cosine", "ddpm"):
        t, weight = sdegen.ClockTimes()(PATHS[name], 3, None, torch.float32, CPU)
        assert float(t[0]) == float(weight[0]) == 0
        assert bool(torch.isfinite(weight).all())
    assert sdegen.ClockTimes()(sdegen.CondOT(), 3, None, torch.float32, CPU)[1].tolist() == [1, 1, 1]


def test_a_loss_takes_them_on_every_path():
    for path in ALL.values():
        model = sdegen.ScoreModel(lambda x, t: torch.tanh(x), path, "v")
        for times in SAMPLERS:
            each = sdegen.loss(model, torch.randn(64, 2, dtype=torch.float32), times=times, reduction="none")
            assert each.shape == (64,)
            assert bool(torch.isfinite(each).all())


# Spans of time


@every_path
@pytest.mark.parametrize("predicts", ["eps", "v", "data"])
def test_the_likelihood_weighting_is_the_bound_s_integral_on_every_span(path, predicts):
    """d times the mean over time of weight u^2 (1-u)^2 = 1/2 the integral over lambda of that, summed over the event.

    With d lambda = -2 du / (u (1-u)) it is d times the integral of u (1-u) du between the ends of the path.
    """
    if not path.has_score:
        return
    n, d = 20_000, 3
    t = path.t_data + (path.t_noise - path.t_data) * (torch.arange(n) + 0.5) / n
    low, high = path.ends

    def wrong_by(x_t, t):
        """Off by u (1-u) where eps is 0, as an estimate of eps that belongs to x = 0 exactly."""
        u, (alpha, sigma) = path.clock(t), (path.alpha(t), path.sigma(t))
        off = (u * (1 - u))[:, None].expand(n, d)
        data = -(sigma / alpha)[:, None] * off
        return {"eps": off, "data": data, "v": alpha[:, None] * off - sigma[:, None] * data}[predicts]

    model = sdegen.ScoreModel(wrong_by, path, predicts)
    zeros = torch.zeros(n, d)
    loss = sdegen.loss(model, zeros, t=t, noise=zeros, weighting=sdegen.LikelihoodWeighting())
    exact = d * ((high**2 - low**2) / 2 - (high**3 - low**3) / 3)
    assert d * float(loss) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("path", RETIMED.values(), ids=RETIMED.keys())
def test_retimed_leaves_the_likelihood_weight_of_a_fraction_of_the_path(path):
    fraction = torch.linspace(0.05, 0.95, 7) + 1e-3
    here, there = (p.t_data + (p.t_noise - p.t_data) * fraction for p in (path, path.path))
    weight = sdegen.LikelihoodWeighting()
    torch.testing.assert_close(weight(path, here), weight(path.path, there), rtol=1e-9, atol=0)


@pytest.mark.parametrize("path", [p for p in ALL.values() if p.has_score], ids=[k for k in ALL if k != "interpolant"])
def test_likelihood_times_keep_the_mean_over_the_time_they_reach(path, monkeypatch):
    """E[weight f(t)] = the integral of f over the fractions between the two clocks; the draws span any clock."""
    monkeypatch.setattr(sampling, "_spread", midpoints)
    t, weight = sdegen.LikelihoodTimes(0.1, 0.9)(path, 40_000, None, torch.float64, CPU)
    ends = torch.tensor([max(0.1, path.ends[0]), min(0.9, path.ends[1])])
    low, high = fraction_of(path, path.time(ends)).tolist()
    s = fraction_of(path, t)
    assert float(weight.mean()) == pytest.approx(high - low, rel=1e-4)
    assert float((weight * s**2).mean()) == pytest.approx((high**3 - low**3) / 3, rel=1e-4)


# Draws, and what a loss does with them


@pytest.mark.parametrize("times", [*SAMPLERS[:3], sdegen.LikelihoodTimes(0.01, 0.9)], ids=repr)
def test_half_precision_draws_at_least_single_precision_times(times):
    """bfloat16 has 256 numbers between 1/2 and 1: times would repeat."""
    for dtype in (torch.bfloat16, torch.float16):
        t, weight = times(sdegen.VPSDE(), 4096, torch.Generator().manual_seed(0), dtype, CPU)
        assert t.dtype == weight.dtype == torch.float32
        assert len(t.unique()) > 4000
        seen = []
        model = sdegen.ScoreModel(lambda x, t: x, sdegen.VPSDE(), time=lambda t, seen=seen: seen.append(t) or t)
        sdegen.loss(model, torch.randn(4096, 1, dtype=dtype), times=times)
        assert seen[0].dtype == torch.float32
        assert len(seen[0].unique()) > 4000


@pytest.mark.parametrize("weighting", [None, sdegen.MinSNR(), sdegen.LikelihoodWeighting()], ids=repr)
@pytest.mark.parametrize("predicts", ["eps", "data", "v"])
def test_importance_weights_multiply_the_loss_of_each_sample(weighting, predicts):
    path, x, noise = sdegen.VPSDE(), torch.randn(5, 2), torch.randn(5, 2)
    model = sdegen.ScoreModel(lambda x, t: torch.tanh(x + t[:, None]), path, predicts)
    t, weight = torch.linspace(0.1, 0.9, 5), torch.linspace(0.5, 2.0, 5)
    options = {"noise": noise, "weighting": weighting, "reduction": "none"}
    drawn = sdegen.loss(model, x, times=lambda *_: (t, weight), **options)
    torch.testing.assert_close(drawn, weight * sdegen.loss(model, x, t=t, **options), rtol=1e-12, atol=0)
    g = torch.Generator()
    for times in (sdegen.LikelihoodTimes(0.01, 0.9), sdegen.ClockTimes()):
        t, weight = times(path, 5, g.manual_seed(0), torch.float64, CPU)
        drawn = sdegen.loss(model, x, times=times, generator=g.manual_seed(0), **options)
        torch.testing.assert_close(drawn, weight * sdegen.loss(model, x, t=t, **options), rtol=1e-12, atol=0)


def test_a_sampler_of_the_user_s_may_draw_in_any_precision():
    path, x, noise = sdegen.VPSDE(), torch.randn(5, 2), torch.randn(5, 2)
    model = sdegen.ScoreModel(lambda x, t: torch.tanh(x + t[:, None]), path)
    t = torch.linspace(0.1, 0.9, 5)
    exact = sdegen.loss(model, x, t=t, noise=noise)
    single = sdegen.loss(model, x, times=lambda *_: (t.float(), torch.ones(5)), noise=noise)
    assert single.dtype == torch.float64
    assert float(single) == pytest.approx(float(exact), rel=1e-6)
    half = sdegen.loss(model, x.float(), times=lambda *_: (t.bfloat16(), torch.ones(5)), noise=noise)
    rounded = sdegen.loss(model, x.float(), t=t.bfloat16().float(), noise=noise)
    assert float(half) == pytest.approx(float(rounded), rel=1e-6)


def test_default_times_are_uniform_times():
    model = sdegen.ScoreModel(lambda x, t: torch.tanh(x + t[:, None]), sdegen.CondOT(), "velocity")
    x, g = torch.randn(8, 2), torch.Generator()
    for generators in (lambda: g.manual_seed(1), lambda: [torch.Generator().manual_seed(i) for i in range(8)]):
        plain = sdegen.loss(model, x, generator=generators())
        assert torch.equal(plain, sdegen.loss(model, x, times=sdegen.UniformTimes(), generator=generators()))


def test_chain_times_are_the_steps_from_1_to_k():
    t, weight = sdegen.ChainTimes(4)(
        RETIMED["condot, 0 to 5"], 1000, torch.Generator().manual_seed(0), torch.float32, CPU
    )
    assert t.unique().tolist() == [1.25, 2.5, 3.75, 5.0]
    assert weight.unique().tolist() == [1]


def test_spread_times_come_from_the_first_generator():
    for times in (sdegen.LowDiscrepancyTimes(), sdegen.LikelihoodTimes()):
        several, one = [torch.Generator().manual_seed(i) for i in range(6)], torch.Generator().manual_seed(0)
        draws = (times(sdegen.VPSDE(), 6, g, torch.float64, CPU)[0] for g in (several, one))
        assert torch.equal(*draws)


def test_times_never_leave_the_path_by_a_rounding():
    class Rounds(sdegen.VPSDE):
        def time(self, u):
            return super().time(u) + torch.where(torch.as_tensor(u) > 0.5, 5e-5, -5e-5)

    for times in (sdegen.ClockTimes(), sdegen.LikelihoodTimes(1e-4, 0.9999)):
        t, weight = times(Rounds(), 1_000_000, torch.Generator().manual_seed(0), torch.float32, CPU)
        assert float(t.min()) == 0
        assert float(t.max()) == 1
        assert not bool(weight.isnan().any())


def test_clock_times_are_right_to_single_precision_at_the_noise_end(monkeypatch):
    """On a wide VE u = sigma/(1 + sigma) is within 1e-3 of 1, where float32 would move t by 1e-5."""
    path, fraction = sdegen.VESDE(0.002, 1348.0), 1 - torch.logspace(-7, -1, 50, dtype=torch.float32)
    monkeypatch.setattr(sampling, "uniform", lambda *_: fraction)
    t, _ = sdegen.ClockTimes()(path, 50, None, torch.float32, CPU)
    low, high = path.ends
    exact = path.time(low + (high - low) * fraction.double())
    assert float((t - exact).abs().max()) < 1e-7


@pytest.mark.parametrize(("t_data", "t_noise"), [(1.0, 0.0), (1000.0, 1001.0)])
def test_no_drawn_time_is_the_data_end_where_targets_are_infinite(t_data, t_noise):
    """VP read with its data at another time than 0: in single precision some draws round to it."""
    model = sdegen.ScoreModel(lambda x, t: x, sdegen.Retimed(sdegen.VPSDE(), t_data, t_noise), "velocity")
    x = torch.randn(100_000, 1, dtype=torch.float32)
    for times in (sdegen.UniformTimes(), sdegen.LowDiscrepancyTimes(), sdegen.ClockTimes(), sdegen.LikelihoodTimes()):
        errors = sdegen.loss(model, x, times=times, reduction="none", generator=torch.Generator().manual_seed(1))
        assert bool(torch.isfinite(errors).all())
