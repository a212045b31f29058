"""Every solver, path and prediction on the pretend device: the numbers of the CPU, and hardly a wait for them.

What grows with the steps is bounded: one wait in 32 steps, and one a step for torchdiffeq's own loop. Adaptive solvers
are only reported: torchdiffeq keeps its time on the device and reads it wherever it compares, and every attempt at a
step (torchsde: every query) moves its numbers there. Waits for each network call when this was written, VPSDE, a "v"
network, 4 points, towards the data (the other way differs by 0.3 at most); `pytest -s` prints them anew:

                             calls   in the package   in the engine
    dopri5, 1e-5                74        0.7              4.0
    dopri8, 1e-5               262        0.3              2.4
    bosh3, 1e-3                 26        1.5              7.1
    fehlberg2, 1e-3             12        2.2              9.7
    adaptive_heun, 1e-3         44        4.0             15.7
    euler (torchsde), 0.05      48        3.5              1.0
    euler_heun                  44        5.0              1.0
    srk                         78        3.5              0.3
    midpoint, heun, log_ode    102        3.0              0.3
"""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import INSIDE, PATHS, PREDICTIONS, SCORED, SLOW, few, marked, network, same
from pretend import put
from problems import ring

import sdegen
from sdegen.solvers import ODE_METHODS, SDE_METHODS

GROWING = [name for name, method in SDE_METHODS.items() if not method.carries]
FIXED = [name for name, method in ODE_METHODS.items() if not method.adaptive]
ADAPTIVE = [name for name, method in ODE_METHODS.items() if method.adaptive]
PAIRS = [
    pytest.param(
        path, predicts, marks=[] if path == "vp" or (predicts == "v" and path not in SLOW) else pytest.mark.nightly
    )
    for path, predicts in itertools.product(PATHS, PREDICTIONS)
    if predicts != "score" or path in SCORED
]
VARIANCES = ("beta", "posterior", "optimal", "learned")


def start():
    torch.manual_seed(2)
    return torch.randn(4, 2)


def solved(solver, to):
    """The end of a solve inside the path and its trajectory, as a function of the model and the start."""

    def call(model, x):
        solution = sdegen.solve(model, x, solver, to=to, u=INSIDE[to], trajectory=True)
        return solution.x, solution.trajectory

    return call


def holds(model, make, to="data"):
    """The same numbers, and few waits: `make` from a number of steps to a solver."""
    x = start()
    same(solved(make(8), to), model, x)
    model, x = put(model), put(x)
    few(lambda n: sdegen.solve(model, x, make(n), to=to, u=INSIDE[to]))


@pytest.mark.parametrize(("path", "predicts"), PAIRS)
def test_every_path_and_prediction(path, predicts):
    path = PATHS[path]
    holds(network(path, predicts), lambda n: sdegen.ODESolver("midpoint", steps=n))
    if path.has_score:
        holds(network(path, predicts), lambda n: sdegen.SDESolver("heun", n))
        holds(network(path, predicts), sdegen.Ancestral)


@pytest.mark.parametrize("path", marked(SCORED))
def test_every_path_with_its_exact_model(path):
    model = ring().model(PATHS[path])
    holds(model, lambda n: sdegen.SDESolver("euler", n))
    holds(model, lambda n: sdegen.ODESolver("heun3", steps=n), "noise")
    holds(model, sdegen.DDIM)


@pytest.mark.parametrize("to", INSIDE)
@pytest.mark.parametrize("method", SDE_METHODS)
def test_every_sde_method(method, to):
    holds(network(PATHS["vp"]), lambda n: sdegen.SDESolver(method, n), to)


@pytest.mark.parametrize(
    "options",
    [{"eta": 0.0}, {"w": lambda u: u}, {"grid": sdegen.PowerGrid(2, "t")}],
    ids=["deterministic", "own profile", "grid in t"],
)
def test_every_option_of_an_sde_solver(options):
    holds(network(PATHS["ve"]), lambda n: sdegen.SDESolver("srk", n, **options))


@pytest.mark.parametrize("to", INSIDE)
@pytest.mark.parametrize("method", FIXED)
def test_every_fixed_ode_method(method, to):
    holds(network(PATHS["condot"]), lambda n: sdegen.ODESolver(method, steps=n), to)


@pytest.mark.parametrize("variance", VARIANCES)
def test_every_variance_of_the_chain(variance):
    model = network(PATHS["smooth ddpm"], "eps", learns_variance=True)
    holds(model, lambda n: sdegen.Ancestral(n, variance=variance))


def test_a_chain_with_given_variances():
    variance = {n: torch.linspace(0.01, 0.1, n) for n in (4, 8, 36)}
    model = network(PATHS["ddpm"])
    holds(model, lambda n: sdegen.Ancestral(n, variance=variance[n]))

    def moved(model, x, variance):
        return sdegen.solve(
            model, x, sdegen.Ancestral(variance=variance, grid=torch.linspace(0.9, 0.0, 9)), u=(0.9, 0.0)
        ).x

    same(moved, network(PATHS["ddpm"]), start(), variance[8])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta):
    holds(network(PATHS["cosine"], "eps"), lambda n: sdegen.DDIM(n, eta=eta))


@pytest.mark.parametrize("make", [lambda n: sdegen.SDESolver("euler", n), lambda n: sdegen.DDIM(n, eta=1.0)])
def test_given_noise_is_moved_once(make):
    """A tensor, there or on the CPU, and a callable that makes it there."""
    x, model = start(), network(PATHS["vp"])
    noise = {n: torch.randn(n, 4, 2) for n in (4, 8, 36)}
    same(lambda model, x, z: sdegen.solve(model, x, make(8), noise=z).x, model, x, noise[8])
    model, x, there = put(model), put(x), put(noise)
    few(lambda n: sdegen.solve(model, x, make(n), noise=noise[n]))
    few(lambda n: sdegen.solve(model, x, make(n), noise=there[n]))
    few(lambda n: sdegen.solve(model, x, make(n), noise=lambda k: there[n][k]))


def test_knots_that_lie_there():
    u = torch.linspace(1.0, 0.0, 9)
    for make in (lambda u: sdegen.SDESolver("euler", grid=u), lambda u: sdegen.ODESolver("rk4", grid=u)):
        same(lambda model, x, u, make=make: sdegen.solve(model, x, make(u)).x, network(PATHS["condot"]), start(), u)


@pytest.mark.parametrize(
    ("trained", "path"),
    [
        ("vp", "condot"),
        ("ddpm", "ve"),
        ("condot", "smooth ddpm"),
        ("retimed", "cosine"),
        pytest.param("own vp", "own flow", marks=pytest.mark.slow),
    ],
)
def test_a_model_on_another_path(trained, path):
    for make in (
        lambda n: sdegen.SDESolver("midpoint", n),
        lambda n: sdegen.ODESolver("rk4", steps=n),
        lambda n: sdegen.Ancestral(n, variance="posterior"),
    ):
        holds(network(PATHS[trained], "eps").on(PATHS[path]), make)


def test_single_precision_and_a_network_in_its_own():
    for state, net in ((torch.float32, torch.float32), (torch.float64, torch.float32)):
        model = network(PATHS["vp"]).to(net)
        same(lambda model, x: sdegen.solve(model, x, sdegen.SDESolver("euler", 8)).x, model, start().to(state))


@pytest.mark.parametrize("to", INSIDE)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_ode_solvers_are_reported(method, to):
    report(sdegen.ODESolver(method, rtol=1e-3 if ODE_METHODS[method].order < 5 else 1e-5), to)


@pytest.mark.parametrize("method", [pytest.param(m, marks=[] if m == "srk" else pytest.mark.nightly) for m in GROWING])
def test_adaptive_sde_solvers_are_reported(method):
    report(sdegen.SDESolver(method, adaptive=True, rtol=0.05, atol=0.05), "data")


def report(solver, to):
    """The numbers are those of the CPU; the waits are printed."""
    calls = []

    def call(model, x):
        solution = sdegen.solve(model, x, solver, to=to, u=INSIDE[to])
        calls.append(solution.calls)
        return solution.x, solution.error

    waits = same(call, network(PATHS["vp"]), start())
    assert calls[0] == calls[1]
    own = sum(n for place, n in waits.items() if place.startswith("sdegen"))
    engine = waits.total() - own
    print(
        f"{type(solver).__name__} {solver.method:14s} to {to:5s} {calls[0]:4d} calls, waits a call: "
        f"{own / calls[0]:.1f} in the package, {engine / calls[0]:.1f} in the engine"
    )
