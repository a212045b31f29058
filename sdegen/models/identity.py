"""What the weights of a `ScoreModel` were trained to be: its prediction and its path, in words and numbers.

Weights alone do not say what they answer, and those of one prediction fit the network of every other. So `state_dict`
carries beside them what the model predicts and its path at ten times t, both ends among them,

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

from sdegen.paths.chain import DDPM
from sdegen.paths.consistency import values
from sdegen.paths.gaussian import GaussianPath

FRACTIONS = (0.0, 1.0, *(j * (math.sqrt(5) - 1) / 2 % 1 for j in range(1, 9)))
CLOSE = 1e-6
"""Relative, and absolute below one: what another machine's exp and cos, or a table in float32, may change."""

Portrait = dict[str, object]
"""What JSON holds."""


def portrait(path: GaussianPath) -> Portrait:
    """A path in words, for messages, and in numbers, for comparing: t, alpha and sigma, and the class of its source.

    A path that is an nn.Module is compared by its source alone: its numbers are weights, which the state holds too.
    """
    words = repr(path)
    plain = len(words) <= 200 and "\n" not in words and " at 0x" not in words
    source = None if path.source is None else type(path.source).__name__
    known: Portrait = {"path": words if plain else type(path).__name__, "score": path.has_score, "source": source}
    if isinstance(path, nn.Module):
        return known
    with torch.no_grad():
        t = torch.tensor(
            [path.t_data + f * (path.t_noise - path.t_data) for f in FRACTIONS], dtype=torch.float64, device="cpu"
        )
        curves = {"t": t, "alpha": values(path, "alpha", t), "sigma": values(path, "sigma", t)}
    return {**known, **{name: curve.tolist() for name, curve in curves.items()}}


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

    predicts: str
    learns_variance: bool
    path: GaussianPath
    time: Callable[[Tensor], Tensor] | None

    @property
    def standardize(self) -> nn.Module | None:
        """The units of the data."""


def identity(model: Trained) -> Portrait:
    """All that decides what the weights of a model answer, in words and numbers."""
    return {
        "predicts": model.predicts,
        "learns_variance": model.learns_variance,
        "time": kind_of_time(model.path, model.time),
        "standardize": model.standardize is not None,
        "path": portrait(model.path),
    }


def differences(there: Portrait, here: Portrait) -> list[str]:
    """What differs between two identities, in words; one `time=` is as good as another, which nobody can compare."""
    both = [{**known, "time": known["time"] if known["time"] == "none" else "a callable"} for known in (there, here)]
    pairs = {name: [known[name] for known in both] for name in there if name != "path"}
    found = [f"{name} ({a} there, {b} here)" for name, (a, b) in pairs.items() if a != b]
    path = path_difference(*(cast(Portrait, known["path"]) for known in (there, here)))
    return found if path is None else [*found, f"path ({path})"]


def path_difference(there: Portrait, here: Portrait) -> str | None:
    """How two portraits of paths differ, in words; None if they do not."""
    names = f"{there['path']} there, {here['path']} here"
    if (there["score"], there["source"]) != (here["score"], here["source"]):
        return f"{names}: their sources"
    for name in ("t", "alpha", "sigma"):
        curves = (cast("list[float]", known.get(name, [])) for known in (there, here))
        for f, a, b in zip(FRACTIONS, *curves, strict=False):  # nothing to compare where either has none
            if not math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE):
                return f"{names}: {name} is {a:g} there and {b:g} here, {f:.3g} of the way to the noise"
    return None


def as_tensor(known: Portrait) -> Tensor:
    """JSON in bytes, (n,) in uint8 on the CPU, for the state of a module."""
    return torch.tensor(list(json.dumps(known).encode()), dtype=torch.uint8, device="cpu")


def from_tensor(state: Tensor) -> Portrait:
    """The inverse of `as_tensor`, wherever the bytes were moved and whatever dtype they were cast to meanwhile."""
    return cast(Portrait, json.loads(bytes(int(byte) for byte in state.tolist())))
