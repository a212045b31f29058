"""The memory of a multistep scheme in `march`: its order, its likelihood, its noise, and what a step must return."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass

import pytest
import torch
from differentiated import AdamsBashforth2
from problems import PATHS, ring, slope, two_modes

import sdegen


def test_the_docstring_prints_the_scheme_that_is_tested_here():
    (printed,) = re.findall(r"    def step.*?memory=\(\)\)", inspect.cleandoc(sdegen.march.__doc__), re.S)
    written = textwrap.dedent(inspect.getsource(AdamsBashforth2.run)).split("\n\n", 1)[1]
    assert textwrap.dedent(printed).split() == written.split()


@pytest.mark.parametrize("name", ["vp", "condot", "ve", "own vp"])
def test_adams_bashforth_is_of_second_order_on_every_path(name):
    path = PATHS[name]
    model, tight = two_modes().model(path), sdegen.ODESolver("dopri8", rtol=1e-11, atol=1e-12)
    u = (0.9, max(0.1, path.ends[0]))
    x = torch.linspace(-1.5, 1.5, 16)[:, None] * float(path.scale(0.9))
    exact, steps = sdegen.solve(model, x, tight, u=u).x, [32, 64, 128, 256]
    solutions = [sdegen.solve(model, x, AdamsBashforth2(n), u=u) for n in steps]
    assert [solution.calls for solution in solutions] == steps
    assert abs(slope(steps, [float((solution.x - exact).abs().max()) for solution in solutions]) - 2) < 0.15


def test_it_goes_both_ways_and_its_memory_holds_the_divergence_too():
    target = ring()
    model, x = target.model(sdegen.CondOT()), target.sample(6)
    trips = [
        (sdegen.decode(model, sdegen.encode(model, x, AdamsBashforth2(n)), AdamsBashforth2(n)) - x).abs().max()
        for n in (128, 256)
    ]
    assert trips[1] < trips[0] / 3
    exact = target.log_prob(x)
    errors = [float((sdegen.log_prob(model, x, AdamsBashforth2(n)) - exact).abs().max()) for n in (256, 512)]
    assert abs(slope([256, 512], errors) - 2) < 0.3


@dataclass(frozen=True)
class Averaging(sdegen.Solver):
    """x_hat averaged over all answers so far, with noise: a memory that grows, or the same list kept aside."""

    steps: int
    aside: bool

    def run(self, problem):
        u, t = problem.knots(sdegen.PowerGrid(2), self.steps)
        kept: list[torch.Tensor] = []

        def moved(k, y, answers):
            return u[k + 1] / u[k] * y + (1 - u[k + 1] / u[k]) * sum(answers) / len(answers), 0.1 * u[k + 1]

        def alone(k, y, ask):
            kept.insert(0, ask(y, u[k], 1.0, 0.0))
            return moved(k, y, kept)

        def handed(k, y, ask, memory):
            assert len(memory) == k
            memory = (ask(y, u[k], 1.0, 0.0), *memory)
            return moved(k, y, memory), memory

        return sdegen.march(problem, u, t, alone) if self.aside else sdegen.march(problem, u, t, handed, ())


def test_a_memory_is_what_a_list_kept_aside_is_with_noise_added():
    model, x = ring().model(sdegen.VPSDE()), torch.randn(5, 2)
    ends = [
        sdegen.solve(model, x, Averaging(7, aside), generator=torch.Generator().manual_seed(2), trajectory=True)
        for aside in (True, False)
    ]
    assert torch.equal(ends[0].trajectory, ends[1].trajectory)
    assert [end.calls for end in ends] == [7, 7]


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (lambda y: y, "Tensor"),
        (lambda y: (y, y.new_ones(())), "Tensor"),
        (lambda y: (y, [y]), "list"),
        (lambda y: (y, (y, 0.5)), r"\['Tensor', 'float'\]"),
        (lambda y: (y, y, ()), r"\['Tensor', 'Tensor', 'tuple'\]"),
        (lambda y: None, "NoneType"),
    ],
)
def test_a_step_that_was_handed_a_memory_must_return_one(returned, named):
    class Forgetful(sdegen.Solver):
        def run(self, problem):
            u, t = problem.knots(sdegen.PowerGrid(1), 3)
            return sdegen.march(problem, u, t, lambda k, y, ask, memory: returned(y), ())

    with pytest.raises(
        TypeError, match=rf"^step\(0, y, ask, memory\) must return \(state, mem.* its memory is {named}\.$"
    ):
        sdegen.solve(ring().model(sdegen.VPSDE()), torch.randn(5, 2), Forgetful())
