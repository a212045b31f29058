"""Whether a network can be trusted with a log-density: its gradient is there, and it answers alike when asked again.

A log-density needs z . J z of the network, and one that hides its gradient (torch.no_grad, detach, a conversion out of
torch) gives a number that is silently wrong. So z . J z by autograd is held against the central difference

    z . [ f(y + h z) - f(y - h z) ] / (2h)

at states typical of clocks all along the path, in three network calls on a few rows: one with gradients, one at y + h z
for every step h and at y again, one at y - h z. An honest network agrees at one of the steps on some of the rows,
however rough it is; one that hides its gradient at a clock agrees on none there. What was found is remembered until
the network changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._shapes import like, signs, sum_event
from sdegen.models.base import Model, Query
from sdegen.models.model import ScoreModel
from sdegen.solvers.divergence import PROBES_AT_ONCE

FRACTIONS = (0.02, 0.5, 0.98)
"""Of the way from one end to the other on the straight clock: where the network is looked at."""
FRACTIONS_OF_TIME = (0.05, 0.35, 0.65, 0.95)
"""The same in the path's own time."""
ROWS = 3
"""Samples looked at, at each of these clocks."""

_STEPS = {torch.float64: ((1e-3, 1e-5), 1e-3), torch.float32: ((1e-2, 1e-3, 1e-4), 1e-2)}
"""Finite-difference steps and the relative disagreement allowed, by the network's precision."""
_HALF = ((0.3, 0.1), 0.3)

_CUT = (Tensor, _checks.Shared, int, float, str, type(None))
"""Conditions that are known to be rows, or known not to be."""

_known: WeakKeyDictionary[object, dict[object, tuple[object, int]]] = WeakKeyDictionary()
"""For every network looked at before: the state it was in, and how many products one backward pass may take."""


def products_at_once(
    model: Model, y: Tensor, ends: tuple[float, float], cond: Mapping[str, object], probes: int
) -> int:
    """How many products with the Jacobian one backward pass may take: PROBES_AT_ONCE, or 1 for some fused kernels.

    Three network calls the first time a network is met, none after that until its modules, its weights, the kinds of
    its conditions or the part of the path change.

    Args:
        model: the model whose log-density is wanted.
        y: states of the whole batch, (B, *event).
        ends: the clocks between which they will move.
        cond: what the network receives; where that cannot be cut into rows, a list or a mapping, it sees the whole
            batch, at one clock.
        probes: how many products will be wanted.

    Raises:
        ValueError: the network blocks gradients, or gives two answers to one question.
        NonFiniteError: its output is NaN or infinite.
    """
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "The model's parameters were made inside torch.inference_mode, which keeps gradients from them for ever; a "
            "log-density needs one in x: build or load the model outside."
        )
    network = model.net if isinstance(model, ScoreModel) else model
    kinds = tuple((name, type(value), getattr(value, "dtype", None)) for name, value in cond.items())
    key = (model.predicts, model.path, y.dtype, tuple(y.shape[1:]), y.device, probes > 1, ends, kinds)
    try:
        hash(key)
        remembered = _known.setdefault(network, {})
    except TypeError:  # nothing can be remembered about what has no hash or no weak reference
        remembered = {}
    state = _state_of(network)
    if key not in remembered or remembered[key][0] != state:
        remembered[key] = state, _looked_at(_Look.at(model, y, ends, cond), probes)
    return remembered[key][1]


def _state_of(network: object) -> object:
    """Which modules a network is made of, and which weights they hold: training or a new part changes it."""
    if not isinstance(network, nn.Module):
        return None
    weights = (*network.parameters(), *network.buffers())
    return [*map(id, network.modules())], [(w.data_ptr(), w._version, w.dtype) for w in weights]


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
        z, noise = (signs(shape, coin, y.dtype, torch.device("cpu")).to(y.device) for _ in range(2))
        at = like(u.to(y), y)
        # a state typical of this clock, where the network was trained
        states = (1 - at) * y[which.to(y.device)] + at * noise.repeat(len(clocks), *[1] * (y.ndim - 1))
        query = model.plan(states, u, None, -torch.ones_like(u), torch.ones_like(u)).rows(slice(None), states)

        def received(times: int) -> Mapping[str, object]:
            if whole:
                return _checks.network_arguments(cond)
            return _checks.network_arguments(cond, which.repeat(times).to(y.device), len(y))

        return cls(model, states, z.repeat(len(clocks), *[1] * (y.ndim - 1)), query, clocks, received, not whole)

    def ask(self, states: Tensor) -> Tensor:
        """The slopes at these states, the rows several times over: one network call."""
        return self.model.estimate(states, self.query, self.cond(len(states) // len(self.y)))

    def per_clock(self, values: Tensor) -> Tensor:
        """Sums of row values (..., n) at each clock, (..., clocks)."""
        return values.reshape(*values.shape[:-1], len(self.clocks), -1).sum(-1)


def _clocks(model: Model, ends: tuple[float, float]) -> Tensor:
    """The clocks to look at, spread over the straight clock and over the path's time: networks see the latter."""
    u = torch.tensor(ends, dtype=torch.float64)
    t = model.path.time(u)
    on_clock, in_time = (torch.tensor(f, dtype=torch.float64) for f in (FRACTIONS, FRACTIONS_OF_TIME))
    return torch.cat([u[0] + (u[1] - u[0]) * on_clock, model.path.clock(t[0] + (t[1] - t[0]) * in_time)])


def _looked_at(look: _Look, probes: int) -> int:
    """How many products one backward pass may take, after a ValueError unless autograd and differences agree."""
    y, z = look.y, look.z
    with torch.enable_grad():
        leaf = y.detach().requires_grad_(True)
        value = look.ask(leaf)
    (product,) = torch.autograd.grad(value, leaf, z, retain_graph=True)
    at_once = _batched(value, leaf, z) if probes > 1 else 1
    value, product = value.detach(), sum_event(product * z)
    dtype = max(y.dtype, look.model.working_dtype(y.dtype), key=lambda d: torch.finfo(d).eps)  # the coarser of the two
    steps, tolerance = _STEPS.get(dtype, _HALF)
    steps = steps if look.repeatable else steps[:1]
    scale = max(1.0, float(y.square().mean().sqrt()))
    moves = [scale * h * z for h in steps]
    forward = look.ask(torch.cat([y + move for move in moves] + [y] * look.repeatable)).reshape(-1, *y.shape)
    backward = look.ask(torch.cat([y - move for move in moves])).reshape(-1, *y.shape)
    if look.repeatable and bool((forward[-1] - value).abs().sum() > 0.01 * value.abs().sum()):
        raise ValueError(
            "The network gives two different answers to one question: is there dropout that eval() misses?"
        )
    difference = torch.stack(
        [sum_event(z * (f - b)) / (2 * scale * h) for f, b, h in zip(forward, backward, steps, strict=False)]
    )
    rounding = torch.stack(
        [4 * torch.finfo(dtype).eps * (sum_event(value.abs()) / (scale * h) + product.abs()) for h in steps]
    )
    allowed = tolerance * (product.abs() + difference.abs()) + rounding
    agree = look.per_clock(((product - difference).abs() <= allowed).any(0))  # rows, at one of the steps
    wrong = (agree == 0).nonzero().flatten().tolist()
    if wrong:
        _refuse(look, product, difference, wrong[0])
    return at_once


def _refuse(look: _Look, product: Tensor, difference: Tensor, clock: int) -> None:
    by_autograd, by_difference = look.per_clock(product)[clock], look.per_clock(difference)[-1, clock]
    _checks.finite_state(difference[-1][:, None], float(look.clocks[clock]))
    raise ValueError(
        "The network blocks gradients with respect to its input (torch.no_grad, detach, or a conversion out of torch): "
        f"z . J z is {float(by_autograd):.4g} by autograd and {float(by_difference):.4g} by finite differences, "
        "so its log-density would be wrong."
    )


def _batched(value: Tensor, leaf: Tensor, z: Tensor) -> int:
    """Whether the network's backward pass can be batched: some fused kernels cannot."""
    try:
        torch.autograd.grad(value, leaf, torch.stack([z, z]), retain_graph=True, is_grads_batched=True)
    except RuntimeError:
        return 1
    return PROBES_AT_ONCE
