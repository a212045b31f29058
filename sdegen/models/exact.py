"""Closed-form targets: Gaussians and their mixtures, exact on every path: the oracle of every test.

Data x ~ sum_i w_i N(m_i, S_i). In straight coordinates y = (1-u) x + u eps, so with q = 1-u

    y ~ sum_i w_i N(q m_i, V_i),   V_i = q^2 S_i + u^2           rho_i proportional to w_i N(y; q m_i, V_i)
    E[x | y] = sum_i rho_i [m_i + q S_i V_i^-1 (y - q m_i)]                E[eps | y] = sum_i rho_i u V_i^-1 (y - q m_i)

Noise is isotropic, so everything is computed per eigenvalue of S_i. The path enters only through y = x_t/r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import as_time
from sdegen.models.base import Model, Query
from sdegen.paths.gaussian import GaussianPath

Numbers = float | Sequence | Tensor


class GaussianMixture:
    """sum_i w_i N(m_i, S_i) on events of any shape, with its exact model on any path.

    means:       (K, *event).
    stds:        a float, (K,) or (K, d) with d values an event: isotropic or diagonal components.
    weights:     (K,), positive, normalised here; equal by default.
    covariances: (K, d, d) instead of `stds`, or (d, d) shared by all components.

    `.sample(n)`, `.log_prob(x)` in nats, `.model(path)`: exact score and predictions, `.marginal(path, t)`: the law of
    x_t. Differentiable in x; computes in the dtype and on the device of what it is given.
    Raises ValueError for shapes that do not match, stds or weights that are not positive, covariances that are not
    symmetric positive definite.
    """

    def __init__(
        self,
        means: Numbers,
        stds: Numbers | None = None,
        weights: Numbers | None = None,
        *,
        covariances: Numbers | None = None,
    ):
        means = _as_tensor("means", means)
        if means.ndim < 2 or means.numel() == 0:
            raise ValueError(f"means must have shape (K, *event), K at least 1, and they have {tuple(means.shape)}.")
        if (stds is None) == (covariances is None):
            raise ValueError("Give either stds or covariances, and exactly one of them.")
        self.event_shape = tuple(means.shape[1:])
        self.dtype, self.device = means.dtype, means.device
        self._means = means.flatten(1).double()
        K, d = self._means.shape
        self._log_weights = _log_weights(weights, K, means.device)
        self._variances, self._rotations = (
            (_stds(stds, K, d, means.device) ** 2, None)
            if covariances is None
            else _eigen(_as_tensor("covariances", covariances).to(self._means), K, d)
        )
        self._cast = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._means)} components, event {self.event_shape})"

    def sample(self, n: int | Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, *event) in the dtype and on the device of the means; `n` may also be that whole shape."""
        if isinstance(n, (tuple, list)):
            if tuple(n[1:]) != self.event_shape:
                raise ValueError(f"An event has shape {self.event_shape}, and {tuple(n)} was asked for.")
            n = n[0]
        n = _checks.whole("n", n, least=0)
        _, means, variances, rotations = self._on(self.dtype, self.device)
        draw = {"generator": generator, "device": self.device}
        weights = self._log_weights.exp()
        which = torch.multinomial(weights, n, True, generator=generator) if n else weights.new_zeros(0).long()
        z = torch.randn(n, means.shape[1], dtype=self.dtype, **draw) * variances.sqrt().expand_as(means)[which]
        if rotations is not None:
            z = torch.einsum("ndj,nj->nd", rotations[which], z)
        return (means[which] + z).reshape(n, *self.event_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of `x` (B, *event) in nats, shape (B,)."""
        self._check(x)
        z, variances, log_weights = self._whiten(x, 0.0)
        return torch.logsumexp(_log_components(z, variances, log_weights), 1)

    def model(self, path: GaussianPath) -> Model:
        """The exact model on `path`: its predictions are conditional expectations, with no error at all."""
        return ExactModel(self, path)

    def marginal(self, path: GaussianPath, t: float) -> GaussianMixture:
        """The law of x_t = alpha x + sigma eps, a mixture again."""
        t = as_time(t)
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        law = GaussianMixture.__new__(GaussianMixture)
        law.event_shape, law.dtype, law.device = self.event_shape, self.dtype, self.device
        law._means, law._log_weights, law._rotations = alpha * self._means, self._log_weights, self._rotations
        law._variances = alpha**2 * self._variances + sigma**2
        law._cast = {}
        return law

    def _check(self, x: Tensor) -> None:
        _checks.batch("x", x, finite=False)
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.event_shape))}), not {tuple(x.shape)}.")

    def _on(self, dtype: torch.dtype, device: torch.device) -> list[Tensor | None]:
        """log-weights (K,), means (K, d), variances (K, d or 1) and rotations (K, d, d) or None, cast once."""
        if (dtype, device) not in self._cast:
            tables = (self._log_weights, self._means, self._variances, self._rotations)
            with torch.inference_mode(False):  # a table cast inside inference mode would poison later gradients
                self._cast[dtype, device] = [None if x is None else x.clone().to(device, dtype) for x in tables]
        return self._cast[dtype, device]

    def _whiten(self, y: Tensor, u: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y - q m_i in the eigenbasis (B, K, d), V_i (broadcasting against it) and the log-weights."""
        log_weights, means, variances, rotations = self._on(y.dtype, y.device)
        z = y.flatten(1)[:, None] - (1 - u) * means
        if rotations is not None:
            z = torch.einsum("bkd,kdj->bkj", z, rotations)
        return z, (1 - u) ** 2 * variances + u**2, log_weights


class Gaussian(GaussianMixture):
    """N(mean, std^2 I), N(mean, diag std^2) or N(mean, covariance): a mixture of one.

    mean: (*event). std: a float or (d,). covariance: (d, d).
    """

    def __init__(self, mean: Numbers, std: Numbers | None = None, *, covariance: Numbers | None = None):
        mean = _as_tensor("mean", mean)
        if mean.ndim == 0:
            raise ValueError(
                f"mean must have the shape of one event, such as (d,), and it is the scalar {float(mean)}."
            )
        if std is not None:
            std = _as_tensor("std", std)
            std = std if std.ndim == 0 else std[None]
        if covariance is not None:
            covariance = _as_tensor("covariance", covariance)[None]
        super().__init__(mean[None], std, covariances=covariance)

    @property
    def mean(self) -> Tensor:
        """The mean of a flattened event, (d,), float64."""
        return self._means[0]

    @property
    def spectrum(self) -> Tensor:
        """The d eigenvalues of the covariance, float64."""
        return self._variances[0].expand(self._means.shape[1])

    @property
    def entropy(self) -> float:
        """Differential entropy in nats: the least cross-entropy that any model can reach on this data."""
        return float(0.5 * (torch.log(self.spectrum) + math.log(2 * math.pi * math.e)).sum())


class ExactModel(Model):
    """The model of a `GaussianMixture` on a path, finite at both ends of every path."""

    exact = True

    def __init__(self, mixture: GaussianMixture, path: GaussianPath):
        super().__init__()
        if not isinstance(path, GaussianPath):
            raise TypeError(f"path must be a GaussianPath such as VPSDE(), and it is {path!r}.")
        if not path.has_score:
            raise ValueError(f"The exact model is that of data and independent Gaussian noise, which {path!r} is not.")
        self.mixture = mixture
        self.path = path

    def on(self, path: GaussianPath) -> Model:
        """The exact model of the other path."""
        return ExactModel(self.mixture, path)

    @property
    def clocks(self) -> tuple[float, float]:
        """Every clock there is."""
        return 0.0, 1.0

    @property
    def has_score(self) -> bool:
        """Always: the noise is Gaussian."""
        return True

    def working_dtype(self, default: torch.dtype) -> torch.dtype:
        """That of the state."""
        return default

    def query(self, u: Tensor, t: Tensor, c: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The clock itself: nothing here depends on the path."""
        return t, (u, c, d * u, e)

    def estimate(self, y: Tensor, query: Query, cond: Mapping[str, object]) -> Tensor:
        """sum_i rho_i [c m_i + (c q S_i + d u) V_i^-1 (y - q m_i)] + e y."""
        self.mixture._check(y)
        query = query.fitting(y)
        u, c, du = (n.reshape(-1, 1, 1) for n in query.numbers[:3])
        _, means, variances, rotations = self.mixture._on(y.dtype, y.device)
        z, V, log_weights = self.mixture._whiten(y, u)
        rho = torch.softmax(_log_components(z, V, log_weights), 1)[..., None]
        z = rho * (c * (1 - u) * variances + du) / V * z
        x = z.sum(1) if rotations is None else torch.einsum("bkj,kdj->bd", z, rotations)
        return (x + (rho * (c * means)).sum(1)).reshape(y.shape) + query.numbers[3] * y


def _log_components(z: Tensor, variances: Tensor, log_weights: Tensor) -> Tensor:
    """log w_i + log N(z; 0, variances_i) for z (B, K, d), shape (B, K)."""
    square = (z**2 / variances).sum(-1)
    log_det = (torch.log(variances) + math.log(2 * math.pi)).expand(*variances.shape[:-1], z.shape[-1]).sum(-1)
    return log_weights - 0.5 * (square + log_det)


def _as_tensor(name: str, value: Numbers) -> Tensor:
    x = torch.as_tensor(value)
    if not x.is_floating_point():
        if x.is_complex() or x.dtype is torch.bool:
            raise TypeError(f"{name} must hold real numbers, and they have dtype {x.dtype}.")
        x = x.to(torch.get_default_dtype())
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} must be finite, and they are {x.tolist()}.")
    return x.detach()


def _log_weights(weights: Numbers | None, K: int, device: torch.device) -> Tensor:
    if weights is None:
        return torch.full((K,), -math.log(K), dtype=torch.float64, device=device)
    w = _as_tensor("weights", weights).to(device, torch.float64)
    if w.shape != (K,) or not (w > 0).all():
        raise ValueError(f"weights must be {K} positive numbers, and they are {w.tolist()}.")
    return torch.log(w / w.sum())


def _stds(stds: Numbers, K: int, d: int, device: torch.device) -> Tensor:
    """Standard deviations of shape (K, 1) or (K, d)."""
    s = _as_tensor("stds", stds).to(device, torch.float64)
    if s.shape not in ((), (K,), (K, d)) or not (s > 0).all():
        raise ValueError(f"stds must be positive and have shape (), ({K},) or ({K}, {d}), and they are {s.tolist()}.")
    return s if s.ndim == 2 else s.expand(K)[:, None]


def _eigen(covariances: Tensor, K: int, d: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (K, d) and orthonormal eigenvectors (K, d, d) of covariances (d, d) or (K, d, d)."""
    if covariances.shape[-2:] != (d, d) or covariances.shape[:-2] not in ((), (K,)):
        raise ValueError(f"covariances must have shape ({K}, {d}, {d}) or ({d}, {d}), not {tuple(covariances.shape)}.")
    values, vectors = torch.linalg.eigh(covariances.expand(K, d, d))
    symmetric = torch.allclose(covariances, covariances.mT, rtol=1e-6, atol=1e-12)
    if not symmetric or not (values > 0).all():
        raise ValueError(
            f"covariances must be symmetric positive definite; the least eigenvalue is {values.min():.3g}."
        )
    return values, vectors
