"""Models that wrap models: the inner model's answers where nothing is changed, one line of maths where something is."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from problems import ring
from torch import nn

import sdegen

PATHS = [sdegen.VPSDE(), sdegen.SubVPSDE(), sdegen.VESDE(), sdegen.CondOT(), sdegen.DDPM.linear(50, 1e-3, 0.2)]
NAMES = ["eps", "score", "data", "velocity", "v"]


class Unchanged(sdegen.Wrapped):
    def change(self, D, y, u, r, t, cond):
        return D(y, cond=cond)


class ClassifierFree(sdegen.Wrapped):
    """scale > 1 moves away from what the network says without the condition; both branches in one call."""

    def __init__(self, model, scale, without):
        super().__init__(model)
        self.scale, self.without = scale, without

    def change(self, D, y, u, r, t, cond):
        both = {name: torch.cat([value, self.without[name].expand_as(value)]) for name, value in cond.items()}
        given, free = D(torch.cat([y, y]), cond=both).chunk(2)
        return free + self.scale * (given - free)


class Exact(nn.Module):
    """eps of N(+-1, 0.3^2) by the label, of their even mixture where the label is 0: closed forms, row by row."""

    def __init__(self, path, name="eps"):
        super().__init__()
        self.calls, self.rows = 0, 0
        sides = [sdegen.Gaussian([m, -m], 0.3) for m in (-1.0, 1.0)]
        mixture = sdegen.GaussianMixture([[-1.0, 1.0], [1.0, -1.0]], 0.3)
        self.answers = [getattr(law.model(path), name) for law in (sides[0], mixture, sides[1])]

    def forward(self, x, t, label):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        every = torch.stack([answer(x, t) for answer in self.answers], 1)
        return every[torch.arange(len(x)), label + 1]


def test_a_guided_model_is_twelve_lines():
    source = inspect.getsource(ClassifierFree).splitlines()
    assert len([line for line in source if line.strip()]) <= 12


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_nothing_changed_is_the_model_itself(path):
    """Every prediction, sampler and density, and through two wrappers as through one."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    inner = sdegen.ScoreModel(lambda x, t: net(x) * (1 + t[:, None]), path, "v")
    x, noise, t = torch.randn(6, 2), torch.randn(10, 6, 2), 0.4 * path.t_data + 0.6 * path.t_noise
    for outer in (Unchanged(inner), Unchanged(Unchanged(inner))):
        for name in NAMES:
            torch.testing.assert_close(getattr(outer, name)(x, t), getattr(inner, name)(x, t))
        u = (0.9, max(0.1, path.ends[0]))
        for solver in (sdegen.SDESolver("srk", 10), sdegen.DDIM(10, eta=1.0), sdegen.Ancestral(10)):
            given = torch.randn(10, 2, 6, 2) if solver == sdegen.SDESolver("srk", 10) else noise
            ends = [sdegen.solve(m, x, solver, noise=given, u=u).x for m in (outer, inner)]
            torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)
        solver = sdegen.ODESolver("rk4", steps=6)
        logps = [sdegen.log_prob(m, x, solver, u=u[::-1]) for m in (outer, inner)]
        torch.testing.assert_close(*logps, rtol=1e-10, atol=1e-10)
        moved = [sdegen.solve(m.on(sdegen.Trigonometric()), x, solver, u=(0.8, 0.2)).x for m in (outer, inner)]
        torch.testing.assert_close(*moved, rtol=1e-10, atol=1e-10)
        assert (outer.clocks, outer.has_score, outer.path) == (inner.clocks, inner.has_score, inner.path)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_is_linear_in_the_two_models(path, scale):
    """(1 - s) eps_mixture + s eps_side, whatever the network predicts; one call on twice the batch."""
    x, label = torch.randn(8, 2), torch.tensor([1, -1] * 4)
    t = torch.linspace(0.2, 0.9, 8) * (path.t_noise - path.t_data) + path.t_data
    for name in ("eps", "data", "v"):
        net = Exact(path, name)
        guided = ClassifierFree(sdegen.ScoreModel(net, path, name), scale, {"label": torch.tensor(0)})
        eps = guided.eps(x, t, {"label": label})
        assert (net.calls, net.rows) == (1, 16)
        alone = [sdegen.ScoreModel(answer, path, name).eps(x, t) for answer in net.answers]
        side = torch.where(label[:, None] == 1, alone[2], alone[0])
        torch.testing.assert_close(eps, (1 - scale) * alone[1] + scale * side, rtol=1e-11, atol=1e-11)


def test_guidance_samples_integrates_and_moves():
    """At scale 1 it is the conditional model: samples of every kind, densities, and on another path."""
    path, label = sdegen.VPSDE(), {"label": torch.tensor([1, -1, 1, -1, 1])}
    model = sdegen.ScoreModel(Exact(path), path)
    guided, x = ClassifierFree(model, 1.0, {"label": torch.tensor(0)}), torch.randn(5, 2)
    noise = torch.randn(12, 5, 2)
    for solver in (sdegen.SDESolver(steps=12), sdegen.Ancestral(12), sdegen.DDIM(12, eta=0.5)):
        ends = [sdegen.solve(m, x, solver, noise=noise, cond=label).x for m in (guided, model)]
        torch.testing.assert_close(*ends)
    tight = sdegen.ODESolver("dopri8", rtol=1e-9)
    logp = sdegen.log_prob(guided, x, tight, cond=label)
    torch.testing.assert_close(logp, sdegen.log_prob(model, x, tight, cond=label), rtol=1e-9, atol=1e-9)
    u = (0.9, 0.0)
    moved = [sdegen.decode(m.on(sdegen.CondOT()), x, tight, cond=label, u=u) for m in (guided, model)]
    torch.testing.assert_close(*moved, rtol=1e-8, atol=1e-8)


def test_a_stronger_scale_is_the_density_raised():
    """On Gaussians of one variance guidance moves the mean, by a closed form: eps = (y - (1-u) m) u / V in both."""
    path = sdegen.CondOT()
    S, scale = 0.3**2, 2.5
    laws = {0: sdegen.Gaussian([0.0], 0.3).model(path), 1: sdegen.Gaussian([1.0], 0.3).model(path)}

    def net(x, t, label):
        return torch.where(label[:, None] == 1, laws[1].v(x, t), laws[0].v(x, t))

    guided = ClassifierFree(sdegen.ScoreModel(net, path, "v"), scale, {"label": torch.tensor(0)})
    x = torch.linspace(-1, 4, 9)[:, None]
    logp = sdegen.log_prob(guided, x, sdegen.ODESolver("dopri8", rtol=1e-10), cond={"label": torch.ones(9).long()})
    exact = sdegen.Gaussian([scale], math.sqrt(S)).log_prob(x)
    torch.testing.assert_close(logp, exact, rtol=0, atol=1e-7)


def test_a_learned_variance_passes_through():
    class Net(nn.Module):
        def forward(self, x, t):
            return torch.cat([0.1 * x, torch.sin(x)], 1)

    path = sdegen.DDPM.linear(12, 1e-3, 0.3)
    model = sdegen.ScoreModel(Net(), path, learns_variance=True)
    x, noise = torch.randn(4, 2), torch.randn(12, 4, 2)
    chain = sdegen.Ancestral(variance="learned")
    ends = [sdegen.solve(m, x, chain, noise=noise).x for m in (Unchanged(model), model)]
    torch.testing.assert_close(*ends)
    assert not Unchanged(model).on(sdegen.CondOT()).learns_variance
    with pytest.raises(ValueError, match="learned"):
        sdegen.solve(Unchanged(ring().model(path)), x, chain, noise=noise)


def test_training_mode_device_and_parameters_are_the_inner_models():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    guided = Unchanged(sdegen.ScoreModel(nn.Sequential(net), sdegen.VPSDE()))
    assert {id(p) for p in guided.parameters()} == {id(p) for p in net.parameters()}
    moved = guided.on(sdegen.CondOT())
    assert {id(p) for p in moved.parameters()} == {id(p) for p in net.parameters()}
    assert moved.path == sdegen.CondOT()
    assert guided.path == sdegen.VPSDE()
    with pytest.raises(TypeError, match="'model'"):
        Unchanged("model")


def test_a_changed_answer_is_no_expectation_and_must_fit():
    """Round an exact model the score at clean data is refused, not read off 0/0; and change returns a slope."""
    target = sdegen.Gaussian(torch.zeros(2), 1.0).model(sdegen.VPSDE())
    x = torch.ones(1, 2)
    torch.testing.assert_close(target.score(x, 0.0), -x)
    with pytest.raises(ValueError, match="infinite at t = 0"):
        Unchanged(target).score(x, 0.0)

    class Odd(sdegen.Wrapped):
        def change(self, D, y, u, r, t, cond):
            return D(y, cond=cond)[:, :1]

    with pytest.raises(ValueError, match=r"like y, \(1, 2\), and it gave \(1, 1\)"):
        sdegen.sample(Odd(target), (1, 2), sdegen.SDESolver(steps=2))
