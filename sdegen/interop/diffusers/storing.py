"""Solvers and grids as JSON: the class's name and its fields, grids and inner solvers nested.

    Adams(20, grid=PowerGrid(2))    {"name": "Adams", "steps": 20, "order": null, "grid": {"name": "PowerGrid", ...}}

Knots are stored digit for digit. Read back are the library's own classes and nothing else.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

import sdegen.solvers
from sdegen._version import __version__
from sdegen.paths.chain import Knots
from sdegen.solvers import Grid, Solver

Stored = dict[str, object] | bool | int | float | str | None
"""What JSON can hold of a field."""

CLASSES: dict[str, type[Solver] | type[Grid]] = {
    name: value
    for name, value in ((name, getattr(sdegen.solvers, name)) for name in sdegen.solvers.__all__)
    if inspect.isclass(value) and issubclass(value, (Solver, Grid)) and not inspect.isabstract(value)
}
"""The solvers and grids that can be read back, by name."""

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32)}


def stored(value: object) -> Stored:
    """A solver, a grid or one of their fields as JSON.

    Args:
        value: the solver.

    Returns:
        what `restored` takes: a dict with the class's name under "name" and its fields.

    Raises:
        ValueError: it holds what JSON cannot, such as a function, or is of a class of one's own.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {"name": "float", "value": str(value)}  # JSON has no infinity
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and str(value.dtype).removeprefix("torch.") in DTYPES:
        name = "Knots" if isinstance(value, Knots) else "Tensor"
        return {"name": name, "values": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (Solver, Grid)) and CLASSES.get(type(value).__name__) is type(value):
        return {"name": type(value).__name__, **{name: stored(getattr(value, name)) for name in _names(value)}}
    raise ValueError(
        f"Only sdegen's own solvers and grids, numbers and tensors can be stored, and {value!r} is none of them."
    )


def restored(value: object) -> object:
    """What `stored` was given.

    Args:
        value: from `stored`, perhaps through a JSON file.

    Returns:
        the solver, equal to the one that was stored.

    Raises:
        ValueError: it names another class, or fields that its class does not have.
    """
    if not isinstance(value, Mapping):
        return value
    rest = {name: restored(field) for name, field in value.items() if name != "name"}
    name = value.get("name")
    try:
        if name == "float":
            return float(rest["value"])  # type: ignore[arg-type]  # a str, or a TypeError that is caught
        if name in ("Knots", "Tensor"):
            tensor = torch.tensor(rest["values"], dtype=DTYPES[str(rest["dtype"])])
            return tensor.as_subclass(Knots) if name == "Knots" else tensor
        return CLASSES[str(name)](**rest)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"This is no solver that sdegen {__version__} can read back: {value!r}.") from error


def _names(value: Solver | Grid) -> list[str]:
    """Of the fields."""
    return [f.name for f in fields(value)]  # type: ignore[arg-type]  # all of CLASSES are dataclasses
