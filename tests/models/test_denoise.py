"""`Model.denoise`: the data and the noise behind x_t by one network call, finite wherever the slope is."""

from __future__ import annotations

import pytest
import torch
from problems import PATHS, ring
from torch import nn

import sdegen

X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PREDICTIONS = ("eps", "score", "data", "velocity", "v")


class Net(nn.Module):
    """A smooth field that counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, t, shift=0.0):
        self.calls += 1
        return torch.sin(1.3 * x) + 0.4 * x + t.reshape(-1, *[1] * (x.ndim - 1)) + shift


class Doubled(sdegen.Wrapped):
    def change(self, D, y, u, r, t, cond):
        return 2 * D(y, cond=cond)


def models(path) -> dict[str, sdegen.Model]:
    """Every kind of model on a path."""
    nets = {name: sdegen.ScoreModel(Net(), path, name) for name in PREDICTIONS}
    moved = sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v").on(path)
    return {**nets, "exact": ring().model(path), "on path": moved, "wrapped": Doubled(nets["v"])}


def times(path, *fractions: float) -> torch.Tensor:
    """The path's time so far from the data."""
    return path.t_data + (path.t_noise - path.t_data) * torch.tensor(fractions, dtype=torch.float64)


@pytest.mark.parametrize("name", PATHS)
def test_it_is_data_and_eps(name):
    """On every path, for every model, at one time for all and at one per sample."""
    path = PATHS[name]
    for kind, model in models(path).items():
        for t in (times(path, 0.4)[0], times(path, 0.1, 0.3, 0.5, 0.7, 0.8)):
            if kind == "on path":  # where both paths are: VP does not reach VE's lowest clocks nor CondOT's highest
                low, high = (max(path.ends[0], 0.05), min(path.ends[1], 0.95))
                t = path.time(low + (high - low) * path.clock(t).clamp(0, 1))
            x_hat, eps_hat = model.denoise(X, t)
            digits = 1e-12 * (1 + float(x_hat.abs().max()))  # up to 3e5 on EDM, where x_t is small
            torch.testing.assert_close(x_hat, model.data(X, t), rtol=digits, atol=digits)
            torch.testing.assert_close(eps_hat, model.eps(X, t), rtol=digits, atol=digits)
            alpha, sigma = (torch.as_tensor(n).reshape(-1, 1) for n in (path.alpha(t), path.sigma(t)))
            torch.testing.assert_close(alpha * x_hat + sigma * eps_hat, X, rtol=digits, atol=digits)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_one_network_call(predicts):
    model = sdegen.ScoreModel(Net(), sdegen.VPSDE(), predicts)
    for asked in (model, Doubled(model), model.on(sdegen.Trigonometric())):
        model.net.calls = 0
        asked.denoise(X, 0.5, {"shift": torch.ones(5, 1, dtype=torch.float64)})
        assert model.net.calls == 1
    shifted, plain = (model.denoise(X, 0.5, cond)[0] for cond in ({"shift": 1.0}, None))
    assert not torch.allclose(shifted, plain)


def test_it_is_finite_where_the_slope_is():
    """An eps network at clean data, a data network at pure noise: the network's own answer, and x_t itself."""
    eps = sdegen.ScoreModel(Net(), sdegen.CondOT(), "eps")
    x_hat, eps_hat = eps.denoise(X, 1.0)
    torch.testing.assert_close(x_hat, X, rtol=0, atol=0)
    torch.testing.assert_close(eps_hat, eps(X, 1.0), rtol=1e-15, atol=1e-15)
    data = sdegen.ScoreModel(Net(), sdegen.CondOT(), "data")
    x_hat, eps_hat = data.denoise(X, 0.0)
    torch.testing.assert_close(x_hat, data(X, 0.0), rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(eps_hat, X, rtol=0, atol=0)
    for predicts in ("eps", "score", "v"):  # of VP both ends
        model = sdegen.ScoreModel(Net(), sdegen.VPSDE(), predicts)
        for t in (0.0, 1.0):
            assert all(bool(torch.isfinite(hat).all()) for hat in model.denoise(X, t))


@pytest.mark.parametrize(
    ("path", "predicts", "t", "u"),
    [
        (sdegen.CondOT(), "eps", 0.0, 1),
        (sdegen.Trigonometric(), "eps", 0.0, 1),
        (sdegen.CondOT(), "data", 1.0, 0),
        (sdegen.VPSDE(), "data", 0.0, 0),
        (sdegen.VPSDE(), "velocity", 0.0, 0),
    ],
)
def test_at_a_singular_end_it_is_refused(path, predicts, t, u):
    model = sdegen.ScoreModel(Net(), path, predicts)
    for at in (t, torch.tensor([0.5, 0.5, t, 0.5, 0.5], dtype=torch.float64)):
        with pytest.raises(ValueError, match=rf"queried at u = {u}, where .* is singular for '{predicts}'"):
            model.denoise(X, at)
    assert model.net.calls == 0


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        (lambda m: m.denoise([1.0], 0.5), TypeError, "x_t must be a tensor"),
        (lambda m: m.denoise(X.long(), 0.5), TypeError, "x_t must have a real floating dtype"),
        (lambda m: m.denoise(X, 1.5), ValueError, "1.5"),
        (lambda m: m.denoise(X, torch.zeros(3)), ValueError, r"\(5,\)"),
        (lambda m: m.denoise(X, 0.5, [1]), TypeError, "cond must be a mapping"),
    ],
)
def test_bad_input_is_refused_before_the_network_is_called(asked, error, says):
    model = sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v")
    with pytest.raises(error, match=says):
        asked(model)
    assert model.net.calls == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_both_come_in_the_dtype_and_shape_of_x(dtype):
    x = torch.randn(3, 1, 4, 4).to(dtype)
    model = sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v")
    for hat, alone in zip(model.denoise(x, 0.5), (model.data(x, 0.5), model.eps(x, 0.5)), strict=True):
        assert (hat.dtype, hat.shape) == (dtype, x.shape)
        torch.testing.assert_close(hat, alone, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_gradients_pass_through_it():
    x = X.clone().requires_grad_(True)
    model = sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v")
    (ours,) = torch.autograd.grad(model.denoise(x, 0.5)[0].sum(), x)
    (alone,) = torch.autograd.grad(model.data(x, 0.5).sum(), x)
    torch.testing.assert_close(ours, alone, rtol=1e-12, atol=1e-12)


def test_an_empty_batch_is_empty():
    for hat in ring().model(sdegen.VPSDE()).denoise(X[:0], 0.5):
        assert hat.shape == (0, 2)
