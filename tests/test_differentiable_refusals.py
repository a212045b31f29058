"""What `differentiable` and `checkpoint_every` refuse, before the first network call."""

from __future__ import annotations

import pytest
import torch

import sdegen


def never(x, t):
    raise AssertionError("The network must not be called.")


MODEL, X, RK4 = sdegen.ScoreModel(never, sdegen.VPSDE(), "v"), torch.zeros(4, 2), sdegen.ODESolver("rk4", steps=4)
VERBS = {
    "solve": lambda solver=RK4, **kept: sdegen.solve(MODEL, X, solver, **kept),
    "sample": lambda solver=RK4, **kept: sdegen.sample(MODEL, (4, 2), solver, **kept),
    "encode": lambda solver=RK4, **kept: sdegen.encode(MODEL, X, solver, **kept),
    "decode": lambda solver=RK4, **kept: sdegen.decode(MODEL, X, solver, **kept),
}
every_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


@every_verb
@pytest.mark.parametrize("method", [m for m, scheme in sdegen.solvers.ODE_METHODS.items() if scheme.adaptive])
def test_an_adaptive_ode_has_no_gradients(verb, method):
    with pytest.raises(
        ValueError, match=rf"^differentiable=True needs fixed steps, and ODESolver\(method='{method}'.* ch"
    ):
        verb(sdegen.ODESolver(method), differentiable=True)


@pytest.mark.parametrize("verb", [VERBS["solve"], VERBS["sample"]])
def test_nor_has_an_adaptive_sde(verb):
    with pytest.raises(ValueError, match=r"needs fixed steps, and SDESolver\(method='srk'.* chooses its own; take one"):
        verb(sdegen.SDESolver("srk", adaptive=True), differentiable=True)


def test_the_default_of_encode_and_decode_is_adaptive():
    for verb in (sdegen.encode, sdegen.decode):
        with pytest.raises(ValueError, match=r"needs fixed steps, and ODESolver\(method='dopri8'"):
            verb(MODEL, X, differentiable=True)


def test_a_solver_says_whether_it_is_differentiable():
    methods = {
        m: sdegen.ODESolver(m, steps=3) for m, scheme in sdegen.solvers.ODE_METHODS.items() if not scheme.adaptive
    }
    assert all(solver.differentiable for solver in methods.values())
    assert sdegen.Ancestral().differentiable
    assert sdegen.DDIM().differentiable
    assert all(sdegen.SDESolver(m, 3).differentiable for m in sdegen.solvers.SDE_METHODS)
    assert not sdegen.SDESolver("euler", adaptive=True).differentiable
    assert not sdegen.ODESolver("dopri5").differentiable


@every_verb
@pytest.mark.parametrize("value", [1, None, "yes"])
def test_differentiable_is_a_truth_value(verb, value):
    with pytest.raises(TypeError, match=rf"^differentiable must be True or False, and it is {value!r}\.$"):
        verb(differentiable=value)


@every_verb
def test_checkpoints_are_for_a_backward_pass(verb):
    with pytest.raises(
        ValueError, match=r"^checkpoint_every = 4 is about a backward pass, and without differentiable=T"
    ):
        verb(checkpoint_every=4)


@every_verb
def test_chunks_hold_a_whole_number_of_steps(verb):
    for value in (0, -3):
        with pytest.raises(ValueError, match=rf"^checkpoint_every must be at least 1, and it is {value}\.$"):
            verb(differentiable=True, checkpoint_every=value)
    for value in (2.0, True, "1"):
        with pytest.raises(TypeError, match=rf"^checkpoint_every must be an integer, and {value!r} is "):
            verb(differentiable=True, checkpoint_every=value)


@every_verb
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_no_graph_can_be_kept_where_gradients_are_off(verb, off):
    with (
        off(),
        pytest.raises(ValueError, match=r"gradients are switched off here, by torch\.no_grad or torch\.inference_mo"),
    ):
        verb(differentiable=True)


class Learnable(sdegen.GaussianPath):
    """VP whose rate is a parameter."""

    def __init__(self):
        self.rate = torch.tensor(9.0, requires_grad=True)

    def __repr__(self):
        return "Learnable()"

    def alpha(self, t):
        return torch.exp(-0.5 * self.rate * t**2)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self.rate * t**2))


@pytest.mark.parametrize("moved", [False, True])
def test_a_path_has_no_gradients(moved):
    """Rather than those of a part of the formula; without `differentiable` it is a path like any."""
    with torch.no_grad():
        model = sdegen.ScoreModel(never, Learnable(), "v")
        model = model.on(sdegen.CondOT()) if moved else model
    with pytest.raises(
        ValueError, match=r"^The gradients of a solve do not reach its path, and Learnable\(\) asks for t"
    ):
        sdegen.solve(model, X, RK4, differentiable=True)
    still = sdegen.ScoreModel(lambda x, t: torch.tanh(x), Learnable(), "v")
    assert not sdegen.solve(still, X, RK4).x.requires_grad


def test_a_state_made_in_inference_mode_is_a_start_like_any():
    with torch.inference_mode():
        x = torch.randn(4, 2)
    scale = torch.tensor(0.5, requires_grad=True)
    model = sdegen.ScoreModel(lambda x, t: scale * torch.tanh(x), sdegen.VPSDE(), "v")
    for every in (None, 1):
        end = sdegen.solve(model, x, RK4, differentiable=True, checkpoint_every=every).x
        assert float(torch.autograd.grad(end.sum(), scale)[0]) != 0


def test_an_empty_batch_is_differentiable():
    x = torch.zeros(0, 2, requires_grad=True)
    end = sdegen.solve(MODEL, x, sdegen.DDIM(3), differentiable=True, checkpoint_every=2).x
    assert torch.autograd.grad(end.sum(), x)[0].shape == (0, 2)
