"""The verbs as contracts: randomness, batches, modes, dtypes, bad input, faults that must end, and end soon."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from problems import PATHS, ring
from torch import nn

import sdegen
from sdegen.solvers import ODE_METHODS, SDE_METHODS

FIXED = [sdegen.SDESolver(m, 8, eta=0.3 if m == "reversible_heun" else 1.0) for m in SDE_METHODS]
FIXED += [sdegen.ODESolver(m, steps=8) for m, scheme in ODE_METHODS.items() if not scheme.adaptive]
FIXED += [sdegen.Ancestral(8), sdegen.Ancestral(8, variance="posterior")]
ADAPTIVE = [sdegen.SDESolver(m, adaptive=True) for m in ("euler", "srk")] + [sdegen.ODESolver("dopri5")]
names = [f"{type(s).__name__}-{getattr(s, 'method', s)}" for s in FIXED + ADAPTIVE]


@pytest.mark.parametrize("solver", FIXED + ADAPTIVE, ids=names)
def test_seeds_reproduce_samples_to_the_bit(solver, device):
    model = ring().model(sdegen.VPSDE())
    shape, options = (5, 2), {"device": device}
    torch.manual_seed(7)
    first = sdegen.sample(model, shape, solver, **options)
    torch.manual_seed(7)
    assert torch.equal(first, sdegen.sample(model, shape, solver, **options))
    assert not torch.equal(first, sdegen.sample(model, shape, solver, **options))
    np.random.seed(0)  # noqa: NPY002 - the legacy global state is what must not move
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    drawn = [
        sdegen.sample(model, shape, solver, generator=torch.Generator(device).manual_seed(3), **options) for _ in "ab"
    ]
    assert torch.equal(*drawn)
    assert torch.equal(states[0], torch.get_rng_state())
    assert bool((states[1] == np.random.get_state()[1]).all())  # noqa: NPY002


@pytest.mark.parametrize("solver", FIXED, ids=names[: len(FIXED)])
def test_one_generator_per_sample_frees_it_from_its_batch(solver):
    model = ring().model(sdegen.VPSDE())

    def generators(seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    batch = sdegen.sample(model, (64, 2), solver, generator=generators(range(64)))
    for i in (0, 17, 63):
        alone = sdegen.sample(model, (1, 2), solver, generator=generators([i]))
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [sdegen.SDESolver(steps=6), sdegen.SDESolver("srk", 6), sdegen.Ancestral(6)])
def test_noise_as_a_tensor_or_a_callable_is_the_same(solver):
    model, x = ring().model(sdegen.VPSDE()), torch.randn(3, 2)
    noise = torch.randn((6, 2, 3, 2) if getattr(solver, "method", "") == "srk" else (6, 3, 2))
    state = torch.get_rng_state()
    given = sdegen.solve(model, x, solver, noise=noise).x
    assert torch.equal(given, sdegen.solve(model, x, solver, noise=lambda k: noise[k]).x)
    assert torch.equal(given, sdegen.sample(model, (3, 2), solver, x_T=x, noise=noise))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("solver", FIXED + ADAPTIVE, ids=names)
def test_an_empty_batch_is_empty_and_costs_nothing(solver):
    model = sdegen.ScoreModel(lambda x, t: 1 / 0, sdegen.VPSDE())
    assert sdegen.sample(model, (0, 3, 2), solver).shape == (0, 3, 2)
    solution = sdegen.solve(model, torch.zeros(0, 2), solver, trajectory=True)
    assert solution.calls == 0
    if solver.solves_ode:
        assert sdegen.log_prob(model, torch.zeros(0, 2), solver).shape == (0,)


@pytest.mark.parametrize("solver", FIXED + ADAPTIVE, ids=names)
def test_events_of_any_shape(solver):
    """A (B, C, H, W) solve is the flat solve, reshaped."""
    path = sdegen.VPSDE()
    shaped = sdegen.ScoreModel(lambda x, t: torch.tanh(x), path)
    x = torch.randn(3, 2, 2, 3)
    g = torch.Generator().manual_seed(0)
    one = sdegen.solve(shaped, x, solver, generator=g).x
    two = sdegen.solve(shaped, x.flatten(1), solver, generator=g.manual_seed(0)).x
    torch.testing.assert_close(one.flatten(1), two, rtol=1e-12, atol=1e-12)


class Moody(nn.Module):
    """Dropout and batch statistics: a different field at every call unless in eval mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.line = nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2)
        self.double()

    def forward(self, x, t):
        return self.line(self.drop(self.norm(x)))


@pytest.mark.parametrize("verb", ["sample", "log_prob", "fails"])
def test_the_network_runs_in_eval_mode_and_is_put_back(verb):
    net = Moody().train()
    net.drop.eval()  # a mixture of modes must come back as it was
    before = [m.training for m in net.modules()]
    statistics = net.norm.running_mean.clone()
    model = sdegen.ScoreModel(net, sdegen.VPSDE())
    solver = sdegen.ODESolver("rk4", steps=3)
    if verb == "sample":
        x = torch.randn(4, 2)
        assert torch.equal(sdegen.solve(model, x, solver).x, sdegen.solve(model, x, solver).x)
    elif verb == "log_prob":
        sdegen.log_prob(model, torch.randn(4, 2), solver)
    else:
        net.line.weight.data.fill_(math.nan)
        with pytest.raises(sdegen.NonFiniteError):
            sdegen.sample(model, (4, 2), solver)
    assert [m.training for m in net.modules()] == before
    assert torch.equal(net.norm.running_mean, statistics)


def test_the_progress_bar_counts_steps(capsys):
    sdegen.sample(ring().model(sdegen.VPSDE()), (2, 2), sdegen.SDESolver(steps=7), progress=True)
    assert "7/7" in capsys.readouterr().err


def test_half_precision_states_are_integrated_in_float32():
    seen = []
    model = sdegen.ScoreModel(lambda x, t: seen.append(x.dtype) or torch.zeros_like(x), sdegen.VPSDE())
    for solver in (sdegen.SDESolver(steps=500), sdegen.ODESolver("dopri5")):
        assert sdegen.sample(model, (2, 2), solver, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert set(seen) == {torch.float32}


def test_float32_takes_exactly_the_steps_it_is_told():
    for steps in (100, 1000, 4096):
        model = sdegen.ScoreModel(lambda x, t: torch.zeros_like(x), sdegen.VPSDE())
        x = torch.zeros(1, 1, dtype=torch.float32)
        assert sdegen.solve(model, x, sdegen.SDESolver(steps=steps)).calls == steps
        assert sdegen.solve(model, x, sdegen.ODESolver("euler", steps=steps)).calls == steps


def test_adaptive_ode_never_leaves_the_interval():
    """A nearly flat field makes torchdiffeq's first-step probe jump far beyond the end: the clock is clamped."""
    path, seen = sdegen.CondOT(), []

    def net(x, t):
        seen.append(float(t[0]))
        return torch.full_like(x, 1e-7)

    model = sdegen.ScoreModel(net, path, "velocity")
    sdegen.solve(model, torch.ones(2, 2), sdegen.ODESolver("dopri5"), u=(0.5, 0.2))
    assert min(seen) >= 0.5 - 1e-12
    assert max(seen) <= 0.8 + 1e-12


def test_the_worst_sample_chooses_the_steps():
    """Among points whose error is nothing, a hard one gets the steps it gets alone; the batch norm dilutes it."""
    target = sdegen.Gaussian([0.8], 0.5)
    model, start = target.model(sdegen.VPSDE()), float(sdegen.VPSDE().alpha(1.0)) * 0.8
    hard, easy = torch.full((1, 1), 30.0), torch.full((63, 1), start)
    for norm, same in (("sample", True), ("batch", False)):
        solver = sdegen.ODESolver("dopri5", rtol=1e-7, norm=norm)
        alone = sdegen.solve(model, hard, solver)
        among = sdegen.solve(model, torch.cat([hard, easy]), solver)
        assert (among.calls == alone.calls) is same
        assert torch.equal(among.x[:1], alone.x) is same


class Faulty(nn.Module):
    """An honest field until the clock or the counter says otherwise."""

    def __init__(self, fault, at=7):
        super().__init__()
        self.fault, self.at, self.calls = fault, at, 0

    def forward(self, x, t):
        self.calls += 1
        out = torch.tanh(x)
        return self.fault(out, x, t) if self.calls >= self.at else out


def nan_everywhere(out, x, t):
    return out * math.nan


def nan_in_row_two(out, x, t):
    out[2] = math.nan
    return out


def infinite(out, x, t):
    return out + math.inf


def raises(out, x, t):
    raise ZeroDivisionError("mine")


def interrupts(out, x, t):
    raise KeyboardInterrupt


@pytest.mark.parametrize("solver", FIXED + ADAPTIVE, ids=names)
@pytest.mark.parametrize("fault", [nan_everywhere, nan_in_row_two, infinite])
@pytest.mark.timeout(30)
def test_non_finite_outputs_end_the_solve(solver, fault):
    net = Faulty(fault).train()
    with pytest.raises(sdegen.NonFiniteError, match="u = ") as caught:
        sdegen.sample(sdegen.ScoreModel(net, sdegen.VPSDE()), (4, 2), solver)
    if fault is nan_in_row_two and isinstance(solver, (sdegen.Ancestral, sdegen.SDESolver)):
        assert "1 of 4" in str(caught.value)
    assert net.training
    assert net.calls < 200


@pytest.mark.parametrize("solver", [*FIXED[:2], *ADAPTIVE], ids=lambda s: s.method)
@pytest.mark.parametrize(("fault", "error"), [(raises, ZeroDivisionError), (interrupts, KeyboardInterrupt)])
def test_the_network_s_own_errors_pass_through(solver, fault, error):
    net = Faulty(fault).train()
    state = torch.get_rng_state()
    with pytest.raises(error):
        sdegen.sample(
            sdegen.ScoreModel(net, sdegen.VPSDE()), (4, 2), solver, generator=torch.Generator().manual_seed(0)
        )
    assert net.training
    assert net.calls == 7
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("solver", FIXED + ADAPTIVE, ids=names)
def test_writing_into_the_input_or_reusing_the_output_changes_nothing(solver):
    buffer = torch.empty(4, 2)

    def rude(x, t):
        torch.tanh(x, out=buffer)
        x.fill_(1e6)
        return buffer

    g = torch.Generator().manual_seed(0)
    path = sdegen.VPSDE()
    polite = sdegen.sample(sdegen.ScoreModel(lambda x, t: torch.tanh(x), path), (4, 2), solver, generator=g)
    assert torch.equal(polite, sdegen.sample(sdegen.ScoreModel(rude, path), (4, 2), solver, generator=g.manual_seed(0)))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "solver",
    [
        sdegen.ODESolver("dopri5", rtol=1e-6, max_steps=1000),
        sdegen.ODESolver("bosh3", rtol=1e-6, max_steps=200),
        sdegen.ODESolver("dopri8", rtol=1e-6, max_steps=5),
        sdegen.ODESolver("dopri5", rtol=1e-9),
        sdegen.ODESolver("dopri5", rtol=1e-300),
    ],
)
def test_hopeless_tolerances_end_in_a_sentence(solver):
    model = sdegen.ScoreModel(lambda x, t: torch.sign(torch.sin(300 * x)), sdegen.VPSDE())
    with pytest.raises(ValueError, match=r"loosen|too tight"):
        sdegen.sample(model, (4, 2), solver, dtype=torch.float32)


@pytest.mark.timeout(60)
def test_hopeless_adaptive_sde_ends_in_a_sentence():
    model = sdegen.ScoreModel(lambda x, t: 1e6 * torch.sign(torch.sin(300 * x)), sdegen.VPSDE())
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"tolerance cannot be met"):
        sdegen.sample(model, (4, 2), sdegen.SDESolver(adaptive=True, rtol=1e-9, atol=1e-9))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"shape": (2,)}, ValueError, r"\(2,\)"),
        ({"shape": (2, 0)}, ValueError, r"\(2, 0\)"),
        ({"shape": (2.0, 2)}, TypeError, "2.0"),
        ({"shape": (True, 2)}, TypeError, "True"),
        ({"shape": (-1, 2)}, ValueError, "-1"),
        ({"shape": 4}, TypeError, "4"),
        ({"solver": "euler"}, TypeError, "'euler'"),
        ({"x_T": torch.zeros(3, 2)}, ValueError, r"\(3, 2\)"),
        ({"x_T": torch.full((2, 2), math.inf)}, ValueError, "2 of its 2"),
        ({"x_T": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, "int64"),
        ({"noise": torch.zeros(5, 2, 2)}, ValueError, r"\(4, 2, 2\).*\(5, 2, 2\)"),
        ({"noise": 3}, TypeError, "3"),
        ({"noise": torch.zeros(4, 2, 2), "solver": sdegen.ODESolver()}, ValueError, "ODE"),
        ({"noise": torch.zeros(4, 2, 2), "solver": sdegen.SDESolver(adaptive=True)}, ValueError, "fixed steps"),
        ({"generator": [torch.Generator()] * 3}, ValueError, "3 were given"),
        ({"generator": [torch.Generator()] * 2, "solver": sdegen.SDESolver(adaptive=True)}, ValueError, "fixed steps"),
        ({"generator": 0}, TypeError, "int"),
        ({"generator": [1, 2]}, TypeError, "int"),
        ({"cond": "label"}, TypeError, "str"),
        ({"u": (0.1, 0.9)}, ValueError, "from > to"),
        ({"u": (1.5, 0.1)}, ValueError, "1.5"),
        ({"u": (0.9, -0.1)}, ValueError, "-0.1"),
        ({"u": (0.9, math.nan)}, ValueError, "nan"),
        ({"u": (0.9,)}, TypeError, "pair"),
        ({"dtype": torch.int32}, TypeError, "int32"),
        ({"dtype": "float32"}, TypeError, "'float32'"),
        ({"device": "gpu"}, ValueError, "'gpu'"),
        ({"solver": sdegen.SDESolver(grid=torch.linspace(0, 0.5, 5))}, ValueError, "0.5"),
        ({"solver": sdegen.Ancestral()}, ValueError, "steps"),
        ({"solver": sdegen.Ancestral(4, variance=torch.ones(3))}, ValueError, "4, and it has 3"),
        ({"model": "model"}, TypeError, "'model'"),
    ],
)
def test_bad_input_is_refused_before_the_network_is_called(options, error, says):
    calls = []
    arguments = {
        "model": sdegen.ScoreModel(lambda x, t: calls.append(1) or x, sdegen.VPSDE()),
        "shape": (2, 2),
        "solver": sdegen.SDESolver(steps=4),
        **options,
    }
    with pytest.raises(error, match=says):
        sdegen.sample(**arguments)
    assert not calls


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (torch.zeros(3), ValueError, r"\(3,\)"),
        (torch.tensor(1.0), ValueError, r"\(\)"),
        (torch.zeros(3, 2, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(3, 2, dtype=torch.complex128), TypeError, "complex"),
        (torch.tensor([[math.nan, 0.0], [0.0, 0.0]]), ValueError, "1 of its 2"),
        (np.zeros((3, 2)), TypeError, "ndarray"),
    ],
)
@pytest.mark.parametrize("verb", [sdegen.log_prob, sdegen.encode, sdegen.decode])
def test_bad_data_is_refused_by_every_verb(verb, x, error, says):
    calls = []
    model = sdegen.ScoreModel(lambda x, t: calls.append(1) or x, sdegen.VPSDE())
    with pytest.raises(error, match=says):
        verb(model, x)
    assert not calls


def test_wrong_directions_and_solvers():
    model, x = ring().model(sdegen.VPSDE()), torch.zeros(2, 2)
    with pytest.raises(ValueError, match="towards noise"):
        sdegen.solve(model, x, sdegen.Ancestral(4), to="noise")
    with pytest.raises(ValueError, match="'latent'"):
        sdegen.solve(model, x, sdegen.ODESolver(), to="latent")
    for verb in (sdegen.encode, sdegen.decode):
        with pytest.raises(TypeError, match="ODESolver"):
            verb(model, x, sdegen.SDESolver(steps=4))
    with pytest.raises(TypeError, match="unexpected keyword"):
        sdegen.sample(model, (2, 2), sdegen.SDESolver(steps=4), step_size=0.1)


def test_samples_start_from_the_prior_of_the_part_they_cover():
    for path in PATHS.values():
        model = ring().model(path)
        g = torch.Generator().manual_seed(0)
        u_to = max(0.05, path.ends[0])
        with pytest.warns(UserWarning, match=r"alpha/sigma is 0\.667: give x_T"):
            out = sdegen.sample(model, (3, 2), sdegen.ODESolver("euler", steps=1), u=(0.6, u_to), generator=g)
        start = path.prior_at(0.6).sample((3, 2), g.manual_seed(0))
        again = sdegen.solve(model, start, sdegen.ODESolver("euler", steps=1), u=(0.6, u_to)).x
        torch.testing.assert_close(out, again)
        sigma = float(path.sigma(path.time(torch.tensor(0.6))))
        assert abs(path.prior_at(0.6).std / sigma - 1) < 1e-9


@pytest.mark.parametrize(
    "solver", [sdegen.SDESolver(steps=400), sdegen.ODESolver("euler", steps=400), sdegen.Ancestral(400)]
)
def test_a_diverged_solve_stops_within_32_steps(solver):
    net = Faulty(nan_everywhere)
    with pytest.raises(sdegen.NonFiniteError):
        sdegen.sample(sdegen.ScoreModel(net, sdegen.VPSDE()), (4, 2), solver)
    assert net.calls <= 7 + 32
