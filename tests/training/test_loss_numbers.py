"""What `loss` computes is what the formula says, bit for bit, with few tensor operations and few frames."""

from __future__ import annotations

import inspect

import pytest
import torch
from problems import PATHS, OwnFlow, OwnVP
from torch.utils._python_dispatch import TorchDispatchMode

import sdegen
from sdegen.models.model import PREDICTIONS
from sdegen.paths.gaussian import Slopes

ALL = {
    **PATHS,
    "own vp": OwnVP(),
    "own flow": OwnFlow(),
    "vp, 3 to -1": sdegen.Retimed(sdegen.VPSDE(), 3.0, -1.0),
    "condot, 0 to 5": sdegen.Retimed(sdegen.CondOT(), 0.0, 5.0),
}
FROZEN = [
    ("vp", "eps", 0.8752871827717823),
    ("vp", "score", 1.7527946952351676),
    ("cosine", "v", 1.548630978218564),
    ("ve", "data", 1.2161523048918317),
    ("condot", "velocity", 2.5310721596051113),
    ("subvp", "eps", 0.8655317744566631),
]


def net(x, t):
    return torch.sin(2 * x + t[:, None])


def written_out(path, predicts, x, g):
    """The loss of each sample with nothing left out: every number of the row a tensor, uniform times, normals."""
    t = path.t_data + (path.t_noise - path.t_data) * (1 - torch.rand(len(x), generator=g, dtype=x.dtype))
    eps = torch.randn(x.shape, generator=g, dtype=x.dtype)
    alpha, sigma = path.alpha(t), path.sigma(t)
    row = PREDICTIONS[predicts](path, t, alpha, sigma)
    a, b, k = (torch.as_tensor(n, dtype=t.dtype).expand_as(t)[:, None] for n in row)
    p = net(alpha[:, None] * x + sigma[:, None] * eps, t)
    return (k * p - (a * x + b * eps)).square().mean(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("path", ALL.values(), ids=ALL.keys())
def test_the_plain_loss_is_the_formula_bit_for_bit(path, predicts, dtype):
    x = torch.randn(32, 3, dtype=dtype)
    model = sdegen.ScoreModel(net, path, predicts)
    for reduction, expected in (("none", lambda each: each), ("mean", torch.mean)):
        got = sdegen.loss(model, x, generator=torch.Generator().manual_seed(3), reduction=reduction)
        assert torch.equal(got, expected(written_out(path, predicts, x, torch.Generator().manual_seed(3))))
        assert got.dtype == dtype


@pytest.mark.parametrize(("path", "predicts", "value"), FROZEN)
def test_frozen_numbers(path, predicts, value):
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(11))
    loss = sdegen.loss(sdegen.ScoreModel(net, PATHS[path], predicts), x, generator=torch.Generator().manual_seed(12))
    assert float(loss) == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_half_precision_data_are_regressed_in_single(predicts):
    """The network sees bfloat16; times, targets and the mean are float32."""
    x = torch.randn(64, 3, dtype=torch.bfloat16)
    seen = []

    def half(x_t, t):
        seen.append((x_t.dtype, t.dtype))
        return torch.tanh(x_t)

    model = sdegen.ScoreModel(half, sdegen.VPSDE(), predicts)
    each = sdegen.loss(model, x, generator=torch.Generator().manual_seed(1), reduction="none")
    assert each.dtype == torch.float32
    assert seen[0][0] == torch.bfloat16
    assert not torch.equal(each, each.bfloat16().float())


def test_slopes_may_be_python_numbers():
    class Flow(sdegen.CondOT):
        def slopes(self, t):
            return Slopes(1.0, -1.0, -2.0 * self.sigma(t))

    x, noise = torch.randn(6, 2), torch.randn(6, 2)
    options = {"t": torch.linspace(0.1, 0.9, 6), "noise": noise}
    for weighting in (None, sdegen.MinSNR()):
        one, two = (
            sdegen.loss(sdegen.ScoreModel(net, path, "velocity"), x, weighting=weighting, **options)
            for path in (Flow(), sdegen.CondOT())
        )
        assert torch.equal(one, two)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


def by_hand(x):
    t = torch.rand(len(x))
    B = (0.1 + 9.95 * t) * t
    alpha, sigma = torch.exp(-0.5 * B)[:, None], torch.sqrt(-torch.expm1(-B))[:, None]
    eps = torch.randn_like(x)
    return (torch.tanh(alpha * x + sigma * eps) - eps).square().mean()


@pytest.mark.parametrize(("predicts", "more"), [("eps", 16), ("data", 16), ("score", 20), ("v", 24)])
def test_a_loss_makes_few_operations_more_than_one_by_hand(predicts, more):
    x = torch.randn(16, 2)
    model = sdegen.ScoreModel(lambda x, t: torch.tanh(x), sdegen.VPSDE(), predicts)
    sdegen.loss(model, x)  # the path is looked at once
    with Operations() as ours:
        sdegen.loss(model, x)
    with Operations() as hand:
        by_hand(x)
    assert hand.count + more >= ours.count


def test_three_frames_lie_between_loss_and_the_network():
    deep = []

    def counting(x, t):
        names = [frame.frame.f_globals.get("__name__", "") for frame in inspect.getouterframes(inspect.currentframe())]
        deep.append(sum(name.split(".")[0] == "sdegen" for name in names))
        return x

    sdegen.loss(sdegen.ScoreModel(counting, sdegen.VPSDE()), torch.randn(4, 2))
    assert deep[0] <= 3


def test_predict_is_the_network_s_own_output():
    path = sdegen.DDPM.linear(10)
    x, t = torch.randn(4, 2), path.clock(torch.tensor([0.1, 0.5, 0.7, 1.0]))
    for options in ({}, {"time": path.index}):
        model = sdegen.ScoreModel(net, path, "v", **options)
        assert torch.equal(model.predict(x, t, {}), model(x, t))
