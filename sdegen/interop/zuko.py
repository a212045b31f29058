"""Flows of zuko: as the source or the prior of a model, and as dequantisers.

A flow is a map f from data to the noise of its base, with a base of independent normals:

    log q(x) = log base(f(x)) + log |det df/dx|,   x = f^-1(z) with z from the base

`source` takes one over x itself. `FlowDequantiser` takes one conditional on features c of the whole numbers n, to say
where in its cell a quantised value is taken to lie,

    u = Phi(v),   log r(u | n) = log q(v | c) - sum over i of log phi(v_i)

on [0, 1)^d, with Phi and phi the standard normal's distribution function and density: where q is standard normal, r is
uniform. An untrained flow is near that, and training takes it from there to r proportional to p(y), at which a single
draw gives the probability of n itself. zuko is imported by `source` alone, when it is called:
pip install 'sdegen[flows]'.

References:
    Normalizing Flows for Probabilistic Modeling and Inference, Papamakarios et al., 2021, arXiv:1912.02762.
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, Ho et al.,
    2019, arXiv:1902.00275.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from sdegen import _checks
from sdegen._arguments import in_eval_mode
from sdegen._shapes import Generators, event_size, normal, sum_event
from sdegen.likelihoods.quantised import Quantized

__all__ = ["FlowSource", "source"]  # FlowDequantiser is sdegen.interop's

MISSES = 0.01
"""How far f(f^-1(z)) may lie from z, of order one, in double precision: 1e-9 where f^-1 inverts a steep f."""


class _Inverse(Protocol):
    """z to v, alone or with the logarithm of |det dv/dz|."""

    def __call__(self, z: Tensor) -> Tensor: ...

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]: ...


class _Transform(Protocol):
    inv: _Inverse

    def __call__(self, v: Tensor) -> Tensor: ...


class _Law(Protocol):
    """What a flow of zuko returns for its context: v = transform.inv(z) with z from the base."""

    transform: _Transform
    base: Distribution
    event_shape: torch.Size

    def log_prob(self, v: Tensor) -> Tensor: ...


def source(flow: nn.Module) -> FlowSource:
    """A flow of zuko as a law of the noise end: `Interpolant(CondOT(), source(flow))`, or `prior=` of a likelihood.

    A flow that is fitted to the data first leaves the model less to do; the flow's weights stay its own, and neither
    `loss` nor `fit` trains them. `sdegen.save` leaves them out, but for a digest: save flow.state_dict() too, and give
    the path again to `sdegen.load`, which refuses one with another flow:

        flow = zuko.flows.NSF(features=2)
        ...  # raise flow().log_prob(x).mean()
        path = sdegen.Interpolant(sdegen.CondOT(), sdegen.interop.zuko.source(flow))
        model = sdegen.ScoreModel(net, path, "velocity")
        loss = sdegen.loss(model, x)

    Args:
        flow: an unconditional flow of zuko with a normal base, such as NICE, RealNVP, MAF and NSF, called as flow().
            Events of several axes are flattened for it.

    Returns:
        the law, with `.sample(shape, generator)` and `.log_prob(z)`.

    Raises:
        ImportError: zuko is not installed.
        TypeError: for what is no flow of zuko, or one whose base is not normal.
        ValueError: for a flow that needs a context, has a batch of laws, estimates its density, or whose inverse is
            none within four deviations of the base's mean: GF, NAF, UNAF and SOSPF search theirs between -10 and 10.

    Examples:
        >>> import zuko
        >>> from sdegen.interop.zuko import source
        >>> path = sdegen.Interpolant(sdegen.CondOT(), source(zuko.flows.NSF(features=2)))
        >>> model = sdegen.ScoreModel(lambda x, t: 0 * x, path, "velocity")  # it leaves the noise where it is
        >>> x = sdegen.sample(model, (3, 2), sdegen.Adams(4))
        >>> bool((sdegen.log_prob(model, x) - path.source.log_prob(x)).abs().max() < 1e-4)
        True

    References:
        Normalizing Flows for Probabilistic Modeling and Inference, Papamakarios et al., 2021, arXiv:1912.02762.
    """
    return FlowSource(flow)


@dataclass(frozen=True)
class FlowSource:
    """The law of an unconditional flow of zuko: what `source` returns.

    log q(x) = log base(f(x)) + log |det df/dx|,   x = f^-1(z) with z from the base

    It works in the dtype and on the device of the flow, `flow.to(...)` moves it, and it follows the flow's training; it
    asks the flow in eval mode, and leaves it in the mode it was in; where several threads ask it, give it in eval mode.

    Attributes:
        flow: the flow.
        event_size: the number of values of one sample.

    Examples:
        >>> import zuko
        >>> from sdegen.interop.zuko import FlowSource
        >>> FlowSource(zuko.flows.RealNVP(features=4)).sample((3, 1, 2, 2)).shape
        torch.Size([3, 1, 2, 2])
    """

    flow: nn.Module
    event_size: int = field(init=False)
    per_sample_generators = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_size", math.prod(_checked_law(self.flow).event_shape))

    def __repr__(self) -> str:
        return f"FlowSource({type(self.flow).__name__} over {self.event_size} values)"

    def sample(self, shape: Sequence[int], generator: Generators = None) -> Tensor:
        """Draws from the flow, without a gradient.

        Args:
            shape: (B, *event).
            generator: a torch.Generator on the device of the flow, one per sample, or None for torch's global one.

        Returns:
            A tensor of `shape`, in the dtype and on the device of the flow.

        Raises:
            TypeError: for a shape or generators of another kind.
            ValueError: for an event of another size than the flow's, or generators of another number or device; on the
                CPU, for draws that are NaN or where the inverse of the flow is none, as training may leave it.
        """
        shape = _checks.batch_shape(shape)
        self._check_size("A sample of shape", shape)
        with torch.no_grad(), in_eval_mode(self.flow):
            law = self._law()
            base = _normal_base(law.base)
            loc = base.loc
            _checks.generators(generator, shape[0], loc.device)
            z = loc + base.scale * normal((shape[0], *loc.shape), generator, loc.dtype, loc.device)
            x = law.transform.inv(z)
            _check_inverse(self.flow, law, z, x)
            return x.reshape(shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of `z` (B, *event), in nats, shape (B,), in the dtype of `z` and on its device.

        Gradients reach `z` and the flow's parameters.
        """
        self._check_size("z of shape", _checks.batch("z", z, finite=False).shape)
        if not len(z):
            return sum_event(z)
        with in_eval_mode(self.flow):
            law = self._law()
            return law.log_prob(z.to(_normal_base(law.base).loc).reshape(len(z), *law.event_shape)).to(z)

    def _law(self) -> _Law:
        law: _Law = self.flow()
        return law

    def _check_size(self, what: str, shape: Sequence[int]) -> None:
        if event_size(shape) != self.event_size:
            raise ValueError(
                f"{what} {tuple(shape)} has {event_size(shape)} values a sample, and the flow is one over "
                f"{self.event_size}."
            )


def _checked_law(flow: object) -> _Law:
    """What flow() returns, where that is one law with a density, and with draws that follow it."""
    try:
        from zuko.distributions import NormalizingFlow
    except ImportError as error:
        raise ImportError("source needs zuko, which is not installed: pip install 'sdegen[flows]'.") from error
    if not isinstance(flow, nn.Module):
        raise TypeError(f"flow must be a flow of zuko, called as flow(), and it is {_checks.described(flow)}.")
    _refuse_estimates(flow, "a log-density must be the same at every call")
    with torch.no_grad(), in_eval_mode(flow):
        try:
            law = flow()
        except Exception as error:
            raise TypeError(
                f"flow must be a flow of zuko, called as flow(), and {type(flow).__name__} says: {_words(error)}."
            ) from error
        if not isinstance(law, NormalizingFlow):
            raise TypeError(
                f"flow() must be a NormalizingFlow of zuko, and {type(flow).__name__} returns {type(law).__name__}."
            )
        _probe(flow, cast(_Law, law))
    return cast(_Law, law)


def _probe(flow: nn.Module, law: _Law) -> None:
    """A ValueError for a batch of laws, one with a context, and one whose draws would not follow its density."""
    base, name = _normal_base(law.base), type(flow).__name__
    if base.loc.shape != law.base.event_shape:
        raise ValueError(f"flow() must be one law, and that of {name} is a batch of {tuple(law.base.batch_shape)}.")
    steps = torch.linspace(-4, 4, 9, dtype=base.loc.dtype, device=base.loc.device)
    z = base.loc + base.scale * steps.reshape(9, *[1] * base.loc.ndim)
    try:
        x = law.transform.inv(z)
        law.transform(x)
    except Exception as error:
        raise ValueError(f"flow must be one without a context, and {name} says: {_words(error)}.") from error
    _check_inverse(flow, law, z, x)


def _check_inverse(flow: nn.Module, law: _Law, z: Tensor, x: Tensor) -> None:
    """A ValueError, on the CPU, unless x = f^-1(z) is finite and f(x) = z, in double precision where it seems not so.

    An inverse that is searched for between two ends answers with these ends, whatever z is beyond. Where f is so steep
    that rounding x moves f(x), its inverse may miss z as far.
    """
    if z.device.type != "cpu" or not len(z):
        return
    if bad := int((~x.isfinite()).flatten(1).any(1).sum()):
        raise ValueError(
            f"The draws of {type(flow).__name__} are NaN or infinite in {bad} of {len(z)} rows: look at its weights, "
            f"and whether {x.dtype} is wide enough for it."
        )
    if not bool((suspect := ~(_missed(law, z, x) <= MISSES)).any()):
        return
    law, z = copy.deepcopy(flow).double()(), z[suspect]
    z = z.to(_normal_base(law.base).loc)
    x = law.transform.inv(z)
    missed, rounding = _missed(law, z, x), _missed(law, law.transform(x), x * (1 + torch.finfo(x.dtype).eps))
    if bad := int((~(missed <= MISSES + rounding)).sum()):
        raise ValueError(
            f"The inverse of {type(flow).__name__} is none, so its draws would not follow its density: from z to x and "
            f"back, in {bad} of {len(suspect)} rows, z in deviations of the base is missed by up to "
            f"{float(missed.max()):.2g} of them."
        )


def _missed(law: _Law, z: Tensor, x: Tensor) -> Tensor:
    """How far f(x) lies from z, in deviations of the base, (B,)."""
    return ((law.transform(x) - z) / _normal_base(law.base).scale).abs().flatten(1).amax(1)


def _words(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _refuse_estimates(flow: nn.Module, why: str) -> None:
    """A ValueError for a flow that answers with a random estimate of its density."""
    if any(getattr(part, "exact", True) is False for part in flow.modules()):
        raise ValueError(f"The flow estimates its own density, exact=False, and {why}: build it with exact=True.")


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
        _refuse_estimates(flow, "the noise of an estimate raises the mean of the weights, which then bounds nothing")
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
        base = _normal_base(law.base)
        if law.base.event_shape != (d,):
            raise ValueError(f"n has {d} values a sample, and the flow is one over {math.prod(law.base.event_shape)}.")
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


def _normal_base(base: Distribution) -> Normal:
    """The law of the flow's noise, independent normals."""
    inner = base.base_dist if isinstance(base, Independent) else base
    if not isinstance(inner, Normal):
        raise TypeError(f"The flow's base must be normal, as NSF's and MAF's are, and it is {base!r}.")
    return inner
