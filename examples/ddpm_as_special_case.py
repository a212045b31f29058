"""Train one network exactly as a DDPM is, on integer times, and use it with every solver and every likelihood here.

    python examples/ddpm_as_special_case.py [--quick] [--device cuda] [--seed 0] [--out outputs]

The data are scikit-learn's handwritten digits with their labels: 8 x 8 pixels on 17 grey levels. Prints a table of
samplers and a table of likelihoods, and draws the digits of every sampler and the distance from the chain to the SDE as
its steps shrink, which needs no network at all.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import sdegen
from sdegen import plot
from sdegen.datasets import bits_per_dim, dequantise, digits
from sdegen.nets import UNet

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK = "#22223b"
SDE, ODE, CHAIN = plot.PALETTE[:3]
LEVELS = 17
CODED = sdegen.Discretized(LEVELS, 1 / LEVELS - 1, 1 - 1 / LEVELS)  # the middles of the cells of `dequantise`
SPREAD = math.log2(LEVELS / 2)  # from bits of density on [-1, 1) to bits of a level


class IntegerTimeUNet(nn.Module):
    """What a DDPM user brings: a network that knows noise levels as k - 1 = 0 ... K-1 and scales them for itself."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.net = steps, UNet(channels=1, width=16, classes=10)

    def forward(self, x: Tensor, k: Tensor, label: Tensor) -> Tensor:
        return self.net(x, k / self.steps, label)


def train(model: sdegen.ScoreModel, images: Tensor, labels: Tensor, steps: int) -> sdegen.ScoreModel:
    """Algorithm 1 of Ho et al.: k uniform on 1 ... K, the noise regressed. Adam, and an average of the weights.

    The images are dequantised, so that they have a density for the ODE to find: trained on the levels themselves the
    network gave an ODE density of 2.24 bits/dim instead of 1.91, in one run each.
    """
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    optimiser = torch.optim.Adam(model.parameters(), 8e-3)
    schedule = OneCycleLR(optimiser, 8e-3, total_steps=steps, pct_start=0.05)
    bar = tqdm(range(steps), desc="training", unit="step", mininterval=0.5)
    for step in bar:
        i = torch.randint(len(images), (64,), device=images.device)
        x = dequantise(images[i])
        loss = sdegen.loss(model, x, times=sdegen.ChainTimes(), cond={"label": labels[i]})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(model)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return average.module.eval().requires_grad_(False)


def samplers(path: sdegen.DDPM) -> dict[str, sdegen.Ancestral | sdegen.DDIM | sdegen.SDESolver | sdegen.ODESolver]:
    """The chain a DDPM comes with, its shortcuts, and the two engines of the continuous view."""
    short = path.respaced(50, "trailing")
    return {
        f"chain, {path.steps} steps": sdegen.Ancestral(),
        "chain, 50 steps": sdegen.Ancestral(grid=short),
        "DDIM, 50 steps": sdegen.DDIM(grid=short),
        "SDE euler, 50": sdegen.SDESolver("euler", 50),
        "ODE rk4, 12": sdegen.ODESolver("rk4", steps=12),
        "ODE dopri5": sdegen.ODESolver("dopri5", rtol=1e-3),
    }


def compare(model: sdegen.ScoreModel, held_out: Tensor, more: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sample with every solver, given the held-out labels; print a row for each below that of training images.

    As many of every digit on both sides are more alike than draws, so equal laws come out a little below zero.
    """
    print(f"\n{'sampler':20s}{'network calls':>14s}{'seconds':>10s}{'energy distance':>17s}")
    print(f"{'training images':20s}{'-':>14s}{'-':>10s}{sdegen.energy_distance(more, held_out):17.4f}")
    samples = {}
    x_T = model.path.prior.sample(held_out.shape, device=held_out.device)  # one noise for all: ODE and DDIM then agree
    for name, solver in samplers(model.path).items():
        start = time.perf_counter()
        solution = sdegen.solve(model, x_T, solver, cond={"label": labels})
        seconds = time.perf_counter() - start
        samples[name] = solution.x
        print(f"{name:20s}{solution.calls:14d}{seconds:10.1f}{sdegen.energy_distance(solution.x, held_out):17.4f}")
    return samples


def read_likelihoods(model: sdegen.ScoreModel, images: Tensor, tests: Tensor, labels: tuple[Tensor, Tensor]) -> None:
    """Bits a pixel of the same test images given their labels: every row is an upper bound on their code length.

    "levels": the 17 grey levels themselves, through a discretised last step. "dequantised": the density of
    y = 2 (n + u)/17 - 1, u uniform, plus log2(17/2), which by Jensen's inequality bounds the levels' code length too.
    Rows of the chain bound the likelihood of the chain; the last row is the ODE's own density. Two models, one network.

    With all its steps the chain's first latent, sigma = 0.01, shows where in its cell, 0.118 wide, a level lies. That
    place is worth nothing, yet it must be coded, the dearer the more evenly the network spreads its images over the
    cell. A chain that starts from a wider latent does not pay for it, so "levels" get cheaper with fewer steps.
    """
    quick, steps = len(tests) < 20, model.path.steps
    twice, seen = torch.cat([tests, tests]), {"label": labels[0]}
    given = {"label": torch.cat([labels[1], labels[1]])}
    draws = {"cond": given, "draws": 16 if quick else 64}
    short = model.path.respaced(steps // 10, "trailing")
    print(f"\n{f'{len(tests)} test images':28s}{'bits/dim':>9s}{'error':>8s}  what it is")
    for kind, prepare, decoder, u_min in (
        ("levels", middles, CODED, 0.05),
        ("dequantised", dequantise, "gaussian", 0.01),
    ):
        x, what, offset = prepare(twice), f"bound, {kind}", 0.0 if kind == "levels" else SPREAD
        # the best variances are measured on training images
        best = sdegen.optimal_variance(model, prepare(images), cond=seen)
        best_short = sdegen.optimal_variance(model, prepare(images), cond=seen, grid=short)
        for name, variance in {"beta": "beta", "posterior": "posterior", "optimal": best}.items():
            bound = sdegen.vlb(model, x, variance=variance, decoder=decoder, **draws)
            print_bits(f"{steps} steps, {name}", bound.bits_per_dim + offset, what)
        few = {"variance": best_short, "decoder": decoder, "cond": given, "grid": short}
        name = f"{steps // 10} steps, optimal"
        print_bits(name, sdegen.vlb(model, x, **few).bits_per_dim + offset, what)
        if kind == "levels":
            print_bits(f"{name}, 8 paths", sdegen.iwae(model, x, 8, batch_size=4 * len(x), **few).bits_per_dim, what)
        bound = sdegen.continuous_vlb(model, x, decoder=decoder, u_min=u_min, **draws)
        print_bits(f"infinitely many, u > {u_min}", bound.bits_per_dim + offset, what)
    logp = sdegen.log_prob(model, x, sdegen.ODESolver("rk4", steps=4 if quick else 8), cond=given, trace="exact")
    print_bits("ODE rk4", bits_per_dim(logp, x.shape[1:]), "density, dequantised")


def print_bits(name: str, bits: Tensor, what: str) -> None:
    """One row, from two independent readings of every image: their mean, and its error by how the two differ."""
    first, second = bits.chunk(2)
    error = float((first - second).square().sum().sqrt()) / (2 * len(first))
    print(f"{name:28s}{float(bits.mean()):9.3f}{error:8.3f}  {what}")


def middles(images: Tensor) -> Tensor:
    """The levels n as the middles of their cells, 2 (n + 1/2)/17 - 1."""
    return 2 * (images + 0.5) / LEVELS - 1


# The chain as its steps shrink: data N(0.8, 0.25), the exact network, no random numbers

MEAN, VARIANCE = 0.8, 0.25
SLOPE = 0.74941  # of the chain with beta_k: its variance exceeds that of the data by SLOPE / K


def chain_variance(steps: int, variance: str) -> float:
    """The variance of what the chain returns from the exact noise end, read off three runs.

    Every step is affine, x -> a x + b + c z. Of the three runs one starts at 0 and one at 1, both with z = 0, and the
    third at 0 with z = 1 throughout: their differences give a and c of every step, and then P -> a^2 P + c^2.
    """
    path = sdegen.DDPM.from_path(sdegen.VPSDE(), steps)
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    V = VARIANCE * path.alpha(t) ** 2 + path.sigma(t) ** 2  # of x_k
    true = path.betas * V[:-1] / V[1:]  # of x_{k-1} given x_k: the optimal variance
    x_T = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    noise = torch.zeros(steps, 3, 1, dtype=torch.float64)
    noise[:, 2] = 1
    model = sdegen.Gaussian([MEAN], math.sqrt(VARIANCE)).model(path)
    solver = sdegen.Ancestral(variance=true if variance == "optimal" else variance)
    x = sdegen.solve(model, x_T, solver, noise=noise, trajectory=True).trajectory[..., 0]
    gain = (x[1:, 1] - x[1:, 0]) / (x[:-1, 1] - x[:-1, 0])
    added = (x[1:, 2] - x[1:, 0]) - gain * (x[:-1, 2] - x[:-1, 0])
    P = float(V[-1])
    for a, c in zip(gain.tolist(), added.tolist(), strict=True):
        P = a**2 * P + c**2
    return P


def converge(path: Path, most: int) -> None:
    """Print and draw the error of the chain's variance for more and more steps.

    The last step adds no noise. With the optimal variances that alone is wrong, and costs about beta(0)/K = 0.1/K.
    """
    steps = [K for K in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000) if most >= K]
    errors = {v: [chain_variance(K, v) - VARIANCE for K in steps] for v in ("beta", "posterior", "optimal")}
    print(f"\nchain on N({MEAN}, {VARIANCE}): K times the error of its variance; with beta the limit is {SLOPE}")
    print(f"{'K':>8s}" + "".join(f"{name:>12s}" for name in errors))
    for i, K in enumerate(steps):
        print(f"{K:8d}" + "".join(f"{K * row[i]:12.5f}" for row in errors.values()))
    draw_convergence(path, steps, errors)


def draw_convergence(path: Path, steps: list[int], errors: dict[str, list[float]]) -> None:
    """Log-log, with the limit that theory gives; a hollow mark where the samples are too narrow."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    axis.loglog(steps, [SLOPE / K for K in steps], color=INK, lw=1, ls=(0, (5, 3)), label=f"{SLOPE} / K")
    axis.plot([], [], "o", ms=6, color=INK, label="samples too wide")
    axis.plot([], [], "o", ms=6, mec=INK, mfc="white", label="samples too narrow")
    names = {"beta": (r"$\beta_k$", CHAIN), "posterior": (r"$\tilde\beta_k$", ODE), "optimal": ("optimal", SDE)}
    for name, (label, shade) in names.items():
        size = [abs(e) for e in errors[name]]
        axis.plot(steps, size, color=shade, lw=1.6)
        for K, s, e in zip(steps, size, errors[name], strict=True):
            axis.plot(K, s, "o", ms=6, mec=shade, mfc=shade if e > 0 else "white")
        beside = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(label, (steps[-1], size[-1]), **beside, color=shade, fontsize=14)
    axis.set_xlabel("steps K of the chain", fontsize=12)
    axis.set_ylabel("|variance of the samples − 0.25|", fontsize=12)
    axis.tick_params(labelsize=11)
    axis.legend(loc="lower left", fontsize=11, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    plot.write(figure, path)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line; train, sample, read likelihoods, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller run, under a minute")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for the pictures")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    images, labels = (x.to(args.device) for x in digits("train"))
    tests, test_labels = (x.to(args.device) for x in digits("test"))
    path = sdegen.DDPM.linear(200, 5e-4, 0.1) if args.quick else sdegen.DDPM.linear(1000)
    net = IntegerTimeUNet(path.steps)
    # eps is what a DDPM network predicts, and it serves: with v the bounds tried came out no lower, in one run each
    model = sdegen.ScoreModel(net, path, predicts="eps", time=path.index).to(args.device)  # t = k/K -> k - 1
    model = train(model, images, labels, 250 if args.quick else 2000)

    number = 40 if args.quick else 200
    held_out = dequantise(tests[:number])
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(args.device)
    counts = torch.bincount(test_labels[:number], minlength=10).tolist()
    alike = torch.cat([mixed[labels[mixed] == c][:n] for c, n in enumerate(counts)])  # as many of every digit
    samples = compare(model, held_out, dequantise(images[alike]), test_labels[:number])
    first = [int((test_labels[:number] == c).nonzero()[0]) for c in range(10)]
    rows = {"test images": middles(tests[:number]), **samples}
    plot.write(plot.grid({name: x[first] for name, x in rows.items()}, cmap="gray_r"), args.out / "ddpm_digits.png")

    number, seen = (4, 8) if args.quick else (32, 32)
    read_likelihoods(model, images[:seen], tests[:number], (labels[:seen], test_labels[:number]))
    converge(args.out / "ddpm_convergence.png", 200 if args.quick else 10_000)
    pictures = ", ".join(str(args.out / name) for name in ("ddpm_digits.png", "ddpm_convergence.png"))
    print(f"\n{time.perf_counter() - start:.0f} s in all; see {pictures}")


if __name__ == "__main__":
    main()
