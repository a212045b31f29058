"""Rectification and straightness with any solver of the ODE, on part of a path, on any path, and with conditions."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from problems import slope
from torch import Tensor

import sdegen

S = 0.3
EXACT = sdegen.Gaussian(torch.zeros(1, dtype=torch.float64), torch.tensor(S, dtype=torch.float64))
OT, VP = sdegen.CondOT(), sdegen.VPSDE()
Z = torch.tensor([[1.0], [-2.0], [0.4]], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Ralston(sdegen.Solver):
    """A user's second-order scheme; `keep` False reports no states."""

    steps: int
    keep: bool = True
    solves_ode = True

    def run(self, problem: sdegen.Problem) -> sdegen.Result:
        u, t = problem.knots(sdegen.PowerGrid(1.0), self.steps)

        def step(k: int, y: Tensor, ask: object) -> Tensor:
            h = u[k + 1] - u[k]
            first = ask(y, u[k])
            return y + h / 4 * (first + 3 * ask(y + 2 / 3 * h * first, u[k] + 2 / 3 * h))

        result = sdegen.march(problem, u, t, step)
        result.states = result.states if self.keep else []
        return result


def growth(u: float | Tensor) -> Tensor:
    """y(u) = growth(u) times a constant on data N(0, S^2), on every path."""
    u = torch.as_tensor(u, dtype=torch.float64)
    return torch.sqrt((1 - u) ** 2 * S**2 + u**2)


def bend(start: float, end: float) -> float:
    """Integral of (d growth/du)^2 less the chord's, from `end` to `start`: S for a start of growth(start)."""
    u = torch.linspace(end, start, 200_001, dtype=torch.float64)
    squared = ((u - (1 - u) * S**2) / growth(u)) ** 2
    return float(torch.trapezoid(squared, u) - (growth(start) - growth(end)) ** 2 / (start - end))


def test_rectify_takes_a_solver_of_the_users():
    model = EXACT.model(VP)
    exact = S / growth(1.0) * Z  # y(0) from y(1) = z
    steps = [16, 32, 64]
    errors = [float((sdegen.rectify(model, Z, Ralston(n)) - exact).abs().max()) for n in steps]
    assert 1.8 < slope(steps, errors) < 2.3
    torch.testing.assert_close(sdegen.rectify(model, Z), exact, rtol=0, atol=1e-5)


def test_straightness_takes_a_solver_of_the_users():
    expected = bend(1.0, 0.0) * Z[:, 0] ** 2
    torch.testing.assert_close(sdegen.straightness(EXACT.model(OT), Z, Ralston(400)), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("path", [OT, VP, sdegen.VESDE(), sdegen.Retimed(OT, 0.0, 3.0)], ids=repr)
def test_straightness_of_a_part_is_that_of_straight_coordinates_on_every_path(path):
    """S belongs to y: alpha + sigma, the path's time and its span leave it alone; `u` alone says how far it goes."""
    u = (0.9, 0.3)
    x = float(path.scale(u[0])) * Z
    given = sdegen.straightness(EXACT.model(path), x, sdegen.ODESolver("rk4", steps=400), u=u)
    expected = bend(*u) * (Z[:, 0] / growth(u[0])) ** 2
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=0)


def test_straightness_adds_up_over_every_value_of_an_event():
    """A sample's S is the sum over its event: (B, 2, 3) has that of its six values, sample by sample."""
    z = torch.randn(4, 2, 3)
    alone = sdegen.straightness(EXACT.model(OT), z.reshape(-1, 1)).reshape(4, 6).sum(1)
    one = EXACT.model(OT).velocity
    several = sdegen.vector_field(lambda x, t: one(x.reshape(-1, 1), t.repeat_interleave(6)).reshape(x.shape))
    given = sdegen.straightness(several, z)
    torch.testing.assert_close(given, alone, rtol=1e-9, atol=0)


def test_straightness_takes_a_hundred_equal_steps_of_rk4_unless_told():
    equal = sdegen.ODESolver("rk4", steps=100, grid=sdegen.PowerGrid(1))
    given = sdegen.straightness(EXACT.model(OT), Z)
    torch.testing.assert_close(given, sdegen.straightness(EXACT.model(OT), Z, equal), rtol=0, atol=0)


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return 0 * x


@pytest.mark.parametrize(
    ("solver", "error", "words"),
    [
        (sdegen.SDESolver("euler", 4), TypeError, r"Only the ODE.*SDESolver"),
        (sdegen.Ancestral(4), TypeError, r"Only the ODE.*Ancestral"),
        ("rk4", TypeError, r"Only the ODE.*'rk4'"),
        (sdegen.ODESolver("dopri5"), ValueError, r"give fixed steps, not ODESolver\(method='dopri5'"),
    ],
    ids=["sde", "chain", "name", "adaptive"],
)
def test_straightness_refuses_other_solvers_before_the_first_call(solver, error, words):
    net = Counting()
    model = sdegen.ScoreModel(net, OT, "velocity")
    with pytest.raises(error, match=words):
        sdegen.straightness(model, Z, solver)
    if error is TypeError:
        with pytest.raises(error, match=words):
            sdegen.rectify(model, Z, solver)
    assert net.calls == 0


@pytest.mark.parametrize(
    ("solver", "reported"),
    [(Ralston(1), 1), (sdegen.ODESolver("rk4", steps=1), 1), (Ralston(8, keep=False), 0)],
    ids=["one step", "one step of ours", "no states"],
)
def test_straightness_needs_two_steps_that_are_reported(solver, reported):
    with pytest.raises(ValueError, match=rf"two at the least: .*{type(solver).__name__}.* reports {reported}\.$"):
        sdegen.straightness(EXACT.model(OT), Z, solver)


def test_an_empty_batch_is_rectified_and_straight():
    assert sdegen.rectify(EXACT.model(OT), Z[:0]).shape == (0, 1)
    assert sdegen.straightness(EXACT.model(OT), Z[:0]).shape == (0,)


@pytest.mark.parametrize("verb", [sdegen.rectify, sdegen.straightness, sdegen.encode, sdegen.decode])
def test_conditions_reach_the_network_row_by_row(verb):
    """A row's answer is that of a field with its own rate built in."""
    rates = torch.tensor([0.3, 1.1, -0.7])
    solver = sdegen.ODESolver("rk4", steps=20)

    def field(x: Tensor, t: Tensor, rate: Tensor) -> Tensor:
        return torch.sin(t)[:, None] * rate[:, None] * x

    together = verb(sdegen.vector_field(field), Z, solver, cond={"rate": rates})
    for i, rate in enumerate(rates):
        own = sdegen.vector_field(lambda x, t, rate=rate: field(x, t, rate.expand(len(x))))
        torch.testing.assert_close(together[i : i + 1], verb(own, Z[i : i + 1], solver), rtol=0, atol=1e-12)


@pytest.mark.parametrize("verb", [sdegen.rectify, sdegen.straightness])
@pytest.mark.parametrize(
    ("z", "error", "words"),
    [
        ([[1.0]], TypeError, "z must be a tensor .* list"),
        (torch.zeros(3), ValueError, r"z must have shape \(B, ...\).*\(3,\)"),
        (torch.zeros(3, 1, dtype=torch.int64), TypeError, "z must have a real floating dtype.*int64"),
        (torch.tensor([[0.0], [float("nan")]]), ValueError, "NaN or infinite values in 1 of its 2 samples"),
    ],
    ids=["list", "flat", "integers", "nan"],
)
def test_latents_that_are_none_are_refused_before_the_first_call(verb, z, error, words):
    net = Counting()
    with pytest.raises(error, match=words):
        verb(sdegen.ScoreModel(net, OT, "velocity"), z)
    assert net.calls == 0
