"""Inverse problems: the model of x given a noisy linear observation z = A x + std n, n ~ N(0, I).

The score of x_t given z gains grad log p(z | x_t), and with J = d x_hat / dy all three methods are of the form

    grad_y log p(z | x_t) = J^T A^T S^-1 (z - A x_hat)        D' = D - u / (1-u) times it

    dps      S = std^2 I                              x is taken to be x_hat
    pigdm    S = std^2 I + q A A^T                    q = u^2 / ((1-u)^2 + u^2), Cov(x | y) of data N(0, I)
    mmps     S = std^2 I + u^2/(1-u) A J A^T          Cov(x | y) = u^2/(1-u) J, which is Tweedie's second formula

For Gaussian data x_hat' = x_hat + Cov A^T S^-1 (z - A x_hat) is the conditional mean: "mmps" is exact on every
Gaussian, "pigdm" on N(m, I). A and J enter as products alone, each a backward pass, and S is inverted by conjugate
gradients.

References:
    Diffusion Posterior Sampling for General Noisy Inverse Problems, Chung et al., 2023, arXiv:2209.14687 ("dps").
    Pseudoinverse-Guided Diffusion Models for Inverse Problems, Song et al., 2023 ("pigdm").
    Learning Diffusion Priors from Observations by Expectation Maximization, Rozet et al., 2024, arXiv:2405.13712
    ("mmps").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._derivatives import differentiated, twice_differentiable
from sdegen._shapes import dtype_of, event_size
from sdegen.models.base import Model
from sdegen.models.guidance import Steered
from sdegen.models.wrapped import Slope

Operator = Callable[[Tensor], Tensor]
"""A linear map."""

METHODS = ("mmps", "dps", "pigdm")

FEW, MOST = 8, 32
"""Observed values up to which "mmps" solves to the end by default, and the most steps of "pigdm"."""


class Observed(Steered):
    """The model of x given an observation of it, by one network call and some backward passes.

    Its samples approximate the posterior p(x | z): for Gaussian data "mmps" is exact. Where the path reaches u = 1 give
    the verbs u=(0.999, 0).

    Args:
        model: the model of x.
        A: a matrix (m, d) for flattened events, or a callable from states (B, *event) to what is observed of them,
            (B, *observed); linear, or differentiable and nearly so.
        observation: z, (*observed): one for all samples.
        std: the deviation of its noise.
        method: "mmps", one backward pass more for each of its `iterations`; "pigdm"; "dps".
        iterations: conjugate-gradient steps, as many as there are observed values solve exactly. By default that, at
            most 32, for "pigdm", whose steps do not touch the network; for "mmps" that up to 8 values, and 1 for
            more: the Jacobian of a trained network is not quite symmetric, and one step is the most robust.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument that does not fit; later, an A that does not fit the events or the observation.

    Examples:
        >>> model = sdegen.Gaussian([0.0, 0.0], 1.0).model(sdegen.VPSDE())
        >>> first = torch.tensor([[1.0, 0.0]])  # z = x_1 + N(0, 1), and it was 2
        >>> posterior = sdegen.Observed(model, first, torch.tensor([2.0]), std=1.0)
        >>> x = sdegen.sample(posterior, (1, 2), sdegen.Adams(40), x_T=torch.zeros(1, 2))
        >>> x.round(decimals=1).tolist()  # E[x | z] = (z/2, 0)
        [[1.0, 0.0]]

    References:
        Learning Diffusion Priors from Observations by Expectation Maximization, Rozet et al., 2024, arXiv:2405.13712.
        Pseudoinverse-Guided Diffusion Models for Inverse Problems, Song et al., 2023.
        Diffusion Posterior Sampling for General Noisy Inverse Problems, Chung et al., 2023, arXiv:2209.14687.
    """

    _shown = ("std",)

    def __init__(
        self,
        model: Model,
        A: Tensor | Callable[[Tensor], Tensor],
        observation: Tensor,
        std: float,
        method: str = "mmps",
        *,
        iterations: int | None = None,
    ):
        super().__init__(model)
        model.needs_score("An observation")
        model.needs_own_units("An observation")
        self.observation: Tensor
        self.register_buffer("observation", _checked_observation(observation))
        self.A, self.std = _checked_operator(A), _checks.real("std", std, 0, strict=True)
        self.method = _checks.choice("method", method, METHODS)
        self.iterations = _checked_iterations(iterations, method, self.observation.numel())

    def change(self, D: Slope, y: Tensor, u: Tensor, r: Tensor, t: Tensor, cond: Mapping[str, object]) -> Tensor:
        """D - u/(1-u) J^T A^T S^-1 (z - A x_hat)."""
        _check_fit(self.A, y, self.observation)
        with differentiated(y, several=True) as (state, keep):
            slope = D(state, cond=cond)
            seen = _observed(self.A, x_hat := state - u * slope)
            misfit = self.observation.to(y) - seen
            if self.method == "dps":
                weights = misfit / self.std**2
            else:
                weights = _solved(self._covariance(seen, x_hat, state, u, keep), misfit, self.iterations)
            (gradient,) = torch.autograd.grad(seen, state, weights, create_graph=keep)
        changed = slope - u / (1 - u) * gradient
        return changed if keep else changed.detach()

    def _covariance(self, seen: Tensor, x_hat: Tensor, state: Tensor, u: Tensor, keep: bool) -> Operator:
        """w to S w, of "mmps" or "pigdm"."""
        behind, q = (state, u**2 / (1 - u)) if self.method == "mmps" else (x_hat, u**2 / ((1 - u) ** 2 + u**2))
        forward = _forward(seen, x_hat, keep)

        def S(w: Tensor) -> Tensor:  # noqa: N802  # the formula's letter
            (back,) = torch.autograd.grad(seen, behind, w, retain_graph=True, create_graph=keep)  # A^T w, or J^T A^T w
            return self.std**2 * w + forward(q * back)

        return S


class _Matrix(nn.Module):
    """A (m, d), applied to flattened events."""

    def __init__(self, A: Tensor):
        super().__init__()
        self.register_buffer("matrix", A)
        self.matrix: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """A x, (B, m)."""
        return x.flatten(1) @ self.matrix.to(x).mT


def _forward(seen: Tensor, x_hat: Tensor, keep: bool) -> Operator:
    """v to A v, the derivative at x_hat: that of w . A v, which a backward pass gives, with respect to w."""
    w = torch.zeros_like(seen, requires_grad=True)
    (back,) = torch.autograd.grad(seen, x_hat, w, create_graph=True)

    def forward(v: Tensor) -> Tensor:
        return torch.autograd.grad(back, w, v, retain_graph=True, create_graph=keep)[0]

    return forward


def _observed(observe: Operator, x: Tensor) -> Tensor:
    """A x, by kernels that can be differentiated twice, in the precision of a module's own weights."""
    with twice_differentiable():
        seen = observe(x.to(dtype_of(observe, x.dtype)))
    return seen.to(x.dtype) if isinstance(seen, Tensor) else seen


def _solved(S: Operator, b: Tensor, iterations: int) -> Tensor:
    """S^-1 b for every sample, by conjugate gradients; a row stops where rounding is left or S is not positive.

    Where more is left in the end than there was, since S is not symmetric, the step that left the least counts.
    """
    x, rest = torch.zeros_like(b), b
    best, direction = x, rest
    whole = size = fewest = _dot(rest, rest)
    least = torch.finfo(b.dtype).eps ** 2 * whole.detach()
    going = size > least
    for _ in range(iterations):
        image = S(direction)
        curvature = _dot(direction, image)
        going = going & (curvature > 0) & (size > least)
        step = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0)
        x, rest = x + step * direction, rest - step * image
        left = _dot(rest, rest)
        direction = rest + torch.where(going, left / torch.where(going, size, 1.0), 0.0) * direction
        best, fewest = torch.where(left < fewest, x, best), torch.minimum(left, fewest)
        size = left
    return torch.where(size > whole, best, x)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The product of each sample's values, (B, 1, ...)."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdim=True) if a.ndim > 1 else a * b


def _checked_operator(A: object) -> Callable[[Tensor], Tensor]:
    if isinstance(A, Tensor) or not callable(A):
        table = _checks.numbers("A", A)[0]
        if table.ndim != 2 or not bool(torch.isfinite(table).all()):
            raise ValueError(f"A must be a finite matrix (m, d) or a callable, and it has shape {tuple(table.shape)}.")
        return _Matrix(table)
    return A


def _checked_iterations(iterations: int | None, method: str, values: int) -> int:
    if iterations is not None:
        return _checks.whole("iterations", iterations)
    return min(values, MOST) if method == "pigdm" else values if values <= FEW else 1


def _checked_observation(z: object) -> Tensor:
    table, _ = _checks.numbers("observation", z)
    if not table.numel() or not bool(torch.isfinite(table).all()):
        raise ValueError(f"observation must hold finite numbers, at least one, and it is {table.tolist()}.")
    return table


def _check_fit(observe: Callable[[Tensor], Tensor], y: Tensor, z: Tensor) -> None:
    """A ValueError unless A takes such events, and gives what was observed; tried on one, before the network is."""
    if not len(y):
        return
    if isinstance(observe, _Matrix) and observe.matrix.shape[1] != event_size(y.shape):
        raise ValueError(
            f"A has {observe.matrix.shape[1]} columns, and an event {tuple(y.shape[1:])} has "
            f"{event_size(y.shape)} values."
        )
    with torch.enable_grad():
        seen = _observed(observe, y[:1].detach().clone().requires_grad_(True))
    if not isinstance(seen, Tensor) or seen.shape != (1, *z.shape):
        got = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
        raise ValueError(f"For one event A must give (1, *observed), here {(1, *z.shape)}, and it gives {got}.")
    if not seen.requires_grad:
        raise ValueError("A blocks gradients, or does not look at the event: what it gives has none in x.")
