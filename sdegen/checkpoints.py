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
from typing import cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from sdegen._container import Json, Packed, describing, read, refusal, same_bits, unpacked, write
from sdegen.models.base import Model
from sdegen.models.identity import Portrait, identity, path_difference, portrait
from sdegen.models.model import ScoreModel
from sdegen.models.standardised import Standardize
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
Weights = dict[str, object]
"""The `state_dict` of a `ScoreModel` by the names it has when nothing is wrapped: tensors, and what modules add."""


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
        >>> import tempfile, torch, sdegen
        >>> from sdegen.nets import MLP
        >>> model = sdegen.ScoreModel(MLP(2), sdegen.CosineVPSDE(), "v")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sdegen.save(f"{folder}/model.safetensors", model, step=7)
        ...     again = sdegen.load(f"{folder}/model.safetensors", MLP(2))
        ...     print(again.path, again.predicts, sdegen.load_state(f"{folder}/model.safetensors"))
        CosineVPSDE(s=0.008) v {'step': 7}
    """
    model, packed = _score_model(model), Packed()
    names, weights = _names(model), model.state_dict()
    manifest = {
        "model": identity(model),
        "path": _packed_path(packed, "path", model.path),
        "weights": packed.tree("", {name: weights[own] for name, own in names.items()}),
        "state": packed.tree("state", state),
    }
    write(file, packed, manifest)


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
        time: the `time=` of the saved model, if that had one other than `path.index`.

    Returns:
        The model, on `net` itself.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: safetensors is not installed.
        TypeError: a network or a path of another kind.
        ValueError: a file that is damaged, cut off, a pickle, not of sdegen or of a newer one; another network's, which
            names the first tensor that differs; a path or a `time=` that is missing, or is another.

    Examples:
        See `save`.
    """
    if not isinstance(net, nn.Module) or isinstance(net, Model):
        raise TypeError(f"net must be the network itself, an nn.Module to fill, and it is {type(net).__name__}.")
    manifest, tensors = read(file)
    with describing(file):
        about, stored = cast(Portrait, manifest["model"]), _stored_path(manifest["path"], tensors)
        weights = dict(cast(Weights, unpacked(manifest["weights"], tensors)))
        units = Standardize(*(cast(Tensor, weights[name]) for name in UNITS)) if about["standardize"] else None
        predicts, learns, kind = str(about["predicts"]), about["learns_variance"] is True, str(about["time"])
        portrayed = cast(Portrait, about["path"])
    path = _path(file, portrayed, stored, path)
    time = _time(file, kind, path, time)
    model = ScoreModel(net, path, predicts, time=time, learns_variance=learns, standardize=units)
    if units is not None and (known := next(net.parameters(), None)) is not None:
        units.to(known.device)
    _fill(file, model, weights)
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
        See `save`.
    """
    manifest, tensors = read(file)
    with describing(file):
        return dict(cast("dict[str, object]", unpacked(manifest["state"], tensors)))


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
    file: str | os.PathLike[str], there: Portrait, stored: GaussianPath | None, path: GaussianPath | None
) -> GaussianPath:
    """The path of the model: the stored one, or the one given, after a ValueError if it is another."""
    if path is None:
        if stored is None:
            raise refusal(file, f"was saved with a path of your own, {there['path']}: give it again, as path=")
        return stored
    if not isinstance(path, GaussianPath):
        raise TypeError(f"path must be a GaussianPath such as VPSDE(), and it is {path!r}.")
    difference = path_difference(there, portrait(path))
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
    return cast(DDPM, path).index if kind == "index" and time is None else time


# Networks


def _inside(module: nn.Module) -> str | None:
    """The name by which a compiled, distributed or averaged module holds the one it is made of."""
    if "_orig_mod" in module._modules:
        return "_orig_mod"
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
    return "module" if isinstance(module, wrappers) else None


def _score_model(model: nn.Module) -> ScoreModel:
    """The ScoreModel inside whatever wraps it, or a TypeError."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a ScoreModel, and {model!r} is {type(model).__name__}.")
    while (name := _inside(model)) is not None:
        model = cast(nn.Module, getattr(model, name))
    if type(model) is not ScoreModel:
        raise TypeError(f"model must be a ScoreModel, and it is {type(model).__name__}: save the ScoreModel inside it.")
    if not isinstance(model.net, nn.Module):
        raise TypeError(
            f"The network of a saved model must be an nn.Module, whose weights can be seen, and it is {model.net!r}."
        )
    return model


def _names(model: ScoreModel) -> dict[str, str]:
    """The names of a model's state as they are when nothing in it is wrapped, and those that they are now."""
    modules = [(name, _inside(module)) for name, module in model.named_modules(remove_duplicate=False)]
    inner = [(f"{name}.{inside}.", f"{name}.") for name, inside in modules if inside is not None]
    names = {}
    for own in model.state_dict():
        name = own
        for wrapped, bare in reversed(inner):  # the innermost first
            name = bare + name.removeprefix(wrapped) if name.startswith(wrapped) else name
        names[name] = own
    return names


def _fill(file: str | os.PathLike[str], model: ScoreModel, weights: Weights) -> None:
    """Load the weights into a model, after a ValueError if they are another's; what fails later is undone."""
    names, state = _names(model), model.state_dict()
    for name in [*names, *weights]:
        there, here = (_words(w.get(n)) for w, n in ((weights, name), (state, names.get(name, ""))))
        if there != here and not name.endswith("_extra_state"):
            raise refusal(file, f"holds the weights of another network: {name!r} is {there} there and {here} here")
    before = {own: value.to("cpu", copy=True) if isinstance(value, Tensor) else value for own, value in state.items()}
    try:
        state.update({own: weights[name] for name, own in names.items()})
        model.load_state_dict(state)
        _check_ties(file, names, model.state_dict(), weights)
    except Exception:
        model.load_state_dict(before)
        raise


def _check_ties(file: str | os.PathLike[str], names: dict[str, str], state: Weights, weights: Weights) -> None:
    """A ValueError if two different tensors were loaded into one: then the network is another, of the same shapes."""
    first: dict[object, str] = {}
    for name, own in names.items():
        here, there = state[own], weights[name]
        if not isinstance(here, Tensor) or not here.numel() or name.endswith("_extra_state"):
            continue
        twin = first.setdefault((here.device, here.data_ptr(), here.shape, here.stride()), name)
        if twin != name and not same_bits(cast(Tensor, weights[twin]), cast(Tensor, there)):
            raise refusal(
                file, f"holds the weights of another network: {twin!r} and {name!r} are one tensor here alone"
            )


def _words(value: object) -> str:
    """A tensor by its shape and dtype."""
    if value is None:
        return "absent"
    if not isinstance(value, Tensor):
        return type(value).__name__
    if is_lazy(value) or value.is_meta:
        return "a tensor without numbers yet"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
