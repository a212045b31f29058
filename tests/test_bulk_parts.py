"""A batch in parts: one bar, results that are joined, what cannot be cut, and noise that is looked at first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import sdegen

B, SIZE = 7, 3
ADAMS = sdegen.Adams(4)


class Net(nn.Module):
    """A network with conditions, which notes how often it was called."""

    def __init__(self):
        super().__init__()
        self.calls, self.scale = 0, nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, x, t, shift=None, d=None):
        self.calls += 1
        return torch.tanh(self.scale * x + (0.0 if shift is None else shift))


def problem():
    g = torch.Generator().manual_seed(1)
    x, shift = torch.randn(B, 2, generator=g), torch.randn(B, 2, generator=g)
    return sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v"), x, {"shift": shift}


class Shown:
    """A bar that remembers."""

    bars: list[Shown]

    def __init__(self, total=None, unit="it"):
        self.total, self.n, self.closed = total, 0, False
        Shown.bars.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True

    def update(self, n=1):
        self.n += n


LAW = sdegen.Gaussian([0.0, 0.0], 1.0)
ONE_BAR = {  # the verb, its bar's steps in parts of 3, and in one part
    "log_prob": (lambda m, x, **o: sdegen.log_prob(m, x, ADAMS, **o), 3, 4),
    "log_prob until": (lambda m, x, **o: sdegen.log_prob(m, x, sdegen.AdamsUntil(1e-3, first=4), **o), 3, None),
    "log_likelihood": (lambda m, x, **o: sdegen.log_likelihood(m, x, ADAMS, **o), 3, 4),
    "vlb": (lambda m, x, **o: sdegen.vlb(m, x, steps=4, **o), 3, 4),
    "vlb optimal": (lambda m, x, **o: sdegen.vlb(m, x, steps=4, variance="optimal", **o), 6, 2),
    "continuous_vlb": (lambda m, x, **o: sdegen.continuous_vlb(m, x, draws=2, **o), 3, 3),
    "iwae": (lambda m, x, **o: sdegen.iwae(m, x, 2, steps=4, **o), 5, 2),
    "iwae optimal": (lambda m, x, **o: sdegen.iwae(m, x, 2, steps=4, variance="optimal", **o), 8, 3),
    "optimal_variance": (lambda m, x, **o: sdegen.optimal_variance(m, x, 4, **o), 3, 4),
    "entropy_form": (lambda m, x, **o: sdegen.entropy_form(m, LAW, x, steps=4, **o), 3, 4),
    "entropy_form optimal": (lambda m, x, **o: sdegen.entropy_form(m, LAW, x, steps=4, variance="optimal", **o), 6, 2),
    "importance": (
        lambda m, x, **o: sdegen.importance(m, lambda y: -y.square().sum(1), B, shape=(2,), solver=ADAMS, **o), 3, 4,
    ),
    "discrete_log_prob": (
        lambda m, x, **o: sdegen.discrete_log_prob(m, x.round().clamp(0, 7), sdegen.Quantized(8), solver=ADAMS, **o),
        3, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_BAR)
def test_one_bar_over_the_parts(name, monkeypatch):
    monkeypatch.setattr("tqdm.auto.tqdm", Shown)
    verb, parts, whole = ONE_BAR[name]
    model, x, cond = problem()
    for batch_size, total in ((SIZE, parts), (None, whole), (B, whole)):
        Shown.bars = []
        verb(model, x, cond=cond, batch_size=batch_size, progress=False)
        assert Shown.bars == []
        verb(model, x, cond=cond, batch_size=batch_size, progress=True)
        if total is None:  # one for every round
            assert all(bar.closed and bar.n == bar.total for bar in Shown.bars)
            continue
        (bar,) = Shown.bars
        assert (bar.n, bar.total, bar.closed) == (total, total, True)


def test_a_bar_ends_where_a_part_fails(monkeypatch):
    monkeypatch.setattr("tqdm.auto.tqdm", Shown)
    Shown.bars = []
    model, x, cond = problem()
    cond["shift"][5] = math.nan
    for variance in ("beta", "optimal"):
        with pytest.raises(sdegen.NonFiniteError):
            sdegen.vlb(model, x, steps=4, cond=cond, variance=variance, batch_size=SIZE, progress=True)
    assert len(Shown.bars) == 2
    assert all(bar.closed for bar in Shown.bars)


NOISY = {
    "churn": sdegen.Churn(sdegen.Heun(4), 3.0),
    "langevin": sdegen.Langevin(sdegen.Adams(4), 2),
    "restart": sdegen.Restart(sdegen.Heun(4)),
    "sa": sdegen.SASolver(4),
}


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("verb", ["sample", "solve"])
def test_refined_solvers_keep_a_samples_numbers_in_parts(name, verb):
    model, x, cond = problem()

    def end(batch_size):
        given = {"generator": sdegen.seeds(B), "cond": cond, "batch_size": batch_size}
        if verb == "sample":
            return sdegen.sample(model, x.shape, NOISY[name], **given)
        return sdegen.solve(model, x, NOISY[name], **given).x

    whole = end(None)
    assert torch.equal(end(None), whole)
    torch.testing.assert_close(end(SIZE), whole, rtol=0, atol=1e-10)


@dataclass(frozen=True)
class Own(sdegen.Solver):
    """Euler's method, with as many steps as it likes for every batch, and one that it tried in vain for each."""

    solves_ode = True

    def run(self, problem):
        steps = int(problem.y[0, 0] > 0) + 2
        u, t = problem.knots(sdegen.PowerGrid(2), steps)
        result = sdegen.march(problem, u, t, lambda k, y, ask: y + (u[k + 1] - u[k]) * ask(y, u[k]))
        result.rejected = steps
        return result


def test_parts_whose_knots_differ_have_no_trajectory():
    model, x, cond = problem()
    x[:, 0] = torch.tensor([-1.0, 0, 0, 1.0, 0, 0, -1.0])
    with pytest.raises(
        ValueError, match=r"trajectory=True needs knots that the parts of a batch share, and every part"
    ):
        sdegen.solve(model, x, Own(), cond=cond, trajectory=True, batch_size=SIZE)
    x[:, 0] = -1.0
    found = sdegen.solve(model, x, Own(), cond=cond, trajectory=True, batch_size=SIZE)
    assert found.trajectory.shape == (3, B, 2)


def test_steps_tried_in_vain_are_added_up():
    model, x, cond = problem()
    x[:, 0] = torch.tensor([-1.0, 0, 0, 1.0, 0, 0, -1.0])
    found = sdegen.solve(model, x, Own(), cond=cond, batch_size=SIZE)
    assert (found.calls, found.accepted, found.rejected) == (7, 7, 7)


@pytest.mark.parametrize("verb", ["sample", "solve"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_noise_that_is_not_finite_is_refused_first(verb, bad):
    model, x, cond = problem()
    noise = torch.zeros(5, B, 2)
    noise[4, 1] = bad
    given = {"noise": noise, "cond": cond}
    start = x.shape if verb == "sample" else x
    with pytest.raises(ValueError, match="noise holds NaN or infinite values in 1 of its 5 samples") as refused:
        getattr(sdegen, verb)(model, start, sdegen.SDESolver("euler", 5), **given)
    assert type(refused.value) is ValueError
    assert model.net.calls == 0


def test_shared_inside_a_dict_is_refused_by_its_name():
    model, x, _ = problem()
    cond = {"d": {"a": torch.zeros(B), "w": sdegen.Shared(torch.zeros(4))}}
    words = r"cond\['d'\] is a dict, .* Shared stands around the whole of cond\['d'\], not around an entry within it"
    for verb in (sdegen.encode, sdegen.log_prob):
        with pytest.raises(TypeError, match=words):
            verb(model, x, ADAMS, cond=cond, batch_size=SIZE)
    assert model.net.calls == 0
    whole = sdegen.Shared({"a": torch.zeros(B), "w": torch.zeros(4)})
    assert sdegen.encode(model, x, ADAMS, cond={"d": whole}, batch_size=SIZE).shape == x.shape


def test_dir_lists_what_is_exported_and_nothing_else():
    leaves = {"datasets", "interop", "nets", "plot"}
    assert {name for name in dir(sdegen) if not name.startswith("__")} == {*sdegen.__all__, *leaves} - {"__version__"}
    assert {"__all__", "__doc__", "__file__", "__name__", "__path__", "__version__"} <= set(dir(sdegen))
    assert dir(sdegen) == sorted(set(dir(sdegen)))
