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
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._shapes import Generators, event_size, signs, sum_event
from sdegen.models import Model, Query

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

    @contextmanager
    def bar(self, total: int | None) -> Iterator[Callable[[], object]]:
        """A function to call after every step; it moves a progress bar if one was asked for."""
        if not self.progress:
            yield lambda: None
            return
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("progress=True needs tqdm; install it with `pip install tqdm`.") from error
        with tqdm(total=total, unit="step") as bar:
            yield bar.update


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
    """w(u) and gamma(u) = w^2 / (2u) on float64 tensors of u: the default profile of level `eta`, or the user's `own` w."""

    eta: float = 1.0
    own: Callable[[Tensor], Tensor] | None = None

    def gamma(self, u: Tensor) -> Tensor:
        """w^2 / (2u), as its limit where u = 0; a ValueError if there is none."""
        if self.own is None:
            return self.eta**2 / torch.clamp(1 - u, min=0.1)
        gammas = [self.w(near) ** 2 / (2 * near) for near in (torch.clamp(u, min=1e-12), torch.clamp(u, min=1e-9))]
        if bool((gammas[0] > 2 * gammas[1] + 1e-6).any()):
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
    """Probes (P, B, d) with div = sum over p of z_p . J z_p: the d unit vectors if `trace` is None, else signs/sqrt(P)."""
    B, d = y.shape[0], event_size(y.shape)
    if trace is None:
        return torch.eye(d, dtype=y.dtype, device=y.device)[:, None].expand(d, B, d)
    z = signs((B, trace.probes, d), generator, y.dtype, y.device)
    return z.transpose(0, 1) / trace.probes**0.5


def drift_and_divergence(
    model: Model, y: Tensor, query: Query, cond: Mapping[str, object], probes: Tensor
) -> tuple[Tensor, Tensor]:
    """The answer to `query` (B, *event) and its divergence (B,), from one network call and one product a probe."""
    with torch.enable_grad():
        y = y.detach().requires_grad_(True)
        value = model.estimate(y, query, cond)
    divergence = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for i, z in enumerate(probes):
        z = z.reshape(y.shape)
        (product,) = torch.autograd.grad(value, y, z, retain_graph=i + 1 < len(probes))
        divergence += sum_event(product * z)
    return value.detach(), divergence


def check_differentiable(problem: Problem) -> None:
    """Refuse a network that hides its gradient: compare one product z . J z with a finite difference, half way."""
    y = problem.y[:8]
    cond = _first_rows(problem.cond, len(problem.y), len(y))
    u = 0.5 * (problem.u_from + problem.u_to)
    one = torch.ones(1, dtype=torch.float64)
    (query,) = problem.model.plan(y, u * one, None, -one, one)
    coin = torch.Generator().manual_seed(0)
    z, noise = (signs(tuple(y.shape), coin, y.dtype, torch.device("cpu")).to(y.device) for _ in range(2))
    y = (1 - u) * y + u * noise  # a state typical of u, so that the difference probes the network where it was trained

    def field_at(y: Tensor) -> Tensor:
        return problem.model.estimate(y, query, cond)

    _, product = drift_and_divergence(problem.model, y, query, cond, z.flatten(1)[None])
    # an honest network agrees at one of these steps, however rough it is; one that hides its gradient at none
    steps, tolerance = _DIFFERENCES.get(problem.model.working_dtype(y.dtype), ((0.3, 0.1), 0.3))
    for h in steps:
        difference = sum_event(z * (field_at(y + h * z) - field_at(y - h * z))) / (2 * h)
        size = (product.abs() + difference.abs() + 0.1 * event_size(y.shape)).sum()
        if bool((product - difference).abs().sum() <= tolerance * size):
            return
    _checks.finite_state(difference[:, None], u)
    raise ValueError(
        "The network blocks gradients with respect to its input (torch.no_grad, detach, or a conversion out of torch): "
        f"z . J z is {float(product.sum()):.4g} by autograd and {float(difference.sum()):.4g} by finite differences, so "
        "its log-density would be wrong."
    )


_DIFFERENCES = {torch.float64: ((1e-3, 1e-5), 1e-3), torch.float32: ((1e-2, 1e-3, 1e-4), 1e-2)}
"""Finite-difference steps and the relative disagreement allowed, by the network's precision; half precision has its own."""


def _first_rows(cond: Mapping[str, object], batch: int, rows: int) -> Mapping[str, object]:
    """The conditions of the first `rows` samples: tensors with a batch axis are cut, everything else is passed on."""
    return {
        name: value[:rows] if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch else value
        for name, value in cond.items()
    }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module of the model in eval mode (dropout off, batch statistics frozen), and back as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
