"""From the evidence bound to a score prior: what variational inference and score models do for each other.

    python examples/variational.py [--quick] [--seed 0] [--out outputs]

A linear VAE, trained by `LatentModel.loss`, reaches the likelihood of probabilistic PCA, which is known. One encoder
and one decoder of handwritten digits get three priors, N(0, I), a mixture and a score model, compared in nats per
held-out image. The logit of a discriminator turns a poor model into a good one. A Dirichlet process finds how many
modes a ring has, and becomes a score model. Two relatives stand at the end as short code, no part of the library: a VAE
whose latent is a stick broken into pieces, and VAE-GAN, which compares images by what a discriminator sees in them.
Prints a table of each and writes pictures.

Probabilistic PCA: Tipping and Bishop, 1999; by a linear VAE: Lucas et al., 2019, arXiv:1911.02469. Score priors: Vahdat
et al., 2021, arXiv:2106.05931. IWAE: Burda et al., 2016, arXiv:1509.00519. Discriminator guidance: Kim et al., 2023,
arXiv:2211.17091. Dirichlet-process mixtures: Blei and Jordan, 2006. Stick-breaking VAE: Nalisnick and Smyth, 2017,
arXiv:1605.06197. VAE-GAN: Larsen et al., 2016, arXiv:1512.09300.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterable
from itertools import chain, pairwise
from pathlib import Path

import matplotlib
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from sklearn.mixture import GaussianMixture as FittedMixture
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim.lr_scheduler import OneCycleLR

import sdegen
from sdegen import plot
from sdegen.datasets import dequantise, digits, eight_gaussians
from sdegen.interop.sklearn import from_mixture
from sdegen.nets import MLP

matplotlib.use("Agg")

PATH = sdegen.VPSDE()
LEVELS = sdegen.Discretized(17, low=0.0, high=16.0)
LATENTS, STICKS = 8, 12


# Small networks, and one loop that trains them.


def layers(*widths: int) -> nn.Sequential:
    """A plain network with SiLU between its layers."""
    pairs = [(nn.Linear(m, n), nn.SiLU()) for m, n in pairwise(widths)]
    return nn.Sequential(*list(chain(*pairs))[:-1])


class Levels:
    """Independent whole levels 0 ... 16, each with the mass that N(mean, std^2) puts on its cell."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std

    def log_prob(self, x: Tensor) -> Tensor:
        return LEVELS.log_prob(x, self.mean, self.std).sum((1, 2, 3)).to(x.dtype)

    def sample(self) -> Tensor:
        return (self.mean + self.std * torch.randn_like(self.mean)).round().clamp(0, 16)


class Encoder(nn.Module):
    """Two numbers for each latent of an image; by `forward` mean and deviation of q(z|x)."""

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.net = layers(64, 256, 256, 2 * latents)

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.net(x.flatten(1) / 8 - 1).chunk(2, 1)
        return first, second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.raw(x)
        return mean, softplus(raw) + 1e-3


class Decoder(nn.Module):
    """The law p(x|z) of an image: means and deviations of all pixels from one network."""

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.net = layers(latents, 256, 256, 2 * 64)

    def forward(self, z: Tensor) -> Levels:
        mean, raw = self.net(z).reshape(-1, 2, 1, 8, 8).unbind(1)
        return Levels(8 + 9 * torch.tanh(mean), 0.1 + 4 * softplus(raw))


class Logit(nn.Module):
    """A discriminator's logit of points x_t at time t, (B,); scaled up, so that it sees what is finer than the data."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = MLP(dim, hidden=64)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(3 * x, t).sum(1)


def train(name: str, modules: Iterable[nn.Module], loss: Callable[[], Tensor], steps: int, lr: float) -> None:
    """Adam on `loss()`, the rate up to lr and down again, with a line at every fifth of the way."""
    parameters = [p for module in modules for p in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr, weight_decay=1e-3)
    schedule = OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        value = loss()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        if step % (steps // 5) == 0:
            print(f"  {name}, step {step:5d}: loss {value.item():9.3f}", flush=True)


def some(x: Tensor, number: int = 128) -> Tensor:
    """A batch of the rows of x."""
    return x[torch.randint(len(x), (number,))]


def interval(values: Tensor) -> str:
    """Mean and 95 % interval over the rows, 28 characters wide."""
    mean, half = float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values))
    return f"{mean:9.3f}  {mean - half:.2f} to {mean + half:.2f}".ljust(28)


def header(first: str, *columns: str, width: int = 10) -> str:
    """The first line of a table whose columns are intervals."""
    return f"{first:{width}s}" + "".join(f"{name:28s}" for name in columns).rstrip()


# 1. A linear VAE is probabilistic PCA.


class LinearEncoder(nn.Linear):
    """q(z|x) = N(Ax + a, diag s^2), s the same for every x."""

    def __init__(self, size: int, latents: int) -> None:
        super().__init__(size, latents)
        self.log_std = nn.Parameter(torch.zeros(latents))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = super().forward(x)
        return mean, self.log_std.exp().expand_as(mean)


class LinearDecoder(nn.Linear):
    """p(x|z) = N(Wz + b, s^2 I)."""

    def __init__(self, latents: int, size: int) -> None:
        super().__init__(latents, size)
        self.log_std = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(z), self.log_std.exp()


def linear(args: argparse.Namespace) -> None:
    """Encoder and decoder trained end to end, against the closed form of the best linear decoder."""
    print("\n1. A linear VAE on digits, 64 numbers and 4 latents", flush=True)
    x = dequantise(digits("train")[0]).flatten(1)
    prior = sdegen.Gaussian(torch.zeros(4), 1.0).model(PATH)
    model = sdegen.LatentModel(LinearEncoder(64, 4), LinearDecoder(4, 64), prior)
    train("linear VAE", [model], lambda: model.loss(some(x)), 200 if args.quick else 2000, 2e-2)
    bound = model.elbo(x, draws=4, solver=sdegen.Adams(10)).value.double()
    known = torch.from_numpy(PCA(4).fit(x.numpy()).score_samples(x.numpy()))
    print("\n" + header("nats per image", "     mean  95 % interval", width=22))
    for name, values in (("ELBO, linear VAE", bound), ("log p, PPCA", known), ("difference, paired", bound - known)):
        print(f"{name:22s}{interval(values)}".rstrip())


# 2. One encoder, one decoder, three priors.


def autoencoder(args: argparse.Namespace, images: Tensor) -> sdegen.LatentModel:
    """A VAE of the levels themselves, so that its bound is one on a probability; the prior is N(0, I)."""
    prior = sdegen.Gaussian(torch.zeros(LATENTS), 1.0).model(PATH)
    model = sdegen.LatentModel(Encoder(LATENTS), Decoder(LATENTS), prior)
    train("VAE", [model], lambda: model.loss(some(images)), 200 if args.quick else 1500, 2e-3)
    return model.eval().requires_grad_(False)


def other_priors(args: argparse.Namespace, encoder: nn.Module, images: Tensor) -> dict[str, sdegen.Model]:
    """A mixture and a score model of the latents of all training images together."""
    mean, std = encoder(images.repeat(20, 1, 1, 1))
    z = mean + std * torch.randn_like(mean)
    mixture = FittedMixture(10, covariance_type="full", random_state=args.seed).fit(z[:: 4 if args.quick else 1])
    score = sdegen.fit(
        sdegen.ScoreModel(MLP(LATENTS, hidden=64 if args.quick else 128), PATH, "v"),
        z,
        steps=200 if args.quick else 4000,
        ema=0.99,
        batch_size=256,
        every=100 if args.quick else 1000,
        seed=args.seed,
        progress=False,
        log=lambda step, numbers: print(f"  score prior, step {step:5d}: loss {numbers['loss']:9.3f}", flush=True),
    )
    return {"mixture": from_mixture(mixture).model(PATH), "score": score}


def on_digits(args: argparse.Namespace) -> sdegen.LatentModel:
    """ELBO and IWAE of held-out images under each prior, from the same draws of the same encoder."""
    print(f"\n2. A VAE of digits with {LATENTS} latents and three priors", flush=True)
    images, held_out = digits("train")[0], digits("test")[0]
    solver, number = (sdegen.Adams(12), 40) if args.quick else (sdegen.Adams(30), len(held_out))
    x = held_out[torch.randperm(len(held_out))[:number]]
    gaussian = autoencoder(args, images)
    models = {"N(0, I)": gaussian}
    for name, prior in other_priors(args, gaussian.encoder, images).items():
        models[name] = sdegen.LatentModel(gaussian.encoder, gaussian.decoder, prior, latent_shape=(LATENTS,))
    print(f"\n{number} held-out images; nats per image with 95 % intervals, and how far drawn images are from them")
    print(header("prior", "     ELBO", "  IWAE_64", "  ELBO beyond N(0, I)'s"), "   energy distance")
    bounds, rows = {}, {"held-out": held_out[:16]}
    for name, model in models.items():
        bounds[name] = model.elbo(x, draws=16, solver=solver, generator=seeded(args)).value
        tighter = model.iwae(x, 64, solver=solver, generator=seeded(args)).log_prob
        drawn = model.sample(300 if args.quick else 2000, sdegen.Adams(20))
        rows[name] = drawn[:16]
        gained = interval(bounds[name] - bounds["N(0, I)"]) if name != "N(0, I)" else " " * 28
        distance = sdegen.energy_distance(drawn, held_out)
        print(f"{name:10s}{interval(bounds[name])}{interval(tighter)}{gained}{distance:15.3f}", flush=True)
    plot.write(plot.grid(rows, span=(0, 16), cmap="gray_r"), args.out / "variational_digits.png")
    return gaussian


def seeded(args: argparse.Namespace) -> torch.Generator:
    """The same draws whenever it is called."""
    return torch.Generator().manual_seed(args.seed)


# 3. A discriminator corrects a model.


def moons() -> sdegen.GaussianMixture:
    """Two half circles, as 400 Gaussians that stand close: a law whose density is known."""
    angle = math.pi * torch.arange(200) / 199
    arc = torch.stack([angle.cos(), angle.sin()], 1)
    shift = torch.tensor([0.5, 0.25])
    return sdegen.GaussianMixture(4 / 3 * torch.cat([arc - shift, shift - arc]), 0.2)


def corrected(args: argparse.Namespace) -> None:
    """A Gaussian is fitted to two moons; the logit of real against drawn adds to its score what it misses.

    In much noise the two laws hardly differ, and the slope of a trained logit is all error, times u/(1-u): without the
    interval a few held-out points in a hundred would be pushed out to log p of -100.
    """
    print("\n3. A Gaussian for two moons, corrected by a discriminator", flush=True)
    law, logit = moons(), Logit(2)
    data, held_out = law.sample(20_000), law.sample(200 if args.quick else 2000)
    before = sdegen.Gaussian(data.mean(0), covariance=torch.cov(data.T))

    def loss() -> Tensor:
        return sdegen.ratio_loss(logit, some(data, 512), before.sample(512), PATH)

    train("logit", [logit], loss, 200 if args.quick else 1500, 2e-3)
    model = before.model(PATH)
    guided = sdegen.Guided(model, logit.eval().requires_grad_(False), scale=lambda u: (u < 0.5).to(u))
    solver, shape = sdegen.Adams(30), (1000 if args.quick else 10_000, 2)
    print(f"\n{len(held_out)} held-out points\n{'':12s}{'energy distance':>15s}     mean log p, 95 % interval")
    for name, drawn, logp in (
        ("before", sdegen.sample(model, shape, solver), before.log_prob(held_out)),
        ("after", sdegen.sample(guided, shape, solver), sdegen.log_prob(guided, held_out, sdegen.Adams(60))),
        ("data's law", law.sample(shape[0]), law.log_prob(held_out)),
    ):
        print(f"{name:12s}{sdegen.energy_distance(drawn, held_out):15.4f}{interval(logp)}".rstrip(), flush=True)
    figure = plot.density(
        {"before": before, "after": guided, "the data's law": law},
        limits=((-2.6, 2.6), (-2.2, 2.2)),
        points=40 if args.quick else 100,
        solver=sdegen.Adams(20),
    )
    plot.write(figure, args.out / "variational_corrected.png")


# 4. A Dirichlet process finds the modes.


def ring(args: argparse.Namespace) -> None:
    """Of twenty components the data keep as many as they need, and the mixture becomes an exact score model.

    Its modes are wider than the data's, the more so the fewer points: scikit-learn's prior of the covariances is that
    of all points together. What weight the other components have lies between the modes.
    """
    print("\n4. A Dirichlet-process mixture of up to 20 components on a ring of eight modes", flush=True)
    x = eight_gaussians(2000 if args.quick else 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = BayesianGaussianMixture(n_components=20, max_iter=300, random_state=args.seed).fit(x)
    law = from_mixture(fitted)
    model, held_out = law.model(sdegen.CondOT()), eight_gaussians(2000)
    drawn = sdegen.sample(model, (2000, 2), sdegen.Adams(20))
    kept = fitted.weights_[fitted.weights_ > 0.01]
    few = held_out[:100].double()
    off = (sdegen.log_prob(model, few, sdegen.ODESolver("dopri8", rtol=1e-9)) - law.log_prob(few)).abs().max()
    print(f"\n{len(kept)} components weigh more than 1 %, together {kept.sum():.4f}")
    print(f"log p by the ODE is within {float(off):.0e} nats of the mixture's in closed form")
    print(f"energy distance of samples to held-out points {sdegen.energy_distance(drawn, held_out):.4f}")
    plot.write(plot.samples({"data": x[:2000], "score model": drawn}), args.out / "variational_ring.png")


# 5. Two relatives, as short code.


def kumaraswamy(a: Tensor, b: Tensor, uniform: Tensor) -> Tensor:
    """v = (1 - u^(1/b))^(1/a), a draw of the law F(v) = 1 - (1 - v^a)^b on [0, 1], with gradients to a and b."""
    u = uniform.clamp_min(torch.finfo(uniform.dtype).tiny)
    return (-torch.expm1(u.log() / b)) ** (1 / a)


def kumaraswamy_kl(a: Tensor, b: Tensor, alpha: float, beta: float, terms: int = 20) -> Tensor:
    """KL(Kumaraswamy(a, b) || Beta(alpha, beta)), in nats.

    (a - alpha)/a (-g - psi(b) - 1/b) + log ab + log B(alpha, beta) - (b - 1)/b + (beta - 1) b S, g Euler's constant,
    S = sum over m of B(m/a, b)/(m + ab), whose terms tend to Gamma(b)/a (m/a + b/2)^(-b-1): the rest is integrated.
    """
    m = torch.arange(1, terms + 1, dtype=a.dtype).reshape(-1, *[1] * a.ndim)
    log_beta = torch.lgamma(m / a) + torch.lgamma(b) - torch.lgamma(m / a + b)
    rest = torch.exp(torch.lgamma(b) - b * torch.log((terms + 0.5) / a + b / 2)) / b
    series = (log_beta.exp() / (m + a * b)).sum(0) + rest
    of_prior = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    slope = -0.57721566490153286 - torch.digamma(b) - 1 / b
    return (a - alpha) / a * slope + torch.log(a * b) + of_prior - (b - 1) / b + (beta - 1) * b * series


def broken(v: Tensor) -> Tensor:
    """A stick of length one in K pieces: from v (B, K-1) the weights v_k (1 - v_1) ... (1 - v_{k-1}), (B, K)."""
    one = torch.ones_like(v[:, :1])
    return torch.cat([v, one], 1) * torch.cat([one, (1 - v).cumprod(1)], 1)


class StickBreaking(nn.Module):
    """A VAE whose latents are the pieces of a stick, broken at v_k ~ Beta(1, 5) a priori, Kumaraswamy given x."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(pieces - 1), Decoder(pieces)

    def elbo(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One draw of the bound and of the pieces for each image, (B,) and (B, K)."""
        a, b = (softplus(raw + 1) + 0.05 for raw in self.encoder.raw(x))
        pieces = broken(kumaraswamy(a, b, torch.rand_like(a)))
        return self.decoder(STICKS * pieces).log_prob(x) - kumaraswamy_kl(a, b, 1.0, 5.0).sum(1), pieces


def sticks(args: argparse.Namespace) -> None:
    """The stick-breaking VAE: latents that add up to one, the first pieces the largest."""
    print(f"\n5. A stick-breaking VAE, {STICKS} pieces", flush=True)
    images, held_out = digits("train")[0], digits("test")[0]
    model, steps = StickBreaking(STICKS), 100 if args.quick else 1500
    train("stick-breaking VAE", [model], lambda: -model.elbo(some(images))[0].mean(), steps, 2e-3)
    with torch.no_grad():
        bound, pieces = model.elbo(held_out)
    mean = " ".join(f"{p:.2f}" for p in pieces.mean(0).sort(descending=True)[0])
    print(f"\nELBO, nats per held-out image  {interval(bound)}\nmean length of the pieces        {mean}")


class Discriminator(nn.Module):
    """A logit (B,), and the features below it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = layers(64, 128, 128), nn.Linear(128, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1) / 8 - 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.nn.functional.silu(self.features(x)))[:, 0]


def vae_gan_losses(encoder: nn.Module, decoder: nn.Module, discriminator: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each of the three networks is to lower: images are compared by the discriminator's features.

    like = 1/2 |D(x) - D(x')|^2 at a reconstruction x', the mean over the features; the encoder lowers KL + like, the
    decoder like + GAN on reconstructions and on draws from the prior, the discriminator its logistic loss.
    """
    mean, std = encoder(x)
    rebuilt = decoder(mean + std * torch.randn_like(mean)).mean
    made = torch.cat([rebuilt, decoder(torch.randn_like(mean)).mean])
    like = 0.5 * (discriminator.features(x) - discriminator.features(rebuilt)).square().mean()
    kl = (0.5 * (mean**2 + std**2 - 1) - std.log()).mean()
    return {
        "encoder": 0.1 * kl + like,
        "decoder": like + 0.1 * softplus(-discriminator(made)).mean(),
        "discriminator": sdegen.ratio_loss(discriminator, x, some(made, len(x)).detach()),
    }


def vae_gan_backward(networks: dict[str, nn.Module], x: Tensor) -> dict[str, Tensor]:
    """The losses; each network's `.grad` is that of its own loss, and nothing of the other two's."""
    losses = vae_gan_losses(**networks, x=x)
    for name, network in networks.items():
        own = list(network.parameters())
        for parameter, slope in zip(own, torch.autograd.grad(losses[name], own, retain_graph=True), strict=True):
            parameter.grad = slope
    return losses


def vae_gan(args: argparse.Namespace, vae: sdegen.LatentModel) -> None:
    """VAE-GAN beside the VAE of before, by reconstructions and by what decoded draws of N(0, I) look like."""
    print("\n6. VAE-GAN: digits compared by the features of a discriminator", flush=True)
    images, held_out = digits("train")[0], digits("test")[0]
    networks = {"encoder": Encoder(LATENTS), "decoder": Decoder(LATENTS), "discriminator": Discriminator()}
    optimisers = [torch.optim.Adam(network.parameters(), 1e-3, betas=(0.5, 0.99)) for network in networks.values()]
    steps = 100 if args.quick else 2500
    for step in range(1, steps + 1):
        losses = vae_gan_backward(networks, some(images))
        for optimiser in optimisers:
            optimiser.step()
        if step % (steps // 5) == 0:
            told = ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            print(f"  VAE-GAN, step {step:5d}: {told}", flush=True)
    rows, z = {"held-out": held_out[:16]}, torch.randn(2000, LATENTS)
    print(f"\n{'':10s}{'pixels apart':>14s}{'features apart':>16s}{'energy distance, drawn':>25s}")
    for name, encoder, decoder in (
        ("VAE", vae.encoder, vae.decoder),
        ("VAE-GAN", networks["encoder"], networks["decoder"]),
    ):
        with torch.no_grad():
            rebuilt, drawn = decoder(encoder(held_out)[0]).mean, decoder(z).mean
            pixels, features = (
                float((f(held_out) - f(rebuilt)).square().mean().sqrt())
                for f in (nn.Flatten(), networks["discriminator"].features)
            )
        print(f"{name:10s}{pixels:14.3f}{features:16.3f}{sdegen.energy_distance(drawn, held_out):25.3f}")
        rows |= {f"{name}, rebuilt": rebuilt[:16], f"{name}, drawn": drawn[:16]}
    plot.write(plot.grid(rows, span=(0, 16), cmap="gray_r"), args.out / "variational_gan.png")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller run, under a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for the pictures")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    linear(args)
    vae = on_digits(args)
    corrected(args)
    ring(args)
    sticks(args)
    vae_gan(args, vae)
    pictures = ", ".join(str(args.out / f"variational_{name}.png") for name in ("digits", "corrected", "ring", "gan"))
    print(f"\n{time.perf_counter() - start:.0f} s in all; see {pictures}")


if __name__ == "__main__":
    main()
