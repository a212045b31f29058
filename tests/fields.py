"""Velocity fields: a fixed one, as the libraries of flow matching call theirs, and the planar one of a closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Wave(nn.Module):
    """A fixed, smooth velocity of x (B, ...) that depends on time, in the order of arguments that is asked for."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.8))

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x + (2 * t).reshape(-1, *[1] * (x.ndim - 1))) * self.gain - 0.3 * x


class TimeFirst(Wave):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.velocity(x, t)


class Named(Wave):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.velocity(x, t)


def planar(w: Tensor, v: Tensor, b: float):
    """dx/dt = v tanh(w.x + b) and its closed form: end point and integral of the trace (THEORY 8.4)."""
    c = float(w @ v)
    c = c if abs(c) > 1e-12 else 0.0

    def f(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x @ w + b)[:, None] * v

    def flow(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        y = x @ w + b
        after = torch.asinh(math.exp(c * t) * torch.sinh(y))
        gone = (after - y) / c if c else t * torch.tanh(y)
        return x + v * gone[:, None], c * t + torch.log(torch.cosh(y)) - torch.log(torch.cosh(after))

    return f, flow
