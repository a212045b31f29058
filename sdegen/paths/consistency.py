"""Whether what a path states about itself is true: its slopes, its inverse clock and its scale against alpha and sigma.

Slopes are held against differences over a short step around eight moments inside the path, time(clock(t)) against t and
scale(clock(t)) against alpha + sigma, in float64. It costs about a millisecond, once per path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

AUTOGRAD = " Autograd must see how they depend on t: write them in torch operations, or give `slopes`."
"""What a path that leaves its slopes to autograd can do about them."""


class Stated(Protocol):
    """What is looked at: a `GaussianPath`."""

    @property
    def t_data(self) -> float:
        """The time at the data."""

    @property
    def t_noise(self) -> float:
        """The time at the noise."""

    @property
    def steps(self) -> int | None:
        """The length of the chain, if it is one."""

    def at(self, fraction: Tensor) -> Tensor:
        """The time at a fraction of the way."""

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the data."""

    def sigma(self, t: Tensor) -> Tensor:
        """The deviation of the noise."""

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of alpha, sigma and sigma^2."""

    def time(self, u: Tensor) -> Tensor:
        """The inverse of the clock."""

    def scale(self, u: Tensor) -> Tensor:
        """alpha + sigma where the clock shows u."""


def values(path: Stated, name: str, t: Tensor) -> Tensor:
    """alpha or sigma at times t, after a ValueError unless they are as many finite numbers, none negative."""
    value: object = getattr(path, name)(t)
    if not isinstance(value, Tensor) or value.shape != t.shape:
        raise ValueError(f"{name}(t) of {path!r} must return a tensor shaped like t, and it returned {value!r}.")
    wrong = torch.nonzero(~(torch.isfinite(value) & (value >= 0)))
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(f"{name} of {path!r} must be finite and not negative; at t = {t[i]:g} it is {value[i]:g}.")
    return value


def _around(path: Stated, step: float) -> tuple[Tensor, Tensor, Tensor]:
    """Times a little before, at and after eight moments inside the path, alpha and sigma there, all (3, 8).

    `step` is the fraction of the path between them, or less on a chain, whose kinks must not come two at a time.
    """
    middle = (torch.arange(8, dtype=torch.float64) + 0.382) / 8
    apart = min(step, 0.1 / path.steps) if path.steps else step
    t = path.at(torch.stack([middle - apart, middle, middle + apart]))
    alpha, sigma = path.alpha(t.flatten()), path.sigma(t.flatten())
    return t, alpha.double().reshape(t.shape), sigma.double().reshape(t.shape)


def check_slopes(path: Stated, by_autograd: bool) -> None:
    """A ValueError unless `slopes` are the derivatives of alpha, sigma and sigma^2.

    At a kink a slope may be that of either side, or anything between. A path that is computed in less than double
    precision makes differences over a short step wrong by rounding, so slopes are refused only where those over a short
    step (1e-5 of the path) and over a longer one (1e-3) both contradict them.
    """
    t = _around(path, 1e-5)[0][1]
    stated = _stated_slopes(path, t, by_autograd)
    wrong, central = _contradictions(path, stated, 1e-5)
    if len(wrong) and len(_contradictions(path, stated, 1e-3)[0]):
        which, i = wrong[0].tolist()
        raise ValueError(
            f"slopes of {path!r} must be the derivatives of its alpha and sigma: at t = {t[i]:g} that of "
            f"{('alpha', 'sigma', 'sigma^2')[which]} is {central[which, i]:g}, and slopes(t)."
            f"{('alpha', 'sigma', 'variance')[which]} is {stated[which, i]:g}.{AUTOGRAD if by_autograd else ''}"
        )


def _stated_slopes(path: Stated, t: Tensor, by_autograd: bool) -> Tensor:
    """`slopes` at times t (n,), as one tensor (3, n), after a ValueError where that cannot be."""
    try:
        slopes = path.slopes(t)
    except RuntimeError as error:
        if not by_autograd:
            raise
        raise ValueError(f"alpha and sigma of {path!r} have no slopes: {error}{AUTOGRAD}") from error
    try:
        return torch.stack([torch.as_tensor(slopes[i], dtype=t.dtype).expand_as(t) for i in range(3)])
    except (TypeError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"slopes(t) of {path!r} must return Slopes(alpha, sigma, variance), each shaped like t, and it returned "
            f"{slopes!r}."
        ) from error


def _contradictions(path: Stated, stated: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Where the slopes `stated` (3, 8) are no derivatives, as rows (which, i), and the central differences."""
    t, alpha, sigma = _around(path, step)
    f = torch.stack([alpha, sigma, sigma**2])
    left, right = ((f[:, j + 1] - f[:, j]) / (t[j + 1] - t[j]) for j in (0, 1))
    central = (f[:, 2] - f[:, 0]) / (t[2] - t[0])
    smallest = 1e-6 * f.abs().amax((1, 2)) / abs(path.t_noise - path.t_data)
    slack = (right - left).abs() + 1e-3 * central.abs() + smallest[:, None]
    return torch.nonzero(~((stated - central).abs() <= slack)), central


def check_inverse(path: Stated, own: Sequence[str]) -> None:
    """A ValueError unless a path's own `time` inverts its clock and its own `scale` is alpha + sigma.

    Both receive u alone, which is rounded. Where the clock hardly moves with t, the rounding of u (1e-14) stands for a
    visible change of t and of the scale, which is therefore allowed for.
    """
    t, alpha, sigma = _around(path, 1e-5)
    r = alpha + sigma
    u = sigma / r
    slack = {"time": torch.full_like(t[1], 1e-4 * abs(path.t_noise - path.t_data)), "scale": 1e-6 * r[1]}
    for name, exact, what in (("time", t, "t"), ("scale", r, "alpha + sigma")):
        if name not in own:
            continue
        stated = getattr(path, name)(u[1]).to(t).expand_as(t[1])
        per_clock = (exact[2] - exact[0]).abs() / (u[2] - u[0]).abs().clamp(min=1e-300)
        wrong = torch.nonzero(~((stated - exact[1]).abs() <= slack[name] + 1e-14 * per_clock))
        if len(wrong):
            i = int(wrong[0])
            raise ValueError(
                f"{name}(clock(t)) of {path!r} must be {what}: at t = {t[1, i]:g}, u = {u[1, i]:g} that is "
                f"{exact[1, i]:g}, and {name}(u) is {stated[i]:g}."
            )
