"""checkpoint_every: the gradients of a plain backward pass, for fewer stored activations and more network calls."""

from __future__ import annotations

import pytest
import torch
from differentiated import SOLVERS, STEPS, AdamsBashforth2, model_for
from torch import nn

import sdegen


def gradients(model, solver, x, shift, *, seed: int | None = 3, rows: bool = False, **kept):
    """Of a loss on samples in x_T, the condition and every parameter, with noise drawn anew from the same seed."""
    torch.manual_seed(5)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    if rows:
        generator = [torch.Generator().manual_seed(seed + i) for i in range(len(x))]
    kept = {"trajectory": True, "differentiable": True, **kept}
    found = sdegen.solve(model, x, solver, cond={"shift": shift}, generator=generator, **kept)
    loss = found.x.square().sum() + found.trajectory[STEPS // 2].sum()
    slopes = torch.autograd.grad(loss, [x, shift, *model.parameters()])
    states = [] if seed is None else [g.get_state() for g in (generator if rows else [generator])]
    return found, slopes, states


CHUNKS = [(name, every) for name, (_, marches) in SOLVERS.items() for every in ([1, 2, 3, 99] if marches else [1])]


@pytest.mark.parametrize(("name", "every"), CHUNKS)
def test_checkpointed_gradients_are_the_plain_ones(name, every):
    """To the last digits, with noise from one generator or one per sample, which the backward pass leaves alone."""
    solver, _ = SOLVERS[name]
    rows = every == 2 and name != "ancestral optimal"  # which refuses one per sample
    model = model_for(solver)
    x, shift = (torch.randn(4, 2, requires_grad=True) for _ in range(2))
    plain, slopes, states = gradients(model, solver, x, shift, rows=rows)
    found, again, left = gradients(model, solver, x, shift, rows=rows, checkpoint_every=every)
    assert torch.equal(found.trajectory, plain.trajectory)
    assert (found.calls, found.accepted) == (plain.calls, plain.accepted)
    for ours, theirs in zip(again, slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(states, left, strict=True))


@pytest.mark.parametrize(
    ("name", "every"), [("ancestral", 1), ("ancestral", 3), ("ancestral", STEPS), ("own multistep", 2), ("sde srk", 1)]
)
def test_dropout_and_noise_from_the_global_generator_come_out_the_same(name, every):
    """Both draw from it in turn, so a chunk that is taken again must draw in turn too."""
    solver, _ = SOLVERS[name]
    model = model_for(solver, dropout=0.5)
    x, shift = (torch.randn(4, 2, requires_grad=True) for _ in range(2))
    plain, slopes, _ = gradients(model, solver, x, shift, seed=None)
    found, again, _ = gradients(model, solver, x, shift, seed=None, checkpoint_every=every)
    assert torch.equal(found.x, plain.x)
    for ours, theirs in zip(again, slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_noise_that_a_callable_draws_is_that_of_the_first_pass():
    """Whatever it would answer the second time."""
    solver, model = sdegen.Ancestral(STEPS), model_for(sdegen.Ancestral())
    x, shift = (torch.randn(4, 2, requires_grad=True) for _ in range(2))
    g = torch.Generator()

    def slopes(**kept):
        g.manual_seed(1)
        noise = lambda k: torch.randn(4, 2, generator=g)  # noqa: E731
        return gradients(model, solver, x, shift, seed=None, noise=noise, **kept)[1]

    for ours, theirs in zip(slopes(checkpoint_every=2), slopes(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


class Counting(nn.Module):
    """A network that notes the times it is shown, in the order of the calls."""

    def __init__(self):
        super().__init__()
        self.layers, self.times = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)), []

    def forward(self, x, t):
        self.times.append(float(t[0]))
        return self.layers(x)


def stored(model, solver, x, **kept) -> tuple[int, sdegen.Solution]:
    """Numbers that the forward pass keeps for the backward pass."""
    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = sdegen.solve(model, x, solver, differentiable=True, **kept)
    return total, found


@pytest.mark.parametrize("solver", [sdegen.DDIM(12), AdamsBashforth2(12)], ids=repr)
def test_one_chunk_after_another_is_taken_again(solver):
    """12 steps keep 12 calls; chunks of 4 keep three states, and the last 4 steps are taken again first."""
    net = Counting()
    model, x = sdegen.ScoreModel(net, sdegen.VPSDE(), "v"), torch.randn(6, 2, requires_grad=True)
    plain, _ = stored(model, solver, x)
    net.times.clear()
    few, found = stored(model, solver, x, checkpoint_every=4)
    assert few < plain / 10
    ahead = [*net.times]
    assert len(ahead) == found.calls == 12
    found.x.sum().backward()
    assert net.times[12:] == [*ahead[8:], *ahead[4:8], *ahead[:4]]
    assert found.calls == 12


@pytest.mark.parametrize("solver", [sdegen.ODESolver("rk4", steps=3), sdegen.SDESolver("heun", 6, eta=0.0)], ids=repr)
def test_of_an_engine_one_call_after_another_is_made_again(solver):
    net = Counting()
    model, x = sdegen.ScoreModel(net, sdegen.VPSDE(), "v"), torch.randn(6, 2, requires_grad=True)
    plain, _ = stored(model, solver, x)
    net.times.clear()
    few, found = stored(model, solver, x, checkpoint_every=1)
    assert few < plain / 2
    ahead = [*net.times]
    assert len(ahead) == found.calls == 12
    found.x.sum().backward()
    assert sorted(net.times[12:]) == sorted(ahead)
    assert found.calls == 12


@pytest.mark.parametrize("verb", [sdegen.encode, sdegen.decode, sdegen.sample, sdegen.solve])
def test_every_verb_hands_it_on(verb):
    """As many calls again in the backward pass, and none of them without."""
    net, solver, x = Counting(), AdamsBashforth2(6), torch.randn(6, 2)
    model = sdegen.ScoreModel(net, sdegen.VPSDE(), "v")
    for every, calls in ((None, 6), (2, 12)):
        net.times.clear()
        found = verb(model, (6, 2) if verb is sdegen.sample else x, solver, differentiable=True, checkpoint_every=every)
        (found if isinstance(found, torch.Tensor) else found.x).sum().backward()
        assert len(net.times) == calls


@pytest.mark.parametrize("solver", [sdegen.ODESolver("rk4", steps=4), sdegen.SDESolver("euler", 4)], ids=repr)
def test_the_steps_of_an_engine_are_not_taken_in_chunks(solver):
    def never(x, t):
        raise AssertionError("The network must not be called.")

    engine = "torchsde" if isinstance(solver, sdegen.SDESolver) else "torchdiffeq"
    with pytest.raises(
        ValueError, match=rf"^{engine} takes the steps of .*not in chunks of checkpoint_every = 2: give 1"
    ):
        sdegen.solve(
            sdegen.ScoreModel(never, sdegen.VPSDE()), torch.randn(4, 2), solver, differentiable=True, checkpoint_every=2
        )
