"""Train two score models, sample them by SDE and by ODE, and read exact held-out likelihoods.

    python examples/sde_vs_ode.py [--quick] [--device cuda] [--seed 0] [--out outputs]

First a set in the plane, then scikit-learn's handwritten digits with their labels. Prints one table and writes four
pictures: trajectories of the SDE and of the ODE over the exact densities that they cross, samples in the plane, a GIF
of how they come there, and a grid of digits. Every solver starts from the same noise.
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
from sdegen.datasets import bits_per_dim, dequantise, digits, two_moons
from sdegen.nets import MLP, UNet

matplotlib.use("Agg")

PICTURES = ("trajectories.png", "plane.png", "sde_beside_ode.gif", "digits.png")
INK = "#22223b"
SDE, ODE, CHAIN = plot.PALETTE[:3]


def solvers(calls: int) -> dict[str, sdegen.Solver]:
    """Five ways from noise to data: three of old, and Adams' methods at a fifth of the network calls."""
    return {
        "SDE euler": sdegen.SDESolver("euler", calls),
        "SDE Adams": sdegen.StochasticAdams(calls // 5),
        "ODE dopri5": sdegen.ODESolver("dopri5", rtol=1e-3),
        "ODE Adams": sdegen.Adams(calls // 5),
        "Ancestral": sdegen.Ancestral(calls),
    }


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


def compare(
    name: str, model: sdegen.ScoreModel, held_out: Tensor, more: Tensor, calls: int, cond: dict | None = None
) -> dict[str, Tensor]:
    """Sample with every solver, print a row for each below that of `more` data, and return the samples."""
    samples, x_T = {}, model.path.prior.sample(held_out.shape, device=held_out.device)
    print(f"{name:10s}{'more data':12s}{'-':>14s}{'-':>10s}{sdegen.energy_distance(more, held_out):17.4f}")
    for label, solver in solvers(calls).items():
        start = time.perf_counter()
        solution = sdegen.solve(model, x_T, solver, cond=cond)
        seconds = time.perf_counter() - start
        samples[label] = solution.x
        distance = sdegen.energy_distance(solution.x, held_out)
        print(f"{name:10s}{label:12s}{solution.calls:14d}{seconds:10.1f}{distance:17.4f}")
    return samples


def in_the_plane(args: argparse.Namespace) -> None:
    """Two moons: samples, trajectories, log-density."""
    data, held_out = two_moons(20_000).to(args.device), two_moons(2000).to(args.device)
    model = sdegen.ScoreModel(MLP(2), sdegen.VPSDE(), "v").to(args.device)

    def batch() -> tuple[Tensor, None]:
        return data[torch.randint(len(data), (512,), device=args.device)], None

    model = train(model, batch, 200 if args.quick else 2000, 4e-3, "two moons")
    print_header()
    samples = compare("two moons", model, held_out, data[:2000], 100)
    points = held_out[: 100 if args.quick else 500]
    logp = sdegen.log_prob(model, points, sdegen.ODESolver("dopri5", rtol=1e-4))
    error = float(logp.std()) / math.sqrt(len(points))
    print(f"two moons  held-out log-likelihood {float(logp.mean()):.3f} +- {error:.3f} nats, exact trace")
    colours = [INK, *map(colour, samples)]
    plot.write(plot.samples({"held-out data": held_out, **samples}, color=colours), args.out / "plane.png")
    animate(args.out / "sde_beside_ode.gif", model, args.quick)


def on_digits(args: argparse.Namespace) -> None:
    """Handwritten digits, 8 x 8 with 17 grey levels: samples given the label, and bits per dimension."""
    images, labels = (x.to(args.device) for x in digits("train"))
    tests, test_labels = (x.to(args.device) for x in digits("test"))
    model = sdegen.ScoreModel(UNet(channels=1, width=16, classes=10), sdegen.VPSDE(), "v").to(args.device)

    def batch() -> tuple[Tensor, dict]:
        i = torch.randint(len(images), (64,), device=args.device)
        return dequantise(images[i]), {"label": labels[i]}

    model = train(model, batch, 150 if args.quick else 1600, 8e-3, "digits")
    print_header()
    number = 100 if args.quick else 300
    cond = {"label": test_labels[:number]}
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[:number]  # writers mixed
    held_out, more = dequantise(tests[:number]), dequantise(images[some.to(args.device)])
    compared = compare("digits", model, held_out, more, 50 if args.quick else 100, cond)
    read_likelihood(args, model, images, tests, test_labels)
    first = [int((test_labels[:number] == c).nonzero()[0]) for c in range(10)]
    rows = {"test images": 2 * (tests[:number] + 0.5) / 17 - 1, **compared}
    plot.write(plot.grid({label: x[first] for label, x in rows.items()}, cmap="gray_r"), args.out / "digits.png")


def read_likelihood(
    args: argparse.Namespace, model: sdegen.ScoreModel, images: Tensor, tests: Tensor, labels: Tensor
) -> None:
    """Held-out bits per dimension under three draws of the dequantisation noise, beside a fitted Gaussian's."""
    number = 6 if args.quick else 40
    solver = sdegen.ODESolver("rk4", steps=5 if args.quick else 8)
    ours = []
    for seed in range(3):
        g = torch.Generator(tests.device).manual_seed(seed)
        x = dequantise(tests[:number], generator=g)
        logp = sdegen.log_prob(model, x, solver, cond={"label": labels[:number]}, trace="exact", progress=True)
        ours.append(float(bits_per_dim(logp, x.shape[1:]).mean()))
    y = dequantise(images).flatten(1).double()
    gaussian = sdegen.Gaussian(y.mean(0), covariance=torch.cov(y.T))
    theirs = bits_per_dim(gaussian.log_prob(dequantise(tests).flatten(1).double()), tests.shape[1:])
    print(
        f"digits     held-out bits/dim given the label {sum(ours) / 3:.3f} (dequantisation seeds 0, 1, 2: "
        f"{', '.join(f'{b:.3f}' for b in ours)}; {number} images, exact trace)\n"
        f"           {sum(ours) / 3 + math.log2(10) / 64:.3f} with the label coded too; "
        f"a full-covariance Gaussian: {float(theirs.mean()):.3f}"
    )


def print_header() -> None:
    """The head of the table."""
    print(f"\n{'data':10s}{'solver':12s}{'network calls':>14s}{'seconds':>10s}{'energy distance':>17s}")


def colour(label: str) -> str:
    """One colour for each kind of equation."""
    return {"SDE": SDE, "ODE": ODE}.get(label.split()[0], CHAIN)


def draw_trajectories(path: Path, quick: bool) -> None:
    """Three modes and no network: from the same noise jagged paths of the SDE, smooth ones of the ODE."""
    law = sdegen.GaussianMixture([[-1.4], [0.0], [1.2]], [0.1, 0.12, 0.2], [0.3, 0.25, 0.45])
    model, n = law.model(sdegen.CosineVPSDE()), 12
    x_T = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]  # N(0, 1) in equal parts
    even, noise = sdegen.PowerGrid(1, "t"), torch.Generator().manual_seed(1)
    solvers = {
        "reverse SDE": sdegen.SDESolver("euler", 100 if quick else 400, grid=even),
        "probability-flow ODE": sdegen.ODESolver("rk4", steps=60, grid=even),
    }
    ways = {k: sdegen.solve(model, x_T, s, generator=noise, trajectory=True) for k, s in solvers.items()}
    plot.write(plot.trajectories(ways, model), path)


def animate(path: Path, model: sdegen.ScoreModel, quick: bool) -> None:
    """The samples of the SDE beside those of the ODE, from noise to two moons."""
    x_T = model.path.prior.sample((400, 2), device=next(model.parameters()).device)
    solvers = {"reverse SDE": sdegen.SDESolver("euler", 150), "probability-flow ODE": sdegen.ODESolver("rk4", steps=40)}
    ways = {k: sdegen.solve(model, x_T, solver, trajectory=True) for k, solver in solvers.items()}
    plot.animate(ways, path, seconds=1.0 if quick else 4.0)


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
    print(f"two small networks on {args.device}; the pictures go to {args.out}", flush=True)
    draw_trajectories(args.out / "trajectories.png", args.quick)
    torch.manual_seed(args.seed)
    in_the_plane(args)
    torch.manual_seed(args.seed)
    on_digits(args)
    pictures = ", ".join(str(args.out / name) for name in PICTURES)
    print(f"\n{time.perf_counter() - start:.0f} s in all; see {pictures}")


if __name__ == "__main__":
    main()
