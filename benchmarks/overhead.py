"""What a solver costs beyond its network: CPU time of a solve over that of the bare network calls it made.

Both are timed in this process with `time.thread_time`, the bare calls right before and after each solve, on the states
the solver itself visits; the table gives the median of the ratios. Run with OMP_NUM_THREADS=1.

    python benchmarks/overhead.py [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchsde
from torch import Tensor, nn

import sdegen
from sdegen.datasets import eight_gaussians
from sdegen.nets import MLP, UNet


class Bare(nn.Module):
    """The smallest 3 x 128 network there is: time is a third input."""

    def __init__(self) -> None:
        super().__init__()
        width = 128
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out(self.layers(torch.cat([x, t[:, None]], 1)))


class Recorder(nn.Module):
    """Keeps what the network was called with."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.inputs: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.inputs.append((x.clone(), t.clone()))
        return self.net(x, t)


def train(model: sdegen.ScoreModel, data: Tensor, steps: int) -> None:
    """A plausible field: 400 steps of denoising score matching, as the peers' table has it."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        batch = data[torch.randint(len(data), (512,))]
        optimiser.zero_grad()
        sdegen.loss(model, batch).backward()
        optimiser.step()


def bare(net: nn.Module, inputs: list[tuple[Tensor, Tensor]]) -> float:
    """CPU seconds of the network calls alone."""
    start = time.thread_time()
    for x, t in inputs:
        net(x, t)
    return time.thread_time() - start


@torch.no_grad()
def ratio(
    net: nn.Module, solve: Callable[[nn.Module], Callable[[], Tensor]], repeats: int
) -> tuple[float, float, float, int]:
    """Median, least and largest of (CPU time of a solve) / (CPU time of its network calls), and how many those are."""
    recorder = Recorder(net).eval()
    solve(recorder)()
    run = solve(net)
    ratios = []
    for _ in range(repeats + 1):
        before = bare(net, recorder.inputs)
        start = time.thread_time()
        run()
        spent = time.thread_time() - start
        ratios.append(spent / (0.5 * (before + bare(net, recorder.inputs))))
    ratios = ratios[1:]  # the first round warms caches up
    return statistics.median(ratios), min(ratios), max(ratios), len(recorder.inputs)


def by_hand(net: nn.Module, shape: tuple[int, ...], steps: int) -> Callable[[], Tensor]:
    """For scale: Euler-Maruyama on the VP reverse SDE in (x, t), written out."""
    beta = [0.1 + 19.9 * (k + 1) / steps for k in range(steps)]
    path = sdegen.VPSDE()
    sigma = path.sigma(torch.arange(1, steps + 1, dtype=torch.float64) / steps).tolist()

    def run() -> Tensor:
        x = torch.randn(shape)
        for k in reversed(range(steps)):
            h, eps = 1 / steps, net(x, torch.full((shape[0],), (k + 1) / steps))
            x = x + h * (0.5 * beta[k] * x - beta[k] / sigma[k] * eps) + (beta[k] * h) ** 0.5 * torch.randn_like(x)
        return x

    return run


def by_torchsde_alone(net: nn.Module, shape: tuple[int, ...], steps: int) -> Callable[[], Tensor]:
    """For scale: the same SDE handed to torchsde as its documentation shows, with its default Brownian motion."""
    path = sdegen.VPSDE()

    class Reverse:
        noise_type, sde_type = "diagonal", "ito"

        def f(self, s: Tensor, x: Tensor) -> Tensor:
            t = 1 - s
            beta = path.beta(t)
            return 0.5 * beta * x - beta / path.sigma(t) * net(x, t.expand(len(x)))

        def g(self, s: Tensor, x: Tensor) -> Tensor:
            return path.beta(1 - s).sqrt().expand_as(x)

    ts = torch.tensor([0.0, 1 - 1 / steps])
    return lambda: torchsde.sdeint(Reverse(), torch.randn(shape), ts, method="euler", dt=1 / steps)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mlp, bare_mlp, unet = MLP(2, hidden=128, depth=3), Bare(), UNet(channels=3, width=32)
    for net in (mlp, bare_mlp):
        train(sdegen.ScoreModel(net, sdegen.VPSDE()), eight_gaussians(4096), 400)
    rows = [
        ("MLP 3x128, 512x2", mlp.eval(), (512, 2), 100),
        ("no embedding, 512x2", bare_mlp.eval(), (512, 2), 100),
        ("U-Net, 8x3x32x32", unet.eval(), (8, 3, 32, 32), 20),
    ]
    print(f"torch {torch.__version__}, one thread, median [least, largest] of {repeats}\n")
    print("| network and batch | solver | network calls | CPU time / bare calls |\n|---|---|---|---|")
    for name, net, shape, calls in rows:
        solvers = (
            sdegen.SDESolver("euler", calls),
            sdegen.SDESolver("srk", calls // 2),
            sdegen.SDESolver("heun", calls // 2),
            sdegen.ODESolver("euler", steps=calls),
            sdegen.ODESolver("rk4", steps=calls // 4),
            sdegen.ODESolver("dopri5", rtol=1e-4),
            sdegen.Ancestral(calls),
            sdegen.Adams(calls),
            sdegen.StochasticAdams(calls),
        )
        solves = {f"{type(s).__name__} {getattr(s, 'method', '')}".strip(): through(s, shape) for s in solvers}
        solves["(Euler by hand)"] = lambda net, shape=shape, calls=calls: by_hand(net, shape, calls)
        if len(shape) == 2:
            solves["(torchsde alone)"] = lambda net, shape=shape, calls=calls: by_torchsde_alone(net, shape, calls)
        for label, solve in solves.items():
            middle, low, high, made = ratio(net, solve, repeats)
            print(f"| {name} | {label} | {made} | {middle:.2f} [{low:.2f}, {high:.2f}] |", flush=True)


def through(solver: object, shape: tuple[int, ...]) -> Callable[[nn.Module], Callable[[], Tensor]]:
    """A network to a solve of this library's."""

    def solve(net: nn.Module) -> Callable[[], Tensor]:
        model = sdegen.ScoreModel(net, sdegen.VPSDE())
        return lambda: sdegen.sample(model, shape, solver)

    return solve


if __name__ == "__main__":
    main()
