"""What the weights of a `ScoreModel` were trained to be: its prediction and its path, in words and numbers.

Weights alone do not say what they answer, and those of one prediction fit the network of every other. So `state_dict`
carries beside them what the model predicts, the sigma_data of its scalings and its path at ten times t,

    t = t_data + f (t_noise - t_data)       f = 0, 1 and the fractional parts of j 0.618..., j = 1 ... 8

by alpha(t) and sigma(t): numbers are the same in every process, which the repr of a user's own path is not, and two
paths that agree in them are one path to a network, whatever their classes are called.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import MethodType
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sdegen._fingerprint import fingerprint
from sdegen.models.preconditioned import Preconditioned
from sdegen.paths.chain import DDPM
from sdegen.paths.consistency import values
from sdegen.paths.gaussian import GaussianPath

FRACTIONS = (0.0, 1.0, *(j * (math.sqrt(5) - 1) / 2 % 1 for j in range(1, 9)))
CLOSE = 1e-6
"""Relative, and absolute below one: what another machine's exp and cos, or a table in float32, may change."""

Portrait = dict[str, object]
"""What JSON holds."""
SCHEMA = 1
"""Of what stands in a state; one with more in it is refused by those that do not know it."""
LENGTH = 2048
"""Characters of a state, or a multiple: longer than any of today's, so that one can be copied over another."""
CURVES = ("t", "alpha", "sigma")
SOURCE = ("source", "source_size", "source_digest")
PATH_KEYS = frozenset({"path", "score", *SOURCE, *CURVES})
KEYS = frozenset({"schema", "predicts", "learns_variance", "time", "standardize", "sigma_data", "path"})


def times(path: GaussianPath) -> Tensor:
    """The ten times at which paths are compared, (10,) in float64 on the CPU."""
    moments = [path.t_data + f * (path.t_noise - path.t_data) for f in FRACTIONS]
    return torch.tensor(moments, dtype=torch.float64, device="cpu")


def portrait(path: GaussianPath, device: torch.device | None = None) -> Portrait:
    """A path in words, for messages, and in numbers, for comparing: t, alpha and sigma, and what its source is.

    It is asked on the CPU or, if it cannot answer there, on `device`; without numbers, and for an nn.Module, whose
    numbers are weights and in the state too, the class of its source alone is compared.
    """
    words = repr(path)
    plain = len(words) <= 200 and "\n" not in words and " at 0x" not in words
    source = None if path.source is None else type(path.source).__name__
    known: Portrait = {"path": words if plain else type(path).__name__, "score": path.has_score, "source": source}
    if isinstance(path, nn.Module):
        return known
    curves = _curves(path, torch.device("cpu"), *(() if device is None else (device,)))
    return {**known, **_inside(path.source), **curves}


def _inside(source: object) -> Portrait:
    """The size of a source's events, where it says one, and the digest of its networks' weights, where it has any.

    They are read in single precision, so that a copy in double is the same one.
    """
    size = getattr(source, "event_size", None)
    known: Portrait = {"source_size": size} if type(size) is int else {}
    held = [source] if isinstance(source, nn.Module) else getattr(source, "__dict__", {}).values()
    networks = [value for value in held if isinstance(value, nn.Module)]
    weights = [value for net in networks for value in net.state_dict().values() if isinstance(value, Tensor)]
    if not weights or any(value.is_meta or is_lazy(value) for value in weights):
        return known
    single = [value.detach().cpu() for value in weights]
    single = [value.float() if value.is_floating_point() else value for value in single]
    return {**known, "source_digest": fingerprint(single)}


def _curves(path: GaussianPath, device: torch.device, *others: torch.device) -> Portrait:
    """t, alpha and sigma as lists, by the first of the devices on which the path answers; nothing if on none."""
    t = times(path)
    try:
        with torch.no_grad():
            asked = t.to(device)
            found = (t, values(path, "alpha", asked), values(path, "sigma", asked))
            return {name: curve.tolist() for name, curve in zip(CURVES, found, strict=True)}
    except (RuntimeError, TypeError):  # devices are mixed, NumPy knows none, or there is no float64
        return _curves(path, *others) if others else {}


def kind_of_time(path: GaussianPath, time: Callable[[Tensor], object] | None) -> str:
    """What stands between the path's time and the network: "none", the path's own "index", or "own", the user's."""
    if time is None:
        return "none"
    if isinstance(time, MethodType) and time.__name__ == "index":
        owner = time.__self__
        if owner is path or (isinstance(owner, DDPM) and isinstance(path, DDPM) and owner == path):
            return "index"
    return "own"


class Trained(Protocol):
    """What decides what weights answer: a `ScoreModel`."""

    net: Callable[..., Tensor]
    predicts: str
    learns_variance: bool
    path: GaussianPath
    time: Callable[[Tensor], Tensor] | None

    @property
    def standardize(self) -> nn.Module | None:
        """The units of the data."""


def identity(model: Trained) -> Portrait:
    """All that decides what the weights of a model answer, in words and numbers."""
    net = model.net if isinstance(model.net, nn.Module) else nn.Module()
    scales = [repr(module.sigma_data) for module in net.modules() if isinstance(module, Preconditioned)]
    return {
        "predicts": model.predicts,
        "learns_variance": model.learns_variance,
        "time": kind_of_time(model.path, model.time),
        "standardize": model.standardize is not None,
        "sigma_data": ", ".join(scales) or "none",
        "path": portrait(model.path, next((weight.device for weight in net.parameters()), None)),
    }


def differences(there: Portrait, here: Portrait) -> list[str]:
    """What differs between two identities, in words, of what both of them know.

    One `time=` is as good as another, which nobody can compare.
    """
    pairs = {name: [there[name], here[name]] for name in here if name in there and name != "path"}
    if "time" in pairs:
        pairs["time"] = ["none" if kind == "none" else "a callable" for kind in pairs["time"]]
    found = [f"{name} ({a} there, {b} here)" for name, (a, b) in pairs.items() if a != b]
    path = path_difference(*(cast(Portrait, known.get("path", {})) for known in (there, here)))
    return found if path is None else [*found, f"path ({path})"]


def path_difference(there: Portrait, here: Portrait) -> str | None:
    """How two portraits of paths differ, in words; None if they do not."""
    names = f"{there.get('path', 'a path')} there, {here.get('path', 'a path')} here"
    if any(there[name] != here[name] for name in ("score", "source") if name in there and name in here):
        return f"{names}: their sources"
    if any(there[name] != here[name] for name in SOURCE if name in there and name in here):
        return f"{names}: the numbers of their sources, such as the weights of a flow"
    for name in CURVES:
        curves = (cast("list[float]", known.get(name, [])) for known in (there, here))
        for f, a, b in zip(FRACTIONS, *curves, strict=False):  # nothing to compare where either has none
            if not math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE):
                return f"{names}: {name} is {a:g} there and {b:g} here, {f:.3g} of the way to the noise"
    return None


def as_tensor(known: Portrait) -> Tensor:
    """JSON in bytes for the state of a module: whole numbers in float32, (2048,) or a multiple, on the CPU.

    They are numbers like weights, so that averages of states and a change of dtype leave them what they are.
    """
    text = json.dumps({"schema": SCHEMA, **known}).encode()
    return torch.tensor(list(text + b" " * (-len(text) % LENGTH)), dtype=torch.float32, device="cpu")


def from_tensor(state: object) -> Portrait:
    """The inverse of `as_tensor`, whatever dtype the numbers have by now; a ValueError for anything else."""
    try:
        known = json.loads(bytes(round(byte) for byte in cast(Tensor, state).tolist()))
        path, schema = known.get("path", {}), int(known.get("schema", SCHEMA))
        unknown = sorted({*known.keys() - KEYS, *path.keys() - PATH_KEYS})
        if not known["predicts"] or not all(math.isfinite(n) for name in CURVES for n in path.get(name, [])):
            raise ValueError(f"not of a model: {known}")
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            "The '_extra_state' of a ScoreModel is not what state_dict() wrote, the model's settings in characters: "
            "leave it as it is, or delete it to load the weights unseen."
        ) from error
    if schema > SCHEMA or unknown:
        words = f"in schema {schema}" if schema > SCHEMA else f"with {', '.join(map(repr, unknown))}"
        raise ValueError(f"This state was written by a later sdegen, {words}, which this one does not know: update it.")
    return cast(Portrait, known)
