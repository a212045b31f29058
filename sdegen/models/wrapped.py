"""Models that wrap a model: the same questions, answered through another.

What a guided, clipped or conditioned model changes is one thing, the slope D = eps_hat - x_hat of the ODE at the state
y, clock u. Since y = (1-u) x_hat + u eps_hat, the slope tells both, x_hat = y - u D and eps_hat = y + (1-u) D, so that

    c x_hat + d eps_hat + e y = (c + d + e) y + ((1-u) d - u c) D

answers every question once D is known. `Wrapped` asks the inner model for D, hands it to `change`, and combines.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.models.base import Model, Number, Query, combined, instead_of_model
from sdegen.models.standardised import Standardize
from sdegen.paths.gaussian import GaussianPath

Slope = Callable[..., Tensor]
"""D(y, cond=cond) -> eps_hat - x_hat of the inner model at `y`, shaped like y: one network call."""


class _Forwarding(Model):
    """What every wrapper leaves as it is."""

    _shown: ClassVar[tuple[str, ...]] = ()  # the names of the settings that are printed beside the model

    def __init__(self, model: Model):
        super().__init__()
        if not isinstance(model, Model):
            given = instead_of_model(model)
            raise TypeError(f"A wrapper takes a model, such as a ScoreModel, and it was given {given}.")
        self.model = model
        self.path = model.path
        self.learns_variance, self.clips = model.learns_variance, model.clips

    def extra_repr(self) -> str:
        """The model that is wrapped, and the settings, for printing."""
        return ", ".join([repr(self.model), *(f"{name}={getattr(self, name)!r}" for name in self._shown)])

    @property
    def standardize(self) -> Standardize | None:
        """That of the model itself."""
        return self.model.standardize

    @property
    def clocks(self) -> tuple[float, float]:
        """Those of the model itself."""
        return self.model.clocks

    @property
    def has_score(self) -> bool:
        """Whether the model itself has a score."""
        return self.model.has_score

    def working_dtype(self, default: torch.dtype) -> torch.dtype:
        """That of the model itself."""
        return self.model.working_dtype(default)

    def gain(self, u: Tensor) -> Tensor:
        """That of the model itself, at the same clocks."""
        return self.model.gain(u)


class Wrapped(_Forwarding):
    """A model that changes another model's answer: write your own by giving `change`.

    Every solver, `log_prob` and `.on(path)` work with it, at the cost of the network calls that `change` makes.

    Args:
        model: the model to change.

    Raises:
        TypeError: `model` is none.

    Examples:
        >>> class Pulled(sdegen.Wrapped):
        ...     def change(self, D, y, u, r, t, cond):
        ...         return D(y, cond=cond) + 0.1 * y
        >>> model = Pulled(sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT()))
        >>> sdegen.sample(model, (8, 1), sdegen.Adams(20)).shape
        torch.Size([8, 1])
    """

    @abstractmethod
    def change(self, D: Slope, y: Tensor, u: Tensor, r: Tensor, t: Tensor, cond: Mapping[str, object]) -> Tensor:
        """The changed slope D' = eps_hat' - x_hat' at the state `y`.

        Args:
            D: D(y, cond=cond) asks the inner model, in one network call; `y` may also be the batch several times over,
                one copy after another, with conditions to match.
            y: the state in straight coordinates, x_t / r, (B, *event).
            u: the straight clock; it broadcasts against y, as do r and t.
            r: alpha + sigma.
            t: the path's own time.
            cond: what the network receives.

        Returns:
            a tensor shaped like y.
        """

    def query(self, u: Tensor, t: Tensor, c: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The inner model's question for D, behind (u, r, t) and the two factors above."""
        one = torch.ones_like(u)
        shown, inner = self.model.query(u, t, -one, one, 0 * one)
        return shown, (u, self.path.scale_at(u, t), t, c + d + e, (1 - u) * d - u * c, *inner)

    def estimate(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> Tensor:
        """(c + d + e) y + ((1-u) d - u c) D'."""
        shown, (u, r, t, from_y, from_D, *inner), dtype = query.fitting(y)
        D = partial(self.model.estimate, query=Query(shown, tuple(inner), dtype))
        return combined(from_y, y, from_D, _like_state(self.change(D, y, *_as_tensors(y, u, r, t), cond), y))

    def estimate_with_variance(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> tuple[Tensor, Tensor]:
        """The same, with the inner model's own variance."""
        shown, (u, r, t, from_y, from_D, *inner), dtype = query.fitting(y)
        positions: list[Tensor] = []

        def D(y: Tensor, cond: Mapping[str, object]) -> Tensor:  # noqa: N802  # the formula's letter
            value, position = self.model.estimate_with_variance(y, Query(shown, tuple(inner), dtype), cond)
            positions.append(position)
            return value

        answer = combined(from_y, y, from_D, _like_state(self.change(D, y, *_as_tensors(y, u, r, t), cond), y))
        place = positions[0][: len(y)]
        return answer, place if torch.is_grad_enabled() else place.detach()

    def on(self, path: GaussianPath) -> Model:
        """The same change of the inner model on another path."""
        moved = copy.copy(self)
        moved._modules = {**self._modules, "model": self.model.on(path)}
        moved.path, moved.learns_variance = path, False
        return moved


def _as_tensors(y: Tensor, u: Number, r: Number, t: Number) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers as tensors on the device of `y`, which is not waited for."""
    u, r, t = (n if isinstance(n, Tensor) else y.new_full((), n) for n in (u, r, t))
    return u, r, t


def _like_state(answer: object, y: Tensor) -> Tensor:
    """What `change` returned, after a ValueError unless it is shaped like the state."""
    if not isinstance(answer, Tensor) or answer.shape != y.shape:
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"change must return a tensor shaped like y, {tuple(y.shape)}, and it gave {got}.")
    return answer


class OnPath(_Forwarding):
    """A model on another path than its own, see `Model.on`: it is shown its own path's time and state.

    Args:
        model: the model on its own path.
        path: the path to follow.

    Raises:
        TypeError: `path` is none.
        ValueError: the path has another source than the model's.
    """

    _shown = ("path",)

    def __init__(self, model: Model, path: GaussianPath):
        super().__init__(model)
        if not isinstance(path, GaussianPath):
            raise TypeError(f"path must be a GaussianPath such as CondOT(), and it is {_checks.described(path)}.")
        if path.source is not model.path.source:
            raise ValueError(
                f"A model keeps its source, {model.path.source!r}, and {path!r} has {path.source!r}; move it to an "
                "Interpolant with the same source."
            )
        self.path = path
        self.learns_variance = False

    def query(self, u: Tensor, t: Tensor, c: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The model's own answer to the same question at the same clock."""
        return self.model.query(u, self.model.path.time(u), c, d, e)

    def estimate(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> Tensor:
        """The model's own."""
        return self.model.estimate(y, query, cond)

    def on(self, path: GaussianPath) -> Model:
        """The model itself, moved once more."""
        return self.model.on(path)
