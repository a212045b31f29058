"""Closed-form targets: Gaussians and their mixtures, exact on every path: the oracle of every test.

Data x ~ sum_i w_i N(m_i, S_i). In straight coordinates y = (1-u) x + u eps, so with q = 1-u

    y ~ sum_i w_i N(q m_i, V_i),   V_i = q^2 S_i + u^2           rho_i proportional to w_i N(y; q m_i, V_i)
    E[x | y] = sum_i rho_i [m_i + q S_i V_i^-1 (y - q m_i)]                E[eps | y] = sum_i rho_i u V_i^-1 (y - q m_i)

Noise is isotropic, so everything is computed per eigenvalue of S_i; many isotropic components take matrix products
instead (products.py). The path enters only through y = x_t/r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators, as_time, normal
from sdegen.models.base import Model, Number, Query
from sdegen.models.products import Isotropic
from sdegen.paths.gaussian import GaussianPath

Numbers = npt.ArrayLike | Tensor


class Components(NamedTuple):
    """What a mixture is made of, in one dtype and on one device.

    Attributes:
        log_weights: (K,).
        means: (K, d).
        variances: (K, 1) or (K, d), along the axes or along the columns of `rotations`.
        rotations: orthonormal eigenvectors (K, d, d) of full covariances, None without them.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    rotations: Tensor | None


class GaussianMixture:
    """sum_i w_i N(m_i, S_i) on events of any shape, with its exact model on any path.

    `.sample(n)`, `.log_prob(x)` in nats, `.model(path)`: exact score and predictions, `.marginal(path, t)`: the law of
    x_t. Differentiable in x; computes in the dtype and on the device of x. Numbers and lists are read
    in float64; samples have the dtype of the means, torch's default for a list.

    Args:
        means: (K, *event).
        stds: a number, (K,) or (K, d) with d values an event: isotropic or diagonal components.
        weights: (K,), positive, normalised here; equal by default.
        covariances: (K, d, d) instead of `stds`, or (d, d) shared by all components. What rounding leaves of their
            asymmetry is averaged away.

    Raises:
        TypeError: for what is no array of real numbers.
        ValueError: for shapes that do not match, stds or weights that are not positive, covariances that are not
            symmetric positive definite.

    Examples:
        >>> law = sdegen.GaussianMixture([[-1.0], [1.0]], 0.1)
        >>> law.sample(1000).shape
        torch.Size([1000, 1])
        >>> f"{law.log_prob(torch.tensor([[1.0]])).item():.4f}"  # log 1/2 - log(0.1 sqrt(2 pi))
        '0.6905'
    """

    def __init__(
        self,
        means: Numbers,
        stds: Numbers | None = None,
        weights: Numbers | None = None,
        *,
        covariances: Numbers | None = None,
    ):
        m, self.dtype = _as_tensor("means", means)
        if m.ndim < 2 or m.numel() == 0:
            raise ValueError(f"means must have shape (K, *event), K at least 1, and they have {tuple(m.shape)}.")
        self.event_shape, self.device = tuple(m.shape[1:]), m.device
        self._means = m.flatten(1)
        K, d = self._means.shape
        self._log_weights = _log_weights(weights, K, m.device)
        self._variances: Tensor
        self._rotations: Tensor | None = None
        if stds is not None and covariances is None:
            self._variances = _stds(stds, K, d, m.device) ** 2
        elif covariances is not None and stds is None:
            self._variances, self._rotations = _eigen(covariances, K, d, m.device)
        else:
            raise ValueError("Give either stds or covariances, and exactly one of them.")
        self._cast: dict[tuple[torch.dtype, torch.device], Components] = {}
        self._isotropic: dict[tuple[torch.dtype, torch.device], Isotropic | None] = {}

    def __getstate__(self) -> dict[str, object]:
        """Without the tables that are cast and computed when first asked for."""
        return {**vars(self), "_cast": {}, "_isotropic": {}}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._means)} components, event {self.event_shape})"

    def sample(self, n: int | Sequence[int], generator: Generators = None) -> Tensor:
        """Draws from the mixture, in the dtype and on the device of the means.

        Args:
            n: how many, or the whole shape (n, *event).
            generator: a torch.Generator, or one per sample.

        Returns:
            A tensor (n, *event).

        Raises:
            TypeError: for a number or generators of another kind.
            ValueError: for another event, or generators of another number or device.

        Examples:
            >>> sdegen.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.1).sample(5).shape
            torch.Size([5, 2])
        """
        shape = tuple(n) if isinstance(n, (tuple, list)) else (n, *self.event_shape)
        if shape[1:] != self.event_shape:
            raise ValueError(f"An event has shape {self.event_shape}, and {shape} was asked for.")
        size = _checks.whole("n", shape[0], least=0)
        _checks.generators(generator, size, self.device)
        if generator is None or isinstance(generator, torch.Generator):
            return self._draw(size, generator).reshape(size, *self.event_shape)
        rows = [self._draw(1, g) for g in generator]
        return torch.cat([self._draw(0, None), *rows]).reshape(size, *self.event_shape)

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """n samples as rows (n, d), from one generator."""
        _, means, variances, rotations = self._on(self.dtype, self.device)
        weights = self._log_weights.exp()
        which = torch.multinomial(weights, n, True, generator=generator) if n else weights.new_zeros(0).long()
        z = normal((n, means.shape[1]), generator, self.dtype, self.device) * variances.sqrt().expand_as(means)[which]
        if rotations is not None:
            z = torch.einsum("ndj,nj->nd", rotations[which], z)
        return means[which] + z

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of `x` (B, *event) in nats, shape (B,).

        Examples:
            >>> law = sdegen.GaussianMixture([[0.0]], 1.0)
            >>> f"{law.log_prob(torch.zeros(1, 1)).item():.4f}"  # -log sqrt(2 pi)
            '-0.9189'
        """
        self._check(x)
        products = self._products(x)
        if products is not None:
            return products.log_prob(x.flatten(1))
        z, variances, log_weights = self._whiten(x, 0.0)
        return torch.logsumexp(_log_components(z, variances, log_weights), 1)

    def model(self, path: GaussianPath) -> Model:
        """The exact model on `path`: its predictions are conditional expectations, with no error at all.

        Examples:
            >>> model = sdegen.GaussianMixture([[-1.0], [1.0]], 0.1).model(sdegen.VPSDE())
            >>> f"{model.score(torch.zeros(1, 1), 0.5).abs().item():.4f}"  # by symmetry
            '0.0000'
        """
        return ExactModel(self, path)

    def marginal(self, path: GaussianPath, t: float) -> GaussianMixture:
        """The law of x_t = alpha x + sigma eps, a mixture again.

        Args:
            path: a Gaussian path.
            t: one time of it, the path's own: `path.t_data` at the data, `path.t_noise` at the noise.

        Returns:
            sum_i w_i N(alpha m_i, alpha^2 S_i + sigma^2).

        Raises:
            TypeError: for a path or a time of another kind.
            ValueError: for a time off the path, more than one, or a path with another source.

        Examples:
            >>> law = sdegen.Gaussian([4.0], 1e-3).marginal(sdegen.CondOT(), 0.5)  # N(2, 0.25), nearly
            >>> f"{law.log_prob(torch.tensor([[2.0]])).item():.3f}"  # -log(0.5 sqrt(2 pi))
            '-0.226'
        """
        _check_path(path)
        if path.source is not None:
            raise ValueError(f"With the source of {path!r} the law of x_t is no mixture of Gaussians.")
        time = path.checked_times(as_time(t))
        if time.numel() != 1:
            raise ValueError(f"A marginal belongs to one time t, and t has shape {tuple(time.shape)}.")
        alpha, sigma = float(path.alpha(time)), float(path.sigma(time))
        law = GaussianMixture.__new__(GaussianMixture)
        law.event_shape, law.dtype, law.device = self.event_shape, self.dtype, self.device
        law._means, law._log_weights, law._rotations = alpha * self._means, self._log_weights, self._rotations
        law._variances = alpha**2 * self._variances + sigma**2
        law._cast, law._isotropic = {}, {}
        return law

    @property
    def least_variance(self) -> Tensor:
        """The smallest eigenvalue of any component's covariance, a scalar, float64: where log p bends most."""
        return self._variances.min()

    def _check(self, x: Tensor) -> None:
        _checks.batch("x", x, finite=False)
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.event_shape))}), not {tuple(x.shape)}.")

    def _on(self, dtype: torch.dtype, device: torch.device) -> Components:
        """The components in a dtype and on a device, cast once."""
        if (dtype, device) not in self._cast:
            with torch.inference_mode(False):  # a table cast inside inference mode would poison later gradients
                self._cast[dtype, device] = Components(
                    self._log_weights.clone().to(device, dtype),
                    self._means.clone().to(device, dtype),
                    self._variances.clone().to(device, dtype),
                    None if self._rotations is None else self._rotations.clone().to(device, dtype),
                )
        return self._cast[dtype, device]

    def _products(self, y: Tensor) -> Isotropic | None:
        """The components for matrix products in the dtype and on the device of `y`, where these are faster."""
        key = y.dtype, y.device
        if key not in self._isotropic:
            with torch.inference_mode(False):
                tables = (self._log_weights.clone(), self._means.clone(), self._variances.clone())
                found = Isotropic.of(*tables) if self._rotations is None else None
                self._isotropic[key] = found and found.to(y.device, y.dtype)
        return self._isotropic[key]

    def _whiten(self, y: Tensor, u: Number) -> tuple[Tensor, Tensor, Tensor]:
        """y - q m_i in the eigenbasis (B, K, d), V_i (broadcasting against it) and the log-weights."""
        log_weights, means, variances, rotations = self._on(y.dtype, y.device)
        z = y.flatten(1)[:, None] - (1 - u) * means
        if rotations is not None:
            z = torch.einsum("bkd,kdj->bkj", z, rotations)
        return z, (1 - u) ** 2 * variances + u**2, log_weights


class Gaussian(GaussianMixture):
    """N(mean, std^2 I), N(mean, diag std^2) or N(mean, covariance): a mixture of one.

    Args:
        mean: (*event).
        std: a number or (d,).
        covariance: (d, d), instead of `std`.

    Raises:
        TypeError: as in `GaussianMixture`.
        ValueError: as in `GaussianMixture`, and for a mean that is a number.

    Examples:
        >>> law = sdegen.Gaussian([0.0, 0.0], 1.0)
        >>> f"{law.log_prob(torch.zeros(1, 2)).item():.4f}"  # -log(2 pi)
        '-1.8379'
        >>> law.marginal(sdegen.VPSDE(), 0.5).log_prob(torch.zeros(1, 2)).round(decimals=4)  # the path keeps N(0, I)
        tensor([-1.8379])
    """

    def __init__(self, mean: Numbers, std: Numbers | None = None, *, covariance: Numbers | None = None):
        m, dtype = _as_tensor("mean", mean)
        if m.ndim == 0:
            raise ValueError(f"mean must have the shape of one event, such as (d,), and it is the scalar {float(m)}.")
        if std is not None:
            s, _ = _as_tensor("std", std)
            std = s if s.ndim == 0 else s[None]
        super().__init__(m[None], std, covariances=covariance)
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"Gaussian(event {self.event_shape})"

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
        _check_path(path)
        if not path.has_score:
            raise ValueError(f"The exact model is that of data and independent Gaussian noise, which {path!r} is not.")
        self.mixture = mixture
        self.path = path

    def extra_repr(self) -> str:
        """The target and the path, for printing."""
        return f"{self.mixture!r}, {self.path!r}"

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
        products = self.mixture._products(y)
        if products is not None:
            numbers = (n.reshape(-1, 1) if isinstance(n, Tensor) else n for n in query.numbers)
            return products.answer(y.flatten(1), *numbers).reshape(y.shape)
        u, c, du = (n.reshape(-1, 1, 1) if isinstance(n, Tensor) else n for n in query.numbers[:3])
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


def _check_path(path: object) -> None:
    """A TypeError unless `path` is one."""
    if not isinstance(path, GaussianPath):
        raise TypeError(f"path must be a GaussianPath such as VPSDE(), and it is {_checks.described(path)}.")


def _as_tensor(name: str, value: Numbers) -> tuple[Tensor, torch.dtype]:
    """The finite numbers in `value`, in float64, and the floating dtype they came in."""
    x, dtype = _checks.numbers(name, value)
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} must be finite, and they are {x.tolist()}.")
    return x, dtype


def _log_weights(weights: Numbers | None, K: int, device: torch.device) -> Tensor:
    """Logarithms of the normalised weights, (K,)."""
    if weights is None:
        return torch.full((K,), -math.log(K), dtype=torch.float64, device=device)
    w = _as_tensor("weights", weights)[0].to(device)
    if w.shape != (K,) or not (w > 0).all():
        raise ValueError(f"weights must be {K} positive numbers, and they are {w.tolist()}.")
    return torch.log(w / w.sum())


def _stds(stds: Numbers, K: int, d: int, device: torch.device) -> Tensor:
    """Standard deviations of shape (K, 1) or (K, d)."""
    s = _as_tensor("stds", stds)[0].to(device)
    if s.shape not in ((), (K,), (K, d)) or not (s > 0).all():
        raise ValueError(f"stds must be positive and have shape (), ({K},) or ({K}, {d}), and they are {s.tolist()}.")
    return s if s.ndim == 2 else s.expand(K)[:, None]


def _eigen(covariances: Numbers, K: int, d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Eigenvalues (K, d) and orthonormal eigenvectors (K, d, d) of covariances (d, d) or (K, d, d)."""
    S, dtype = _as_tensor("covariances", covariances)
    if S.shape[-2:] != (d, d) or S.shape[:-2] not in ((), (K,)):
        raise ValueError(f"covariances must have shape ({K}, {d}, {d}) or ({d}, {d}), not {tuple(S.shape)}.")
    rounding = max(1e-6, torch.finfo(dtype).eps ** 0.5)  # half the digits: an inverse loses many
    apart = (S - S.mT).abs()
    if not float(apart.max()) <= rounding * float(S.abs().max()):
        *_, i, j = torch.unravel_index(apart.argmax(), apart.shape)
        raise ValueError(
            f"covariances must be symmetric, and the entries [{i}, {j}] and [{j}, {i}] of one differ by "
            f"{float(apart.max()):.3g}, where its largest entry is {float(S.abs().max()):.3g}."
        )
    values, vectors = torch.linalg.eigh(0.5 * (S + S.mT).to(device).expand(K, d, d))
    if not (values > 0).all():
        raise ValueError(f"covariances must be positive definite, and the least eigenvalue is {values.min():.3g}.")
    return values, vectors
