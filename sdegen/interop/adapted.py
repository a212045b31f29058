"""A network behind another way of calling it.

`ScoreModel(Adapted(net, call), path, predicts, time=...)` takes any network: `call` puts the arguments in order, `time`
turns the path's time into what the network was trained on, and the path itself may be `Retimed`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Adapted(nn.Module):
    """A network behind another way of calling it: Adapted(net, lambda net, x, t: net(t, x)).

    The network stays a submodule, so that its parameters, device, dtype and train or eval mode are still in sight.

    Args:
        net: the network, an nn.Module or another callable.
        call: called as call(net, x, t, **cond) with x (B, *event), t (B,) and the conditions as they were given, those
            that are `Shared` unwrapped; returns a tensor shaped like x. A function of a module, unlike a lambda, lets
            the model be pickled.

    Raises:
        TypeError: one of the two is not callable.

    Examples:
        >>> from sdegen.interop import Adapted
        >>> net = Adapted(lambda t, x: {"out": 0 * x}, lambda net, x, t: net(t, x)["out"])  # time first, dicts back
        >>> model = sdegen.ScoreModel(net, sdegen.VPSDE())
        >>> sdegen.sample(model, (4, 2), sdegen.Adams(5)).shape
        torch.Size([4, 2])
    """

    def __init__(self, net: Callable[..., Tensor], call: Callable[..., Tensor]) -> None:
        super().__init__()
        for name, value in (("net", net), ("call", call)):
            if not callable(value):
                raise TypeError(f"{name} must be callable, and it is {value!r}.")
        self.net = net
        self.call = call

    def forward(self, x: Tensor, t: Tensor, **cond: object) -> Tensor:
        """`call(net, x, t, **cond)`."""
        return self.call(self.net, x, t, **cond)
