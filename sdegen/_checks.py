"""Guards shared by the public functions: each raises one full sentence that holds the value it received.

They raise and never assert, so they stand under `python -O` too.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sdegen._derivatives import outside_inference
from sdegen._shapes import Generators, plain, summary

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class NonFiniteError(ValueError):
    """A state or a network output became NaN or infinite; the message names the clock and counts the samples.

    Examples:
        >>> model = sdegen.ScoreModel(lambda x, t: x / 0, sdegen.VPSDE())
        >>> sdegen.sample(model, (2, 1), sdegen.Adams(5))
        Traceback (most recent call last):
        ...
        sdegen._checks.NonFiniteError: ...
    """


class AccuracyWarning(UserWarning):
    """What was asked for runs, and is known or estimated to be less accurate than it was meant to be.

    Examples:
        >>> import warnings
        >>> warnings.simplefilter("error", sdegen.AccuracyWarning)  # stop instead of going on
    """


def stacklevel_outside(*others: str) -> int:
    """The `stacklevel`, for a warning in the calling function, of the first frame outside this package and `others`."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and str(frame.f_globals.get("__name__", "")).partition(".")[0] in ("sdegen", *others):
        frame, level = frame.f_back, level + 1
    return level


def warn_of_few_steps(solver: str, least: int, calls: int, stacklevel: int) -> None:
    """An AccuracyWarning: `solver`, of so many network calls, has fewer steps than the `least` that it needs."""
    warnings.warn(
        f"{solver} takes steps too long for it: its samples are far from the model. Give it at least {least} steps or "
        f"a grid of your own, or take StochasticAdams({calls}) at the same cost.",
        AccuracyWarning,
        stacklevel=stacklevel + 1,
    )


def whole(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """An integer of at least `least`, and at most `most`; NumPy's become Python's, bools and floats are refused."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an integer, and {value!r} is {type(value).__name__}.")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, and it is {number}.")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, and it is {number}.")
    return number


def real(name: str, value: object, low: float = -math.inf, high: float = math.inf, *, strict: bool = False) -> float:
    """A finite number in [low, high], or in (low, high) if `strict`; NumPy's become Python's, bools are refused."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be a real number, and {value!r} is {type(value).__name__}.")
    inside = low < number < high if strict else low <= number <= high
    if not (math.isfinite(number) and inside):
        ends = f"({low}, {high})" if strict else f"[{low}, {high}]"
        raise ValueError(f"{name} must be a finite number in {ends}, and it is {number}.")
    return float(number)


def plain_fields(value: DataclassInstance) -> None:
    """NumPy's numbers among the fields of a frozen value become Python's: it equals, prints and hashes as if given so.

    The first thing that the `__post_init__` of a value with numbers does.
    """
    for each in fields(value):
        given = getattr(value, each.name)
        if given is not (number := plain(given)):
            object.__setattr__(value, each.name, number)


def described(value: object) -> str:
    """A value at the end of a sentence: a class is to be called, a network is named, anything else printed."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself: call it, {value.__name__}(...)"
    return f"the network {type(value).__name__}" if isinstance(value, nn.Module) else repr(value)


def choice(name: str, value: object, valid: Iterable[str]) -> str:
    """One of the names in `valid`."""
    valid = list(valid)
    if not isinstance(value, str) or value not in valid:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"Unknown {name} {value!r}; choose one of {', '.join(map(repr, valid))}.")
    return value


def numbers(name: str, value: object) -> tuple[Tensor, torch.dtype]:
    """Real numbers as a float64 tensor of its own, and the floating dtype they came in, torch's default for a list.

    The numbers of a list never pass through that default: 1e-4 stays 1e-4.
    """
    try:
        raw = torch.as_tensor(value)
        x = raw if raw.is_complex() else torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be real numbers in a tensor, array or list, and it is {value!r}.") from error
    if raw.is_complex() or raw.dtype is torch.bool:
        raise TypeError(f"{name} must be real numbers, and they have dtype {raw.dtype}.")
    return x, raw.dtype if raw.is_floating_point() else torch.get_default_dtype()


def batch(name: str, x: object, *, finite: bool = True) -> Tensor:
    """A floating tensor of shape (B, *event) with finite entries."""
    if not isinstance(x, Tensor):
        hint = f": pass torch.as_tensor({name})" if isinstance(x, (np.ndarray, list, tuple)) else ""
        raise TypeError(f"{name} must be a tensor of shape (B, ...), and it is {type(x).__name__}{hint}.")
    if not x.is_floating_point():
        hint = " Scale integers to floats first; before a likelihood, Quantized(levels).dequantise(n) spreads them."
        raise TypeError(
            f"{name} must have a real floating dtype, and it has {x.dtype}.{'' if x.is_complex() else hint}"
        )
    if x.ndim < 2 or math.prod(x.shape[1:]) == 0:
        raise ValueError(f"{name} must have shape (B, ...), a batch axis and a non-empty event, not {tuple(x.shape)}.")
    if finite and x.numel() and not math.isfinite(x.sum().item()):  # one pass: a finite sum has finite terms
        bad = int((~torch.isfinite(x.flatten(1))).any(1).sum())
        if bad:
            raise ValueError(f"{name} holds NaN or infinite values in {bad} of its {x.shape[0]} samples.")
    return x


def batch_shape(shape: object) -> tuple[int, ...]:
    """A shape (B, *event) of integers; B may be 0."""
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"shape must be a tuple (B, ...) of integers, and it is {shape!r}.")
    sizes = tuple(whole("every size in shape", n, least=0) for n in shape)
    if len(sizes) < 2 or 0 in sizes[1:]:
        raise ValueError(f"shape must be (B, ...), a batch axis and a non-empty event, and it is {sizes}.")
    return sizes


def generators(generator: Generators, size: int, device: torch.device) -> Generators:
    """None, one generator, or `size` of them, all on `device`."""
    if generator is None:
        return None
    several = generator if isinstance(generator, (list, tuple)) else [generator]
    if several is generator and len(several) != size:
        raise ValueError(f"A batch of {size} needs {size} generators, one per sample, and {len(several)} were given.")
    for g in several:
        if not isinstance(g, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or a list of them, and {g!r} is {type(g).__name__}.")
        if g.device.type != device.type:
            raise ValueError(f"generator lives on {g.device}, and the samples are drawn on {device}.")
    return generator


@dataclass(frozen=True)
class Shared:
    """A condition that belongs to the whole batch, whatever its shape: `cond={"table": Shared(table)}`.

    Without it, a tensor whose first dimension is the size of the batch is taken to hold one row per sample, and is cut
    and reordered with the samples. The network receives `value` itself.

    Examples:
        >>> def net(x, t, table):
        ...     return x * table.mean()
        >>> model = sdegen.ScoreModel(net, sdegen.VPSDE())
        >>> cond = {"table": sdegen.Shared(torch.ones(4, 7))}  # 4 rows, and no row for every one of the 4 samples
        >>> sdegen.sample(model, (4, 2), sdegen.Adams(5), cond=cond).shape
        torch.Size([4, 2])
    """

    value: object

    __repr__ = summary


def conditions(cond: object) -> Mapping[str, object]:
    """The mapping from argument names to values that a network receives; None is the empty one."""
    if cond is None:
        return {}
    if not isinstance(cond, Mapping) or not all(isinstance(name, str) for name in cond):
        raise TypeError(f"cond must be a mapping from argument names to values, and it is {type(cond).__name__}.")
    return cond


def shared_names(cond: object) -> frozenset[str]:
    """The names of the conditions that are `Shared`."""
    return frozenset(name for name, value in conditions(cond).items() if isinstance(value, Shared))


class Received(dict[str, object]):
    """What a network receives by its arguments' names, and the names of those that are `Shared` by the whole batch."""

    shared: frozenset[str] = frozenset()


def network_arguments(cond: Mapping[str, object], rows: slice | Tensor | None = None, size: int = 0) -> Received:
    """What the network receives for some `rows` of a batch of `size`, or for all of it.

    A tensor whose first dimension is `size` has one row per sample and is cut, as is a dict of such tensors; what is
    `Shared` is handed over whole. Tensors are copied, so that a network may write into them. A list is refused where
    rows are cut: nobody can tell whether its entries are samples.
    """
    whole = rows is None or (isinstance(rows, slice) and rows == slice(0, size))
    received = Received()
    with outside_inference():
        for name, value in cond.items():
            received[name] = _received(name, value, rows, size, whole)
    uncut = (
        {n for n, v in cond.items() if isinstance(v, Tensor) and v.shape[:1] != (size,)} if rows is not None else set()
    )
    received.shared = (
        shared_names(cond) | uncut
    )  # what has no row per sample is none of these rows, whatever its length
    return received


def _received(name: str, value: object, rows: slice | Tensor | None, size: int, whole: bool) -> object:
    """One condition as the network receives it."""
    if isinstance(value, Shared):
        given = value.value
        return given.clone() if isinstance(given, Tensor) and given.is_inference() else given
    if isinstance(value, Tensor):
        cut = not whole and value.ndim > 0 and len(value) == size
        return value[rows].clone() if cut else value.clone()
    if isinstance(value, Mapping) and (whole or _all_rows(value, size)):
        return dict(network_arguments(value, rows, size))
    if hasattr(value, "__len__") and not isinstance(value, str) and not whole:
        raise TypeError(
            f"cond[{name!r}] is a {type(value).__name__}, and the batch is cut into rows: give a tensor with one row "
            "per sample, a dict of such tensors, or Shared(value) if it belongs to all of them; Shared stands around "
            f"the whole of cond[{name!r}], not around an entry within it."
        )
    return value


def _all_rows(value: Mapping[str, object], size: int) -> bool:
    """Whether every entry is a tensor with one row per sample."""
    return all(isinstance(part, Tensor) and part.shape[:1] == (size,) for part in value.values())


def shared_again(cond: Mapping[str, object], shared: Collection[str]) -> dict[str, object]:
    """The conditions, those that belong to the whole batch marked as `Shared` once more."""
    return {name: Shared(value) if name in shared else value for name, value in cond.items()}


def conditions_of_rows(cond: Mapping[str, object], rows: slice | Tensor, size: int) -> dict[str, object]:
    """The conditions of some rows of a batch, to be handed on: a tensor without a row per sample is `Shared` there."""
    received = network_arguments(cond, rows, size)
    return shared_again(received, received.shared)


def noise_like(noise: object, x: Tensor, name: str = "noise", of: str = "x") -> Tensor:
    """The user's noise, finite (looked at on the CPU alone) and shaped like `x`, called `of`; in its dtype, there."""
    noise = batch(name, noise, finite=isinstance(noise, Tensor) and noise.device.type == "cpu")
    if noise.shape != x.shape:
        raise ValueError(f"{name} must have the shape of {of}, {tuple(x.shape)}, and it has {tuple(noise.shape)}.")
    return noise.to(x)


def inside(name: str, value: Tensor, low: float, high: float, slack: float, whose: object) -> Tensor:
    """`value`, moved into [low, high] where rounding or `slack` alone took it out; a ValueError for more.

    On an accelerator NaN stands for the error, so that nobody waits.
    """
    on_cpu = value.device.type == "cpu"
    if on_cpu:
        if not value.numel():
            return value
        least, most = _extremes(value)
        if low <= least and most <= high:
            return value
    slack = max(slack, torch.finfo(value.dtype).eps * max(abs(low), abs(high)))
    if not on_cpu:
        inside = (value >= low - slack) & (value <= high + slack)
        return torch.where(inside, value.clamp(low, high), math.nan)
    if not (low - slack <= least and most <= high + slack):
        spans = f"it is {least:g}" if value.numel() == 1 else f"it spans [{least:g}, {most:g}]"
        raise ValueError(f"{name} must lie in [{low}, {high}] on {whose!r}, and {spans}.")
    return value.clamp(low, high)


def _extremes(value: Tensor) -> tuple[float, float]:
    """The least and the largest entry, NaN if there is one: a solver asks for them at every query, hence the haste."""
    if not value.ndim:
        only = value.item()
        return only, only
    least, most = (value.detach() if value.requires_grad else value).aminmax()
    return least.item(), most.item()


def same(a: object, b: object) -> bool:
    """Equality of two fields of a value, of which tensors are equal if their dtypes, shapes and numbers are."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype is b.dtype and a.device == b.device and torch.equal(a, b)
    numbers = all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in (a, b))
    return (numbers or type(a) is type(b)) and bool(a == b)


def finite_state(y: Tensor, u: float) -> None:
    """Stop a solve whose state is no longer finite: reads the device once."""
    if not y.numel() or math.isfinite(y.sum().item()):  # as in `batch`
        return
    bad = int((~torch.isfinite(y.flatten(1))).any(1).sum())
    if bad:
        raise NonFiniteError(
            f"The state is NaN or infinite in {bad} of {y.shape[0]} samples at the clock u = {u:.6g} or shortly "
            "before it; check the network's output there, the step size and the precision."
        )
