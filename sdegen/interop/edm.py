"""Denoisers of NVlabs' EDM, which is not imported here: net(x, sigma) is E[x | x + sigma eps], preconditioned inside.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv:2206.00364.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.models.model import ScoreModel
from sdegen.paths.diffusions import EDM


def from_edm(net: Callable[..., Tensor], *, sigma_min: float, sigma_max: float) -> ScoreModel:
    """A preconditioned denoiser of NVlabs' EDM: D(x; sigma) = net(x, sigma), a "data" model on `EDM(sigma_max)`.

    Their sampler is `Heun` on Karras et al.'s grid; a likelihood stays above sigma_min, and is then that of data
    blurred by it::

        import sdegen
        from sdegen.interop import from_edm

        model = from_edm(net, sigma_min=0.002, sigma_max=80.0)
        heun = sdegen.Heun(18, grid=sdegen.KarrasGrid(7, 0.002))
        x = sdegen.sample(model, (64, 3, 32, 32), heun, cond={"class_labels": labels})
        ends = 0.002 / (1 + 0.002), 80.0 / (1 + 80.0)  # the clock u = sigma/(1 + sigma)
        logp = sdegen.log_prob(model, x, u=ends, cond={"class_labels": labels})

    At clean data, u = 0, a denoiser cannot tell the noise, and no solver may ask there: `Heun` and `Adams` on their own
    grids, `DDIM` and `Ancestral` do not, and end at clean data.

    Args:
        net: the network, called as net(x, sigma, **cond) with x (B, *event), sigma (B,): conditions, such as
            class_labels or augment_labels, reach it by their names.
        sigma_min: the lowest noise level it is shown: below it, it answers for this one, as `DDPM.index` holds k at 0.
        sigma_max: the noise level at which samples start.

    Returns:
        The model, which predicts "data".

    Raises:
        TypeError: for an argument of another type.
        ValueError: unless 0 < sigma_min < sigma_max.

    Examples:
        >>> from sdegen.interop import from_edm
        >>> net = lambda x, sigma: x / (1 + sigma[:, None] ** 2)  # the denoiser of N(0, 1)
        >>> model = from_edm(net, sigma_min=0.002, sigma_max=80.0)
        >>> x = sdegen.sample(model, (1, 1), sdegen.Heun(40), x_T=torch.full((1, 1), 80.0))
        >>> f"{x.item():.1f}"  # x_T is one deviation from the mean, and so is x
        '1.0'

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv:2206.00364.
    """
    low = _checks.real("sigma_min", sigma_min, 0, strict=True)
    high = _checks.real("sigma_max", sigma_max, 0, strict=True)
    if low >= high:
        raise ValueError(f"sigma_min must be below sigma_max, and they are {sigma_min} and {sigma_max}.")
    return ScoreModel(net, EDM(high), "data", time=partial(torch.clamp, min=low))
