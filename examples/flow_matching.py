"""Diffusion and flow matching side by side: equal networks, equal training, equal network calls.

    python examples/flow_matching.py [--quick] [--device cuda] [--seed 0] [--out outputs]

In the plane, four models carry noise to two moons: a diffusion (VP), a flow (CondOT), a flow trained on pairs of
optimal transport, and one retrained on the first flow's own pairs (reflow). How straight are their paths, and how few
network calls will do? On handwritten digits a diffusion and a flow are each sampled by ODE and by SDE, on their own
path and on the other's. Each network predicts what its literature has it predict, "v" for VP and "velocity" for CondOT;
both are finite from end to end. Prints two tables and writes two pictures.
"""

from __future__ import annotations

import argparse
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
from sdegen.datasets import dequantise, digits, two_moons
from sdegen.nets import MLP, UNet

matplotlib.use("Agg")
import matplotlib.pyplot as plt

VP, OT = sdegen.VPSDE(), sdegen.CondOT()


def train(
    model: sdegen.ScoreModel, batch: Callable[[], tuple[Tensor, dict]], steps: int, lr: float, name: str
) -> sdegen.ScoreModel:
    """One loop for all: a diffusion and a flow differ in `model.path` alone. Times are uniform on the clock u."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    optimiser = torch.optim.Adam(model.parameters(), lr)
    schedule = OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.05)
    bar = tqdm(range(steps), desc=f"training {name}", unit="step", mininterval=0.5)
    for step in bar:
        x, options = batch()
        loss = sdegen.loss(model, x, times=sdegen.ClockTimes(importance=False), **options)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(model)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return average.module.eval().requires_grad_(False)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, unbiased: zero on average only between equal laws (Szekely, Rizzo, 2013)."""
    x, y = x.flatten(1), y.flatten(1)

    def within(a: Tensor) -> Tensor:
        return torch.cdist(a, a).sum() / (len(a) * (len(a) - 1))

    return float(2 * torch.cdist(x, y).mean() - within(x) - within(y))


def plane_models(args: argparse.Namespace) -> dict[str, sdegen.ScoreModel]:
    """The same network, steps, batch and learning rate four times; reflow needs the flow first, and 20 000 solves."""
    steps, pairs = (150, 2000) if args.quick else (1500, 20_000)

    def fit(name: str, path: sdegen.GaussianPath, predicts: str, batch: Callable) -> sdegen.ScoreModel:
        torch.manual_seed(args.seed)
        return train(sdegen.ScoreModel(MLP(2, 64), path, predicts).to(args.device), batch, steps, 4e-3, name)

    def moons(**options: object) -> Callable[[], tuple[Tensor, dict]]:
        return lambda: (two_moons(256).to(args.device), options)

    diffusion = fit("diffusion", VP, "v", moons())
    flow = fit("flow", OT, "velocity", moons())
    coupled = fit("OT flow", sdegen.Interpolant(OT), "velocity", moons(coupling=sdegen.OptimalTransport()))
    z = torch.randn(pairs, 2, device=args.device)
    x = sdegen.rectify(flow, z, sdegen.ODESolver("rk4", steps=20))

    def flows_own() -> tuple[Tensor, dict]:
        i = torch.randint(pairs, (256,), device=args.device)
        return x[i], {"noise": z[i]}

    reflow = fit("reflow", sdegen.Interpolant(OT), "velocity", flows_own)
    return {"diffusion": diffusion, "flow": flow, "OT flow": coupled, "reflow": reflow}


def in_the_plane(args: argparse.Namespace) -> None:
    """Straightness, and two errors against network calls: of the law, and of the solver alone."""
    models = plane_models(args)
    number = 1000 if args.quick else 4000
    held_out, more = (two_moons(number).to(args.device) for _ in range(2))
    z = torch.randn(number, 2, device=args.device)
    starts = {name: model.path.prior.std * z for name, model in models.items()}
    fine = {name: sdegen.decode(m, starts[name], sdegen.ODESolver("rk4", steps=60)) for name, m in models.items()}
    bends = {name: float(sdegen.straightness(m, starts[name][:500]).mean()) for name, m in models.items()}

    def row(label: str, values: list[str]) -> None:
        print(f"{label:20s}" + "".join(f"{value:>18s}" for value in values))

    print("\ntwo moons: energy distance to held-out data, and in brackets the RMS distance to the model's own fine")
    print(f"solution; {number} samples, for which more data scores {energy_distance(more, held_out):.4f}\n")
    row("", list(models))
    row("straightness S", [f"{bend:.4f}" for bend in bends.values()])
    for method, each in (("euler", 1), ("midpoint", 2)):
        for calls in (1, 2, 4, 8, 16, 32):
            if calls < each:
                continue
            solver = sdegen.ODESolver(method, steps=calls // each, grid=sdegen.PowerGrid(1))
            ends = {name: sdegen.decode(m, starts[name], solver) for name, m in models.items()}
            errors = {name: float((x - fine[name]).square().sum(1).mean().sqrt()) for name, x in ends.items()}
            row(
                f"{method}, {calls} call{'s' * (calls > 1)}",
                [f"{energy_distance(x, held_out):.4f} ({errors[name]:.3f})" for name, x in ends.items()],
            )
    row("rk4, 240 calls", [f"{energy_distance(x, held_out):.4f}" for x in fine.values()])
    draw_trajectories(args.out / "flow_trajectories.png", models, z[:120], bends)


def digit_samplers(
    diffusion: sdegen.ScoreModel, flow: sdegen.ScoreModel
) -> dict[str, tuple[sdegen.Model, Callable, tuple[float, float] | None]]:
    """Name: (model, calls -> solver, u). VP ends short of pure noise, and so does its network on CondOT."""

    def ode(calls: int) -> sdegen.ODESolver:
        return sdegen.ODESolver("midpoint", steps=calls // 2)

    def noisy(calls: int) -> sdegen.SDESolver:
        return sdegen.SDESolver("euler", calls, w=torch.sqrt)  # w^2 = u, half of Anderson's near the data

    return {
        "diffusion, SDE": (diffusion, lambda calls: sdegen.SDESolver("euler", calls), None),
        "diffusion, ODE": (diffusion, ode, None),
        "diffusion as flow": (diffusion.on(OT), ode, (VP.ends[1], 0.0)),
        "flow, ODE": (flow, ode, None),
        "flow with noise": (flow, noisy, None),
        "flow by VP's SDE": (flow.on(VP), lambda calls: sdegen.SDESolver("euler", calls), None),
    }


def on_digits(args: argparse.Namespace) -> None:
    """Two networks, six ways to sample; every sampler starts from the same noise."""
    images, labels = (x.to(args.device) for x in digits("train"))
    tests, test_labels = (x.to(args.device) for x in digits("test"))

    def batch() -> tuple[Tensor, dict]:
        i = torch.randint(len(images), (64,), device=args.device)
        return dequantise(images[i]), {"cond": {"label": labels[i]}}

    trained = []
    for name, path, predicts in (("diffusion", VP, "v"), ("flow", OT, "velocity")):
        torch.manual_seed(args.seed)
        model = sdegen.ScoreModel(UNet(channels=1, width=16, classes=10), path, predicts).to(args.device)
        trained.append(train(model, batch, 80 if args.quick else 1500, 8e-3, f"{name} on digits"))
    number, budgets = (100, (8, 16)) if args.quick else (360, (4, 8, 16, 32))
    held_out, cond = dequantise(tests[:number]), {"label": test_labels[:number]}
    draws = [dequantise(same_labels(images, labels, cond["label"])) for _ in range(20)]
    more = torch.tensor([energy_distance(draw, held_out) for draw in draws])
    print(f"\ndigits: energy distance to test images of the same labels; {number} samples, for which more data scores")
    print(f"{float(more.mean()):.4f} +- {float(more.std()):.4f} in 20 draws (below zero because the labels agree)\n")
    print(f"{'network calls':20s}" + "".join(f"{calls:10d}" for calls in budgets))
    last = {}
    for name, (model, solver, u) in digit_samplers(*trained).items():
        distances = []
        for calls in budgets:
            g = torch.Generator(args.device).manual_seed(args.seed)
            last[name] = sdegen.sample(model, tuple(held_out.shape), solver(calls), cond=cond, u=u, generator=g)
            distances.append(energy_distance(last[name], held_out))
        print(f"{name:20s}" + "".join(f"{d:10.4f}" for d in distances))
    gap = (last["diffusion, ODE"] - last["diffusion as flow"]).abs().max()
    print(f"\nthe diffusion's ODE and the same network as a flow: the same digits, to {float(gap):.0e}")
    first = [int((cond["label"] == c).nonzero()[0]) for c in range(10)]
    rows = {"test images": 2 * (tests[:number] + 0.5) / 17 - 1, **last}
    plot.write(plot.grid({label: x[first] for label, x in rows.items()}, cmap="gray_r"), args.out / "flow_digits.png")


def same_labels(images: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """A random image for each label that is wanted."""
    return images[torch.stack([(labels == c).nonzero()[:, 0][torch.randint((labels == c).sum(), ())] for c in wanted])]


def draw_trajectories(path: Path, models: dict[str, sdegen.ScoreModel], z: Tensor, bends: dict[str, float]) -> None:
    """Every path of the ODE in y = x/(alpha + sigma), from the same noise; the straighter, the fewer steps it needs."""
    figure, axes = plt.subplots(1, len(models), figsize=(12, 3.3), sharex=True, sharey=True, layout="constrained")
    solver = sdegen.ODESolver("rk4", steps=50, grid=sdegen.PowerGrid(1))
    for axis, shade, (name, model) in zip(axes, plot.PALETTE, models.items(), strict=False):
        solution = sdegen.solve(model, model.path.prior.std * z, solver, trajectory=True)
        plot.trajectories(solution, model, axis, straight=True, color=shade)
        axis.set_title(f"{name}, S = {bends[name]:.2g}")
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
    in_the_plane(args)
    on_digits(args)
    pictures = ", ".join(str(args.out / name) for name in ("flow_trajectories.png", "flow_digits.png"))
    print(f"\n{time.perf_counter() - start:.0f} s in all; see {pictures}")


if __name__ == "__main__":
    main()
