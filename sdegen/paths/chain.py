"""The DDPM chain as a path, and both directions of the bridge between betas and a continuous path.

    x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) e_k       t_k = k/K       B(t_k) = -sum over j <= k of log(1 - beta_j)

A variance-preserving SDE scales x by exp(-(B_k - B_{k-1})/2) from t_{k-1} to t_k, which is sqrt(1 - beta_k): the chain
is that SDE observed on its grid, whatever B does in between. Conversely beta_k = 1 - exp(-(B_k - B_{k-1})).

A chain may end in pure noise: with beta_K = 1 nothing of the data is left in x_K (zero terminal SNR). In that step

    alpha = alpha_{K-1} (1 - q)       sigma^2 = sigma_{K-1}^2 + alpha_{K-1}^2 q (2 - q)       q = K t - (K - 1)

so that B = B_{K-1} - 2 log(1 - q) is infinite at t = 1, while alpha and sigma have finite slopes up to there.

References:
    Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
    Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin et al., 2024, arXiv:2305.08891 (zero terminal
    SNR).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import as_time
from sdegen.paths.diffusions import CosineVPSDE, VariancePreserving
from sdegen.paths.gaussian import GaussianPath, Slopes

NEWTON_STEPS = 20
"""Enough for a monotone cubic to the last digit; a fixed number, so that no device is ever waited for."""
LAST_SLOPE = 2.0
"""dB/dq at the start of a last step of beta 1, where B = B_{K-1} - 2 log(1 - q)."""


class Knots(Tensor):
    """The clocks u that a chain visits, from noise to data, (steps + 1,): a tensor that carries its own start.

    A solver whose `grid` it is starts at the first of them, wherever the path ends. Slices of it and sums with it are
    plain tensors.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as nn.Parameter does it

    def __deepcopy__(self, memo: dict[int, object]) -> Knots:
        return self.clone().as_subclass(Knots)


class DDPM(VariancePreserving):
    """The discrete chain as a path.

    K betas, t_k = k/K, alpha(t_k)^2 = prod over j <= k of (1 - beta_j), sigma^2 = 1 - alpha^2

    With B(t_k) = -sum over j <= k of log(1 - beta_j) the chain is exactly this variance-preserving SDE observed on its
    grid. Between the knots B is linear, or with `smooth` a monotone cubic with a continuous slope (PCHIP). Only t(u),
    the time a network is shown, depends on it: where it has kinks, high-order solvers lose their order.

    The last beta may be 1, of a single one too: in that step alpha falls linearly to 0, and the path ends at u = 1,
    where a network for "v" or "data" can be asked and one for "eps" or "score" cannot.

    `DDPM.linear`, `DDPM.cosine` and `DDPM.from_path` give the usual chains; a network trained on the integers k is
    adapted with `ScoreModel(..., time=path.index)`. Two chains with the same betas and the same `smooth` are equal.

    Args:
        betas: K numbers in (0, 1), or 1 for the last; a tensor, array or list, kept in float64.
        smooth: interpolate by a monotone C1 cubic instead of straight lines; into a last step of beta 1 the slope is
            continuous as far as B stays monotone.

    Raises:
        TypeError: for betas that are not real numbers.
        ValueError: for betas outside (0, 1), the last one's 1 excepted; it names the first one.

    Examples:
        >>> path = sdegen.DDPM([0.1, 0.2, 0.5])
        >>> path.alpha(torch.tensor(1.0)) ** 2  # 0.9 * 0.8 * 0.5
        tensor(0.3600)
        >>> sdegen.DDPM.linear().steps
        1000

    References:
        Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
        Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin et al., 2024, arXiv:2305.08891.
        Monotone Piecewise Cubic Interpolation, Fritsch and Carlson, 1980.
    """

    steps: int

    def __init__(self, betas: Tensor | np.ndarray | Sequence[float], *, smooth: bool = False):
        if not isinstance(smooth, bool):
            raise TypeError(f"smooth must be True or False, and it is {smooth!r}.")
        self.betas = _checked_betas(betas)
        self.steps = len(self.betas)
        self.smooth = smooth
        self._ends_in_noise = bool(self.betas[-1] == 1)
        gains = -torch.log1p(-self.betas)
        knots = np.concatenate([[0.0], np.cumsum(gains.numpy(), dtype=np.longdouble)]).astype(np.float64)
        self._tables = {"cpu": (torch.from_numpy(knots), _coefficients(knots, smooth))}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DDPM) and self.smooth == other.smooth and torch.equal(self.betas, other.betas)

    def __hash__(self) -> int:
        return hash((self.smooth, self.betas.numpy().tobytes()))

    @classmethod
    def linear(
        cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, *, smooth: bool = False
    ) -> DDPM:
        """Ho et al.'s schedule: betas evenly spaced.

        Args:
            steps: K, the number of betas.
            beta_start: the first of them, in (0, 1).
            beta_end: the last of them, in (0, 1).
            smooth: as in `DDPM`.

        Returns:
            The chain.

        Raises:
            ValueError: for a beta outside (0, 1).

        Examples:
            >>> path = sdegen.DDPM.linear(1000)
            >>> f"{path.betas[0]:.4f} {path.betas[-1]:.4f}"  # Ho et al.'s
            '0.0001 0.0200'

        References:
            Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
        """
        steps = _checks.whole("steps", steps)
        start, end = (
            _checks.real(name, beta, 0, 1, strict=True)
            for name, beta in (("beta_start", beta_start), ("beta_end", beta_end))
        )
        return cls(torch.linspace(start, end, steps, dtype=torch.float64), smooth=smooth)

    @classmethod
    def cosine(cls, steps: int = 1000, *, s: float = 0.008, max_beta: float = 0.999, smooth: bool = False) -> DDPM:
        """Nichol and Dhariwal's schedule: `CosineVPSDE(s)` on its grid, every beta cut to `max_beta`.

        Args:
            steps: K, the number of betas.
            s: the schedule's offset.
            max_beta: the largest beta there may be; without the cut the last one would be 1.
            smooth: as in `DDPM`.

        Returns:
            The chain.

        Examples:
            >>> path = sdegen.DDPM.cosine(1000)
            >>> f"{path.betas[-1]:.3f}"  # held at max_beta
            '0.999'

        References:
            Improved Denoising Diffusion Probabilistic Models, Nichol and Dhariwal, 2021, arXiv:2102.09672.
        """
        return cls.from_path(CosineVPSDE(s), steps, max_beta=max_beta, smooth=smooth)

    @classmethod
    def from_path(cls, path: GaussianPath, steps: int, *, max_beta: float | None = None, smooth: bool = False) -> DDPM:
        """The chain that *is* a variance-preserving `path` on the grid uniform in time, with no error at any K.

        beta_k = 1 - exp(-(B(t_k) - B(t_{k-1}))), B = -log alpha^2

        Args:
            path: with alpha^2 + sigma^2 = 1 and sigma = 0 at the data.
            steps: K, the number of betas.
            max_beta: the largest beta there may be; a path that ends in pure noise (alpha = 0) needs it, and the chain
                is then the path at every k but the last.
            smooth: as in `DDPM`.

        Returns:
            The chain.

        Raises:
            TypeError: for a path of another kind.
            ValueError: for a path that is no chain's, or reaches pure noise without `max_beta`.

        Examples:
            >>> path = sdegen.DDPM.from_path(sdegen.VPSDE(), 10)
            >>> t = torch.arange(1, 11) / 10
            >>> torch.allclose(path.alpha(t), sdegen.VPSDE().alpha(t))  # the SDE observed on its grid
            True
        """
        if not isinstance(path, GaussianPath):
            raise TypeError(f"path must be a GaussianPath such as VPSDE(), and it is {_checks.described(path)}.")
        steps = _checks.whole("steps", steps)
        if path.ends[0] > 0:
            raise ValueError(f"A DDPM starts at clean data, and {path!r} starts at u = {path.ends[0]:g}.")
        if max_beta is not None:
            max_beta = _checks.real("max_beta", max_beta, 0, 1, strict=True)
        t = path.at(torch.arange(steps + 1, dtype=torch.float64) / steps)
        alpha, sigma = path.alpha(t), path.sigma(t)
        gap = float((alpha**2 + sigma**2 - 1).abs().max())
        if not gap < 1e-9:
            raise ValueError(f"Only a path with alpha^2 + sigma^2 = 1 is a DDPM, and {path!r} is off by {gap:.3g}.")
        B = torch.log1p((sigma / alpha) ** 2)
        betas = -torch.expm1(-torch.diff(B))
        if max_beta is not None:
            betas = torch.clamp(betas, max=max_beta)
        elif bool((betas == 1).any()):
            raise ValueError(
                f"{path!r} reaches pure noise within a step, where beta would be 1; give max_beta, such as 0.999."
            )
        return cls(betas, smooth=smooth)

    def __repr__(self) -> str:
        kind = ", smooth" if self.smooth else ""
        return f"DDPM({self.steps} betas from {float(self.betas[0]):g} to {float(self.betas[-1]):g}{kind})"

    def index(self, t: float | Tensor) -> Tensor:
        """k - 1, what a network trained on the integers 0 ... K-1 is shown at time t = k/K; between steps a fraction.

        Below the first trained step, t < 1/K, it is held at 0: the network answers for its lowest noise level. For a
        network with an embedding table take `lambda t: path.index(t).round().long()`; for one on another
        variance-preserving path, `lambda t: chain.index(chain.time(path.clock(t)))`, which matches the log-SNR.

        Args:
            t: the path's own times, 0 at the data and 1 at the noise, of any shape.

        Returns:
            Numbers in [0, K-1], shaped like `t`, exact at the knots.

        Raises:
            ValueError: for times off the path.

        Examples:
            >>> sdegen.DDPM.linear(4).index(torch.tensor([0.25, 0.5, 1.0]))
            tensor([0., 1., 3.])
        """
        return torch.clamp(self._position(self.checked_times(as_time(t)), slack=1e-9) - 1, min=0)

    def respaced(self, steps: int, spacing: str = "leading") -> Knots:
        """A shorter chain: the clocks it visits, from noise to data, for `grid=` of `Ancestral` and `DDIM`.

        With gap = K // steps, "leading" visits k = 1 + gap (steps - 1), ..., 1 + gap, 1 and starts below the noise end;
        "trailing" visits k = K, K - K/steps, ..., rounded; both end at 0. The knots carry their start, so that a solve
        on them runs without `u=`.

        Args:
            steps: the number of steps of the shorter chain.
            spacing: "leading" or "trailing".

        Returns:
            `Knots`, (steps + 1,) in float64 on the CPU.

        Raises:
            ValueError: for more steps than the chain has.

        Examples:
            >>> path = sdegen.DDPM.linear(1000)
            >>> knots = path.respaced(50)
            >>> model = sdegen.Gaussian([0.0], 1.0).model(path)
            >>> sdegen.solve(model, torch.randn(4, 1), sdegen.DDIM(grid=knots)).calls
            50

        References:
            Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin et al., 2024, arXiv:2305.08891, table 2.
        """
        steps = _checks.whole("steps", steps)
        _checks.choice("spacing", spacing, ("leading", "trailing"))
        if steps > self.steps:
            raise ValueError(f"A chain of {self.steps} steps cannot be respaced to {steps}.")
        if spacing == "leading":
            k = 1 + (self.steps // steps) * torch.arange(steps - 1, -1, -1, dtype=torch.float64)
        else:
            k = torch.round(self.steps * (torch.arange(steps, 0, -1, dtype=torch.float64) / steps))
        return self.clock(torch.cat([k, k.new_zeros(1)]) / self.steps).as_subclass(Knots)

    def __getstate__(self) -> dict[str, object]:
        """Copies on other devices stay where they are."""
        return {**self.__dict__, "_tables": {"cpu": self._tables["cpu"]}}

    def _table(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """B at the knots (K+1,) and the coefficients (3, K) within steps, in float64, on the device of `t`."""
        device = str(t.device)
        if device not in self._tables:
            knots, coefficients = self._tables["cpu"]
            self._tables[device] = knots.to(t.device), coefficients.to(t.device)
        return self._tables[device]

    def _position(self, t: Tensor, slack: float = 0.0) -> Tensor:
        """t K, exactly k where t is k/K up to rounding, or up to a relative `slack`; its slope is K everywhere."""
        position = t * self.steps
        whole = torch.round(position)
        near = (position - whole).abs() <= max(slack, 2 * torch.finfo(position.dtype).eps) * whole
        return position + torch.where(near, whole - position, 0.0).detach()

    def _within(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The step (its number counted from 0) and the fraction of it; a knot belongs to the step it begins.

        The fraction is NaN where t is, as an accelerator has it off the path; there the step is one that exists.
        """
        position = self._position(t)
        k = torch.clamp(torch.floor(position).nan_to_num(0.0), 0, self.steps - 1)
        return k.long(), (position - k).double()

    def _before_last(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """For a last step of beta 1: `t`, held at the start of that step, and q, how far alpha has fallen in it."""
        k, q = self._within(t)
        last = k == self.steps - 1
        return torch.where(last, 1 - 1 / self.steps, t), torch.where(last, q, 0.0).to(t)

    def alpha(self, t: float | Tensor) -> Tensor:
        """alpha = exp(-B/2), and alpha_{K-1} (1-q) in a last step of beta 1.

        t is the path's own time, 0 at the data and 1 at the noise.
        """
        if not self._ends_in_noise:
            return super().alpha(t)
        before, q = self._before_last(as_time(t))
        return super().alpha(before) * (1 - q)

    def sigma(self, t: float | Tensor) -> Tensor:
        """sigma = sqrt(1 - exp(-B)), and sqrt(sigma_{K-1}^2 + alpha_{K-1}^2 q (2-q)) in a last step of beta 1.

        t is the path's own time, 0 at the data and 1 at the noise.
        """
        if not self._ends_in_noise:
            return super().sigma(t)
        before, q = self._before_last(as_time(t))
        B = self.integrated_beta(before)
        return torch.sqrt(-torch.expm1(-B) + torch.exp(-B) * q * (2 - q))

    def slopes(self, t: float | Tensor) -> Slopes:
        """As of every such path, but that alpha' keeps its value all through a last step of beta 1.

        t is the path's own time, 0 at the data and 1 at the noise.
        """
        if not self._ends_in_noise:
            return super().slopes(t)
        t = as_time(t)
        before, _ = self._before_last(t)
        alpha, slope = self.alpha(t), -0.5 * self.beta(before) * super().alpha(before)
        return Slopes(slope, -alpha * slope / self.sigma(t), -2 * alpha * slope)

    def beta(self, t: float | Tensor) -> Tensor:
        """B', at a knot the slope of the step towards the noise; infinite at pure noise; t is the path's own time."""
        t = as_time(t)
        (_, coefficients), (k, q) = self._table(t), self._within(t)
        c1, c2, c3 = coefficients.unbind()
        rate = c1[k] + q * (2 * c2[k] + q * 3 * c3[k])
        if self._ends_in_noise:
            rate = torch.where(k == self.steps - 1, 2 / (1 - q), rate)
        return (self.steps * rate).to(t)

    def integrated_beta(self, t: float | Tensor) -> Tensor:
        """B, exact at the knots; infinite at pure noise; t is the path's own time."""
        t = as_time(t)
        (B, coefficients), (k, q) = self._table(t), self._within(t)
        c1, c2, c3 = coefficients.unbind()
        gained = c1[k] + q * (c2[k] + q * c3[k])
        if self._ends_in_noise:
            return (B[k] + torch.where(k == self.steps - 1, -2 * torch.log1p(-q), q * gained)).to(t)
        return (B[k] + q * gained).to(t)

    def _time_of(self, B: Tensor) -> Tensor:
        """Newton's method within the step, kept inside a shrinking bracket; exact at once where B is linear."""
        knots, coefficients = self._table(B)
        goal = B.double().contiguous()
        k = torch.clamp(torch.searchsorted(knots, goal, right=True) - 1, 0, self.steps - 1)
        goal = goal - knots[k]
        c1, c2, c3 = coefficients[:, k].unbind()
        q = goal / (knots[k + 1] - knots[k])
        if self.smooth:
            low, high = torch.zeros_like(q), torch.ones_like(q)
            for _ in range(NEWTON_STEPS):
                excess = q * (c1 + q * (c2 + q * c3)) - goal
                low, high = torch.where(excess > 0, low, q), torch.where(excess > 0, q, high)
                newton = q - excess / (c1 + q * (2 * c2 + q * 3 * c3))
                q = torch.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))
        if self._ends_in_noise:
            q = torch.where(k == self.steps - 1, -torch.expm1(-0.5 * goal), q)
        return ((k + q) / self.steps).to(B)


def _checked_betas(betas: object) -> Tensor:
    """`betas` as a float64 tensor (K,) on the CPU, after a TypeError or ValueError unless they are betas."""
    table = _checks.numbers("betas", betas)[0].to("cpu")
    if table.ndim != 1 or table.numel() == 0:
        raise ValueError(f"betas must be a non-empty 1-D sequence, and it has shape {tuple(table.shape)}.")
    inside = (table > 0) & (table < 1)
    inside[-1] |= table[-1] == 1
    wrong = torch.nonzero(~inside)
    if len(wrong):
        k = int(wrong[0])
        raise ValueError(
            f"Every beta must be above 0 and below 1, but for the last, which may be 1, and betas[{k}] is "
            f"{float(table[k])}."
        )
    return table


def _coefficients(knots: np.ndarray, smooth: bool) -> Tensor:
    """Those of the steps between `knots` (K+1,), (3, K); none in a last step up to infinity."""
    if math.isfinite(knots[-1]):
        return _cubics(knots) if smooth else _lines(knots)
    rest = _cubics(knots[:-1], end=LAST_SLOPE) if smooth else _lines(knots[:-1])
    return torch.nn.functional.pad(rest, (0, 1))


def _lines(knots: np.ndarray) -> Tensor:
    """Coefficients (3, K) of q, q^2, q^3 in B - B_k for the fraction q of step k: straight lines."""
    rise = torch.from_numpy(np.diff(knots))
    return torch.stack([rise, torch.zeros_like(rise), torch.zeros_like(rise)])


def _cubics(knots: np.ndarray, end: float | None = None) -> Tensor:
    """The same for the monotone cubic through the knots; one step has no curvature to find.

    At a steep end PCHIP's slope is 0, where t(u) would have an infinite one: at least half the secant's is kept. A
    slope at the `end` that is to be met is cut where the cubic would cease to be monotone, at three times the secant's.
    """
    if len(knots) <= 2:
        return _lines(knots)
    rise, steps = np.diff(knots), np.arange(len(knots))
    slopes = PchipInterpolator(steps, knots).derivative()(steps)
    slopes[[0, -1]] = np.maximum(slopes[[0, -1]], 0.5 * rise[[0, -1]])
    if end is not None:
        slopes[-1] = min(end, 3 * rise[-1])
    return torch.from_numpy(CubicHermiteSpline(steps, knots, slopes).c[2::-1].copy())
