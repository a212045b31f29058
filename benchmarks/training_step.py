"""What a training step through `sdegen.loss` costs beyond the same step with the loss written out by hand.

Both train the library's MLP on the same data: one library step, one step by hand, and so on, each timed by itself with
`time.thread_time` (loss, backward and Adam's step). A run's figure is the median of the paired ratios; the table gives
the median, least and largest of the runs, and the number of tensor operations in one evaluation of each loss, counted
below autograd. Run with OMP_NUM_THREADS=1.

    python benchmarks/training_step.py [--pairs 1000] [--runs 5]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sdegen
from sdegen.datasets import eight_gaussians
from sdegen.nets import MLP

Loss = Callable[[nn.Module, Tensor], Tensor]


def by_hand(net: nn.Module, x: Tensor) -> Tensor:
    """Denoising score matching on the VP-SDE as one writes it out: an eps network, uniform times."""
    t = torch.rand(len(x))
    B = (0.1 + 9.95 * t) * t
    alpha, sigma = torch.exp(-0.5 * B)[:, None], torch.sqrt(-torch.expm1(-B))[:, None]
    eps = torch.randn_like(x)
    return (net(alpha * x + sigma * eps, t) - eps).square().mean()


def by_library(path: sdegen.GaussianPath, predicts: str, **options: object) -> Callable[[nn.Module], Loss]:
    """`sdegen.loss` on a network, whose model is built once."""

    def loss_of(net: nn.Module) -> Loss:
        model = sdegen.ScoreModel(net, path, predicts)
        return lambda _, x: sdegen.loss(model, x, **options)

    return loss_of


class Operations(TorchDispatchMode):
    """Counts the tensor operations that run below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


def operations(loss: Loss, net: nn.Module, x: Tensor) -> int:
    """How many tensor operations one evaluation of the loss makes, the network's included."""
    with Operations() as counted:
        loss(net, x)
    return counted.count


def stepper(loss: Loss, net: nn.Module) -> Callable[[Tensor], float]:
    """One training step: the CPU seconds it took."""
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)

    def step(x: Tensor) -> float:
        start = time.thread_time()
        optimiser.zero_grad()
        loss(net, x).backward()
        optimiser.step()
        return time.thread_time() - start

    return step


def paired_ratio(library: Callable[[nn.Module], Loss], net: nn.Module, batches: list[Tensor], pairs: int) -> float:
    """Median over `pairs` of (library step) / (step by hand), the two taking turns; both start from `net`."""
    ours, theirs = copy.deepcopy(net), copy.deepcopy(net)
    ours_step, their_step = stepper(library(ours), ours), stepper(by_hand, theirs)
    ratios = []
    for k in range(pairs + 50):
        x = batches[k % len(batches)]
        ratios.append(ours_step(x) / their_step(x))
    return statistics.median(ratios[50:])  # the first rounds warm caches up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = MLP(2, hidden=128, depth=3)
    data = eight_gaussians(16 * 512)
    batches = list(data[torch.randperm(len(data))].split(512))
    rows = {
        "VPSDE, eps": by_library(sdegen.VPSDE(), "eps"),
        "VPSDE, v": by_library(sdegen.VPSDE(), "v"),
        "CondOT, velocity": by_library(sdegen.CondOT(), "velocity"),
        "VPSDE, eps, MinSNR": by_library(sdegen.VPSDE(), "eps", weighting=sdegen.MinSNR()),
        "(by hand, against itself)": lambda net: by_hand,
    }
    print(f"torch {torch.__version__}, one thread, MLP 3x128, batch 512x2; median [least, largest] of {args.runs} runs")
    print(f"of {args.pairs} pairs; the network alone makes {network_operations(net, batches[0])} operations\n")
    print("| loss | operations | training step / by hand |\n|---|---|---|")
    for name, library in rows.items():
        ratios = [paired_ratio(library, net, batches, args.pairs) for _ in range(args.runs)]
        count = operations(library(net), net, batches[0])
        spread = f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"
        print(f"| {name} | {count} | {spread} |", flush=True)


def network_operations(net: nn.Module, x: Tensor) -> int:
    """Those of one call of the network alone."""
    return operations(lambda net, x: net(x, torch.ones(len(x))), net, x) - 1


if __name__ == "__main__":
    main()
