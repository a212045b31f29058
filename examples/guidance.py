"""Steering one model: digits by label, the missing half of a picture, a sketch made a digit, a noisy measurement.

    python examples/guidance.py [--quick] [--device cuda] [--seed 0] [--out outputs]

One network is trained on handwritten digits and their labels, some of which are left out, so that it knows p(x | label)
and p(x) alike. Nothing is trained after that: `ClassifierFree` follows a label, `Observed` what is seen of a picture,
and a few lines on u=(from, to) are replacement inpainting and SDEdit. In the plane, where the posterior is known
exactly, each method of `Observed` is held against it. Prints four tables and writes four pictures.

Classifier-Free Diffusion Guidance, Ho and Salimans, 2022, arXiv:2207.12598. SDEdit, Meng et al., 2022,
arXiv:2108.01073. Replacement: Song et al., 2021, arXiv:2011.13456, appendix I; why it is no posterior: Trippe et al.,
2023, arXiv:2206.04119. The methods of `Observed`: see its references.
"""

from __future__ import annotations

import argparse
import math
import time
from itertools import pairwise, product
from pathlib import Path

import matplotlib
import torch
from sklearn.svm import SVC
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import sdegen
from sdegen import plot
from sdegen.datasets import digits
from sdegen.nets import UNet

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK, GREY = "#22223b", "#b8b8c4"
THEIRS, OURS = plot.PALETTE[:2]
LEVELS = sdegen.Quantized(17)
PATH = sdegen.VPSDE()
NONE = 10  # the label that stands for none
FONT = (
    "111101101101111 010110010010111 111001111100111 111001011001111 101101111001001 "
    "111100111001111 111100111101111 111001010010010 111101111101111 111101111001111"
)


def train(args: argparse.Namespace, images: Tensor, labels: Tensor) -> sdegen.ScoreModel:
    """Denoising score matching given the label, which one time in seven is NONE."""
    steps, lr = (200, 8e-3) if args.quick else (2000, 8e-3)
    model = sdegen.ScoreModel(UNet(channels=1, width=16, classes=11), PATH, "v").to(args.device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    optimiser = torch.optim.Adam(model.parameters(), lr)
    schedule = OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.05)
    bar = tqdm(range(steps), desc="training on digits", unit="step", mininterval=0.5)
    for step in bar:
        i = torch.randint(len(images), (64,), device=args.device)
        dropped = torch.rand(64, device=args.device) < 1 / 7
        cond = {"label": torch.where(dropped, NONE, labels[i])}
        loss = sdegen.loss(model, LEVELS.dequantise(images[i]), cond=cond, times=sdegen.ClockTimes(importance=False))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(model)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return average.module.eval().requires_grad_(False)


class Reader:
    """A classifier of clean images that has seen real ones alone."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.machine = SVC(C=10, gamma=1e-3).fit(images.flatten(1).cpu().numpy(), labels.cpu().numpy())

    def right(self, x: Tensor, labels: Tensor) -> float:
        """The share of images x in [-1, 1] whose label it reads right."""
        levels = (17 * (x + 1) / 2 - 0.5).clamp(0, 16)
        return float(self.machine.score(levels.flatten(1).cpu().numpy(), labels.cpu().numpy()))


def as_data(levels: Tensor) -> Tensor:
    """Whole levels at the middle of their cells, in [-1, 1]."""
    return 2 * (levels + 0.5) / 17 - 1


def by_label(args: argparse.Namespace, model: sdegen.Model, reader: Reader, tests: Tensor, test_labels: Tensor) -> None:
    """Classifier-free guidance at several scales, all from the same noise: how often right, and at what price."""
    number = 200 if args.quick else 1000
    labels = torch.arange(number, device=args.device) % 10
    x_T = PATH.prior.std * torch.randn(number, 1, 8, 8, device=args.device)
    real = LEVELS.dequantise(tests)
    rows = {"held-out": (real, test_labels)}
    for scale in (0, 1, 2, 4):
        guided = sdegen.ClassifierFree(model, scale, without={"label": NONE})
        x = sdegen.sample(guided, tuple(x_T.shape), sdegen.Adams(20), x_T=x_T, cond={"label": labels})
        rows[f"scale {scale}"] = (x, labels)
    print(f"\n{number} samples of each scale from the same noise, ODE in 20 calls; {len(tests)} held-out images;")
    print("draws of one law are at energy distance zero on average, and a little below where their labels agree\n")
    print(f"{'':10s}{'label read right':>18s}{'apart within a class':>22s}{'energy distance to held-out':>29s}")
    table = {}
    for name, (x, label) in rows.items():
        table[name] = reader.right(x, label), spread(x, label)
        distance = "" if x is real else f"{sdegen.energy_distance(x, real):29.3f}"
        print(f"{name:10s}{table[name][0]:18.3f}{table[name][1]:22.2f}{distance}")
    draw_scales(args.out / "guidance_labels.png", rows, table)


def spread(x: Tensor, labels: Tensor) -> float:
    """The mean distance between two images of a class, averaged over the classes."""
    return float(torch.stack([torch.pdist(x[labels == c].flatten(1)).mean() for c in range(10)]).mean())


def replaced(model: sdegen.Model, x: Tensor, known: Tensor, steps: int, cond: dict) -> Tensor:
    """Replacement inpainting: before every step the pixels that are known are put back, noised as the rest is."""
    x_t = PATH.prior.std * torch.randn_like(x)
    for u, v in pairwise(torch.linspace(PATH.ends[1], 0, steps + 1, dtype=torch.float64).tolist()):
        x_t = torch.where(known, PATH.perturb(x, PATH.at(u))[0], x_t)
        x_t = sdegen.solve(model, x_t, sdegen.StochasticAdams(1), u=(u, v), cond=cond).x
    return torch.where(known, x, x_t)


def edited(model: sdegen.Model, sketch: Tensor, u: float, cond: dict, noise: Tensor) -> Tensor:
    """SDEdit: the sketch is noised to the clock u and sampled back; the larger u, the less of it is left."""
    x_t, _ = PATH.perturb(sketch, PATH.at(u), noise)
    return sdegen.solve(model, x_t, sdegen.StochasticAdams(20), u=(u, 0.0), cond=cond).x


def inpaint(args: argparse.Namespace, model: sdegen.Model, reader: Reader, tests: Tensor, labels: Tensor) -> None:
    """The right half of held-out digits, sampled given the left half and no label."""
    each, steps, std = (2, 25, 0.05) if args.quick else (10, 100, 0.05)
    chosen = torch.cat([(labels == c).nonzero()[3 : 4 if args.quick else 5, 0] for c in range(10)])
    whole, labels = as_data(tests[chosen]), labels[chosen]
    known = (torch.arange(8, device=args.device) < 4).expand(1, 8, 8)
    none = {"label": torch.full((each,), NONE, device=args.device)}
    made = {"mmps": [], "pigdm": [], "replacement": []}
    for x in whole:
        for method in ("mmps", "pigdm"):
            seen = sdegen.Observed(model, lambda x: x[..., :4], x[..., :4], std, method)
            made[method].append(sdegen.sample(seen, (each, 1, 8, 8), sdegen.SDESolver("euler", steps), cond=none))
        made["replacement"].append(replaced(model, x.expand(each, 1, 8, 8), known, steps, none))
    made = {name: torch.stack(x) for name, x in made.items()}  # (image, completion, 1, 8, 8)
    again = labels.repeat_interleave(each)
    print(f"\nthe right half of {len(whole)} held-out digits given the left, {each} completions each, {steps} steps;")
    print(f"of the originals the classifier reads {reader.right(whole, labels):.3f} right\n")
    print(f"{'':12s}{'read as the original':>22s}{'apart from each other':>23s}{'off where seen':>16s}")
    for name, x in made.items():
        apart = torch.stack([torch.pdist(rows.flatten(1)).mean() for rows in x]).mean()
        off = (x - whole[:, None])[..., :4].square().mean().sqrt()
        print(f"{name:12s}{reader.right(x.flatten(0, 1), again):22.3f}{float(apart):23.2f}{float(off):16.3f}")
    draw_inpainting(args.out / "guidance_inpainting.png", whole, known, made)


def sketches(device: str) -> Tensor:
    """The digits of a 3 x 5 pixel font, which are no handwriting, blown up to images (10, 1, 8, 8) in [-1, 1]."""
    bits = torch.tensor([[float(bit) for bit in digit] for digit in FONT.split()], device=device)
    coarse = torch.nn.functional.interpolate(bits.reshape(10, 1, 5, 3), (8, 6))
    return as_data(16 * torch.nn.functional.pad(coarse, (1, 1)))


def edit(args: argparse.Namespace, model: sdegen.Model, reader: Reader, tests: Tensor, labels: Tensor) -> None:
    """The digits of a pixel font made handwriting, and handwritten digits made the next digit."""
    each = 5 if args.quick else 40
    own = torch.arange(10, device=args.device)
    others = torch.stack([tests[labels == c][5] for c in range(10)]).roll(1, 0)  # above label c a digit c - 1
    starts = torch.cat([sketches(args.device), as_data(others)]).repeat(each, 1, 1, 1)
    wanted = torch.cat([own, own]).repeat(each)
    guided = sdegen.ClassifierFree(model, 2.0, without={"label": NONE})
    noise, rows = torch.randn_like(starts), {"input": starts}
    for u in (0.3, 0.5, 0.7):
        rows[f"u = {u}"] = edited(guided, starts, u, {"label": wanted}, noise)
    drawn = torch.arange(len(starts), device=args.device) % 20 < 10
    print(f"\nSDEdit towards a label, {each} samples of each input: how often it is read, distance to the input\n")
    print(f"{'':10s}{'sketch':>16s}{'':>10s}{'another digit':>20s}")
    for name, x in rows.items():
        off = (x - starts).flatten(1).norm(dim=1)
        parts = [(reader.right(x[part], wanted[part]), float(off[part].mean())) for part in (drawn, ~drawn)]
        print(f"{name:10s}" + "    ".join(f"{right:12.3f}{distance:10.2f}" for right, distance in parts))
    draw_edits(args.out / "guidance_sdedit.png", {name: x[:20] for name, x in rows.items()})


class Petals:
    """Eight Gaussians on a ring, each long across the radius, and what is known of them from a noisy measurement."""

    def __init__(self):
        angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
        out = torch.stack([angle.cos(), angle.sin()], 1)
        across = torch.stack([-angle.sin(), angle.cos()], 1)
        self.m = 1.5 * out
        self.S = 0.1**2 * out[:, :, None] * out[:, None] + 0.35**2 * across[:, :, None] * across[:, None]
        self.law = sdegen.GaussianMixture(self.m, covariances=self.S)

    def posterior(self, A: Tensor, z: Tensor, std: float) -> sdegen.GaussianMixture:
        """The law of x given z = A x + std n, n ~ N(0, I): every component is conditioned, and weighed by its p(z).

        m_i' = m_i + G_i (z - A m_i), S_i' = S_i - G_i A S_i, w_i' ~ w_i N(z; A m_i, C_i) with C_i = A S_i A^T + std^2 I
        and G_i = S_i A^T C_i^-1.
        """
        C = A @ self.S @ A.mT + std**2 * torch.eye(len(A), dtype=A.dtype)
        gain = self.S @ A.mT @ torch.linalg.inv(C)
        means = self.m + (gain @ (z - self.m @ A.mT)[..., None])[..., 0]
        weights = MultivariateNormal(self.m @ A.mT, C).log_prob(z).softmax(0)
        return sdegen.GaussianMixture(means, weights=weights, covariances=self.S - gain @ A @ self.S)


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    """The mean over 64 directions in the plane of the Wasserstein-1 distance between projections, equal numbers."""
    angle = torch.arange(64, dtype=x.dtype) * math.pi / 64
    directions = torch.stack([angle.cos(), angle.sin()])
    return float(((x @ directions).sort(0).values - (y @ directions).sort(0).values).abs().mean())


def guesses(
    method: str, petals: Petals, A: Tensor, z: Tensor, std: float, number: int, steps: int, g: torch.Generator
) -> Tensor:
    """Samples of x given z; infinite where the solve diverged, as that of "dps" does where std is small."""
    if method == "exact":
        return petals.posterior(A, z, std).sample(number, g)
    seen = sdegen.Observed(petals.law.model(PATH), A, z, std, method)
    try:
        return sdegen.sample(seen, (number, 2), sdegen.SDESolver("euler", steps), generator=g, dtype=torch.float64)
    except sdegen.NonFiniteError:
        return torch.full((number, 2), math.inf, dtype=torch.float64)


def measure(args: argparse.Namespace) -> None:
    """A noisy projection of a point in the plane: samples of each method beside exact ones."""
    number, steps, places = (400, 120, [0.75]) if args.quick else (2000, 500, [0.75, -0.2, 1.4])
    petals, A, stds, shown = Petals(), torch.tensor([[1.0, 0.4]], dtype=torch.float64), (0.02, 0.1, 0.5), {}
    print(f"\neight petals seen through one noisy number z: sliced Wasserstein distance to {number} exact samples")
    print(f"of the posterior, by SDE euler in {steps} steps, mean over z = {', '.join(map(str, places))}\n")
    print(f"{'':22s}" + "".join(f"{f'std {std}':>10s}" for std in stds))
    for method in ("exact", "mmps", "pigdm", "dps"):
        distances = torch.zeros(len(stds), len(places))
        for (i, std), (j, place) in product(enumerate(stds), enumerate(places)):
            z, g = torch.tensor([place], dtype=torch.float64), torch.Generator().manual_seed(args.seed + j)
            exact = guesses("exact", petals, A, z, std, number, steps, g)
            x = guesses(method, petals, A, z, std, number, steps, g)
            distances[i, j] = sliced_wasserstein(x, exact)
            if std == 0.1 and j == 0:
                shown[method] = x, float(distances[i, j])
        row = "".join(f"{float(d):10.3f}" if d < 10 else f"{'diverges':>10s}" for d in distances.mean(1))
        print(f"{'another exact sample' if method == 'exact' else method:22s}{row}")
    print(
        "\nNone is exact on a mixture. The pull of dps grows like 1/std^2 and asks for ever smaller steps; pigdm and\n"
        "mmps know that x_hat is uncertain and are stable here, mmps by the model's own covariance."
    )
    draw_posteriors(args.out / "guidance_posterior.png", petals, A, places[0], 0.1, shown)


def draw_scales(path: Path, rows: dict[str, tuple[Tensor, Tensor]], table: dict[str, tuple[float, float]]) -> None:
    """Two of each label in a row, the same noise in every row below the first; beside it what the table says."""
    figure, axis = plt.subplots(figsize=(11, 2.75), layout="constrained")
    images = {}
    for name, (x, labels) in rows.items():
        two_of_each = torch.cat([(labels == c).nonzero()[:2, 0] for c in range(10)])
        images[name.replace("scale 0", "no label, scale 0")] = x[two_of_each]
    plot.grid(images, axis, cmap="gray_r")
    middles = axis.get_yticks()
    columns = {1.045: ("read\nright", "{:.3f}"), 1.125: ("apart in\na class", "{:.2f}")}
    for i, (x, (title, number)) in enumerate(columns.items()):
        axis.text(x, 1.02, title, transform=axis.transAxes, ha="center", va="bottom", color=OURS)
        for y, values in zip(middles, table.values(), strict=True):
            place = {"transform": axis.get_yaxis_transform(), "ha": "center", "va": "center"}
            axis.text(x, y, number.format(values[i]), **place)
    axis.set_title("Classifier-free guidance: the label is followed, and variety is the price", loc="left", fontsize=12)
    plot.write(figure, path)


def draw_inpainting(path: Path, whole: Tensor, known: Tensor, made: dict[str, Tensor]) -> None:
    """Originals, what is seen of them, and three completions by each of two methods."""
    every = slice(None, None, len(whole) // 10)
    rows = {"original": whole[every], "seen": torch.where(known, whole, math.nan)[every]}
    for name, method in (("Observed", "mmps"), ("replacement", "replacement")):
        rows[name] = made[method][every, :3].transpose(0, 1)
    figure, axis = plt.subplots(figsize=(6.6, 4.9), layout="constrained")
    plot.grid(rows, axis, cmap="gray_r")
    axis.set_title("Inpainting: the right half given the left, and no label", loc="left", fontsize=12)
    plot.write(figure, path)


def draw_edits(path: Path, rows: dict[str, Tensor]) -> None:
    """Inputs above what becomes of them, for sketches and for digits of another label."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 2.75), layout="constrained")
    titles = ("SDEdit: sketches, given their label", "digits, given the next label")
    for axis, part, title in zip(axes, (slice(0, 10), slice(10, 20)), titles, strict=True):
        plot.grid({name: x[part] for name, x in rows.items()}, axis, cmap="gray_r")
        if part.start:
            axis.set_yticks([])
        axis.set_title(title, loc="left", fontsize=12)
    plot.write(figure, path)


def draw_posteriors(
    path: Path, petals: Petals, A: Tensor, z: float, std: float, shown: dict[str, tuple[Tensor, float]]
) -> None:
    """The data and the measured line, then posterior samples, exact and of each method."""
    figure, axes = plt.subplots(1, 1 + len(shown), figsize=(13.5, 3.05), layout="constrained")
    data = petals.law.sample(2000, torch.Generator().manual_seed(0))
    plot.samples(data, axes[0], color=INK).set_title("data and measurement")
    for axis, (name, (x, error)) in zip(axes[1:], shown.items(), strict=True):
        plot.samples(x, axis, data=data, color=INK if name == "exact" else OURS)
        axis.set_title(f"{name}, distance {error:.3f}")
    for axis in axes:
        x = torch.tensor([-2.4, 2.4])
        low, high = ((z + s * std - float(A[0, 0]) * x) / float(A[0, 1]) for s in (-1, 1))
        axis.fill_between(x.numpy(), low.numpy(), high.numpy(), color=THEIRS, alpha=0.2, lw=0)
        axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-2.4, 2.4), ylim=(-2.4, 2.4))
        axis.spines[:].set_color(GREY)
    plot.write(figure, path)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run all parts."""
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
    reader = Reader(images, labels)
    held_out = reader.right(as_data(tests), test_labels)
    print(f"a classifier trained on {len(images)} real images reads {held_out:.3f} of {len(tests)} held-out ones right")
    model = train(args, images, labels)
    for part in (by_label, inpaint, edit):
        torch.manual_seed(args.seed)
        part(args, model, reader, tests, test_labels)
    measure(args)
    names = ("labels", "inpainting", "sdedit", "posterior")
    pictures = ", ".join(str(args.out / f"guidance_{name}.png") for name in names)
    print(f"\n{time.perf_counter() - start:.0f} s in all; see {pictures}")


if __name__ == "__main__":
    main()
