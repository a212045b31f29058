"""Guidance: models that steer another model's answer.

With the slope D = eps_hat - x_hat of the model, y = x_t / r, x_hat = y - u D and eps_hat = y + (1-u) D:

    ClassifierFree   D' = D_0 + scale (D_c - D_0)              D_c with the condition, D_0 without
    Guided           D' = D - scale u / (1-u) grad_y log w     the score in x_t gains scale grad log w
    Clipped          D' = D + (x_hat - x_hat') / u             x_hat' held in [low, high]

Each is a `Wrapped`: a model that every solver, `log_prob` and `.on(path)` take.

References:
    Classifier-Free Diffusion Guidance, Ho and Salimans, 2022, arXiv:2207.12598.
    Diffusion Models Beat GANs on Image Synthesis, Dhariwal and Nichol, 2021, arXiv:2105.05233 (classifiers).
    Photorealistic Text-to-Image Diffusion Models, Saharia et al., 2022, arXiv:2205.11487 (dynamic thresholding).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._derivatives import differentiated
from sdegen._shapes import dtype_of
from sdegen.models import conditions
from sdegen.models.base import Model
from sdegen.models.wrapped import OnPath, Slope, Wrapped
from sdegen.paths.gaussian import GaussianPath

Scale = float | Callable[[Tensor], Tensor]
"""A number, or a function of the straight clock u."""

HIGHEST = 1 - 1e-3
"""Up to this clock a gradient is followed: the factor u/(1-u) on it is infinite in pure noise."""


class Steered(Wrapped):
    """A model whose change carries u/(1-u), and which depends on its path's own x_t and t."""

    @property
    def clocks(self) -> tuple[float, float]:
        """Those of the model, up to 0.999 where the path reaches pure noise."""
        low, high = self.model.clocks
        return low, min(high, HIGHEST) if self.path.ends[1] == 1 else high

    def on(self, path: GaussianPath) -> Model:
        """This model, asked on another path at the same u: in its own time, with its own x_t."""
        return OnPath(self, path)


class ClassifierFree(Wrapped):
    """Classifier-free guidance: away from what the network says without its condition.

        D' = D_0 + scale (D_c - D_0)

    in one network call on twice the batch. A scale of 1 is the conditional model and 0 the unconditional one (Ho and
    Salimans' w is scale - 1). The guided answer is no conditional expectation of any law, but `log_prob` is the exact
    density of what the guided ODE samples.

    Conditions are doubled on the way to the model: put a `Guided` or an `Observed` around this model, not inside.

    Args:
        model: one whose network takes conditions, trained with some of them left out.
        scale: a number, or a function of u: `lambda u: 1 + 2 * ((u > 0.2) & (u < 0.8))` guides in an interval alone.
        without: for each condition to leave out, by its name, the value that stands for none: a number, or a tensor
            that broadcasts against the condition, (B, ...).
        rescale: in [0, 1], how far the deviation of x_hat over each event is brought back to that of the conditional
            answer's. (Lin et al. and diffusers scale what their network returns, which is x_hat for "data" alone.)

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument that does not fit; later, a condition that is missing or not one row per sample.

    Examples:
        >>> law = {1.0: sdegen.Gaussian([2.0], 1.0), 0.0: sdegen.Gaussian([0.0], 1.0)}  # given c = 1, and for no c
        >>> def net(x, t, c):
        ...     models = [law[k].model(sdegen.VPSDE()) for k in (1.0, 0.0)]
        ...     return torch.where(c[:, None] == 1, *(model.eps(x, t) for model in models))
        >>> model = sdegen.ClassifierFree(sdegen.ScoreModel(net, sdegen.VPSDE()), 2.0, without={"c": 0.0})
        >>> x = sdegen.sample(model, (5, 1), sdegen.Adams(30), x_T=torch.zeros(5, 1), cond={"c": torch.ones(5)})
        >>> f"{x.mean():.1f}"  # two Gaussians of one deviation: twice as far from 0
        '4.0'

    References:
        Classifier-Free Diffusion Guidance, Ho and Salimans, 2022, arXiv:2207.12598.
        Applying Guidance in a Limited Interval, Kynkaanniemi et al., 2024, arXiv:2404.07724.
        Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin et al., 2024, arXiv:2305.08891 (`rescale`).
    """

    _shown = ("scale", "rescale")

    def __init__(self, model: Model, scale: Scale, without: Mapping[str, object], rescale: float = 0.0):
        super().__init__(model)
        self.scale, self.without = _checked_scale(scale), conditions.checked(without)
        self.rescale = _checks.real("rescale", rescale, 0, 1)

    @cached_property
    def _there(self) -> dict[torch.device, dict[str, object]]:
        """What stands for no condition, by the device it was moved to; no part of what the model is."""
        return {}

    def change(self, D: Slope, y: Tensor, u: Tensor, r: Tensor, t: Tensor, cond: Mapping[str, object]) -> Tensor:
        """D_0 + scale (D_c - D_0)."""
        without = conditions.there(self.without, y.device, self._there)
        given, free = D(torch.cat([y, y]), cond=conditions.twice(cond, without, len(y))).chunk(2)
        guided = free + _scale_at(self.scale, u) * (given - free)
        if not self.rescale:
            return guided
        x_hat = y - u * guided
        return _with_data(guided, u, x_hat, x_hat * (1 + self.rescale * (_ratio(y - u * given, x_hat, y) - 1)))


class Guided(Steered):
    """A model times a weight: the score gains the gradient of log w, by one network call.

        s' = s + scale grad log w(x_t, t)        eps_hat' = eps_hat - scale sigma grad log w

    With w = p(c | x_t) at scale 1 it is the model of the data given c: a classifier of noised data guides, and so do
    the logit of a discriminator, a reward, a constraint. With `of="data"` the weight is that of x_hat, and its gradient
    is taken through the network: no training on noised data, but p(c | x_hat) is not p(c | x_t).

    The factor on the gradient is infinite in pure noise: where the path reaches u = 1, give the verbs u=(0.999, 0).

    Args:
        model: the model to steer.
        log_weight: log w, called as log_weight(x_t, t, **cond) with states x_t (B, *event) in data units and the path's
            own times t (B,); returns (B,). It receives the conditions that the network receives. An nn.Module becomes
            a part of the model.
        scale: a number, or a function of u.
        of: "x_t", or "data": log_weight(x_hat, t, **cond).

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument that does not fit; later, a log_weight of another shape, without a gradient or NaN.

    Examples:
        >>> model = sdegen.Gaussian([0.0], 1.0).model(sdegen.VPSDE())
        >>> guided = sdegen.Guided(model, lambda x, t: 3 * x.sum(1))  # grad log w = 3
        >>> x_t, t = torch.randn(4, 1), torch.rand(4)
        >>> torch.allclose(guided.score(x_t, t), model.score(x_t, t) + 3, atol=1e-5)
        True

    References:
        Diffusion Models Beat GANs on Image Synthesis, Dhariwal and Nichol, 2021, arXiv:2105.05233.
        Universal Guidance for Diffusion Models, Bansal et al., 2023, arXiv:2302.07121 (`of="data"`).
        Refining Generative Process with Discriminator Guidance, Kim et al., 2023, arXiv:2211.17091.
    """

    _shown = ("scale", "of")

    def __init__(self, model: Model, log_weight: Callable[..., Tensor], scale: Scale = 1.0, *, of: str = "x_t"):
        super().__init__(model)
        model.needs_score("Guidance by a gradient")
        model.needs_own_units("Guidance by a gradient")
        self.log_weight, self.scale = _checked_function(log_weight), _checked_scale(scale)
        self.of = _checks.choice("of", of, ("x_t", "data"))

    def change(self, D: Slope, y: Tensor, u: Tensor, r: Tensor, t: Tensor, cond: Mapping[str, object]) -> Tensor:
        """D - scale u/(1-u) grad_y log w."""
        with differentiated(y) as (state, keep):
            through = D(state, cond=cond) if self.of == "data" else None
            x = r * state if through is None else state - u * through
            log_w = _checked_weight(self.log_weight(*_shown(self.log_weight, x, t), **cond), y)
            (gradient,) = torch.autograd.grad(log_w.sum(), state, create_graph=keep)
        slope = D(y, cond=cond) if through is None else through
        changed = slope - _scale_at(self.scale, u) * u / (1 - u) * gradient
        return changed if keep else changed.detach()


class Clipped(Wrapped):
    """A model whose estimate of the data stays in [low, high], wherever it is asked; one network call.

    x_hat' is x_hat clipped, and eps_hat' = (y - (1-u) x_hat') / u the noise that goes with it; at u = 0, where
    x_hat = y, the model's own answer. With `quantile`, dynamic thresholding: about the middle of [low, high] and in
    units of half its width, s is this quantile of |x_hat| over each event, held in [1, most], and x_hat' is x_hat
    clipped to [-s, s] and divided by s.

    Where the model's own samples would leave [low, high], the clipped ODE gathers them on its ends: `log_prob` is the
    density of the rest, and integrates to less than one.

    Args:
        model: the model to clip.
        low: the least value of the data.
        high: the largest.
        quantile: in (0, 1], or None for static clipping.
        most: the largest s, at least 1.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument that does not fit.

    Examples:
        >>> model = sdegen.Clipped(sdegen.Gaussian([0.0], 1.0).model(sdegen.VPSDE()), -1.0, 1.0)
        >>> bool(sdegen.sample(model, (100, 1), sdegen.Adams(20)).abs().max() < 1.01)
        True

    References:
        Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
        Photorealistic Text-to-Image Diffusion Models, Saharia et al., 2022, arXiv:2205.11487 (dynamic thresholding).
    """

    _shown = ("low", "high", "quantile", "most")

    def __init__(self, model: Model, low: float, high: float, *, quantile: float | None = None, most: float = math.inf):
        super().__init__(model)
        model.needs_own_units("Clipping")
        self.low, self.high = _checks.real("low", low), _checks.real("high", high)
        self.quantile, self.most = _checked_thresholds(self.low, self.high, quantile, most)
        self.clips = True

    def change(self, D: Slope, y: Tensor, u: Tensor, r: Tensor, t: Tensor, cond: Mapping[str, object]) -> Tensor:
        """D + (x_hat - x_hat') / u."""
        slope = D(y, cond=cond)
        x_hat = y - u * slope
        return _with_data(slope, u, x_hat, _held(x_hat, self.low, self.high, self.quantile, self.most))


def _held(x: Tensor, low: float, high: float, quantile: float | None, most: float) -> Tensor:
    """x in [low, high]: clipped, or about the middle clipped to [-s, s] and divided by s."""
    if quantile is None:
        return x.clamp(low, high)
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    z = (x - middle) / half
    s = _quantile(z.abs(), quantile).clamp(1, most)
    return torch.where(s > 1, middle + half * torch.minimum(torch.maximum(z, -s), s) / s, x.clamp(low, high))


def _with_data(slope: Tensor, u: Tensor, x_hat: Tensor, other: Tensor) -> Tensor:
    """The slope D where `other` stands for x_hat; D itself at u = 0, up to rounding, where x_hat is y."""
    return slope + (x_hat - other) / torch.where(u > torch.finfo(u.dtype).eps, u, math.inf)


def _ratio(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """The deviation of a over each event in that of b, (B, 1, ...); 1 where b is constant, to the rounding of y."""
    over, under = (x.var(tuple(range(1, x.ndim)), correction=0, keepdim=True) for x in (a, b))
    least = (16 * torch.finfo(y.dtype).eps) ** 2 * y.square().mean(tuple(range(1, y.ndim)), keepdim=True)
    return torch.where(under > least, over / torch.where(under > least, under, 1.0), 1.0).sqrt()


def _quantile(x: Tensor, q: float) -> Tensor:
    """The q-quantile over each event, (B, 1, ...), linear between neighbours; of events of any size."""
    ordered = x.flatten(1).sort(1).values
    place = q * (ordered.shape[1] - 1)
    below = math.floor(place)
    found = torch.lerp(ordered[:, below], ordered[:, min(below + 1, ordered.shape[1] - 1)], place - below)
    return found.reshape(-1, *(1,) * (x.ndim - 1))


def _shown(log_weight: Callable[..., Tensor], x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x and t, one time per row, in the precision of the weights of a module."""
    dtype = dtype_of(log_weight, x.dtype)
    return x.to(dtype), t.reshape(-1).expand(len(x)).to(dtype)


def _scale_at(scale: Scale, u: Tensor) -> float | Tensor:
    """The scale at the clocks u, after an error unless it is one number, or one for each of them."""
    if not callable(scale):
        return scale
    value = scale(u)
    if not isinstance(value, Tensor):
        return _checks.real("scale(u)", value)
    if value.shape not in ((), u.shape):
        raise ValueError(f"scale(u) must be shaped like u, {tuple(u.shape)}, and it is {tuple(value.shape)}.")
    if value.device.type == "cpu" and not bool(value.isfinite().all()):
        raise ValueError(f"scale(u) must be finite, and it is {value.tolist()} at u = {u.tolist()}.")
    return value


def _checked_function(log_weight: object) -> Callable[..., Tensor]:
    if not callable(log_weight):
        raise TypeError(f"log_weight must be callable as log_weight(x_t, t), and it is {log_weight!r}.")
    return log_weight


def _checked_scale(scale: object) -> Scale:
    return scale if callable(scale) else _checks.real("scale", scale)


def _checked_thresholds(low: float, high: float, quantile: float | None, most: float) -> tuple[float | None, float]:
    if not low < high:
        raise ValueError(f"low must be below high, and they are {low} and {high}.")
    if quantile is not None:
        quantile = _checks.real("quantile", quantile, 0, 1)
        if quantile == 0:
            raise ValueError("quantile must be above 0, and it is 0.")
    if most != math.inf:
        most = _checks.real("most", most, 1)
        if quantile is None:
            raise ValueError(f"most is about dynamic thresholding, and most = {most} came without a quantile.")
    return quantile, most


def _checked_weight(log_w: object, y: Tensor) -> Tensor:
    """What log_weight returned for a batch like `y`, after a ValueError unless it has a gradient; NaN is looked for."""
    if not isinstance(log_w, Tensor) or log_w.shape != (len(y),):
        got = tuple(log_w.shape) if isinstance(log_w, Tensor) else type(log_w).__name__
        raise ValueError(f"log_weight must return a tensor of shape ({len(y)},), one number per sample, not {got}.")
    if not log_w.requires_grad:
        raise ValueError("log_weight returned numbers without a gradient: leave out torch.no_grad, detach and argmax.")
    if log_w.device.type == "cpu" and bool(log_w.detach().isnan().any()):
        raise _checks.NonFiniteError(f"log_weight is NaN in {int(log_w.isnan().sum())} of {len(log_w)} samples.")
    return log_w
