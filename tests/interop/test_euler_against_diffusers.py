"""Rows of the table in docs/coming_from_diffusers.md: Euler's methods in sigma/alpha and Heun's, against diffusers'."""

from __future__ import annotations

import warnings

import pytest
import torch

import sdegen

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    ancestral_module = pytest.importorskip("diffusers.schedulers.scheduling_euler_ancestral_discrete")

pytestmark = pytest.mark.filterwarnings("ignore:__array")  # they call NumPy on tensors, as NumPy 2 deprecates

PATH, STEPS, SHAPE = sdegen.DDPM.linear(), 12, (3, 2, 4)
GRID = PATH.respaced(STEPS, "trailing")


def net(x, t):
    """A smooth noise predictor, which knows its time."""
    return torch.tanh(0.7 * x + 0.3) * torch.cos(t).reshape(-1, 1, 1) + 0.5 * x


def theirs(kind, x, repeated=False):
    """Every state of their loop in x = x_t/alpha, on the sigmas of our knots, with our network times."""
    t = PATH.time(GRID)
    alpha, sigmas = PATH.alpha(t), GRID / (1 - GRID)
    scheduler = kind()
    scheduler.set_timesteps(STEPS)
    if repeated:  # both stages of a step
        sigmas, alpha, t = (torch.cat([n[:1], n[1:-1].repeat_interleave(2), n[-1:]]) for n in (sigmas, alpha, t))
    scheduler.sigmas = sigmas
    scheduler.timesteps = torch.arange(1000.0, 1000 - len(sigmas) + 1, -1)  # names of the steps, no more
    scheduler.is_scale_input_called = True
    x = x / alpha[0]
    for k, name in enumerate(scheduler.timesteps):
        x = scheduler.step(net(alpha[k] * x, t[k].expand(len(x))), name, x).prev_sample
    return x


def ours(solver, x, noise=None):
    return sdegen.solve(sdegen.ScoreModel(net, PATH), x, solver, noise=noise).x


def same(a, b, tolerance):
    assert float((a - b).abs().max() / b.abs().max()) < tolerance


def test_euler_is_ddim():
    x = torch.randn(SHAPE)
    same(ours(sdegen.DDIM(grid=GRID), x), theirs(diffusers.EulerDiscreteScheduler, x), 1e-6)


def test_ancestral_euler_is_ddim_at_eta_1(monkeypatch):
    x, noise = torch.randn(SHAPE), torch.randn(STEPS, *SHAPE)
    normals = iter(noise)
    monkeypatch.setattr(ancestral_module, "randn_tensor", lambda *_, **__: next(normals))
    same(ours(sdegen.DDIM(eta=1.0, grid=GRID), x, noise), theirs(diffusers.EulerAncestralDiscreteScheduler, x), 1e-6)


def test_heun_is_theirs():
    x = torch.randn(SHAPE)
    same(ours(sdegen.Heun(grid=GRID), x), theirs(diffusers.HeunDiscreteScheduler, x, repeated=True), 1e-6)
