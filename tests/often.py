"""Laws over many members: some members in every run of the tests, all of them at night."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def often(names: Iterable[str], *kept: str) -> list[object]:
    """The names as parameters, marked nightly unless they are among `kept`."""
    names = list(names)
    assert set(kept) <= set(names), "a name is kept that is none"
    return [pytest.param(name, marks=[] if name in kept else pytest.mark.nightly) for name in names]
