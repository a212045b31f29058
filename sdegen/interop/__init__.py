"""Networks trained with other libraries, one line each.

    torchcfm        net(t, x), or an MLP on x and t joined;  noise at t = 0, data at t = 1;  predicts dx/dt
    flow_matching   net(x=x, t=t);                           noise at t = 0, data at t = 1;  predicts dx/dt

Anything else is `ScoreModel(Adapted(net, call), path, predicts, time=...)`: `call` puts the arguments in order, `time`
turns the path's time into what the network was trained on, and the path itself may be `Retimed`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdegen.models.model import ScoreModel
from sdegen.paths.flows import CondOT, Interpolant
from sdegen.paths.gaussian import GaussianPath


class Adapted(nn.Module):
    """A network behind another way of calling it: Adapted(net, lambda net, x, t: net(t, x)).

    The network stays a submodule, so that its parameters, device, dtype and train or eval mode are still in sight.
    """

    def __init__(self, net: nn.Module, call: Callable[..., Tensor]):
        super().__init__()
        for name, value in (("net", net), ("call", call)):
            if not callable(value):
                raise TypeError(f"{name} must be callable, and it is {value!r}.")
        self.net = net
        self.call = call

    def forward(self, x: Tensor, t: Tensor, **cond: object) -> Tensor:
        """`call(net, x, t, **cond)`."""
        return self.call(self.net, x, t, **cond)


def from_torchcfm(net: nn.Module, path: GaussianPath | None = None, *, joined: bool = False) -> ScoreModel:
    """A network trained with torchcfm, net(t, x); or with `joined`, as its MLP takes it, net([x, t]) for x (B, d).

    path: by default `Interpolant(CondOT())`, the ODE of every one of its matchers; `CondOT(sigma_min)` for the
    TargetConditionalFlowMatcher, whose noise is independent of the data, so that it has a score.
    """

    if not isinstance(joined, bool):
        raise TypeError(f"joined must be True or False, and it is {joined!r}.")
    call = _joined if joined else _time_first
    return ScoreModel(Adapted(net, call), Interpolant(CondOT()) if path is None else path, "velocity")


def from_flow_matching(net: nn.Module, path: GaussianPath | None = None) -> ScoreModel:
    """A velocity network trained with flow_matching, net(x=x, t=t, **extras).

    path: that of its scheduler: `CondOT()` by default, `Trigonometric()` for CosineScheduler; on an `Interpolant` if
    source and data were coupled.
    """
    return ScoreModel(Adapted(net, _by_name), CondOT() if path is None else path, "velocity")


def _time_first(net: nn.Module, x: Tensor, t: Tensor, **cond: object) -> Tensor:
    return net(t, x, **cond)


def _joined(net: nn.Module, x: Tensor, t: Tensor, **cond: object) -> Tensor:
    return net(torch.cat([x, t[:, None]], 1), **cond)


def _by_name(net: nn.Module, x: Tensor, t: Tensor, **cond: object) -> Tensor:
    return net(x=x, t=t, **cond)
