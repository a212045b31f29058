"""Conditions for a batch twice over: as they are, and once more with what stands for none.

A condition is a tensor with one row per sample, or a mapping of such tensors; what is `Shared` by the whole batch, or
no tensor, stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor

from sdegen import _checks


def checked(without: object) -> Mapping[str, object]:
    """Names of conditions with what stands for none of each, after an error unless it is that."""
    if not isinstance(without, Mapping) or not all(isinstance(name, str) for name in without):
        raise TypeError(
            f'without must map names of conditions to what stands for none, such as {{"label": 10}}, not {without!r}.'
        )
    if not without or any(isinstance(value, Mapping) and not value for value in without.values()):
        raise ValueError(f"without names no condition, so that both branches would be the same: {without!r}.")
    return dict(without)


def there(
    without: Mapping[str, object], device: torch.device, known: dict[torch.device, dict[str, object]]
) -> dict[str, object]:
    """What stands for none, its tensors moved to a device once; `known` remembers them."""
    if device not in known:
        known[device] = {name: _moved(value, device) for name, value in without.items()}
    return known[device]


def _moved(value: object, device: torch.device) -> object:
    """A tensor, or those of a mapping, on a device."""
    if isinstance(value, Mapping):
        return {key: _moved(part, device) for key, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def twice(cond: Mapping[str, object], without: Mapping[str, object], n: int) -> Mapping[str, object]:
    """The conditions of a batch of n twice over: as they are, then with what stands for none."""
    _check_named(cond, without)
    both = _checks.Received()
    both.shared = getattr(cond, "shared", frozenset())
    for name, value in cond.items():
        kept = name in both.shared and name not in without
        both[name] = value if kept else _twice(name, value, without.get(name, value), n)
    return both


def _check_named(cond: Mapping[str, object], without: Mapping[str, object], where: str = "") -> None:
    """A ValueError unless everything that is left out is there, entry by entry of mappings."""
    for name, value in without.items():
        if name not in cond:
            raise ValueError(f"without names the condition {where + name!r}, and cond holds {sorted(cond)}.")
        inner = cond[name]
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            _check_named(inner, value, f"{where}{name}.")


def _twice(name: str, value: object, other: object, n: int) -> object:
    """A condition for a batch of n and one more, where it is `other`; mappings entry by entry."""
    if isinstance(value, Mapping):
        others = other if isinstance(other, Mapping) else dict.fromkeys(value, other)
        return {key: _twice(f"{name}.{key}", part, others.get(key, part), n) for key, part in value.items()}
    if not isinstance(value, Tensor) or value.shape[:1] != (n,):
        if other is value and (isinstance(value, (str, Tensor)) or not hasattr(value, "__len__")):
            return value  # it belongs to all samples
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise ValueError(f"Guidance needs cond[{name!r}] to be a tensor with {n} rows, one per sample, not of {got}.")
    return torch.cat([value, _none(name, other, value)])


def _none(name: str, other: object, value: Tensor) -> Tensor:
    """What stands for no condition, shaped like it and of its dtype."""
    whole = not value.is_floating_point()
    if isinstance(other, Tensor):
        if whole and other.is_floating_point():
            raise TypeError(f"The condition {name!r} holds {value.dtype}, and what stands for none {other.dtype}.")
        try:
            return other.to(value).expand_as(value)
        except RuntimeError as error:
            raise ValueError(
                f"What stands for no {name!r} must broadcast against {tuple(value.shape)}, not {tuple(other.shape)}."
            ) from error
    if not isinstance(other, Real) or (isinstance(other, bool) and value.dtype is not torch.bool):
        raise TypeError(f"What stands for no {name!r} must be a number or a tensor, and it is {other!r}.")
    number = float(other)
    if not math.isfinite(number) or (whole and not _holds(value.dtype, number)):
        raise ValueError(f"The condition {name!r} holds {value.dtype}, and {other!r}, which stands for none, is none.")
    return torch.full_like(value, int(number) if whole else number)


def _holds(dtype: torch.dtype, number: float) -> bool:
    """Whether a dtype of whole numbers, or bool, holds a number."""
    low, high = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    return number == int(number) and low <= number <= high
