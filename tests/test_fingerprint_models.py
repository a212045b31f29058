"""Fingerprints of models: all that a model holds counts, and nothing that it learns by being asked."""

from __future__ import annotations

from functools import cached_property

import pytest
import torch
from torch import nn

import sdegen
from sdegen._fingerprint import fingerprint
from sdegen.models.masked import MASK, Masked
from sdegen.models.watched import Watched
from sdegen.models.wrapped import OnPath


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self._calls = nn.Linear(2, 2), 0

    def forward(self, x, t, c=None):
        self._calls += 1
        return torch.tanh(self.layer(x)) + (0.0 if c is None else c[:, None])


def score_model(path=None):
    torch.manual_seed(0)
    return sdegen.ScoreModel(Net(), sdegen.VPSDE() if path is None else path, "v")


class Toward(sdegen.Wrapped):
    """With a private setting of any kind."""

    def __init__(self, model, y):
        super().__init__(model)
        self._y = y

    def change(self, D, y, u, r, t, cond):  # the formula's letter
        return D(y, cond=cond) + y


def twice(y):
    return 2 * y


def thrice(y):
    return 3 * y


PRIVATE = {
    "tensor": (torch.zeros(2), torch.ones(2)),
    "int": (1, 2),
    "bool": (True, False),
    "float": (0.5, 0.6),
    "tuple": ((1, torch.zeros(2)), (1, torch.ones(2))),
    "list": ([torch.zeros(2)], [torch.ones(2)]),
    "dict": ({"a": 1}, {"a": 2}),
    "function": (twice, thrice),
    "law": (sdegen.Gaussian([0.0], 1.0), sdegen.Gaussian([0.0], 2.0)),
    "none": (None, 0),
}


@pytest.mark.parametrize("kind", PRIVATE)
def test_private_attributes_of_a_model_count(kind):
    one, other = (fingerprint(Toward(score_model(), value)) for value in PRIVATE[kind])
    assert one != other
    assert one == fingerprint(Toward(score_model(), PRIVATE[kind][0]))


@pytest.mark.parametrize("verb", ["sample_many", "evaluate"])
def test_another_models_directory_is_refused(verb, tmp_path):
    def call(value):
        model = Toward(score_model(), torch.full((2,), value))
        if verb == "evaluate":
            return sdegen.evaluate(model, torch.zeros(3, 2), solver=sdegen.Adams(4), directory=tmp_path)
        return sdegen.sample_many(model, (3, 2), sdegen.Adams(4), directory=tmp_path)

    call(0.0)
    with pytest.raises(ValueError, match=r"belongs to another computation, which differs in model \(another Toward\)"):
        call(9.0)
    call(0.0)


def weight(x, t, **cond):
    return x.sum(1)


WRAPPERS = {
    "free": lambda m: sdegen.ClassifierFree(m, 2.0, without={"c": torch.zeros(1)}, rescale=0.5),
    "guided": lambda m: sdegen.Guided(m, weight),
    "guided by data": lambda m: sdegen.Guided(m, weight, of="data"),
    "clipped": lambda m: sdegen.Clipped(m, -1.0, 1.0, quantile=0.9),
    "observed": lambda m: sdegen.Observed(m, lambda x: x[:, :1], torch.zeros(1), 0.5),
    "moved": lambda m: m.on(sdegen.CondOT()),
    "guided elsewhere": lambda m: sdegen.Guided(m, weight).on(sdegen.CondOT()),
    "own": lambda m: Toward(m, torch.zeros(2)),
    "bare": lambda m: m,
    "exact": lambda m: sdegen.GaussianMixture([[0.0, 1.0], [1.0, 0.0]], 0.5).model(m.path),
    "masked": Masked,
    "watched": Watched,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_model_that_was_asked_is_the_same_model(name):
    model = WRAPPERS[name](score_model())
    before = fingerprint(model)
    cond, u = {} if name == "exact" else {"c": torch.ones(3)}, (0.99, 0.01)
    if name == "masked":
        cond[MASK] = torch.ones(3, 2, dtype=torch.bool)
    sdegen.sample(model, (3, 2), sdegen.Adams(4), cond=cond, u=u)
    if name != "watched":  # no log-density is
        sdegen.log_prob(model, torch.zeros(3, 2), sdegen.Adams(4), cond=cond, u=u[::-1])
    assert fingerprint(model) == before


def test_every_wrapper_of_the_library_is_here():
    def heirs(kind):
        return {kind, *(heir for child in kind.__subclasses__() for heir in heirs(child))}

    ours = {
        kind for kind in heirs(sdegen.Model) if kind.__module__.startswith("sdegen.") and not kind.__abstractmethods__
    }
    assert ours == {type(make(score_model())) for name, make in WRAPPERS.items() if name != "own"}
    assert OnPath in ours


def test_a_compiled_model_and_one_with_a_cached_property_stay_themselves():
    class Remembers(Toward):
        @cached_property
        def _table(self):
            return torch.ones(2)

    model = Remembers(score_model(), 1)
    before = fingerprint(model)
    assert model._table.sum() == 2
    assert fingerprint(model) == before
    model.compile(backend="eager")
    assert fingerprint(model) == before
