"""Chains that start below the noise end or end at noised data: the same as chains of their own, and what they cost."""

from __future__ import annotations

import math

import pytest
import torch
from chains import DATA, Counting, off_by

import sdegen

VE = sdegen.VESDE(0.05, 20.0)


LONG = sdegen.DDPM.linear(60, 1e-3, 0.2)


def short_chain(knots):
    """The chain whose steps these are, as a path of its own: it ends where they start."""
    k = torch.round(LONG.time(knots * 1.0) * 60).flip(0)
    bars = LONG.alpha(k / 60) ** 2
    return sdegen.DDPM(1 - bars[1:] / bars[:-1])


@pytest.mark.parametrize("explicit", [False, True])
def test_a_chain_that_starts_below_the_noise_end_is_a_chain_of_its_own(explicit):
    leading = LONG.respaced(8)
    assert float(leading[0]) < LONG.ends[1] - 1e-3
    options = {"grid": leading * 1.0, "u": (0.0, float(leading[0]))} if explicit else {"grid": leading}
    target = sdegen.Gaussian(torch.tensor([0.1, -0.4]), 0.3)
    model, own = target.model(LONG), target.model(short_chain(leading))
    x, noise = torch.randn(5, 2), torch.randn(5, 2)
    bound, other = sdegen.vlb(model, x, noise=noise, **options), sdegen.vlb(own, x, noise=noise)
    for name in ("prior", "transitions", "decoder", "total"):
        torch.testing.assert_close(getattr(bound, name), getattr(other, name), rtol=1e-8, atol=1e-12)
    prior = 0.5 * (float(LONG.alpha(50 / 60)) * x).square().sum(1) / float(LONG.sigma(50 / 60)) ** 2
    torch.testing.assert_close(bound.prior, prior, rtol=1e-9, atol=0)
    forms = [sdegen.entropy_form(m, target, x, noise=noise, **o) for m, o in ((model, options), (own, {}))]
    torch.testing.assert_close(forms[0].total, forms[1].total, rtol=1e-9, atol=0)
    best = [sdegen.optimal_variance(m, x, noise=noise, **o) for m, o in ((model, options), (own, {}))]
    torch.testing.assert_close(*best, rtol=1e-8, atol=0)
    weights = [
        sdegen.iwae(m, x, 3, generator=torch.Generator().manual_seed(0), **o).log_weights
        for m, o in ((model, options), (own, {}))
    ]
    torch.testing.assert_close(*weights, rtol=1e-8, atol=1e-8)


def test_the_continuous_bound_of_a_part_is_that_of_a_path_of_its_own():
    """It knows of a path only its ends."""
    x = DATA.sample(6)
    chain = LONG.respaced(8)
    bounds = [
        sdegen.continuous_vlb(
            DATA.model(path), x, u=u, u_min=0.02, draws=4, generator=torch.Generator().manual_seed(0)
        ).total
        for path, u in ((LONG, (0.0, float(chain[0]))), (short_chain(chain), None))
    ]
    torch.testing.assert_close(*bounds, rtol=1e-9, atol=1e-10)


# Calls, shapes, learned variances


def test_noised_data_cost_one_call_more_and_have_one_term_more():
    net = Counting()
    model, x = sdegen.ScoreModel(net, VE), torch.randn(6, 2)

    def calls(verb, *arguments, **options):
        net.calls = 0
        return verb(model, x, *arguments, **options), net.calls

    bound, count = calls(sdegen.vlb, steps=7)
    assert (bound.transitions.shape, count) == ((6, 7), 8)
    assert (bound.kind, bound.u) == ("bound", VE.ends)
    assert abs(bound.sigma - 0.05) < 1e-15
    some, count = calls(sdegen.vlb, steps=7, draws=4, batch_size=3)
    assert (some.transitions.shape, count) == ((6, 4), 10)
    assert calls(sdegen.optimal_variance, 7)[1] == 7
    assert calls(sdegen.vlb, steps=7, variance="optimal")[1] == 15
    assert calls(sdegen.iwae, 2, steps=7)[1] == 16
    assert calls(sdegen.continuous_vlb, draws=6)[1] == 7
    single = sdegen.vlb(model, x, steps=1, variance="posterior")
    assert single.transitions.shape == (6, 1)


def test_the_hybrid_loss_of_noised_data_has_the_bound_s_terms_in_it():
    """Its weight adds, in the mean, the bound without L_K, in nats a value; the decoder's step is one of K + 1."""
    model = sdegen.ScoreModel(lambda x, t: torch.cat([0.3 * x, torch.tanh(x)], 1), VE, learns_variance=True)
    x = torch.tensor([[0.4, -0.9]]).expand(40_000, 2)
    bound = sdegen.vlb(model, x, steps=7, variance="learned")
    expected, spread = (bound.total - bound.prior) / 2, []
    for seed in range(30):
        heavy, light = (
            sdegen.hybrid_loss(model, x, steps=7, weight=weight, generator=torch.Generator().manual_seed(seed))
            for weight in (1.0, 0.0)
        )
        spread.append(heavy - light)
    found = torch.stack(spread)
    assert abs(float(found.mean() - expected.mean())) < 5 * float(found.std()) / math.sqrt(30) + 5 * float(
        expected.std()
    ) / math.sqrt(40_000)
    assert float(found.std()) < 0.05 * float(expected.mean().abs())


@pytest.mark.parametrize(("place", "named"), [(1.0, "beta"), (-1.0, "posterior")])
def test_a_learned_variance_leaves_the_decoder_its_own(place, named):
    x, noise, single = torch.randn(6, 2, 4), torch.randn(6, 2, 4), Counting()
    doubled = sdegen.ScoreModel(
        lambda x, t: torch.cat([single(x, t), torch.full_like(x, place)], 1), VE, learns_variance=True
    )
    plain, options = sdegen.ScoreModel(single, VE), {"steps": 5, "noise": noise}
    learned, fixed = (sdegen.vlb(m, x, variance=v, **options) for m, v in ((doubled, "learned"), (plain, named)))
    torch.testing.assert_close(learned.transitions, fixed.transitions, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(learned.decoder, fixed.decoder, rtol=1e-12, atol=1e-12)


def test_random_steps_of_noised_data_are_unbiased():
    n, x = 20_000, torch.full((20_000, 1), 1.3)
    model, g = off_by(VE, 0.8, 0.2), torch.Generator().manual_seed(1)
    every, some = (sdegen.vlb(model, x, steps=30, draws=draws, generator=g) for draws in (None, 8))
    one, other = every.transitions.sum(1), some.transitions.sum(1)
    assert abs(float(one.mean() - other.mean())) < 5 * math.sqrt(float(one.var() + other.var()) / n)
    honest = float(some.standard_error.square().mean() / other.var())
    assert abs(honest - 1) < 0.2


def test_a_moved_network_has_the_bound_that_its_refusal_names():
    """A network trained on a part of a path is refused beyond it, in words that name the part that serves."""
    model = sdegen.ScoreModel(Counting(), VE).on(sdegen.CondOT())
    with pytest.raises(
        ValueError, match=r"answers between the clocks .*; u=\(0\.04\d+, 0\.95\d+\) stays inside"
    ) as said:
        sdegen.continuous_vlb(model, torch.randn(3, 2))
    low, high = (float(end) for end in str(said.value).split("u=(")[1].split(")")[0].split(","))
    x, at = torch.randn(3, 2), torch.linspace(high, low, 6, dtype=torch.float64)
    noise = torch.randn(3, 2)
    inside = sdegen.vlb(model, x, u=(low, high), grid=at, noise=noise, variance="posterior")
    there = sdegen.vlb(sdegen.ScoreModel(Counting(), VE), x, grid=at, noise=noise, variance="posterior")
    torch.testing.assert_close(inside.total, there.total, rtol=1e-8, atol=1e-8)
