"""`solve(..., callback=)`: what it is told after every step, and that nobody notices it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from problems import ring
from torch import nn

import sdegen

B = 4
X = torch.randn(B, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
VP = sdegen.VPSDE()


class Net(nn.Module):
    """A smooth field with twice the channels where a variance is wanted; keeps what it was shown and said."""

    def __init__(self, channels: int = 1):
        super().__init__()
        self.scale, self.channels, self.seen = nn.Parameter(torch.tensor(1.3)), channels, []

    def forward(self, x, t):
        out = torch.sin(self.scale * x) + 0.3 * x + 0.1 * t.reshape(-1, *[1] * (x.ndim - 1))
        self.seen.append((x.detach().clone(), t.clone()))
        return torch.cat([out, 0.5 * torch.cos(x)], 1) if self.channels == 2 else out


@dataclass(frozen=True)
class Greedy(sdegen.Solver):
    """Heun on slopes that writes into every answer and into the state it was handed."""

    steps: int

    def run(self, problem):
        u, t = problem.knots(sdegen.PowerGrid(2), self.steps)

        def step(k, y, ask):
            h, y = float(u[k + 1] - u[k]), y.clone()
            slope = ask(y, u[k]).mul_(h)
            last = ask(y + 0.5 * slope, u[k] + 0.5 * h).mul_(h)
            return y.add_(last)

        return sdegen.march(problem, u, t, step)


@dataclass(frozen=True)
class Remembering(sdegen.Solver):
    """Asks in every second step alone, and goes on by its last slope in the others."""

    def run(self, problem):
        u, t = problem.knots(sdegen.PowerGrid(1), 6)

        def step(k, y, ask, memory):
            slope = ask(y, u[k]) if k % 2 == 0 else memory[0]
            return y + (u[k + 1] - u[k]) * slope, (slope,)

        return sdegen.march(problem, u, t, step, memory=())


SOLVERS = {
    "adams": sdegen.Adams(8),
    "stochastic adams": sdegen.StochasticAdams(8),
    "dpm": sdegen.DPMSolver(8),
    "dpm sde": sdegen.DPMSolver(8, eta=1.0),
    "unipc": sdegen.UniPC(8),
    "deis": sdegen.DEIS(8),
    "sa": sdegen.SASolver(8),
    "heun": sdegen.Heun(8),
    "churn": sdegen.Churn(sdegen.Heun(8)),
    "langevin": sdegen.Langevin(sdegen.DPMSolver(8, 1), 0.1),
    "restart": sdegen.Restart(sdegen.UniPC(8)),
    "ancestral": sdegen.Ancestral(8),
    "ancestral posterior": sdegen.Ancestral(8, variance="posterior"),
    "ancestral optimal": sdegen.Ancestral(8, variance="optimal"),
    "ancestral learned": sdegen.Ancestral(8, variance="learned"),
    "ddim": sdegen.DDIM(8),
    "ddim eta": sdegen.DDIM(8, eta=0.7),
    "greedy": Greedy(8),
    "remembering": Remembering(),
}


def network(name: str, path=VP, predicts: str = "v") -> sdegen.ScoreModel:
    learns = name == "ancestral learned"
    return sdegen.ScoreModel(Net(2 if learns else 1), path, predicts, learns_variance=learns)


def watched(model, x, solver, **kept):
    """(solution, what the callback was told), from one seed."""
    told = []
    g = None if solver.solves_ode else torch.Generator().manual_seed(3)
    found = sdegen.solve(model, x, solver, generator=g, callback=lambda *step: told.append(step), **kept)
    return found, told


@pytest.mark.parametrize("name", SOLVERS)
def test_it_is_told_the_clock_the_state_and_the_last_answer(name):
    """x is the trajectory's; x_hat is `.data` where the network was last asked, as it was shown x_t and t there."""
    solver, model = SOLVERS[name], network(name)
    asked = []
    wanted = model.net.seen

    def note(k, u, x, x_hat):
        asked.append(len(wanted))

    found, told = watched(model, X, solver, trajectory=True)
    model.net.seen.clear()
    g = None if solver.solves_ode else torch.Generator().manual_seed(3)
    sdegen.solve(model, X, solver, generator=g, callback=note)
    shown = [*model.net.seen]
    assert [k for k, *_ in told] == list(range(len(found.u) - 1))
    assert [u for _, u, _, _ in told] == found.u[1:].tolist()
    assert all(type(u) is float and type(k) is int for k, u, _, _ in told)
    torch.testing.assert_close(torch.stack([x for _, _, x, _ in told]), found.trajectory[1:], rtol=1e-14, atol=1e-14)
    for calls, (_, _, x, x_hat) in zip(asked, told, strict=True):
        assert (x_hat.shape, x_hat.dtype) == (x.shape, x.dtype)
        x_t, t = shown[calls - 1]
        torch.testing.assert_close(x_hat, model.data(x_t, t), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SOLVERS)
def test_nobody_notices_it(name):
    """Bit for bit the same end, trajectory, cost and state of the generator, though it writes into what it is told."""
    solver, model = SOLVERS[name], network(name)

    def spoil(k, u, x, x_hat):
        x.fill_(7.0)
        x_hat.fill_(7.0)
        return 7.0

    ends = []
    for callback in (None, spoil):
        g = None if solver.solves_ode else torch.Generator().manual_seed(3)
        model.net.seen.clear()
        found = sdegen.solve(model, X, solver, generator=g, trajectory=True, callback=callback)
        ends.append((found, len(model.net.seen), None if g is None else g.get_state()))
    (plain, calls, state), (told, calls_told, state_told) = ends
    assert torch.equal(plain.x, told.x)
    assert torch.equal(plain.trajectory, told.trajectory)
    assert (plain.calls, plain.accepted, calls) == (told.calls, told.accepted, calls_told)
    assert state is None or torch.equal(state, state_told)


@pytest.mark.parametrize("path", [sdegen.CondOT(), sdegen.VESDE(), sdegen.DDPM.linear(1000)], ids=repr)
@pytest.mark.parametrize("predicts", ["eps", "data", "v"])
def test_on_every_path_and_prediction(path, predicts):
    """And through wrappers: the x_hat is the changed one."""

    class Half(sdegen.Wrapped):
        def change(self, D, y, u, r, t, cond):
            return 0.5 * D(y, cond=cond)

    u = (0.9, 0.2)
    for solver in (sdegen.Adams(6), sdegen.Ancestral(6), sdegen.DDIM(6)):
        for model in (network("", path, predicts), Half(network("", path, predicts)), ring().model(path)):
            found, told = watched(model, X, solver, u=u, trajectory=True)
            for k, (_, _, _, x_hat) in enumerate(told):
                expected = model.data(found.trajectory[k], path.time(found.u[k]))
                if solver != sdegen.Adams(6):  # which corrects the state before it goes on
                    torch.testing.assert_close(x_hat, expected, rtol=1e-9, atol=1e-9)
            assert k == 5


def test_at_clean_data_the_estimate_is_the_state():
    """Towards noise the first question is at u = 0, where an eps network tells no x_hat; y does."""
    for predicts in ("eps", "v"):
        _, told = watched(network("", VP, predicts), X, sdegen.Adams(6), to="noise")
        torch.testing.assert_close(told[0][3], X, rtol=1e-13, atol=1e-13)
        assert [u for _, u, _, _ in told] == sorted(u for _, u, _, _ in told)


def test_a_move_that_asks_nothing_has_the_last_estimate():
    """NaN before the first; a callback that wrote into it did not change it."""
    told = []

    def spoil(k, u, x, x_hat):
        told.append(x_hat.clone())
        x_hat.fill_(7.0)

    sdegen.solve(network(""), X, Remembering(), callback=spoil)
    for k in (0, 2, 4):
        assert torch.equal(told[k], told[k + 1])
        assert bool(torch.isfinite(told[k]).all())
    _, churned = watched(network(""), X, sdegen.Churn(sdegen.Heun(4), 2.0), u=(0.5, 0.1))
    assert churned[0][1] > 0.5  # up by noise, before any question
    assert bool(torch.isnan(churned[0][3]).all())
    assert bool(torch.isfinite(churned[1][3]).all())


def test_an_answer_that_says_nothing_of_the_data_leaves_it():
    """(1-u) x_hat + u eps_hat is y, whatever the network says."""

    @dataclass(frozen=True)
    class Idle(sdegen.Solver):
        def run(self, problem):
            u, t = problem.knots(sdegen.PowerGrid(1), 2)
            c = (0.5, 1 - float(u[1]))
            return sdegen.march(problem, u, t, lambda k, y, ask: 0 * ask(y, u[k], c[k], 1 - c[k]) + y)

    model = network("")
    found, told = watched(model, X, Idle())
    first = model.data(X, VP.time(found.u[0]))
    torch.testing.assert_close(told[0][3], first, rtol=1e-10, atol=1e-10)
    assert torch.equal(told[0][3], told[1][3])


def test_it_has_no_graph_and_gradients_are_the_same():
    """Of a differentiable solve; the tensors it is told have none."""
    model, x = network(""), X.clone().requires_grad_(True)
    slopes = []
    for callback in (None, lambda k, u, x, x_hat: slopes.append(x.requires_grad or x_hat.requires_grad)):
        end = sdegen.solve(model, x, sdegen.DDIM(5), differentiable=True, callback=callback).x
        slopes.append(torch.autograd.grad(end.square().sum(), [x, model.net.scale]))
    plain, *graphs, told = slopes
    assert graphs == [False] * 5
    assert all(torch.equal(a, b) for a, b in zip(plain, told, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_states_come_in_the_dtype_of_x(dtype):
    x = torch.randn(3, 1, 2, 2).to(dtype)
    found, told = watched(sdegen.ScoreModel(Net().to(torch.float32), VP, "v"), x, sdegen.DDIM(4), trajectory=True)
    for k, (_, _, x_k, x_hat) in enumerate(told):
        assert (x_k.dtype, x_hat.dtype, x_hat.shape) == (dtype, dtype, x.shape)
        assert torch.equal(x_k, found.trajectory[k + 1])


def test_what_it_raises_ends_the_solve():
    model = network("")

    def stop(k, u, x, x_hat):
        if k == 2:
            raise StopIteration("enough")

    with pytest.raises(StopIteration, match="enough"):
        sdegen.solve(model, X, sdegen.DDIM(8), callback=stop)
    assert len(model.net.seen) == 3


@pytest.mark.parametrize(
    ("solver", "kept", "error", "says"),
    [
        (
            sdegen.DDIM(4),
            {"callback": 3},
            TypeError,
            r"^callback must be callable as callback\(k, u, x, x_hat\).* 3\.$",
        ),
        (sdegen.ODESolver("rk4", steps=4), {}, ValueError, r"the loop of ODESolver.*'rk4'.* is not: take Adams"),
        (sdegen.ODESolver("dopri5", steps_for="sample"), {}, ValueError, "the loop of ODESolver.* is not: take Adams"),
        (sdegen.SDESolver(steps=4), {}, ValueError, "the loop of SDESolver.* is not: take Adams"),
        (
            sdegen.DDIM(4),
            {"differentiable": True, "checkpoint_every": 2},
            ValueError,
            "checkpoint_every = 2 takes the steps of a whole chunk at once: give one of the two",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_call(solver, kept, error, says):
    model = network("")
    with pytest.raises(error, match=says):
        sdegen.solve(model, X, solver, **{"callback": lambda *step: None, **kept})
    assert not model.net.seen


def test_a_solver_with_a_loop_of_its_own_is_told_on():
    @dataclass(frozen=True)
    class Engine(sdegen.Solver):
        def run(self, problem):
            return sdegen.ODESolver("rk4", steps=2).run(problem)

    with pytest.warns(UserWarning, match=r"Engine\(\) never called the callback") as caught:
        found, told = watched(network(""), X, Engine())
    assert caught[0].filename == __file__
    assert not told
    assert torch.equal(found.x, sdegen.solve(network(""), X, Engine()).x)
    watched(network(""), X[:0], Engine())  # nothing to solve, nothing to say


def test_a_singular_end_is_refused_in_the_same_words():
    model = sdegen.ScoreModel(Net(), sdegen.CondOT(), "eps")
    said = []
    for callback in (None, print):
        with pytest.raises(ValueError, match="singular for 'eps'") as error:
            sdegen.solve(model, X, sdegen.DDIM(4), callback=callback)
        said.append(str(error.value))
    assert said[0] == said[1]
