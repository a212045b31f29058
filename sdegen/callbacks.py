"""What `solve` calls after every step: the user's function, told in units of the data."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import state
from sdegen.models.base import Model
from sdegen.models.watched import Watched
from sdegen.solvers.base import Solver

Callback = Callable[[int, float, Tensor, Tensor], object]
"""callback(k, u, x, x_hat), what `solve` calls after every step."""


class Told:
    """The user's callback as `march` calls it: told in units of the data, by copies.

    Attributes:
        model: the model to solve with, which remembers what its last answer said of the data.
    """

    def __init__(self, callback: Callback, model: Model, dtype: torch.dtype, solver: str):
        self.model = Watched(model)
        self._callback, self._dtype, self._solver, self._steps = callback, dtype, solver, 0

    def __call__(self, k: int, u: float, y: Tensor) -> None:
        """After step k, which arrived at the clock u in the state y."""
        self._steps += 1
        y = y.detach()
        x_hat, units = self.model.x_hat(y), self.model.standardize
        x_hat = x_hat if units is None else units.inverse(x_hat)
        self._callback(k, u, state(self.model, y, u).to(self._dtype), x_hat.to(self._dtype))

    def check(self) -> None:
        """A warning if the solver never called it."""
        if not self._steps:
            warnings.warn(
                f"{self._solver} never called the callback: its loop is not `march`, which calls it after every step.",
                UserWarning,
                stacklevel=_checks.stacklevel_outside(),
            )


def check_callback(callback: object, solver: Solver, checkpoint_every: int | None, batch_size: int | None) -> None:
    """A callback can be called, and the solver's loop has a place for it."""
    if callback is None:
        return
    if not callable(callback):
        raise TypeError(f"callback must be callable as callback(k, u, x, x_hat), and it is {callback!r}.")
    if not solver.takes_callback:
        raise ValueError(
            f"callback is called after every step of solvers whose loop is march, and the loop of {solver!r} is not: "
            "take Adams for the ODE or StochasticAdams for the SDE, or trajectory=True for the states alone."
        )
    if checkpoint_every is not None:
        raise ValueError(
            f"callback is called after every step, and checkpoint_every = {checkpoint_every!r} takes the steps of a "
            "whole chunk at once: give one of the two."
        )
    if batch_size is not None:
        raise ValueError(
            f"callback is told of the whole batch after every step, and batch_size = {batch_size!r} solves one part of "
            "it after another: give one of the two."
        )
