"""The noise of a solve: how much of it, w(u), and where its normals come from.

    SDE    dy = [eps_hat - x_hat] du - gamma eps_hat |du| + w dW,    gamma = w^2 / (2u),    u falling or rising

Every profile w(u) >= 0 keeps every marginal of the path. The default w^2 = eta^2 2u / max(1-u, 0.1) is Anderson's
reverse SDE at eta = 1 for u <= 0.9, is finite at u = 1, and gives gamma = eta^2 / max(1-u, 0.1), finite at u = 0.

References:
    Reverse-time diffusion equation models, Anderson, 1982.
    Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen._shapes import Generators, normal


@dataclass(frozen=True)
class NoiseProfile:
    """w(u) and gamma(u) = w^2 / (2u) on float64 tensors of u.

    Args:
        eta: the level of the default profile.
        own: the user's w, a callable u -> w(u), instead of it.
    """

    eta: float = 1.0
    own: Callable[[Tensor], Tensor] | None = None

    def gamma(self, u: Tensor) -> Tensor:
        """w^2 / (2u), as its limit where u = 0; a ValueError if there is none."""
        if self.own is None:
            return self.eta**2 / torch.clamp(1 - u, min=0.1)
        gammas = [self.w(near) ** 2 / (2 * near) for near in (torch.clamp(u, min=1e-12), torch.clamp(u, min=1e-9))]
        if bool((gammas[0] > 1.1 * gammas[1] + 1e-6).any()):
            raise ValueError(
                "w(u)^2 / u grows without bound at u = 0, where this solver needs it; let w fall like sqrt(u)."
            )
        return gammas[0]

    def w(self, u: Tensor) -> Tensor:
        """The noise level at the clocks `u`, shaped like u."""
        if self.own is None:
            return torch.sqrt(2 * u * self.gamma(u))
        value = self.own(u.clone())  # which w may write into
        if not isinstance(value, Tensor) or value.shape != u.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"w must map a tensor u of shape {tuple(u.shape)} to w(u) of that shape, and it gave {got}."
            )
        wrong = torch.nonzero(~((value >= 0) & torch.isfinite(value)))
        if len(wrong):
            i = tuple(wrong[0].tolist())
            raise ValueError(f"w(u) must be finite and non-negative, and w({float(u[i]):g}) = {float(value[i])}.")
        return value.detach().to(u)


def normals_of_step(
    y: Tensor,
    noise: Tensor | Callable[[int], Tensor] | None,
    generator: Generators,
    steps: int,
    *,
    pair: bool = False,
) -> Callable[[int], Tensor]:
    """A function from the step k to its standard normals, shaped like `y`, or (2, B, *event) if `pair`.

    They are those of `noise`, or drawn where it is None.

    Raises:
        ValueError: a tensor `noise` of another shape than (steps, B, *event), at once; a callable's answer of another
            shape, when it is asked.
    """
    shape = (2, *y.shape) if pair else tuple(y.shape)

    def drawn(k: int) -> Tensor:
        if not pair:
            return normal(shape, generator, y.dtype, y.device)
        return normal((len(y), 2, *y.shape[1:]), generator, y.dtype, y.device).transpose(0, 1)

    def asked(k: int) -> Tensor:
        z = noise(k) if callable(noise) else None
        if not isinstance(z, Tensor) or tuple(z.shape) != shape:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"noise(k) must return a tensor of shape {shape}, and noise({k}) gave {got}.")
        return z.to(y)

    if noise is None:
        return drawn
    if not isinstance(noise, Tensor):
        return asked
    if tuple(noise.shape) != (steps, *shape):
        raise ValueError(f"noise must have shape {(steps, *shape)} for {steps} steps, not {tuple(noise.shape)}.")
    return noise.to(y).__getitem__


def noise_of_rows(
    noise: Tensor | Callable[[int], Tensor] | None, y: Tensor, rows: slice | Tensor
) -> Tensor | Callable[[int], Tensor] | None:
    """The user's `noise` for some samples of the batch `y`, whose axis comes right before those of the event."""
    if noise is None:
        return None

    def cut(z: Tensor) -> Tensor:
        if not isinstance(z, Tensor):  # refused where it is used
            return z
        if z.shape[-y.ndim :] != y.shape:
            raise ValueError(
                f"noise must end in the shape of the batch, {tuple(y.shape)}, and it has {tuple(z.shape)}."
            )
        return z[(..., rows, *[slice(None)] * (y.ndim - 1))]

    return cut(noise) if isinstance(noise, Tensor) else lambda k: cut(noise(k))
