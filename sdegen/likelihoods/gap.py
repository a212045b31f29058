"""How far a prior is from the law that data really have at the noise end of a path.

Data x_i leave alpha x + sigma eps there. Against N(0, sigma^2 I) its density at z is

    log p(z) - log N(z; 0, sigma^2 I) = log E_x exp( alpha x . z / sigma^2 - alpha^2 |x|^2 / (2 sigma^2) ),

a mean over the data with weights all near 1 where the path ends in noise: to second order in alpha it is what the
data's first two moments tell. It is no error of a solver, and no solver removes it: the model's own density has this
prior. 0 where alpha is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdegen._shapes import sum_event


def prior_gap(z: Tensor, logp: Tensor, data: Tensor, alpha: float, sigma: float) -> Tensor:
    """How far a prior is from the data's law at the noise end, its own sampling error included, in nats.

        sqrt(g^2 + s^2),    g = log p(z) - logp, p the law of the data there, s the standard error of g over the data

    Args:
        z: latents, (B, *event).
        logp: the prior's log-density there, (B,).
        data: draws of x, (n, *event).
        alpha: that of the path at the noise end.
        sigma: likewise.

    Returns:
        the gap, (B,), not negative.
    """
    z, x = (v.flatten(1).to("cpu", torch.float64) for v in (z, data))
    exponents = (alpha * (z @ x.mT) - 0.5 * alpha**2 * sum_event(x**2)) / sigma**2
    log_mean = torch.logsumexp(exponents, 1) - math.log(len(x))
    weights = torch.exp(exponents - log_mean[:, None])
    sampling = weights.std(1) / math.sqrt(len(x))
    noise = -0.5 * (z**2).sum(1) / sigma**2 - z.shape[1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    return torch.hypot(noise + log_mean - logp.to("cpu", torch.float64), sampling).to(logp)
