"""Vector fields without a path: planar and Hamiltonian flows in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from fields import planar
from flows import TIGHT
from torch import Tensor

import sdegen


@pytest.mark.parametrize("length", [1.0, 2.5])
@pytest.mark.parametrize("v", [[0.9, 0.4], [-0.9, 0.4], [1.1, 0.7]], ids=["w.v > 0", "w.v < 0", "w.v = 0"])
def test_the_planar_flow_has_its_closed_form(v, length):
    f, flow = planar(torch.tensor([0.7, -1.1]), torch.tensor(v), 0.3)
    model = sdegen.vector_field(f, t_data=0.0, t_noise=length)
    x = torch.randn(64, 2)
    z, trace = flow(x, length)
    torch.testing.assert_close(sdegen.encode(model, x, TIGHT), z, rtol=0, atol=1e-8)
    expected = sdegen.Gaussian([0.0, 0.0], 1.0).log_prob(z) + trace
    torch.testing.assert_close(sdegen.log_prob(model, x, TIGHT), expected, rtol=0, atol=1e-8)
    backwards = sdegen.vector_field(lambda x, t: -length * f(x, t))
    torch.testing.assert_close(sdegen.log_prob(backwards, x, TIGHT), expected, rtol=0, atol=1e-8)


def test_the_hamiltonian_flow_keeps_volume():
    """dx1/dt = f2(x2), dx2/dt = f1(x1): trace exactly zero; one probe is not, its mean is (THEORY 8.5)."""

    def f(x: Tensor, t: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([torch.tanh(b) + 0.5 * b, -torch.sin(a)], 1)

    wide = sdegen.Gaussian([0.0] * 4, 2.0)
    model = sdegen.vector_field(f, t_data=0.0, t_noise=1.0, prior=wide)
    x = torch.randn(8, 4)
    latents = wide.log_prob(sdegen.encode(model, x, TIGHT))
    exact = sdegen.log_prob(model, x, TIGHT, trace="exact")
    torch.testing.assert_close(exact, latents, rtol=0, atol=1e-9)
    g = torch.Generator().manual_seed(0)
    one = sdegen.log_prob(
        model, x[:1].expand(4000, 4), sdegen.ODESolver("rk4", steps=20), trace=sdegen.Hutchinson(1), generator=g
    )
    assert float(one.std()) > 0.1
    assert abs(float(one.mean() - latents[0])) < 5 * float(one.std()) / math.sqrt(4000)


def test_a_field_with_time_and_a_prior_of_the_users():
    """dx/dt = cos(t) x on [0, 2]: x(2) = e^{sin 2} x(0)."""

    class Wide:
        def sample(self, shape, generator=None):
            return 3 * torch.randn(shape, generator=generator)

        def log_prob(self, x):
            return sdegen.Gaussian([0.0], 3.0).log_prob(x)

    model = sdegen.vector_field(lambda x, t: torch.cos(t)[:, None] * x, t_data=2.0, t_noise=0.0, prior=Wide())
    g = torch.Generator().manual_seed(2)
    x = sdegen.sample(model, (5, 1), TIGHT, generator=g, dtype=torch.float64)
    start = 3 * torch.randn((5, 1), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(x, math.exp(math.sin(2)) * start, rtol=1e-8, atol=0)
    expected = sdegen.Gaussian([0.0], 3 * math.exp(math.sin(2))).log_prob(x)
    torch.testing.assert_close(sdegen.log_prob(model, x, TIGHT), expected, rtol=0, atol=1e-8)
