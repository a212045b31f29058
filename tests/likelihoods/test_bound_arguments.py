"""What all bounds do with their arguments: refusals in full sentences, any mode of gradients, few frames, a bar."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

import sdegen

CHAIN = sdegen.DDPM.linear(6, 0.05, 0.4)

LAW = sdegen.Gaussian(torch.zeros(2, dtype=torch.float64), 0.6)

CALLS = []


def net(x, t):
    CALLS.append(len(x))
    return torch.tanh(x)


def both(x, t):
    return torch.cat([net(x, t), torch.cos(x)], 1)


MODEL, LEARNED = sdegen.ScoreModel(net, CHAIN), sdegen.ScoreModel(both, CHAIN, learns_variance=True)

WITH_NOISE = {
    "vlb": lambda x, **o: sdegen.vlb(MODEL, x, **o),
    "optimal_variance": lambda x, **o: sdegen.optimal_variance(MODEL, x, **o),
    "entropy_form": lambda x, **o: sdegen.entropy_form(MODEL, LAW, x, **o),
    "hybrid_loss": lambda x, **o: sdegen.hybrid_loss(LEARNED, x, **o),
}

VERBS = WITH_NOISE | {
    "iwae": lambda x, **o: sdegen.iwae(MODEL, x, 2, **o),
    "continuous_vlb": lambda x, **o: sdegen.continuous_vlb(MODEL, x, draws=2, **o),
}


def numbers(result):
    """The tensors of a result."""
    values = [result] if isinstance(result, torch.Tensor) else vars(result).values()
    return [value for value in values if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("verb", WITH_NOISE)
@pytest.mark.parametrize(
    ("noise", "error", "says"),
    [
        (torch.full((3, 2), math.nan), ValueError, "noise holds NaN or infinite values in 3 of its 3 samples"),
        (torch.tensor([[0.0, math.inf], [0, 0], [0, 0]]), ValueError, "noise holds NaN or infinite values in 1 of its"),
        (torch.zeros(3, 2, dtype=torch.complex128), TypeError, "noise must have a real floating dtype.*complex128"),
        (torch.zeros(3, 2).long(), TypeError, "noise must have a real floating dtype.*int64"),
        (torch.zeros(2, 2), ValueError, r"noise must have the shape of x, \(3, 2\), and it has \(2, 2\)"),
        (torch.zeros(3, 1), ValueError, r"noise must have the shape of x, \(3, 2\), and it has \(3, 1\)"),
        ([[0.0, 0.0]] * 3, TypeError, "noise must be a tensor.*list"),
    ],
)
def test_noise_that_is_none_is_refused(verb, noise, error, says):
    CALLS.clear()
    with pytest.raises(error, match=says):
        WITH_NOISE[verb](torch.zeros(3, 2), noise=noise)
    assert not CALLS


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"generator": [torch.Generator()] * 2}, ValueError, "A batch of 3 needs 3 generators.* 2 were given"),
        ({"generator": 7}, TypeError, "generator must be a torch.Generator or a list of them, and 7 is int"),
        ({"cond": 3}, TypeError, "cond must be a mapping.* int"),
    ],
)
def test_generators_and_conditions_that_are_none_are_refused(verb, arguments, error, says):
    CALLS.clear()
    with pytest.raises(error, match=says):
        VERBS[verb](torch.zeros(3, 2), **arguments)
    assert not CALLS


@pytest.mark.parametrize("verb", VERBS)
def test_data_of_inference_mode_serve_as_any(verb):
    with torch.inference_mode():
        x, noise = torch.randn(3, 2), torch.randn(3, 2)
    given = {"noise": noise} if verb in WITH_NOISE else {}
    fresh = {name: value.clone() for name, value in given.items()}

    def seeded(x, **options):
        return VERBS[verb](x, generator=torch.Generator().manual_seed(0), **options)

    expected = numbers(seeded(x.clone(), **fresh))
    for one, other in zip(numbers(seeded(x, **given)), expected, strict=True):
        assert torch.equal(one, other)
    with torch.inference_mode():
        inside = numbers(seeded(x, **given))
    for one, other in zip(inside, expected, strict=True):
        assert torch.equal(one, other)


def test_a_variance_that_is_not_positive_is_named():
    variance = torch.full((6,), 0.1)
    variance[1] = 0.0
    CALLS.clear()
    for verb in (sdegen.vlb, sdegen.iwae):
        with pytest.raises(ValueError, match=r"positive variance in every step, and that of step 2 is 0\.0"):
            verb(MODEL, torch.zeros(3, 2), variance=variance)
    assert not CALLS


def test_entropy_form_refuses_learned_variances():
    CALLS.clear()
    with pytest.raises(ValueError, match="do not depend on x, and variance is 'learned'"):
        sdegen.entropy_form(LEARNED, LAW, torch.zeros(3, 2), variance="learned")
    with pytest.raises(ValueError, match="'large'"):
        sdegen.entropy_form(LEARNED, LAW, torch.zeros(3, 2), variance="large")
    assert not CALLS


def test_a_plain_tensor_of_knots_has_no_ends_of_its_own():
    """`respaced` with "leading" starts below the noise end, and its knots say so; other tensors need `u=`."""
    CALLS.clear()
    grid = sdegen.DDPM.linear(100, 1e-3, 0.1).respaced(10) * 1.0
    model = sdegen.ScoreModel(net, sdegen.DDPM.linear(100, 1e-3, 0.1))
    for call in (sdegen.vlb, sdegen.iwae, sdegen.optimal_variance):
        with pytest.raises(ValueError, match=r"The grid runs from u = .* to 0.0, the solve from"):
            call(model, torch.zeros(3, 2), grid=grid)
    assert not CALLS


def test_few_frames_lie_between_a_verb_and_the_network():
    package, depth, current = str(Path(sdegen.__file__).parent), {}, []

    def counting(x, t):
        frame, found = sys._getframe(1), 0
        while frame is not None:
            found += frame.f_code.co_filename.startswith(package)
            frame = frame.f_back
        depth[current[-1]] = max(depth.get(current[-1], 0), found)
        return torch.tanh(x)

    def doubled(x, t):
        return torch.cat([counting(x, t), x], 1)

    x = torch.zeros(3, 2)
    plain, learned = sdegen.ScoreModel(counting, CHAIN), sdegen.ScoreModel(doubled, CHAIN, learns_variance=True)
    for verb, call in {
        "vlb": lambda: sdegen.vlb(plain, x),
        "learned": lambda: sdegen.vlb(learned, x, variance="learned"),
        "draws": lambda: sdegen.vlb(plain, x, draws=2),
        "optimal": lambda: sdegen.vlb(plain, x, variance="optimal"),
        "iwae": lambda: sdegen.iwae(plain, x, 2),
        "continuous_vlb": lambda: sdegen.continuous_vlb(plain, x, draws=2),
        "optimal_variance": lambda: sdegen.optimal_variance(plain, x),
        "entropy_form": lambda: sdegen.entropy_form(plain, LAW, x),
        "hybrid_loss": lambda: sdegen.hybrid_loss(learned, x),
    }.items():
        current.append(verb)
        call()
    assert len(depth) == 9
    assert max(depth.values()) <= 7, depth
    assert depth["vlb"] <= 6
    assert depth["hybrid_loss"] <= 4


@pytest.mark.parametrize(("options", "calls", "total"), [({}, 6, 6), ({"draws": 4}, 5, 5), ({"batch_size": 2}, 12, 2)])
def test_the_one_bar_counts_network_calls_or_parts(options, calls, total, monkeypatch):
    import tqdm.auto

    moved = []

    class Shown:
        def __init__(self, total, unit):
            moved.append(-total)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def update(self):
            moved.append(1)

    monkeypatch.setattr(tqdm.auto, "tqdm", Shown)
    CALLS.clear()
    sdegen.vlb(MODEL, torch.zeros(3, 2), progress=True, **options)
    assert moved == [-total, *[1] * total]
    assert len(CALLS) == calls


def test_results_compare_as_objects():
    x, noise = torch.randn(3, 2), torch.randn(3, 2)
    for result in (sdegen.vlb(MODEL, x, noise=noise), sdegen.iwae(MODEL, x, 2), sdegen.entropy_form(MODEL, LAW, x)):
        assert result == result
        assert result != sdegen.vlb(MODEL, x, noise=noise)
        assert isinstance(hash(result), int)
