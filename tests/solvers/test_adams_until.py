"""AdamsUntil: it doubles, lets go whom it is done with, warns once, and is for log-densities alone."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from kinked import Bent
from mixtures import known
from problems import PATHS, ring

import sdegen

LOOSE = sdegen.AdamsUntil(1e-3, first=20, max_steps=640)


def test_every_sample_gets_the_number_of_its_round():
    """That of Adams with the fewest steps, 20, 40, ..., at which its own estimate is small enough."""
    x, _, model, prior = known("ring8", PATHS["vp"], 64)
    ours = sdegen.log_likelihood(model, x, LOOSE, prior=prior)
    steps, rounds = torch.zeros(64), 0
    for n in (20, 40, 80, 160, 320):
        left = steps == 0
        if not left.any():
            break
        rounds += 1
        fixed = sdegen.log_likelihood(model, x, sdegen.Adams(n), prior=prior)
        done = left & (fixed.solver_error <= 1e-3)
        for field in ("log_prob", "latent", "solver_error"):
            torch.testing.assert_close(getattr(ours, field)[done], getattr(fixed, field)[done], rtol=0, atol=1e-12)
        steps[done] = n
    assert len(steps.unique()) >= 2
    assert ours.calls == sum(20 * 2**k + 1 for k in range(rounds))
    assert ours.accepted == ours.calls - rounds


def test_steps_double_and_finished_samples_leave():
    """Rows of every call: the whole batch in the first round, fewer from round to round, none that is done."""
    flow = Bent(torch.tensor([0.3, -0.4]), torch.tensor([0.4, -0.35]))
    x = torch.cat([torch.randn(20, 2), 3 + torch.rand(12, 2)])  # the last ones never meet a kink
    sdegen.log_likelihood(flow.model, x, LOOSE)
    flow.rows.clear()
    ours = sdegen.log_likelihood(flow.model, x, LOOSE)
    calls, rounds = iter(flow.rows), []
    while round_ := list(itertools.islice(calls, 20 * 2 ** len(rounds) + 1)):
        assert len(round_) == 20 * 2 ** len(rounds) + 1
        assert len(set(round_)) == 1
        rounds.append(round_[0])
    assert rounds == sorted(rounds, reverse=True)
    assert (rounds[0], rounds[-1] <= 20, len(rounds) > 2) == (32, True, True)
    assert ours.calls == len(flow.rows)


def test_a_kink_costs_accuracy_and_not_calls():
    """The last round, then one warning that says how many are off, and the error that covers the truth."""
    flow = Bent(torch.tensor([0.3, -0.4]), torch.tensor([1.5, 0.9]))
    x = torch.randn(16, 2)
    solver = sdegen.AdamsUntil(1e-9, rtol=0.0)
    with pytest.warns(sdegen.AccuracyWarning) as caught:
        ours = sdegen.log_likelihood(flow.model, x, solver)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    bad = int((ours.solver_error > 1e-9).sum())
    words = f"the error estimates of {bad} of 16 log-densities are above atol still, up to "
    assert words in str(caught[0].message)
    assert str(caught[0].message).startswith(repr(solver))
    assert ours.calls == 80 + 160 + 320 + 640 + 1280 + 5 == len(flow.rows[-ours.calls :])
    assert int(((ours.log_prob - flow.log_prob(x)).abs() <= ours.solver_error).sum()) >= 15
    assert float((ours.log_prob - flow.log_prob(x)).abs().max()) < 5e-3


def test_no_more_steps_than_the_last_round():
    x, _, model, prior = known("ring8", PATHS["vp"], 4)
    with pytest.warns(sdegen.AccuracyWarning, match=r"reached its last round.* 4 of 4 log-densities"):
        ours = sdegen.log_likelihood(model, x, sdegen.AdamsUntil(1e-14, first=10, max_steps=39), prior=prior)
    assert ours.calls == 11 + 21
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sdegen.log_likelihood(model, x, sdegen.AdamsUntil(100.0, first=10, max_steps=10), prior=prior)


def test_outliers_need_not_be_better_than_their_size_allows():
    """At |x| = 100 a log-density of -1e4 and less: a millionth of that is enough, and rtol=0 asks for more."""
    model, x = ring().model(PATHS["vp"]), torch.tensor([[100.0, 0.0], [0.0, -60.0]])
    prior = ring().marginal(PATHS["vp"], 1.0)
    true = ring().log_prob(x)
    ours = sdegen.log_likelihood(model, x, prior=prior)
    assert float(((ours.log_prob - true) / true).abs().max()) < 1e-6
    with pytest.warns(sdegen.AccuracyWarning):
        strict = sdegen.log_likelihood(model, x, sdegen.AdamsUntil(1e-10, rtol=0.0, max_steps=320), prior=prior)
    assert strict.calls == 563


@pytest.mark.parametrize("wrapped", [False, True])
def test_conditions_that_cannot_be_cut(wrapped):
    """A mapping in cond is handed over whole to all samples, in every round: the numbers stay the same."""

    class Net(torch.nn.Module):
        rows: list[int] = []  # noqa: RUF012

        def forward(self, x, t, table):
            self.rows.append(len(x))
            return torch.tanh(3 * x + table["shift"]) * (1 + t[:, None])

    net, x = Net(), torch.cat([torch.randn(5, 2), torch.full((1, 2), 9.0)])
    model, table = sdegen.ScoreModel(net, sdegen.CondOT(), "velocity"), {"shift": torch.tensor([0.3, -1.0])}
    solver = sdegen.AdamsUntil(1e-5, first=20)
    ours = sdegen.log_likelihood(model, x, solver, cond={"table": sdegen.Shared(table) if wrapped else table})
    assert (set(net.rows[-ours.calls :]) == {6}) == (not wrapped)
    plain = sdegen.vector_field(lambda x, t: torch.tanh(3 * x + table["shift"]) * (1 + t[:, None]))
    torch.testing.assert_close(ours.log_prob, sdegen.log_prob(plain, x, sdegen.Adams(640)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("u", [(0.05, 0.9), (0.0, 0.5)])
def test_part_of_the_path(u):
    path, target = PATHS["vp"], ring()
    t_from, t_to = (float(path.time(end)) for end in u)
    x = target.marginal(path, t_from).sample(16)
    ours = sdegen.log_likelihood(target.model(path), x, u=u, prior=target.marginal(path, t_to))
    assert float((ours.log_prob - target.marginal(path, t_from).log_prob(x)).abs().max()) < 1e-4


def test_it_leaves_sooner_where_the_trace_is_noisier_than_the_solver():
    """With several probes the standard error is enough; with one, whose error is unknown, atol stays."""
    x, _, model, prior = known("gmm16", PATHS["vp"], 16)
    g = torch.Generator().manual_seed(0)
    solver = sdegen.AdamsUntil()
    several = sdegen.log_likelihood(model, x, solver, prior=prior, trace=sdegen.Hutchinson(4), generator=g)
    assert several.calls == 81
    assert bool((several.solver_error <= several.probe_error.clamp(min=1e-4) * 1.01).all())
    one = sdegen.log_likelihood(model, x, solver, prior=prior, trace=sdegen.Hutchinson(1), generator=g)
    assert one.calls > 81
    assert float(one.solver_error.max()) <= 1.01e-4


@pytest.mark.parametrize("solver", [sdegen.AdamsUntil(4e-5), sdegen.ODESolver("dopri5", rtol=1e-2, steps_for="sample")])
def test_who_stays_keeps_probes_of_their_own(solver):
    """One probe per sample, whose batch-mates leave: the number of the sample alone."""
    x, _, model, prior = known("gmm16", PATHS["vp"], 12, seed=2)

    def ours(rows):
        seeded = [torch.Generator().manual_seed(i) for i in rows]
        return sdegen.log_likelihood(model, x[rows], solver, prior=prior, trace=sdegen.Hutchinson(1), generator=seeded)

    every = ours([*range(12)])
    alone = [ours([i]) for i in range(12)]
    assert len({one.calls for one in alone}) > 1
    torch.testing.assert_close(every.log_prob, torch.cat([one.log_prob for one in alone]), rtol=0, atol=1e-11)


def test_who_stays_keeps_conditions_of_their_own():
    """One row per sample, cut with the batch: the number of the sample alone."""
    model = sdegen.vector_field(lambda x, t, pace: torch.sin(pace[:, None] * x) * (1 + t[:, None]))
    x, pace = torch.randn(6, 2), torch.tensor([6.0, 0.1, 5.0, 0.2, 0.1, 4.0])
    solver = sdegen.AdamsUntil(1e-5, first=20)
    every = sdegen.log_likelihood(model, x, solver, cond={"pace": pace})
    alone = [sdegen.log_likelihood(model, x[i : i + 1], solver, cond={"pace": pace[i : i + 1]}) for i in range(6)]
    assert len({one.calls for one in alone}) > 1
    torch.testing.assert_close(every.log_prob, torch.cat([one.log_prob for one in alone]), rtol=0, atol=1e-11)


def test_it_is_for_log_densities_alone():
    model, x = ring().model(PATHS["vp"]), ring().sample(2)
    words = r"AdamsUntil\(.*\) measures the error of a log-density; to move samples take Adams or ODESolver\."
    for verb in (
        lambda s: sdegen.encode(model, x, s),
        lambda s: sdegen.decode(model, x, s),
        lambda s: sdegen.sample(model, (2, 2), s),
    ):
        with pytest.raises(ValueError, match=words):
            verb(sdegen.AdamsUntil())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"atol": 0.0}, ValueError, r"atol must be a finite number in \(0, inf\), and it is 0\.0"),
        ({"atol": "1"}, TypeError, "atol must be a real number, and '1' is str"),
        ({"rtol": -1.0}, ValueError, r"rtol must be a finite number in \[0, inf\], and it is -1\.0"),
        ({"first": 0}, ValueError, "first must be at least 1, and it is 0"),
        ({"first": 8.0}, TypeError, r"first must be an integer, and 8\.0 is float"),
        ({"max_steps": 79}, ValueError, "max_steps must be at least 80, and it is 79"),
        ({"order": 5}, ValueError, "order must be at most 4, and it is 5"),
        ({"grid": torch.linspace(1, 0, 81)}, TypeError, "grid must be a Grid"),
        ({"grid": 2}, TypeError, "grid must be a Grid"),
    ],
)
def test_options(options, error, words):
    with pytest.raises(error, match=words):
        sdegen.AdamsUntil(**options)


def test_it_is_a_value():
    assert sdegen.AdamsUntil() == sdegen.AdamsUntil(1e-4, first=80, max_steps=1280, order=4) != sdegen.AdamsUntil(1e-5)
    assert hash(sdegen.AdamsUntil()) == hash(sdegen.AdamsUntil(1e-4))
    assert not sdegen.AdamsUntil().differentiable
    with pytest.raises(TypeError):
        sdegen.AdamsUntil(1e-4, 1e-6)
