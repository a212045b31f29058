"""The DDPM chain on any path, one bridge step at a time: ancestral sampling, and DDIM beside it.

    x_s = c_t x_t + c_x x_hat + std z      (c_t, c_x) of the bridge x_s | x_t, x;  no noise in the step to the data

In straight coordinates, where std is that of y_s, with q = u_s (1-u_t) / (u_t (1-u_s)) and so
1 - q = (u_t - u_s) / (u_t (1-u_s)),

    Ancestral   y_s = q (u_s/u_t) y_t + (1-u_s)(1-q^2) x_hat + std z
    DDIM        y_s = (1-u_s) x_hat + u_s sqrt(1 - eta^2 (1-q^2)) eps_hat + eta u_s sqrt(1-q^2) z

    std = u_s sqrt(1-q^2)                     variance="posterior" (beta-tilde): the bridge's own
    std = u_t (r_t/r_s) sqrt(1-q^2)           variance="beta": the forward kernel's, sigma_{t|s}^2
    std^2 = the bridge's + ((1-u_s)(1-q^2))^2 E|x - x_hat|^2 / d      variance="optimal": the true one, averaged
    log std^2 between those of "posterior" and "beta"                 variance="learned": where, the network says

"posterior" is the exact solution of the reverse SDE with x_hat frozen over the step, and DDIM at eta = 1 where the path
starts at clean data; DDIM at eta = 0 is the Euler step of the ODE dy/du = eps_hat - x_hat.

References:
    Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
    Denoising Diffusion Implicit Models, Song et al., 2021, arXiv:2010.02502.
    Improved Denoising Diffusion Probabilistic Models, Nichol and Dhariwal, 2021, arXiv:2102.09672 ("learned").
    Analytic-DPM, Bao et al., 2022, arXiv:2201.06503 ("optimal").
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.models.base import Model
from sdegen.paths.gaussian import GaussianPath
from sdegen.solvers.base import Problem, Result, Solver
from sdegen.solvers.grids import Grid, PowerGrid, check_grid, lay, span_of, steps_on
from sdegen.solvers.loop import Ask, Step, march

VARIANCES = ("beta", "posterior", "optimal", "learned")


class Chain(NamedTuple):
    """The steps of a chain on a path, from the noise on: K + 1 knots and K coefficients in y, float64 on the CPU.

    Attributes:
        u: the knots, (K + 1,); a step goes from u_t = u[k] to u_s = u[k + 1].
        t: the path's time at the knots.
        keep: the mean of the bridge is keep y_t + add x, (K,).
        add: see `keep`.
        bridge: the variance of the bridge, that of y_s given y_t and x.
        kernel: the variance of "beta", that of the forward kernel.
        scale: r_s, so that a variance of x_s is scale^2 times that of y_s.
    """

    u: Tensor
    t: Tensor
    keep: Tensor
    add: Tensor
    bridge: Tensor
    kernel: Tensor
    scale: Tensor

    @classmethod
    def on(cls, path: GaussianPath, u: Tensor, t: Tensor) -> Chain:
        """The chain on the knots (u, t) of `path`."""
        u_t, u_s, r = u[:-1], u[1:], path.scale(u)
        q = u_s * (1 - u_t) / (u_t * (1 - u_s))
        fresh = (u_t - u_s) / (u_t * (1 - u_s)) * (1 + q)  # 1 - q^2
        kernel = (u_t * r[:-1] / r[1:]) ** 2 * fresh
        return cls(u, t, q * u_s / u_t, (1 - u_s) * fresh, u_s**2 * fresh, kernel, r[1:])

    @property
    def clipped(self) -> Tensor:
        """`bridge`, but where the last step ends at clean data and has none, the x-variance of the step before it."""
        if self.bridge[-1] > 0 or len(self.bridge) == 1:
            return self.bridge
        return torch.cat([self.bridge[:-1], self.bridge[-2:-1] * (self.scale[-2] / self.scale[-1]) ** 2])


@dataclass(frozen=True, eq=False)
class _ChainSolver(Solver):
    """What Ancestral and DDIM share: the grid, and the walk down it."""

    steps: int | None = None
    _: KW_ONLY
    grid: Grid | Tensor | None = None

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        if self.steps is not None:
            _checks.whole("steps", self.steps)
        if self.grid is not None:
            check_grid(self.grid, self.steps)

    @property
    def span(self) -> tuple[float, float] | None:
        """See `Solver.span`."""
        return span_of(self.grid)

    @abstractmethod
    def _step(self, problem: Problem, chain: Chain) -> Step:
        """The step of `march`, every question of it planned before the first network call."""

    def run(self, problem: Problem) -> Result:
        """Integrate `problem`: used by `sdegen.solve`."""
        if problem.u_to > problem.u_from:
            raise ValueError(
                f"{type(self).__name__} runs from noise to data; use an ODESolver or SDESolver towards noise."
            )
        chain = self.chain(problem.model, problem.u_from, problem.u_to)
        result = march(problem, chain.u, chain.t, self._step(problem, chain))
        result.calls = result.accepted  # planned questions do not pass through `ask`: one a step
        return result

    def chain(self, model: Model, u_from: float, u_to: float) -> Chain:
        """The steps this solver takes on the model's path from u_from down to u_to."""
        path = model.path
        steps = steps_on(self.grid, self.steps) or path.steps
        if steps is None:
            raise ValueError(
                f"{type(self).__name__} needs steps, the number of steps, on {path!r}, which has no chain of its own."
            )
        grid = self.grid
        if grid is None and (u_to, u_from) == path.ends:
            grid = PowerGrid(1, "t") if steps == path.steps else PowerGrid(2)
        elif grid is None:
            grid = PowerGrid(2) if self.steps else _own_knots(path, steps, u_from, u_to)
            steps = steps_on(grid, steps) or 0
        laid = lay(grid, model, u_from, u_to, steps)
        return Chain.on(path, laid.u, laid.t)


@dataclass(frozen=True, eq=False)
class Ancestral(_ChainSolver):
    """The DDPM chain (Algorithm 2 of Ho et al.) on any path, one network call a step.

    x_s = c_t x_t + c_x x_hat + std z, and no noise in the step that ends at the data. On `VESDE`, whose data end is
    not clean but blurred by sigma_min, that last mean is a mixture of x_hat and of the state, with a little less noise
    than sigma_min; for the denoised samples that score_sde returns take `model.data(x, path.t_data)` of the result.

    Args:
        steps: number of steps; may be left out on a `DDPM` path (all of them) or with a tensor `grid`.
        variance: "beta" or "posterior"; "optimal", estimated at every step from the batch at hand, whose samples then
            depend on each other; "learned", by a network that `learns_variance`; or a tensor (steps,) of variances of
            x_s, such as `optimal_variance` gives, in the order of the betas: [0] is the step that ends at the data.
        grid: a PowerGrid or a float64 tensor of steps + 1 values of u, such as `path.respaced(50)`; by default a `DDPM`
            path's own grid when all its steps are taken (or, with `u=` and no steps, those inside it), and PowerGrid(2)
            otherwise.

    Raises:
        TypeError: an option of another type.
        ValueError: options that are wrong or do not fit together.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.DDPM.linear(200))
        >>> solution = sdegen.solve(model, torch.randn(8, 1), sdegen.Ancestral())
        >>> solution.calls  # the chain's own length
        200

    References:
        Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
    """

    _: KW_ONLY
    variance: str | Tensor = "beta"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.variance, Tensor):
            _checks.choice("variance", self.variance, VARIANCES)
            return
        if not self.variance.is_floating_point() or self.variance.ndim != 1:
            raise ValueError(
                f"A tensor variance must be real and 1-D, and it is {self.variance.dtype} of shape "
                f"{tuple(self.variance.shape)}."
            )
        wrong = torch.nonzero(~((self.variance >= 0) & torch.isfinite(self.variance)))
        if len(wrong):
            k = int(wrong[0])
            raise ValueError(f"Every variance must be finite and non-negative, and [{k}] is {float(self.variance[k])}.")

    def variances(self, chain: Chain) -> Tensor:
        """The variance of y_s in every step of `chain`, (K,) in float64, where it is known beforehand."""
        if isinstance(self.variance, Tensor):
            if len(self.variance) != len(chain.keep):
                raise ValueError(
                    f"A tensor variance needs one value a step, {len(chain.keep)}, and it has {len(self.variance)}."
                )
            return self.variance.detach().to("cpu", torch.float64).flip(0) / chain.scale**2
        return chain.clipped if self.variance == "posterior" else chain.kernel

    def _step(self, problem: Problem, chain: Chain) -> Step:
        problem.model.needs_score("Ancestral sampling")
        if isinstance(self.variance, str) and self.variance in ("optimal", "learned"):
            return (_optimal if self.variance == "optimal" else _learned)(problem, chain)
        model, cond = problem.model, problem.cond
        queries = model.plan(problem.y, chain.u[:-1], chain.t[:-1], chain.add, torch.zeros_like(chain.add), chain.keep)
        std: list[Tensor | None] = [*self.variances(chain).sqrt().to(problem.y).unbind(0)]
        if _reaches_data(problem):
            std[-1] = None
        return lambda k, y, ask: (model.estimate(y, queries[k], cond), std[k])


@dataclass(frozen=True, eq=False)
class DDIM(_ChainSolver):
    """Denoising diffusion implicit models on any path, one network call a step; deterministic at eta = 0.

    Args:
        steps: number of steps; may be left out on a `DDPM` path (all of them) or with a tensor `grid`.
        eta: in [0, 1]: 0 is the Euler step of the ODE in straight coordinates, 1 is Ancestral(variance="posterior") on
            every path that starts at clean data; on others Ancestral leaves out the last step's noise, DDIM does not.
        grid: as in `Ancestral`.

    Raises:
        TypeError: an option of another type.
        ValueError: options that are wrong or do not fit together.

    Examples:
        >>> model = sdegen.Gaussian([1.0], 0.5).model(sdegen.DDPM.linear())
        >>> x_T = torch.zeros(1, 1)
        >>> a, b = (sdegen.sample(model, (1, 1), sdegen.DDIM(50), x_T=x_T) for _ in range(2))
        >>> bool((a == b).all())  # eta = 0 draws nothing
        True

    References:
        Denoising Diffusion Implicit Models, Song et al., 2021, arXiv:2010.02502.
    """

    _: KW_ONLY
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.real("eta", self.eta, 0, 1)

    @property
    def follows_ode(self) -> bool:
        """See `Solver.follows_ode`."""
        return self.eta == 0

    def _step(self, problem: Problem, chain: Chain) -> Step:
        model, cond, u_s = problem.model, problem.cond, chain.u[1:]
        if self.eta:
            model.needs_score("DDIM with eta > 0")
        noise = self.eta**2 * chain.bridge
        queries = model.plan(problem.y, chain.u[:-1], chain.t[:-1], 1 - u_s, torch.sqrt(u_s**2 - noise))
        std = [s if more else None for s, more in zip(noise.sqrt().to(problem.y), noise.tolist(), strict=True)]
        return lambda k, y, ask: (model.estimate(y, queries[k], cond), std[k])


def _reaches_data(problem: Problem) -> bool:
    """Whether the last step ends at the data, where nothing is added; in the middle of a path it is a step like any."""
    return problem.u_to == problem.model.path.ends[0]


def _own_knots(path: GaussianPath, steps: int, u_from: float, u_to: float) -> Tensor:
    """The knots of a path's own chain between two clocks, and these."""
    fraction = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    u = path.clock(path.at(fraction))
    inside = u[(u < u_from - 1e-12) & (u > u_to + 1e-12)]
    return torch.cat([u.new_tensor([u_from]), inside, u.new_tensor([u_to])])


def check_learned(model: Model) -> None:
    """A ValueError unless the model's network gives a variance too."""
    if not model.learns_variance:
        raise ValueError('variance="learned" needs a network that gives it: ScoreModel(..., learns_variance=True).')


def _learned(problem: Problem, chain: Chain) -> Step:
    """The network places log std^2 between the bridge's (clipped at the data) and the kernel's."""
    model, cond = problem.model, problem.cond
    check_learned(model)
    queries = model.plan(problem.y, chain.u[:-1], chain.t[:-1], chain.add, torch.zeros_like(chain.add), chain.keep)
    low = (0.5 * chain.clipped.log()).to(problem.y)
    span = (0.5 * chain.kernel.log()).to(problem.y) - low
    last = len(low) - 1 if _reaches_data(problem) else len(low)

    def step(k: int, y: Tensor, ask: Ask) -> tuple[Tensor, Tensor | None]:
        mean, position = model.estimate_with_variance(y, queries[k], cond)
        return mean, torch.exp(low[k] + position * span[k]) if k < last else None

    return step


def _optimal(problem: Problem, chain: Chain) -> Step:
    """The variance of the true reverse step, with the mean squared error of x_hat read off the batch.

    For the exact model E|x - x_hat|^2 / d = (u_t / (1-u_t))^2 (1 - E|eps_hat|^2 / d), estimated by the mean over the
    batch. Near pure noise the first factor is huge and the second nearly 0, so that the estimate is poor. Where its
    standard deviation exceeds a tenth of u^2 / ((1-u)^2 + u^2), the value for data of variance one, that value is used.
    """
    if isinstance(problem.generator, (list, tuple)):
        raise ValueError(
            'Ancestral(variance="optimal") estimates the variance from the whole batch, and one generator per sample '
            "promises samples that do not depend on each other; take the variances of `optimal_variance` instead."
        )
    model, cond, u = problem.model, problem.cond, chain.u[:-1]
    ones = torch.ones_like(u)
    queries = model.plan(problem.y, u, chain.t[:-1], ones, 0 * ones)
    unit, per_share = u**2 / ((1 - u) ** 2 + u**2), (u / (1 - u)) ** 2
    tells = (per_share * (2 / problem.y.numel()) ** 0.5 < 0.1 * unit).tolist()
    numbers = torch.stack([chain.keep, chain.add, u, chain.bridge, unit, per_share]).to(problem.y).unbind(1)
    last = len(numbers) - 1 if _reaches_data(problem) else len(numbers)

    def step(k: int, y: Tensor, ask: Ask) -> tuple[Tensor, Tensor | None]:
        keep, add, clock, bridge, spread, per_share = numbers[k]
        x_hat = model.estimate(y, queries[k], cond)
        mean = torch.addcmul(keep * y, add, x_hat)
        if k == last:
            return mean, None
        if tells[k]:
            eps_hat = (y - (1 - clock) * x_hat) / clock
            spread = per_share * torch.clamp(1 - eps_hat.square().mean(), min=0)
        return mean, torch.sqrt(bridge + add**2 * spread)

    return step
