"""The benchmarks' targets, error and published rows, a peer of each installed family, and the commands run tiny."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """import of a module of benchmarks/, a folder of scripts; forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_gmm16_is_the_target_of_the_published_rows(bench):
    target = bench("targets").gmm16()
    assert target._means[0, :3].tolist() == pytest.approx([0.8341498547087424, 0.3940113231255495, -1.6648499139709096])
    assert target._log_weights.exp()[:2].tolist() == pytest.approx([0.04266783260453036, 0.08090290586578815])


def test_the_worst_two_percent_do_not_count_but_no_value_may_be_infinite(bench):
    error = bench("targets").error
    fine = torch.zeros(100, 4, dtype=torch.float64)
    x = torch.full_like(fine, 0.5)
    x[:2] = 1e3
    assert error(x, fine) == pytest.approx(0.5, rel=1e-14)
    x[2] = 1e3
    assert error(x, fine) == pytest.approx((0.25 + (1e6 - 0.25) / 98) ** 0.5, rel=1e-12)
    x[0, 0] = math.nan
    assert error(x, fine) == math.inf


@pytest.mark.parametrize(
    ("package", "name", "calls"),
    [("diffusers", "UniPC2 · exp,zero", 20), ("flow_matching", "midpoint · CondOT", 20)],
)
def test_a_peer_makes_its_published_error(bench, package, name, calls):
    pytest.importorskip(package)
    torch.set_default_dtype(torch.float32)  # as users of these packages have it
    accuracy, published = bench("accuracy"), dict(bench("published").PUBLISHED["ring8"][calls])
    (peer,) = [peer for peer in bench("peers").ode_peers() if peer.name == f"{package} {name}"]
    fines = accuracy.on_target("ring8")
    (row,) = accuracy.theirs({peer.path: fines[peer.path]}, [peer], [calls])
    assert row.calls == calls
    assert f"{row.error:.1e}" == f"{published[peer.name]:.1e}"


@pytest.mark.parametrize(
    ("target", "mean", "worst"), [("ring8", 0.5, 0.75), ("gmm16", 0.7, 1.2), ("narrow9", 0.65, 1.8)]
)
def test_adams_beats_the_best_peers_at_equal_calls(bench, target, mean, worst):
    """Error over the best published variant, chosen anew at every number of calls, and over the third-best."""
    accuracy, targets = bench("accuracy"), bench("targets")
    fine = accuracy.on_target(target)["VPSDE"]
    rows = accuracy.ours(fine, {"Adams": accuracy.SOLVERS["Adams"]}, targets.CALLS)
    assert [row.calls for row in rows] == list(targets.CALLS)
    first, third = (accuracy.ratios(target, rows, rank) for rank in (1, 3))
    assert accuracy.geometric_mean(first.values()) < mean
    assert max(third.values()) < worst


def test_a_solver_as_good_as_the_third_best_peer_has_the_mean_ratio_one(bench):
    accuracy, calls = bench("accuracy"), bench("targets").CALLS
    third = [accuracy.Measured("third", n, n, rows[2][1]) for n, rows in bench("published").PUBLISHED["gmm16"].items()]
    cells = accuracy.table("gmm16", third, calls).splitlines()[2].split("|")
    assert cells[-2].split(",")[1].strip() == "1.00"
    assert all(cell.strip().endswith("1.00)") for cell in cells[2:-2])


def test_the_commands_run_tiny(bench, capsys, tmp_path):
    out = tmp_path / "accuracy.png"
    arguments = ["--targets", "narrow9", "--calls", "8", "--points", "50", "--no-peers", "--out", str(out)]
    bench("accuracy").main(arguments)
    bench("stochastic").main(["--targets", "ring8", "--calls", "4", "--samples", "300", "--no-peers"])
    said = capsys.readouterr().out
    for name in (*bench("accuracy").SOLVERS, *bench("stochastic").SOLVERS):
        assert f"| {name} |" in said
    assert 2_000 < out.stat().st_size < 150_000


def test_a_trained_network_is_measured_against_its_own_fine_solution(bench):
    learned, accuracy = bench("learned"), bench("accuracy")
    solvers = {"rk4": accuracy.SOLVERS["ODESolver rk4"]}
    mine, others = learned.measure(learned.fine_of(learned.plane_mlp(), (20, 2)), solvers, [], [100, 200])
    assert others == []
    assert mine[1].error < 1e-4
    assert mine[0].error > 6 * mine[1].error  # order 4 would be 16


def test_what_a_step_of_fit_costs_is_measured(bench, capsys):
    pytest.importorskip("accelerate")
    torch.set_default_dtype(torch.float32)
    bench("fitting").main(["--steps", "50", "--rounds", "1"])
    assert "| fit | " in capsys.readouterr().out
