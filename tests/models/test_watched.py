"""The model behind a solve's callback: x_hat read off any answer, for the whole batch and row by row."""

from __future__ import annotations

import pytest
import torch
from problems import PATHS, ring

import sdegen
from sdegen.models.watched import Watched

X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
QUESTIONS = [(-1.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.3, 0.0, 0.8), (0.2, 0.5, -0.4)]
"""(c, d, e) of slopes, of x_hat, of eps_hat, of a chain's mean, of nothing in particular."""


def full(*numbers: float) -> list[torch.Tensor]:
    return [torch.full((4,), n, dtype=torch.float64) for n in numbers]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", PATHS)
def test_every_answer_tells_the_data(name, question):
    """c x_hat + d eps_hat + e y, at one clock and at one per sample."""
    path = PATHS[name]
    net = sdegen.ScoreModel(lambda x, t: torch.sin(x) + 0.4 * x, path, "v")
    u = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    for model in (net, ring().model(path)):
        watched = Watched(model)
        plan = watched.plan(X, u, None, *full(*question))
        r = path.scale(u)
        for k, query in enumerate(plan):
            watched.estimate(X, query, {})
            expected = model.data(float(r[k]) * X, path.time(u[k]))
            torch.testing.assert_close(watched.x_hat(X), expected, rtol=1e-11, atol=1e-11)
        watched.estimate(X, plan.rows(slice(None), X), {})
        expected = model.data(r[:, None] * X, path.time(u))
        torch.testing.assert_close(watched.x_hat(X), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("question", [*QUESTIONS, (0.0, 0.0, 1.0)])
def test_clean_data_are_their_own_estimate(question):
    """Whatever was asked at u = 0, x_hat itself too: 0/0 in the formula."""
    watched = Watched(ring().model(sdegen.VPSDE()))
    plan = watched.plan(X, torch.zeros(4, dtype=torch.float64), None, *full(*question))
    for query in (plan[0], plan.rows(slice(None), X)):
        watched.estimate(X, query, {})
        assert torch.equal(watched.x_hat(X), X)


def test_rows_that_say_nothing_are_nan():
    """(1-u) x_hat + u eps_hat in two of four."""
    u = torch.tensor([0.25, 0.5, 0.5, 0.75], dtype=torch.float64)
    c, d = torch.tensor([[-1.0, 0.5, 1.0, 0.25], [1.0, 0.5, 0.0, 0.75]], dtype=torch.float64)
    model = ring().model(sdegen.CondOT())
    watched = Watched(model)
    watched.estimate(X, watched.plan(X, u, None, c, d).rows(slice(None), X), {})
    expected = model.data(X, 1 - u)  # of CondOT r = 1 and t = 1 - u
    torch.testing.assert_close(watched.x_hat(X)[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=1e-12)
    assert bool(torch.isnan(watched.x_hat(X)[[1, 3]]).all())


def test_it_is_the_model_itself():
    """Its predictions and output, its clocks, its gain, its words; on another path it is watched no more."""
    model = sdegen.ScoreModel(lambda x, t: torch.sin(x), sdegen.VPSDE(), "eps")
    watched, u = Watched(model), torch.tensor([0.2, 0.9], dtype=torch.float64)
    for ask in ("eps", "data", "score", "v"):
        assert torch.equal(getattr(watched, ask)(X, 0.4), getattr(model, ask)(X, 0.4))
    assert torch.equal(watched(X, 0.4), model(X, 0.4))
    assert torch.equal(watched.gain(u), model.gain(u))
    assert (watched.clocks, watched.has_score, watched.predicts) == (model.clocks, True, "eps")
    assert not isinstance(watched.on(sdegen.CondOT()), Watched)
    with pytest.raises(TypeError, match="'model'"):
        Watched("model")
