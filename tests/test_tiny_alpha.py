"""A network asked where alpha is tiny multiplies its errors a thousand times: the verbs name what stays inside."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from problems import PATHS, ring

import sdegen

COSINE = sdegen.DDPM.cosine(1000)
X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LIKELIHOOD = sdegen.Adams(12)


def network(path=COSINE, predicts: str = "eps") -> sdegen.ScoreModel:
    return sdegen.ScoreModel(lambda x, t: 0.1 * x, path, predicts)


VERBS = {
    "sample": lambda m, **kept: sdegen.sample(m, (3, 2), sdegen.DDIM(4), **kept),
    "solve": lambda m, **kept: sdegen.solve(m, X, sdegen.DDIM(4), **kept),
    "decode": lambda m, **kept: sdegen.decode(m, X, sdegen.Adams(4), **kept),
    "log_likelihood": lambda m, **kept: sdegen.log_likelihood(m, X, LIKELIHOOD, **kept),
    "log_prob": lambda m, **kept: sdegen.log_prob(m, X, LIKELIHOOD, **kept),
}


@pytest.mark.parametrize("predicts", ["eps", "score"])
@pytest.mark.parametrize("name", VERBS)
def test_it_names_the_factor_and_the_pair_that_stays_inside(name, predicts):
    """In the verb's own direction; the pair is taken, and then nothing is said. It points at the user's line."""
    verb, high = VERBS[name], COSINE.ends[1]
    with pytest.warns(sdegen.AccuracyWarning, match="may explode") as caught:
        verb(network(predicts=predicts))
    (said,) = caught
    assert said.filename == __file__
    text = str(said.message)
    assert f"multiplied by {1 / (1 - high):.3g}: " in text
    assert f"alpha/sigma is {(1 - high) / high:.2g}, " in text
    assert "sdegen.Clipped(model, low, high)" in text
    pair = tuple(float(end) for end in re.search(r"u=\((\S+), (\S+)\)", text).groups())
    assert pair == ((0.0, 0.999) if name.startswith("log") else (0.999, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verb(network(predicts=predicts), u=pair)


@pytest.mark.parametrize("u", [(0.9995, 0.3), (0.9995, 0.0)])
def test_it_is_about_the_part_that_is_followed(u):
    with pytest.warns(sdegen.AccuracyWarning, match=rf"u = 0.9995 .*multiplied by 2e\+03.*u=\(0.999, {u[1]}\)"):
        sdegen.solve(network(), X, sdegen.DDIM(4), u=u)
    sdegen.solve(network(), X, sdegen.DDIM(4), u=(0.999, u[1]))


def test_a_part_that_lies_there_altogether_has_no_pair():
    with pytest.warns(sdegen.AccuracyWarning, match=r"Stay below u = 0.999, or give the model as sdegen.Clipped"):
        sdegen.solve(network(), X, sdegen.DDIM(4), u=(0.9999, 0.9995))


def test_a_moved_and_a_wrapped_model_has_the_factor_of_its_network():
    class Same(sdegen.Wrapped):
        def change(self, D, y, u, r, t, cond):
            return D(y, cond=cond)

    for model in (network(sdegen.VESDE(0.01, 5000.0)).on(sdegen.CondOT()), Same(network())):
        with pytest.warns(sdegen.AccuracyWarning, match=r"u=\(0.999, 0.1\)"):
            sdegen.solve(model, X, sdegen.DDIM(4), u=(min(model.clocks[1], model.path.ends[1]), 0.1))


@pytest.mark.parametrize("name", VERBS)
def test_where_nothing_can_explode_nothing_is_said(name):
    """A prediction without a large factor, exact models, clipped ones, VP, whose eps network has 153."""
    for model in (
        network(predicts="v"),
        network(predicts="data"),
        ring().model(COSINE),
        sdegen.Clipped(network(), -1, 1),
    ):
        if not (model.predicts == "data" and name.startswith("log")):  # which is asked at u = 0
            VERBS[name](model)
    VERBS[name](network(sdegen.VPSDE()))
    VERBS[name](network(sdegen.VESDE()))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("predicts", ["eps", "data", "v", "velocity"])
def test_no_path_of_ours_but_a_cosine_chain_is_warned_of(path, predicts):
    """An end with an infinite factor is refused, and that is enough; clean data are not meant."""
    try:
        sdegen.sample(network(path, predicts), (3, 2), sdegen.Adams(4))
    except ValueError as error:
        assert "singular" in str(error)  # noqa: PT017  # either is right


def test_the_factor_decides():
    """Above 1000 it is told; a factor of clean data is not meant."""

    class Factor(sdegen.Wrapped):
        factor = 990.0

        def gain(self, u):
            return torch.full_like(u, self.factor)

        def change(self, D, y, u, r, t, cond):
            return D(y, cond=cond)

    model = Factor(network(predicts="v"))
    sdegen.solve(model, X, sdegen.DDIM(4))
    model.factor = 1010.0
    with pytest.warns(sdegen.AccuracyWarning, match=r"multiplied by 1.01e\+03"):
        sdegen.solve(model, X, sdegen.DDIM(4))
    sdegen.solve(network(predicts="data"), X, sdegen.DDIM(4), u=(0.0005, 0.0))


def test_towards_noise_samples_are_not_warned_of():
    """They only arrive there."""
    sdegen.encode(network(), X, sdegen.Adams(4))
    sdegen.solve(network(), X, sdegen.Adams(4), to="noise")


def test_a_grid_with_ends_of_its_own_is_not_told_to_take_others():
    grid = COSINE.respaced(5, "trailing")
    with pytest.warns(sdegen.AccuracyWarning, match=r"densities be off. Stay below u = 0.999, or give the model as"):
        sdegen.solve(network(), X, sdegen.DDIM(grid=grid))
