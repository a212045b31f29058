"""Models: anything that estimates the data and the noise behind x_t, and the one conversion between predictions.

Every prediction is p with k p = a x + b eps for known numbers a, b, k:

    eps       0       1       1                data      1        0       1
    score     0       1       -sigma           velocity  alpha'   sigma'  1          v    -sigma   alpha   1

("score" is the gradient of the log-density, s = -eps/sigma; "velocity" is dx/dt in the path's own time; "v" is
Salimans and Ho's.) In straight coordinates y = x_t/r obeys y = (1-u) x + u eps, on every path, so from y and p

    c x + d eps = [ (c b - d a) y + ((1-u) d - u c) k p ] / [ (1-u) b - u a ]                                     (*)

which is the only conversion in the library. It is finite wherever the bracket below is not 0: eps and score at u = 0,
data at u = 1, v everywhere, velocity wherever dx/dt is finite.

Progressive Distillation for Fast Sampling of Diffusion Models, Salimans and Ho, 2022, arXiv:2202.00512.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._shapes import as_time, batch_of_times, like
from sdegen.paths import GaussianPath

Cond = Mapping[str, object] | None
Row = tuple[Tensor | float, Tensor | float, Tensor | float]

PREDICTIONS: dict[str, Callable[[GaussianPath, Tensor, Tensor, Tensor], Row]] = {
    "eps": lambda path, t, alpha, sigma: (0.0, 1.0, 1.0),
    "score": lambda path, t, alpha, sigma: (0.0, 1.0, -sigma),
    "data": lambda path, t, alpha, sigma: (1.0, 0.0, 1.0),
    "velocity": lambda path, t, alpha, sigma: (*path.slopes(t)[:2], 1.0),
    "v": lambda path, t, alpha, sigma: (-sigma, alpha, 1.0),
}
"""(a, b, k) of each prediction at (path, t, alpha, sigma): k prediction = a x + b eps."""


@dataclass(frozen=True)
class Node:
    """A point of the clock where a model is queried, with what the query needs.

    Fields are floats when one clock serves the whole batch, or tensors that broadcast against it (t then is (B,)).
    """

    u: float | Tensor
    t: float | Tensor
    r: float | Tensor
    a: float | Tensor
    b: float | Tensor
    k: float | Tensor

    @property
    def singular(self) -> bool:
        """Whether (*) divides by zero here, or a coefficient is infinite (float nodes only)."""
        numbers = (self.t, self.r, self.a, self.b, self.k)
        return not all(map(math.isfinite, numbers)) or (1 - self.u) * self.b - self.u * self.a == 0


class Model(nn.Module, ABC):
    """What the solvers ask of a model: `path`, `nodes` and `estimate`; the five public predictions follow from them."""

    path: GaussianPath
    predicts: str | None = None

    @abstractmethod
    def nodes(self, u: Tensor, t: Tensor | None = None) -> list[Node]:
        """The nodes at clocks `u` (n,), float64; `t` (n,) are the path's times there, where already known."""

    @abstractmethod
    def estimate(self, y: Tensor, node: Node, c: float | Tensor, d: float | Tensor, cond: Cond = None) -> Tensor:
        """E[c x + d eps | y] for y = x_t/r, shape (B, *event): one query of the network."""

    @abstractmethod
    def node_at(self, x_t: Tensor, t: Tensor) -> Node:
        """The node of a batch `x_t` (B, *event) at times `t` (B,)."""

    def eps(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """E[eps | x_t]: the noise, shaped like `x_t` (B, *event); t is a scalar or (B,)."""
        return self._predict("eps", x_t, t, cond)

    def score(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """The gradient of log p_t at `x_t`, -eps/sigma (Tweedie's formula)."""
        return self._predict("score", x_t, t, cond)

    def data(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """E[x | x_t]: the denoised data."""
        return self._predict("data", x_t, t, cond)

    def velocity(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """dx/dt of the probability-flow ODE in the path's own time, alpha' E[x | x_t] + sigma' E[eps | x_t]."""
        return self._predict("velocity", x_t, t, cond)

    def v(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """alpha E[eps | x_t] - sigma E[x | x_t], Salimans and Ho's v."""
        return self._predict("v", x_t, t, cond)

    def _predict(self, name: str, x_t: Tensor, t: float | Tensor, cond: Cond) -> Tensor:
        _checks.batch("x_t", x_t, finite=False)
        t = batch_of_times(t, x_t)
        if name == self.predicts:
            return self(x_t, t, cond)
        alpha, sigma = like(self.path.alpha(t), x_t), like(self.path.sigma(t), x_t)
        a, b, k = (like(as_time(n), x_t) for n in PREDICTIONS[name](self.path, t, self.path.alpha(t), self.path.sigma(t)))
        return self.estimate(x_t / (alpha + sigma), self.node_at(x_t, t), a, b, cond) / k


class ScoreModel(Model):
    """A network on a path: `net(x_t, t)` returns its prediction, shaped like x_t, for t of shape (B,).

    net:      an nn.Module or any callable; with `cond` it is called as net(x_t, t, **cond).
    path:     the Gaussian path it was, or will be, trained on.
    predicts: "eps" | "score" | "data" | "velocity" | "v", what the network returns.
    time:     a callable from the path's time t (B,) to what the network sees instead: for a network trained on the
              integers k of a K-step chain, `time=lambda t: t * K - 1` (k counted from 0).

    `model(x_t, t)` is the network's own output; `.eps .score .data .velocity .v` are conversions of it, each one network
    call. Raises TypeError or ValueError if the path, the name or the network's output is not as described.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        path: GaussianPath,
        predicts: str = "eps",
        *,
        time: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        if not callable(net):
            raise TypeError(f"net must be callable as net(x_t, t), and {net!r} is {type(net).__name__}.")
        if not isinstance(path, GaussianPath):
            raise TypeError(f"path must be a GaussianPath such as VPSDE(), and it is {path!r}.")
        if time is not None and not callable(time):
            raise TypeError(f"time must be callable, t of shape (B,) to what the network sees, and it is {time!r}.")
        self.predicts = _checks.choice("prediction", predicts, PREDICTIONS)
        self.net = net
        self.path = path
        self.time = time

    def extra_repr(self) -> str:
        """The path and the prediction, for printing."""
        return f"path={self.path!r}, predicts={self.predicts!r}"

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """The network's own output at `x_t` (B, *event) and path times `t` (B,), in the dtype of `x_t`."""
        cond = _checks.conditions(cond)
        dtype = _dtype_of(self.net, x_t.dtype)
        t = t.to(dtype)
        out = self.net(x_t.to(dtype), t if self.time is None else self.time(t), **cond)
        if not isinstance(out, Tensor) or out.shape != x_t.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"The network must return a tensor of shape {tuple(x_t.shape)}, like x_t, and gave {got}.")
        if not out.is_floating_point():
            raise TypeError(f"The network must return real floating numbers, and its output has dtype {out.dtype}.")
        return out.to(x_t.dtype)

    def nodes(self, u: Tensor, t: Tensor | None = None) -> list[Node]:
        """Nodes with float fields, all coefficients computed at once in float64 on the CPU."""
        t = self.path.time(u) if t is None else t
        r = self.path.scale(u)
        row = PREDICTIONS[self.predicts](self.path, t, (1 - u) * r, u * r)
        columns = [u, t, r, *(torch.as_tensor(n, dtype=u.dtype).expand_as(u) for n in row)]
        return [Node(*numbers) for numbers in torch.stack(columns, 1).tolist()]

    def node_at(self, x_t: Tensor, t: Tensor) -> Node:
        """A node whose fields broadcast against `x_t`."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        row = PREDICTIONS[self.predicts](self.path, t, alpha, sigma)
        r = alpha + sigma
        return Node(like(sigma / r, x_t), t, like(r, x_t), *(like(as_time(n), x_t) for n in row))

    def estimate(self, y: Tensor, node: Node, c: float | Tensor, d: float | Tensor, cond: Cond = None) -> Tensor:
        """(*) with one network call."""
        t = node.t if isinstance(node.t, Tensor) else torch.full((y.shape[0],), node.t, dtype=y.dtype, device=y.device)
        p = self(node.r * y, t, cond)
        u, a, b = node.u, node.a, node.b
        det = (1 - u) * b - u * a
        return (c * b - d * a) / det * y + ((1 - u) * d - u * c) * node.k / det * p


def _dtype_of(net: object, default: torch.dtype) -> torch.dtype:
    """The dtype of a network's parameters, or `default` for one that has none."""
    if isinstance(net, nn.Module):
        for p in net.parameters():
            if p.is_floating_point():
                return p.dtype
    return default
