"""`help` says which time a `t` is and which clock a `u`: the path's own, and sigma/(alpha + sigma)."""

from __future__ import annotations

import inspect
import re

import pytest

import sdegen

HOOKS = {"change", "gain", "plan", "predict", "query", "scale_at", "stages", "march", "checked_times", "checked_clocks"}
OTHERS = {"Quantized.spread"}  # its u is where in a cell a value lies
SAYS = {"t": r"path's own times?\b|t_data", "u": r"u: as in `|straight clock"}


def callables():
    """(name, function) of every exported function, and of the public methods of every exported class."""
    for name in sdegen.__all__:
        thing = getattr(sdegen, name)
        if inspect.isfunction(thing):
            yield name, thing
        if inspect.isclass(thing):
            for attribute in dir(thing):
                method = inspect.getattr_static(thing, attribute)
                ours = inspect.isfunction(method) and method.__module__.startswith("sdegen")
                if ours and not attribute.startswith("_"):
                    yield f"{name}.{attribute}", method


@pytest.mark.parametrize("argument", SAYS)
def test_every_time_and_clock_is_explained(argument):
    asked = {
        name: f
        for name, f in callables()
        if argument in inspect.signature(f).parameters and name.rpartition(".")[2] not in HOOKS and name not in OTHERS
    }
    assert len(asked) > 30
    silent = [name for name, f in asked.items() if not re.search(SAYS[argument], re.sub(r"\s+", " ", f.__doc__))]
    assert silent == []
