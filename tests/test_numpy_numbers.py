"""NumPy's numbers are numbers: a value made of them is the one made of Python's, in every respect."""

from __future__ import annotations

import dataclasses
import inspect
import math

import numpy as np
import pytest
import torch
from numbered import VALUES

import sdegen
from sdegen import _checks
from sdegen._fingerprint import fingerprint

KINDS = {
    "64 bits": (np.int64, np.float64),
    "32 bits": (np.int32, np.float32),
    "16 bits": (np.int16, np.float16),
    "unsigned": (np.uint8, np.longdouble),
    "arrays of shape ()": (np.array, np.array),
}


def rounded(value: object, kind: str) -> object:
    """A float as this kind of NumPy's holds it, a Python float again; the rest as it is."""
    return float(KINDS[kind][1](value)) if isinstance(value, float) else value


def of_numpy(value: object, kind: str) -> object:
    """The same number of NumPy's; what is no number as it is, and integers that do not fit as int64."""
    whole, real = KINDS[kind]
    if isinstance(value, int) and not isinstance(value, bool):
        return whole(value) if kind[0] == "a" or value <= np.iinfo(whole).max else np.int64(value)
    return real(value) if isinstance(value, float) else value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("make", "arguments"), VALUES, ids=lambda v: getattr(v, "__name__", None))
def test_a_value_made_of_numpys_numbers_is_the_one_made_of_pythons(make, arguments, kind):
    plain = make(**{name: rounded(value, kind) for name, value in arguments.items()})
    given = make(**{name: of_numpy(value, kind) for name, value in arguments.items()})
    assert given == plain
    assert hash(given) == hash(plain)
    assert repr(given) == repr(plain)
    assert fingerprint(given) == fingerprint(plain)
    for name, value in vars(given).items():
        assert not isinstance(value, (np.generic, np.ndarray)), name


def has_numbers(thing: object) -> bool:
    """Whether a value that a user makes has a field for a number."""
    if not (inspect.isclass(thing) and dataclasses.is_dataclass(thing) and hasattr(thing, "__post_init__")):
        return False
    if inspect.isabstract(thing):
        return False
    return any({"int", "float"} & set(str(field.type).replace("|", " ").split()) for field in dataclasses.fields(thing))


def test_every_exported_value_with_numbers_is_here():
    made = {make for make, _ in VALUES}
    exported = {thing for name in sdegen.__all__ if has_numbers(thing := getattr(sdegen, name))}
    assert {sdegen.VPSDE, sdegen.ODESolver, sdegen.PowerGrid, sdegen.Discretized} < exported
    assert exported <= made


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), np.array(3)])
def test_a_whole_number(number):
    assert type(_checks.whole("steps", number)) is int
    assert type(_checks.real("rtol", number)) is float


@pytest.mark.parametrize(
    "wrong", [True, np.bool_(True), np.array(True), np.float64(3), np.array(3.0), np.array([3]), np.timedelta64(3), "3"]
)
def test_what_is_no_whole_number_is_refused_by_its_own_name(wrong):
    with pytest.raises(TypeError, match=rf"^n must be an integer, and .* is {type(wrong).__name__}\.$"):
        _checks.whole("n", wrong)
    with pytest.raises(TypeError, match=r"^steps must be an integer, and .* is \w+\.$"):
        sdegen.SDESolver("euler", wrong)


@pytest.mark.parametrize("wrong", [np.bool_(True), np.array(False), np.complex64(1), np.ones(1), np.datetime64("2020")])
def test_what_is_no_real_number_is_refused(wrong):
    with pytest.raises(TypeError, match=rf"^p must be a real number, and .* is {type(wrong).__name__}\.$"):
        sdegen.PowerGrid(wrong)


@pytest.mark.parametrize(("wrong", "shown"), [(np.float32("nan"), "nan"), (np.float64("inf"), "inf")])
def test_numpys_nan_and_infinity_are_none(wrong, shown):
    with pytest.raises(ValueError, match=rf"^p must be a finite number in \(0, inf\), and it is {shown}\.$"):
        sdegen.PowerGrid(wrong)
    with pytest.raises(ValueError, match=r"^steps must be at least 1, and it is -1\.$"):
        sdegen.SDESolver("euler", np.int64(-1))


def test_the_verbs_take_them():
    target = sdegen.Gaussian(torch.tensor([0.5, -0.25]), 0.5)
    model, solver = target.model(sdegen.CondOT()), sdegen.ODESolver("rk4", np.int64(4))
    net = sdegen.ScoreModel(lambda x_t, t: x_t * t[:, None], sdegen.CondOT(), "velocity")
    x_T = torch.randn(3, 2)

    def outcome(whole, real):
        x = sdegen.sample(model, (whole(3), whole(2)), solver, x_T=x_T, u=(real(1.0), real(0.25)))
        z = sdegen.encode(model, x, solver, u=(real(0.25), real(1.0)))
        logp = sdegen.log_prob(model, x, solver, u=(real(0.25), real(1.0)))
        loss = sdegen.loss(net, x, t=real(0.5), noise=x_T)
        ((name, calls, _, error, _),) = sdegen.compare(model, {"Adams": sdegen.Adams}, x_T=x_T, calls=[whole(4)]).rows
        parts = [model.eps(x, real(0.5)), model.denoise(x, real(0.5))[0], model.path.alpha(real(0.5))]
        return [x, z, logp, loss, *parts], repr((name, calls, error))

    plain, table = outcome(int, float)
    for whole, real in KINDS.values():
        given, theirs = outcome(whole, real)
        assert theirs == table
        for ours, other in zip(plain, given, strict=True):
            assert torch.equal(ours, other)
            assert ours.dtype is other.dtype


def test_networks_wrappers_and_chains_take_them():
    assert sdegen.DDPM.linear(np.int64(9), np.float64(1e-3), np.float64(0.5)) == sdegen.DDPM.linear(9, 1e-3, 0.5)
    assert sdegen.DDPM.cosine(np.int64(9), s=np.float64(0.01), max_beta=np.array(0.5)) == sdegen.DDPM.cosine(
        9, s=0.01, max_beta=0.5
    )
    model = sdegen.Gaussian(torch.zeros(2), 1.0).model(sdegen.VPSDE())
    clipped = sdegen.Clipped(model, np.int64(-1), np.float32(1), quantile=np.float32(0.5), most=np.float64(math.e))
    held = [clipped.low, clipped.high, clipped.quantile, clipped.most]
    assert held == [-1.0, 1.0, 0.5, math.e]
    assert {type(number) for number in held} == {float}
