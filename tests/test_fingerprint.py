"""Fingerprints: equal for what is equal, in any process, used or not; different wherever the numbers would be."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from problems import PATHS, ring
from torch import nn

import sdegen
from sdegen._fingerprint import fingerprint

SCALE = 2.0


class Scaled(nn.Module):
    """A network with a setting of its own, and a private memory."""

    def __init__(self, scale: float, dropout: float = 0.1):
        super().__init__()
        self.scale, self._last = scale, None
        self.layers = nn.Sequential(nn.Linear(2, 2, dtype=torch.float64), nn.Dropout(dropout))
        self.layers[0].weight.data = torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64)
        self.layers[0].bias.data = torch.tensor([0.5, -0.6], dtype=torch.float64)
        self.register_buffer("shift", torch.zeros(2, dtype=torch.float64), persistent=False)

    def forward(self, x, t):
        self._last = x
        return self.scale * self.layers(x) + self.shift


NET = Scaled(1.0)


class Half(sdegen.Wrapped):
    def __init__(self, model, by=0.5):
        super().__init__(model)
        self.by = by

    def change(self, D, y, u, r, t, cond):
        return self.by * D(y, cond=cond)


def scaled_by(factor):
    return lambda x, t: factor * NET(x, t)


def named(x, t):
    return SCALE * NET(x, t)


def touched(model: nn.Module, change) -> nn.Module:
    model = copy.deepcopy(model)
    change(model)
    return model


def model(net=None, path=None, **options):
    return sdegen.ScoreModel(Scaled(2.0) if net is None else net, sdegen.VPSDE() if path is None else path, **options)


F64 = torch.float64
DIFFERENT = {
    "numbers": [1, 1.0, True, "1", b"1", None, 1e-300, -0.0, 0.0, 1j, [1], (1,), {1}, {1: 1}, {"1": 1}, float("nan")],
    "nested": [[1, [2]], [[1], 2], [1, 2], [[1, 2]], {"a": 1, "b": 2}, {"a": 2, "b": 1}, [[], []], [[[]]]],
    "tensors": [
        torch.zeros(4, dtype=torch.float32), torch.zeros(4, dtype=F64), torch.zeros(2, 2),
        torch.zeros(2, dtype=torch.bfloat16), torch.zeros(0), torch.zeros(0, 3), torch.tensor(0.0),
        torch.tensor(1e-300, dtype=F64),
        torch.zeros(8, dtype=torch.bool), np.zeros(4), torch.zeros(4, dtype=torch.complex64), torch.zeros(2000),
        torch.cat([torch.zeros(1000), torch.full((1,), 1e-9), torch.zeros(999)]),
    ],
    "models": [
        model(), model(predicts="v"), model(path=sdegen.VPSDE(0.1, 19.0)), model(path=sdegen.CosineVPSDE()),
        model(Scaled(3.0)), model(Scaled(2.0, 0.2)), model(time=lambda t: t), model(time=lambda t: 2 * t),
        touched(model(), lambda m: m.net.layers[0].weight.data[0, 0].mul_(1 + 1e-15)),
        touched(model(), lambda m: m.net.shift.add_(1)),
        touched(model(), lambda m: m.net.register_forward_hook(lambda *_: None)),
        model(Scaled(2.0).float()), model().on(sdegen.CondOT()), Half(model()), Half(model(), 0.4),
        ring().model(sdegen.VPSDE()), ring(std=0.11).model(sdegen.VPSDE()),
    ],
    "functions": [
        model(scaled_by(2.0)), model(scaled_by(3.0)), model(named), model(lambda x, t: torch.sin(x)),
        model(lambda x, t: torch.cos(x)), model(functools.partial(named, t=0.5)),
        model(functools.partial(named, t=0.6)),
        lambda x, t: (lambda z: 2 * z)(x), lambda x, t: (lambda z: 3 * z)(x), torch.sin, torch.cos,
        np.sin, np.cos, NET.forward, functools.lru_cache(named), nn.functional.relu, nn.Linear,
    ],
    "solvers": [
        sdegen.ODESolver("rk4", steps=4), sdegen.ODESolver("rk4", steps=5), sdegen.ODESolver("dopri8"),
        sdegen.ODESolver("rk4", steps=4, grid=sdegen.PowerGrid(2)), sdegen.Adams(4), sdegen.Adams(4, order=2),
        sdegen.ODESolver("rk4", steps=2, grid=torch.tensor([1, 0.5, 0], dtype=F64)), sdegen.Hutchinson(1),
        sdegen.Hutchinson(2),
        sdegen.ODESolver("rk4", steps=2, grid=torch.tensor([1, 0.5 + 1e-12, 0], dtype=F64)),
    ],
    "objects": [SimpleNamespace(a=1), SimpleNamespace(a=2), threading.Lock(), sdegen.Shared(1), sdegen.Shared([1])],
}  # fmt: skip


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_gives_other_numbers_has_another_fingerprint(kind):
    found = [fingerprint(value) for value in DIFFERENT[kind]]
    assert len(set(found)) == len(found), [i for i, f in enumerate(found) if found.count(f) > 1]
    assert [fingerprint(value) for value in DIFFERENT[kind]] == found


@pytest.mark.parametrize("kind", ["nested", "tensors", "solvers"])
def test_a_pickled_copy_has_the_same_one(kind):
    for value in DIFFERENT[kind]:
        assert fingerprint(pickle.loads(pickle.dumps(value))) == fingerprint(value)


@pytest.mark.parametrize("name", PATHS)
def test_it_is_the_same_after_use(name):
    """What is remembered, cast or counted along the way does not belong to a model."""
    solver, x = sdegen.ODESolver("rk4", steps=2), ring().sample(4)
    for used in (
        ring().model(PATHS[name]),
        model(Scaled(2.0), PATHS[name]).eval(),
        model(path=PATHS[name]).on(PATHS[name]),
    ):
        before = fingerprint([used, solver])
        ends = [end + d for end, d in zip(used.path.ends, (0.1, -0.1), strict=True)]
        sdegen.log_prob(used, x, solver, u=tuple(ends))
        sdegen.loss(used, x) if isinstance(used, sdegen.ScoreModel) else used.v(x, used.path.t_data)
        assert fingerprint([used.train(), solver]) == before


def test_gradients_strides_and_sharing_do_not_count():
    x = torch.randn(3, 4)
    for other in (x.clone().requires_grad_(), x.T.contiguous().T, x.clone()):
        assert fingerprint(other) == fingerprint(x)
    assert fingerprint([x, x]) == fingerprint([x, x.clone()])
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"z", "a", "b"}) == fingerprint({"b", "z", "a"})
    assert fingerprint(np.float64(0.5)) == fingerprint(0.5)


def test_a_value_that_holds_itself_has_one():
    loop = []
    loop.append(loop)
    net = Scaled(1.0)
    net.itself = [net]
    assert fingerprint(loop) != fingerprint(net)
    assert fingerprint(net) == fingerprint(copy.deepcopy(net))


def test_a_compiled_network_is_told_from_a_plain_one_and_not_walked():
    net = Scaled(2.0)
    compiled = torch.compile(net, backend="eager")
    assert fingerprint(compiled) == fingerprint(torch.compile(copy.deepcopy(net), backend="eager"))
    assert fingerprint(compiled) != fingerprint(net)
    assert fingerprint(torch.compile(scaled_by(2.0), backend="eager")) == fingerprint(scaled_by(2.0))
    assert fingerprint(torch.compile(scaled_by(3.0), backend="eager")) != fingerprint(scaled_by(2.0))


IN_ANOTHER_PROCESS = """
import sys; sys.path.insert(0, sys.argv[1])
import torch; torch.set_default_dtype(torch.float64)
import test_fingerprint as t
print(t.everything())
"""


def everything() -> str:
    nets = [model(scaled_by(3)), model(named), model(), model(functools.partial(named, t=1)), Half(model(), 0.4)]
    return fingerprint([nets, [ring().model(path) for path in PATHS.values()], DIFFERENT["solvers"], {"a", "b", "c"}])


def test_another_process_finds_the_same_ones():
    code = [sys.executable, "-W", "ignore", "-c", IN_ANOTHER_PROCESS, __file__.rpartition("/")[0]]
    assert subprocess.run(code, check=True, capture_output=True, text=True).stdout.strip() == everything()
