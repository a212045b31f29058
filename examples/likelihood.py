"""Log-densities with error bars: a map in the plane, held-out bits/dim of digits, and scores of what is no digit.

    python examples/likelihood.py [--quick] [--device cuda] [--seed 0] [--out outputs]

Every number says which number it is: the density of the ODE, or a bound on the probability of quantised data; and how
far off it may be: by the solver's steps, by the probes of an estimated trace, by the prior. Prints two tables and
writes three pictures.

What a density can tell of things that are no data, and what it cannot: Do Deep Generative Models Know What They Don't
Know?, Nalisnick et al., 2019, arXiv:1810.09136; Perfect Density Models Cannot Guarantee Anomaly Detection, Le Lan and
Dinh, 2021, arXiv:2012.03808.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import sdegen
from sdegen import plot
from sdegen.datasets import digits, two_moons
from sdegen.nets import MLP, UNet

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK, GREY = "#22223b", "#b8b8c4"
THEIRS, OURS = plot.PALETTE[:2]
LEVELS = sdegen.Quantized(17)


def train(
    model: sdegen.ScoreModel, batch: Callable[[], tuple[Tensor, dict | None]], steps: int, lr: float, name: str
) -> sdegen.ScoreModel:
    """The whole training loop: denoising score matching at clocks uniform in u, Adam, an average of the weights."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    optimiser = torch.optim.Adam(model.parameters(), lr)
    schedule = OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.05)
    bar = tqdm(range(steps), desc=f"training on {name}", unit="step", mininterval=0.5)
    for step in bar:
        x, cond = batch()
        loss = sdegen.loss(model, x, times=sdegen.ClockTimes(importance=False), cond=cond)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(model)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return average.module.eval().requires_grad_(False)


def in_the_plane(args: argparse.Namespace) -> None:
    """Two moons: the density on a grid of points, what it integrates to, and what each of its numbers may be off by."""
    data, held_out = two_moons(20_000).to(args.device), two_moons(1000).to(args.device)
    model = sdegen.ScoreModel(MLP(2), sdegen.VPSDE(), "v").to(args.device)

    def batch() -> tuple[Tensor, None]:
        return data[torch.randint(len(data), (512,), device=args.device)], None

    model = train(model, batch, 200 if args.quick else 3000, 4e-3, "two moons")
    rows = 40 if args.quick else 120
    x, y = (0.0425 * 40 / rows * (2 * torch.arange(n, device=args.device) + 1 - n) for n in (3 * rows // 2, rows))
    solver = sdegen.Adams(80 if args.quick else 160)
    found = sdegen.log_likelihood(model, torch.cartesian_prod(y, x).flip(1), solver, data=data[:4000])
    mass = float(found.log_prob.exp().sum() * (x[1] - x[0]) * (y[1] - y[0]))
    held = sdegen.evaluate(model, held_out[:100] if args.quick else held_out, batch_size=1000, solver=solver)
    print(f"\ntwo moons  {held}")
    print(f"           the density integrates to {mass:.4f} over the picture; the errors of its logarithm there:")
    print_errors(found)
    draw_density(args.out / "likelihood_density.png", held_out, found, (x, y))


def print_errors(found: sdegen.LogLikelihood) -> None:
    """The three errors of a batch of log-densities, the median and the worst."""
    for name in ("solver_error", "probe_error", "prior_gap"):
        error = getattr(found, name)
        said = "unknown" if error is None else f"{float(error.median()):.1e}, at worst {float(error.max()):.1e} nats"
        print(f"           {name:13s} {said}")


def on_digits(args: argparse.Namespace) -> None:
    """Handwritten digits, 8 x 8 with 17 grey levels: held-out bits per dimension, and what is no digit."""
    images, labels = (x.to(args.device) for x in digits("train"))
    model = sdegen.ScoreModel(UNet(channels=1, width=16, classes=10), sdegen.VPSDE(), "v").to(args.device)

    def batch() -> tuple[Tensor, dict]:
        i = torch.randint(len(images), (64,), device=args.device)
        return LEVELS.dequantise(images[i]), {"label": labels[i]}

    model = train(model, batch, 150 if args.quick else 2000, 8e-3, "digits")
    tests, test_labels = digits("test")
    order = torch.randperm(len(tests), generator=torch.Generator().manual_seed(args.seed))  # writers mixed
    tests, test_labels = tests[order].to(args.device), test_labels[order].to(args.device)
    in_bits(args, model, images, tests, test_labels)
    out_of_distribution(args, model, tests, test_labels)


def in_bits(args: argparse.Namespace, model: sdegen.ScoreModel, images: Tensor, tests: Tensor, labels: Tensor) -> None:
    """Held-out bits per dimension given the label, beside those of a Gaussian fitted to the training images."""
    number, steps = (12, 30) if args.quick else (len(tests), 60)
    tests, labels, solver = tests[:number], labels[:number], sdegen.Adams(steps)
    # with directory="..." this may be killed at any moment and goes on from there, in several processes too
    ours = sdegen.evaluate(model, tests, quantized=LEVELS, cond={"label": labels}, solver=solver, seed=args.seed)
    y = LEVELS.dequantise(images).flatten(1).double()
    gaussian = sdegen.Gaussian(y.mean(0), covariance=torch.cov(y.T))
    logp = gaussian.log_prob(LEVELS.dequantise(tests).flatten(1).double()) + 64 * math.log(LEVELS.cell)
    theirs = sdegen.Evaluation(logp, 64, "bound", complete=True)
    off = sdegen.log_likelihood(model, LEVELS.dequantise(tests[:10]), solver, cond={"label": labels[:10]}).solver_error
    print(
        f"\n{'digits':11s}{'bits/dim':>9s}   95 % interval   {number} held-out images, exact trace, a bound, one draw"
    )
    for name, held in (("given label", ours), ("Gaussian", theirs)):
        low, high = held.bits_interval
        print(f"{name:11s}{held.bits_per_dim:9.3f}   {low:.3f} to {high:.3f}")
    bits = float(off.mean()) / (64 * math.log(2))
    print(f"within {bits:.4f} bits/dim of what finer steps give; to code the label takes {math.log2(10) / 64:.3f} more")
    draw_bits(args.out / "likelihood_bits.png", tests, ours, theirs)


def other_things(model: sdegen.ScoreModel, n: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Images, and the labels they are said to have: digits, what the model makes, and what is no digit."""
    z = torch.randn_like(n)
    made, cold = (
        LEVELS.quantise(sdegen.decode(model, s * z, sdegen.Adams(20), cond={"label": labels})) for s in (1, 0.5)
    )
    pixels = n.flatten(1)
    mixed = torch.stack([column[torch.randperm(len(n), device=n.device)] for column in pixels.T], 1)
    return {
        "digits": (n, labels),
        "samples": (made, labels),
        "latents halved": (cold, labels),
        "another label": (n, (labels + torch.randint(1, 10, labels.shape, device=n.device)) % 10),
        "mirrored": (n.flip(3), labels),
        "upside down": (n.flip(2, 3), labels),
        "a quarter turn": (n.rot90(1, (2, 3)), labels),
        "pixels of many": (mixed.reshape(n.shape), labels),
        "pixels shuffled": (pixels[:, torch.randperm(64, device=n.device)].reshape(n.shape), labels),
        "negative": (16 - n, labels),
        "noise": (torch.randint_like(n, 17), labels),
        "blank": (torch.zeros_like(n), labels),
    }


def auroc(inside: Tensor, outside: Tensor) -> tuple[float, float]:
    """P(an inside score is above an outside one), ties half, and its standard error (DeLong et al., 1988)."""
    above = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside)
    variance = above.mean(1).var() / len(inside) + above.mean(0).var() / len(outside)
    return float(above.mean()), float(variance.sqrt())


def out_of_distribution(args: argparse.Namespace, model: sdegen.ScoreModel, tests: Tensor, labels: Tensor) -> None:
    """Log-densities of digits and of other things, by four probes: a tenth of the cost of the exact trace."""
    number, solver = (16, sdegen.Adams(30)) if args.quick else (120, sdegen.Adams(80))

    def log_density(images: Tensor, label: Tensor) -> sdegen.LogLikelihood:
        y, cond = LEVELS.dequantise(images), {"label": label}
        return sdegen.log_likelihood(model, y, solver, trace=sdegen.Hutchinson(4), cond=cond)

    usual = log_density(tests[-number:], labels[-number:]).log_prob.median()
    things, scores = other_things(model, tests[:number], labels[:number]), {}
    print(f"\n{'':17s}log p, nats   error   AUROC of log p   AUROC of -|log p - usual|")
    for name, (images, label) in things.items():
        found = log_density(images, label)
        scores[name] = logp = found.log_prob
        text = f"{name:17s}{float(logp.median()):11.1f}{float(found.error.median()):8.2f}"
        if name != "digits":
            digit = scores["digits"]
            pairs = auroc(digit, logp), auroc(-(digit - usual).abs(), -(logp - usual).abs())
            text += "".join(f"   {area:.3f} +- {1.96 * error:.3f}" for area, error in pairs)
        print(text)
    print(
        "\nA low density tells what is unlike the data: noise, negatives, a wrong label. A high one does not tell a\n"
        "digit: samples from halved latents are denser than digits, smoother, and hardly ever drawn; mirrored 0s, 1s\n"
        "and 8s pass, and rightly. Nor does the order belong to the images alone: it changes with the coordinates."
    )
    draw_things(args.out / "likelihood_ood.png", things, scores)


def draw_density(path: Path, held_out: Tensor, found: sdegen.LogLikelihood, grid: tuple[Tensor, Tensor]) -> None:
    """Data, the map of the density, the map of its error."""
    half = [float(side[1] - side[0]) / 2 for side in grid]  # the points are the middles of their cells
    window = tuple((float(side[0]) - h, float(side[-1]) + h) for side, h in zip(grid, half, strict=True))
    figure, axes = plt.subplots(1, 3, figsize=(12, 2.7), sharex=True, sharey=True, layout="constrained")
    plot.samples(held_out, axes[0], color=INK).set_title("held-out data")
    shape = len(grid[1]), len(grid[0])
    plot.density(found.log_prob.reshape(shape), axes[1], limits=window).set_title("density")
    plot.density(found.error.reshape(shape), axes[2], limits=window, error=True).set_title("its reported error")
    plot.write(figure, path)


def draw_bits(path: Path, tests: Tensor, ours: sdegen.Evaluation, theirs: sdegen.Evaluation) -> None:
    """Bits per dimension of every held-out image under both models; the cheapest and the dearest images."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3), width_ratios=(1.2, 1), layout="constrained")
    bits = [-held.per_sample.cpu().double() / (held.size * math.log(2)) for held in (ours, theirs)]
    bins = torch.linspace(float(torch.cat(bits).min()), float(torch.cat(bits).quantile(0.99)), 60).numpy()
    for held, values, colour, name in ((ours, bits[0], OURS, "score model"), (theirs, bits[1], THEIRS, "Gaussian")):
        low, high = held.bits_interval
        left.hist(values.numpy(), bins=bins, color=colour, alpha=0.4)
        left.axvspan(low, high, ymax=0.8, color=colour, lw=0)
        text = f"{name}\n{held.bits_per_dim:.3f}, in [{low:.3f}, {high:.3f}]"
        left.text(held.bits_per_dim, 0.83, text, transform=left.get_xaxis_transform(), ha="center", color=colour)
    left.set(xlabel="bits/dim of one held-out image; mean with 95 % interval", yticks=[])
    left.spines[["top", "left", "right"]].set_visible(False)
    left.set_ylim(top=1.35 * left.get_ylim()[1])
    order = ours.per_sample.cpu().argsort(descending=True)
    ends = {"fewest bits": tests[order[:6]], "most bits": tests[order[-6:]]}
    plot.grid(ends, right, span=(0, 16), cmap="gray_r")
    plot.write(figure, path)


def draw_things(path: Path, things: dict[str, tuple[Tensor, Tensor]], scores: dict[str, Tensor]) -> None:
    """Four of each kind beside their log-densities, a point an image; the band holds the middle 90 % of digits."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 6), width_ratios=(1, 1.75), layout="constrained")
    plot.grid({name: images[:4] for name, (images, _) in things.items()}, left, span=(0, 16), cmap="gray_r")
    low, high = torch.quantile(scores["digits"].cpu(), torch.tensor([0.05, 0.95])).tolist()
    right.axvspan(low, high, color=GREY, alpha=0.5, lw=0)
    place = right.get_yaxis_transform()
    for i, (name, logp) in enumerate(scores.items()):
        jitter = i + 0.5 * (torch.rand(len(logp)) - 0.5)
        colour = OURS if name == "digits" else THEIRS
        right.scatter(logp.cpu().numpy(), jitter.numpy(), s=9, alpha=0.5, linewidths=0, color=colour)
        text = "AUROC" if name == "digits" else f"{auroc(scores['digits'], logp)[0]:.2f}"
        right.text(1.02, i, text, transform=place, va="center", fontsize=11)
    right.set(ylim=(len(scores) - 0.5, -0.5), yticks=[], xlabel=r"log-density $\log p(y)$ given the label, in nats")
    right.spines[["top", "left", "right"]].set_visible(False)
    plot.write(figure, path)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller run, under a minute")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for the pictures")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    in_the_plane(args)
    torch.manual_seed(args.seed)
    on_digits(args)
    pictures = ", ".join(str(args.out / f"likelihood_{name}.png") for name in ("density", "bits", "ood"))
    print(f"\n{time.perf_counter() - start:.0f} s in all; see {pictures}")


if __name__ == "__main__":
    main()
