"""A variational autoencoder whose latents have a score model for their prior.

    z ~ p(z), the law of any model        x ~ p(x | z), the decoder's        q(z | x), the encoder's

    log p(x) >= E_q[ log p(x | z) + log p(z) - log q(z | x) ]                                       elbo
    log p(x) >= E log of the mean over K draws of w,   w = p(x | z) p(z) / q(z | x)                 iwae, ELBO at K = 1
    -log p(x) <= -E_q log p(x | z) + KL(q(z | x) || p)                                              loss

The first two take p(z) from `log_prob`, the density of the prior's ODE. The third takes a bound on the divergence from
`score_kl`, which costs a few network calls and has gradients for all three networks. A mixture of Gaussians as prior,
GaussianMixture(...).model(path), makes it the GMVAE with the exact bound: the component of z is summed out, where the
usual form takes the divergence from every component and is looser.

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
from sdegen._shapes import Generators, event_size, generator_of_rows
from sdegen.likelihoods.density import log_prob
from sdegen.likelihoods.posterior import Bound, checked_gaussian, event_of, latents_of, score_kl
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
    or group of values, which are summed. Training is a loop of your own::

        model = sdegen.LatentModel(encoder, decoder, sdegen.ScoreModel(net, sdegen.VPSDE()), latent_shape=(8,))
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        for x in batches:
            loss = model.loss(x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    Args:
        encoder: encoder(x) for x (B, *event): (mean, std), both (B, *latent), or a law with `.rsample()` or
            `.sample()`, of shape (B, *latent), and `.log_prob(z)`.
        decoder: decoder(z) for z (B, *latent): (mean, std) that broadcast against x, of which std may be a number, or a
            law with `.log_prob(x)` and, for `.sample`, `.sample()`.
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
        self.latent_shape = _latent_shape(latent_shape, event_of(prior))

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
        gradients reach encoder, decoder and prior. Modules stay in the mode they are in, and an accelerator is not
        waited for.

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
            NonFiniteError: a bound on the divergence that is NaN or infinite, on the CPU.
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
        decoded = self._decoded(q.draw(generator))
        bound = score_kl(q.mean, q.std, self.prior, draws=draws, u_min=u_min, cond=cond, generator=generator)
        return (bound.value - decoded.log_prob(x)).mean()

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
            The bound and the standard error of the mean over z, each (B,).

        Raises:
            TypeError: an argument of another type, before the first network call.
            ValueError: an argument that does not fit; what encoder and decoder return does not fit.
            NonFiniteError: a log-density became NaN or +inf.
        """
        asked = _Scoring(solver, trace, cond, generator, batch_size, progress)
        weights = self._log_weights(x, _checks.whole("draws", draws), asked)
        return Bound(weights.mean(1), weights.std(1) / math.sqrt(draws) if draws > 1 else None)

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
            TypeError: an argument of another type, such as an estimated trace, before the first network call.
            ValueError: an argument that does not fit; what encoder and decoder return does not fit.
            NonFiniteError: a log-density became NaN or +inf.

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
        ...). The modules are in eval mode while it runs.

        Args:
            n: how many.
            solver: as in `sdegen.sample`; by default the ODE to tolerance 1e-6, as in `decode`.
            generator: for z and x, a torch.Generator or one per sample.
            cond: keyword arguments for the prior's network.
            batch_size: rows in one network call; all of them by default.
            progress: whether to show a bar of the solve (needs tqdm).

        Returns:
            A tensor (n, *event).

        Raises:
            TypeError: an argument of another type, before the first network call.
            ValueError: an argument that does not fit; a latent_shape that nobody stated.
            NonFiniteError: a latent became NaN or infinite.
        """
        n = _checks.whole("n", n)
        if self.latent_shape is None:
            raise ValueError(
                "The shape of a latent is not known, since the prior is no exact one: build the model with "
                "LatentModel(encoder, decoder, prior, latent_shape=...)."
            )
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        z = sample(
            self.prior,
            (n, *self.latent_shape),
            LATENT_SOLVER if solver is None else solver,
            generator=generator,
            cond=cond,
            dtype=like.dtype,
            device=like.device,
            batch_size=batch_size,
            progress=progress,
        )
        with evaluating(self):
            parts = batch_parts(z, batch_size)
            return torch.cat([self._decoded(z[rows]).draw(generator_of_rows(generator, rows)) for rows in parts])

    def _check_data(self, x: Tensor, generator: Generators) -> None:
        """Data (B, *event), finite as far as the CPU can see, and generators that fit them."""
        _checks.batch("x", x, finite=isinstance(x, Tensor) and x.device.type == "cpu")
        _checks.generators(generator, len(x), x.device)

    def _encoded(self, x: Tensor) -> Law:
        """q(z | x)."""
        law = law_of("encoder", self.encoder(x))
        if isinstance(law, Foreign):
            return law
        mean, std = checked_gaussian(law.mean, law.std, self.latent_shape)
        if len(mean) != len(x):
            raise ValueError(f"The encoder must return one latent per sample, {len(x)} rows, and it gave {len(mean)}.")
        return Diagonal("encoder", mean, std)

    def _decoded(self, z: Tensor) -> Law:
        """p(x | z)."""
        law = law_of("decoder", self.decoder(z))
        return law if isinstance(law, Foreign) else Diagonal("decoder", law.mean, positive(law.std))

    def _log_weights(self, x: Tensor, draws: int, asked: _Scoring) -> Tensor:
        """log p(x | z) + log p(z) - log q(z | x) of every draw of z, (B, draws)."""
        asked.check()
        self._check_data(x, asked.generator)
        B = len(x)
        if not B:
            return x.new_empty(0, draws)
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
        return _checked_weights(log_x + log_p - log_q).reshape(draws, B).T

    def _latents(self, x: Tensor, draws: int, asked: _Scoring) -> tuple[Tensor, Tensor]:
        """Every draw of z, (draws B, *latent), one draw of the whole batch after another, and log q(z | x)."""
        latents, densities = [], []
        for rows in batch_parts(x, asked.batch_size):
            q, generator = self._encoded(x[rows]), generator_of_rows(asked.generator, rows)
            own = [q.draw(generator) for _ in range(draws)]
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


def _checked_weights(weights: Tensor) -> Tensor:
    """Log-weights, of which -inf may be one, after a NonFiniteError for NaN and +inf."""
    bad = int((weights.isnan() | (weights == math.inf)).sum())
    if bad:
        raise NonFiniteError(f"The log-weight of {bad} of {len(weights)} latents is NaN or infinite.")
    return weights
