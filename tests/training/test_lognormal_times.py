"""Log-normal noise levels: the law of sigma/alpha on every path, its ends, its draws."""

from __future__ import annotations

import math

import pytest
import torch
from problems import PATHS

import sdegen

CPU = torch.device("cpu")
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def ratio(path, t):
    return path.sigma(t) / path.alpha(t)


@every_path
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.3, 0.4)])
def test_sigma_over_alpha_is_log_normal_on_every_path(path, mean, std):
    """exp(mean + std z) of the very normals drawn, held between the ends of the path; every weight is 1."""
    z = torch.randn(4000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t, weight = sdegen.LogNormalTimes(mean, std)(path, 4000, torch.Generator().manual_seed(3), torch.float64, CPU)
    low, high = (u / (1 - u) if u < 1 else math.inf for u in path.ends)
    expected = torch.exp(mean + std * z).clamp(low, high)
    torch.testing.assert_close(ratio(path, t), expected, rtol=1e-9, atol=1e-13)
    assert torch.equal(weight, torch.ones(4000))
    assert bool(((t - path.t_data) * (t - path.t_noise) <= 0).all())


def test_on_edm_the_times_are_the_sources():
    """sigma = (rnd_normal * P_std + P_mean).exp()."""
    t, _ = sdegen.LogNormalTimes()(sdegen.EDM(), 1000, torch.Generator().manual_seed(1), torch.float64, CPU)
    theirs = (torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 1.2 - 1.2).exp()
    torch.testing.assert_close(t, theirs, rtol=1e-12, atol=0)


def test_draws_beyond_the_path_are_held_at_its_ends():
    path = sdegen.VESDE(0.5, 2.0)
    for dtype in (torch.float32, torch.float64):
        t, _ = sdegen.LogNormalTimes(0.0, 3.0)(path, 5000, torch.Generator().manual_seed(1), dtype, CPU)
        assert t.dtype == dtype
        assert (float(t.min()), float(t.max())) == (0.0, 1.0)
        for end, outside in ((0.0, math.log(0.5) / 3), (1.0, -math.log(2.0) / 3)):
            p = 0.5 * math.erfc(-outside / math.sqrt(2))
            assert abs(float((t == end).double().mean()) - p) < 4.9 * math.sqrt(p * (1 - p) / 5000)


def test_the_mean_of_a_loss_is_over_this_law():
    """Of the zero eps network on data at 0 the loss is eps^2, weighted by u^2: the mean of u^2 by hand."""
    model = sdegen.ScoreModel(lambda x, t: torch.zeros_like(x), sdegen.CosineVPSDE(), "eps")
    x, n = torch.zeros(20_000, 1), 20_000
    each = sdegen.loss(
        model,
        x,
        times=sdegen.LogNormalTimes(),
        weighting=lambda path, t: path.clock(t) ** 2,
        noise=torch.ones_like(x),
        generator=torch.Generator().manual_seed(5),
        reduction="none",
    )
    p = (torch.arange(200_000) + 0.5) / 200_000
    by_hand = torch.sigmoid(-1.2 + 1.2 * torch.special.ndtri(p)) ** 2
    assert abs(float(each.mean() - by_hand.mean())) < 4.9 * float(each.std()) / math.sqrt(n)


def test_half_precision_draws_in_single_and_samples_have_their_own_generators():
    path = sdegen.EDM()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        t, weight = sdegen.LogNormalTimes()(path, 6, torch.Generator().manual_seed(0), dtype, CPU)
        assert t.dtype == weight.dtype == torch.float32
    each = [torch.Generator().manual_seed(i) for i in range(5)]
    t, _ = sdegen.LogNormalTimes()(path, 5, each, torch.float64, CPU)
    alone, _ = sdegen.LogNormalTimes()(path, 1, [torch.Generator().manual_seed(3)], torch.float64, CPU)
    assert torch.equal(t[3:4], alone)
    assert sdegen.LogNormalTimes()(path, 0, None, torch.float32, CPU)[0].shape == (0,)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: sdegen.LogNormalTimes(std=0.0), ValueError, "std must be a finite number in .0, inf.*it is 0.0"),
        (lambda: sdegen.LogNormalTimes(std=-1.0), ValueError, "std must be a finite.*it is -1.0"),
        (lambda: sdegen.LogNormalTimes(mean=math.nan), ValueError, "mean must be a finite.*it is nan"),
        (lambda: sdegen.LogNormalTimes(mean="0"), TypeError, "mean must be a real number.*'0'"),
    ],
)
def test_laws_that_are_none_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_the_weighting_is_refused_in_pure_noise():
    path = sdegen.DDPM([0.1, 0.5, 1.0])
    model = sdegen.ScoreModel(lambda x, t: x, path, "v")
    for times in ({"t": 1.0}, {"times": sdegen.ChainTimes()}):
        with pytest.raises(ValueError, match=r"At t = 1 on DDPM.*its target or its weight is infinite or undefined"):
            sdegen.loss(model, torch.randn(64, 2), weighting=sdegen.EDMWeighting(), **times)
    with pytest.raises(ValueError, match=r"At t = 1 on DDPM.*its target or its weight is infinite or undefined"):
        sdegen.loss(model, torch.randn(64, 2), weighting=sdegen.LikelihoodWeighting(), times=sdegen.ChainTimes())
