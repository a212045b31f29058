"""A model that is watched: what its last answer says about the data.

An answer a = c x_hat + d eps_hat + e y at the state y, clock u, tells x_hat, since y = (1-u) x_hat + u eps_hat:

    x_hat = [u a - (d + e u) y] / [c u - d (1-u)]          and y itself at clean data, u = 0

unless c : d = (1-u) : u, when it says nothing but y. So nothing more is asked, and a solve's numbers stay what they
are; the rounding of a is divided by that denominator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from sdegen.models.base import Cond, Model, Number, Query, combined
from sdegen.models.wrapped import _Forwarding
from sdegen.paths.gaussian import GaussianPath


class Watched(_Forwarding):
    """The same model, which keeps the x_hat of its last answer.

    Args:
        model: the model to watch.

    Raises:
        TypeError: `model` is none.
    """

    def __init__(self, model: Model):
        super().__init__(model)
        self.predicts, self.exact = model.predicts, model.exact

    @cached_property
    def _x_hat(self) -> Tensor | None:
        """The last one told; no part of what the model is."""
        return None

    def x_hat(self, y: Tensor) -> Tensor:
        """E[x | y] by the last answer that told it, a copy without a graph; before the first NaN, shaped like y."""
        return torch.full_like(y, math.nan) if self._x_hat is None else self._x_hat.clone()

    def query(self, u: Tensor, t: Tensor, c: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The model's own, behind the question itself."""
        shown, inner = self.model.query(u, t, c, d, e)
        return shown, (u, c, d, e, *inner)

    def estimate(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> Tensor:
        """The model's own."""
        answer = self.model.estimate(y, self._inner(query), cond)
        self._keep(y, answer, query)
        return answer

    def estimate_with_variance(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> tuple[Tensor, Tensor]:
        """The model's own."""
        answer, position = self.model.estimate_with_variance(y, self._inner(query), cond)
        self._keep(y, answer, query)
        return answer, position

    def forward(self, x_t: Tensor, t: float | Tensor, cond: Cond = None) -> Tensor:
        """The model's own output."""
        output: Tensor = self.model(x_t, t, cond)
        return output

    def on(self, path: GaussianPath) -> Model:
        """The model itself on another path, watched no more."""
        return self.model.on(path)

    def _inner(self, query: Query) -> Query:
        return Query(query.t, query.numbers[4:], query.dtype)

    @torch.no_grad()
    def _keep(self, y: Tensor, answer: Tensor, query: Query) -> None:
        """Read x_hat off an answer now: a solver may write into it, or into y, as soon as it has it."""
        u, c, d, e = query.numbers[:4]
        from_y, from_answer = _factors(u, c, d, e)
        if isinstance(from_y, Tensor) or not math.isnan(from_y):
            self._x_hat = combined(from_y, y, from_answer, answer)


def _factors(u: Number, c: Number, d: Number, e: Number) -> tuple[Number, Number]:
    """Those of y and of the answer in x_hat; where it says nothing NaN, or per sample infinite, and x_hat is NaN."""
    det = c * u - d * (1 - u)
    if not isinstance(det, Tensor):
        if u == 0:
            return 1.0, 0.0
        return (-(d + e * u) / det, u / det) if det else (math.nan, math.nan)
    clean = torch.as_tensor(u == 0, device=det.device)
    return torch.where(clean, 1.0, -(d + e * u) / det), torch.where(clean, 0.0, u / det)
