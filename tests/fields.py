"""A fixed velocity field, as the libraries of flow matching call theirs."""

from __future__ import annotations

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
