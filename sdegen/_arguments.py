"""What every verb does with its arguments: checks, the part of the path, the coordinates, the mode of the network."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._checks import AccuracyWarning
from sdegen.models.base import SHORT_OF_AN_END, Model, instead_of_model
from sdegen.models.standardised import Standardize


def check_model(model: object) -> None:
    """A TypeError unless `model` is one."""
    if not isinstance(model, Model):
        raise TypeError(
            f"model must be a ScoreModel or the .model(path) of an exact target, and it is {instead_of_model(model)}."
        )


def interval(
    model: Model, to: str, u: tuple[float, float] | None, span: tuple[float, float] | None = None
) -> tuple[float, float]:
    """(u_from, u_to): the part of the path that was asked for, or the `span` of the solver's grid, or all of it."""
    low, high = model.path.ends
    if u is None:
        top, bottom = (high, low) if span is None else span
        ends = (top, bottom) if to == "data" else (bottom, top)
        model.covers(*ends)
        return ends
    if not isinstance(u, (tuple, list)) or len(u) != 2:
        raise TypeError(f"u must be a pair (from, to) on the straight clock, and it is {u!r}.")
    u_from, u_to = (_checks.real("every end in u", end) for end in u)
    if not all(low - ROUNDING <= end <= high + ROUNDING for end in (u_from, u_to)):
        raise ValueError(f"u = ({u_from}, {u_to}) leaves the path: {model.path!r} runs from u = {low} to {high}.")
    if u_from == u_to or (u_from > u_to) != (to == "data"):
        order = "from > to" if to == "data" else "from < to"
        raise ValueError(f"A solve to the {to} needs u with {order}, and it is ({u_from}, {u_to}).")
    ends = min(max(u_from, low), high), min(max(u_to, low), high)
    model.covers(*ends)
    return ends


ROUNDING = torch.finfo(torch.float32).eps
"""How far beyond the path an end may lie: what single precision makes of the path's own."""

MOST_GAIN = 1000.0
"""How many times an error of the network may enter dy/du at the noise end without a word: 153 for eps on VP."""


def warn_of_tiny_alpha(model: Model, u_from: float, u_to: float, fixed: bool = False) -> None:
    """An AccuracyWarning where a network is asked so near pure noise that its errors are multiplied a thousand times.

    `fixed`: the ends are those of a grid, which no u= can move. An infinite factor is no matter of accuracy: such a
    question is refused, see `Model.plan`.
    """
    top, inside = max(u_from, u_to), 1 - SHORT_OF_AN_END
    if model.clips or top <= inside:
        return
    gain = float(model.gain(torch.tensor([top], dtype=torch.float64)))
    if not MOST_GAIN < gain < math.inf:
        return
    start, end = (min(u, inside) for u in (u_from, u_to))
    moves = start != end and not fixed
    advice = f"Give u=({start}, {end}), which stays inside" if moves else f"Stay below u = {inside}"
    warnings.warn(
        f"At u = {top:.6g} alpha/sigma is {(1 - top) / top:.2g}, and what is wrong with the network's answer there is "
        f"multiplied by {gain:.3g}: samples may explode, and densities be off. {advice}, or give the model as "
        "sdegen.Clipped(model, low, high), whose x_hat stays in the range of the data.",
        AccuracyWarning,
        stacklevel=_checks.stacklevel_outside(),
    )


def straight(model: Model, x: Tensor, u: float, differentiable: bool = False) -> Tensor:
    """y = x/r at the clock `u`, in at least float32: half precision would round the clock's steps away.

    Data, at the data end of the path, pass to the network's units first.
    """
    x = x if differentiable else x.detach()
    x = x.to(torch.promote_types(x.dtype, torch.float32)).clone()
    if model.standardize is not None:
        model.standardize.check(x)
    units = units_at(model, u)
    return (x if units is None else units(x)) / scale_at(model, u)


def state(model: Model, y: Tensor, u: float) -> Tensor:
    """x = r y at the clock `u`: at the data end of the path, data in their own units."""
    x, units = scale_at(model, u) * y, units_at(model, u)
    return x if units is None else units.inverse(x)


def units_at(model: Model, u: float) -> Standardize | None:
    """The units of the data where they are not the network's and the clock is at the data end; None elsewhere."""
    units = model.standardize
    return None if units is None or u > model.path.ends[0] + ROUNDING else units


def scale_at(model: Model, u: float) -> float:
    """r = alpha + sigma at the clock `u`."""
    return float(model.path.scale(torch.tensor(u, dtype=torch.float64)))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, no inference mode, and every module of the model in eval mode, put back as it was afterwards."""
    for module in model.modules():
        for name in ("net", "log_weight", "A", "encoder", "decoder"):
            warn_of_hidden_modules(name, getattr(module, name, None))
    with torch.inference_mode(False), torch.no_grad(), in_eval_mode(model):
        yield


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module of the model in eval mode, put back as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def solving(model: nn.Module, differentiable: bool) -> AbstractContextManager[None]:
    """`evaluating`, or where the solve is to be differentiable gradients on and every module in the mode it is in."""
    return nullcontext() if differentiable else evaluating(model)


_SWITCHED = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)


def warn_of_hidden_modules(name: str, net: object) -> None:
    """A warning where a function hides a module in training mode that eval mode would change: it cannot be reached."""
    if net is None or isinstance(net, nn.Module) or not callable(net):
        return
    for module in _modules_behind(net):
        switched = next((m for m in module.modules() if isinstance(m, _SWITCHED) and m.training), None)
        if switched is not None:
            warnings.warn(
                f"{name} is a function that hides {type(module).__name__}, whose {type(switched).__name__} is in "
                "training mode and stays in it: call .eval() on it, or give the module itself.",
                UserWarning,
                stacklevel=_checks.stacklevel_outside("contextlib"),
            )
            return


def _modules_behind(net: Callable[..., object]) -> list[nn.Module]:
    """The modules that a function, a method or a partial holds or names."""
    held: list[object] = []
    while isinstance(net, functools.partial):
        held += [*net.args, *net.keywords.values()]
        net = net.func
    held += [net, getattr(net, "__self__", None)]
    if inspect.isfunction(net):
        names = inspect.getclosurevars(net)
        held += [*names.nonlocals.values(), *names.globals.values()]
    for thing in [*held]:  # and what these hold, one level down
        parts = thing if isinstance(thing, dict) else getattr(thing, "__dict__", {})
        held += [] if isinstance(thing, (nn.Module, type, ModuleType)) else [*parts.values()]
    return [thing for thing in held if isinstance(thing, nn.Module)]


def batch_parts(x: Tensor, batch_size: int | None) -> Iterator[slice]:
    """Slices of the batch with at most `batch_size` rows, or all of it."""
    size = len(x) if batch_size is None else _checks.whole("batch_size", batch_size)
    for start in range(0, len(x), max(size, 1)):
        yield slice(start, min(start + size, len(x)))
