"""batch_size and progress in every verb: a sample does not feel in how many parts its batch was solved."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch
from torch import nn

import sdegen

B, SIZE = 7, 3
TRAINING = {"loss", "hybrid_loss", "fit"}  # whose batch is that of a step


def verbs():
    """Every exported function of a model."""
    functions = {name: getattr(sdegen, name) for name in sdegen.__all__ if inspect.isfunction(getattr(sdegen, name))}
    return {name: f for name, f in functions.items() if next(iter(inspect.signature(f).parameters), "") == "model"}


def test_every_verb_has_both():
    found = verbs()
    assert len(found) >= 18
    for name in set(found) - TRAINING:
        options = inspect.signature(found[name]).parameters
        assert {"batch_size", "progress"} <= set(options), name
        assert options["progress"].default is False, name


class Shifted(nn.Module):
    """A network with a row per sample and a table for all of them, which notes how many rows came at once."""

    def __init__(self):
        super().__init__()
        self.most, self.scale = 0, nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, x, t, shift, table):
        assert table.shape == (SIZE, 2)
        self.most = max(self.most, len(x))
        return torch.tanh(self.scale * x + shift) + table.mean(0) * t[:, None]


def problem(path=None):
    g = torch.Generator().manual_seed(1)
    model = sdegen.ScoreModel(Shifted(), sdegen.VPSDE() if path is None else path, "v")
    x, shift, table = (torch.randn(n, 2, generator=g) for n in (B, B, SIZE))
    return model, x, {"shift": shift, "table": sdegen.Shared(table)}


def each():
    return sdegen.seeds(B, 4)


RK4, LEVELS = sdegen.ODESolver("rk4", steps=3), sdegen.Quantized(8, -4.0, 4.0)
CASES = {
    **{
        f"sample {type(solver).__name__}": lambda m, x, c, b, s=solver: sdegen.sample(
            m, x.shape, s, generator=each(), cond=c, batch_size=b
        )
        for solver in (
            sdegen.Adams(5),
            sdegen.SDESolver("euler", 5),
            sdegen.Ancestral(5),
            sdegen.StochasticAdams(5),
            sdegen.Restart(sdegen.Heun(4)),
            sdegen.ODESolver("dopri5", steps_for="sample"),
        )
    },
    "sample srk": lambda m, x, c, b: sdegen.sample(
        m, x.shape, sdegen.SDESolver("srk", 5), generator=each(), cond=c, batch_size=b
    ),
    "encode": lambda m, x, c, b: sdegen.encode(m, x, RK4, cond=c, batch_size=b),
    "decode": lambda m, x, c, b: sdegen.decode(m, x, RK4, cond=c, batch_size=b),
    "solve": lambda m, x, c, b: sdegen.solve(m, x, RK4, cond=c, trajectory=True, batch_size=b).trajectory,
    "rectify": lambda m, x, c, b: sdegen.rectify(m, x, RK4, cond=c, batch_size=b),
    "straightness": lambda m, x, c, b: sdegen.straightness(m, x, RK4, cond=c, batch_size=b),
    "log_prob": lambda m, x, c, b: sdegen.log_prob(m, x, RK4, cond=c, check=False, batch_size=b),
    "evaluate": lambda m, x, c, b: sdegen.evaluate(m, x, solver=RK4, cond=c, batch_size=b or B).per_sample,
    "vlb": lambda m, x, c, b: sdegen.vlb(m, x, steps=4, generator=each(), cond=c, batch_size=b).transitions,
    "continuous_vlb": lambda m, x, c, b: sdegen.continuous_vlb(m, x, generator=each(), cond=c, batch_size=b).total,
    "iwae": lambda m, x, c, b: sdegen.iwae(m, x, 2, steps=4, generator=each(), cond=c, batch_size=b).log_weights,
    "optimal_variance": lambda m, x, c, b: sdegen.optimal_variance(m, x, 4, generator=each(), cond=c, batch_size=b),
    "entropy_form": lambda m, x, c, b: (
        sdegen.entropy_form(
            m, sdegen.Gaussian([0.0, 0.0], 1.0), x, steps=4, variance="optimal", generator=each(), cond=c, batch_size=b
        ).model
    ),
    "discrete_log_prob": lambda m, x, c, b: (
        sdegen.discrete_log_prob(
            m, LEVELS.quantise(x), LEVELS, solver=RK4, generator=each(), cond=c, batch_size=b
        ).log_weights
    ),
    "importance": lambda m, x, c, b: (
        sdegen.importance(
            m, lambda y: -y.square().sum(1), B, shape=(2,), solver=RK4, generator=each(), cond=c, batch_size=b
        ).log_weights
    ),
    "compare": lambda m, x, c, b: torch.tensor(
        [
            [row.calls, row.error or row.distance]
            for row in sdegen.compare(
                m,
                {"Adams": sdegen.Adams, "euler": lambda n: sdegen.SDESolver("euler", n)},
                x_T=x,
                calls=(4, 6),
                noise=torch.randn(6, B, 2, generator=torch.Generator().manual_seed(2)),
                reference=RK4,
                data=x,
                cond=c,
                batch_size=b,
            ).rows
        ]
    ),
    "tune": lambda m, x, c, b: torch.tensor(
        [GRIDS.index(repr(sdegen.tune(m, sdegen.ODESolver("euler", steps=4), x, cond=c, batch_size=b).grid))]
    ),
}
GRIDS = ["None", *map(repr, sdegen.tuning.GRIDS)]


def test_every_verb_has_a_case():
    drawn_elsewhere = {"log_likelihood", "sample_many"}  # log_prob is the first; test_bulk_samples.py
    assert {name.split()[0] for name in CASES} == set(verbs()) - TRAINING - drawn_elsewhere


@pytest.mark.parametrize("verb", CASES)
def test_in_parts_a_sample_keeps_its_numbers(verb):
    """With a generator of its own, its own conditions, and one table for all: to the rounding of the kernels."""
    model, x, cond = problem()
    whole = CASES[verb](model, x, cond, None)  # met for the first time, the gradients of a network are checked, too
    model.net.most = 0
    assert torch.equal(CASES[verb](model, x, cond, None), whole)
    assert model.net.most == B
    assert torch.equal(CASES[verb](model, x, cond, B), whole)
    model.net.most = 0
    torch.testing.assert_close(CASES[verb](model, x, cond, SIZE), whole, rtol=0, atol=1e-10)
    assert model.net.most == SIZE


@pytest.mark.parametrize("verb", [verb for verb in CASES if verb != "evaluate"])
def test_sizes_that_are_none_are_refused(verb):
    model, x, cond = problem()
    with pytest.raises(ValueError, match="batch_size must be at least 1, and it is 0"):
        CASES[verb](model, x, cond, 0)
    with pytest.raises(TypeError, match=r"batch_size must be an integer, and 1\.5 is float"):
        CASES[verb](model, x, cond, 1.5)
    assert model.net.most == 0, "the network was called"


@pytest.mark.parametrize(("solver", "shape"), [("euler", (5, B, 2)), ("srk", (5, 2, B, 2))])
def test_given_noise_is_cut_with_the_samples(solver, shape):
    model, x, cond = problem()
    solver, noise = sdegen.SDESolver(solver, 5), torch.randn(shape)
    whole = sdegen.solve(model, x, solver, noise=noise, cond=cond).x
    for given in (noise, noise.__getitem__):
        parts = sdegen.solve(model, x, solver, noise=given, cond=cond, batch_size=SIZE).x
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    for wrong in (noise[..., :SIZE, :], noise[..., :1]):
        for given in (wrong, wrong.__getitem__):
            with pytest.raises(ValueError, match=r"noise must end in the shape of the batch, \(7, 2\), and it has"):
                sdegen.solve(model, x, solver, noise=given, cond=cond, batch_size=SIZE)


def test_one_generator_draws_every_start_first_and_then_the_noise_of_one_part_after_another():
    model, x, cond = problem()
    solver, g = sdegen.SDESolver("euler", 5), torch.Generator().manual_seed(3)
    found = sdegen.sample(model, x.shape, solver, generator=g, cond=cond, batch_size=4)
    g = torch.Generator().manual_seed(3)
    start = model.path.prior.sample((B, 2), g)
    for rows in (slice(0, 4), slice(4, 7)):
        part = {**cond, "shift": cond["shift"][rows]}
        alone = sdegen.solve(model, start[rows], solver, generator=g, cond=part).x
        torch.testing.assert_close(found[rows], alone, rtol=0, atol=1e-12)
    ode = [sdegen.sample(model, x.shape, RK4, generator=g.manual_seed(3), cond=cond, batch_size=b) for b in (None, 4)]
    torch.testing.assert_close(*ode, rtol=0, atol=1e-12)


def test_a_solution_of_parts_adds_up_the_costs():
    model, x, cond = problem()
    whole = sdegen.solve(model, x, RK4, cond=cond)
    parts = sdegen.solve(model, x, RK4, cond=cond, batch_size=SIZE)
    assert (parts.calls, parts.accepted) == (3 * whole.calls, 3 * whole.accepted)
    assert torch.equal(parts.u, whole.u)
    assert torch.equal(parts.t, whole.t)
    for solver in (sdegen.ODESolver("dopri5"), sdegen.ODESolver("dopri5", steps_for="sample")):
        alone = [
            sdegen.solve(model, x[i : i + 3], solver, cond={**cond, "shift": cond["shift"][i : i + 3]})
            for i in (0, 3, 6)
        ]
        parts = sdegen.solve(model, x, solver, cond=cond, batch_size=SIZE)
        for name in ("calls", "accepted", "rejected"):
            assert getattr(parts, name) == sum(getattr(part, name) for part in alone)
        for name in ("x", "y", "error", "sample_calls"):
            if getattr(parts, name) is None:
                assert getattr(alone[0], name) is None
            else:
                torch.testing.assert_close(getattr(parts, name), torch.cat([getattr(part, name) for part in alone]))
        assert parts.u.tolist() == [whole.u[0], whole.u[-1]]
        torch.testing.assert_close(parts.t, whole.t[[0, -1]])


def test_gradients_reach_every_part():
    model, x, cond = problem()
    found = []
    for batch_size in (None, SIZE):
        start, shift = x.clone().requires_grad_(True), cond["shift"].clone().requires_grad_(True)
        given = {**cond, "shift": shift}
        end = sdegen.decode(model, start, RK4, cond=given, differentiable=True, batch_size=batch_size)
        found.append(torch.autograd.grad(end.square().sum(), [start, shift, model.net.scale]))
    for whole, parts in zip(*found, strict=True):
        assert float(whole.abs().min()) > 0
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_what_parts_cannot_do_is_refused():
    model, x, cond = problem()
    adaptive = sdegen.ODESolver("dopri5")
    with pytest.raises(ValueError, match=r"trajectory=True with batch_size needs steps that all parts share, and ODE"):
        sdegen.solve(model, x, adaptive, cond=cond, trajectory=True, batch_size=SIZE)
    with pytest.raises(ValueError, match=r"callback is told of the whole batch .* and batch_size = 3 solves one part"):
        sdegen.solve(model, x, sdegen.Adams(3), cond=cond, callback=print, batch_size=SIZE)
    with pytest.raises(TypeError, match=r"cond\['shift'\] is a list, and the batch is cut into rows"):
        sdegen.decode(model, x, RK4, cond={**cond, "shift": cond["shift"].tolist()}, batch_size=SIZE)
    assert model.net.most == 0


class Shown:
    """A bar that remembers."""

    bars: list[Shown]

    def __init__(self, total=None, unit="it"):
        self.total, self.n = total, 0
        Shown.bars.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True

    def update(self, n=1):
        self.n += n


@pytest.mark.parametrize("batch_size", [None, SIZE])
@pytest.mark.parametrize("verb", ["sample", "encode", "decode", "rectify", "straightness", "compare", "tune"])
def test_bars_are_shown_and_end(verb, batch_size, monkeypatch):
    """Of the parts where there are several; in comparisons of the rows."""
    monkeypatch.setattr("tqdm.auto.tqdm", Shown)
    Shown.bars = []
    model, x, cond = problem()
    arguments = {
        "sample": (x.shape, RK4),
        "compare": ({"Adams": sdegen.Adams, "UniPC": sdegen.UniPC},),
        "tune": (RK4, x),
    }
    more = {"compare": {"x_T": x, "calls": (4, 6)}}.get(verb, {})
    given = {"cond": cond, "batch_size": batch_size, **more}
    getattr(sdegen, verb)(model, *arguments.get(verb, (x, RK4)), progress=False, **given)
    assert Shown.bars == []
    getattr(sdegen, verb)(model, *arguments.get(verb, (x, RK4)), progress=True, **given)
    (bar,) = Shown.bars
    parts = 3 if batch_size else 1 if verb == "straightness" else 3  # of rk4, three steps
    assert bar.total == bar.n == {"compare": 4, "tune": 10}.get(verb, parts)
    assert bar.closed
    assert "tqdm" in sys.modules
