"""What engines must not do to their surroundings: the global generator, the network's own errors, the user's data."""

from __future__ import annotations

import threading

import pytest
import torch
from problems import ring
from torch import nn

import sdegen

SDES = [
    *(sdegen.SDESolver(method, 6, eta=0.3) for method in sdegen.solvers.SDE_METHODS),
    sdegen.SDESolver("euler", adaptive=True, rtol=0.5, atol=0.5),
]


def slow(x, t):
    threading.Event().wait(0.002)
    return 0.1 * x


@pytest.mark.parametrize("solver", SDES, ids=repr)
def test_the_global_generator_is_never_touched(solver):
    """With generator= given its state is the same before, after, and at every network call."""
    states = []

    def net(x, t):
        states.append(torch.get_rng_state())
        return 0.1 * x

    model, before = sdegen.ScoreModel(net, sdegen.VPSDE()), torch.get_rng_state()
    sdegen.sample(model, (5, 3), solver, generator=torch.Generator().manual_seed(1))
    assert states
    for state in (*states, torch.get_rng_state()):
        assert torch.equal(state, before)


def test_another_thread_never_sees_its_draws_again():
    """Solves in one thread, draws from the global generator in another: no value comes twice."""
    model, done, drawn = sdegen.ScoreModel(slow, sdegen.VPSDE()), threading.Event(), []

    def draw():
        while not done.is_set():
            drawn.append(float(torch.rand(())))

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for seed in range(20):
            solver = sdegen.SDESolver("srk" if seed % 2 else "euler", 3)
            sdegen.sample(model, (4, 2), solver, generator=torch.Generator().manual_seed(seed))
    finally:
        done.set()
        thread.join()
    assert len(drawn) > 100
    assert len(set(drawn)) == len(drawn)


def test_an_interrupt_leaves_the_generator_and_the_mode_alone():
    class Interrupted(nn.Module):
        def forward(self, x, t):
            raise KeyboardInterrupt

    model = sdegen.ScoreModel(Interrupted(), sdegen.VPSDE()).train()
    for solver in SDES:
        before, generator = torch.get_rng_state(), torch.Generator().manual_seed(1)
        with pytest.raises(KeyboardInterrupt):
            sdegen.sample(model, (2, 2), solver, generator=generator)
        assert torch.equal(torch.get_rng_state(), before)
        assert model.net.training


ADAPTIVE = [sdegen.ODESolver(method, rtol=1e-3) for method in ("dopri5", "dopri8", "bosh3")]


@pytest.mark.parametrize("solver", ADAPTIVE, ids=repr)
@pytest.mark.parametrize("predicts", ["v", "eps"])
def test_a_network_that_answers_nan_is_named_as_such(solver, predicts):
    model, x = sdegen.ScoreModel(lambda x, t: x * float("nan"), sdegen.VPSDE(), predicts), torch.ones(3, 2)
    verbs = {
        "sample": lambda: sdegen.sample(model, (3, 2), solver),
        "encode": lambda: sdegen.encode(model, x, solver),
        "decode": lambda: sdegen.decode(model, x, solver),
        "rectify": lambda: sdegen.rectify(model, x, solver),
    }
    for verb in verbs.values():
        with pytest.raises(sdegen.NonFiniteError, match="NaN or infinite"):
            verb()


@pytest.mark.parametrize("solver", [*ADAPTIVE, sdegen.ODESolver("rk4", steps=4), *SDES], ids=repr)
def test_the_networks_own_assertion_stays_its_own(solver):
    def net(x, t):
        raise AssertionError("labels are missing")

    with pytest.raises(AssertionError, match=r"^labels are missing$"):
        sdegen.sample(sdegen.ScoreModel(net, sdegen.VPSDE()), (2, 2), solver)


def test_a_profile_and_a_network_may_write_into_what_they_are_given():
    """The clock, the caller's conditions and states come back as they were, and so do the numbers."""

    def careless(u):
        return u.mul_(2).sqrt_()

    target, x, noise = ring().model(sdegen.CondOT()), torch.randn(5, 2), torch.randn(8, 5, 2)
    for method in ("euler", "midpoint"):
        ends = [
            sdegen.solve(target, x, sdegen.SDESolver(method, 8, w=w), noise=noise).x
            for w in (careless, lambda u: (2 * u).sqrt())
        ]
        assert torch.equal(*ends)

    def net(x, t, shift):
        answer = 0.1 * x + shift
        for tensor in (x, t, shift):
            tensor.mul_(0)
        return answer

    shift = torch.randn(5, 2)
    kept, model = shift.clone(), sdegen.ScoreModel(net, sdegen.VPSDE(), "v")
    start, cond = x.clone(), {"shift": shift}
    sdegen.solve(model, x, sdegen.SDESolver(steps=3), noise=noise[:3], cond=cond)
    sdegen.sample(model, (5, 2), sdegen.DDIM(3), x_T=x, cond=cond)
    sdegen.loss(model, x, cond=cond)
    model.eps(x, 0.5, cond)
    model(x, 0.5, cond)
    assert torch.equal(shift, kept)
    assert torch.equal(x, start)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_a_respaced_chain_carries_its_start(spacing):
    """README's line: no u= is needed, and giving it changes nothing; towards noise the same knots."""
    path = sdegen.DDPM.linear(100, 1e-3, 0.2)
    model, grid = ring().model(path), path.respaced(10, spacing)
    x, noise = torch.randn(4, 2), torch.randn(10, 4, 2)
    for solver in (sdegen.Ancestral(grid=grid), sdegen.DDIM(grid=grid), sdegen.SDESolver(grid=grid)):
        alone = sdegen.solve(model, x, solver, noise=noise)
        assert torch.equal(alone.x, sdegen.solve(model, x, solver, noise=noise, u=(float(grid[0]), 0.0)).x)
        torch.testing.assert_close(alone.u, grid[:], rtol=0, atol=1e-15)
    ode = sdegen.ODESolver("midpoint", grid=grid)
    there = sdegen.solve(model, x, ode, to="noise")
    torch.testing.assert_close(there.u, grid[:].flip(0), rtol=0, atol=1e-15)
    g = torch.Generator().manual_seed(0)
    drawn = sdegen.sample(model, (4, 2), ode, generator=g)
    start = path.prior_at(float(grid[0])).sample((4, 2), g.manual_seed(0))
    torch.testing.assert_close(drawn, sdegen.solve(model, start, ode).x)
    with pytest.raises(ValueError, match="grid runs"):
        sdegen.solve(model, x, sdegen.DDIM(grid=torch.tensor([0.9, 0.5, 0.1])))
