"""What `change` is handed, whose variance a wrapped model answers with, and what a model that was moved has left."""

from __future__ import annotations

import pytest
import torch

import sdegen

CHAIN = sdegen.DDPM.linear(6, 0.05, 0.4)


@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.VESDE(), CHAIN, sdegen.CondOT(0.01)], ids=repr)
def test_scale_and_time_are_those_of_the_clock(path):
    seen = []

    class Looking(sdegen.Wrapped):
        def change(self, D, y, u, r, t, cond):
            seen.append((u, r, t))
            return D(y, cond=cond)

    model = Looking(sdegen.ScoreModel(lambda x, t: torch.tanh(x), path, "v"))
    model.data(torch.randn(3, 2), path.at(torch.tensor([0.2, 0.5, 0.9])))
    sdegen.solve(model, torch.randn(3, 2), sdegen.ODESolver("euler", steps=2))
    assert len(seen) == 3
    for u, r, t in seen:
        torch.testing.assert_close((1 - u) * r, path.alpha(t), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(u * r, path.sigma(t), rtol=1e-12, atol=1e-12)


def learned(x, t, label):
    """Its mean and its variance both depend on the label."""
    return torch.cat([torch.tanh(x + label[:, None]), torch.sin(x * label[:, None])], 1)


@pytest.mark.parametrize("calls", [1, 2])
def test_the_learned_variance_is_that_of_the_first_answer(calls):
    """Unguided in the mean, so that it is the inner model's own: asked with the other label at once, or after."""

    class Guided(sdegen.Wrapped):
        def change(self, D, y, u, r, t, cond):
            other = {"label": -cond["label"]}
            if calls == 1:
                return D(torch.cat([y, y]), cond={"label": torch.cat([cond["label"], other["label"]])})[: len(y)]
            given = D(y, cond=cond)
            D(y, cond=other)
            return given

    inner = sdegen.ScoreModel(learned, CHAIN, learns_variance=True)
    x, noise, cond = torch.randn(3, 2), torch.randn(6, 3, 2), {"label": torch.tensor([0.5, 1.0, 2.0])}
    solver = sdegen.Ancestral(variance="learned")
    ours, own = (sdegen.solve(m, x, solver, noise=noise, cond=cond).x for m in (Guided(inner), inner))
    torch.testing.assert_close(ours, own, rtol=1e-12, atol=1e-12)


def test_a_model_that_was_moved_leaves_its_variance_behind():
    moved = sdegen.ScoreModel(learned, CHAIN, learns_variance=True).on(sdegen.VPSDE())
    assert not moved.learns_variance
    with pytest.raises(ValueError, match="needs a network that gives it"):
        sdegen.sample(moved, (2, 2), sdegen.Ancestral(3, variance="learned"), u=(0.5, 0.3), x_T=torch.zeros(2, 2))


@pytest.mark.parametrize("predicts", ["velocity", "eps"])
def test_pairs_have_no_score_to_ask_for(predicts):
    model = sdegen.ScoreModel(lambda x, t: x, sdegen.Interpolant(sdegen.CondOT()), predicts)
    with pytest.raises(ValueError, match="This query needs the score, and this model was trained on pairs"):
        model.score(torch.randn(2, 2), 0.5)
