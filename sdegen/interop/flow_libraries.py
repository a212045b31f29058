"""Velocity networks trained with the libraries of flow matching, which are not imported here.

    torchcfm        net(t, x), or an MLP on x and t joined;  noise at t = 0, data at t = 1;  predicts dx/dt
    flow_matching   net(x=x, t=t);                           noise at t = 0, data at t = 1;  predicts dx/dt

Conditions reach the network by their names: `cond={"y": labels}` for torchcfm's U-Net.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdegen.interop.adapted import Adapted
from sdegen.models.model import ScoreModel
from sdegen.paths.flows import CondOT, Interpolant
from sdegen.paths.gaussian import GaussianPath


def from_torchcfm(net: Callable[..., Tensor], path: GaussianPath | None = None, *, joined: bool = False) -> ScoreModel:
    """A network trained with torchcfm: dx/dt = net(t, x) from noise at t = 0 to data at t = 1.

    Args:
        net: the network, called as net(t, x, **cond) with x (B, *event), t (B,).
        path: by default `Interpolant(CondOT())`, the ODE of every one of its matchers; `CondOT(sigma_min)` for the
            TargetConditionalFlowMatcher, whose noise is independent of the data, so that the model has a score too.
        joined: call it as its MLP is called, net([x, t], **cond) with x (B, d) and t as one more column.

    Returns:
        the model, which predicts "velocity".

    Raises:
        TypeError: an argument of another type.
        ValueError: at the first call, for a `joined` network and an x that is not (B, d).

    Examples:
        >>> from sdegen.interop import from_torchcfm
        >>> model = from_torchcfm(lambda t, x: -x)  # their order of arguments
        >>> x = sdegen.sample(model, (1, 1), sdegen.Adams(40), x_T=torch.ones(1, 1))
        >>> f"{x.item():.3f}"  # 1/e
        '0.368'

    References:
        Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, Tong et al., 2024,
        arXiv:2302.00482.
    """
    if not isinstance(joined, bool):
        raise TypeError(f"joined must be True or False, and it is {joined!r}.")
    call = _joined if joined else _time_first
    return ScoreModel(Adapted(net, call), Interpolant(CondOT()) if path is None else path, "velocity")


def from_flow_matching(net: Callable[..., Tensor], path: GaussianPath | None = None) -> ScoreModel:
    """A velocity network trained with flow_matching: dx/dt = net(x=x, t=t) from noise at t = 0 to data at t = 1.

    Args:
        net: the network, called as net(x=x, t=t, **cond) with x (B, *event), t (B,).
        path: that of its scheduler: `CondOT()` by default, `Trigonometric()` for the CosineScheduler; on an
            `Interpolant` if source and data were coupled.

    Returns:
        the model, which predicts "velocity".

    Raises:
        TypeError: an argument of another type.

    Examples:
        >>> from sdegen.interop import from_flow_matching
        >>> model = from_flow_matching(lambda x, t: torch.ones_like(x))
        >>> sdegen.sample(model, (1, 1), sdegen.ODESolver("rk4", steps=4), x_T=torch.zeros(1, 1)).round(decimals=4)
        tensor([[1.]])

    References:
        Flow Matching Guide and Code, Lipman et al., 2024, arXiv:2412.06264.
    """
    return ScoreModel(Adapted(net, _by_name), CondOT() if path is None else path, "velocity")


def _time_first(net: Callable[..., Tensor], x: Tensor, t: Tensor, **cond: object) -> Tensor:
    return net(t, x, **cond)


def _joined(net: Callable[..., Tensor], x: Tensor, t: Tensor, **cond: object) -> Tensor:
    if x.ndim != 2:
        raise ValueError(f"A joined network takes x of shape (B, d), and it received {tuple(x.shape)}.")
    return net(torch.cat([x, t[:, None]], 1), **cond)


def _by_name(net: Callable[..., Tensor], x: Tensor, t: Tensor, **cond: object) -> Tensor:
    return net(x=x, t=t, **cond)
