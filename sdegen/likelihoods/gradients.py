"""Whether a network can be trusted with a log-density: its gradient is there, and it answers alike when asked again.

A log-density needs products with the Jacobian J of the network f, and one that hides its gradient (torch.no_grad,
detach, a conversion out of torch) gives a number that is silently wrong. So autograd is held against the central
difference along random signs z, and against the two one-sided ones,

    D = [ f(y + h z) - f(y - h z) ] / (2h)        S = [ f(y + h z) - 2 f(y) + f(y - h z) ] / (2h)

at states y typical of clocks all along the path. D = J z where f is smooth and h small, and S, half of what the
one-sided differences disagree by, tells how far D may be wrong: curvature, kinks and rounding all show in it. The
product taken by autograd is w . J z with w = D/|D|, which is |D| for an honest network and 0 for a blind one, in every
dimension: no luck of the signs can hide it.

Steps follow the precision that the network has, not the one that it declares. Rounding to half precision, by autocast
inside the network or by its own dtype, drowns a small step: then S is as large as D, and the differences are taken at
large steps, where |S| alone says how far to believe them. All of it costs three network calls on a few rows. What was
found is remembered until the network changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._derivatives import uncompiled
from sdegen._shapes import like, normal, signs, sum_event
from sdegen.models.base import Model, Query, prediction_row
from sdegen.models.model import ScoreModel
from sdegen.solvers.divergence import PROBES_AT_ONCE

FRACTIONS = (0.02, 0.5, 0.98)
"""Of the way from one end to the other on the straight clock: where the network is looked at."""
FRACTIONS_OF_TIME = (0.05, 0.35, 0.65, 0.95)
"""The same in the path's own time."""
ROWS = 3
"""Samples looked at, at each of these clocks."""

_STEPS = {torch.float64: (1e-5, 1e-3), torch.float32: (1e-4, 1e-3, 1e-2)}
"""Finite-difference steps in units of the data's scale, by the precision that the network declares."""
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-2}
"""The relative disagreement allowed at these steps."""
_LARGE_STEPS, _LARGE_TOLERANCE = (0.03, 0.1, 0.3, 1.0), 0.25
"""The same for a network that rounds to half precision."""
_DROWNED = 0.5
"""|S|/|D| at the finest step, beyond which rounding drowns it."""
_ONE_SIDED = 2.0
"""How many times |S| the central difference may be wrong by: 1 at a kink, less where f is smooth."""
_RESOLVED = 0.5
"""The part of |D| that may be put down to S: a gradient that is hidden disagrees by all of |D|."""
_FLAT = 0.1
"""Rows where f moves less than so much of the most at their clock are no evidence, nor steps that move nothing."""

_CUT = (Tensor, _checks.Shared, int, float, str, type(None))
"""Conditions that are known to be rows, or known not to be."""

Question = tuple[Tensor, Query, Mapping[str, object]]
"""The arguments of `Model.estimate`."""

_known: WeakKeyDictionary[object, dict[object, tuple[object, int]]] = WeakKeyDictionary()
"""For every network looked at before: the state it was in, and how many products one backward pass may take."""


def products_at_once(
    model: Model, y: Tensor, ends: tuple[float, float], cond: Mapping[str, object], probes: int, check: bool = True
) -> int:
    """How many products with the Jacobian one backward pass may take: PROBES_AT_ONCE, or 1 for some fused kernels.

    Three network calls the first time a network is met, eleven if its conditions cannot be cut and it rounds to half
    precision, none after that until its modules, its weights, the kinds of its conditions or the part of the
    path change.

    Args:
        model: the model whose log-density is wanted.
        y: states of the whole batch, (B, *event).
        ends: the clocks between which they will move.
        cond: what the network receives; where that cannot be cut into rows, a list or a mapping, it sees the whole
            batch, at one clock.
        probes: how many products will be wanted; one or two take a backward pass each.
        check: whether the network's gradient is held against finite differences; without it the first of the three
            calls is made alone, and that only for more than two probes.

    Returns:
        the number of products.

    Raises:
        ValueError: the network blocks gradients, or gives two answers to one question.
        NonFiniteError: its output is NaN or infinite.
    """
    network = model.net if isinstance(model, ScoreModel) else model
    state = _state_of(network)
    several = probes > 2
    if not (check or several):
        return 1
    kinds = tuple((name, type(value), getattr(value, "dtype", None)) for name, value in cond.items())
    key = (model.predicts, model.path, y.dtype, tuple(y.shape[1:]), y.device, several, check, ends, kinds)
    try:
        hash(key)
        remembered = _known.setdefault(network, {})
    except TypeError:  # nothing can be remembered about what has no hash or no weak reference
        remembered = {}
    if key not in remembered or remembered[key][0] != state:
        with uncompiled():
            remembered[key] = state, _looked_at(_Look.at(model, y, ends, cond), several, check)
    return remembered[key][1]


def _state_of(network: object) -> object:
    """Which modules a network is made of, in which mode, and which weights: training or a new part changes it.

    Raises:
        ValueError: weights made in inference mode, which can never be differentiated.
    """
    if not isinstance(network, nn.Module):
        return None
    modules = list(network.modules())
    try:
        return [(id(m), m.training) for m in modules], [(w.data_ptr(), w._version, w.dtype) for w in _weights(modules)]
    except RuntimeError as error:  # they have no version either
        if not any(w.is_inference() for w in _weights(modules)):
            raise
        raise ValueError(
            "The model's parameters were made inside torch.inference_mode, which keeps gradients from them for ever; a "
            "log-density needs one in x: build or load the model outside."
        ) from error


def _weights(modules: list[nn.Module]) -> Iterator[Tensor]:
    """Their parameters and buffers, without the names that `parameters()` walks through."""
    for module in modules:
        for held in (module._parameters, module._buffers):
            yield from (w for w in held.values() if w is not None)


@dataclass
class _Look:
    """Rows to look at: states y (n, *event), directions z, the question at each, and the number of clocks."""

    model: Model
    y: Tensor
    z: Tensor
    query: Query
    clocks: Tensor
    cond: Callable[[int], Mapping[str, object]]  # for the rows several times over
    repeatable: bool

    @classmethod
    def at(cls, model: Model, y: Tensor, ends: tuple[float, float], cond: Mapping[str, object]) -> _Look:
        """A few rows at every fraction of the way; a whole batch that must not be cut at the middle."""
        whole = not all(isinstance(value, _CUT) for value in cond.values())
        clocks, rows = _clocks(model, ends), ROWS
        clocks, rows = (clocks[1:2], len(y)) if whole else (clocks, min(len(y), ROWS))
        which = torch.arange(rows).repeat(len(clocks))
        coin, u = torch.Generator().manual_seed(0), clocks.repeat_interleave(rows)
        shape = (rows, *y.shape[1:])
        z, noise = (draw(shape, coin, y.dtype, torch.device("cpu")).to(y.device) for draw in (signs, normal))
        at = like(u.to(y), y)
        # a state typical of this clock, where the network was trained
        states = (1 - at) * y[which.to(y.device)] + at * noise.repeat(len(clocks), *[1] * (y.ndim - 1))
        query = model.plan(states, u, None, *_question(model, u)).rows(slice(None), states)

        def received(times: int) -> Mapping[str, object]:
            if whole:
                return _checks.network_arguments(cond)
            return _checks.network_arguments(cond, which.repeat(times).to(y.device), len(y))

        return cls(model, states, z.repeat(len(clocks), *[1] * (y.ndim - 1)), query, clocks, received, not whole)

    @property
    def scale(self) -> float:
        """The size of the states, at least 1: the unit of the steps."""
        return max(1.0, float(self.y.square().mean().sqrt()))

    def question(self, states: Tensor) -> Question:
        """What `estimate` takes for these states, the rows several times over."""
        return states, self.query, self.cond(len(states) // len(self.y))

    def around(self, steps: Sequence[float], again: bool = False) -> list[Question]:
        """The questions at y + h z for each step h, at y - h z, and at last at y `again`: one question where it can."""
        moves = [self.scale * h * self.z for h in steps]
        states = [self.y + move for move in moves] + [self.y - move for move in moves] + [self.y] * again
        return [self.question(torch.cat(states))] if self.repeatable else [self.question(state) for state in states]

    def per_clock(self, values: Tensor) -> Tensor:
        """Row values (..., n) at each clock, (..., clocks, rows)."""
        return values.reshape(*values.shape[:-1], len(self.clocks), -1)


def _clocks(model: Model, ends: tuple[float, float]) -> Tensor:
    """The clocks to look at, spread over the straight clock and over the path's time: networks see the latter."""
    u = torch.tensor(ends, dtype=torch.float64)
    t = model.path.time(u)
    on_clock, in_time = (torch.tensor(f, dtype=torch.float64) for f in (FRACTIONS, FRACTIONS_OF_TIME))
    return torch.cat([u[0] + (u[1] - u[0]) * on_clock, model.path.clock(t[0] + (t[1] - t[0]) * in_time)])


def _question(model: Model, u: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (c, d) of E[x | y] and E[eps | y] to ask for: what the network itself predicts, else the slope.

    In the slope stands a multiple of y beside the network's answer, behind whose derivative a hidden one would drown.
    """
    if model.predicts is None:
        return -torch.ones_like(u), torch.ones_like(u)
    r = model.path.scale(u)
    a, b, _ = prediction_row(model.predicts, model.path, model.path.time(u), (1 - u) * r, u * r)
    return a, b


def _looked_at(look: _Look, several: bool, check: bool) -> int:
    """How many products one backward pass may take, after a ValueError unless autograd and differences agree."""
    estimate = look.model.estimate  # called from here, so that no frame stands between
    with torch.enable_grad():
        leaf = look.y.detach().requires_grad_(True)
        value = estimate(*look.question(leaf))
    at_once = _batched(value, leaf, look.z) if several else 1
    if not check:
        return at_once
    dtype = max(value.dtype, look.model.working_dtype(value.dtype), key=lambda d: torch.finfo(d).eps)  # the coarser
    dtype = torch.promote_types(dtype, torch.float32)
    finest, *more = _STEPS[dtype]
    tolerance = _TOLERANCE[dtype]
    values = torch.cat([*starmap(estimate, look.around([finest], again=look.repeatable))])
    if look.repeatable:
        _refuse_random(values[-len(value) :], value.detach())
    seen = [_Differences.of(look, [finest], values, value, leaf)]
    if seen[0].drowned():
        seen, more, tolerance = [], [*_LARGE_STEPS], _LARGE_TOLERANCE
    if look.repeatable or not seen:
        values = torch.cat([*starmap(estimate, look.around(more))])
        seen.append(_Differences.of(look, more, values, value, leaf))
    rounding = 4 * torch.finfo(dtype).eps * value.detach().flatten(1).norm(dim=1)
    _refuse_unless(torch.stack([part.agree(look, rounding, tolerance) for part in seen]).any(0), look, seen[-1])
    return at_once


def _batched(value: Tensor, leaf: Tensor, z: Tensor) -> int:
    """Whether the network's backward pass can be batched: some fused kernels cannot."""
    both = torch.stack([z, z])
    try:
        torch.autograd.grad(value, leaf, both, retain_graph=True, is_grads_batched=True)
    except RuntimeError:
        return 1
    return PROBES_AT_ONCE


@dataclass
class _Differences:
    """Norms along the directions z at each step h: of D, of S and of what autograd and D disagree by, (steps, n)."""

    h: Tensor
    size: Tensor
    spread: Tensor
    error: Tensor

    @classmethod
    def of(cls, look: _Look, steps: Sequence[float], values: Tensor, value: Tensor, leaf: Tensor) -> _Differences:
        """Those of the `values`, the answers to `around`; `value` is f(leaf), with its graph."""
        forward, backward, *_ = values.reshape(-1, *value.shape).split(len(steps))
        h = torch.tensor(steps, dtype=value.dtype, device=value.device)[:, None] * look.scale
        D = (forward - backward).flatten(2) / (2 * h[..., None])
        S = (forward - 2 * value.detach() + backward).flatten(2) / (2 * h[..., None])
        size, z = D.norm(dim=2), look.z.flatten(1)
        w = torch.where(size[..., None] > 0, D / size[..., None], z / z.norm(dim=1, keepdim=True))
        by_autograd = torch.stack([sum_event(_product(value, leaf, row) * look.z) for row in w])
        return cls(h, size, S.norm(dim=2), (by_autograd - size).abs())

    def drowned(self) -> bool:
        """Whether the network rounds the steps away, in most of the rows."""
        return bool((self.spread >= _DROWNED * self.size).double().mean() > 0.5)

    def agree(self, look: _Look, rounding: Tensor, tolerance: float) -> Tensor:
        """Whether autograd and D agree on some row at some step, (clocks,)."""
        size = look.per_clock(self.size)
        spread = look.per_clock(self.spread).square().mean(-1, keepdim=True).sqrt()
        floor = look.per_clock(rounding / self.h)
        allowed = torch.maximum(tolerance * size, torch.minimum(_ONE_SIDED * spread, _RESOLVED * size))
        right = look.per_clock(self.error) <= allowed + floor
        most = size.amax(-1, keepdim=True)
        moves = (size >= _FLAT * most) & ((most > 0) | (most.amax(0) == 0))
        return (right & moves).any(-1).any(0)


def _product(value: Tensor, leaf: Tensor, w: Tensor) -> Tensor:
    """w J, shaped like `leaf`."""
    with torch.enable_grad():
        total = (value * w.reshape(value.shape)).sum()
    return torch.autograd.grad(total, leaf, retain_graph=True)[0]


def _refuse_random(again: Tensor, value: Tensor) -> None:
    """A ValueError unless the network answered alike both times."""
    if bool((again - value).abs().sum() > 0.01 * value.abs().sum()):
        raise ValueError(
            "The network gives two different answers to one question: is there dropout that eval() misses?"
        )


def _refuse_unless(agree: Tensor, look: _Look, seen: _Differences) -> None:
    """A ValueError unless autograd and differences `agree` at every clock."""
    clock = next((i for i, one in enumerate(agree.tolist()) if not one), None)
    if clock is None:
        return
    size, error = (look.per_clock(part[0])[clock] for part in (seen.size, seen.error))
    _checks.finite_state(size[:, None], float(look.clocks[clock]))
    raise ValueError(
        "The network blocks gradients with respect to its input (torch.no_grad, detach, or a conversion out of torch): "
        f"its change along a direction is {float(size.max()):.4g} by finite differences, and autograd is off by "
        f"{float(error[size.argmax()]):.4g}, so its log-density would be wrong."
    )
