"""Shapes and draws: tensors are broadcast, flattened and filled with noise here and nowhere else.

A batch has shape (B, *event), one row per sample; a time is a float, a 0-d tensor or one value per sample, (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Generators = torch.Generator | Sequence[torch.Generator] | None


def plain(value: object) -> object:
    """A number of NumPy's, or an array of shape () that holds one, as Python's own; anything else as it is."""
    number = value[()] if isinstance(value, np.ndarray) and not value.ndim else value
    if isinstance(number, np.integer) and not isinstance(number, np.timedelta64):
        return int(number)
    return float(number) if isinstance(number, np.floating) else value


def as_time(t: float | Tensor) -> Tensor:
    """A time as a floating tensor; Python numbers become float64 scalars, which never widen what they multiply."""
    if isinstance(t, Tensor):
        if not t.is_floating_point():
            raise TypeError(f"A time must be a real floating number, and this tensor has dtype {t.dtype}.")
        return t
    number = plain(t)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"A time must be a float or a floating tensor, and {t!r} is {type(t).__name__}.")
    return torch.tensor(number, dtype=torch.float64)


def like(t: Tensor, x: Tensor) -> Tensor:
    """Append axes to `t`, of shape () or (B,), until it broadcasts against `x` of shape (B, *event)."""
    return t if t.ndim == 0 else t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def batch_of_times(t: float | Tensor, x: Tensor) -> Tensor:
    """`t` as one time per row of `x`, shape (B,), in the dtype and on the device of `x`."""
    t = as_time(t)
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != x.shape[0]):
        raise ValueError(f"A time must be a scalar or have shape ({x.shape[0]},), and it has {tuple(t.shape)}.")
    return t.to(x).expand(x.shape[0])


def summary(value: DataclassInstance) -> str:
    """The `__repr__` of a value that holds tensors: one line with their shapes, and without what is None."""
    held = {each.name: getattr(value, each.name) for each in fields(value)}
    words = (f"{name}={_short(part)}" for name, part in held.items() if part is not None)
    return f"{type(value).__name__}({', '.join(words)})"


def _short(part: object) -> str:
    if isinstance(part, Tensor):
        return f"Tensor{tuple(part.shape)}"
    if isinstance(part, list):
        return f"list of {len(part)}"
    if type(part) is tuple:
        return f"({', '.join(map(_short, part))})"
    return f"{part:.6g}" if isinstance(part, float) else repr(part)


def event_size(shape: Sequence[int]) -> int:
    """d, the number of values in one sample of a batch of this shape."""
    return math.prod(shape[1:])


def sum_event(x: Tensor) -> Tensor:
    """Sum over everything but the batch axis: (B, *event) to (B,)."""
    return x.flatten(1).sum(1)


def normal(shape: Sequence[int], generator: Generators, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normals of `shape` (B, *event): from one generator, or row b from the b-th of a sequence."""
    return _drawn(torch.randn, shape, generator, dtype, device)


def rand(shape: Sequence[int], generator: Generators, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uniform numbers on [0, 1) of `shape` (B, ...), drawn like `normal`."""
    return _drawn(torch.rand, shape, generator, dtype, device)


def _drawn(
    draw: Callable[..., Tensor], shape: Sequence[int], generator: Generators, dtype: torch.dtype, device: torch.device
) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        return draw(tuple(shape), generator=generator, dtype=dtype, device=device)
    rows = [draw(tuple(shape[1:]), generator=g, dtype=dtype, device=device) for g in generator]
    return torch.stack(rows) if rows else torch.empty(tuple(shape), dtype=dtype, device=device)


def uniform(n: int, generator: Generators, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uniform numbers on (0, 1], shape (n,): the data end of a path, where some targets are infinite, is left out.

    At least float32: half precision would hit the same few times again and again.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    if generator is None or isinstance(generator, torch.Generator):
        return 1 - torch.rand(n, generator=generator, dtype=dtype, device=device)
    return 1 - torch.cat([torch.rand(1, generator=g, dtype=dtype, device=device) for g in generator])


def signs(shape: Sequence[int], generator: Generators, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rademacher numbers, +1 or -1 with equal odds, drawn like `normal`."""
    z = normal(shape, generator, dtype, device)
    return torch.where(z >= 0, 1.0, -1.0).to(dtype)


def first_weight(part: object) -> Tensor | None:
    """The first floating parameter of a module, whose dtype and device its input takes; None where there is none."""
    weights = part.parameters() if isinstance(part, nn.Module) else ()
    return next((p for p in weights if p.is_floating_point()), None)


def dtype_of(part: object, default: torch.dtype) -> torch.dtype:
    """The dtype of a module's weights, or `default` where there are none."""
    first = first_weight(part)
    return default if first is None else first.dtype


def generator_of_rows(generator: Generators, rows: slice | Tensor) -> Generators:
    """The generators of some rows of a batch: the one for all of them, or their own."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    return generator[rows] if isinstance(rows, slice) else [generator[i] for i in rows.tolist()]


def first_generator(generator: Generators) -> torch.Generator | None:
    """The generator of a draw that the whole batch shares: the first where there is one per sample."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    return generator[0] if len(generator) else None
