"""Fingerprints: whether two values, in two processes, are one and the same.

A fingerprint is the SHA-256 of what a value is made of, numbers by their bits: the class of an object and all that it
holds; the weights of a network, its modules and their settings; the code of a function, what it closes over and
the networks and numbers that it names. Left out are where and how a value lives (addresses, devices, gradients,
training mode), what a `cached_property` remembers, the code of classes, and of a network's private attributes those
that are neither floats nor strings: many keep there what they have computed or counted. Of a model, which is what wraps
a network and tells a solver its path, every private attribute counts.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, torch.Size)
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
TORCHS_OWN = {*vars(nn.Module()), *dir(nn.Module)}
ALIVE = {"_io", "_thread", "_weakref", "asyncio", "io", "logging", "multiprocessing", "threading", "weakref"}
"""Modules whose objects belong to a process: of them only the class counts."""

Memory = dict[int, tuple[bytes, object]]
"""By id, the digests of what was met, with the object itself, so that its id is not given away."""


def fingerprint(value: object) -> str:
    """The SHA-256 of what `value` is made of, in hexadecimal digits."""
    return _digest(value, {}).hex()


def _digest(value: object, met: Memory) -> bytes:
    """The digest of a value from those of its parts; on the way down a value stands for itself, as "again"."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, PLAIN):
        return _hashed(type(value).__name__, [repr(value).encode()])
    if id(value) not in met:
        met[id(value)] = b"again", value
        met[id(value)] = _digest_of_parts(value, met), value
    return met[id(value)][0]


def _digest_of_parts(value: object, met: Memory) -> bytes:
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return _hashed(f"array {value.dtype.str} {value.shape}", [np.ascontiguousarray(value).tobytes()])
    if isinstance(value, (type, ModuleType)):
        return _hashed("name", [_name(value).encode()])
    name = _name(type(value))
    if isinstance(value, nn.Module):
        return _of_names(name, _held_by_module(value), met)
    if isinstance(value, Mapping):
        return _of_names(name, {repr(key): entry for key, entry in value.items()}, met)
    if isinstance(value, Set):
        return _hashed(name, sorted(_digest(entry, met) for entry in value))
    if isinstance(value, (Sequence, np.ndarray)):
        return _hashed(name, (_digest(entry, met) for entry in value))
    inside = _inside_function(value)
    return _of_names(name, _held_by_object(value) if inside is None else inside, met)


def _hashed(tag: str, parts: Iterable[bytes | memoryview]) -> bytes:
    """The parts behind their tag, each with its length, so that no two lists of parts give the same bytes."""
    digest = hashlib.sha256(f"{tag}\n".encode())
    for part in parts:
        digest.update(f"{len(part)} ".encode())
        digest.update(part)
    return digest.digest()


def _of_names(tag: str, entries: Mapping[str, object], met: Memory) -> bytes:
    return _hashed(tag, (part for n in sorted(entries) for part in (n.encode(), _digest(entries[n], met))))


def _of_tensor(value: Tensor) -> bytes:
    """Dtype, shape and bytes; on an accelerator, after one copy to the CPU."""
    flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    data = [flat.view(torch.uint8).numpy().data] if flat.numel() else []
    return _hashed(f"tensor {value.dtype} {tuple(value.shape)}", data)


def _name(of: type | ModuleType) -> str:
    return of.__name__ if isinstance(of, ModuleType) else f"{of.__module__}.{of.__qualname__}"


def _remembered(kind: type) -> set[str]:
    """The names of what a class computes once and keeps."""
    return {name for base in kind.__mro__ for name, v in vars(base).items() if isinstance(v, functools.cached_property)}


def _held_by_module(module: nn.Module) -> dict[str, object]:
    """Parameters, buffers, submodules, hooks and settings; of a compiled module, the one that was compiled."""
    held = vars(module)
    if "_orig_mod" in held["_modules"]:
        return {"compiled": held["_modules"]["_orig_mod"]}
    inside = {f"{kind}.{n}": v for kind in ("_parameters", "_buffers", "_modules") for n, v in held[kind].items()}
    hooks = {name: list(held[name].values()) for name in HOOKS if held[name]}
    hidden = _remembered(type(module)) | {"training"}
    private = object if _is_model(module) else (float, str)
    own = {n: v for n, v in held.items() if n not in hidden and (not n.startswith("_") or _counts(n, v, private))}
    return {**inside, **hooks, **own}


def _is_model(module: nn.Module) -> bool:
    """Whether a module is a `Model`, which this file is too low to import."""
    return hasattr(module, "path") and all(callable(getattr(type(module), n, None)) for n in ("query", "estimate"))


def _counts(name: str, value: object, kinds: type | tuple[type, ...]) -> bool:
    """Whether a private attribute is one of `kinds`, and neither unset nor torch's own."""
    return value is not None and isinstance(value, kinds) and name not in TORCHS_OWN


def _held_by_object(value: object) -> dict[str, object]:
    """What an object holds, by its own account where it gives one, and its name if it has one."""
    kind = type(value)
    held: dict[str, object] = {"name": getattr(value, "__qualname__", getattr(value, "__name__", None))}
    if kind.__module__.partition(".")[0] in ALIVE:
        return held
    own = getattr(kind, "__getstate__", None)
    if own is not None and own is not getattr(object, "__getstate__", None):
        inside = own(value)
    else:
        slots = [slot for base in kind.__mro__ for slot in _slots(base) if hasattr(value, slot)]
        inside = {**getattr(value, "__dict__", {}), **{slot: getattr(value, slot) for slot in slots}}
    if isinstance(inside, dict):
        inside = {name: part for name, part in inside.items() if name not in _remembered(kind)}
    return {**held, "inside": inside}


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    return [slot for slot in ([slots] if isinstance(slots, str) else slots) if slot not in ("__dict__", "__weakref__")]


def _inside_function(value: object) -> dict[str, object] | None:
    """What a function is made of; None for what is no function."""
    value = getattr(value, "_torchdynamo_orig_callable", value)
    if isinstance(value, functools.partial):
        return {"of": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, MethodType):
        return {"of": value.__func__, "self": value.__self__}
    if isinstance(value, BuiltinFunctionType):
        return {"name": value.__qualname__, "self": value.__self__}
    if not isinstance(value, FunctionType):
        return None
    codes = list(_codes(value.__code__))
    named = {n: value.__globals__[n] for code in codes for n in code.co_names if n in value.__globals__}
    return {
        "name": f"{value.__module__}.{value.__qualname__}",
        "code": [(code.co_code, code.co_names, code.co_consts) for code in codes],
        "globals": {n: v for n, v in named.items() if isinstance(v, (*PLAIN, Tensor, np.ndarray, nn.Module))},
        "closure": [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()],
        "defaults": (value.__defaults__, value.__kwdefaults__),
    }


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions written inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
