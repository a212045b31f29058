"""The library's own loops against the same scheme written out, and dopri5 against torchdiffeq on the same closure.

Three things are timed in turn with `time.thread_time`, in one process: the bare network calls on the states that the
solve visits, the scheme by hand with its coefficients ready, and the solve through `sdegen.sample`. The table gives
medians of the paired ratios. Run with OMP_NUM_THREADS=1.

    python benchmarks/loops.py [--repeats 31]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from overhead import Bare, Recorder, train
from torch import Tensor, nn
from torchdiffeq import odeint

import sdegen
from sdegen.datasets import eight_gaussians
from sdegen.nets import MLP, UNet
from sdegen.solvers.base import Problem
from sdegen.solvers.multistep import Multistep, joined_rows

PATH = sdegen.VPSDE()
Run = Callable[[], object]


def numbers(u: Tensor) -> tuple[list[float], list[float], list[float]]:
    """r, and the factors of y and eps in the slope eps_hat - x_hat = (eps - y) / (1-u)."""
    return PATH.scale(u).tolist(), (-1 / (1 - u)).tolist(), (1 / (1 - u)).tolist()


def rows_by_hand(net: nn.Module, solver: Multistep, x: Tensor) -> Run:
    """A multistep scheme as a loop over its rows."""
    problem = Problem(sdegen.ScoreModel(net, PATH), x, PATH.ends[1], PATH.ends[0])
    knots = problem.lay(solver.own_grid, solver.steps or 0)
    rows = joined_rows(solver.predictor(knots), solver.corrector(knots))
    u = knots.u[:-1]
    r, of_y, of_eps = numbers(u)
    if solver.asks == "data":
        of_y, of_eps = (1 / (1 - u)).tolist(), (-u / (1 - u)).tolist()
    times, last = knots.t.to(x), float(PATH.scale(knots.u[-1:]))

    def run() -> Tensor:
        y, answers = x / r[0], ()
        for k, (keep, weights, std) in enumerate(rows):
            m = torch.add(of_y[k] * y, net(r[k] * y, times[k].expand(len(x))), alpha=of_eps[k])
            answers = (m, *answers[: len(weights) - 1])
            y = keep * y
            for w, past in zip(weights, answers, strict=True):
                y.add_(past, alpha=w)
            if std:
                y.add_(torch.randn_like(y), alpha=std)
        return last * y

    return run


def ddim_by_hand(net: nn.Module, steps: int, x: Tensor) -> Run:
    """DDIM with its coefficients ready."""
    u = PATH.ends[1] * (torch.arange(steps, -1, -1, dtype=torch.float64) / steps) ** 2
    q, v = u[:-1], u[1:]
    r, times, last = PATH.scale(q).tolist(), PATH.time(q).to(x), float(PATH.scale(u[-1:]))
    of_y, of_eps = ((1 - v) / (1 - q)).tolist(), (v - (1 - v) * q / (1 - q)).tolist()

    def run() -> Tensor:
        y = x / r[0]
        for k in range(steps):
            y = torch.add(of_y[k] * y, net(r[k] * y, times[k].expand(len(x))), alpha=of_eps[k])
        return last * y

    return run


def dopri5_by_hand(net: nn.Module, x: Tensor, rtol: float) -> Run:
    """torchdiffeq's own `odeint` on the same right-hand side, its coefficients computed where they are asked for."""
    high = PATH.ends[1]

    def slope(s: Tensor, y: Tensor) -> Tensor:
        u = min(max(-float(s), 0.0), high)
        clock = torch.tensor(u, dtype=torch.float64)
        r, t = float(PATH.scale(clock)), float(PATH.time(clock))
        eps = net(r * y, torch.full((len(y),), t))
        return (y - eps) / (1 - u)

    span = torch.tensor([-high, 0.0], dtype=torch.float64)
    norm = {"norm": lambda e: e.square().mean(1).sqrt().max(), "step_t": span[1:]}
    return lambda: odeint(slope, x, span, method="dopri5", rtol=rtol, atol=rtol, options=norm)


def seconds(run: Run) -> float:
    """CPU time of one run."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


@torch.no_grad()
def measure(net: nn.Module, solver: sdegen.Solver, by_hand: Run, x: Tensor, repeats: int) -> tuple[int, list[float]]:
    """Network calls, and medians of solve / bare, by hand / bare, solve / by hand."""
    recorder = Recorder(net).eval()
    sdegen.sample(sdegen.ScoreModel(recorder, PATH), tuple(x.shape), solver, x_T=x)
    model = sdegen.ScoreModel(net, PATH)

    def bare() -> None:
        for inputs in recorder.inputs:
            net(*inputs)

    ratios = []
    for _ in range(repeats + 2):
        before, hand = seconds(bare), seconds(by_hand)
        ours = seconds(lambda: sdegen.sample(model, tuple(x.shape), solver, x_T=x))
        calls = 0.5 * (before + seconds(bare))
        ratios.append((ours / calls, hand / calls, ours / hand))
    medians = [statistics.median(column) for column in zip(*ratios[2:], strict=True)]  # two rounds warm caches up
    return len(recorder.inputs), medians


def main() -> None:
    """Every loop on three networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=31)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mlp, smallest, unet = MLP(2, hidden=128, depth=3), Bare(), UNet(channels=3, width=32)
    for net in (mlp, smallest):
        train(sdegen.ScoreModel(net, PATH), eight_gaussians(4096), 400)
    print(
        "| network and batch | solver | calls | solve / bare | by hand / bare | solve / by hand |\n" + "|---" * 6 + "|"
    )
    for name, net, shape, steps in (
        ("MLP 3x128, 512x2", mlp.eval(), (512, 2), 100),
        ("no embedding, 512x2", smallest.eval(), (512, 2), 100),
        ("U-Net, 8x3x32x32", unet.eval(), (8, 3, 32, 32), 20),
    ):
        x = torch.randn(shape)
        loops: list[tuple[str, sdegen.Solver, Run]] = [
            ("DDIM", sdegen.DDIM(steps), ddim_by_hand(net, steps, x)),
            *(
                (type(solver).__name__, solver, rows_by_hand(net, solver, x))
                for solver in (sdegen.Adams(steps), sdegen.StochasticAdams(steps))
            ),
            ("dopri5", sdegen.ODESolver("dopri5", rtol=1e-4), dopri5_by_hand(net, x / PATH.scale(PATH.ends[1]), 1e-4)),
        ]
        for label, solver, by_hand in loops:
            rounds = repeats if len(shape) == 2 else max(repeats // 4, 5)
            calls, (ours, hand, both) = measure(net, solver, by_hand, x, rounds)
            print(f"| {name} | {label} | {calls} | {ours:.2f} | {hand:.2f} | {both:.2f} |", flush=True)


if __name__ == "__main__":
    main()
