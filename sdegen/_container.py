"""Containers: values of any depth and their tensors in one safetensors file, in which every bit is looked after.

The file holds tensors, all of them by name, and one metadata key, "sdegen", whose JSON is

    {"manifest": {...}, "sha256": of the manifest}        manifest: schema, version, tensors and the writer's own

A value is a tree of dicts, lists and tuples, in JSON itself or {kind: what it is made of}, with tensors by name;
`tensors` has the dtype, shape and SHA-256 of each. On reading, the header is written once more and compared with that
of the file, and every tensor with its digest, so that no bit can have changed unseen. Nothing is pickled, and nothing
of a file is ever executed.

References:
    safetensors, Hugging Face, 2022: the format, an 8-byte length, a JSON header and the bytes of the tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sdegen._files import prepare_folder, write_whole
from sdegen._version import __version__

SCHEMA = 1
KEY = "sdegen"
METADATA = "__metadata__"
FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
DTYPES = (*FLOATS, "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
"""What a tensor may hold: what every safetensors can write and read."""
LONGEST = 50_000_000
"""Characters of a manifest: safetensors reads headers up to 100 MB, with every quotation mark escaped."""
PICKLES = (b"PK\x03\x04", b"\x80")
"""How a file of torch.save begins, today's and that of old."""

Json = object
"""What JSON holds."""


@dataclass
class Packed:
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

    def _kept(self, name: str, value: Tensor) -> str:
        """The name under which a tensor is kept, which is new and can be written."""
        name = name.encode("utf-8", "backslashreplace").decode()
        while name in self.tensors:
            name += "'"
        self.tensors[name] = _storable(name, value)
        return name


def write(file: str | os.PathLike[str], packed: Packed, manifest: Mapping[str, Json]) -> None:
    """Write a manifest and the tensors that it names to one file, whole or not at all; links are followed."""
    library = imported()
    tensors = {name: _about(value) for name, value in packed.tensors.items()}
    text = _signed({"schema": SCHEMA, "version": __version__, **manifest, "tensors": tensors})
    place = Path(os.path.realpath(file))
    prepare_folder(place.parent, place.name)
    write_whole(place, _canonical(library.save(packed.tensors, {KEY: text})))


def read(file: str | os.PathLike[str]) -> tuple[dict[str, Json], dict[str, Tensor]]:
    """The manifest and the tensors, on the CPU, of a file in which every bit is as it was written."""
    library, data = imported(), Path(file).read_bytes()
    manifest = _manifest(file, _header(file, data))
    try:
        tensors = cast("dict[str, Tensor]", library.load(data))
    except Exception as error:  # SafetensorError is of no common kind, and a dtype that it does not know a KeyError
        raise refusal(file, f"is damaged: {error}") from error
    for name, about in cast("dict[str, Json]", manifest["tensors"]).items():
        if _about(tensors[name]) != about:
            raise refusal(file, f"is damaged: the tensor {name!r} is not the one that was saved")
    return manifest, tensors


def _header(file: str | os.PathLike[str], data: bytes) -> dict[str, Json]:
    """The header, after a ValueError unless it is one, as it was written, and all of its tensors are there."""
    end = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:end] if len(data) >= end else b"")
        whole, ours = _canonical(data[:end]) == data[:end], KEY in header.get(METADATA, {})
        cut = [name for name in header if name != METADATA and end + header[name]["data_offsets"][1] > len(data)]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        if data.startswith(PICKLES):
            raise refusal(
                file, "is a pickle, as torch.save writes it, which could run code: it is not opened"
            ) from error
        raise refusal(file, "is no whole safetensors file: its header is cut off, damaged or no header") from error
    if not ours:
        what = "holds no manifest of sdegen's: read it by safetensors.torch.load_file, its weights belong to a network"
        raise refusal(file, what)
    if cut:
        raise refusal(file, f"is cut off: the tensor {cut[0]!r} is not all there")
    if not whole:
        raise refusal(file, "is damaged: its header is not as it was written")
    return cast("dict[str, Json]", header)


def _manifest(file: str | os.PathLike[str], header: Mapping[str, Json]) -> dict[str, Json]:
    """The manifest, after a ValueError unless it is as it was written, by a version that this one knows."""
    text = cast("dict[str, str]", header[METADATA])[KEY]
    try:
        manifest = json.loads(text)["manifest"]
        whole, schema, names = _signed(manifest) == text, int(manifest["schema"]), set(manifest["tensors"])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise refusal(file, "is damaged: its manifest cannot be read") from error
    if not whole:
        raise refusal(file, "is damaged: its manifest is not as it was written")
    if schema > SCHEMA:
        words = f"was written by sdegen {manifest.get('version')} in schema {schema}"
        raise refusal(file, f"{words}, and this one reads up to {SCHEMA}: update sdegen")
    for name in sorted(names ^ header.keys() - {METADATA}):
        what = "lacks the tensor" if name in names else "was not saved with the tensor"
        raise refusal(file, f"{what} {name!r}: it was changed after it was written")
    return cast("dict[str, Json]", manifest)


def refusal(file: str | os.PathLike[str], words: str) -> ValueError:
    return ValueError(f"The file {os.fspath(file)!r} {words}.")


@contextmanager
def describing(file: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of what is made from a manifest as a ValueError: it is as it was written, by something else."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise refusal(file, f"holds a manifest that describes nothing this version knows: {error}") from error


def unpacked(tree: Json, tensors: Mapping[str, Tensor]) -> object:
    """The inverse of `Packed.tree`."""
    if isinstance(tree, list):
        return [unpacked(entry, tensors) for entry in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, inside),) = tree.items()
    if kind == "dict":
        return {key: unpacked(entry, tensors) for key, entry in inside}
    if kind == "tuple":
        return tuple(unpacked(entry, tensors) for entry in inside)
    if kind == "bytes":
        return tensors[inside].numpy().tobytes()
    return float(inside) if kind == "float" else tensors[inside]


def _key(name: str, key: object) -> Json:
    if isinstance(key, (str, int)) and not isinstance(key, bool):
        return key
    raise TypeError(f"The keys of {name} must be strings or integers, and {key!r} is {type(key).__name__}.")


def _storable(name: str, value: Tensor) -> Tensor:
    """A contiguous copy on the CPU, or a ValueError that says why there is none."""
    dtype, layout = (str(kind).removeprefix("torch.") for kind in (value.dtype, value.layout))
    wrong = None if layout == "strided" else f"is {layout}"
    wrong = wrong if dtype in DTYPES else f"has dtype {dtype}"
    if hasattr(value, "full_tensor"):
        wrong = "is a DTensor, in parts on several devices: gather it first, by full_tensor()"
    if wrong is None and (is_lazy(value) or is_traceable_wrapper_subclass(value)):
        wrong = f"is of type {type(value).__name__}"
    if wrong is None:
        try:
            return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        except NotImplementedError:  # torch's answer for the meta device
            wrong = "is on the meta device, without numbers"
    raise ValueError(f"The tensor {name!r} {wrong}, and a checkpoint holds plain tensors of {', '.join(DTYPES)}.")


def _about(value: Tensor) -> dict[str, Json]:
    """Dtype, shape and SHA-256 of the bytes of a contiguous tensor on the CPU."""
    digest = hashlib.sha256(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"").hexdigest()
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "sha256": digest}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors on the CPU are one and the same, NaN included."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(x.resolve_neg().reshape(-1).view(torch.uint8) for x in (a, b)))


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


def imported() -> ModuleType:
    """safetensors.torch, imported where it is needed."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "Checkpoints are safetensors files, and safetensors is not installed: pip install 'sdegen[train]'."
        ) from error
    return safetensors.torch
