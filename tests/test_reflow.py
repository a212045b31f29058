"""Straightness in closed form, and rectification that straightens."""

from __future__ import annotations

import pytest
import torch
from flows import OT
from problems import ring

import sdegen
from sdegen.nets import MLP


def test_straightness_of_a_gaussian_flow_has_a_closed_form():
    """N(0, s^2): y(u) = y(1) sqrt(q^2 s^2 + u^2), so S = y(1)^2 (integral of (dc/du)^2 - (1 - s)^2)."""
    s = 0.3
    model = sdegen.Gaussian([0.0], s).model(OT)
    u = torch.linspace(0, 1, 200_001)
    c = torch.sqrt((1 - u) ** 2 * s**2 + u**2)
    bend = torch.trapezoid(((u - (1 - u) * s**2) / c) ** 2, u) - (1 - s) ** 2
    z = torch.tensor([[1.0], [-2.0]])
    fine = sdegen.ODESolver("rk4", steps=400, grid=sdegen.PowerGrid(1))
    for solver, tolerance in ((None, 4e-4), (fine, 2e-5)):
        given = sdegen.straightness(model, z, solver)
        torch.testing.assert_close(given, bend * z[:, 0] ** 2, rtol=tolerance, atol=0)
    point = sdegen.vector_field(lambda x, t: torch.full_like(x, 0.7))
    assert float(sdegen.straightness(point, z).max()) < 1e-20


@pytest.mark.slow
def test_rectification_straightens():
    """A network trained on the pairs that an exact, curved flow makes: a hundredth of its bend."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    teacher = sdegen.GaussianMixture(torch.tensor([[-1.5, 0.0], [1.5, 0.0]]), 0.3).model(OT)
    z = torch.randn(4000, 2)
    x = sdegen.rectify(teacher, z, sdegen.ODESolver("rk4", steps=20))
    student = sdegen.ScoreModel(MLP(2, 64), sdegen.Interpolant(), "velocity")
    optimiser = torch.optim.Adam(student.parameters(), 4e-3)
    for _ in range(300):
        i = torch.randint(4000, (256,))
        loss = sdegen.loss(student, x[i], noise=z[i])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fresh = torch.randn(500, 2)
    bends = [float(sdegen.straightness(model, fresh).mean()) for model in (teacher, student)]
    assert bends[1] < 0.01 * bends[0]
    ends = [sdegen.decode(model, fresh, sdegen.ODESolver("rk4", steps=20)) for model in (teacher, student)]
    assert float((ends[0] - ends[1]).square().sum(1).mean().sqrt()) < 0.2


def test_rectify_is_decode_from_the_source():
    mixture, z = ring(), torch.randn(8, 2)
    x = sdegen.rectify(mixture.model(sdegen.VESDE()), z)
    torch.testing.assert_close(x, sdegen.decode(mixture.model(sdegen.VESDE()), 50.0 * z), rtol=0, atol=1e-12)
    with pytest.raises(TypeError, match="model must be"):
        sdegen.rectify(lambda x, t: x, z)


def test_straightness_counts_every_step_by_its_length_and_keeps_its_digits():
    model, z = sdegen.Gaussian([0.0], 0.3).model(OT), torch.randn(16, 1)
    even = sdegen.straightness(model, z, sdegen.ODESolver("rk4", steps=400, grid=sdegen.PowerGrid(1)))
    crowded = sdegen.straightness(model, z, sdegen.ODESolver("rk4", steps=400, grid=sdegen.PowerGrid(2)))
    torch.testing.assert_close(crowded, even, rtol=1e-3, atol=0)
    straight = sdegen.vector_field(lambda x, t: 0 * x + 3)
    assert float(sdegen.straightness(straight, (100 + z).half()).max()) < 1e-4
    with pytest.raises(ValueError, match="fixed steps"):
        sdegen.straightness(model, z, sdegen.ODESolver("dopri5"))
