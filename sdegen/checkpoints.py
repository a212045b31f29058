"""Checkpoints: a model and the state of its training in one safetensors file, which is whole or absent.

The file holds tensors, all of them by name, and one metadata key, "sdegen", whose JSON is

    {"manifest": {...}, "sha256": of the manifest}        manifest: schema, version, model, state, tensors

`model` is what `ScoreModel` is built from, a path of sdegen by its class and arguments; `weights` and `state` are trees
of dicts, lists and values with tensors by name; `tensors` has the dtype, shape and SHA-256 of each. On reading, the
header is written again and compared with that of the file, and every tensor with its digest, so that no bit can have
changed unseen. Nothing is pickled, and nothing of a file is ever executed: it can name the classes of this page alone.

References:
    safetensors, Hugging Face, 2022: the format, an 8-byte length, a JSON header and the bytes of the tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sdegen._files import prepare_folder, write_whole
from sdegen._version import __version__
from sdegen.models.base import Model
from sdegen.models.identity import Portrait, kind_of_time, path_difference, portrait
from sdegen.models.model import ScoreModel
from sdegen.paths.chain import DDPM
from sdegen.paths.diffusions import EDM, VESDE, VPSDE, CosineVPSDE, SubVPSDE
from sdegen.paths.flows import CondOT, Interpolant, Retimed, Trigonometric
from sdegen.paths.gaussian import GaussianPath

SCHEMA = 1
KEY = "sdegen"
METADATA = "__metadata__"
PATHS: dict[str, type[GaussianPath]] = {
    kind.__name__: kind
    for kind in (VPSDE, SubVPSDE, VESDE, CosineVPSDE, EDM, DDPM, CondOT, Interpolant, Retimed, Trigonometric)
}
FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
DTYPES = (*FLOATS, "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
"""What a tensor may hold: what every safetensors can write and read."""
LONGEST = 50_000_000
"""Characters of a manifest: safetensors reads headers up to 100 MB, with every quotation mark escaped."""
PICKLES = (b"PK\x03\x04", b"\x80")
"""How a file of torch.save begins, today's and that of old."""

Json = object
"""What JSON holds."""
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
    library, model = _library(), _score_model(model)
    packed = _Packed()
    about = {
        "predicts": model.predicts,
        "learns_variance": model.learns_variance,
        "time": kind_of_time(model.path, model.time),
        "path": packed.path("path", model.path),
        "portrait": portrait(model.path),
    }
    names, weights = _names(model), model.state_dict()
    manifest = {
        "schema": SCHEMA,
        "version": __version__,
        "model": about,
        "weights": packed.tree("", {name: weights[own] for name, own in names.items()}),
        "state": packed.tree("state", state),
        "tensors": {name: _about(value) for name, value in packed.tensors.items()},
    }
    place = Path(os.path.realpath(file))
    prepare_folder(place.parent, place.name)
    write_whole(place, _canonical(library.save(packed.tensors, {KEY: _signed(manifest)})))


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
    manifest, tensors = _read(file)
    about = cast(Portrait, manifest["model"])
    path = _path(file, about, tensors, path)
    time = _time(file, str(about["time"]), path, time)
    model = ScoreModel(net, path, str(about["predicts"]), time=time, learns_variance=about["learns_variance"] is True)
    _fill(file, model, cast(Weights, _unpacked(manifest["weights"], tensors)))
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
    manifest, tensors = _read(file)
    return cast("dict[str, object]", _unpacked(manifest["state"], tensors))


# Writing


@dataclass
class _Packed:
    """Values as JSON, and the tensors that it names.

    Attributes:
        tensors: by name, each a contiguous copy on the CPU, with memory of its own.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)

    def tree(self, name: str, value: object) -> Json:
        """The JSON of a value: itself where JSON has it, else {kind: what it is made of}."""
        value = value.item() if isinstance(value, np.generic) else value
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": str(float(value))}
        if isinstance(value, Tensor):
            return {"tensor": self._kept(name, value)}
        if isinstance(value, bytes):
            return {"bytes": self._kept(name, torch.from_numpy(np.frombuffer(value, np.uint8).copy()))}
        if isinstance(value, (list, tuple)):
            entries = [self.tree(f"{name}.{k}", entry) for k, entry in enumerate(value)]
            return {"tuple": entries} if isinstance(value, tuple) else entries
        if isinstance(value, dict):
            return {
                "dict": [[_key(name, k), self.tree(f"{name}.{k}" if name else f"{k}", v)] for k, v in value.items()]
            }
        raise TypeError(
            f"{name} is of type {type(value).__name__}, and a checkpoint holds dicts, lists and tuples of tensors, "
            "numbers, strings, bytes, bools and None."
        )

    def path(self, name: str, path: GaussianPath) -> Json:
        """The class and the arguments of a path of sdegen; None for any other, which is code."""
        if PATHS.get(type(path).__name__) is not type(path):
            return None
        inside = {f.name: getattr(path, f.name) for f in fields(path)} if is_dataclass(path) else {}
        if isinstance(path, DDPM):
            inside = {"betas": path.betas, "smooth": path.smooth}
        arguments: dict[str, Json] = {}
        for key, value in inside.items():
            if isinstance(value, GaussianPath):
                arguments[key] = self.path(f"{name}.{key}", value)
                if arguments[key] is None:
                    return None
            elif key == "source" and value is not None:
                return None
            else:
                arguments[key] = self.tree(f"{name}.{key}", value)
        return {"class": type(path).__name__, "arguments": arguments}

    def _kept(self, name: str, value: Tensor) -> str:
        """The name under which a tensor is kept, which is new and can be written."""
        name = name.encode("utf-8", "backslashreplace").decode()
        while name in self.tensors:
            name += "'"
        self.tensors[name] = _storable(name, value)
        return name


def _key(name: str, key: object) -> Json:
    if isinstance(key, (str, int)) and not isinstance(key, bool):
        return key
    raise TypeError(f"The keys of {name} must be strings or integers, and {key!r} is {type(key).__name__}.")


def _storable(name: str, value: Tensor) -> Tensor:
    """A contiguous copy on the CPU, or a ValueError that says why there is none."""
    dtype = str(value.dtype).removeprefix("torch.")
    kind = "a wrapper of others" if is_traceable_wrapper_subclass(value) else str(value.layout).removeprefix("torch.")
    kind = "on the meta device, without numbers" if value.is_meta else kind
    if dtype not in DTYPES or kind != "strided":
        what = f"has dtype {dtype}" if dtype not in DTYPES else f"is {kind}"
        raise ValueError(
            f"The tensor {name!r} {what}, and a checkpoint holds dense tensors of real numbers: {', '.join(DTYPES)}."
        )
    return value.detach().resolve_neg().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _about(value: Tensor) -> dict[str, Json]:
    """Dtype, shape and SHA-256 of the bytes of a contiguous tensor on the CPU."""
    data = value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b""
    digest = hashlib.sha256(data).hexdigest()
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "sha256": digest}


def _signed(manifest: Json) -> str:
    """The manifest and its SHA-256 as JSON, always in the same characters, all of them ASCII."""
    digest = hashlib.sha256(json.dumps(manifest, allow_nan=False).encode()).hexdigest()
    text = json.dumps({"manifest": manifest, "sha256": digest}, allow_nan=False)
    if len(text) > LONGEST:
        raise ValueError(f"The state has too many numbers outside tensors: {len(text)} characters; use tensors.")
    return text


def _canonical(data: bytes) -> bytes:
    """A safetensors file, or its beginning, with the header as `json.dumps` writes it and spaces up to a multiple of 8.

    That is how safetensors writes it today. What is read is compared with it, whoever wrote the file and when.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return data if header == data[8:end] else len(header).to_bytes(8, "little") + header + data[end:]


# Reading


def _read(file: str | os.PathLike[str]) -> tuple[dict[str, Json], dict[str, Tensor]]:
    """The manifest and the tensors of a file in which every bit is as it was written."""
    library, data = _library(), Path(file).read_bytes()
    header = _header(file, data)
    manifest = _manifest(file, header)
    known = cast("dict[str, Json]", manifest["tensors"])
    for name in [*known, *header]:
        if name not in header or name not in (*known, METADATA):
            what = "lacks the tensor" if name in known else "was not saved with the tensor"
            raise _refusal(file, f"{what} {name!r}: it was changed after it was written")
    try:
        tensors = cast("dict[str, Tensor]", library.load(data))
    except Exception as error:  # SafetensorError is of no common kind, and a dtype that it does not know a KeyError
        raise _refusal(file, f"is damaged: {error}") from error
    for name, about in known.items():
        if _about(tensors[name]) != about:
            raise _refusal(file, f"is damaged: the tensor {name!r} is not the one that was saved")
    return manifest, tensors


def _header(file: str | os.PathLike[str], data: bytes) -> dict[str, Json]:
    """The header, after a ValueError unless it is one, as it was written, and all of its tensors are there."""
    end = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:end] if len(data) >= end > 8 else b"")
        whole = _canonical(data[:end]) == data[:end]
        ends = {
            name: 8 + entry["data_offsets"][1] + len(data[8:end]) for name, entry in header.items() if name != METADATA
        }
        cut = [name for name in ends if ends[name] > len(data)]
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError) as error:
        if data.startswith(PICKLES):
            raise _refusal(
                file, "is a pickle, as torch.save writes it, which could run code: it is not opened"
            ) from error
        raise _refusal(file, "is no whole safetensors file: its header is cut off, damaged or no header") from error
    if KEY not in header.get(METADATA, {}):
        what = "holds no manifest of sdegen's: read it by safetensors.torch.load_file, its weights belong to a network"
        raise _refusal(file, what)
    if cut:
        raise _refusal(file, f"is cut off: the tensor {cut[0]!r} is not all there")
    if not whole:
        raise _refusal(file, "is damaged: its header is not as it was written")
    return cast("dict[str, Json]", header)


def _manifest(file: str | os.PathLike[str], header: Mapping[str, Json]) -> dict[str, Json]:
    """The manifest, after a ValueError unless it is as it was written, by a version that this one knows."""
    text = cast("dict[str, str]", header[METADATA])[KEY]
    try:
        manifest = json.loads(text)["manifest"]
        whole, schema, version = _signed(manifest) == text, manifest["schema"], manifest["version"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise _refusal(file, "is damaged: its manifest cannot be read") from error
    if not whole:
        raise _refusal(file, "is damaged: its manifest is not as it was written")
    if schema > SCHEMA:
        words = f"was written by sdegen {version} in schema {schema}, and this one reads up to {SCHEMA}: update sdegen"
        raise _refusal(file, words)
    return cast("dict[str, Json]", manifest)


def _refusal(file: str | os.PathLike[str], words: str) -> ValueError:
    return ValueError(f"The file {os.fspath(file)!r} {words}.")


def _unpacked(tree: Json, tensors: Mapping[str, Tensor]) -> object:
    """The inverse of `_Packed.tree`."""
    if isinstance(tree, list):
        return [_unpacked(entry, tensors) for entry in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, inside),) = tree.items()
    if kind == "dict":
        return {key: _unpacked(entry, tensors) for key, entry in inside}
    if kind == "tuple":
        return tuple(_unpacked(entry, tensors) for entry in inside)
    if kind == "bytes":
        return tensors[inside].numpy().tobytes()
    return float(inside) if kind == "float" else tensors[inside]


def _stored_path(about: Json, tensors: Mapping[str, Tensor]) -> GaussianPath:
    """The inverse of `_Packed.path`."""
    known = cast("dict[str, dict[str, Json]]", about)
    arguments = {
        name: _stored_path(value, tensors)
        if isinstance(value, dict) and "class" in value
        else _unpacked(value, tensors)
        for name, value in known["arguments"].items()
    }
    return PATHS[str(known["class"])](**arguments)


def _path(
    file: str | os.PathLike[str], about: Portrait, tensors: Mapping[str, Tensor], path: GaussianPath | None
) -> GaussianPath:
    """The path of the model: the stored one, or the one given, after a ValueError if it is another."""
    there = cast(Portrait, about["portrait"])
    if path is None:
        if about["path"] is None:
            raise _refusal(file, f"was saved with a path of your own, {there['path']}: give it again, as path=")
        return _stored_path(about["path"], tensors)
    if not isinstance(path, GaussianPath):
        raise TypeError(f"path must be a GaussianPath such as VPSDE(), and it is {path!r}.")
    difference = path_difference(there, portrait(path))
    if difference is not None:
        raise _refusal(file, f"was saved with another path than the one given: {difference}")
    return path


def _time(
    file: str | os.PathLike[str], kind: str, path: GaussianPath, time: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor] | None:
    """The `time=` of the model: the path's index, or the one given, after a ValueError if that is wrong."""
    if kind == "none" and time is not None:
        raise _refusal(file, f"was saved without time=, and {time!r} is given: its network saw the path's own time")
    if kind == "own" and time is None:
        raise _refusal(file, "was saved with a time= of your own: give it again, as time=")
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
            raise _refusal(file, f"holds the weights of another network: {name!r} is {there} there and {here} here")
    before = {own: value.clone() if isinstance(value, Tensor) else value for own, value in state.items()}
    try:
        model.load_state_dict({own: weights[name] for name, own in names.items()})
    except Exception:
        model.load_state_dict(before)
        raise


def _words(value: object) -> str:
    """A tensor by its shape and dtype."""
    if value is None:
        return "absent"
    if not isinstance(value, Tensor):
        return type(value).__name__
    if is_lazy(value) or value.is_meta:
        return "a tensor without numbers yet"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _library() -> ModuleType:
    """safetensors.torch, imported where it is needed."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "Checkpoints are safetensors files, and safetensors is not installed: pip install 'sdegen[train]'."
        ) from error
    return safetensors.torch
