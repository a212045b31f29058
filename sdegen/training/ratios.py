"""Density ratios by classification: a network that tells real samples from fakes knows log p/q.

Real samples have the density p, fakes q, k fakes to every real sample. A network answers with a logit T(x), and the
classifier says "real" with probability

    D(x) = sigmoid(T(x) - log k)        right where T = log p/q, since x is real with probability p / (p + k q)

so the network is log p/q itself for every k. At k = 1 that is a GAN's discriminator: D* = p/(p + q), and the value of
the game is C = -log 4 + 2 JSD(p, q), JSD = KL(p || m)/2 + KL(q || m)/2, m = (p + q)/2. Other names of one loss:

    real                  fake               net                       then
    data x_t              model's x_t        T(x_t, t)                 score of data = score of model + grad T
    z ~ q(z | x)          z ~ p(z)           T(z, x=x)                 KL(q(z | x) || p(z)) = E_q T, adversarial VB
    data                  noise of known q   log p_model - log q       p_model = p, normalised by itself, NCE

References:
    Generative Adversarial Networks, Goodfellow et al., 2014, arXiv:1406.2661.
    Noise-Contrastive Estimation of Unnormalized Statistical Models, with Applications to Natural Image Statistics,
    Gutmann and Hyvärinen, 2012.
    Adversarial Variational Bayes, Mescheder et al., 2017, arXiv:1701.04722.
    Refining Generative Process with Discriminator Guidance in Score-based Diffusion Models, Kim et al., 2023,
    arXiv:2211.17091.
    Representation Learning with Contrastive Predictive Coding, van den Oord et al., 2018, arXiv:1807.03748.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sdegen import _checks
from sdegen._arguments import evaluating, warn_of_hidden_modules
from sdegen._shapes import Generators, batch_of_times, dtype_of, like, uniform
from sdegen.likelihoods.weighted import Estimate
from sdegen.models.base import Cond
from sdegen.paths.gaussian import GaussianPath

Logit = Callable[..., Tensor]


def ratio_loss(
    net: Logit,
    real: Tensor,
    fake: Tensor,
    path: GaussianPath | None = None,
    *,
    cond: Cond = None,
    t: float | Tensor | None = None,
    noise: Tensor | None = None,
    generator: Generators = None,
) -> Tensor:
    """The cross-entropy of telling real samples from fakes, whose minimiser is log p/q; one network call.

    With T the network's output, k fakes to every real sample and softplus(a) = log(1 + exp(a)),

        1/2 [ E_p softplus(log k - T) + k E_q softplus(T - log k) ]

    At k = 1 this is the balanced mean, log 2 - JSD(p, q) at the optimum. At any k the optimum is T = log p/q, where,
    with m = (p + k q)/(1 + k), the loss is 1/2 [(1 + k) log(1 + k) - k log k - KL(p || m) - k KL(q || m)]. It is
    counted per real sample, not per row: as k grows its gradient in T(x) tends to (q exp(T) - p)/2, that of maximum
    likelihood, where that of a mean over all rows would shrink like 1/k.

    On a path both are diffused, and T is the ratio of the laws of x_t: the `log_weight` of `Guided`. A real sample and
    its fakes share their t and their noise: each is still diffused as it should be, and what is equal in both cancels
    in the gradient. In much noise p and q hardly differ, and the slope of a trained T is all error there, which
    guidance multiplies by u/(1-u): `Guided(model, T, scale=lambda u: (u < 0.5).to(u))` leaves it out. `Guided` refuses
    a model with a `Standardize`: train both networks on data in the model's units.

    Args:
        net: a network or any callable, net(x_t, t, **cond) on a path and net(x, **cond) without, to logits (rows,);
            called once, on real samples and fakes together. Modules receive x and t in the dtype of their weights.
        real: samples of p, (B, *event).
        fake: samples of q, (k B, *event), k copies of the batch one after another: row j B + b belongs to real row b.
        path: the path on which both are diffused; None, the default, compares them as they are.
        cond: keyword arguments for the network; tensors with B rows go with the real rows and with their fakes, and
            one with a row for every fake, or for every row of both, is refused unless it is `Shared`.
        t: times, in the path's own time, a scalar or (B,); by default uniform draws.
        noise: the standard normals eps, or the source's draws, like `real`, instead of draws.
        generator: for t and the noise, a torch.Generator or one per real sample.

    Returns:
        The loss, a scalar, in nats per real sample; it carries gradients to `real` and `fake` too.

    Raises:
        TypeError: an argument of another type, before the network is called; logits that are no floating tensor.
        ValueError: an argument that does not fit, before the network is called; logits of another shape. The values in
            tensors are looked at on the CPU alone: elsewhere that would stall the training.
        NonFiniteError: a logit is NaN (on the CPU).

    Examples:
        >>> import math
        >>> real, fake = torch.randn(20_000, 1) + 1, torch.randn(20_000, 1)
        >>> loss = sdegen.ratio_loss(lambda x: x[:, 0] - 0.5, real, fake)  # log N(x; 1, 1)/N(x; 0, 1)
        >>> f"{math.log(2) - loss:.2f}"  # JSD(N(1, 1), N(0, 1)) is 0.1114
        '0.11'

    References:
        Generative Adversarial Networks, Goodfellow et al., 2014, arXiv:1406.2661.
        Noise-Contrastive Estimation of Unnormalized Statistical Models, with Applications to Natural Image Statistics,
        Gutmann and Hyvärinen, 2012.
        Refining Generative Process with Discriminator Guidance in Score-based Diffusion Models, Kim et al., 2023,
        arXiv:2211.17091.
    """
    _check_callable("net", net)
    k = _check_rows(real, fake)
    arguments = _conditions(cond, len(real), k, path)
    x = torch.cat([real, fake.to(real)])
    inputs: tuple[Tensor, ...] = (x,)
    if path is not None:
        inputs = _diffused(path, real, x, t, noise, generator)
    else:
        for name, value in (("t", t), ("noise", noise), ("generator", generator)):
            if value is not None:
                raise ValueError(f"{name} belongs to a path, and path is None: real and fake are compared as they are.")
    rows = torch.arange(len(real), device=real.device).repeat(k + 1)
    logit = _logits("net", net, inputs, _checks.network_arguments(arguments, rows, len(real))) - math.log(k)
    return 0.5 * (_softplus(-logit[: len(real)]).mean() + k * _softplus(logit[len(real) :]).mean())


def contrastive_loss(net: Logit, real: Tensor, fakes: Tensor) -> Tensor:
    """The cross-entropy of finding the one real sample among k fakes: InfoNCE; one network call.

        - E log [ exp T(x) / (exp T(x) + sum over j of exp T(x_j)) ]        x ~ p,  x_1 ... x_k ~ q

    The minimiser is T = log p/q up to a constant. log(k + 1) less the loss bounds KL(p || q) from below, whatever T is,
    and cannot exceed log(k + 1). Where a sample is a pair (x, c), real ones of p(x, c) and fakes with the same c and x
    of p(x), the constant may depend on c and the bound is one on the mutual information of x and c.

    Args:
        net: a network or any callable, net(x) to logits (rows,), called once, on all (k + 1) B samples; modules receive
            x in the dtype of their weights.
        real: samples of p, (B, *event).
        fakes: samples of q, (k, B, *event): k for every real one.

    Returns:
        The loss, a scalar, in nats; it carries gradients to `real` and `fakes` too.

    Raises:
        TypeError: an argument of another type, before the network is called; logits that are no floating tensor.
        ValueError: an argument that does not fit, before the network is called; logits of another shape.
        NonFiniteError: a logit is NaN or, so that the loss would be, infinite (on the CPU); one of -infinity is taken
            as it is, unless a real sample and all its fakes have it.

    Examples:
        >>> import math
        >>> real, fakes = torch.randn(20_000, 1) + 1, torch.randn(15, 20_000, 1)
        >>> bound = math.log(16) - sdegen.contrastive_loss(lambda x: x[:, 0], real, fakes)
        >>> bool(0.4 < bound < 0.5)  # KL(N(1, 1) || N(0, 1)) is 0.5
        True

    References:
        Representation Learning with Contrastive Predictive Coding, van den Oord et al., 2018, arXiv:1807.03748.
        On Variational Bounds of Mutual Information, Poole et al., 2019, arXiv:1905.06922.
    """
    _check_callable("net", net)
    _check_samples("real", real)
    if isinstance(fakes, Tensor) and (fakes.shape[1:] != real.shape or not len(fakes)):
        wanted = f"(k, {', '.join(map(str, real.shape))})"
        raise ValueError(f"fakes must have shape {wanted}, k for every real sample, and it has {tuple(fakes.shape)}.")
    _check_samples("fakes", fakes)
    x = torch.cat([real[None], fakes.to(real)]).flatten(0, 1)
    logits = _logits("net", net, (x,), {}).unflatten(0, (-1, len(real)))
    loss = F.cross_entropy(logits.T, torch.zeros_like(logits[0], dtype=torch.int64))
    if loss.device.type == "cpu" and bool(loss.detach().isnan()):
        raise _checks.NonFiniteError(
            f"The loss is NaN: net is infinite in {int((logits == math.inf).sum())} of {logits.numel()} rows, and "
            f"-infinite for {int((logits == -math.inf).all(0).sum())} real samples and all their fakes."
        )
    return loss


def jsd(logit: Logit, real: Tensor, fake: Tensor) -> Estimate:
    """An estimate of the Jensen-Shannon divergence between the laws of two samples, by a classifier's logit.

        log 2 - 1/2 [ E_p softplus(-T) + E_q softplus(T) ]  <=  JSD(p, q),   in [0, log 2]

    with equality where T = log p/q: for any other logit it is a lower bound in expectation, below 0 for a bad one. Take
    other samples than those the logit was trained on, which would make it too high. The value of the GAN's game for
    this logit is -log 4 + 2 jsd.

    Args:
        logit: a network or any callable, logit(x) to logits (rows,), called once on `real` and once on `fake`; a module
            in eval mode, with x in the dtype of its weights. Infinite ones may be right, log 2 at best; where one is
            infinitely wrong the value is -infinity, and its standard error NaN.
        real: samples of p, (n, *event).
        fake: samples of q, (m, *event); m may differ from n.

    Returns:
        The estimate and its standard error over the draws, each 0-dimensional, float64, in nats, without gradients; the
        standard error is NaN for a single draw.

    Raises:
        TypeError: an argument of another type, before the network is called; logits that are no floating tensor.
        ValueError: an argument that does not fit, before the network is called; logits of another shape.
        NonFiniteError: a logit is NaN (on the CPU).

    Examples:
        >>> real, fake = torch.randn(20_000, 1) + 1, torch.randn(20_000, 1)
        >>> found = sdegen.jsd(lambda x: x[:, 0] - 0.5, real, fake)
        >>> bool((found.value - 0.1114).abs() < 4 * found.standard_error)
        True

    References:
        Generative Adversarial Networks, Goodfellow et al., 2014, arXiv:1406.2661.
    """
    _check_callable("logit", logit)
    _check_samples("real", real)
    _check_samples("fake", fake)
    _check_events(real, fake)
    warn_of_hidden_modules("logit", logit)
    with evaluating(logit) if isinstance(logit, nn.Module) else torch.no_grad():
        logits = [_logits("logit", logit, (x.clone(),), {}).double() for x in (real, fake)]
    losses = _softplus(-logits[0]), _softplus(logits[1])
    squares = [loss.var() / len(loss) if len(loss) > 1 else loss[0] * math.nan for loss in losses]
    value = math.log(2) - 0.5 * (losses[0].mean() + losses[1].mean())
    return Estimate(value, 0.5 * (squares[0] + squares[1]).sqrt())


def _diffused(
    path: object,
    real: Tensor,
    x: Tensor,
    t: float | Tensor | None,
    noise: Tensor | None,
    generator: Generators,
) -> tuple[Tensor, Tensor]:
    """Every copy of the batch in `x`, ((1 + k) B, *event), at the times and with the noise of its real rows; times."""
    if not isinstance(path, GaussianPath):
        raise TypeError(f"path must be a GaussianPath such as VPSDE(), and it is {_checks.described(path)}.")
    _checks.generators(generator, len(real), real.device)
    if t is None:
        t = path.at(uniform(len(real), generator, real.dtype, real.device))
    else:
        wide = real.to(torch.promote_types(real.dtype, torch.float32))
        t = path.checked_times(batch_of_times(t, wide))
    eps = path.noise_like(real, generator) if noise is None else _checks.noise_like(noise, real, of="real")
    copies = x.unflatten(0, (-1, len(real)))
    x_t = like(path.alpha(t), real) * copies + like(path.sigma(t), real) * eps
    return x_t.flatten(0, 1).to(real.dtype), t.repeat(len(copies))


def _logits(name: str, net: Logit, inputs: tuple[Tensor, ...], cond: Mapping[str, object]) -> Tensor:
    """What a network says of a batch: one number per row, in at least float32; NaN is looked for on the CPU."""
    dtype = dtype_of(net, inputs[0].dtype)
    inputs, n = tuple(each.to(dtype) for each in inputs), len(inputs[0])
    if inputs[0].device.type == "cpu" and not bool(inputs[0].detach().isfinite().all()):
        raise ValueError(
            f"The samples are too large for {name}: in the dtype that it receives, {dtype}, or on the way "
            "to it, they are infinite."
        )
    logits = net(*inputs, **cond)
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"{name} must return a tensor of floating logits, and it returned {got}.")
    if logits.shape != (n,):
        raise ValueError(f"{name} must return one logit per row, shape ({n},), and it returned {tuple(logits.shape)}.")
    if logits.device.type == "cpu" and bool(logits.detach().isnan().any()):
        raise _checks.NonFiniteError(f"{name} is NaN in {int(logits.isnan().sum())} of {n} rows.")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _softplus(a: Tensor) -> Tensor:
    """log(1 + exp(a)), right to rounding for large a too."""
    return -F.logsigmoid(-a)


def _conditions(cond: Cond, rows: int, k: int, path: object) -> Mapping[str, object]:
    """The conditions, none of them with a row per fake, nor under a name that is taken."""
    found = _checks.conditions(cond)
    if path is not None and "t" in found:
        raise ValueError("On a path the network is called as net(x_t, t, **cond), and cond has a 't' of its own.")
    for name, value in found.items():
        if isinstance(value, Tensor) and value.ndim and len(value) != rows and len(value) in (k * rows, (k + 1) * rows):
            raise ValueError(
                f"cond[{name!r}] has {len(value)} rows, and there are {rows} real samples with {k} fakes each: give "
                "one row per real sample, which its fakes share, or Shared(value) if it belongs to all of them."
            )
    return found


def _check_callable(name: str, net: object) -> None:
    if not callable(net) or isinstance(net, type):
        raise TypeError(f"{name} must be callable, from samples to logits, and it is {_checks.described(net)}.")


def _check_samples(name: str, x: object) -> None:
    """Finite floating samples (B, *event), B at least 1."""
    samples = _checks.batch(name, x, finite=isinstance(x, Tensor) and x.device.type == "cpu")
    if not len(samples):
        raise ValueError(f"{name} holds no samples, and its shape is {tuple(samples.shape)}.")


def _check_events(real: Tensor, fake: Tensor) -> None:
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"real and fake must hold samples of one shape, and they have {tuple(real.shape)} and {tuple(fake.shape)}."
        )


def _check_rows(real: Tensor, fake: Tensor) -> int:
    """k, the fakes per real sample."""
    _check_samples("real", real)
    _check_samples("fake", fake)
    _check_events(real, fake)
    if len(fake) % len(real):
        raise ValueError(
            f"fake must hold k samples for every real one, a multiple of {len(real)} rows, and it holds {len(fake)}."
        )
    return len(fake) // len(real)
