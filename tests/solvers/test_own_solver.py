"""A solver of the user's own: a value with `run`, on the loop that the chain solvers share."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass, replace

import pytest
import torch
from problems import PATHS, OwnVP, ring, slope, two_modes

import sdegen


def from_the_docstring() -> type[sdegen.Solver]:
    """Ralston's method as `Solver`'s docstring prints it."""
    text = inspect.cleandoc(sdegen.Solver.__doc__)
    (program,) = re.findall(r"(    @dataclass.*?march\(problem, u, t, step\))", text, re.S)
    names = {"sdegen": sdegen, "dataclass": dataclass}
    exec(textwrap.dedent(program), names)
    assert len(program.splitlines()) <= 14
    return names["Ralston"]


Ralston = from_the_docstring()


@dataclass(frozen=True)
class EulerMaruyama(sdegen.Solver):
    """The default SDE by its own two lines, w^2 = 2u / max(1-u, 0.1)."""

    steps: int

    def run(self, problem):
        u, t = problem.knots(sdegen.PowerGrid(2), self.steps)

        def step(k, y, ask):
            h, gamma = abs(u[k + 1] - u[k]), 1 / max(1 - u[k], 0.1)
            drift = ask(y, u[k], c=-(u[k + 1] - u[k]), d=(u[k + 1] - u[k]) - h * gamma)
            return y + drift, torch.sqrt(2 * u[k] * gamma * h)

        return sdegen.march(problem, u, t, step)


@pytest.mark.parametrize(
    "path", [sdegen.VPSDE(), sdegen.CondOT(), sdegen.VESDE(), OwnVP()], ids=lambda p: type(p).__name__
)
def test_ralston_is_of_second_order_on_every_path(path):
    model, tight = two_modes().model(path), sdegen.ODESolver("dopri8", rtol=1e-11, atol=1e-12)
    u = (0.9, max(0.1, path.ends[0]))
    x = torch.linspace(-1.5, 1.5, 16)[:, None] * float(path.scale(0.9))
    exact = sdegen.solve(model, x, tight, u=u).x
    steps = [16, 32, 64, 128]
    errors = [float((sdegen.solve(model, x, Ralston(n), u=u).x - exact).abs().max()) for n in steps]
    assert abs(slope(steps, errors) - 2) < 0.15


def test_it_goes_both_ways_and_carries_the_density():
    """encode and decode invert each other at second order; the density's error falls at second order too."""
    target, path = ring(), sdegen.CondOT()
    model, x = target.model(path), ring().sample(6)
    trips = [(sdegen.decode(model, sdegen.encode(model, x, Ralston(n)), Ralston(n)) - x).abs().max() for n in (64, 128)]
    assert trips[1] < trips[0] / 3
    exact = target.log_prob(x)  # CondOT ends in N(0, I) itself
    errors = [float((sdegen.log_prob(model, x, Ralston(n)) - exact).abs().max()) for n in (128, 256)]
    assert abs(slope([128, 256], errors) - 2) < 0.3
    # in one dimension every probe tells the exact trace
    line = sdegen.Gaussian([0.3], 0.5).model(path)
    z = torch.linspace(-1, 1, 5)[:, None]
    probed = sdegen.log_prob(line, z, Ralston(32), trace=sdegen.Hutchinson(1))
    torch.testing.assert_close(probed, sdegen.log_prob(line, z, Ralston(32)))


def test_it_is_counted_and_shown():
    model, x = ring().model(sdegen.VPSDE()), torch.randn(5, 2)
    solution = sdegen.solve(model, x, Ralston(6), trajectory=True)
    assert (solution.calls, solution.accepted, solution.rejected) == (12, 6, 0)
    assert solution.trajectory.shape == (7, 5, 2)
    torch.testing.assert_close(solution.trajectory[-1], solution.x)
    torch.testing.assert_close(solution.u, sdegen.VPSDE().ends[1] * (torch.arange(6, -1, -1) / 6) ** 1.5)
    torch.testing.assert_close(solution.y * sdegen.VPSDE().scale(solution.u[-1]), solution.x)


@pytest.mark.parametrize("name", ["vp", "condot", "ddpm"])
def test_a_stochastic_one_is_the_engines_euler(name):
    """To rounding, given the same normals or the same seed; its noise is drawn only where it is asked for."""
    path, x, noise = PATHS[name], torch.randn(7, 2), torch.randn(12, 7, 2)
    model = ring().model(path)
    for given in (noise, noise.__getitem__):
        own = sdegen.solve(model, x, EulerMaruyama(12), noise=given)
        torch.testing.assert_close(own.x, sdegen.solve(model, x, sdegen.SDESolver(steps=12), noise=given).x)
        assert own.calls == 12
    seeded = [
        sdegen.sample(model, (7, 2), solver, generator=torch.Generator().manual_seed(3))
        for solver in (EulerMaruyama(12), sdegen.SDESolver(steps=12))
    ]
    torch.testing.assert_close(*seeded)


def test_a_network_with_its_own_clock_is_shown_the_knots():
    """t is exactly k/K at the knots of a chain, and the path's time between them."""
    path, seen = sdegen.DDPM.linear(8, 1e-3, 0.3), []

    def net(x, t):
        seen.append(float(t[0]))
        return 0.1 * x

    @dataclass(frozen=True)
    class Walk(sdegen.Solver):
        def run(self, problem):
            u, t = problem.knots(sdegen.PowerGrid(1, "t"), 8)
            return sdegen.march(problem, u, t, lambda k, y, ask: y + (u[k + 1] - u[k]) * ask(y, float(u[k])))

    model = sdegen.ScoreModel(net, path)
    sdegen.solve(model, torch.zeros(2, 2), Walk())
    assert seen == [k / 8 for k in range(8, 0, -1)]
    assert sdegen.solve(model, torch.zeros(2, 2), Walk()).t.tolist() == [k / 8 for k in range(8, -1, -1)]


def test_it_stops_where_the_state_is_lost():
    calls = []

    @dataclass(frozen=True)
    class Lost(sdegen.Solver):
        def run(self, problem):
            u, t = problem.knots(sdegen.PowerGrid(2), 400)
            return sdegen.march(problem, u, t, lambda k, y, ask: calls.append(k) or y * float("nan"))

    with pytest.raises(sdegen.NonFiniteError, match="5 of 5"):
        sdegen.solve(ring().model(sdegen.VPSDE()), torch.zeros(5, 2), Lost())
    assert len(calls) <= 32


@dataclass(frozen=True)
class Blind(sdegen.Solver):
    """Solves the ODE, but forgets the density."""

    solves_ode = True

    def run(self, problem):
        return replace(Ralston(4).run(problem), divergence=None)


class Nothing:
    def run(self, problem):
        return None


def test_what_is_no_solver_or_cannot_do_it_is_refused():
    model, x = ring().model(sdegen.VPSDE()), torch.zeros(2, 2)
    with pytest.raises(TypeError, match="Nothing"):
        sdegen.solve(model, x, Nothing())
    with pytest.raises(TypeError, match="Nothing"):
        sdegen.sample(model, (2, 2), Nothing())
    for verb in (sdegen.encode, sdegen.decode, sdegen.log_prob):
        with pytest.raises(TypeError, match="EulerMaruyama"):
            verb(model, x, EulerMaruyama(4))
    with pytest.raises(ValueError, match=r"Blind\(\).*no divergence"):
        sdegen.log_prob(model, x, Blind())
    with pytest.raises(ValueError, match="stochastic"):
        sdegen.solve(model, x, Ralston(4), noise=torch.zeros(4, 2, 2))
    with pytest.raises(ValueError, match=r"\(4, 2, 2\)"):
        sdegen.solve(model, x, EulerMaruyama(4), noise=torch.zeros(3, 2, 2))
    with pytest.raises(TypeError, match="abstract"):
        sdegen.Solver()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda y: None, "NoneType"),
        (lambda y: y.flatten(1), r"\(3, 9\)"),
        (lambda y: [y, 0.1], "list"),
        (lambda y: (y, torch.ones(2, *y.shape)), r"std of step 0 .*\(2, 3, 1, 3, 3\)"),
        (lambda y: (y, torch.ones(9)), r"std of step 0"),
    ],
)
def test_what_a_step_returns_is_looked_at(answer, says):
    @dataclass(frozen=True)
    class Odd(sdegen.Solver):
        def run(self, problem):
            u, t = problem.knots(sdegen.PowerGrid(2), 2)
            return sdegen.march(problem, u, t, lambda k, y, ask: answer(y))

    with pytest.raises(ValueError, match=says):
        sdegen.solve(sdegen.ScoreModel(lambda x, t: x, sdegen.VPSDE()), torch.zeros(3, 1, 3, 3), Odd())


def test_a_deviation_may_be_one_per_sample():
    """std (B,) on images: row b of the noise is multiplied by std[b]."""

    @dataclass(frozen=True)
    class Noisy(sdegen.Solver):
        def run(self, problem):
            u, t = problem.knots(sdegen.PowerGrid(2), 1)
            return sdegen.march(problem, u, t, lambda k, y, ask: (y, torch.tensor([1.0, 2.0, 3.0])))

    z = torch.randn(1, 3, 1, 3, 3)
    y = sdegen.solve(sdegen.ScoreModel(lambda x, t: x, sdegen.VPSDE()), torch.zeros(3, 1, 3, 3), Noisy(), noise=z).y
    torch.testing.assert_close(y, torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1) * z[0])


def test_a_run_that_returns_no_result_and_a_density_with_noise_are_refused():
    model, x = ring().model(sdegen.VPSDE()), torch.zeros(3, 2)

    class Wrong(sdegen.Solver):
        solves_ode = True

        def run(self, problem):
            return problem.y

    class Noise(sdegen.Solver):
        solves_ode = True

        def run(self, problem):
            u, t = problem.knots(sdegen.PowerGrid(2), 2)
            return sdegen.march(problem, u, t, lambda k, y, ask: (y, 0.1))

    for verb in (sdegen.solve, sdegen.log_prob):
        with pytest.raises(TypeError, match="must return a Result"):
            verb(model, x, Wrong())
    with pytest.raises(ValueError, match="adds noise"):
        sdegen.log_prob(model, x, Noise())
    assert Wrong() == Wrong()
    assert hash(Wrong()) == hash(Wrong())
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"steps must be at least 1, and it is {steps}"):
            sdegen.solve(model, x, Ralston(steps))
