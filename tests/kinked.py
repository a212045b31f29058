"""A flow with kinks whose log-density is known: a straight line before every kink, an exponential after it."""

from __future__ import annotations

import torch
from torch import Tensor

import sdegen


class Bent:
    """Coordinates of dw/dt = s w + 1, w = y + t - c, s = s_- below 0 and s_+ above: each crosses its kink once.

    With phi_s(w, t) = (e^(s t) (s w + 1) - 1)/s the state reaches w = 0 from w_0 < 0 at t* = log(1/(1 + s_- w_0))/s_-,
    and the divergence is s_- before and s_+ after: its integral over t is s_- t* + s_+ (1 - t*).

    Args:
        below: s_- of every coordinate, (d,).
        above: s_+, (d,).
    """

    def __init__(self, below: Tensor, above: Tensor):
        self.below, self.above = below, above
        self.rows: list[int] = []
        self.model = sdegen.vector_field(self._velocity, t_data=0.0, t_noise=1.0)

    def _velocity(self, x: Tensor, t: Tensor) -> Tensor:
        self.rows.append(len(x))
        w = x + t[:, None] - 0.5
        return torch.where(w > 0, self.above, self.below) * w

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x(1); 0, I) and the integral of the divergence, by the formulas above."""
        w = x - 0.5
        crosses = torch.log(1 / (1 + self.below * w).clamp(min=1e-300)) / self.below
        at = torch.where(w >= 0, 0.0, crosses.clamp(0, 1))
        start = torch.where(w >= 0, w, torch.where(at < 1, 0.0, w))
        after = 1 - at
        end = torch.where(
            at < 1,
            ((self.above * after).exp() * (self.above * start + 1) - 1) / self.above,
            (self.below.exp() * (self.below * w + 1) - 1) / self.below,
        )
        z = end + 0.5 - 1
        return sdegen.CondOT().prior.log_prob(z) + (self.below * at + self.above * after).sum(1)
