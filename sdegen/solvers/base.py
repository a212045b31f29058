"""The one ODE and the one SDE, in straight coordinates y = x_t/r, u = sigma/r.

With x_hat = E[x | y] and eps_hat = E[eps | y], on every path:

    ODE       dy/du = eps_hat - x_hat
    SDE       dy = [eps_hat - x_hat] du - gamma eps_hat |du| + w dW,    gamma = w^2 / (2u),    u falling or rising
    density   d log p / du = -div(eps_hat - x_hat) along the ODE

Every profile w(u) >= 0 keeps every marginal. The default w^2 = eta^2 2u / max(1-u, 0.1) is Anderson's reverse SDE at
eta = 1 for u <= 0.9, is finite at u = 1, and gives gamma = eta^2 / max(1-u, 0.1), finite at u = 0.
Both right-hand sides are combinations c x_hat + d eps_hat, which is all that is ever asked of a model.

Reverse-time diffusion equation models, Anderson, 1982; Song et al., 2021, arXiv:2011.13456;
FFJORD, Grathwohl et al., 2019, arXiv:1810.01367.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._shapes import Generators, event_size, signs, sum_event
from sdegen.models.model import Model, Query

PROBES_AT_ONCE = 16
"""Products with the Jacobian in one backward pass: more take more memory and are not faster."""
CHECK_EVERY = 32
"""Steps between two looks at whether the state is still finite: each look waits for the device."""


@dataclass(frozen=True)
class Hutchinson:
    """Estimate a divergence by `probes` Rademacher vectors z, drawn once for the whole solve: mean of z . J z.

    The estimate of a log-density is unbiased, with a standard deviation that falls like 1/sqrt(probes) and is of the
    order of a nat for one probe. A Stochastic Estimator of the Trace of the Influence Matrix, Hutchinson, 1989.
    """

    probes: int = 1

    def __post_init__(self) -> None:
        _checks.whole("probes", self.probes)


@dataclass
class Problem:
    """One initial value problem: `y` (B, *event) at clock u_from, wanted at u_to. What every solver is handed."""

    model: Model
    y: Tensor
    u_from: float
    u_to: float
    cond: Mapping[str, object] = field(default_factory=dict)
    noise: Tensor | Callable[[int], Tensor] | None = None
    generator: Generators = None
    trajectory: bool = False
    progress: bool = False
    probes: Tensor | None = None
    chunk: int = 1

    def bar(self, total: int | None) -> AbstractContextManager[Callable[[], object]]:
        """A function to call after every step; it moves a progress bar if one was asked for."""
        return bar(total, self.progress)


@contextmanager
def bar(total: int | None, progress: bool) -> Iterator[Callable[[], object]]:
    """A function to call after every one of `total` steps, which moves a bar where `progress` is wanted."""
    if not progress:
        yield lambda: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm; install it with `pip install tqdm`.") from error
    with tqdm(total=total, unit="step") as shown:
        yield shown.update


@dataclass
class Path:
    """What a solver returns: the end point, and on request every step's state, with the cost."""

    y: Tensor
    u: list[float]
    states: list[Tensor] = field(default_factory=list)
    times: list[float] | None = None
    divergence: Tensor | None = None
    calls: int = 0
    accepted: int = 0
    rejected: int = 0
    error: Tensor | None = None


@dataclass(frozen=True)
class NoiseProfile:
    """w(u) and gamma(u) = w^2 / (2u) on float64 tensors of u: the default of level `eta`, or the user's `own` w."""

    eta: float = 1.0
    own: Callable[[Tensor], Tensor] | None = None

    def gamma(self, u: Tensor) -> Tensor:
        """w^2 / (2u), as its limit where u = 0; a ValueError if there is none."""
        if self.own is None:
            return self.eta**2 / torch.clamp(1 - u, min=0.1)
        gammas = [self.w(near) ** 2 / (2 * near) for near in (torch.clamp(u, min=1e-12), torch.clamp(u, min=1e-9))]
        if bool((gammas[0] > 1.1 * gammas[1] + 1e-6).any()):
            raise ValueError(
                "w(u)^2 / u grows without bound at u = 0, where this solver needs it; let w fall like sqrt(u)."
            )
        return gammas[0]

    def w(self, u: Tensor) -> Tensor:
        """The noise level."""
        if self.own is None:
            return torch.sqrt(2 * u * self.gamma(u))
        value = self.own(u)
        if not isinstance(value, Tensor) or value.shape != u.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"w must map a tensor u of shape {tuple(u.shape)} to w(u) of that shape, and it gave {got}."
            )
        wrong = torch.nonzero(~((value >= 0) & torch.isfinite(value)))
        if len(wrong):
            i = tuple(wrong[0].tolist())
            raise ValueError(f"w(u) must be finite and non-negative, and w({float(u[i]):g}) = {float(value[i])}.")
        return value.detach().to(u)


def draw_probes(y: Tensor, trace: Hutchinson | None, generator: Generators) -> Tensor:
    """Probes (P, B, d), div = sum over p of z_p . J z_p: the d unit vectors if `trace` is None, else signs/sqrt(P)."""
    B, d = y.shape[0], event_size(y.shape)
    if trace is None:
        return torch.eye(d, dtype=y.dtype, device=y.device)[:, None].expand(d, B, d)
    z = signs((B, trace.probes, d), generator, y.dtype, y.device)
    return z.transpose(0, 1) / trace.probes**0.5


def drift_and_divergence(
    model: Model, y: Tensor, query: Query, cond: Mapping[str, object], probes: Tensor, chunk: int = 1
) -> tuple[Tensor, Tensor]:
    """The answer to `query` (B, *event) and its divergence (B,): one network call, and a product for every probe.

    `chunk` products are taken in one backward pass.
    """
    with torch.enable_grad():
        y = y.detach().requires_grad_(True)
        value = model.estimate(y, query, cond)
    divergence = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for start in range(0, len(probes), chunk):
        z = probes[start : start + chunk].unflatten(2, y.shape[1:])
        last = start + chunk >= len(probes)
        if chunk == 1:
            (product,) = torch.autograd.grad(value, y, z[0], retain_graph=not last)
        else:
            (product,) = torch.autograd.grad(value, y, z, retain_graph=not last, is_grads_batched=True)
        divergence += (product * z).flatten(-y.ndim + 1).sum(-1).reshape(-1, len(y)).sum(0)
    return value.detach(), divergence


def check_differentiable(problem: Problem) -> None:
    """Refuse a network that hides its gradient: compare z . J z with a finite difference at clocks all along the path.

    A few samples are enough, but a network with conditions sees the whole batch: only it knows what belongs to whom.
    """
    rows = problem.y if problem.cond else problem.y[:8]
    coin = torch.Generator().manual_seed(0)
    z, noise = (signs(tuple(rows.shape), coin, rows.dtype, torch.device("cpu")).to(rows.device) for _ in range(2))
    fractions = torch.tensor([0.02, 0.1, 0.5, 0.9, 0.98], dtype=torch.float64)
    u = problem.u_from + (problem.u_to - problem.u_from) * fractions
    queries = problem.model.plan(rows, u, None, -torch.ones_like(u), torch.ones_like(u))
    for clock, query in zip(u.tolist(), queries, strict=True):
        y = (1 - clock) * rows + clock * noise  # a state typical of this clock, where the network was trained
        _check_gradient_at(problem, y, z, query, clock)


def _check_gradient_at(problem: Problem, y: Tensor, z: Tensor, query: Query, clock: float) -> None:
    def field_at(y: Tensor) -> Tensor:
        return problem.model.estimate(y, query, problem.cond)

    value, product = drift_and_divergence(problem.model, y, query, problem.cond, z.flatten(1)[None])
    again = field_at(y)
    if bool((again - value).abs().sum() > 0.01 * value.abs().sum()):
        raise ValueError(
            "The network gives two different answers to one question: is there dropout that eval() misses?"
        )
    dtype = problem.model.working_dtype(y.dtype)
    steps, tolerance = _DIFFERENCES.get(dtype, ((0.3, 0.1), 0.3))
    scale = max(1.0, float(y.square().mean().sqrt()))
    for h in (scale * step for step in steps):
        difference = sum_event(z * (field_at(y + h * z) - field_at(y - h * z))) / (2 * h)
        rounding = 4 * torch.finfo(dtype).eps * (sum_event(value.abs()) / h + product.abs())
        gap = (product - difference).abs().sum()
        if bool(gap <= (tolerance * (product.abs() + difference.abs()) + rounding).sum()):
            return  # an honest network agrees at one of these steps, however rough it is; one that hides at none
    _checks.finite_state(difference[:, None], clock)
    raise ValueError(
        "The network blocks gradients with respect to its input (torch.no_grad, detach, or a conversion out of torch): "
        f"z . J z is {float(product.sum()):.4g} by autograd and {float(difference.sum()):.4g} by finite differences, "
        "so its log-density would be wrong."
    )


_DIFFERENCES = {torch.float64: ((1e-3, 1e-5), 1e-3), torch.float32: ((1e-2, 1e-3, 1e-4), 1e-2)}
"""Finite-difference steps and the relative disagreement allowed, by the network's precision (half has its own)."""


def products_at_once(problem: Problem) -> int:
    """PROBES_AT_ONCE if the network's backward pass can be batched, else 1: some fused kernels cannot."""
    rows = slice(None) if problem.cond else slice(1)
    y, one = problem.y[rows], torch.ones(1, dtype=torch.float64)
    (query,) = problem.model.plan(y, 0.5 * (problem.u_from + problem.u_to) * one, None, -one, one)
    try:
        drift_and_divergence(problem.model, y, query, problem.cond, problem.probes[:2, rows], 2)
    except RuntimeError:
        return 1
    return PROBES_AT_ONCE


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module of the model in eval mode (dropout off, batch statistics frozen), and back as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
