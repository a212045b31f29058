"""How far an encoder's posterior is from a score prior: a bound on the Kullback-Leibler divergence, with gradients.

q is the diagonal Gaussian N(m, diag s^2) of a latent z, p the law of a model. Noised along the path, q stays Gaussian,
and what is expected of its noise has a closed form. In straight coordinates y = (1-u) z + u eps, with V the variance,

    y ~ N((1-u) m, V),   V = (1-u)^2 s^2 + u^2            eps_q = u (y - (1-u) m) / V

    KL(q || p) <= integral over u from u_min to u_noise of E|eps_q - eps_hat|^2 / (u (1-u)) du
                  + KL( q at u_noise || N(0, u_noise^2) ) + E KL( q(z | y at u_min) || N(x_hat, (u_min/(1-u_min))^2) )

p being the law of the model's reverse SDE, from N(0, u_noise^2) down to u_min, and of a draw about x_hat there. For an
exact model |eps_q - eps_hat|^2 falls like u^2 at the data and like (1-u)^2 in pure noise: u_min is 0, nothing is drawn
about x_hat, and the integral is d/du KL between the two noised laws, so that the bound is the divergence itself but for
the prior's law at the noise end. A network's error does not vanish at u = 0, its integral grows like log 1/u_min, and
u_min must stay above 0.

Where a path starts at data noised to a deviation of sigma_0, as `VESDE` does, z is the state there, as in `sample` and
`log_prob`, and s^2 - sigma_0^2 stands for s^2 in V. u_min is then by default the path's own start, where nothing is
drawn about x_hat; above it the third term has N(z_hat, (u_min/(1-u_min))^2 - sigma_0^2) in the place of that about
x_hat, z_hat being the model's mean of z, the noised latent.

The integral is estimated at random clocks. With x = (u/(1-u))^2, and D the noise less the clean latent, they are even
in

    w = log((c + x)/(a + x)),    E|eps_q - eps_hat|^2 / (u (1-u)) |du/dw|
                                 = 1/2 (c (1-u)^2 + u^2) (a (1-u)^2 + u^2) / ((c-a) u^2) E|D_q - D_hat|^2

c belongs to the noise end: it is `Model.gain` there squared, at least 1. Where a network predicts v, or the velocity on
`CondOT`, its error is one of D of like size, and c is 1 to 2: with a = 0, w is about the log(1 + SNR) of
`continuous_vlb`. Where it predicts eps, the score, or on `VESDE` and `EDM` the velocity, an error of eps is one of D
that is 1/(1-u) times as large. There c is 1/(1-u)^2 at the noise end, w nearly log-SNR, and the integrand stays between
1/2 and 1 times the squared error of eps. For a network that predicts the data, whose error of D is 1/u times its own,
there is no such bound at the data end.

a belongs to the data end: under an exact model it is the harmonic mean of s^2, less sigma_0^2, but no more than the
least variance of a component of p, or 1/4. For p = N(0, I) the integrand has the shape of |dw/du| with c = 1, and in
general it falls off below the narrower of the two laws. Under a network, whose error does not, it is 0, and where
sigma_0 > 0 the lesser of 0 and that difference.

References:
    Score-based Generative Modeling in Latent Space, Vahdat et al., 2021, arXiv:2106.05931.
    Variational Diffusion Models, Kingma et al., 2021, arXiv:2107.00630.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import scale_at
from sdegen._checks import NonFiniteError
from sdegen._shapes import Generators, like, normal, sum_event, summary
from sdegen.likelihoods.continuous import errors, first_latent
from sdegen.likelihoods.variational import check_draws, error_of_sum, stratified
from sdegen.models.base import Cond, Model, instead_of_model
from sdegen.models.exact import ExactModel, GaussianMixture
from sdegen.models.laws import positive

ROUNDING = 1e-12
"""How far beyond its clocks a model may be asked, as in `Model.covers`."""

MOST = 0.25
"""The largest a: where s^2 is near c, log((c+x)/(s^2+x)) would be no clock."""


@dataclass(frozen=True, eq=False)
class Bound:
    """A bound for every sample of a batch, in nats, that holds in expectation; of what, says the verb that returns it.

    Attributes:
        kind: "bound".
        value: an unbiased estimate of the bound, (B,), with gradients where they were on.
        standard_error: how far its draws leave `value` from its expectation, (B,), without a gradient; None for a
            single draw, which shows no spread.

    Examples:
        >>> prior = sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT())
        >>> bound = sdegen.score_kl(torch.zeros(3, 1), torch.full((3, 1), 0.5), prior)
        >>> bound.kind, bound
        ('bound', Bound(value=Tensor(3,), standard_error=Tensor(3,)))
    """

    kind: ClassVar[str] = "bound"

    value: Tensor
    standard_error: Tensor | None = None

    __repr__ = summary


def score_kl(
    mean: Tensor,
    std: Tensor,
    prior: Model,
    *,
    draws: int = 64,
    u_min: float | None = None,
    cond: Cond = None,
    generator: Generators = None,
) -> Bound:
    """A differentiable upper bound on KL(q || p) of q = N(mean, diag std^2) and the law p of a model, in nats.

        KL(q || p) <= integral over u from u_min to u_noise of E|eps_q - eps_hat|^2 / (u (1-u)) du
                      + KL( q at u_noise || N(0, u_noise^2) )
                      + E KL( q(z | y at u_min) || N(x_hat, (u_min/(1-u_min))^2) )

    with y = (1-u) z + u eps, z ~ q, eps_q = E[eps | y] in closed form and eps_hat the model's. p is the law of the
    model's reverse SDE; `log_prob` gives the density of its ODE. They are one where the score is exact and the path
    ends in pure noise; `VPSDE`, `VESDE` and `EDM` end short of it, and there they differ with an exact score too. With
    an exact model on a path that ends in pure noise the bound is the divergence; where the path ends before that, it is
    off by what the law of the data there is from N(0, sigma^2). Only the ends of the path matter.

    The second term is exact. The integral is estimated without bias at `draws` random clocks per sample, each with a y
    of its own, two of them in each of draws/2 equal slices of a clock that takes after the integrand; what is random in
    the last term at two more. Gradients flow to `mean`, `std` and the parameters of the prior where they are on, and
    every module stays in the mode it is in: this is a loss as well as a number.

    Intervals of few draws are short: value +- 1.96 standard_error of one sample holds the expectation with probability
    0.93 or so at 64 draws, 0.87 at 16 and 0.65 at 2, less where few clocks carry the integral. The mean over a batch,
    whose values are independent, has the error of any mean.

    Args:
        mean: of q, (B, *latent).
        std: of q, positive, shaped like `mean`.
        prior: a `ScoreModel`, or the `.model(path)` of an exact law, such as a `GaussianMixture`; it has a score, and
            no units of its own. `draws` network calls, two more where there is a last term.
        draws: the number of clocks per sample, even.
        u_min: where the integral starts, on the straight clock sigma/(alpha + sigma), 0 at clean data: by default that
            of `continuous_vlb`, 1e-3 or on a `DDPM` path its first trained step, and for an exact model 0. On `VESDE`,
            where z is the latent at sigma_min, it is the start of the path. Where it is the start of the path the last
            term is 0. (A wrapper such as `Guided` around an exact model is not exact.)
        cond: keyword arguments for the network; a tensor has one row per sample, unless it is `Shared`.
        generator: a torch.Generator or one per sample.

    Returns:
        The bound and its standard error, each (B,), in nats.

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, before the first network call: a std that is not positive, whose
            square is 0 in its dtype, or which is nothing beside the noise in latents of `VESDE`; latents of another
            shape than those of an exact prior; a prior without a score, in other units, that does not answer from u_min
            to the noise end of its path, or whose network is singular in the pure noise that the path ends in. Values
            on an accelerator are not looked at: there a std that is not positive gives NaN.
        NonFiniteError: for a bound that is NaN or infinite, on the CPU.

    Examples:
        >>> prior = sdegen.GaussianMixture([[-1.0], [1.0]], 0.5).model(sdegen.CondOT())
        >>> mean = torch.tensor([[1.0]], requires_grad=True)
        >>> bound = sdegen.score_kl(mean, torch.tensor([[0.5]]), prior)
        >>> bool((bound.value - 0.58).abs() < 4 * bound.standard_error)  # nearly log 2: which of the two modes it is
        True
        >>> mean.grad is None, bound.value.sum().backward(), mean.grad.shape
        (True, None, torch.Size([1, 1]))

    References:
        Score-based Generative Modeling in Latent Space, Vahdat et al., 2021, arXiv:2106.05931.
        Maximum Likelihood Training of Score-Based Diffusion Models, Song et al., 2021, arXiv:2101.09258.
    """
    latents = latents_of(prior, u_min)
    check_draws(draws)
    law = law_behind(prior)
    mean, std = checked_gaussian(mean, std, None if law is None else law.event_shape)
    _checks.generators(generator, len(mean), mean.device)
    arguments = _checks.network_arguments(_checks.conditions(cond))
    q = Posterior.of(prior, mean, std, latents.start, arguments, generator)
    _check_width(prior, q, std)
    terms = _terms(prior, q, latents, draws)
    value = q.at_noise(latents.high) + q.about_x_hat(latents.u_min) + terms.sum(1)
    if value.device.type == "cpu":
        _refuse_non_finite(value)
    return Bound(value, error_of_sum(terms.detach()))


class Latents(NamedTuple):
    """The clocks of a bound.

    Attributes:
        start: of z, the data end of the path.
        u_min: where the integral starts.
        high: the noise end.
        c: of `Clocks`.
    """

    start: float
    u_min: float
    high: float
    c: float


@dataclass(frozen=True)
class Posterior:
    """The diagonal Gaussian q of latents z that hold noise of the clock `start`, and what becomes of it along a path.

    Attributes:
        y: m, the mean of z / alpha, (B, *latent).
        std: s, like y.
        start: the clock of z, 0 where z is clean.
        cond: what the network receives.
        generator: for the draws, a torch.Generator or one per sample.
    """

    y: Tensor
    std: Tensor
    start: float
    cond: Mapping[str, object]
    generator: Generators

    @classmethod
    def of(
        cls,
        prior: Model,
        mean: Tensor,
        std: Tensor,
        start: float,
        cond: Mapping[str, object],
        generator: Generators,
    ) -> Posterior:
        """That of latents which are the prior's states at the clock `start`."""
        alpha = (1 - start) * scale_at(prior, start)
        return cls(mean / alpha, std / alpha, start, cond, generator)

    @property
    def dtype(self) -> torch.dtype:
        """That of the states."""
        return self.y.dtype

    @property
    def narrow(self) -> Tensor:
        """The harmonic mean of s^2, less sigma_0^2, (B,), without a gradient.

        It is held a few digits above -sigma_0^2, which an s far below sigma_0 would otherwise be rounded to.
        """
        std, noise = self.std.detach().flatten(1), ratio(self.start)
        least = std.amin(1)
        harmonic = least**2 / ((least[:, None] / std) ** 2).mean(1)
        return torch.clamp(harmonic - noise, min=-(1 - 1e-4) * noise)

    def noised(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of q at the clocks `u` (B,), and D_q = E[eps - x | y] there."""
        y = self.y
        return self.state(u, normal(y.shape, self.generator, y.dtype, y.device))

    def state(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The state (1-u) m + sqrt(V) z for a given z, shaped like it, and D_q there.

        D_q = (u - (1-u) (s^2 - sigma_0^2)) z / sqrt(V) - m
        """
        u = like(u, self.y)
        own = self.std**2 - ratio(self.start)
        deviation = torch.sqrt(((1 - u) * self.std) ** 2 + torch.clamp(u**2 - (1 - u) ** 2 * ratio(self.start), min=0))
        return (1 - u) * self.y + deviation * z, (u - (1 - u) * own) / deviation * z - self.y

    def at_noise(self, u: float) -> Tensor:
        """KL( q at the clock u || N(0, u^2) ), (B,), in nats."""
        scale = ((1 - u) / u) ** 2
        own = scale * (self.std**2 - ratio(self.start))
        return 0.5 * sum_event(own + scale * self.y**2 - torch.log1p(own))

    def about_x_hat(self, u: float) -> Tensor:
        """What the spread of z about its conditional mean at the clock `u` adds to the bound, (B,), in nats.

            1/2 sum of [ log(1 + x/s^2) - x / (s^2 + x) ],   x = (u/(1-u))^2 - sigma_0^2

        the divergence of q(z | y) and N(x_hat, x) less that of their means.
        """
        share = (ratio(u) - ratio(self.start)) / self.std**2
        return 0.5 * sum_event(torch.log1p(share) - share / (1 + share))


class Clocks(NamedTuple):
    """Clocks that are even in w = log((c+x)/(a+x)), x = (u/(1-u))^2, between two ends.

    Attributes:
        a: one for each sample, (B,).
        c: greater than every a.
        low: the clock at the data end.
        high: that at the noise end.
    """

    a: Tensor
    c: float
    low: float
    high: float

    @classmethod
    def of(cls, prior: Model, q: Posterior, latents: Latents) -> Clocks:
        """Those that suit q, the prior's law where it is known, and what its network predicts."""
        a, law = q.narrow, law_behind(prior)
        if prior.exact and law is not None:
            a = torch.minimum(a, law.least_variance.to(a))
        return cls(torch.clamp(a, max=MOST if prior.exact else 0.0), latents.c, latents.u_min, latents.high)

    @property
    def length(self) -> Tensor:
        """Of w, (B,)."""
        ends = ((1 - u, u) for u in (self.low, self.high))
        first, last = (torch.log((self.c * q**2 + u**2) / (self.a * q**2 + u**2)) for q, u in ends)
        return first - last

    def at(self, fraction: Tensor) -> Tensor:
        """The clock at a fraction (B,) of the way from the data to the noise, (B,).

        With x_0 at the data end and k = exp(-length fraction), in a form that keeps its digits at both ends, x is

            ((c-a) x_0 + a (c+x_0) (1-k)) / ((c+x_0) k - (a+x_0))
        """
        a, c, x_0, passed = self.a, self.c, ratio(self.low), self.length * fraction
        below = torch.clamp((c + x_0) * torch.exp(-passed) - (a + x_0), min=0)
        x = ((c - a) * x_0 - a * (c + x_0) * torch.expm1(-passed)) / below
        return torch.clamp(1 / (1 + torch.rsqrt(x)), self.low, self.high)

    def integrand(self, u: Tensor, squares: Tensor) -> Tensor:
        """The integrand in w where |D_q - D_hat|^2 is `squares`, (B,)."""
        a, c, q = self.a, self.c, 1 - u
        return 0.5 * (c * q**2 + u**2) * (a * q**2 + u**2) / ((c - a) * u**2) * squares


def _terms(prior: Model, q: Posterior, latents: Latents, draws: int) -> Tensor:
    """Random values (B, draws), two to a slice, whose sum estimates the integral, and (B, 2) for the last term."""
    start, u_min, clocks = latents.start, latents.u_min, Clocks.of(prior, q, latents)
    fractions = stratified(q.y, q.generator, draws)
    at = [clocks.at(fraction) for fraction in fractions]
    first = [torch.full_like(at[0], u_min)] * (2 if u_min > start else 0)
    squares = [(u, sum_event(error**2)) for u, error in errors(prior, q, [*at, *first], False)]
    integral = [clocks.length / draws * clocks.integrand(u, square) for u, square in squares[:draws]]
    missed = 0.25 * (1 - u_min) ** 2 * (1 - ratio(start) / ratio(u_min)) if u_min > start else 0.0
    return torch.stack([*integral, *(missed * square for _, square in squares[draws:])], 1)


def ratio(u: float) -> float:
    """(sigma/alpha)^2 at the clock `u` < 1."""
    return (u / (1 - u)) ** 2


# What a bound does with its arguments


def latents_of(prior: object, u_min: float | None) -> Latents:
    """The clocks of a bound, after every check of the prior that needs no network."""
    if not isinstance(prior, Model):
        raise TypeError(
            "prior must be a model, a ScoreModel or the .model(path) of an exact law, and it is "
            f"{instead_of_model(prior)}."
        )
    if not prior.has_score or prior.path.source is not None:
        raise ValueError(
            f"score_kl needs a prior with a score, and on {prior.path!r} there is none: its source is not Gaussian "
            "noise independent of the data. LatentModel.elbo and iwae, by log_prob, do without."
        )
    prior.needs_own_units("score_kl")
    low, high = prior.path.ends
    first = _first(prior, u_min, low, high)
    _check_answers(prior, first, high)
    return Latents(low, first, high, _at_noise(prior, high))


def _first(prior: Model, u_min: object, low: float, high: float) -> float:
    """Where the integral starts: inside the path, or at its start unless a network is asked at clean data there."""
    if u_min is None:
        return low if prior.exact else first_latent(prior.path, None, low, high)
    if prior.exact or low > 0:
        u_min = _checks.real("u_min", u_min, low, high)
        if u_min == low:
            return low
    return _checks.real("u_min", u_min, low, high, strict=True)


def _check_answers(prior: Model, first: float, high: float) -> None:
    """A ValueError unless the prior can be asked from the clock `first` to `high`, the noise end of its path."""
    least, most = prior.clocks
    if high > most + ROUNDING:
        raise ValueError(
            f"score_kl follows a path to its noise end, u = {high:g} on {prior.path!r}, and this prior answers up to "
            f"u = {most:g} alone: put it on a path that ends by then, before pure noise, prior.on(path); VPSDE() ends "
            "at u = 0.9935, VESDE() at 0.9804."
        )
    if first < least - ROUNDING:
        raise ValueError(
            f"score_kl asks the prior from u_min = {first:g} on, and this one answers from u = {least} on alone: give "
            f"u_min={least}, or more."
        )


def _at_noise(prior: Model, high: float) -> float:
    """The c of the clocks, after a ValueError where it would be infinite: 1 where nothing is wrong there."""
    gain = float(prior.gain(torch.tensor([high], dtype=torch.float64)))
    if prior.exact or (prior.clips and not math.isfinite(gain)):
        return 1.0
    if not math.isfinite(gain):
        raise ValueError(
            f"score_kl takes the prior's error up to u = {high:g}, where a network for {prior.predicts!r} is singular "
            f"on {prior.path!r}, so that the integral is infinite: train for 'v', which is singular nowhere, or take a "
            "path that ends before pure noise, such as VPSDE()."
        )
    return max(1.0, gain**2)


def law_behind(prior: object) -> GaussianMixture | None:
    """The law of an exact model, wrapped or not, whose event shape is that of a latent; None for a network."""
    while isinstance(prior, Model) and not isinstance(prior, ExactModel):
        prior = getattr(prior, "model", None)
    return prior.mixture if isinstance(prior, ExactModel) else None


def checked_gaussian(mean: object, std: object, event: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """(mean, std) in at least float32, after every check; values are looked at on the CPU alone."""
    mean, std = (
        _checks.batch(name, value, finite=isinstance(value, Tensor) and value.device.type == "cpu")
        for name, value in (("mean", mean), ("std", std))
    )
    if mean.shape != std.shape:
        raise ValueError(
            f"mean and std must have one shape (B, *latent), and they have {tuple(mean.shape)} and {tuple(std.shape)}."
        )
    if event is not None and mean.shape[1:] != tuple(event):
        raise ValueError(
            f"A latent of the prior has shape {tuple(event)}, and that of mean and std is {tuple(mean.shape[1:])}."
        )
    dtype = torch.promote_types(torch.promote_types(mean.dtype, std.dtype), torch.float32)
    return mean.to(dtype), _with_square(positive(std.to(dtype)))


def _with_square(std: Tensor) -> Tensor:
    """A deviation, after a ValueError where its square has no digits, looked at on the CPU alone."""
    least = math.sqrt(torch.finfo(std.dtype).tiny)
    if std.device.type == "cpu" and std.numel() and (found := float(std.detach().min())) < least:
        raise ValueError(
            f"std must be at least {least:.2g} in {std.dtype}, so that its square is not 0, and the smallest is "
            f"{found:.2g}."
        )
    return std


def _check_width(prior: Model, q: Posterior, std: Tensor) -> None:
    """A ValueError for a deviation that is lost beside that of the noise in the latents; on the CPU alone.

    Below a thousandth of it hardly any clock falls where the integrand is, at sigma_0^2 + std^2.
    """
    sigma_0 = math.sqrt(ratio(q.start))
    if std.device.type != "cpu" or not sigma_0 or not std.numel():
        return
    least = 1e-3 * sigma_0
    if float(q.std.detach().min()) < least:
        alpha = float((std / q.std).detach().flatten()[0])
        raise ValueError(
            f"std must be at least {alpha * least:.2g} on {prior.path!r}, where latents hold noise of deviation "
            f"{alpha * sigma_0:.2g}, and the smallest is {float(std.detach().min()):.2g}."
        )


def _refuse_non_finite(value: Tensor) -> None:
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise NonFiniteError(
            f"The bound on the divergence is not finite for {bad} of {len(value)} samples; check the prior's network, "
            "and whether mean and std are of order one."
        )
