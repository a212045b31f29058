"""A variational autoencoder whose latents have a score model for their prior.

    z ~ p(z), the law of any model        x ~ p(x | z), the decoder's        q(z | x), the encoder's

    log p(x) >= E_q[ log p(x | z) + log p(z) - log q(z | x) ]                                       elbo
    log p(x) >= E log of the mean over K draws of w,   w = p(x | z) p(z) / q(z | x)                 iwae, ELBO at K = 1
    -log p(x) <= -E_q log p(x | z) + KL(q(z | x) || p)                                              loss

The first two take p(z) from `log_prob`, the density of the prior's ODE. The third takes a bound on the divergence from
`score_kl`, which costs a few network calls and has gradients for all three networks; its p(x) is that of the prior's
reverse SDE, which differs from the ODE's unless the score is exact, and a little even then where the path ends before
pure noise. A mixture of Gaussians as prior, GaussianMixture(...).model(path), gives the mixture term of the GMVAE
exactly, for a mixture that is fixed where the GMVAE's depends on a second latent: the component of z is summed out,
where the usual form takes the divergence from every component and is looser.

References:
    Auto-Encoding Variational Bayes, Kingma and Welling, 2014, arXiv:1312.6114.
    Importance Weighted Autoencoders, Burda et al., 2016, arXiv:1509.00519.
    Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders, Dilokthanakul et al., 2016,
    arXiv:1611.02648.
    Score-based Generative Modeling in Latent Space, Vahdat et al., 2021, arXiv:2106.05931.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._arguments import batch_parts, evaluating
from sdegen._checks import NonFiniteError
from sdegen._shapes import Generators, dtype_of, event_size, first_weight, generator_of_rows
from sdegen.likelihoods.density import log_prob
from sdegen.likelihoods.posterior import ROUNDING, Bound, checked_gaussian, latents_of, law_behind, score_kl
from sdegen.likelihoods.variational import IWAE
from sdegen.models.base import Cond, Model, instead_of_model
from sdegen.models.laws import Diagonal, Foreign, Law, check_rows, law_of, named, positive
from sdegen.sampling import LATENT_SOLVER, ode_solver, sample
from sdegen.solvers import Exact, Hutchinson
from sdegen.solvers.base import Solver
from sdegen.solvers.divergence import Trace


class LatentModel(nn.Module):
    """An encoder, a decoder and a prior of their latents: trained by `.loss`, scored by `.elbo` and `.iwae`.

    Encoder and decoder are modules, whose parameters are then this one's, or any functions. Each returns a diagonal
    Gaussian (mean, std), or a law: an object with `.log_prob`, of torch.distributions or a conditional flow such as
    zuko's, a module with forward(x) = flow(features(x)). Log-densities of a law have shape (B,), or one for every value
    or group of values, which are summed. `.loss` bounds -log p(x) under the prior's reverse SDE; `.elbo`, `.iwae` and,
    by default, `.sample` are those of its ODE, another law unless the score is exact and, on a path that ends before
    pure noise, slightly even then. A module is called in the dtype of its own parameters; z and
    log-densities are in float32 at least, x in what the decoder answers in. Training is a loop of your own::

        model = sdegen.LatentModel(encoder, decoder, sdegen.ScoreModel(net, sdegen.VPSDE()), latent_shape=(8,))
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        for x in batches:
            loss = model.loss(x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    Args:
        encoder: encoder(x) for x (B, *event): (mean, std), the mean (B, *latent), or a law with `.rsample()` or
            `.sample()`, of shape (B, *latent), and `.log_prob(z)`.
        decoder: decoder(z) for z (B, *latent): (mean, std), or a law with `.log_prob(x)` and, for `.sample`,
            `.sample()`. mean and std have as many axes as x, (B, *event), each as long as that of x or 1, or are single
            numbers; a std may have the shape of one sample, as a parameter has.
        prior: any model of latents: a `ScoreModel`, which is trained along, or an exact one. Latents should be of order
            one. On `VESDE` a latent is the state at sigma_min.
        latent_shape: of one latent, (*latent,); known already where the prior is exact. `.sample` needs it.

    Raises:
        TypeError: an argument of another type.
        ValueError: a latent_shape that is not that of the exact prior; later, what encoder and decoder return does not
            fit.

    Examples:
        >>> encoder = lambda x: (0.5 * x, torch.full_like(x, 0.5**0.5))  # the posterior of x = z + noise
        >>> decoder = lambda z: (z, torch.ones_like(z))
        >>> model = sdegen.LatentModel(encoder, decoder, sdegen.Gaussian([0.0], 1.0).model(sdegen.CondOT()))
        >>> bound = model.elbo(torch.zeros(1, 1))
        >>> f"{bound.value.item():.2f}"  # log N(0; 0, 2)
        '-1.27'
        >>> model.sample(5).shape, model.loss(torch.randn(8, 1)).shape
        (torch.Size([5, 1]), torch.Size([]))

    References:
        Auto-Encoding Variational Bayes, Kingma and Welling, 2014, arXiv:1312.6114.
        Score-based Generative Modeling in Latent Space, Vahdat et al., 2021, arXiv:2106.05931.
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], object],
        decoder: Callable[[Tensor], object],
        prior: Model,
        *,
        latent_shape: Sequence[int] | None = None,
    ):
        super().__init__()
        for name, value in (("encoder", encoder), ("decoder", decoder)):
            if not callable(value) or isinstance(value, type):
                raise TypeError(f"{name} must be a module or a function of one tensor, and it is {value!r}.")
        if not isinstance(prior, Model):
            raise TypeError(
                "prior must be a model, a ScoreModel or the .model(path) of an exact law, and it is "
                f"{instead_of_model(prior)}."
            )
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        law = law_behind(prior)
        self.latent_shape = _latent_shape(latent_shape, None if law is None else law.event_shape)

    def __repr__(self) -> str:
        names = (
            f"{name}={getattr(part, '__name__', type(part).__name__)}"
            for name, part in (("encoder", self.encoder), ("decoder", self.decoder))
        )
        return f"LatentModel({', '.join(names)}, prior={self.prior!r}, latent_shape={self.latent_shape})"

    def loss(
        self, x: Tensor, *, draws: int = 2, u_min: float | None = None, cond: Cond = None, generator: Generators = None
    ) -> Tensor:
        """A bound on -log p(x), the mean over the batch in nats per sample, for training all three networks.

            -E_q log p(x | z) + KL(q(z | x) || p)

        by one z for every sample, with the bound of `score_kl` in place of the divergence: an unbiased estimate, whose
        gradients reach encoder, decoder and prior. p, here, is the law of the prior's reverse SDE, and p(x) what the
        decoder makes of it; `elbo` and `iwae` bound the p(x) of its ODE. Modules stay in the mode they are in, and an
        accelerator is not waited for.

        Args:
            x: data (B, *event), B at least 1.
            draws: the number of clocks per sample in `score_kl`, even: as many network calls of the prior, two more
                where it is no exact one.
            u_min: as in `score_kl`, on the straight clock sigma/(alpha + sigma).
            cond: keyword arguments for the prior's network.
            generator: for all draws, a torch.Generator or one per sample.

        Returns:
            A scalar.

        Raises:
            TypeError: an argument of another type; an encoder whose law is no diagonal Gaussian.
            ValueError: an argument that does not fit, as in `score_kl` too.
            NonFiniteError: a bound on the divergence, or a log-density of the decoder, that is NaN or infinite, on the
                CPU.
        """
        latents_of(self.prior, u_min)
        self._check_data(x, generator)
        if not len(x):
            raise ValueError(f"An empty batch, shape {tuple(x.shape)}, has no loss.")
        q = self._encoded(x)
        if isinstance(q, Foreign):
            raise TypeError(
                "LatentModel.loss needs a diagonal Gaussian from the encoder, (mean, std) or a torch Normal, which has "
                f"closed forms at every noise, and the encoder returned {named(q.law)}; elbo and iwae take any law."
            )
        decoded = self._decoded(q.draw(len(x), generator))
        bound = score_kl(q.mean, q.std, self.prior, draws=draws, u_min=u_min, cond=cond, generator=generator)
        log_x = decoded.log_prob(x)
        if log_x.device.type == "cpu":
            _refuse(~log_x.isfinite(), "log-density of the decoder", "samples")
        return (bound.value - log_x).mean()

    def elbo(
        self,
        x: Tensor,
        *,
        draws: int = 1,
        solver: Solver | None = None,
        trace: str | Trace = "auto",
        cond: Cond = None,
        generator: Generators = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Bound:
        """The evidence lower bound on log p(x), in nats, by the prior's `log_prob`, without a gradient.

            log p(x) >= E_q[ log p(x | z) + log p(z) - log q(z | x) ]

        The modules are in eval mode while it runs.

        Args:
            x: data (B, *event).
            draws: the number of z per sample, over which the mean is taken.
            solver: as in `log_prob`; its error in log p(z) is the bound's.
            trace: as in `log_prob`.
            cond: keyword arguments for the prior's network; tensors with one row per sample are repeated with its
                draws, `Shared` ones are not.
            generator: for z and the probes, a torch.Generator or one per sample.
            batch_size: rows in one network call and one solve, where all draws of a sample are rows; all by default.
            progress: as in `log_prob`.

        Returns:
            The bound and the standard error of the mean over z, each (B,); -inf and inf where a draw of z makes x
            impossible.

        Raises:
            TypeError: an argument of another type, before the first network call; later, what encoder or decoder return
                is no law.
            ValueError: an argument that does not fit, or a prior that cannot be asked at an end of its path, before the
                first network call; later, what encoder and decoder return does not fit.
            NonFiniteError: a log-density became NaN or +inf.
        """
        asked = _Scoring(solver, trace, cond, generator, batch_size, progress)
        weights = self._log_weights(x, _checks.whole("draws", draws), asked)
        value = weights.mean(1)
        if draws == 1:
            return Bound(value)
        return Bound(value, torch.where(value == -math.inf, math.inf, weights.std(1) / math.sqrt(draws)))

    def iwae(
        self,
        x: Tensor,
        samples: int,
        *,
        solver: Solver | None = None,
        trace: str | Trace = "exact",
        cond: Cond = None,
        generator: Generators = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> IWAE:
        """The importance-weighted lower bound on log p(x), in nats, by the prior's `log_prob`.

            log p(x) >= E log( 1/K sum over k of w_k ),   w_k = p(x | z_k) p(z_k) / q(z_k | x),   z_k ~ q

        It rises with K = `samples`, from the ELBO at K = 1, and its gap falls like (E w^2 / p(x)^2 - 1) / (2K). The
        trace is exact: the noise of an estimated one would raise the mean of the weights, which then bounds nothing.

        Args:
            x: data (B, *event).
            samples: K, the number of z per sample.
            solver: as in `log_prob`.
            trace: "exact" or `Exact(chunk)`.
            cond: as in `elbo`.
            generator: as in `elbo`.
            batch_size: as in `elbo`.
            progress: as in `log_prob`.

        Returns:
            The log-weights, with `.log_prob`, its `.standard_error` and `.effective_samples`.

        Raises:
            TypeError: as `elbo`, and an estimated trace.
            ValueError: as `elbo`.
            NonFiniteError: as `elbo`.

        References:
            Importance Weighted Autoencoders, Burda et al., 2016, arXiv:1509.00519.
        """
        if not (isinstance(trace, Exact) or (isinstance(trace, str) and trace == "exact")):
            raise TypeError(
                f"A bound of several draws needs the exact trace, 'exact' or Exact(chunk), and trace is {trace!r}: the "
                "noise of an estimate raises the mean of the weights, which then bounds nothing."
            )
        asked = _Scoring(solver, trace, cond, generator, batch_size, progress)
        return IWAE(self._log_weights(x, _checks.whole("samples", samples), asked), event_size(x.shape))

    def sample(
        self,
        n: int,
        solver: Solver | None = None,
        *,
        generator: Generators = None,
        cond: Cond = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draws of x: a latent from the prior by `sdegen.sample`, and x from the decoder's law.

        Where the decoder's mean is what you want to look at, `model.decoder(z)` has it, for z = sdegen.sample(prior,
        ...). z has the dtype of the prior's network, float32 at least, or that of an exact law, and x that of what the
        decoder returns. The modules are in eval mode while it runs.

        Args:
            n: how many; with 0 the decoder is called with no rows.
            solver: as in `sdegen.sample`; by default the ODE to tolerance 1e-6, as in `decode`.
            generator: for z and x, a torch.Generator or one per sample.
            cond: keyword arguments for the prior's network.
            batch_size: rows in one network call; all of them by default.
            progress: whether to show a bar of the solve (needs tqdm).

        Returns:
            A tensor (n, *event), where the event is what the decoder's mean and std broadcast to.

        Raises:
            TypeError: an argument of another type, before the first network call; later, what the decoder returns is no
                law, or one without draws.
            ValueError: an argument that does not fit, a latent_shape that nobody stated, or a prior that cannot be
                asked at an end of its path, before the first network call; later, what the decoder returns does not
                fit.
            NonFiniteError: a latent became NaN or infinite.
        """
        n = _checks.whole("n", n, least=0)
        if self.latent_shape is None:
            raise ValueError(
                "The shape of a latent is not known, since the prior is no exact one: build the model with "
                "LatentModel(encoder, decoder, prior, latent_shape=...)."
            )
        _check_ends(self.prior, solver, from_data=solver is None)
        dtype, device = self._of_latents()
        z = sample(
            self.prior,
            (n, *self.latent_shape),
            LATENT_SOLVER if solver is None else solver,
            generator=generator,
            cond=cond,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
        with evaluating(self):
            drawn = []
            for rows in list(batch_parts(z, batch_size)) or [slice(0, 0)]:
                law = self._decoded(z[rows])
                drawn.append(law.draw(rows.stop - rows.start, generator_of_rows(generator, rows)))
        return torch.cat(drawn)

    def _of_latents(self) -> tuple[torch.dtype, torch.device]:
        """The dtype and the device of latents that are drawn: the prior's, else the decoder's, else the encoder's."""
        parameters = (first_weight(part) for part in (self.prior, self.decoder, self.encoder))
        first, law = next((p for p in parameters if p is not None), None), law_behind(self.prior)
        dtype, device = (torch.get_default_dtype(), None) if first is None else (first.dtype, first.device)
        if law is not None:
            dtype = torch.promote_types(dtype, law.dtype)
            device = law.device if device is None else device
        dtype = torch.promote_types(self.prior.working_dtype(dtype), torch.float32)
        return dtype, torch.empty(0).device if device is None else device

    def _check_data(self, x: Tensor, generator: Generators) -> None:
        """Data (B, *event), finite as far as the CPU can see, and generators that fit them."""
        if isinstance(x, Tensor) and not (x.is_floating_point() or x.is_complex()):
            raise TypeError(
                f"x must have a real floating dtype, and it has {x.dtype}: pass x.float(), in which the laws of a "
                "decoder, such as Bernoulli and Categorical, take whole numbers too."
            )
        _checks.batch("x", x, finite=isinstance(x, Tensor) and x.device.type == "cpu")
        _checks.generators(generator, len(x), x.device)

    def _encoded(self, x: Tensor) -> Law:
        """q(z | x)."""
        law = law_of("encoder", self.encoder(x.to(dtype_of(self.encoder, x.dtype))))
        if isinstance(law, Foreign):
            return law
        mean, std = checked_gaussian(law.mean, _like_mean(law), self.latent_shape)
        if len(mean) != len(x):
            raise ValueError(f"The encoder must return one latent per sample, {len(x)} rows, and it gave {len(mean)}.")
        return Diagonal("encoder", mean, std)

    def _decoded(self, z: Tensor) -> Law:
        """p(x | z)."""
        law = law_of("decoder", self.decoder(z.to(dtype_of(self.decoder, z.dtype))))
        return law if isinstance(law, Foreign) else Diagonal("decoder", law.mean, positive(law.std))

    def _log_weights(self, x: Tensor, draws: int, asked: _Scoring) -> Tensor:
        """log p(x | z) + log p(z) - log q(z | x) of every draw of z, (B, draws)."""
        asked.check()
        self._check_data(x, asked.generator)
        _check_ends(self.prior, asked.solver)
        B = len(x)
        if not B:
            return x.new_empty(0, draws, dtype=torch.promote_types(x.dtype, torch.float32))
        which = torch.arange(draws * B, device=x.device) % B
        with evaluating(self):
            z, log_q = self._latents(x, draws, asked)
            log_p = log_prob(
                self.prior,
                z,
                asked.solver,
                trace=asked.trace,
                generator=asked.generator_of(draws),
                cond=_checks.conditions_of_rows(_checks.conditions(asked.cond), which, B) if draws > 1 else asked.cond,
                batch_size=asked.batch_size,
                progress=asked.progress,
            )
            parts = list(batch_parts(z, asked.batch_size))
            log_x = torch.cat([self._decoded(z[rows]).log_prob(x[which[rows]]) for rows in parts])
        weights = log_x + log_p - log_q
        _refuse(weights.isnan() | (weights == math.inf), "log-weight", "latents")
        return weights.reshape(draws, B).T

    def _latents(self, x: Tensor, draws: int, asked: _Scoring) -> tuple[Tensor, Tensor]:
        """Every draw of z, (draws B, *latent), one draw of the whole batch after another, and log q(z | x)."""
        latents, densities = [], []
        for rows in batch_parts(x, asked.batch_size):
            q, generator = self._encoded(x[rows]), generator_of_rows(asked.generator, rows)
            own = [q.draw(rows.stop - rows.start, generator) for _ in range(draws)]
            check_rows("encoder", own[0], rows.stop - rows.start, self.latent_shape)
            latents.append(torch.stack(own))
            densities.append(torch.stack([q.log_prob(z) for z in own]))
        return torch.cat(latents, 1).flatten(0, 1), torch.cat(densities, 1).flatten()


class _Scoring(NamedTuple):
    """What `log_prob` of the prior is given, and how large a part of the batch may be; see `LatentModel.elbo`."""

    solver: Solver | None
    trace: str | Trace
    cond: Cond
    generator: Generators
    batch_size: int | None
    progress: bool

    def check(self) -> None:
        """Every check that needs no network."""
        if self.solver is not None:
            ode_solver(self.solver)
        if not isinstance(self.trace, (Exact, Hutchinson)):
            _checks.choice("trace", self.trace, ("exact", "auto"))
        _checks.conditions(self.cond)
        if self.batch_size is not None:
            _checks.whole("batch_size", self.batch_size)

    def generator_of(self, draws: int) -> Generators:
        """That of all rows, where a sample stands there once for every draw."""
        several = self.generator is not None and not isinstance(self.generator, torch.Generator)
        return [*cast("Sequence[torch.Generator]", self.generator)] * draws if several else self.generator


def _like_mean(law: Diagonal) -> Tensor:
    """The std of q for every value of its mean, where it broadcasts to one."""
    try:
        return law.std.expand_as(law.mean)
    except RuntimeError:
        return law.std


def _latent_shape(stated: object, known: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The shape of one latent, stated or that of the exact prior; None where nobody knows."""
    if stated is None:
        return known
    if not isinstance(stated, Sequence) or isinstance(stated, str) or not len(stated):
        raise TypeError(f"latent_shape must be that of one latent, a tuple such as (8,), and it is {stated!r}.")
    shape = tuple(_checks.whole("every size in latent_shape", size) for size in stated)
    if known is not None and shape != known:
        raise ValueError(f"latent_shape is {shape}, and a latent of the exact prior has shape {known}.")
    return shape


def _check_ends(prior: Model, solver: Solver | None, from_data: bool = True) -> None:
    """A ValueError where the prior cannot be asked at an end of its path, which LatentModel goes along as a whole.

    At the data end only if the solve is `from_data`: not every solver that arrives there asks.
    """
    low, high = sorted(getattr(solver, "span", None) or prior.path.ends)
    first, last = prior.clocks
    if low < first - ROUNDING or high > last + ROUNDING:
        raise ValueError(
            f"The prior answers between the clocks u = {first:g} and {last:g}, and it is to be followed along "
            f"{prior.path!r} from u = {low:g} to {high:g}: put it, by prior.on(path), on a path that stays inside."
        )
    u = torch.tensor([low, high], dtype=torch.float64)
    t, factors = prior.query(u, prior.path.time(u), -torch.ones_like(u), torch.ones_like(u), torch.zeros_like(u))
    at_data, at_noise = torch.isfinite(torch.stack([t, *factors])).all(0).tolist()
    what = "The prior's network" if prior.predicts is None else f"A network for {prior.predicts!r}"
    for clock, fine, path in (
        (high, at_noise, "ends before pure noise, such as VPSDE()"),
        (low, at_data or not from_data, "starts at noised data, such as VESDE()"),
    ):
        if not fine:
            raise ValueError(
                f"{what} is singular at u = {clock:g}, an end of {prior.path!r}: put the prior on a path that {path}, "
                "or train it for 'v', which is singular nowhere."
            )


def _refuse(bad: Tensor, what: str, of: str) -> None:
    """A NonFiniteError that counts the `bad` ones, if any."""
    many = int(bad.sum())
    if many:
        raise NonFiniteError(f"The {what} of {many} of {len(bad)} {of} is NaN or infinite.")
