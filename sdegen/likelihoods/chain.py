"""The discrete chain as a model: its transitions against the true posterior, the best variance, the hybrid objective.

The chain x_K, ..., x_1, x has p(x_K) = N(0, sigma_K^2) and p(x_{k-1} | x_k) normal about the bridge's mean with x_hat
in the place of x, its variance a choice of `Ancestral`. With D = eps - x and D_hat = eps_hat - x_hat the means differ
by add u_k (D_hat - D) in straight coordinates (solvers/ancestral.py), so that in nats

    L_K     = KL( q(x_K | x) | p(x_K) ) = |alpha_K x|^2 / (2 sigma_K^2)
    L_{k-1} = KL( q(x_{k-1} | x_k, x) | p(x_{k-1} | x_k) )                                             k = 2 ... K
            = 1/2 sum over the event of [ log(var/bridge) - 1 + bridge/var + (add u_k (D_hat - D))^2 / var ]
    L_0     = -log p(x | x_1)

in expectation over q(x_k | x). For an eps network the last bracket is w_k |eps - eps_hat|^2 with Ho et al.'s weight.

Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239; Improved Denoising Diffusion Probabilistic
Models, Nichol and Dhariwal, 2021, arXiv:2102.09672; Estimating the Optimal Covariance with Imperfect Mean in Diffusion
Probabilistic Models, Bao et al., 2022, arXiv:2206.07309.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import check_model, evaluating
from sdegen._checks import NonFiniteError
from sdegen._shapes import Generators, as_time, event_size, like, normal, sum_event, uniform
from sdegen.likelihoods.decoders import Decoder, Discretized, decoder_of, nats
from sdegen.models.base import PREDICTIONS, Cond, Model
from sdegen.models.model import ScoreModel
from sdegen.solvers import Ancestral
from sdegen.solvers.ancestral import check_learned
from sdegen.solvers.base import bar
from sdegen.solvers.grids import Grid


class ModelChain:
    """A chain laid on a model for states like `y`: coefficients and queries of step k = 1 ... K from the data.

    The network takes its input in `dtype` unless its parameters have their own.
    """

    def __init__(self, model: Model, y: Tensor, solver: Ancestral, dtype: torch.dtype):
        u_data, u_noise = whole_path(model)
        chain = solver.chain(model.path, u_noise, u_data)
        self.model, self.steps = model, len(chain.keep)
        self.learned = isinstance(solver.variance, str) and solver.variance == "learned"
        if self.learned:
            check_learned(model)
        if self.steps == 1 and solver.variance in ("posterior", "learned"):
            raise ValueError(f"A single step has no bridge whose variance {solver.variance!r} could take; use 'beta'.")
        var = chain.kernel if self.learned else solver.variances(chain)
        if not bool((var > 0).all()):
            raise ValueError(f"A bound needs a positive variance in every step, and variance is {solver.variance}.")
        log_ratio = torch.log(var / chain.clipped)
        numbers = {
            "u": chain.u[:-1],
            "keep": chain.keep,
            "add": chain.add,
            "bridge": chain.clipped,
            "var": var,
            "log_ratio": log_ratio,
            "excess": log_ratio + torch.expm1(-log_ratio),  # log r - 1 + 1/r
        }
        self.u = chain.u[:-1].flip(0)
        minus = -torch.ones_like(self.u)
        table = model.plan(y, self.u, chain.t[:-1].flip(0), minus, -minus)
        self._table = replace(table, dtype=model.working_dtype(dtype))
        self._numbers = {name: number.flip(0).to(y) for name, number in numbers.items()}

    def __getitem__(self, name: str) -> Tensor:
        """A coefficient of all steps, (K,): that of step k is at k - 1."""
        return self._numbers[name]

    def at(self, name: str, k: Tensor, y: Tensor) -> Tensor:
        """A coefficient of step k (B,), ready to broadcast against `y`."""
        return like(self._numbers[name][k - 1], y)

    def ask(self, y: Tensor, k: Tensor, cond: Mapping[str, object]) -> tuple[Tensor, Tensor | None]:
        """D_hat at states `y` of step k (B,), and the variance's place where it is learned: one network call."""
        query = self._table.rows(k - 1, y)
        if self.learned:
            return self.model.estimate_with_variance(y, query, cond)
        return self.model.estimate(y, query, cond), None

    def missed(
        self, y: Tensor, k: int | Tensor, eps: Tensor, cond: Mapping[str, object]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A state of step k (B,) on the way from data `y` to `eps`, D_hat - D there, and the variance's place."""
        k = torch.full((len(y),), k, device=y.device) if isinstance(k, int) else k
        u = self.at("u", k, y)
        state = (1 - u) * y + u * eps
        D_hat, place = self.ask(state, k, cond)
        return state, D_hat - (eps - y), place

    def prior(self, y: Tensor) -> Tensor:
        """L_K of each sample of data `y`."""
        u = self["u"][-1]
        return 0.5 * ((1 - u) / u) ** 2 * sum_event(y**2)

    def variance(self, k: Tensor, y: Tensor, place: Tensor | None) -> tuple[Tensor, Tensor]:
        """(var, log(var/bridge)) of step k: a number a sample, or where it is learned one a value."""
        log_ratio = self.at("log_ratio", k, y)
        if place is None:
            return self.at("var", k, y), log_ratio
        return self.at("bridge", k, y) * torch.exp(place * log_ratio), place * log_ratio

    def transition(self, k: Tensor, error: Tensor, place: Tensor | None) -> Tensor:
        """L_{k-1} of each sample from error = D_hat - D, k at least 2."""
        var, log_ratio = self.variance(k, error, place)
        squared = (self.at("add", k, error) * self.at("u", k, error) * error) ** 2 / var
        if place is None:
            return 0.5 * (event_size(error.shape) * self["excess"][k - 1] + sum_event(squared))
        return 0.5 * sum_event(log_ratio + torch.expm1(-log_ratio) + squared)

    def reconstruction(self, decoder: Decoder, y: Tensor, error: Tensor, place: Tensor | None) -> Tensor:
        """L_0 of each sample of data `y` from the error of step 1: x_hat - x = -u_1 (D_hat - D)."""
        k = torch.ones(len(y), dtype=torch.long, device=y.device)
        var, _ = self.variance(k, y, place)
        return nats(decoder, y, y - self.at("u", k, y) * error, torch.sqrt(var))


def optimal_variance(
    model: Model,
    x: Tensor,
    steps: int | None = None,
    *,
    grid: Grid | None = None,
    cond: Cond = None,
    noise: Tensor | None = None,
    generator: Generators = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """The isotropic variance of every step that makes the chain's bound least, (K,) in the order of the betas.

    That is the bridge's plus c_x^2 E|x - x_hat|^2 / d, estimated on data `x` (B, *event); with the exact model it is
    Analytic-DPM's. Give it to `Ancestral(variance=)`, whose samples then do not depend on each other, or to `vlb`.
    With a discretised decoder the first of them, L_0's, is not quite the best.

    steps, grid: of the chain, as in `Ancestral`. Other arguments as in `vlb`. K network calls on every part of x.
    Bao et al., 2022, arXiv:2201.06503 and arXiv:2206.07309.
    """
    y_all, cond, dtype = prepared(model, x, cond, noise, generator)
    if not len(x):
        raise ValueError(f"Variances cannot be estimated on an empty batch, shape {tuple(x.shape)}.")
    solver = Ancestral(steps, variance="beta", grid=grid)
    squares = torch.zeros((), device=x.device)
    with evaluating(model):
        for part in parts(x, batch_size):
            y, given, own = y_all[part], _checks.network_arguments(cond, part, len(x)), rows_of(generator, part)
            chain = ModelChain(model, y, solver, dtype)
            total = []
            with bar(chain.steps, progress) as step:
                for k in range(1, chain.steps + 1):
                    eps = normal(y.shape, own, y.dtype, y.device) if noise is None else noise[part].to(y)
                    total.append(chain.missed(y, k, eps, given)[1].square().sum())
                    step()
            squares = squares + torch.stack(total)
    errors = squares.to("cpu", torch.float64) / x.numel()
    if not bool(torch.isfinite(errors).all()):
        raise NonFiniteError("The network's answer is NaN or infinite at some step of the chain; no variance fits it.")
    laid = solver.chain(model.path, *reversed(model.path.ends))
    var = laid.bridge + (laid.add * laid.u[:-1]) ** 2 * errors.flip(0)
    return (var * laid.scale**2).flip(0)


def hybrid_loss(
    model: ScoreModel,
    x: Tensor,
    *,
    steps: int | None = None,
    weight: float = 1e-3,
    decoder: str | Discretized = "gaussian",
    cond: Cond = None,
    noise: Tensor | None = None,
    generator: Generators = None,
) -> Tensor:
    """The objective of a network that `learns_variance`: the simple loss plus `weight` times the bound, a scalar.

    At one k a sample, uniform on 1 ... K: the squared error of the network's own prediction, mean over the event, and K
    times the bound's term in nats a value, in which the prediction is held fixed so that it trains the variance alone.
    One network call. `steps` may be left out on a `DDPM` path; other arguments as in `loss` and `vlb`. Where the source
    counts the bound in bits a value, divide its weight by ln 2.
    Nichol and Dhariwal, 2021, arXiv:2102.09672.
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"hybrid_loss needs a ScoreModel, whose network it trains, and model is {type(model).__name__}."
        )
    weight = _checks.real("weight", weight, 0)
    cond = checked(model, x, cond, noise, generator)
    if not len(x):
        raise ValueError(f"An empty batch, shape {tuple(x.shape)}, has no loss.")
    decoder = decoder_of(decoder, x if x.device.type == "cpu" else x[:0])  # an accelerator would stall the training
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    chain = ModelChain(model, y, Ancestral(steps, variance="learned"), x.dtype)
    k = torch.ceil(chain.steps * uniform(len(x), generator, y.dtype, x.device)).long()
    eps = normal(y.shape, generator, y.dtype, y.device) if noise is None else noise.to(y)
    _, error, place = chain.missed(y, k, eps, cond)
    fixed = error.detach()
    bound = torch.where(k == 1, chain.reconstruction(decoder, y, fixed, place), chain.transition(k, fixed, place))
    simple = (like(_prediction_per_slope(model, chain.u).to(y)[k - 1], y) * error).square().flatten(1).mean(1)
    return (simple + weight * chain.steps / event_size(y.shape) * bound).mean()


def _prediction_per_slope(model: ScoreModel, u: Tensor) -> Tensor:
    """(1-u) b - u a, the error of k p over that of D_hat, at clocks u (K,) in float64."""
    t, r = model.path.time(u), model.path.scale(u)
    a, b, _ = (as_time(n).to(u).expand_as(u) for n in PREDICTIONS[model.predicts](model.path, t, (1 - u) * r, u * r))
    return (1 - u) * b - u * a


# What every bound does with its arguments


def checked(model: object, x: Tensor, cond: Cond, noise: Tensor | None, generator: Generators) -> Mapping[str, object]:
    """The conditions, after every check that needs no network; an accelerator's values are not waited for."""
    check_model(model)
    model.needs_score("A variational bound")
    for name, values in (("x", x), ("noise", noise)):
        if name == "x" or values is not None:
            _checks.batch(name, values, finite=isinstance(values, Tensor) and values.device.type == "cpu")
    _checks.generators(generator, len(x), x.device)
    if noise is not None and noise.shape != x.shape:
        raise ValueError(f"noise must have the shape of x, {tuple(x.shape)}, and it has {tuple(noise.shape)}.")
    return _checks.conditions(cond)


def prepared(
    model: object, x: Tensor, cond: Cond, noise: Tensor | None, generator: Generators
) -> tuple[Tensor, Mapping[str, object], torch.dtype]:
    """The data in float64, the conditions, and the precision of x: in single precision a first latent of deviation
    1e-6 would drown in the rounding of the data it sits on.
    """
    cond = checked(model, x, cond, noise, generator)
    return x.detach().double().clone(), cond, x.dtype


def whole_path(model: Model) -> tuple[float, float]:
    """The ends of the model's path, after a ValueError where no bound can run from one to the other."""
    low, high = model.path.ends
    if low > 0:
        raise ValueError(f"A bound needs a path from clean data, and {model.path!r} starts at u = {low:g}.")
    if model.clocks[0] > low + 1e-12 or model.clocks[1] < high - 1e-12:
        raise ValueError(
            f"A bound runs over the whole path, u = {low} to {high} on {model.path!r}, and the network was trained "
            f"between u = {model.clocks[0]} and {model.clocks[1]}; use it on a path that stays there."
        )
    return low, high


def parts(x: Tensor, batch_size: int | None) -> Iterator[slice]:
    """Slices of the batch with at most `batch_size` rows, or all of it."""
    size = len(x) if batch_size is None else _checks.whole("batch_size", batch_size)
    for start in range(0, len(x), max(size, 1)):
        yield slice(start, min(start + size, len(x)))


def rows_of(generator: Generators, part: slice) -> Generators | Sequence[torch.Generator]:
    """The generators of some rows: one for all, or one each."""
    return generator[part] if isinstance(generator, (list, tuple)) else generator
