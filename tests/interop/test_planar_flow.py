"""Planar flows: determinants, invertibility, and a flow of them as source and prior (THEORY 8.1, 8.2 and 8.4)."""

from __future__ import annotations

import math

import torch
import zuko
from fields import planar
from planar import Planar, PlanarFlow, allowed
from torch import nn
from torch.nn.functional import softplus

import sdegen
from sdegen.interop.zuko import source

TIGHT = sdegen.ODESolver("dopri8", rtol=1e-12)


def layers(d=3, count=20, scale=2.0):
    for _ in range(count):
        w, u = scale * torch.randn(d), scale * torch.randn(d)
        yield w, u, torch.randn(())


class OneLayer(nn.Module):
    """The law of x = layer(z), z from N(0, I)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        base = zuko.distributions.DiagNormal(torch.zeros(3), torch.ones(3))
        return zuko.distributions.NormalizingFlow(self.layer.inv, base)


def test_the_determinant_is_that_of_autograd():
    """And of one layer the density is log N(z; 0, I) - log |det|."""
    for w, u, b in layers(count=8):
        z = torch.randn(5, 3)
        for each in (u, allowed(u, w)):
            layer = Planar(w, each, b)
            jacobians = torch.stack([torch.autograd.functional.jacobian(layer, row) for row in z])
            expected = torch.linalg.slogdet(jacobians).logabsdet
            torch.testing.assert_close(layer.log_abs_det_jacobian(z, layer(z)), expected, rtol=0, atol=1e-11)
        density = -0.5 * (z**2).sum(1) - 1.5 * math.log(2 * math.pi) - expected
        torch.testing.assert_close(source(OneLayer(layer)).log_prob(layer(z)), density, rtol=0, atol=1e-9)


def test_the_constraint_makes_every_layer_invertible():
    """u^.w = softplus(u.w) - 1 > -1 and u^ - u lies along w; without it w.x falls where w.z rises, and two z meet."""
    folded = 0
    for w, u, b in layers():
        held = allowed(u, w)
        torch.testing.assert_close(w @ held, softplus(w @ u) - 1, rtol=0, atol=1e-12)
        torch.testing.assert_close(held - u, w * ((held - u) @ w) / (w @ w), rtol=0, atol=1e-12)
        line = torch.linspace(-6, 6, 2001)[:, None] * w / (w @ w)
        assert bool((torch.diff(Planar(w, held, b)(line) @ w) > 0).all())
        falls = bool((torch.diff(Planar(w, u, torch.zeros(()))(line) @ w) < 0).any())
        assert falls == (float(w @ u) < -1)
        folded += falls
        z = torch.randn(5, 3)
        layer = Planar(w, held, b)
        torch.testing.assert_close(layer.inv(layer(z)), z, rtol=0, atol=1e-10)
    assert 5 < folded < 15


def test_the_density_of_several_layers_integrates_to_one():
    """The sum over a grid of a smooth density that is zero at the edges: exact to rounding."""
    axis = torch.linspace(-9, 9, 301)
    with torch.no_grad():
        density = source(PlanarFlow(2)).log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert abs(float(density.sum() * (axis[1] - axis[0]) ** 2) - 1) < 1e-7


def test_a_planar_flow_is_the_prior_of_a_planar_field():
    """A discrete flow at the noise end of a continuous one, both in closed form: nothing here is Gaussian."""
    flow, (f, closed) = PlanarFlow(), planar(torch.tensor([0.7, -1.1]), torch.tensor([0.9, 0.4]), 0.3)
    law, z = source(flow), torch.randn(16, 2, generator=torch.Generator().manual_seed(4))
    drawn, ladj = flow().transform.inv.call_and_ladj(z)
    torch.testing.assert_close(law.sample((16, 2), torch.Generator().manual_seed(4)), drawn.detach(), rtol=0, atol=0)
    x, trace = closed(drawn.detach(), -1.0)  # from the noise at t = 1 to the data at t = 0
    expected = (-0.5 * (z**2).sum(1) - math.log(2 * math.pi) - ladj).detach() - trace
    model = sdegen.vector_field(f, t_data=0.0, t_noise=1.0, prior=law)
    torch.testing.assert_close(sdegen.log_prob(model, x, TIGHT), expected, rtol=0, atol=1e-9)
    carried = sdegen.sample(model, (16, 2), TIGHT, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(carried, x, rtol=0, atol=1e-9)
