"""A network behind Karras et al.'s scalings, which give its input and its target variance one at every noise level.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)

    c_skip = s^2 / (sigma^2 + s^2)     c_out = sigma s / sqrt(sigma^2 + s^2)     s = sigma_data, the data's deviation
    c_in   = 1 / sqrt(sigma^2 + s^2)   c_noise = log(sigma) / 4

The network F is what is trained, and the denoiser D what is asked: E[x | x + sigma eps] once F is right.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv:2206.00364, table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._shapes import like


class Preconditioned(nn.Module):
    """A denoiser made of any network by Karras et al.'s scalings: ScoreModel(Preconditioned(net), EDM(), "data").

        D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)

    with the four numbers of table 1 of the source, above in this file. It is trained as there by
    `loss(model, x, times=LogNormalTimes(), weighting=EDMWeighting())`, with which the error of F has weight 1 at every
    noise level. On `EDM` the time t it is shown is sigma.

    Args:
        net: F, an nn.Module or another callable, called as net(c_in x, c_noise, **cond) with x (B, *event), c_noise
            (B,); returns a tensor shaped like x.
        sigma_data: the standard deviation of one value of the data, 0.5 by default, as in the source.

    Raises:
        TypeError: for an argument of another type.
        ValueError: unless `sigma_data` is positive; later, at noise levels that are not, where c_noise is infinite.

    Examples:
        >>> from sdegen.nets import MLP
        >>> model = sdegen.ScoreModel(sdegen.Preconditioned(MLP(2)), sdegen.EDM(), "data")
        >>> x = sdegen.sample(model, (8, 2), sdegen.Heun(18))
        >>> x.shape
        torch.Size([8, 2])

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv:2206.00364.
    """

    def __init__(self, net: Callable[..., Tensor], sigma_data: float = 0.5) -> None:
        super().__init__()
        if not callable(net):
            raise TypeError(f"net must be callable as net(x, c_noise), and {net!r} is {type(net).__name__}.")
        self.net = net
        self.sigma_data = _checks.real("sigma_data", sigma_data, 0, strict=True)

    def extra_repr(self) -> str:
        """`sigma_data`, for printing."""
        return f"sigma_data={self.sigma_data:g}"

    def forward(self, x: Tensor, sigma: Tensor, **cond: object) -> Tensor:
        """D(x; sigma): the denoised x, by one call of the network.

        Args:
            x: noised data (B, *event).
            sigma: the deviation of their noise, (B,); where it is not positive an accelerator, which is not waited for,
                answers NaN.
            cond: passed on to the network.

        Returns:
            The denoised data, shaped like `x`.

        Raises:
            ValueError: for a noise level that is not positive.
        """
        noisy = sigma > 0
        if sigma.device.type == "cpu" and not bool(noisy.all()):
            raise ValueError(f"sigma must be positive, since c_noise = log(sigma)/4, and it is {sigma[~noisy][0]:g}.")
        total = torch.hypot(sigma, torch.full_like(sigma, self.sigma_data))
        c_skip, c_out, c_in = (self.sigma_data / total) ** 2, sigma * self.sigma_data / total, 1 / total
        c_noise = torch.where(noisy, 0.25 * torch.log(sigma), math.nan)
        return like(c_skip, x) * x + like(c_out, x) * self.net(like(c_in, x) * x, c_noise, **cond)
