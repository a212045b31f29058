from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    from matplotlib import pyplot

    yield
    pyplot.close("all")
