"""Colour patches of photographs, 768 numbers each: trained by `sdegen.fit`, sampled, and scored in bits per dimension.

    python examples/patches.py [--quick] [--device cuda] [--seed 0] [--out outputs]

16 x 16 pixels in three colours and 256 levels, cut from the two photographs that scikit-learn ships, some stripes of
which are held out. A Gaussian with full covariance already knows how pixels go together; the network adds to it what a
Gaussian cannot say. Prints how far the samples of both are from held-out patches, in energy distance, and how many bits
per dimension held-out patches take; writes a picture. Ten minutes of training on two cores.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

import sdegen
from sdegen.datasets import patches
from sdegen.nets import MLP, UNet

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEVELS = sdegen.Quantized(256)
SHAPE = (3, 16, 16)
PATH = sdegen.CosineVPSDE()
COARSE = 32
STEPS = 4000


class BeyondGaussian(nn.Module):
    """v of the Gaussian N(m, R diag(l) R^T), in closed form, plus what two networks add to it, both zero at first.

    With alpha^2 + sigma^2 = 1, V = alpha^2 l + sigma^2 and w = R^T (x_t - alpha m)/V^(1/2), white at every time,

        v = -sigma m + R [alpha sigma (1 - l)/V^(1/2) w + (l/V)^(1/2) MLP(w)] + UNet(x_t, R sigma/V^(1/2) w, R w)

    The MLP has the first 32 axes to itself, mean colour and shading: few of the 768, on which how a patch looks from
    afar depends; (l/V)^(1/2) is how far the data there may be from the Gaussian's guess, in units of v. The U-Net sees
    beside x_t the Gaussian's guess of the noise: it could not make out by itself noise of a hundredth of the pixels'
    range. Squares of 2 x 2 pixels are folded into channels.
    """

    def __init__(self, data: Tensor, path: sdegen.GaussianPath, width: int) -> None:
        super().__init__()
        rows = data.flatten(1).double()
        spectrum, axes = torch.linalg.eigh(torch.cov(rows.T))
        for name, value in (("mean", rows.mean(0)), ("spectrum", spectrum.flip(0)), ("axes", axes.flip(1))):
            self.register_buffer(name, value.to(data.dtype))
        self.path = path
        self.mlp = MLP(COARSE, hidden=4 * width)
        self.unet = UNet(channels=4 * 9, width=width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.path.alpha(t)[:, None], self.path.sigma(t)[:, None]
        V = alpha**2 * self.spectrum + sigma**2
        white = (x.flatten(1) - alpha * self.mean) @ self.axes / V.sqrt()
        clock = 0.125 * torch.log(sigma[:, 0] / (alpha[:, 0] + 1e-3) + 1e-3)  # a smooth one that tells all levels apart
        coarse = self.mlp(white[:, :COARSE], clock) * (self.spectrum / V).sqrt()[:, :COARSE]
        of_gaussian = alpha * sigma * (1 - self.spectrum) / V.sqrt() * white
        of_gaussian, noise, white = (
            (part @ self.axes.T).reshape(x.shape)
            for part in (of_gaussian + pad(coarse, (0, white.shape[1] - COARSE)), sigma / V.sqrt() * white, white)
        )
        seen = pixel_unshuffle(torch.cat([x, noise, white], 1), 2)
        fine = pixel_shuffle(self.unet(seen, clock)[:, : 4 * 3], 2)
        return of_gaussian - (sigma * self.mean).reshape(x.shape) + fine


def train(args: argparse.Namespace, levels: Tensor) -> sdegen.ScoreModel:
    """`fit` on the patches and their mirror images, noise from a thousandth of the data's size to ten times it."""
    data = LEVELS.dequantise(torch.cat([levels, levels.flip(3)]))
    net = BeyondGaussian(data, PATH, 16 if args.quick else 64).to(args.device)
    return sdegen.fit(
        sdegen.ScoreModel(net, PATH, "v"),
        data.to(args.device),
        steps=60 if args.quick else STEPS,
        batch_size=64,
        times=sdegen.LogNormalTimes(mean=-1.0, std=2.0),
        every=20 if args.quick else 250,
        seed=args.seed,
        log=lambda step, said: print(f"step {step:5d}   loss {said['loss']:.4f}", flush=True),
    )


def gaussian_of(data: Tensor) -> sdegen.Gaussian:
    """The Gaussian with the data's mean and full covariance."""
    rows = data.flatten(1).double()
    return sdegen.Gaussian(rows.mean(0), covariance=torch.cov(rows.T))


def in_distance(
    args: argparse.Namespace, model: sdegen.ScoreModel, levels: Tensor, held_out: Tensor
) -> dict[str, Tensor]:
    """How far samples are from held-out patches; what is drawn from the training patches sets the floor."""
    number = 200 if args.quick else 4000
    g = torch.Generator(args.device).manual_seed(args.seed)
    solver = sdegen.Adams(10 if args.quick else 30)
    chunks = [sdegen.sample(model, (100, *SHAPE), solver, generator=g).cpu() for _ in range(number // 100)]
    g = torch.Generator().manual_seed(args.seed)
    data = LEVELS.dequantise(levels, g)
    drawn = {
        "training patches": data[torch.randperm(len(data), generator=g)[:number]],
        "score model": torch.cat(chunks),
        "Gaussian": gaussian_of(data).sample(number, generator=g).reshape(-1, *SHAPE).float(),
    }
    held = LEVELS.dequantise(held_out, g)
    distance = {name: sdegen.energy_distance(x, held) for name, x in drawn.items()}
    print(f"\nenergy distance to {len(held)} held-out patches, of {number} each:")
    for name, value in distance.items():
        print(f"{name:17s}{value:8.3f}   {value / distance['Gaussian']:.2f} of the Gaussian's")
    return {"held-out patches": held[torch.randperm(len(held), generator=g)], **drawn}


def in_bits(args: argparse.Namespace, model: sdegen.ScoreModel, levels: Tensor, apart: Tensor) -> None:
    """Held-out bits per dimension of both on the same dequantised patches, none of which overlap.

    The mean of -log p(y) bounds that of the levels from above; its trace is estimated by two probes, without bias,
    where the exact one would take 768 products with the Jacobian at every step.
    """
    y = LEVELS.dequantise(apart, torch.Generator().manual_seed(args.seed))
    solver, trace = sdegen.Adams(20 if args.quick else 60), sdegen.Hutchinson(1 if args.quick else 2)
    found = sdegen.evaluate(model, y.to(args.device), solver=solver, trace=trace, seed=args.seed)
    data = LEVELS.dequantise(levels, torch.Generator().manual_seed(args.seed))
    both = {
        "score model": found.per_sample.double().cpu(),
        "Gaussian": gaussian_of(data).log_prob(y.flatten(1).double()),
    }
    bits = {name: LEVELS.bits_per_dim(logp, SHAPE) for name, logp in both.items()}
    bits["difference"] = bits["score model"] - bits["Gaussian"]
    print(f"\n{'':14s}bits/dim   95 % interval   {len(y)} held-out patches side by side")
    for name, values in bits.items():
        half = 1.96 * float(values.std()) / math.sqrt(len(values))
        mean = float(values.mean())
        print(f"{name:14s}{mean:8.3f}   {mean - half:.3f} to {mean + half:.3f}")
    print(f"numerical error {found.error / (768 * math.log(2)):.4f} bits/dim a patch, by the solver's own estimate")


def draw(path: Path, kinds: dict[str, Tensor]) -> None:
    """Seven by seven of each kind."""
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.2 * len(kinds), 3.56), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    for axis, (name, x) in zip(axes, kinds.items(), strict=True):
        n = LEVELS.quantise(x[:49].float()).to(torch.uint8)
        framed = pad(n, (1, 1, 1, 1), value=255).reshape(7, 7, 3, 18, 18)
        axis.imshow(framed.permute(0, 3, 1, 4, 2).reshape(126, 126, 3).numpy(), interpolation="nearest")
        axis.set_title(name)
        axis.axis("off")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller run, under a minute")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for the picture")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    stride = 8 if args.quick else 4
    levels, held_out = patches("train", stride=stride), patches("test", stride=stride)
    start = time.perf_counter()
    model = train(args, levels)
    print(f"trained in {time.perf_counter() - start:.0f} s, {time.process_time():.0f} s of all cores together")
    kinds = in_distance(args, model, levels, held_out)
    in_bits(args, model, levels, patches("test", stride=16)[:: 10 if args.quick else 1])
    draw(args.out / "patches.png", kinds)
    print(f"\n{time.perf_counter() - start:.0f} s in all; see {args.out / 'patches.png'}")


if __name__ == "__main__":
    main()
