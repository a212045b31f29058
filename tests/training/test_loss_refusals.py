"""What `loss` refuses, in words: weights, noise and times of the user's, and the ends where a target is infinite."""

from __future__ import annotations

import math

import pytest
import torch
from problems import PATHS

import sdegen

VP = sdegen.VPSDE()
X = torch.zeros(4, 2)


def refused(error, says, path=VP, predicts="eps", x=X, **options):
    """The words, and that the network was not called."""
    calls = []
    model = sdegen.ScoreModel(lambda x, t: calls.append(1) or x, path, predicts)
    with pytest.raises(error, match=says):
        sdegen.loss(model, x, **options)
    assert not calls


def sampler(t, weights):
    return lambda path, n, generator, dtype, device: (t, weights)


ONES, HALVES = torch.ones(4), torch.full((4,), 0.5)


@pytest.mark.parametrize(
    ("t", "weights", "error", "says"),
    [
        (HALVES, ONES[:, None], ValueError, r"weights of times must give one number per sample.*\(4,\).*\(4, 1\)"),
        (HALVES[:, None], ONES, ValueError, r"times must give one number per sample.*\(4,\).*\(4, 1\)"),
        (HALVES[:1], ONES, ValueError, r"\(4,\), and it gave \(1,\)"),
        (HALVES, 1.0, ValueError, "weights of times.*float"),
        (0.5, ONES, ValueError, "times must give.*float"),
        (HALVES, -ONES, ValueError, "weights of times must not be negative or NaN.*-1 for the first of 4"),
        (HALVES, torch.tensor([1.0, 1.0, math.nan, 1.0]), ValueError, "nan for the first of 1"),
        (torch.tensor([0.1, 0.2, 1.5, 0.3]), ONES, ValueError, "1.5"),
        (torch.tensor([0.1, 0.2, math.nan, 0.3]), ONES, ValueError, "nan"),
        (torch.ones(4, dtype=torch.long), ONES, TypeError, "int64"),
    ],
)
def test_times_of_a_sampler_of_the_user_s(t, weights, error, says):
    refused(error, says, times=sampler(t, weights))


def test_a_sampler_returns_a_pair():
    refused(TypeError, "the times and their weights.*gave Tensor", times=lambda *_: HALVES)
    refused(TypeError, "gave NoneType", times=lambda *_: None)


def test_a_subclass_of_a_sampler_is_the_user_s():
    class Mine(sdegen.UniformTimes):
        def __call__(self, *_):
            return HALVES, ONES[:, None]

    refused(ValueError, r"\(4, 1\)", times=Mine())


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (-HALVES, "weighting must not be negative or NaN, and it is -0.5 for the first of 4"),
        (torch.tensor([1.0, math.nan, 1.0, math.nan]), "nan for the first of 2"),
        (ONES[:, None], r"weighting must give one number per sample.*\(4, 1\)"),
        (2.0, "weighting must give one number per sample.*float"),
    ],
)
def test_weightings(weights, says):
    refused(ValueError, says, weighting=lambda path, t: weights)
    refused(ValueError, says, weighting=lambda path, t: weights, times=sdegen.LowDiscrepancyTimes())


def test_a_weight_may_be_0():
    model = sdegen.ScoreModel(lambda x, t: x, VP)
    assert float(sdegen.loss(model, torch.randn(4, 2), weighting=lambda path, t: torch.zeros(4))) == 0


@pytest.mark.parametrize(
    ("noise", "error", "says"),
    [
        (torch.tensor([[0.0, math.nan]]).expand(4, 2), ValueError, "noise holds NaN or infinite values in 4 of its 4"),
        (torch.full((4, 2), math.inf), ValueError, "noise holds NaN or infinite"),
        (torch.zeros(4, 2, dtype=torch.complex64), TypeError, "complex64"),
        (torch.zeros(4, 2, dtype=torch.int64), TypeError, "int64"),
        (torch.zeros(4, 3), ValueError, r"\(4, 2\).*\(4, 3\)"),
        (0.0, TypeError, "float"),
    ],
)
def test_noise(noise, error, says):
    refused(error, says, noise=noise)


def test_large_finite_data_are_not_refused():
    """Their sum overflows, and they are finite."""
    model = sdegen.ScoreModel(lambda x, t: 0 * x, VP)
    x = torch.full((4, 2), 3e38, dtype=torch.float32)
    sdegen.loss(model, x)
    sdegen.loss(model, torch.zeros(4, 2), noise=torch.full((4, 2), 1e308))
    assert sdegen.loss(model, torch.full((4, 2), 6e4, dtype=torch.float16)).dtype == torch.float32
    for bad in (math.nan, math.inf, -math.inf):
        refused(
            ValueError,
            "x holds NaN or infinite values in 1 of its 4",
            x=torch.zeros(4, 2).index_put((torch.tensor([2]), torch.tensor([1])), torch.tensor(bad)),
        )
    refused(ValueError, "in 2 of its 4", x=torch.tensor([[math.inf], [-math.inf], [0.0], [0.0]]))


# Singular ends


@pytest.mark.parametrize("name", PATHS)
def test_the_velocity_at_clean_data(name):
    """dx/dt is infinite at clean data where sigma is a square root: VP, cosine, DDPM; elsewhere there is a loss."""
    path = PATHS[name]
    singular = "vp" in name or "cosine" in name or "ddpm" in name
    singular = singular and "sub" not in name
    assert singular == (not math.isfinite(float(path.slopes(path.t_data).sigma)))
    given = ({"t": path.t_data}, {"t": path.at(torch.tensor([0.5, 0.5, 0.0, 0.5]))})
    given += ({"times": sampler(given[1]["t"], ONES)},)
    for options in given:
        if singular:
            words = f"At t = {path.t_data:g} on .* for 'velocity' is not finite"
            refused(ValueError, words, path, "velocity", **options)
        else:
            model = sdegen.ScoreModel(lambda x, t: x, path, "velocity")
            assert bool(torch.isfinite(sdegen.loss(model, torch.randn(4, 2), **options)))


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("predicts", ["eps", "score", "data", "v"])
def test_other_predictions_have_a_loss_at_both_ends(name, predicts):
    path = PATHS[name]
    model = sdegen.ScoreModel(lambda x, t: x, path, predicts)
    for t in (path.t_data, path.t_noise):
        assert bool(torch.isfinite(sdegen.loss(model, torch.randn(4, 2), t=t)))


def test_weights_that_are_infinite_or_undefined():
    likelihood = sdegen.LikelihoodWeighting()
    refused(ValueError, "At t = 0 on .* for 'eps' is not finite", t=0.0, weighting=likelihood)
    refused(ValueError, "At t = 1 on .* 'eps'", sdegen.CosineVPSDE(), t=1.0, weighting=likelihood)
    refused(ValueError, "At t = 1 on .* 'data'", sdegen.CondOT(), "data", t=1.0, weighting=sdegen.MinSNR())
    refused(ValueError, "At t = 0.5 on", t=0.5, weighting=lambda path, t: torch.full((4,), math.inf))
    refused(ValueError, "At t = 0.5 on", times=sampler(HALVES, ONES * math.inf))


def test_a_time_beyond_the_end_by_a_rounding_is_the_end():
    model, x, noise = (
        sdegen.ScoreModel(lambda x, t: t[:, None] + x, sdegen.VPSDE()),
        torch.randn(4, 2),
        torch.randn(4, 2),
    )
    at = [sdegen.loss(model, x, t=t, noise=noise) for t in (-1e-7, 0.0)]
    assert torch.equal(*at)


# Generators


@pytest.mark.parametrize("replace", [False, True])
def test_generators(replace):
    coupling = sdegen.OptimalTransport(replace)
    for wrong, error, says in (
        ([torch.Generator()] * 3, ValueError, "A batch of 4 needs 4 generators, one per sample, and 3 were given"),
        ([], ValueError, "4 generators.* 0 were given"),
        ([1, 2, 3, 4], TypeError, "generator must be a torch.Generator.*1 is int"),
        ("seed", TypeError, "'seed' is str"),
    ):
        refused(error, says, generator=wrong)
        refused(error, says, sdegen.Interpolant(), "velocity", generator=wrong, coupling=coupling)
        with pytest.raises(error, match=says):
            coupling(X, X, wrong)
