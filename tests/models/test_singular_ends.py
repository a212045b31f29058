"""A query that has no answer says so: at an end where what is asked for, or what the network gives, is infinite."""

from __future__ import annotations

import pytest
import torch
from problems import ring
from torch import nn

import sdegen

X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))


def network(predicts: str, path: sdegen.GaussianPath) -> sdegen.ScoreModel:
    return sdegen.ScoreModel(lambda x, t: 0.1 * x, path, predicts)


@pytest.mark.parametrize(
    ("path", "predicts", "asked", "t"),
    [
        (sdegen.VPSDE(), "eps", "score", 0.0),
        (sdegen.VPSDE(), "v", "score", 0.0),
        (sdegen.VPSDE(), "eps", "velocity", 0.0),
        (sdegen.DDPM.linear(10, 1e-3, 0.2), "eps", "velocity", 0.0),
        (sdegen.CosineVPSDE(), "v", "velocity", 0.0),
        (sdegen.CondOT(), "eps", "data", 0.0),
        (sdegen.VPSDE(), "data", "eps", 0.0),
        (sdegen.Trigonometric(), "eps", "v", 0.0),
    ],
)
def test_at_a_singular_end_the_number_is_refused(path, predicts, asked, t):
    with pytest.raises(ValueError, match=r"infinite at t = 0|singular for|queried at u"):
        getattr(network(predicts, path), asked)(X, t)
    inside = path.t_data + 0.5 * (path.t_noise - path.t_data)
    assert bool(torch.isfinite(getattr(network(predicts, path), asked)(X, inside)).all())


def test_one_sample_at_the_end_is_enough():
    with pytest.raises(ValueError, match="infinite at t = 0"):
        network("eps", sdegen.VPSDE()).score(X, torch.tensor([0.5, 0.0, 0.9]))


def test_what_is_finite_at_the_ends_is_answered():
    """The closed forms of the end table: eps = the network's at clean data, data = x there, v everywhere."""
    vp, ot = sdegen.VPSDE(), sdegen.CondOT()
    torch.testing.assert_close(network("eps", vp).data(X, 0.0), X)
    torch.testing.assert_close(network("v", ot).data(X, 0.0), -0.1 * X)
    torch.testing.assert_close(network("v", ot).eps(X, 0.0), X)
    torch.testing.assert_close(network("score", vp).eps(X, 0.0), 0 * X)
    exact = ring().model(vp)
    torch.testing.assert_close(exact.score(X, 0.0), exact.score(X, 1e-12), rtol=1e-6, atol=1e-6)


def test_a_batch_that_is_none_is_refused():
    model = network("eps", sdegen.VPSDE())
    for call in (model, model.eps, model.data):
        with pytest.raises(TypeError, match="list"):
            call([[1.0, 2.0]], 0.5)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        model(torch.zeros(2), 0.5)
    assert model(nn.Parameter(X), 0.5).shape == X.shape
