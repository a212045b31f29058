"""What an error of a state is worth in nats, and where the solvers take it."""

from __future__ import annotations

import pytest
import torch
from mixtures import known
from problems import PATHS, ring

import sdegen
from sdegen.solvers.densities import far
from sdegen.solvers.divergence import in_nats, step_in_nats


def seen(path, u, rows=6):
    """The exact model's law in y = x/r at the clock u, states there, and their slopes D = eps_hat - x_hat."""
    target, t = ring(), path.time(torch.tensor(u))
    law, r = target.marginal(path, float(t)), float(path.scale(torch.tensor(u)))
    y = law.sample(rows) / r
    model = target.model(path)
    D = model.eps(r * y, t) - model.data(r * y, t)
    return lambda y: law.log_prob(r * y), y, D


@pytest.mark.parametrize("path", ["vp", "ve", "condot"])
@pytest.mark.parametrize("u", [0.2, 0.5, 0.9])
def test_the_score_in_straight_coordinates(path, u):
    """d log p / dy by autograd of the marginal; with one clock for all rows or one for each."""
    log_prob, y, D = seen(PATHS[path], u)
    dy = torch.randn_like(y)
    leaf = y.clone().requires_grad_(True)
    expected = (torch.autograd.grad(log_prob(leaf).sum(), leaf)[0] * dy).sum(1)
    torch.testing.assert_close(in_nats(dy, y, D, u), expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(in_nats(dy, y, D, torch.full((6,), u)), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("columns", [1, 3])
def test_an_error_of_state_and_integral_together(columns):
    """log p at the start is the integral so far and log p(y): what both errors change it by, the columns' mean."""
    u = 0.4
    log_prob, y, D = seen(PATHS["vp"], u)
    dy, dl = 1e-6 * torch.randn_like(y), 1e-6 * torch.randn(6, columns)
    expected = (log_prob(y + dy) - log_prob(y) + dl.mean(1)).abs()
    state, slope = torch.cat([y, torch.randn(6, columns)], 1), torch.cat([D, torch.randn(6, columns)], 1)
    ours = step_in_nats(torch.cat([dy, dl], 1), state, slope, u, 2)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
@pytest.mark.parametrize("trace", ["exact", sdegen.Hutchinson(2)], ids=str)
def test_dopri8_reports_the_same_whoever_walks(rtol, trace):
    """torchdiffeq's steps of one sample are its own steps: the same error from either loop."""
    model = ring().model(PATHS["vp"])
    for x in ring().sample(4)[:, None]:
        ours = [
            sdegen.log_likelihood(
                model,
                x,
                sdegen.ODESolver("dopri8", rtol=rtol, steps_for=steps_for),
                trace=trace,
                generator=torch.Generator().manual_seed(0),
            )
            for steps_for in ("batch", "sample")
        ]
        assert float(ours[0].solver_error) > 0
        torch.testing.assert_close(ours[0].solver_error, ours[1].solver_error, rtol=1e-5, atol=1e-14)


@pytest.mark.parametrize("steps_for", ["batch", "sample"])
def test_dopri8_adds_up_its_steps(steps_for):
    """sum of |c_k|^(9/8) over one step of known c: dy/dt = 6 t^9 has an embedded error that does not depend on y."""
    sizes = []
    for factor in (1.0, 2.0):
        model = sdegen.vector_field(lambda x, t, f=factor: f * torch.cos(9 * t)[:, None].expand_as(x))
        solver = sdegen.ODESolver("dopri8", rtol=1e3, steps_for=steps_for)
        x = torch.full((1, 1), 1000.0)  # the score -z is the same for both, to the third digit
        sizes.append(float(sdegen.log_likelihood(model, x, solver).solver_error))
    assert abs(sizes[1] / sizes[0] / 2 ** (9 / 8) - 1) < 0.01


@pytest.mark.parametrize("order", [2, 4])
def test_adams_reports_what_its_correctors_move(order):
    """Of a field without divergence: a tenth of the sum of |score . (corrected - predicted)|, nothing else."""
    sizes = []
    for factor in (1.0, 2.0):
        model = sdegen.vector_field(lambda x, t, f=factor: f * torch.cos(9 * t)[:, None].expand_as(x))
        x = torch.full((1, 1), 1e3)
        ours = sdegen.log_likelihood(model, x, sdegen.Adams(20, order))
        sizes.append(float(ours.solver_error))
    assert abs(sizes[1] / sizes[0] / 2 - 1) < 0.01


def test_how_far_out_a_latent_is():
    """|y/u|^2."""
    y = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 4.0], [30.0, 40.0]])
    torch.testing.assert_close(far(y, 1.0), torch.tensor([0.0, 2.0, 25.0, 2500.0]))
    torch.testing.assert_close(far(y, 0.5), torch.tensor([0.0, 8.0, 100.0, 10000.0]))


def test_the_errors_are_not_those_of_samples_that_left():
    """dopri8 by steps per sample: each keeps its own sum, in the order of the batch."""
    x, true, model, prior = known("ring8", PATHS["vp"], 12)
    solver = sdegen.ODESolver("dopri8", rtol=1e-3, steps_for="sample")
    every = sdegen.log_likelihood(model, x, solver, prior=prior)
    alone = torch.cat([sdegen.log_likelihood(model, row[None], solver, prior=prior).solver_error for row in x])
    torch.testing.assert_close(every.solver_error, alone, rtol=1e-6, atol=1e-14)
    assert float(((every.log_prob - true).abs() <= every.solver_error).double().mean()) > 0.9
