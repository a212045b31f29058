"""Checkpoints: a model and the state of its training in one safetensors file, which is whole or absent.

A container (_container.py) whose manifest has

    model      what decides what the weights answer, see models/identity.py
    path       a path of sdegen by its class and arguments; null for any other, which is code
    weights    the `state_dict`, by the names it has when nothing is compiled, distributed or averaged
    state      whatever the user saves beside it

The weights stand in the file under the same names, "net." before those of the network, for other tools to read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sdegen._checks import described
from sdegen._container import Json, Packed, describing, read, refusal, unpacked, write
from sdegen.models.base import Model, instead_of_model
from sdegen.models.identity import CLOSE, Portrait, differences, identity, path_difference, portrait, times
from sdegen.models.model import ScoreModel
from sdegen.models.standardised import Standardize
from sdegen.models.weights import Weights, bare_names, fill, innermost
from sdegen.paths.chain import DDPM
from sdegen.paths.diffusions import EDM, VESDE, VPSDE, CosineVPSDE, SubVPSDE
from sdegen.paths.flows import CondOT, Interpolant, Retimed, Trigonometric
from sdegen.paths.gaussian import GaussianPath

PATHS: dict[str, type[GaussianPath]] = {
    kind.__name__: kind
    for kind in (VPSDE, SubVPSDE, VESDE, CosineVPSDE, EDM, DDPM, CondOT, Interpolant, Retimed, Trigonometric)
}
UNITS = ("_units.mean", "_units.std")
"""The names of the numbers of `Standardize` among the weights."""


def save(file: str | os.PathLike[str], model: nn.Module, **state: object) -> None:
    """Write a model, and the state of its training if given, to one safetensors file: whole or not at all.

    The file is written under another name, flushed to the disk and renamed, so that a process may be killed at any time
    and the last checkpoint is there. With the weights go the path, what the model predicts and its other settings, so
    that `load` needs only a network of the same shape; tensors are stored bit for bit and copied to the CPU.

    Args:
        file: where to write, "checkpoint.safetensors"; its folder is made if it is not there.
        model: a `ScoreModel` with an nn.Module for a network; compiled, averaged (AveragedModel) or distributed ones
            are taken out of what they are wrapped in.
        state: anything else by name, for `load_state`: nested dicts (with strings or integers as keys), lists and
            tuples of tensors, numbers, strings, bytes, bools and None, such as `optimizer.state_dict()`.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be written, such as on a full disk; what was there is still there.
        TypeError: another model, or a value of another kind, by its name.
        ValueError: a tensor that cannot be stored, by its name.

    Examples:
        >>> import tempfile, sdegen
        >>> from sdegen.nets import MLP
        >>> model = sdegen.ScoreModel(MLP(2), sdegen.CosineVPSDE(), "v")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sdegen.save(f"{folder}/model.safetensors", model, step=7)
        ...     again = sdegen.load(f"{folder}/model.safetensors", MLP(2))
        ...     print(again.path, again.predicts, sdegen.load_state(f"{folder}/model.safetensors"))
        CosineVPSDE(s=0.008) v {'step': 7}
    """
    _check_file(file)
    model, packed = _score_model(model), Packed()
    names, weights = bare_names(model), model.state_dict()
    about = {"model": identity(model), "path": _packed_path(packed, "path", model.path)}
    trees = {"weights": packed.tree("", {name: weights[own] for name, own in names.items()})}
    try:
        trees["state"] = packed.tree("state", state)
    except RecursionError as error:
        raise ValueError("The state holds itself, or is nested too deeply to be stored.") from error
    write(file, packed, {**about, **trees})


def load(
    file: str | os.PathLike[str],
    net: nn.Module,
    *,
    path: GaussianPath | None = None,
    time: Callable[[Tensor], Tensor] | None = None,
) -> ScoreModel:
    """The model that `save` wrote, around a network of yours that receives its weights.

    The file says what the network predicts and on which path; a path of your own and a `time=` are code, which no file
    holds, and are given again. The path's own `time=path.index` comes back by itself. Everything is compared before the
    network is touched, so that it stays as it was if anything is wrong.

    Args:
        file: what `save` wrote.
        net: a network with the same parameters and buffers, of the same shapes and dtypes, on any device: its weights
            are overwritten. It may be compiled or distributed, whether or not the saved one was.
        path: the path, if it is one of your own; one of sdegen's is only compared.
        time: the `time=` of the saved model, if that had one other than `path.index`, with which it is compared.

    Returns:
        The model, on `net` itself.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: safetensors is not installed.
        TypeError: a network or a path of another kind.
        ValueError: a file that is damaged, cut off, a pickle, not of sdegen or of a newer one; another network's, which
            names the first tensor that differs; a path or a `time=` that is missing, or is another.

    Examples:
        >>> import tempfile, torch, sdegen
        >>> from sdegen.nets import MLP
        >>> model = sdegen.ScoreModel(MLP(2), sdegen.VPSDE())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sdegen.save(f"{folder}/model.safetensors", model)
        ...     again = sdegen.load(f"{folder}/model.safetensors", MLP(2))
        >>> all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
        True
    """
    _check_file(file)
    _check_net(net)
    saved = _saved(file)
    if isinstance(net, AveragedModel) and "net.n_averaged" not in saved.weights:
        raise TypeError("net is an AveragedModel, and the file holds the network inside one: pass averaged.module.")
    path = _path(file, saved, path, next((weight.device for weight in net.parameters()), None))
    time = _time(file, saved.time, path, time)
    model = ScoreModel(net, path, saved.predicts, time=time, learns_variance=saved.learns, standardize=saved.units)
    if saved.units is not None and (known := next(net.parameters(), None)) is not None:
        saved.units.to(known.device)
    here = identity(model)
    with describing(file):
        differ = differences(saved.about, here)
    if differ:
        raise refusal(file, f"holds the weights of another model, which differs in {'; '.join(differ)}")
    fill(file, model, saved.weights)
    return model


def load_state(file: str | os.PathLike[str]) -> dict[str, object]:
    """The state that `save` was given beside the model, its tensors on the CPU.

    Args:
        file: what `save` wrote.

    Returns:
        The state by name, as it was: dicts, lists and tuples (of subclasses, these), tensors bit for bit.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: safetensors is not installed.
        ValueError: a file that is damaged, cut off, a pickle, not of sdegen or of a newer one.

    Examples:
        >>> import tempfile, sdegen
        >>> from sdegen.nets import MLP
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sdegen.save(f"{folder}/model.safetensors", sdegen.ScoreModel(MLP(2), sdegen.VPSDE()), losses=[2.5, 1.0])
        ...     sdegen.load_state(f"{folder}/model.safetensors")
        {'losses': [2.5, 1.0]}
    """
    _check_file(file)
    manifest, tensors = read(file)
    with describing(file):
        return dict(cast("dict[str, object]", unpacked(manifest["state"], tensors)))


def _check_file(file: object) -> None:
    """A TypeError unless it is the name of a file."""
    if not isinstance(file, (str, os.PathLike)):
        raise TypeError(f"file must be a path, a str or an os.PathLike, and it is {described(file)}.")


class _Saved(NamedTuple):
    """What a file says of its model.

    Attributes:
        about: all that `identity` says of it.
        predicts: as in `ScoreModel`.
        learns: its `learns_variance`.
        time: the kind of its `time`, see `identity`.
        portrait: its path in numbers.
        path: the path itself, None for one of the user's own.
        units: its `standardize`.
        weights: its state, by the names that are kept.
    """

    about: Portrait
    predicts: str
    learns: bool
    time: str
    portrait: Portrait
    path: GaussianPath | None
    units: Standardize | None
    weights: Weights


def _saved(file: str | os.PathLike[str]) -> _Saved:
    """The model of a file, after a ValueError if that is damaged or no model."""
    manifest, tensors = read(file)
    with describing(file):
        about, path = cast(Portrait, manifest["model"]), _stored_path(manifest["path"], tensors)
        weights = dict(cast(Weights, unpacked(manifest["weights"], tensors)))
        units = Standardize(*(cast(Tensor, weights[name]) for name in UNITS)) if about["standardize"] else None
        predicts, learns, time = str(about["predicts"]), about["learns_variance"] is True, str(about["time"])
        return _Saved(about, predicts, learns, time, cast(Portrait, about["path"]), path, units, weights)


# Paths


def _packed_path(packed: Packed, name: str, path: GaussianPath) -> Json:
    """The class and the arguments of a path of sdegen; None for any other, which is code."""
    if PATHS.get(type(path).__name__) is not type(path):
        return None
    inside = {f.name: getattr(path, f.name) for f in fields(path)} if is_dataclass(path) else {}
    if isinstance(path, DDPM):
        inside = {"betas": path.betas, "smooth": path.smooth}
    arguments: dict[str, Json] = {}
    for key, value in inside.items():
        if isinstance(value, GaussianPath):
            arguments[key] = _packed_path(packed, f"{name}.{key}", value)
        else:
            arguments[key] = packed.tree(f"{name}.{key}", value) if key != "source" else None
        if arguments[key] is None and value is not None:
            return None
    return {"class": type(path).__name__, "arguments": arguments}


def _stored_path(about: Json, tensors: Mapping[str, Tensor]) -> GaussianPath | None:
    """The inverse of `_packed_path`."""
    if about is None:
        return None
    known = cast("dict[str, dict[str, Json]]", about)
    arguments = {
        name: _stored_path(value, tensors) if isinstance(value, dict) and "class" in value else unpacked(value, tensors)
        for name, value in known["arguments"].items()
    }
    return PATHS[str(known["class"])](**arguments)


def _path(
    file: str | os.PathLike[str], saved: _Saved, path: GaussianPath | None, device: torch.device | None
) -> GaussianPath:
    """The path of the model: the stored one, or the one given, after a ValueError if it is another."""
    if path is None:
        if saved.path is None:
            words = f"was saved with a path of your own, {saved.portrait['path']}: give it again, as path="
            raise refusal(file, words)
        return saved.path
    if not isinstance(path, GaussianPath):
        raise TypeError(f"path must be a GaussianPath such as VPSDE(), and it is {described(path)}.")
    difference = path_difference(saved.portrait, portrait(path, device))
    if difference is not None:
        raise refusal(file, f"was saved with another path than the one given: {difference}")
    return path


def _time(
    file: str | os.PathLike[str], kind: str, path: GaussianPath, time: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor] | None:
    """The `time=` of the model: the path's index, or the one given, after a ValueError if that is wrong."""
    if kind == "none" and time is not None:
        raise refusal(file, "was saved without a time=, and one is given: its network saw the path's own time")
    if kind == "own" and time is None:
        raise refusal(file, "was saved with a time= of your own: give it again, as time=")
    if kind != "index":
        return time
    index = getattr(path, "index", None)
    if time is None and not callable(index):
        words = (
            f"was saved with time=path.index, and {described(path)} has no index: give the path that has, or a time="
        )
        raise refusal(file, words)
    if callable(time) and callable(index) and _differ(path, index, time):
        raise refusal(file, "was saved with time=path.index, and the time= given is another: its network saw the index")
    return cast("Callable[[Tensor], Tensor]", index) if time is None else time


def _differ(path: GaussianPath, index: Callable[[Tensor], object], time: Callable[[Tensor], object]) -> bool:
    """Whether two callables differ at the times at which paths are compared; False if they cannot be asked there."""
    try:
        a, b = (torch.as_tensor(each(times(path))).detach().double() for each in (index, time))
    except (RuntimeError, TypeError):  # a table of the user's own on another device
        return False
    return a.shape != b.shape or not torch.allclose(a, b, rtol=CLOSE, atol=CLOSE)


# Models


def _score_model(model: object) -> ScoreModel:
    """The ScoreModel inside whatever wraps it, or a TypeError."""
    inner = innermost(model)
    if not isinstance(inner, ScoreModel):
        what = f"{type(inner).__name__}: save the ScoreModel inside it" if isinstance(inner, Model) else ""
        raise TypeError(f"model must be a ScoreModel, and it is {what or instead_of_model(inner)}.")
    if type(inner) is not ScoreModel:
        raise TypeError(
            f"Only ScoreModel itself can be written, since {type(inner).__name__} is code, which no file holds: save "
            "ScoreModel(model.net, model.path, model.predicts), with its time=, learns_variance= and standardize=."
        )
    if not isinstance(inner.net, nn.Module):
        raise TypeError(
            "The network of a saved model must be an nn.Module, whose weights can be seen, and it is "
            f"{described(inner.net)}."
        )
    return inner


def _check_net(net: object) -> None:
    """A TypeError unless it is a network that can be filled."""
    model = isinstance(innermost(net), Model)
    if model or not isinstance(net, nn.Module):
        what = f"{type(net).__name__}, a model: pass its network, model.net" if model else described(net)
        raise TypeError(f"net must be the network itself, an nn.Module to fill, and it is {what}.")
