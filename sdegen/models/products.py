"""Mixtures of isotropic Gaussians by matrix products: no tensor of size (B, K, d), and the digits of differences.

For y ~ sum_i w_i N(q m_i, V_i I), V_i = q^2 s_i^2 + u^2, q = 1 - u, all that is needed is |y - q m_i|^2 (B, K). As
|y|^2 - 2q y.m_i + q^2 |m_i|^2 it would lose its digits where the means are far and the components narrow. So everything
is seen from n, the mean nearest y, which is found that way; with z = y - q n, which is small where digits matter,

    |y - q m_i|^2 = |z|^2 + 2q z.n - 2q (z.m_i - q |m_i - n|^2 / 2)                 and |z|^2 itself where m_i = n

holds exactly for whichever mean n is, so that gradients of any order are those of the left side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.models.base import Number

LEAST = 1024
"""K d, from which products are faster than sums over all of (B, K, d)."""
MOST = 4096
"""K, up to which the (K, K) distances between the means are kept for them."""


class Isotropic(NamedTuple):
    """The components, in one dtype and on one device.

    Attributes:
        log_weights: (K,).
        means: (K, d).
        variances: s_i^2, (1, K).
        around: the means less their centre, (K, d).
        squares: |m_i - m_j|^2, (K, K).
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    around: Tensor
    squares: Tensor

    @classmethod
    def of(cls, log_weights: Tensor, means: Tensor, variances: Tensor) -> Isotropic | None:
        """The components with weights (K,), means (K, d) and variances (K, 1); None where sums are faster, or fit."""
        K, d = means.shape
        if variances.shape[1] > 1 or K * d < LEAST or K > MOST:
            return None
        squares = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()
        return cls(log_weights, means, variances.T, means - means.mean(0), squares)

    def to(self, device: torch.device, dtype: torch.dtype) -> Isotropic:
        """The same elsewhere, or in another precision."""
        return Isotropic(*(table.to(device, dtype) for table in self))

    def log_prob(self, y: Tensor) -> Tensor:
        """The log-density of rows y (B, d) in nats, (B,)."""
        return torch.logsumexp(self._seen(y, 0.0).log_components, 1)

    def answer(self, y: Tensor, u: Number, c: Number, du: Number, e: Number) -> Tensor:
        """c E[x | y] + d E[eps | y] + e y for rows y (B, d), each number one or (B, 1), `du` being d u.

        c n + sum_i rho_i (c q s_i^2 + d u) / V_i z + sum_i rho_i (c u - d q) u / V_i (m_i - n) + e y
        """
        seen, q = self._seen(y, u), 1 - u
        rho = torch.softmax(seen.log_components, 1)
        of_z = (rho * ((c * q * self.variances + du) / seen.V)).sum(1, keepdim=True)
        others = rho * ((c * u**2 - du * q) / seen.V)
        apart = torch.addmm(-others.sum(1, keepdim=True) * self.around[seen.which], others, self.around)
        return c * self.means[seen.which] + of_z * seen.z + apart + e * y

    def _seen(self, y: Tensor, u: Number) -> Seen:
        """`y` (B, d) from its nearest mean."""
        q = 1 - u
        with torch.no_grad():
            which = self._nearest(y, q)
            bend = self.squares.index_select(0, which).mul_(-0.5 * q)
        z = y - q * self.means[which]
        own = z.square().sum(1, keepdim=True)
        own_plus = own + 2 * q * (z * self.around[which]).sum(1, keepdim=True)
        square = (own_plus - 2 * q * torch.addmm(bend, z, self.around.T)).scatter(1, which[:, None], own)
        V = q**2 * self.variances + u**2
        log_det = z.shape[1] * (torch.log(V) + math.log(2 * math.pi))
        log_components = torch.addcmul(self.log_weights - 0.5 * log_det, square, -0.5 / V)
        nothing = log_components.detach().amax(1, keepdim=True) + 0.75 * math.log(torch.finfo(y.dtype).tiny)
        return Seen(torch.maximum(log_components, nothing), V, z, which)

    def _nearest(self, y: Tensor, q: Number) -> Tensor:
        """The number of the mean nearest each row, (B,), up to rounding."""
        half = 0.5 * q * self.around.square().sum(1)
        return torch.addmm(half, y - q * (self.means[0] - self.around[0]), self.around.T, alpha=-1).min(1).indices


class Seen(NamedTuple):
    """Rows y (B, d) seen from the means nearest them.

    Attributes:
        log_components: log w_i + log N(y; q m_i, V_i), (B, K). One far below the last digit of the largest is raised to
            where its weight is still a normal number, and still nothing: subnormal ones are slow in matrix products.
        V: V_i, (1, K) or (B, K).
        z: y - q n, (B, d).
        which: the number of n among the means, (B,).
    """

    log_components: Tensor
    V: Tensor
    z: Tensor
    which: Tensor
