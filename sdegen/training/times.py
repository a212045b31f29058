"""Time samplers: how a loss draws t.

A sampler is a value, called as sampler(path, n, generator, dtype, device); it returns n times and their importance
weights, the density of uniform time over the density they were drawn from, both (n,).

Variational Diffusion Models, Kingma et al., 2021, arXiv:2107.00630; Ho et al., 2020, arXiv:2006.11239 (the chain's).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators, uniform
from sdegen.paths.gaussian import GaussianPath

Times = Callable[[GaussianPath, int, Generators, torch.dtype, torch.device], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class UniformTimes:
    """Independent uniform times between the ends of the path, the data end itself left out."""

    def __call__(
        self, path: GaussianPath, n: int, generator: Generators, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """n times and their importance weights, both (n,)."""
        fraction = uniform(n, generator, dtype, device)
        return path.t_data + (path.t_noise - path.t_data) * fraction, torch.ones_like(fraction)


@dataclass(frozen=True)
class LowDiscrepancyTimes:
    """Uniform times spread evenly over the batch: i/n + U mod 1 with one U for all.

    Lowers the variance of the loss at no cost. Kingma et al., 2021, arXiv:2107.00630.
    """

    def __call__(
        self, path: GaussianPath, n: int, generator: Generators, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """n times and their importance weights, both (n,)."""
        fraction = _spread(n, generator, dtype, device)
        return path.t_data + (path.t_noise - path.t_data) * fraction, torch.ones_like(fraction)


@dataclass(frozen=True)
class ChainTimes:
    """The times k/K of a chain, k uniform on 1 ... K: with them `loss` on an eps network is Ho et al.'s Algorithm 1.

    steps: K; may be left out on a `DDPM` path. Ho et al., 2020, arXiv:2006.11239.
    """

    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            _checks.whole("steps", self.steps)

    def __call__(
        self, path: GaussianPath, n: int, generator: Generators, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """n times and their importance weights, both (n,)."""
        steps = self.steps or path.steps
        if steps is None:
            raise ValueError(f"ChainTimes needs steps on {path!r}, which has no chain of its own.")
        k = torch.ceil(steps * uniform(n, generator, dtype, device))
        return path.t_data + (path.t_noise - path.t_data) * (k / steps), torch.ones_like(k)


@dataclass(frozen=True)
class LikelihoodTimes:
    """Times whose log-SNR is uniform between the clocks u_min and u_max: importance sampling for `LikelihoodWeighting`.

    The product of that weight and the importance weight is then the constant (lambda_max - lambda_min)/2, on any path.
    Low-discrepancy as `LowDiscrepancyTimes`. u_min must be positive, since log-SNR is infinite at u = 0; both are cut
    to the path's ends. Raises ValueError unless 0 < u_min < u_max < 1.
    """

    u_min: float = 1e-3
    u_max: float = 0.999

    def __post_init__(self) -> None:
        _checks.real("u_min", self.u_min, 0, 1, strict=True)
        _checks.real("u_max", self.u_max, self.u_min, 1, strict=True)

    def __call__(
        self, path: GaussianPath, n: int, generator: Generators, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """n times and their importance weights, both (n,)."""
        if not path.has_score:
            raise ValueError(f"The likelihood weight is a score's, and on {path!r} there is none.")
        ends = torch.tensor([max(self.u_min, path.ends[0]), min(self.u_max, path.ends[1])], dtype=torch.float64)
        if ends[0] >= ends[1]:
            raise ValueError(
                f"{self!r} does not meet {path!r}, whose clock runs from {path.ends[0]} to {path.ends[1]}."
            )
        high, low = (2 * torch.log((1 - ends) / ends)).tolist()
        fraction = _spread(n, generator, dtype, device)
        t = path.time(torch.sigmoid(-0.5 * (high + (low - high) * fraction)))
        rate = (path.diffusion(t) / path.sigma(t)) ** 2  # |d lambda / dt|, the density of t up to its integral
        return t, (high - low) / (rate * abs(path.t_noise - path.t_data))


def _spread(n: int, generator: Generators, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 - (i/n + U mod 1), i = 0 ... n-1, on (0, 1]: even over the batch, and every row uniform by itself.

    One U for all, from the first generator where there are several.
    """
    first = generator[:1] if isinstance(generator, (list, tuple)) else generator
    shift = uniform(1, first, dtype, device)
    return 1 - torch.remainder(torch.arange(n, dtype=shift.dtype, device=device) / max(n, 1) + shift, 1)
