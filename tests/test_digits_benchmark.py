"""The benchmark of held-out digits: how the mixture is chosen, its intervals, and the command run tiny."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

FOLDER = Path(__file__).parent.parent / "benchmarks"

pytest.importorskip("sklearn")


@pytest.fixture
def bench(monkeypatch):
    """benchmarks/digits.py, forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    torch.set_default_dtype(torch.float32)
    yield importlib.import_module("digits")
    sys.modules.pop("digits", None)


def test_intervals_are_student_s(bench):
    values = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    mean, low, high = bench.interval(values)
    expected = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    assert mean == pytest.approx(float(values.mean()), rel=1e-12)
    assert (low, high) == pytest.approx(expected, rel=1e-9)


def test_the_mixture_is_the_best_on_images_it_did_not_see_and_is_then_fitted_to_all(bench, capsys):
    """One that knows its own images by heart is better on them, and loses."""
    images = bench.digits("train")[0][:400]
    by_heart, plain = bench.Choice("full", 20, 1e-5), bench.Choice("diag", 10, 1e-3)
    y = bench.rows(bench.drawn(images, bench.COPIES, 1))
    assert by_heart.fitted(y).score(y.numpy()) > plain.fitted(y).score(y.numpy())
    chosen = bench.best_mixture(images, [by_heart, plain])
    assert (chosen.covariance_type, chosen.n_components) == ("diag", 10)
    assert chosen.score(y.numpy()) == pytest.approx(plain.fitted(y).score(y.numpy()), rel=1e-9)
    assert re.search(r"five:\n +diag .*\n +full", capsys.readouterr().out)


def test_draws_are_independent_and_stay_in_their_cells(bench):
    images = bench.digits("test")[0][:50]
    y = bench.drawn(images, 3, seed=4)
    assert torch.equal(y, bench.drawn(images, 3, seed=4))
    for one in y:
        assert torch.equal(bench.LEVELS.quantise(one), images)
    u = (y + 1) * 17 / 2 - images
    correlation = torch.corrcoef(u.flatten(1).double())
    assert (correlation - torch.eye(3)).abs().max() < 5 / u[0].numel() ** 0.5


@pytest.mark.slow
def test_the_command_compares_all_three_on_the_same_draws(bench, capsys):
    options = {"images": 2, "draws": 2, "steps": 2, "calls": 4, "width": 8, "threads": 1, "choices": 1}
    bench.main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    table = re.findall(r"^\| ([a-zA-Z -]+) \| (-?\d\S+) \|", capsys.readouterr().out, re.MULTILINE)
    bits = {name: float(value) for name, value in table}
    assert len(bits) == 5
    for other in ("best mixture", "Gaussian"):
        assert bits[f"score model - {other}"] == pytest.approx(bits["score model"] - bits[other], abs=2e-3)
