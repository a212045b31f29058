"""What an adaptive ODE solver measures: the worst sample chooses the steps, the density counts, all errors add up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sdegen

ADAPTIVE = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]


def bend(x: Tensor, t: Tensor) -> Tensor:
    """A field that leaves 0 where it is."""
    return torch.sin(3 * x) * torch.cos(5 * t)[:, None]


@pytest.mark.parametrize("verb", ["solve", "log_prob"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_samples_at_rest_do_not_lengthen_the_steps_of_one_that_moves(method, verb):
    """One moving sample and 63 fixed points: to the bit what the moving one gets alone."""

    def field(x: Tensor, t: Tensor, moves: Tensor) -> Tensor:
        return bend(x, t) * moves[:, None]

    model, solver = sdegen.vector_field(field), sdegen.ODESolver(method, rtol=1e-4)
    x, moves = torch.full((64, 2), 0.7), torch.zeros(64)
    moves[17] = 1
    every, alone = {"cond": {"moves": moves}}, {"cond": {"moves": moves[17:18]}}
    if verb == "log_prob":
        ours = sdegen.log_prob(model, x, solver, **every)
        assert torch.equal(ours[17:18], sdegen.log_prob(model, x[17:18], solver, **alone))
        return
    ours, own = sdegen.solve(model, x, solver, **every), sdegen.solve(model, x[17:18], solver, **alone)
    assert ours.calls == own.calls
    assert torch.equal(ours.u, own.u)
    assert torch.equal(ours.x[17:18], own.x)
    assert torch.equal(ours.error[17:18], own.error)
    assert float(ours.error[:17].max()) == 0 < float(own.error)


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_a_sample_at_rest_still_needs_steps_for_its_density(norm):
    """dx/dt = 6 sin(20 t) x from x = 0: nothing moves, and log p(0) = prior + d * 6 (1 - cos 20)/20."""
    model = sdegen.vector_field(lambda x, t: 6 * torch.sin(20 * t)[:, None] * x, t_data=0.0, t_noise=1.0)
    exact = -math.log(2 * math.pi) + 2 * 6 * (1 - math.cos(20)) / 20
    ours = sdegen.log_prob(model, torch.zeros(3, 2), sdegen.ODESolver("dopri5", rtol=1e-7, norm=norm))
    torch.testing.assert_close(ours, torch.full((3,), exact), rtol=0, atol=1e-5)


def test_the_reported_error_is_the_sum_over_the_accepted_steps():
    """Heun's pair by hand: (h/2)(k_1 - k_2) of every step kept, over atol + rtol max |y|, its root mean square."""
    rtol, atol = 1e-3, 1e-4
    x = torch.tensor([[0.7, -0.4], [0.1, 0.2], [2.0, 1.0]])
    solver = sdegen.ODESolver("adaptive_heun", rtol=rtol, atol=atol)
    solution = sdegen.solve(sdegen.vector_field(bend), x, solver, trajectory=True)
    total, slopes = torch.zeros(3), -bend(x, torch.zeros(3))  # in this flow u = 1 - t, and y is x
    for i in range(solution.accepted):
        start, end, h = solution.trajectory[i], solution.trajectory[i + 1], float(solution.u[i + 1] - solution.u[i])
        other = -bend(start + h * slopes, (1 - solution.u[i + 1]).expand(3))
        torch.testing.assert_close(end, start + 0.5 * h * (slopes + other), rtol=0, atol=1e-12)
        tolerance = atol + rtol * torch.maximum(start.abs(), end.abs())
        total += (0.5 * h * (slopes - other) / tolerance).square().mean(1).sqrt()
        slopes = other  # torchdiffeq takes the last slope of a step along into the next
    assert solution.accepted > 10
    torch.testing.assert_close(solution.error, total, rtol=1e-8, atol=0)


@pytest.mark.parametrize(("method", "calls"), {"dopri5": 6, "dopri8": 13, "bosh3": 3, "adaptive_heun": 1}.items())
def test_steps_in_vain_are_counted_beside_the_others(method, calls):
    """A jolt halfway throws steps back; two calls more choose the first step."""
    model = sdegen.vector_field(lambda x, t: torch.tanh(200 * (t - 0.5))[:, None].expand_as(x))
    x = torch.randn(4, 2)
    solution = sdegen.solve(model, x, sdegen.ODESolver(method, rtol=1e-5))
    assert solution.rejected > 0
    tried = solution.accepted + solution.rejected
    assert solution.calls == 2 + calls * tried
    sdegen.solve(model, x, sdegen.ODESolver(method, rtol=1e-5, max_steps=tried))
    with pytest.raises(ValueError, match=rf"tried max_steps = {tried - 1} steps"):
        sdegen.solve(model, x, sdegen.ODESolver(method, rtol=1e-5, max_steps=tried - 1))
