"""Denoising score matching and flow matching: one loss, the network's own prediction regressed on its target.

With m p = a x + b eps (models/base.py) the loss of one sample at time t is the mean over the event of

    weight(t) [ m p_theta(x_t, t) - (a x + b eps) ]^2          x_t = alpha x + sigma eps

so that for "score" it is [sigma s_theta + eps]^2, number for number the loss of eps_theta = -sigma s_theta. The
minimiser is E[target | x_t]: s = -E[eps | x_t]/sigma for denoising score matching, dx/dt for flow matching.

Weightings are stated on the squared error of eps and converted, |d eps| = (1-u) / ((1-u) b - u a) |d (m p)| in straight
coordinates, so a weighting means the same for every prediction. Times are drawn with an importance weight (times.py).

References:
    A Connection Between Score Matching and Denoising Autoencoders, Vincent, 2011.
    Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021, arXiv:2011.13456.
    Flow Matching for Generative Modeling, Lipman et al., 2023, arXiv:2210.02747.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators, as_time, batch_of_times, like, uniform
from sdegen.models.base import PREDICTIONS, Cond
from sdegen.models.masked import checked_mask, count
from sdegen.models.model import ScoreModel, trainable
from sdegen.paths.gaussian import GaussianPath
from sdegen.training.couplings import Coupling, Independent, pairs
from sdegen.training.times import SAMPLERS, Times

Weighting = Callable[[GaussianPath, Tensor], Tensor]


@dataclass(frozen=True)
class LikelihoodWeighting:
    """The weighting whose mean loss, times d, is the integral in the evidence bound, in nats.

    On the squared error of eps at time t it is, with lambda the log-SNR and T = |t_noise - t_data|,

        T |lambda'(t)| / 2  =  T g(t)^2 / (2 sigma(t)^2)

    which is g^2/2 on the squared error of the score, counted per fraction of the path and not per unit of its time: the
    mean over uniform t is 1/2 the integral over lambda, on any clock. d is the number of values in one sample, over
    which `loss` takes the mean. The weight grows like 1/t at a clean data end: draw times with `LikelihoodTimes`.

    Raises:
        ValueError: on a path without a score.

    Examples:
        >>> path, t = sdegen.VPSDE(), torch.tensor([0.5])
        >>> g2, sigma2 = path.diffusion(t) ** 2, path.sigma(t) ** 2
        >>> torch.allclose(sdegen.LikelihoodWeighting()(path, t), g2 / (2 * sigma2))
        True

    References:
        Maximum Likelihood Training of Score-Based Diffusion Models, Song et al., 2021, arXiv:2101.09258.
    """

    def __call__(self, path: GaussianPath, t: Tensor) -> Tensor:
        """The weight of the squared error of eps at times `t` (B,)."""
        if not path.has_score:
            raise ValueError(f"The likelihood weight is a score's, and on {path!r} there is none.")
        span = abs(path.t_noise - path.t_data)
        return 0.5 * span * (path.diffusion(t) / path.sigma(t)) ** 2


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on the squared error of the data, that is min(1, gamma/SNR) on that of eps.

    Args:
        gamma: where the weight stops growing with SNR = alpha^2/sigma^2; 5 by default, the source's.

    Raises:
        ValueError: unless `gamma` is positive.

    Examples:
        >>> path = sdegen.CondOT()
        >>> sdegen.MinSNR(gamma=5.0)(path, torch.tensor([0.5, 10 / 11]))  # SNR 1 and 100
        tensor([1.0000, 0.0500])

    References:
        Efficient Diffusion Training via Min-SNR Weighting Strategy, Hang et al., 2023, arXiv:2303.09556.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.real("gamma", self.gamma, 0, strict=True)

    def __call__(self, path: GaussianPath, t: Tensor) -> Tensor:
        """The weight of the squared error of eps at times `t` (B,)."""
        return torch.clamp(self.gamma * (path.sigma(t) / path.alpha(t)) ** 2, max=1.0)


@dataclass(frozen=True)
class EDMWeighting:
    """Karras et al.'s weighting, under which the network inside `Preconditioned` has weight 1 at every noise level.

        (s^2 + sigma_data^2) / (s sigma_data)^2 on the squared error of the data, s = sigma/alpha

    that is 1 + (s/sigma_data)^2 on that of eps.

    Args:
        sigma_data: the standard deviation of one value of the data, 0.5 by default, the source's.

    Raises:
        TypeError: for a `sigma_data` that is no real number.
        ValueError: unless `sigma_data` is positive.

    Examples:
        >>> path, t = sdegen.EDM(), torch.tensor([0.5, 1.0])
        >>> sdegen.EDMWeighting(sigma_data=0.5)(path, t)  # 1 + (sigma/sigma_data)^2
        tensor([2., 5.])

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022, arXiv:2206.00364.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _checks.plain_fields(self)
        _checks.real("sigma_data", self.sigma_data, 0, strict=True)

    def __call__(self, path: GaussianPath, t: Tensor) -> Tensor:
        """The weight of the squared error of eps at times `t` (B,); infinite in pure noise, which `loss` refuses."""
        return 1 + (path.sigma(t) / (self.sigma_data * path.alpha(t))) ** 2


def loss(
    model: ScoreModel,
    x: Tensor,
    *,
    weighting: Weighting | None = None,
    times: Times | None = None,
    cond: Cond = None,
    t: float | Tensor | None = None,
    noise: Tensor | None = None,
    generator: Generators = None,
    reduction: str = "mean",
    coupling: Coupling | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Denoising score matching or flow matching, in the network's own prediction, by one network call.

    Args:
        model: the `ScoreModel` to train.
        x: data (B, *event).
        weighting: None for the plain squared error ("simple" for an eps network), `LikelihoodWeighting()`, `MinSNR()`,
            `EDMWeighting()`, or a callable (path, t) -> the weight (B,) of the squared error of eps.
        times: how t is drawn: `UniformTimes()` by default, `LowDiscrepancyTimes()`, `ClockTimes()`,
            `LikelihoodTimes()`, `ChainTimes()`, `LogNormalTimes()`, or a callable like them.
        cond: keyword arguments for the network; tensors with one row per sample follow x through a coupling.
        t: times, in the path's own time, a scalar or (B,), instead of draws.
        noise: the standard normals eps, or the source's draws, like x, instead of draws.
        generator: for all draws, a torch.Generator or one per sample.
        reduction: "mean" over batch and event, or "none".
        coupling: which noise goes with which sample, such as `OptimalTransport()`; on an `Interpolant` alone, since no
            score is left. Losses come in the coupling's order.
        mask: True where a value is there and False where it pads, bools that broadcast against x: the loss is the mean
            over those that are there, and the network sees 0 in the padding. What it needs to know of the mask it
            receives by `cond`.

    Returns:
        The loss, a scalar; with reduction "none" the mean over each event, (B,).

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument that does not fit, among them times at which the target or the weight is infinite. The
            values in tensors are looked at on the CPU alone: elsewhere that would stall the training.

    Examples:
        >>> net = lambda x, t: torch.zeros_like(x)  # it says eps_hat = 0, and the loss is E eps^2
        >>> model = sdegen.ScoreModel(net, sdegen.VPSDE())
        >>> f"{sdegen.loss(model, torch.randn(10_000, 2)):.1f}"
        '1.0'
    """
    path = _checked(model, x, weighting, times, coupling, reduction, generator)
    arguments = _checks.conditions(cond)
    there = None if mask is None else checked_mask(mask, x)
    x = _in_units(model, x, there)
    t, importance, drawn = _times(path, x, t, times, generator)
    eps = path.noise_like(x, generator) if noise is None else _checks.noise_like(noise, x)
    rows = None
    if coupling is not None:
        rows, partners = pairs(coupling, x, eps, generator, arguments)
        x, eps, there = x[rows], eps[partners], None if there is None else there[rows]
    alpha, sigma = path.alpha(t), path.sigma(t)
    row = PREDICTIONS[model.predicts](path, t, alpha, sigma)
    a, b, m = (n.to(t) if isinstance(n, Tensor) else n for n in row)
    weight = importance
    if weighting is not None:
        weight = _weights("weighting", weighting(path, t), x)
        weight = weight if importance is None else importance * weight
        weight = weight * _eps_per_prediction(alpha, sigma, a, b) ** 2
    _check_finite(model, t, *((weight,) if drawn else (alpha, sigma, a, b, weight)))
    x_t = (like(alpha, x) * x + like(sigma, x) * eps).to(x.dtype)
    x_t = x_t if there is None else torch.where(there, x_t, 0.0)
    p = model.predict(x_t, t, _checks.network_arguments(arguments, rows, len(x))).to(t.dtype)
    missed = _combined((m, p)) - _combined((a, x), (b, eps))
    error = _mean_square(missed, there)
    error = error if weight is None else weight * error
    return error.mean() if reduction == "mean" else error


def _in_units(model: ScoreModel, x: Tensor, there: Tensor | None) -> Tensor:
    """Data in the network's units, padding 0 whatever it held."""
    if model.standardize is not None:
        model.standardize.check(x)
        x = model.standardize(x)
    return x if there is None else torch.where(there, x, 0.0)


def _mean_square(missed: Tensor, there: Tensor | None) -> Tensor:
    """The mean square over each event, or over those of its values that are there, (B,)."""
    if there is None:
        return missed.square().flatten(1).mean(1)
    return torch.where(there, missed, 0.0).square().flatten(1).sum(1) / count(there)


def _checked(
    model: object,
    x: Tensor,
    weighting: object,
    times: object,
    coupling: object,
    reduction: object,
    generator: Generators,
) -> GaussianPath:
    """The model's path, after every check of the arguments that needs no network."""
    model = trainable("loss", model)
    _checks.batch("x", x, finite=isinstance(x, Tensor) and x.device.type == "cpu")
    _checks.choice("reduction", reduction, ("mean", "none"))
    _checks.generators(generator, len(x), x.device)
    for name, value in (("weighting", weighting), ("times", times), ("coupling", coupling)):
        if value is not None and (not callable(value) or isinstance(value, type)):
            raise TypeError(
                f"{name} must be a value such as MinSNR(), UniformTimes() or OptimalTransport(), not {value!r}."
            )
    if model.path.has_score and not isinstance(coupling, (Independent, type(None))):
        raise ValueError(
            f"{coupling!r} ties the noise to the data, which leaves no score behind; put the model on an "
            f"Interpolant(path), and path is {model.path!r}."
        )
    if not len(x):
        raise ValueError(f"An empty batch, shape {tuple(x.shape)}, has no loss.")
    model.path.ends  # noqa: B018  # what a path states is compared with its alpha and sigma, once
    return model.path


def _times(
    path: GaussianPath, x: Tensor, t: float | Tensor | None, times: Times | None, generator: Generators
) -> tuple[Tensor, Tensor | None, bool]:
    """Times (B,), their importance weights, None for 1, and whether this library drew them: others are checked here."""
    if t is not None:
        if times is not None:
            raise ValueError(f"Give either t or times, and t = {t!r} came with times = {times!r}.")
        return path.checked_times(batch_of_times(t, x.to(torch.promote_types(x.dtype, torch.float32)))), None, False
    if times is None:  # UniformTimes(), whose weights are 1
        return path.at(uniform(len(x), generator, x.dtype, x.device)), None, True
    answer = times(path, len(x), generator, x.dtype, x.device)
    if type(times) in SAMPLERS:
        return *answer, True
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise TypeError(f"times must return the times and their weights, and {times!r} gave {type(answer).__name__}.")
    t = as_time(_one_each("times", answer[0], x))
    wide = torch.promote_types(torch.promote_types(t.dtype, x.dtype), torch.float32)
    return path.checked_times(t.to(wide)), _weights("the weights of times", answer[1], x), False


def _weights(name: str, values: object, x: Tensor) -> Tensor:
    """Weights (B,) that somebody else computed: neither negative nor NaN."""
    weights = _one_each(name, values, x)
    if weights.device.type == "cpu" and not bool((weights >= 0).all()):
        wrong = weights[~(weights >= 0)]
        raise ValueError(
            f"{name} must not be negative or NaN, and it is {wrong[0]:g} for the first of {len(wrong)} such samples."
        )
    return weights


def _one_each(name: str, values: object, x: Tensor) -> Tensor:
    """A tensor with one number per sample."""
    if not isinstance(values, Tensor) or values.shape != (len(x),):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} must give one number per sample, shape ({len(x)},), and it gave {got}.")
    return values


def _combined(*terms: tuple[Tensor | float, Tensor]) -> Tensor:
    """The sum of n v; a row of PREDICTIONS holds Python's 0.0 and 1.0 where there is nothing to add or to multiply."""
    products = [
        like(n, v) * v if isinstance(n, Tensor) else v if n == 1 else n * v
        for n, v in terms
        if isinstance(n, Tensor) or n != 0
    ]
    return sum(products[1:], products[0])


def _eps_per_prediction(alpha: Tensor, sigma: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """|d eps| / |d (m p)|; an error of eps is its own measure, also where alpha = 0."""
    a, b = (n if isinstance(n, Tensor) else torch.full_like(alpha, n) for n in (a, b))
    return torch.where(a == 0, 1 / b, alpha / (alpha * b - sigma * a))


def _check_finite(model: ScoreModel, t: Tensor, *numbers: Tensor | float | None) -> None:
    """A ValueError that names the first time at which one of the numbers is not finite; on the CPU alone."""
    for number in numbers:
        if isinstance(number, Tensor) and number.device.type == "cpu" and not bool(number.isfinite().all()):
            wrong = t[~number.isfinite().expand_as(t)]
            raise ValueError(
                f"At t = {wrong[0]:g} on {model.path!r} the loss of a network for {model.predicts!r} is not finite: "
                "its target or its weight is infinite or undefined there; keep t inside the path, or train for 'v'."
            )
