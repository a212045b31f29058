"""evaluate: every sample's own number, their mean with its interval, and nothing computed twice."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from problems import ring
from scipy import stats
from torch import nn

import sdegen
from sdegen.journal import sample_generators
from sdegen.likelihoods import evaluation
from sdegen.likelihoods.evaluation import Evaluation, evaluate

SOLVER = sdegen.ODESolver("rk4", steps=3)
CPU = torch.device("cpu")


class Field(nn.Module):
    """A network with a condition per sample and a table for all of them; it counts the rows it is asked for."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]]))
        self._rows = 0

    def forward(self, x, t, label=None, table=None):
        self._rows += len(x)
        x = x if label is None else x + 0.1 * label[:, None]
        x = x if table is None else x * table.mean(0)
        return torch.tanh(x @ self.weight) + t[:, None]


def field() -> sdegen.ScoreModel:
    return sdegen.ScoreModel(Field(), sdegen.CondOT(), "velocity")


def points(n=11):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(4))


def test_a_sample_has_the_number_of_log_prob_in_its_chunk_with_its_own_generator():
    model, x, trace = field(), points(), sdegen.Hutchinson(2)
    found = evaluate(model, x, solver=SOLVER, batch_size=4, trace=trace, seed=3)
    for rows in (range(0, 4), range(4, 8), range(8, 11)):
        part = slice(rows.start, rows.stop)
        own = sample_generators(3, rows, CPU)
        assert torch.equal(found.per_sample[part], sdegen.log_prob(model, x[part], SOLVER, trace=trace, generator=own))
    other = evaluate(model, x, solver=SOLVER, batch_size=5, trace=trace, seed=3)
    torch.testing.assert_close(other.per_sample, found.per_sample, rtol=0, atol=1e-12)
    again = evaluate(model, x, solver=SOLVER, trace=trace, seed=4)
    assert float((again.per_sample - found.per_sample).abs().max()) > 1e-4
    assert found.complete
    assert found.kind == "density"


def test_the_global_generator_is_left_alone(tmp_path):
    state = torch.get_rng_state()
    evaluate(field(), points(), solver=SOLVER, trace=sdegen.Hutchinson(1), directory=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_defaults_are_those_of_log_prob_and_the_exact_density_is_found():
    target = ring()
    x = target.sample(8, torch.Generator().manual_seed(1))
    found = evaluate(target.model(sdegen.CondOT()), x, batch_size=5)
    torch.testing.assert_close(found.per_sample, target.log_prob(x), rtol=0, atol=1e-5)
    assert found.mean == pytest.approx(float(target.log_prob(x).mean()), abs=1e-5)


def test_mean_and_interval_are_the_textbook_s():
    x = torch.tensor([1.0, 2.0, 4.0, 8.0, math.nan])
    found = Evaluation(x, 3, "density", False)
    assert found.mean == 3.75
    low, high = stats.t.interval(0.95, 3, loc=3.75, scale=stats.sem(x[:4].numpy()))
    assert found.interval == pytest.approx((low, high), rel=1e-12)
    assert found.bits_per_dim == pytest.approx(-3.75 / (3 * math.log(2)))
    assert found.bits_interval == pytest.approx((-high / (3 * math.log(2)), -low / (3 * math.log(2))))
    assert found.bits_interval[0] < found.bits_per_dim < found.bits_interval[1]
    assert found.scored.tolist() == [0, 1, 2, 3]
    assert repr(found).startswith(
        "Evaluation(density, 4 of 5 samples: 3.75 nats in [-1.17594, 8.67594], -1.8034 bits/dim"
    )
    assert "numerical error unknown" in str(found)
    one, none = Evaluation(x[:1], 3, "density", True), Evaluation(x[4:], 3, "density", False)
    assert one.interval == none.interval == (-math.inf, math.inf)
    assert math.isnan(none.mean)


def test_the_interval_covers_the_true_mean():
    """4000 data sets of ten: 95 % of the intervals, to six deviations of a binomial."""
    x = torch.randn(4000, 10, generator=torch.Generator().manual_seed(0))
    covered = sum(low <= 0 <= high for low, high in (Evaluation(row, 1, "density", True).interval for row in x))
    assert abs(covered - 3800) < 6 * math.sqrt(4000 * 0.95 * 0.05)


def test_the_errors_of_every_sample_are_kept_and_added_up(tmp_path, monkeypatch):
    class Result:
        def __init__(self, x):
            self.log_prob, self.solver_error, self.probe_error = x[:, 0], x[:, 1].abs(), None
            self.prior_gap = 0.1 + 0 * x[:, 0]

    monkeypatch.setattr(evaluation, "log_likelihood", lambda model, x, *_, **__: Result(x))
    x = points()
    for found in (
        evaluate(field(), x, batch_size=4),
        evaluate(field(), x, batch_size=4, directory=tmp_path),
        evaluate(field(), x, batch_size=4, directory=tmp_path),
    ):
        assert found.errors.keys() == {"solver_error", "prior_gap"}
        assert torch.equal(found.errors["solver_error"], x[:, 1].abs())
        assert found.error == pytest.approx(float(x[:, 1].abs().mean()) + 0.1)
        assert found.unknown == ("probe_error",)
    part = evaluate(field(), x, batch_size=4, shard=(2, 3))
    assert part.error == pytest.approx(float(x[8:, 1].abs().mean()) + 0.1)
    assert bool(part.errors["prior_gap"][:8].isnan().all())


def test_a_finished_directory_asks_no_network_and_damage_costs_one_chunk(tmp_path):
    model, x, options = field(), points(), {"solver": SOLVER, "batch_size": 4, "directory": tmp_path}
    first = evaluate(model, x, **options)
    assert model.net._rows > 0
    model.net._rows = 0
    assert torch.equal(evaluate(model, x, **options).per_sample, first.per_sample)
    assert model.net._rows == 0
    file = tmp_path / "chunk-00000001.npz"
    file.write_bytes(file.read_bytes()[:-1])
    others = evaluate(model, x, shard=(0, 2), **options)
    assert model.net._rows == 0
    assert not others.complete
    assert others.scored.tolist() == [0, 1, 2, 3, 8, 9, 10]
    assert torch.equal(evaluate(model, x, **options).per_sample, first.per_sample)
    assert 0 < model.net._rows <= 4 * 4 * SOLVER.steps


def test_what_cannot_begin_leaves_a_directory_that_any_other_may_use(tmp_path):
    x, model = points(), field()
    with pytest.raises(ValueError, match="Unknown trace 'some'"):
        evaluate(model, x, directory=tmp_path, solver=SOLVER, trace="some")
    with pytest.raises(ValueError, match="NaN or infinite values in 11 of its 11 samples"):
        evaluate(model, x / 0, directory=tmp_path, solver=SOLVER)
    assert evaluate(model, x, directory=tmp_path, solver=SOLVER).complete


class Fragile(nn.Module):
    """It fails far from the origin."""

    def forward(self, x, t):
        if bool((x.detach().abs() > 1e6).any()):
            raise MemoryError("too far")
        return -x


def test_a_failure_keeps_the_chunks_before_it(tmp_path):
    x, model = points(), sdegen.ScoreModel(Fragile(), sdegen.CondOT(), "velocity")
    x[9] = 1e7
    with pytest.raises(MemoryError, match="too far"):
        evaluate(model, x, solver=SOLVER, directory=tmp_path, batch_size=4)
    assert {file.name for file in tmp_path.glob("chunk-*")} == {"chunk-00000000.npz", "chunk-00000001.npz"}


def test_nan_is_refused_by_the_sample_s_number(monkeypatch):
    found = torch.tensor([0.0, math.nan, 0.0, 0.0])
    monkeypatch.setattr(
        evaluation, "log_likelihood", lambda model, x, *_, **__: SimpleNamespace(log_prob=found[: len(x)])
    )
    with pytest.raises(sdegen.NonFiniteError, match="of 1 samples is NaN, the first of them sample 1"):
        evaluate(field(), points(), batch_size=4)


@pytest.mark.parametrize("solver", [SOLVER, sdegen.ODESolver("dopri5", rtol=1e-3, steps_for="sample")], ids=repr)
def test_conditions_are_cut_with_the_data_and_shared_ones_are_not(solver):
    """The table has as many rows as a chunk, in which it must not be taken for one row per sample."""
    model, x = field(), points(12)
    label, table = torch.arange(12.0), torch.stack([torch.full((2,), 0.5 + k) for k in range(4)])
    cond = {"label": label, "table": table}
    found = evaluate(model, x, solver=solver, batch_size=4, cond=cond)
    for start in (0, 4, 8):
        rows = slice(start, start + 4)
        own = {"label": label[rows], "table": sdegen.Shared(table)}
        assert torch.equal(found.per_sample[rows], sdegen.log_prob(model, x[rows], solver, cond=own))
    wide = {"label": label, "table": sdegen.Shared(torch.ones(12, 2))}
    bare = evaluate(model, x, solver=solver, batch_size=4, cond={"label": label})
    assert torch.equal(evaluate(model, x, solver=solver, batch_size=4, cond=wide).per_sample, bare.per_sample)


def test_progress_shows_a_step_a_chunk(capsys):
    evaluate(field(), points(), solver=SOLVER, batch_size=4, shard=(0, 2), progress=True)
    assert "2/2" in capsys.readouterr().err


def test_single_precision_stays_so(tmp_path):
    model, x = field().float(), points().float()
    there = evaluate(model, x, solver=SOLVER, directory=tmp_path)
    assert there.per_sample.dtype is torch.float32
    assert evaluate(model, x, solver=SOLVER, shard=(1, 2)).mean != there.mean
