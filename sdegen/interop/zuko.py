"""Flows of zuko as dequantisers: where in its cell a quantised value is taken to lie, learned from the density.

A flow q(v | c) over R^d, conditional on features c of the whole numbers n, gives the law

    u = Phi(v),   log r(u | n) = log q(v | c) - sum over i of log phi(v_i)

on [0, 1)^d, with Phi and phi the standard normal's distribution function and density: where q is standard normal, r is
uniform. An untrained flow is near that, and training takes it from there to r proportional to p(y), at which a single
draw gives the probability of n itself. zuko is not imported here: pip install 'sdegen[flows]'.

References:
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, Ho et al.,
    2019, arXiv:1902.00275.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from sdegen._shapes import Generators, event_size, normal
from sdegen.likelihoods.quantised import Quantized


class _Inverse(Protocol):
    """z to v, with the logarithm of |det dv/dz|."""

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]: ...


class _Transform(Protocol):
    inv: _Inverse


class _Law(Protocol):
    """What a flow of zuko returns for its context: v = transform.inv(z) with z from the base."""

    transform: _Transform
    base: Distribution


class FlowDequantiser(nn.Module):
    """The law r(u | n) of a conditional zuko flow, u = Phi(v), for `discrete_log_prob(..., dequantiser=...)`.

    Its parameters are the flow's. Training raises E_r[ log p(y) - log r(u | n) ], which needs a density with gradients
    in y; the gap that is left at a single draw is KL( r | p(. | n) ):

        flow = zuko.flows.NSF(features=d, context=d, transforms=3, passes=2)
        dequantiser = FlowDequantiser(flow, quantized)
        optimiser = torch.optim.Adam(dequantiser.parameters(), 1e-3)
        for n in batches:
            loss = dequantiser.loss(density, n)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    Args:
        flow: a flow of zuko over d values, with a normal base, called as flow(c) with the features c, (B, C).
        quantized: the cells.
        features: n, (B, *event), to c; by default the d middles of the cells, scaled to (-1, 1).

    Raises:
        TypeError: an argument of another type.
        ValueError: a flow whose density is an estimate, such as CNF(exact=False); at the first call, one of another
            dimension.

    Examples:
        >>> import zuko
        >>> from sdegen.interop import FlowDequantiser
        >>> flow = zuko.flows.MAF(features=4, context=4, transforms=1)
        >>> u, log_r = FlowDequantiser(flow, sdegen.Quantized(17)).sample(torch.tensor([[0.0, 3.0, 8.0, 16.0]]))
        >>> bool(((u >= 0) & (u < 1)).all()), u.shape, log_r.shape
        (True, torch.Size([1, 4]), torch.Size([1]))

    References:
        Flow++, Ho et al., 2019, arXiv:1902.00275.
    """

    def __init__(
        self, flow: nn.Module, quantized: Quantized, features: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(flow, nn.Module):
            raise TypeError(f"flow must be a flow of zuko, called as flow(c), and it is {flow!r}.")
        if not isinstance(quantized, Quantized):
            raise TypeError(f"quantized must be a Quantized, such as Quantized(256), and it is {quantized!r}.")
        if features is not None and not callable(features):
            raise TypeError(f"features must be a function of n, and it is {features!r}.")
        if any(getattr(part, "exact", True) is False for part in flow.modules()):
            raise ValueError(
                "The flow estimates its own density, exact=False, and the noise of an estimate raises the mean of the "
                "weights, which then bounds nothing: build it with exact=True."
            )
        self.flow = flow
        self.quantized = quantized
        self.features = features

    def sample(self, n: Tensor, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """One draw for every sample, differentiable in the flow's parameters.

        Args:
            n: whole numbers 0 ... L-1, (B, *event), of any real dtype.
            generator: a torch.Generator, one per sample, or None for torch's global one.

        Returns:
            u in [0, 1), (B, *event), and log r(u | n), (B,), in nats, in the dtype of the flow.

        Raises:
            TypeError: for a flow whose base is not normal.
            ValueError: for values off the levels, or a flow over another number of values.
        """
        law, d = self._law(n), event_size(n.shape)
        base = _normal_base(law.base, d)
        z = base.loc + base.scale * normal((len(n), d), generator, base.loc.dtype, base.loc.device)
        v, stretch = law.transform.inv.call_and_ladj(z)
        u = torch.special.ndtr(v).clamp(max=1 - torch.finfo(v.dtype).eps / 2)
        log_r = law.base.log_prob(z) - stretch + (0.5 * v**2 + 0.5 * math.log(2 * math.pi)).sum(1)
        return u.reshape(n.shape), log_r

    def loss(self, log_prob: Callable[[Tensor], Tensor], n: Tensor, generator: Generators = None) -> Tensor:
        """The mean over n of -[ log p(y) + d log c - log r(u | n) ], a bound on -log P(n) in nats per sample.

        Args:
            log_prob: y, (B, *event), to its log-densities (B,), with gradients in y.
            n: whole numbers 0 ... L-1, (B, *event), of any real dtype.
            generator: as in `sample`.

        Returns:
            a scalar with gradients in the flow's parameters.

        Raises:
            TypeError: as for `sample`.
            ValueError: as for `sample`; for densities of another shape than (B,).
        """
        u, log_r = self.sample(n, generator)
        log_p = log_prob(self.quantized.spread(n, u))
        if log_p.shape != log_r.shape:
            raise ValueError(f"log_prob must return shape {tuple(log_r.shape)}, and it returned {tuple(log_p.shape)}.")
        return -(log_p - log_r).mean() - event_size(n.shape) * math.log(self.quantized.cell)

    def _law(self, n: Tensor) -> _Law:
        """The flow's law for these n, in the dtype of its parameters."""
        dtype = next((p.dtype for p in self.flow.parameters()), torch.get_default_dtype())
        law: _Law = self.flow(self._context(n.to(dtype)))
        return law

    def _context(self, n: Tensor) -> Tensor:
        if self.features is not None:
            return self.features(n)
        q = self.quantized
        return ((q.centre(n) - q.low) * (2 / (q.high - q.low)) - 1).flatten(1)


def _normal_base(base: Distribution, d: int) -> Normal:
    """The law of the flow's noise, d independent normals for every sample."""
    inner = base.base_dist if isinstance(base, Independent) else base
    if not isinstance(inner, Normal):
        raise TypeError(f"The flow's base must be normal, as NSF's and MAF's are, and it is {base!r}.")
    if base.event_shape != (d,):
        raise ValueError(f"n has {d} values a sample, and the flow is one over {math.prod(base.event_shape)}.")
    return inner
