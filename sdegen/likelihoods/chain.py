"""A chain laid on data: its steps against the true posterior, and the variances that make its bound least.

The chain x_K, ..., x_1, x has p(x_K) = N(0, sigma_K^2), and p(x_{k-1} | x_k) is normal about the bridge's mean with
x_hat instead of x, its variance a choice of `Ancestral`. With D = eps - x and D_hat = eps_hat - x_hat the means
differ by add u_k (D_hat - D) in straight coordinates (solvers/ancestral.py), so that in nats

    L_K     = KL( q(x_K | x) | p(x_K) ) = |alpha_K x|^2 / (2 sigma_K^2)
    L_{k-1} = KL( q(x_{k-1} | x_k, x) | p(x_{k-1} | x_k) )                                             k = 2 ... K
            = 1/2 sum over the event of [ log(var/bridge) - 1 + bridge/var + (add u_k (D_hat - D))^2 / var ]
    L_0     = -log p(x | x_1)

in expectation over q(x_k | x). For an eps network the last bracket is w_k |eps - eps_hat|^2 with Ho et al.'s weight.
A chain may end at data that are noised, at a clock u_0 > 0 where a path or `u=` starts, as that of Kingma et al. does.
Its K steps then all are Kullback-Leibler divergences, k = 1 ... K, and one more leads from x_0 to clean data: the
decoder's alone, N(x_hat, (sigma_0/alpha_0)^2), or that of the levels, L_0 = -log p(x | x_0). A chain may start below
the noise end too; that p(x_K) = N(0, sigma_K^2) there is an assumption of its model, and L_K what it costs.
So every bound is made of the errors D_hat - D at k = 1 ... K, and those come from one loop, `ChainOnData.answers`.

References:
    Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
    Improved Denoising Diffusion Probabilistic Models, Nichol and Dhariwal, 2021, arXiv:2102.09672.
    Estimating the Optimal Covariance with Imperfect Mean in Diffusion Probabilistic Models, Bao et al., 2022,
    arXiv:2206.07309.
    Variational Diffusion Models, Kingma et al., 2021, arXiv:2107.00630.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import batch_parts, check_model, evaluating, interval
from sdegen._checks import NonFiniteError
from sdegen._shapes import Generators, event_size, generator_of_rows, like, normal, sum_event
from sdegen.likelihoods.decoders import Decoder, nats
from sdegen.models.base import Cond, Model, Plan
from sdegen.solvers import Ancestral
from sdegen.solvers.ancestral import Chain, check_learned
from sdegen.solvers.base import bar, under_bar
from sdegen.solvers.grids import Grid

Rows = slice | Tensor
"""Of a batch: which of them, in a part."""


@dataclass(frozen=True)
class Data:
    """What a bound is computed on: data, the conditions of the network and the noise of every step.

    Attributes:
        y: the data, (B, *event), in the precision of the bound; at u = 0 a state is its data, y = x.
        cond: the user's conditions; in a part, what the network receives.
        noise: the eps of every step, like y; None for a fresh draw in each.
        generator: of these draws, a torch.Generator or one per sample.
        dtype: that of the network's input, unless its parameters have their own.
    """

    y: Tensor
    cond: Mapping[str, object]
    noise: Tensor | None
    generator: Generators
    dtype: torch.dtype

    def part(self, rows: slice | Tensor) -> Data:
        """Some rows of the whole batch, a slice or indices on the CPU, with conditions that the network may write into.

        Rows may come several times.
        """
        there = rows.to(self.y.device) if isinstance(rows, Tensor) else rows
        cond = _checks.network_arguments(self.cond, there, len(self.y))
        noise = None if self.noise is None else self.noise[there]
        return Data(self.y[there], cond, noise, generator_of_rows(self.generator, rows), self.dtype)

    def eps(self) -> Tensor:
        """Standard normals like y: `noise`, or a fresh draw."""
        y = self.y
        return normal(y.shape, self.generator, y.dtype, y.device) if self.noise is None else self.noise

    def noised(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """A state (1-u) y + u eps at the clock `u`, 0-dimensional or (B,), and D = eps - y, with one `eps`."""
        u, eps = like(u, self.y), self.eps()
        return (1 - u) * self.y + u * eps, eps - self.y

    def prior(self, u: float | Tensor) -> Tensor:
        """KL( q(x_t | x) | N(0, sigma^2) ) = ((1-u)/u)^2 |x|^2 / 2 at the clock `u`, (B,), in nats."""
        return 0.5 * ((1 - u) / u) ** 2 * sum_event(self.y**2)


class Answer(NamedTuple):
    """What a model says at a state of the chain.

    Attributes:
        k: the step, 1 ... K, one for all samples or (B,).
        state: y_k, (B, *event).
        D: eps - x.
        D_hat: eps_hat - x_hat.
        position: of the log-variance between its least and its largest, in [0, 1], like y_k; None unless learned.
    """

    k: int | Tensor
    state: Tensor
    D: Tensor
    D_hat: Tensor
    position: Tensor | None

    @property
    def error(self) -> Tensor:
        """D_hat - D, (B, *event)."""
        return self.D_hat - self.D


@dataclass(frozen=True)
class ChainOnData:
    """A chain of K steps between data and noise: what a model says at each of them, and what that costs in nats.

    Attributes:
        model: whose means the chain has.
        data: all of the data, or a part.
        chain: the steps as `Ancestral` takes them, from the noise on, float64 on the CPU; where they end at noised
            data, one step more to clean data, the decoder's, is counted in K.
        plan: the question D_hat at every step, from the data on.
        numbers: the coefficients by name, each (K,), from the data on, where the data are.
        learned: whether the variance is the network's.
        own: the number of steps that `Ancestral` takes, K or K - 1.
    """

    model: Model
    data: Data
    chain: Chain
    plan: Plan
    numbers: Mapping[str, Tensor]
    learned: bool
    own: int

    @classmethod
    def lay(cls, model: Model, data: Data, solver: Ancestral, u: tuple[float, float] | None = None) -> ChainOnData:
        """The chain of `solver` on the part `u` of the path, with the kernel's variances for "optimal" ones.

        Raises:
            ValueError: the path or the network does not allow such a chain, or a variance is not positive.
        """
        low, high = interval(model, "noise", u, solver.span)
        steps, name = solver.chain(model, high, low), solver.variance
        learned = isinstance(name, str) and name == "learned"
        if learned:
            check_learned(model)
        chain, own = _to_clean_data(steps), len(steps.keep)
        if len(chain.keep) == 1 and isinstance(name, str) and name in ("posterior", "learned"):
            raise ValueError(f"A single step has no bridge whose variance {name!r} could take; use 'beta'.")
        clocks, ones = chain.u[:-1].flip(0), torch.ones_like(chain.keep)
        plan = model.plan(data.y, clocks, chain.t[:-1].flip(0), -ones, ones)
        plan = replace(plan, dtype=model.working_dtype(data.dtype))
        var = steps.kernel if learned else solver.variances(steps)
        return cls(model, data, chain, plan, _numbers(chain, var, data.y), learned, own)

    def with_variance(self, var: Tensor) -> ChainOnData:
        """The same chain with other variances of y_{k-1}, (own,) from the noise on, float64 on the CPU."""
        return replace(self, numbers=_numbers(self.chain, var, self.data.y))

    def part(self, rows: slice | Tensor) -> ChainOnData:
        """The same chain on some rows of the whole batch, see `Data.part`."""
        data = self.data.part(rows)
        return replace(self, data=data, plan=replace(self.plan, size=len(data.y)))

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def latents(self) -> tuple[float, float]:
        """The clocks of the first latent and of the last."""
        return float(self.chain.u[-2]), float(self.chain.u[0])

    def at(self, name: str, k: int | Tensor) -> Tensor:
        """A coefficient of step k, ready to broadcast against a state."""
        return like(self.numbers[name][k - 1], self.data.y)

    def answers(self, steps: Sequence[int | Tensor], progress: bool = False) -> Iterator[Answer]:
        """What the model says in each of `steps`, k or k per sample (B,), at a state with noise of its own.

        One network call each, and a bar over them where `progress` is wanted.
        """
        with bar(len(steps), progress) as step_done:
            for k in steps:
                state, D = self.data.noised(self.numbers["u"][k - 1])
                yield Answer(k, state, D, *self.ask(state, k))
                step_done()

    def ask(self, state: Tensor, k: int | Tensor) -> tuple[Tensor, Tensor | None]:
        """D_hat at any states of step k, and the variance's position where it is learned: one network call."""
        query = self.plan[k - 1] if isinstance(k, int) else self.plan.rows(k - 1, state)
        if self.learned:
            return self.model.estimate_with_variance(state, query, self.data.cond)
        return self.model.estimate(state, query, self.data.cond), None

    def variance(self, k: int | Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        """(var, log(var/bridge)) of step k: one number per sample, or where it is learned one per value."""
        log_ratio = self.at("log_ratio", k)
        if position is None:
            return self.at("var", k), log_ratio
        return self.at("bridge", k) * torch.exp(position * log_ratio), position * log_ratio

    def prior(self) -> Tensor:
        """L_K, (B,)."""
        return self.data.prior(self.numbers["u"][-1])

    def transition(self, answer: Answer) -> Tensor:
        """L_{k-1} at the answer's k, at least 2, (B,)."""
        k, error = answer.k, answer.error
        var, log_ratio = self.variance(k, answer.position)
        squared = (self.at("add", k) * self.at("u", k) * error) ** 2 / var
        if answer.position is None:
            return 0.5 * (event_size(error.shape) * self.numbers["excess"][k - 1] + sum_event(squared))
        return 0.5 * sum_event(log_ratio + torch.expm1(-log_ratio) + squared)

    def reconstruction(self, answer: Answer, decoder: Decoder) -> Tensor:
        """L_0 from the answer in step 1, (B,): x_hat - x = -u_1 (D_hat - D)."""
        y, var = self.data.y, self.variance(1, answer.position)[0]
        return nats(decoder, y, y - self.at("u", 1) * answer.error, torch.sqrt(var))


def _to_clean_data(chain: Chain) -> Chain:
    """`chain`, and where it ends at noised data one step more: the bridge to x itself, and as its kernel the decoder's.

    The decoder's variance is (sigma_0/alpha_0)^2 = (u_0/(1-u_0))^2.
    """
    last = chain.u[-1:]
    if last == 0:
        return chain
    zero, one = torch.zeros_like(last), torch.ones_like(last)
    step = Chain(zero, chain.t[-1:], keep=zero, add=one, bridge=zero, kernel=(last / (1 - last)) ** 2, scale=one)
    return Chain(*(torch.cat(both) for both in zip(chain, step, strict=True)))


def _numbers(chain: Chain, var: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The coefficients of every step from the data on, moved to the data at once; `var` may end before the decoder."""
    wrong = torch.nonzero(~(var.flip(0) > 0))
    if len(wrong):
        k = int(wrong[0]) + 1
        raise ValueError(f"A bound needs a positive variance in every step, and that of step {k} is {float(var[-k])}.")
    decoder = chain.kernel[len(var) :]
    bridge = torch.cat([chain.bridge[: len(var)], decoder]) if len(decoder) else chain.clipped
    var = torch.cat([var, decoder])
    log_ratio = torch.log(var / bridge)
    numbers = {
        "u": chain.u[:-1],
        "keep": chain.keep,
        "add": chain.add,
        "bridge": bridge,
        "var": var,
        "log_ratio": log_ratio,
        "excess": log_ratio + torch.expm1(-log_ratio),  # log r - 1 + 1/r
    }
    table = torch.stack(list(numbers.values())).flip(1).to(y)
    return dict(zip(numbers, table.unbind(0), strict=True))


def optimal_variance(
    model: Model,
    x: Tensor,
    steps: int | None = None,
    *,
    grid: Grid | Tensor | None = None,
    u: tuple[float, float] | None = None,
    cond: Cond = None,
    noise: Tensor | None = None,
    generator: Generators = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """The isotropic variance of every step that makes the chain's bound least, estimated on data.

        var_k = the bridge's + c_x^2 E|x - x_hat|^2 / d

    the mean over all of `x` and their noise in step k, with c_x the bridge's factor of x and d the values in one
    sample; with the exact model it is Analytic-DPM's. Give it to `Ancestral(variance=)`, whose samples then do not
    depend on each other, or to `vlb`. With a discretised decoder the first of them, L_0's, is not quite the best.

    Args:
        model: K network calls on every part of x.
        x: data (B, *event), B at least 1.
        steps: of the chain, as in `Ancestral`.
        grid: of the chain, as in `Ancestral`.
        u: as in `vlb`; x is clean data.
        cond: keyword arguments for the network, as in `vlb`.
        noise: the eps of every k, as in `vlb`.
        generator: for the draws, as in `vlb`.
        batch_size: as in `vlb`.
        progress: whether to show a bar, of the network calls, or of the parts where there are several (needs tqdm).

    Returns:
        The variances of x_{k-1}, (K,), in the order of the betas, float64 on the CPU.

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, before the first network call.
        NonFiniteError: for a network whose answer is NaN or infinite.

    Examples:
        >>> law, path = sdegen.Gaussian([1.0], 0.5), sdegen.DDPM.linear(10)
        >>> variances = sdegen.optimal_variance(law.model(path), law.sample(1000))
        >>> variances.shape, bool((variances[1:] < 1.1 * path.betas[1:]).all())  # beta is the most, but for the draws
        (torch.Size([10]), True)

    References:
        Analytic-DPM, Bao et al., 2022, arXiv:2201.06503.
        Estimating the Optimal Covariance with Imperfect Mean in Diffusion Probabilistic Models, Bao et al., 2022,
        arXiv:2206.07309.
    """
    data = data_of_bound(model, x, cond, noise, generator)
    if not len(x):
        raise ValueError(f"Variances cannot be estimated on an empty batch, shape {tuple(x.shape)}.")
    laid = ChainOnData.lay(model, data, Ancestral(steps, grid=grid), u)
    with evaluating(model):
        var = best_variance(laid, under_bar(list(batch_parts(x, batch_size)), progress))
    return (var * laid.chain.scale[: laid.own] ** 2).flip(0)


def best_variance(laid: ChainOnData, parts: Iterable[tuple[Rows, bool]]) -> Tensor:
    """The variances of y_{k-1} that make the bound on these parts least, (own,) from the noise on, float64 on the CPU.

    With its rows comes whether a part shows a bar.

    A decoder's step of its own keeps its variance, and is not asked about.
    """
    K, own = len(laid), laid.own
    squares = torch.zeros(own, dtype=laid.data.y.dtype, device=laid.data.y.device)
    for rows, progress in parts:
        answers = laid.part(rows).answers(range(K - own + 1, K + 1), progress)
        squares = squares + torch.stack([answer.error.square().sum() for answer in answers])
    errors = squares.to("cpu", torch.float64) / laid.data.y.numel()
    if not bool(torch.isfinite(errors).all()):
        raise NonFiniteError("The network's answer is NaN or infinite at some step of the chain; no variance fits it.")
    chain = laid.chain
    return chain.bridge[:own] + (chain.add[:own] * chain.u[:own]) ** 2 * errors.flip(0)


def fitted(
    laid: ChainOnData, variance: str | Tensor, parts: Sequence[slice], scored: Sequence[Rows], progress: bool
) -> tuple[ChainOnData, Iterator[tuple[Rows, bool]]]:
    """The chain, its variances estimated on its own data where `variance` is "optimal", and what is to be scored on it.

    All of it is one computation, the estimate on `parts` and the score of `scored`, under one bar: with every part that
    is to be scored comes whether it shows a bar of its own. No data leave the chain as it is.
    """
    first = [*parts] if isinstance(variance, str) and variance == "optimal" else []
    turns = under_bar([*first, *scored], progress)
    return laid.with_variance(best_variance(laid, islice(turns, len(first)))) if first else laid, turns


# What every bound does with its arguments


def check_data(model: Model, x: Tensor, generator: Generators) -> None:
    """Every check of model, data and generators that needs no network; an accelerator's values are not waited for."""
    check_model(model)
    model.needs_score("A variational bound")
    model.needs_own_units("A variational bound")
    _checks.batch("x", x, finite=isinstance(x, Tensor) and x.device.type == "cpu")
    _checks.generators(generator, len(x), x.device)


def data_of_bound(model: Model, x: Tensor, cond: Cond, noise: Tensor | None, generator: Generators) -> Data:
    """The checked data of a bound, in float64: in single precision a first latent of deviation 1e-6 would drown in the
    rounding of the data it sits on.
    """
    check_data(model, x, generator)
    y = x.detach().double().clone()
    eps = None if noise is None else _checks.noise_like(noise, y)
    return Data(y, _checks.conditions(cond), eps, generator, x.dtype)
