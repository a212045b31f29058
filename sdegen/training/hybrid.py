"""The objective of a network that learns the chain's variances too: the simple loss plus a small part of the bound.

    mean over samples of   |m p_theta - (a x + b eps)|^2 / d + weight K L_{k-1} / d           k uniform on 1 ... K

with m p = a x + b eps (models/base.py) and the bound's terms L of likelihoods/chain.py, in which the prediction is held
fixed: the first term trains the prediction alone, the second the variance alone.

References:
    Improved Denoising Diffusion Probabilistic Models, Nichol and Dhariwal, 2021, arXiv:2102.09672.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators, event_size, like, uniform
from sdegen.likelihoods.chain import ChainOnData, Data, check_data
from sdegen.likelihoods.decoders import Discretized, decoder_of
from sdegen.models.base import Cond, prediction_row
from sdegen.models.model import ScoreModel, trainable
from sdegen.solvers import Ancestral


def hybrid_loss(
    model: ScoreModel,
    x: Tensor,
    *,
    steps: int | None = None,
    weight: float = 1e-3,
    decoder: str | Discretized = "gaussian",
    cond: Cond = None,
    noise: Tensor | None = None,
    generator: Generators = None,
) -> Tensor:
    """The objective of a network that `learns_variance`: the simple loss plus `weight` times the bound.

    At one k per sample, uniform on 1 ... K: the squared error of the network's own prediction, mean over the event, and
    K times the bound's term in nats per value, in which the prediction is held fixed so that it trains the variance
    alone.

    Args:
        model: a `ScoreModel` with `learns_variance=True`, called once.
        x: data (B, *event), B at least 1.
        steps: K; may be left out on a `DDPM` path.
        weight: of the bound, 1e-3 as in the source; where a source counts the bound in bits/dim, divide its weight by
            ln 2.
        decoder: as in `vlb`; seen at k = 1.
        cond: keyword arguments for the network.
        noise: the standard normals eps, like x, instead of draws.
        generator: for k and eps, a torch.Generator or one per sample.

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: an argument of another type, before the network is called.
        ValueError: an argument that does not fit, before the network is called. The values in tensors are looked at on
            the CPU alone: elsewhere that would stall the training.

    Examples:
        >>> from sdegen.nets import UNet
        >>> net = UNet(1, width=8)
        >>> twice = lambda x, t: torch.cat([net(x, t), torch.zeros_like(x)], 1)  # prediction, variance
        >>> model = sdegen.ScoreModel(twice, sdegen.DDPM.linear(100), learns_variance=True)
        >>> sdegen.hybrid_loss(model, torch.randn(4, 1, 8, 8)).shape
        torch.Size([])

    References:
        Improved Denoising Diffusion Probabilistic Models, Nichol and Dhariwal, 2021, arXiv:2102.09672.
    """
    model = trainable("hybrid_loss", model)
    weight = _checks.real("weight", weight, 0)
    check_data(model, x, generator)
    if not len(x):
        raise ValueError(f"An empty batch, shape {tuple(x.shape)}, has no loss.")
    scored_by = decoder_of(decoder, x if x.device.type == "cpu" else x[:0])
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    eps = None if noise is None else _checks.noise_like(noise, y)
    data = Data(y, _checks.network_arguments(_checks.conditions(cond)), eps, generator, x.dtype)
    laid = ChainOnData.lay(model, data, Ancestral(steps, variance="learned"))
    k = torch.ceil(len(laid) * uniform(len(x), generator, y.dtype, x.device)).long()
    (answer,) = laid.answers([k])
    fixed = answer._replace(D=answer.D.detach(), D_hat=answer.D_hat.detach())
    bound = torch.where(k == 1, laid.reconstruction(fixed, scored_by), laid.transition(fixed))
    factor = like(_prediction_per_slope(model, laid.chain.u[:-1].flip(0)).to(y)[k - 1], y)
    simple = (factor * answer.error).square().flatten(1).mean(1)
    return (simple + weight * len(laid) / event_size(y.shape) * bound).mean()


def _prediction_per_slope(model: ScoreModel, u: Tensor) -> Tensor:
    """(1-u) b - u a, the error of m p over that of D_hat, at clocks u (K,) in float64."""
    r = model.path.scale(u)
    a, b, _ = prediction_row(model.predicts, model.path, model.path.time(u), (1 - u) * r, u * r)
    return (1 - u) * b - u * a
