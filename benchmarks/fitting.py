"""What a step of `sdegen.fit` costs beside the same step written out by hand.

All train the library's MLP on the same data, batch 512, one thread. "bare" is forward, backward and Adam with the loss
written out, on batches that lie ready; "the same by hand" draws its rows, takes its loss from `sdegen.loss`, clips the
gradient, moves Adam (fused, as fit's default is) and a schedule, and averages the weights by torch's AveragedModel. A
round times some steps of each, one after another, with `time.thread_time`; the table gives the median, least and
largest of the rounds' ratios. Run with OMP_NUM_THREADS=1.

    python benchmarks/fitting.py [--steps 400] [--rounds 7]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_step import by_hand

import sdegen
from sdegen.datasets import eight_gaussians
from sdegen.nets import MLP

BATCH, WARM = 512, 50


def bare(net: nn.Module, data: Tensor, steps: int) -> float:
    """Seconds of a step of the shortest loop."""
    batches = list(data[torch.randperm(len(data))].split(BATCH))
    adam = torch.optim.Adam(net.parameters(), 1e-3)

    def step(k: int) -> None:
        adam.zero_grad()
        by_hand(net, batches[k % len(batches)]).backward()
        adam.step()

    return timed(step, steps)


def same(net: nn.Module, data: Tensor, steps: int) -> float:
    """Seconds of a step of a loop that does what `fit` does."""
    model = sdegen.ScoreModel(net, sdegen.VPSDE())
    adam = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps + WARM)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    order = torch.randperm(len(data))

    def step(k: int) -> None:
        at = k * BATCH % len(data)
        sdegen.loss(model, data[order[at : at + BATCH]]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        adam.step()
        adam.zero_grad()
        schedule.step()
        average.update_parameters(model)

    return timed(step, steps)


def timed(step: Callable[[int], None], steps: int) -> float:
    """Seconds of a step once caches are warm."""
    for k in range(WARM):
        step(k)
    start = time.thread_time()
    for k in range(steps):
        step(k)
    return (time.thread_time() - start) / steps


def fitted(net: nn.Module, data: Tensor, steps: int) -> float:
    """Seconds of a step of `fit`, between two of its logs."""
    seen = {}
    sdegen.fit(
        sdegen.ScoreModel(net, sdegen.VPSDE()),
        data,
        steps=steps + WARM,
        batch_size=BATCH,
        every=WARM,
        progress=False,
        log=lambda step, _: seen.update({step: time.thread_time()}),
    )
    return (seen[steps + WARM] - seen[WARM]) / steps


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, data = MLP(2), eight_gaussians(16 * BATCH)
    loops = {"bare": bare, "the same by hand": same, "fit": fitted}
    rounds = [
        {name: loop(copy.deepcopy(net), data, args.steps) for name, loop in loops.items()} for _ in range(args.rounds)
    ]
    print(f"torch {torch.__version__}, one thread, MLP 3x128, batch {BATCH}x2, {args.steps} steps a round\n")
    print("| loop | ms a step | over bare | over the same by hand |\n|---|---|---|---|")
    for name in loops:
        ms = statistics.median(1e3 * r[name] for r in rounds)
        ratios = [[r[name] / r[other] for r in rounds] for other in ("bare", "the same by hand")]
        cells = [f"{statistics.median(r):.3f} [{min(r):.3f}, {max(r):.3f}]" for r in ratios]
        print(f"| {name} | {ms:.3f} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
