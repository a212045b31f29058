"""A planar flow of zuko's kind, which zuko has not: one layer, its constraint and its inverse (THEORY 8.2)."""

from __future__ import annotations

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn.functional import softplus


def allowed(u: Tensor, w: Tensor) -> Tensor:
    """The u^ nearest in direction w with u^.w = softplus(u.w) - 1 > -1, where the layer is invertible."""
    return u + (softplus(w @ u) - 1 - w @ u) * w / (w @ w)


class Planar(Transform):
    """z + u tanh(w.z + b), with log |det| = log |1 + (1 - tanh^2) u.w|."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, w: Tensor, u: Tensor, b: Tensor):
        super().__init__()
        self.w, self.u, self.b = w, u, b

    def _call(self, z: Tensor) -> Tensor:
        return z + self.u * torch.tanh(z @ self.w + self.b)[..., None]

    def _inverse(self, x: Tensor) -> Tensor:
        """w.x = a + u.w tanh(a + b), one equation for a = w.z, which rises and lies within |u.w| of w.x: bisection."""
        seen, slope = x @ self.w, self.w @ self.u
        low, high = seen - slope.abs(), seen + slope.abs()
        for _ in range(60):
            a = 0.5 * (low + high)
            below = a + slope * torch.tanh(a + self.b) < seen
            low, high = torch.where(below, a, low), torch.where(below, high, a)
        return x - self.u * torch.tanh(a + self.b)[..., None]

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        slope = 1 - torch.tanh(z @ self.w + self.b) ** 2
        return torch.log(torch.abs(1 + slope * (self.w @ self.u)))


class PlanarFlow(nn.Module):
    """x = f_K(... f_1(z)) with z from N(0, I): from the base to the data, as the flow of an encoder is."""

    def __init__(self, layers: int = 3, d: int = 2):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.w, self.u = (nn.Parameter(1.5 * torch.randn(layers, d, generator=g)) for _ in "wu")
        self.b = nn.Parameter(torch.randn(layers, generator=g))

    def forward(self) -> zuko.distributions.NormalizingFlow:
        layers = [Planar(w, allowed(u, w), b) for w, u, b in zip(self.w, self.u, self.b, strict=True)]
        base = zuko.distributions.DiagNormal(torch.zeros_like(self.w[0]), torch.ones_like(self.w[0]))
        return zuko.distributions.NormalizingFlow(zuko.transforms.ComposedTransform(*layers).inv, base)
