"""The message at a singular end names the u=(from, to) that stays inside, and following it works."""

from __future__ import annotations

import re

import pytest
import torch
from problems import PATHS

import sdegen

X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PREDICTIONS = ("eps", "score", "data", "velocity", "v")
SINGULAR = {
    ("cosine", "eps"), ("cosine", "score"), ("condot", "eps"), ("condot", "score"), ("trigonometric", "eps"),
    ("trigonometric", "score"), ("own flow", "eps"), ("own flow", "score"), ("condot retimed", "eps"),
    ("condot retimed", "score"), ("vp", "velocity"), ("cosine", "velocity"),
}  # fmt: skip
"""Some of the pairs whose ends are singular, so that the law below cannot be one over nothing."""


def advice(said: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """The pairs towards the data and towards noise."""
    number = r"([\d.e+-]+)"
    ends = re.search(
        rf"u=\({number}, {number}\) towards the data, or u=\({number}, {number}\) towards noise, stays inside", said
    ).groups()
    high, low, *back = (float(end) for end in ends)
    assert back == [low, high]
    return (high, low), (low, high)


def both_ways(model, down=None, up=None) -> None:
    """A solve that asks at both ends, to the data and to noise, and a density."""
    solver = sdegen.ODESolver("heun2", steps=3)
    assert bool(torch.isfinite(sdegen.decode(model, X, solver, u=down)).all())
    assert bool(torch.isfinite(sdegen.encode(model, X, solver, u=up)).all())
    if model.path.source is None:
        assert bool(torch.isfinite(sdegen.log_prob(model, X, sdegen.Adams(4), u=up)).all())


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("name", PATHS)
def test_the_named_pair_is_accepted_and_solves(name, predicts):
    """For every path and prediction: either the whole path is followed, or the advice is, which moves singular ends
    alone and by a thousandth."""
    path = PATHS[name]
    model = sdegen.ScoreModel(lambda x, t: 0.1 * x, path, predicts)
    try:
        both_ways(model)
    except ValueError as error:
        said = str(error)
    else:
        assert (name, predicts) not in SINGULAR
        return
    assert re.match(r"The model is to be queried at u = \S+, where .* is singular for ", said)
    down, up = advice(said)
    for inside, end in zip(up, path.ends, strict=True):
        assert inside == end or abs(inside - end) == pytest.approx(1e-3)
    assert up != path.ends
    both_ways(model, down, up)
    sdegen.sample(model, (3, 2), sdegen.StochasticAdams(4), u=down, x_T=X)
    sdegen.sample(model, (3, 2), sdegen.SDESolver("heun", 4, eta=0.5), u=down, x_T=X)


@pytest.mark.parametrize(
    ("path", "predicts", "pair"),
    [
        (sdegen.CondOT(), "eps", (0.999, 0.0)),
        (sdegen.CosineVPSDE(), "score", (0.999, 0.0)),
        (sdegen.CondOT(), "data", (1.0, 0.001)),
        (sdegen.VPSDE(), "velocity", (sdegen.VPSDE().ends[1], 0.001)),
        (sdegen.VPSDE(), "data", (sdegen.VPSDE().ends[1], 0.001)),
    ],
)
def test_the_numbers_are_exact(path, predicts, pair):
    model = sdegen.ScoreModel(lambda x, t: 0.1 * x, path, predicts)
    with pytest.raises(ValueError, match="singular") as error:
        sdegen.solve(model, X, sdegen.ODESolver("heun2", steps=3))
    assert advice(str(error.value))[0] == pair


def test_a_moved_and_a_wrapped_model_is_advised_too():
    """Within the clocks of the network; where these end first, that is said first, and each advice leads on."""

    class Same(sdegen.Wrapped):
        def change(self, D, y, u, r, t, cond):
            return D(y, cond=cond)

    inner = sdegen.ScoreModel(lambda x, t: 0.1 * x, sdegen.VPSDE(), "velocity")
    for model in (Same(inner), Same(inner).on(sdegen.CondOT()), inner.on(sdegen.CondOT())):
        top = sdegen.VPSDE().ends[1]
        with pytest.raises(ValueError, match=r"queried at u = 0, where .* has no finite coefficients") as error:
            sdegen.solve(model, X, sdegen.ODESolver("heun2", steps=3), u=(top, 0.0))
        assert advice(str(error.value)) == ((top, 0.001), (0.001, top))
        both_ways(model, *advice(str(error.value)))


def test_a_model_whose_clocks_end_inside_says_so():
    """As guidance does, which divides by 1 - u: no word of training there."""

    class Inside(sdegen.Wrapped):
        @property
        def clocks(self):
            return 0.0, 0.999

        def change(self, D, y, u, r, t, cond):
            return D(y, cond=cond)

    model = Inside(sdegen.ScoreModel(lambda x, t: 0.1 * x, sdegen.CondOT(), "eps"))
    said = r"^The model answers between the clocks u = 0.0 and 0.999, .* u = 1.0 to 0.0; u=\(0.999, 0.0\) stays inside"
    with pytest.raises(ValueError, match=said):
        sdegen.sample(model, (3, 2), sdegen.DDIM(3))
    sdegen.sample(model, (3, 2), sdegen.DDIM(3), u=(0.999, 0.0))
    with pytest.raises(ValueError, match=r"u=\(0.0, 0.999\) stays inside"):
        sdegen.encode(model, X, sdegen.Adams(3))
    sdegen.encode(model, X, sdegen.Adams(3), u=(0.0, 0.999))
