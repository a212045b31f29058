"""The picture of error against calls draws the rows, and says why it cannot."""

from __future__ import annotations

import math
import sys

import pytest
from matplotlib.figure import Figure

import sdegen
from sdegen.comparison import Run
from sdegen.plot import calls_against_error

ROWS = [
    Run("rk4", 20, 0.1, 1e-3, None),
    Run("rk4", 8, 0.1, 1e-1, None),
    Run("SDE", 8, 0.1, None, 0.3),
    Run("Adams", 8, 0.1, 1e-2, None),
    Run("Adams", 20, 0.1, math.inf, None),
    Run("itself", 8, 0.1, 0.0, None),
]


def test_every_solver_with_errors_is_a_line_on_logarithmic_scales():
    ax = Figure().subplots()
    assert calls_against_error(sdegen.Comparison(ROWS), ax) is ax
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    assert drawn == {"rk4": [[8, 1e-1], [20, 1e-3]], "Adams": [[8, 1e-2]]}
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["rk4", "Adams"]
    assert ax.get_xlabel() == "network calls"
    assert "RMS error" in ax.get_ylabel()


def test_a_figure_of_its_own_can_be_saved(tmp_path):
    from matplotlib import pyplot

    ax = calls_against_error(sdegen.Comparison(ROWS))
    ax.figure.savefig(tmp_path / "calls.png")
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    pyplot.close(ax.figure)
    assert (tmp_path / "calls.png").stat().st_size > 5000
    assert {"10", "20"} <= set(ticks)


def test_nothing_to_draw_is_refused():
    lost, quiet, itself = Run("lost", 8, 0.1, math.inf, None), ROWS[2], ROWS[5]
    reasons = {
        (quiet,): "None of the solvers SDE has an error to draw: stochastic solvers have none\\.",
        (lost, lost): "None of the solvers lost has an error to draw: that of a lost state is infinite\\.",
        (itself,): "None of the solvers itself has an error to draw: that of the reference itself is 0\\.",
        (
            quiet,
            itself,
            lost,
        ): "solvers SDE, itself, lost has an error to draw: stochastic.*, that of .* 0, that of a lost",
        (): "The comparison has no rows, and there is nothing to draw",
    }
    for rows, words in reasons.items():
        with pytest.raises(ValueError, match=words):
            calls_against_error(sdegen.Comparison([*rows]))
    with pytest.raises(TypeError, match=r"comparison must be what sdegen.compare returned, and it is 3"):
        calls_against_error(3)
    with pytest.raises(TypeError, match=r"ax must be the Axes to draw on, .* and it is \[3\]"):
        calls_against_error(sdegen.Comparison(ROWS), [3])


def test_a_name_with_an_underscore_is_in_the_legend():
    rows = [ROWS[0], Run("_own", 8, 0.1, 1e-2, None)]
    ax = calls_against_error(sdegen.Comparison(rows), Figure().subplots())
    assert [text.get_text().strip() for text in ax.get_legend().get_texts()] == ["rk4", "_own"]


def test_without_matplotlib_a_sentence_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"Pictures need matplotlib; install .* `pip install 'sdegen\[plot\]'`\."):
        calls_against_error(sdegen.Comparison(ROWS))
