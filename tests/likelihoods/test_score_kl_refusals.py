"""What score_kl refuses, each in a sentence and before the first network call."""

from __future__ import annotations

import math

import numpy as np
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
PLANE = sdegen.Gaussian([0.0, 0.0], 1.0).model(sdegen.CondOT())


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
    "u_min NaN": (ONES, ONES, network(), {"u_min": NAN}, ValueError, r"u_min must be a finite .* and it is nan"),
    "u_min a bool": (ONES, ONES, PLANE, {"u_min": False}, TypeError, "u_min must be a real number, and False is bool"),
    "u_min a tensor": (
        ONES,
        ONES,
        PLANE,
        {"u_min": torch.tensor(0.1)},
        TypeError,
        r"u_min must be a real number, and tensor\(0.1.*\) is Tensor",
    ),
    "u_min an array": (
        ONES,
        ONES,
        PLANE,
        {"u_min": np.array([0.1, 0.2])},
        TypeError,
        r"u_min must be a real number, and array\(\[0.1, 0.2\]\) is ndarray",
    ),
    "std without a square": (
        ONES.float(),
        1e-20 * ONES.float(),
        PLANE,
        {},
        ValueError,
        r"std must be at least 1.1e-19 in torch.float32, so that its square is not 0, and the smallest is 1e-20\.",
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


@pytest.mark.parametrize(
    "prior",
    [
        network().on(sdegen.CondOT()),
        sdegen.Guided(PLANE, lambda x, t: -x.square().sum(1)),
        sdegen.Observed(PLANE, torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]), 1.0),
    ],
    ids=["moved", "Guided", "Observed"],
)
def test_a_prior_without_an_answer_in_pure_noise_is_to_be_moved(prior):
    """And is welcome on the path that the sentence names; score_kl has no u= to advise."""
    CALLS.clear()
    words = (
        r"score_kl follows a path to its noise end, u = 1 on CondOT\(.*\), and this prior answers up to u = 0\.99\d* "
        r"alone: put it on a path that ends by then, before pure noise, prior\.on\(path\); VPSDE\(\) ends at u = 0\.99"
    )
    with pytest.raises(ValueError, match=words):
        sdegen.score_kl(ONES, ONES, prior, draws=2)
    assert not CALLS
    assert sdegen.score_kl(ONES, ONES, prior.on(sdegen.VPSDE()), draws=2).value.isfinite().all()
    assert f"{sdegen.VPSDE().ends[1]:.4f}, {sdegen.VESDE().ends[1]:.4f}" == "0.9935, 0.9804"


def test_a_prior_that_starts_later_than_its_path_needs_a_u_min():
    """A network for sigma from 0.01 on, followed from clean data: from 0.0099 on it can be asked."""
    prior, start = network(sdegen.VESDE(sigma_max=200.0)).on(sdegen.VPSDE()), sdegen.VESDE().ends[0]
    CALLS.clear()
    for u_min in (None, 1e-3):
        with pytest.raises(
            ValueError, match=rf"u_min = 0.001 on, .* from u = {start} on alone: give u_min={start}, or"
        ):
            sdegen.score_kl(ONES, ONES, prior, u_min=u_min)
    assert not CALLS
    for u_min in (start, 0.05):
        assert sdegen.score_kl(ONES, ONES, prior, u_min=u_min, draws=2).value.isfinite().all()


def test_the_start_of_a_path_from_noised_data_may_be_named():
    low = sdegen.VESDE().ends[0]
    named, left = (
        sdegen.score_kl(
            ONES, ONES, network(sdegen.VESDE()), u_min=u_min, draws=2, generator=torch.Generator().manual_seed(1)
        )
        for u_min in (np.float64(low), None)
    )
    assert torch.equal(named.value, left.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_std_that_is_nothing_beside_the_noise_in_the_latents(dtype):
    """sigma_0 is 0.01 on VESDE."""
    prior, mean = sdegen.Gaussian([0.0], 1.0).model(sdegen.VESDE()), torch.zeros(2, 1, dtype=dtype)
    words = r"std must be at least 1e-05 on VESDE.*, where latents hold noise of deviation 0\.01, and .* is 9e-06\."
    with pytest.raises(ValueError, match=words):
        sdegen.score_kl(mean, torch.full_like(mean, 9e-6), prior)
    assert bool(sdegen.score_kl(mean, torch.full_like(mean, 1.1e-5), prior).value.isfinite().all())
