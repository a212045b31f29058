"""What score_kl refuses, each in a sentence and before the first network call."""

from __future__ import annotations

import math

import pytest
import torch

import sdegen

CALLS: list[int] = []


def net(x, t):
    CALLS.append(1)
    return x


def network(path=None, predicts="v", **options):
    return sdegen.ScoreModel(net, path or sdegen.VPSDE(), predicts, **options)


def bad(where, value):
    x = torch.ones(3, 2)
    x[where] = value
    return x


ONES = torch.ones(3, 2)
NAN = math.nan
EXACT = sdegen.Gaussian([0.0, 0.0, 0.0], 1.0).model(sdegen.VPSDE())


class Uniform:
    def log_prob(self, x):
        return x.sum(1)


CASES = {
    "no model": (ONES, ONES, net, {}, TypeError, r"prior must be a model, .* give ScoreModel\(net, path, predicts\)"),
    "a bare law": (ONES, ONES, sdegen.Gaussian([0.0, 0.0], 1.0), {}, TypeError, "prior must be a model, .*Gaussian"),
    "pairs": (
        ONES,
        ONES,
        network(sdegen.Interpolant(), "velocity"),
        {},
        ValueError,
        r"score_kl needs a prior with a score, and on Interpolant\(.*\) there is none: its source is not Gaussian",
    ),
    "a source": (
        ONES,
        ONES,
        network(sdegen.Interpolant(source=Uniform()), "velocity"),
        {},
        ValueError,
        "score_kl needs a prior with a score, and on .*Uniform.* there is none",
    ),
    "own units": (
        ONES,
        ONES,
        network(standardize=sdegen.Standardize(0.0, 2.0)),
        {},
        ValueError,
        "score_kl works in the network's units, and this model has Standardize",
    ),
    "eps in pure noise": (
        ONES,
        ONES,
        network(sdegen.CondOT(), "eps"),
        {},
        ValueError,
        r"error up to u = 1, where a network for 'eps' is singular on CondOT\(.*\), so that the integral is infinite",
    ),
    "shapes": (ONES, ONES[:, :1], network(), {}, ValueError, r"one shape .* they have \(3, 2\) and \(3, 1\)"),
    "another event": (ONES, ONES, EXACT, {}, ValueError, r"prior has shape \(3,\), and that of mean and std is \(2,\)"),
    "another event, guided": (
        ONES,
        ONES,
        sdegen.Guided(EXACT, lambda x, t: x.sum(1)),
        {},
        ValueError,
        r"prior has shape \(3,\), and that of mean and std is \(2,\)",
    ),
    "std zero": (ONES, bad((1, 0), 0.0), network(), {}, ValueError, "std must be positive, and 1 of its 6 .* are not"),
    "std negative": (ONES, -ONES, network(), {}, ValueError, "6 of its 6 values are not, the first of them -1: let"),
    "std NaN": (ONES, bad(0, NAN), network(), {}, ValueError, "std holds NaN or infinite values in 1 of its 3 samples"),
    "mean NaN": (bad(2, NAN), ONES, network(), {}, ValueError, "mean holds NaN or infinite values in 1 of its 3"),
    "a float": (ONES, 1.0, network(), {}, TypeError, r"std must be a tensor of shape \(B, ...\), and it is float"),
    "integers": (ONES.long(), ONES, network(), {}, TypeError, "mean must have a real floating dtype, .*int64"),
    "one axis": (ONES[0], ONES[0], network(), {}, ValueError, r"mean must have shape \(B, ...\), .*not \(2,\)"),
    "odd draws": (ONES, ONES, network(), {"draws": 3}, ValueError, "draws must be even, .* and it is 3"),
    "no draws": (ONES, ONES, network(), {"draws": 0}, ValueError, "draws must be at least 2, and it is 0"),
    "u_min 0": (ONES, ONES, network(), {"u_min": 0.0}, ValueError, r"u_min must be a finite number in \(0.0, 0.99"),
    "u_min 1": (ONES, ONES, EXACT, {"u_min": 1.0}, ValueError, "u_min must be a finite number in .*, and it is 1.0"),
    "u_min off VE": (
        ONES,
        ONES,
        network(sdegen.VESDE()),
        {"u_min": 1e-3},
        ValueError,
        r"u_min must be a finite number in \[0.0099\d*, 0.98\d*\], and it is 0.001",
    ),
    "generators": (
        ONES,
        ONES,
        network(),
        {"generator": [torch.Generator()]},
        ValueError,
        "A batch of 3 needs 3 generators, one per sample, and 1 were given",
    ),
    "conditions": (ONES, ONES, network(), {"cond": [1]}, TypeError, "cond must be a mapping .* and it is list"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_refused_before_the_first_network_call(name):
    mean, std, prior, options, kind, words = CASES[name]
    CALLS.clear()
    with pytest.raises(kind, match=words):
        sdegen.score_kl(mean, std, prior, **options)
    assert not CALLS


def test_a_network_that_answers_nan_is_found_out():
    model = sdegen.ScoreModel(lambda x, t: x * NAN, sdegen.VPSDE(), "v")
    with pytest.raises(sdegen.NonFiniteError, match="not finite for 3 of 3 samples; check the prior's network"):
        sdegen.score_kl(ONES, ONES, model, draws=2)


def test_a_clipped_network_is_finite_in_pure_noise():
    clipped = sdegen.Clipped(network(sdegen.CondOT(), "eps"), -3, 3)
    assert sdegen.score_kl(ONES, ONES, clipped, draws=2).value.isfinite().all()
