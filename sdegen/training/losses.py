"""Denoising score matching and flow matching: one loss, the network's own prediction regressed on its target.

With k p = a x + b eps (models/model.py) the loss of one sample at time t is the mean over the event of

    weight(t) [ k p_theta(x_t, t) - (a x + b eps) ]^2          x_t = alpha x + sigma eps

so that for "score" it is [sigma s_theta + eps]^2, number for number the loss of eps_theta = -sigma s_theta. The
minimiser is E[target | x_t]: s = -E[eps | x_t]/sigma for denoising score matching, dx/dt for flow matching.

Weightings are stated on the squared error of eps and converted, |d eps| = (1-u) / ((1-u) b - u a) |d (k p)| in straight
coordinates, so a weighting means the same for every prediction. Times are drawn with an importance weight (times.py).

A Connection Between Score Matching and Denoising Autoencoders, Vincent, 2011; Song et al., 2021, arXiv:2011.13456;
Maximum Likelihood Training of Score-Based Diffusion Models, Song et al., 2021, arXiv:2101.09258; Lipman et al., 2023,
arXiv:2210.02747; Efficient Diffusion Training via Min-SNR Weighting Strategy, Hang et al., 2023, arXiv:2303.09556.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators, as_time, batch_of_times, like
from sdegen.models.base import PREDICTIONS, Cond
from sdegen.models.model import ScoreModel
from sdegen.paths.gaussian import GaussianPath
from sdegen.training.couplings import Coupling, Independent, pairs
from sdegen.training.times import Times, UniformTimes

Weighting = Callable[[GaussianPath, Tensor], Tensor]


@dataclass(frozen=True)
class LikelihoodWeighting:
    """g^2/2 on the squared error of the score, that is -lambda'(t)/2 on that of eps (per unit of time).

    Its mean over time, times d, is the integral in the evidence bound, in nats. It grows like 1/t at a clean data end:
    draw times with `LikelihoodTimes`. Song et al., 2021, arXiv:2101.09258.
    """

    def __call__(self, path: GaussianPath, t: Tensor) -> Tensor:
        """The weight of the squared error of eps at times t (B,); a ValueError on a path without a score."""
        if not path.has_score:
            raise ValueError(f"The likelihood weight is a score's, and on {path!r} there is none.")
        span = abs(path.t_noise - path.t_data)
        return 0.5 * span * (path.diffusion(t) / path.sigma(t)) ** 2


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on the squared error of the data, that is min(1, gamma/SNR) on that of eps.

    Hang et al., 2023, arXiv:2303.09556.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _checks.real("gamma", self.gamma, 0, strict=True)

    def __call__(self, path: GaussianPath, t: Tensor) -> Tensor:
        """The weight of the squared error of eps at times t (B,)."""
        return torch.clamp(self.gamma * (path.sigma(t) / path.alpha(t)) ** 2, max=1.0)


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
) -> Tensor:
    """Denoising score matching or flow matching on data `x` (B, *event), in the network's own prediction.

    weighting: None for the plain squared error ("simple" for an eps network), `LikelihoodWeighting()`, `MinSNR()`, or a
               callable (path, t) -> the weight (B,) of the squared error of eps.
    times:     how t is drawn: `UniformTimes()` by default, `LowDiscrepancyTimes()`, `LikelihoodTimes()` or
               `ChainTimes()`.
    cond:      keyword arguments for the network.

    t, noise:  the times, a scalar or (B,), and the standard normals eps (or the source's draws) like x, instead of
               draws.
    generator: for those draws, a torch.Generator or one per sample.
    reduction: "mean" over batch and event, or "none": (B,), the mean over each event.
    coupling:  which noise goes with which sample, such as `OptimalTransport()`; on an `Interpolant` alone, since the
               score is lost. Tensors in cond with one row a sample follow x; losses come in the coupling's order.

    One network call. On the CPU, NaN in x is refused; on an accelerator that look would stall the training loop.
    Raises TypeError or ValueError for input that is not as described.
    """
    path = _checked(model, x, {"weighting": weighting, "times": times, "coupling": coupling}, reduction, generator)
    if t is None:
        t, importance = (times or UniformTimes())(path, len(x), generator, x.dtype, x.device)
        _one_each("times", t, x)
    elif times is None:
        t, importance = path.checked_times(batch_of_times(t, x.to(torch.promote_types(x.dtype, torch.float32)))), 1.0
    else:
        raise ValueError(f"Give either t or times, and t = {t!r} came with times = {times!r}.")
    eps = path.noise_like(x, generator) if noise is None else _given_noise(noise, x)
    if coupling is not None:
        rows, partners = pairs(coupling, x, eps, generator)
        x, eps, cond = x[rows], eps[partners], _checks.network_arguments(_checks.conditions(cond), rows, len(x))
    alpha, sigma = path.alpha(t), path.sigma(t)
    row = [as_time(n).to(t).expand_as(t) for n in PREDICTIONS[model.predicts](path, t, alpha, sigma)]
    a, b, k = (like(n, x) for n in row)
    weight = importance
    if weighting is not None:
        per_eps = _eps_per_prediction(alpha, sigma, *row[:2]) ** 2
        weight = importance * _one_each("weighting", weighting(path, t), x) * per_eps
    p = model((like(alpha, x) * x + like(sigma, x) * eps).to(x.dtype), t, cond)
    error = weight * (k * p - (a * x + b * eps)).square().flatten(1).mean(1)
    return error.mean() if reduction == "mean" else error


def _checked(
    model: object, x: Tensor, values: dict[str, object], reduction: object, generator: Generators
) -> GaussianPath:
    """The model's path, after every check of the arguments that needs no network."""
    if not isinstance(model, ScoreModel):
        raise TypeError(f"loss needs a ScoreModel, whose network it trains, and model is {type(model).__name__}.")
    _checks.batch("x", x, finite=x.device.type == "cpu" if isinstance(x, Tensor) else False)
    _checks.choice("reduction", reduction, ("mean", "none"))
    _checks.generators(generator, len(x), x.device)
    for name, value in values.items():
        if value is not None and (not callable(value) or isinstance(value, type)):
            raise TypeError(
                f"{name} must be a value such as MinSNR(), UniformTimes() or OptimalTransport(), not {value!r}."
            )
    coupling = values["coupling"]
    if model.path.has_score and not isinstance(coupling, (Independent, type(None))):
        raise ValueError(
            f"{coupling!r} ties the noise to the data, which leaves no score behind; put the model on an "
            f"Interpolant(path), and path is {model.path!r}."
        )
    if not len(x):
        raise ValueError(f"An empty batch, shape {tuple(x.shape)}, has no loss.")
    return model.path


def _eps_per_prediction(alpha: Tensor, sigma: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """|d eps| / |d (k p)|; an error of eps is its own measure, also where alpha = 0."""
    return torch.where(a == 0, 1 / b, alpha / (alpha * b - sigma * a))


def _one_each(name: str, values: Tensor, x: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (len(x),):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} must give one number a sample, shape ({len(x)},), and it gave {got}.")
    return values


def _given_noise(noise: Tensor, x: Tensor) -> Tensor:
    _checks.batch("noise", noise, finite=False)
    if noise.shape != x.shape:
        raise ValueError(f"noise must have the shape of x, {tuple(x.shape)}, and it has {tuple(noise.shape)}.")
    return noise.to(x)
