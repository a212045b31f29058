"""What guidance costs, and how well each method for inverse problems samples a posterior that is known.

Cost: CPU time of sampling with `ClassifierFree` through Euler's method over that of the bare network on the same
states, in two calls a step, one with and one without the condition, and in one call on both; timed in this process
before and after each solve; the median of the ratios.

Accuracy: ring8 (eight modes, std 0.1, radius 1.2) and gmm16 (ten modes of std 0.3 in 16 dimensions) seen through a
random row with noise of deviation 0.1 and 0.5; the posterior is a mixture in closed form. The sliced Wasserstein
distance of 2000 samples by 500 and by 50 steps of the SDE to 2000 exact ones, the mean (and the largest) over eight
observations; "exact" is that between two sets of exact samples, and "model" that of exact samples without the
observation.

    python benchmarks/guidance.py [--repeats 7]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import torch
from targets import TARGETS
from torch import Tensor, nn

import sdegen
from sdegen.nets import MLP, UNet

SAMPLES, OBSERVATIONS, DIRECTIONS = 2000, 8, 64


class Labelled(nn.Module):
    """A network with an embedding of its label added to the state."""

    def __init__(self, net: nn.Module, event: tuple[int, ...]):
        super().__init__()
        self.net, self.table = net, nn.Parameter(0.1 * torch.randn(11, *event))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.net(x + self.table[label], t)


class Recorder(nn.Module):
    """Keeps what the network was called with."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.inputs: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.inputs.append((x.clone(), t.clone(), label.clone()))
        return self.net(x, t, label)


@torch.no_grad()
def cost(net: nn.Module, shape: tuple[int, ...], steps: int, repeats: int) -> dict[str, list[float]]:
    """(CPU time of a guided solve) / (CPU time of the bare calls on the states it visits), several times."""
    recorder, cond = Recorder(net.eval()), {"label": torch.randint(10, (shape[0],))}

    def solve(net: nn.Module) -> None:
        guided = sdegen.ClassifierFree(sdegen.ScoreModel(net, sdegen.VPSDE()), 2.0, {"label": 10})
        sdegen.sample(guided, shape, sdegen.SDESolver("euler", steps), cond=cond)

    def bare(inputs: list[tuple[Tensor, ...]]) -> float:
        start = time.thread_time()
        for x, t, label in inputs:
            net(x, t, label)
        return time.thread_time() - start

    solve(recorder)
    whole = recorder.inputs
    halves = [half for inputs in whole for half in zip(*(n.chunk(2) for n in inputs), strict=True)]
    found: dict[str, list[float]] = {"two": [], "one": []}
    for _ in range(repeats + 1):
        before, start = {"two": bare(halves), "one": bare(whole)}, time.thread_time()
        solve(net)
        spent = time.thread_time() - start
        after = {"one": bare(whole), "two": bare(halves)}
        for name, ratios in found.items():
            ratios.append(2 * spent / (before[name] + after[name]))
    return {name: ratios[1:] for name, ratios in found.items()}  # the first round warms caches up


def posterior(law: sdegen.GaussianMixture, A: Tensor, z: Tensor, std: float) -> sdegen.GaussianMixture:
    """The law of x given A x + std n = z: every component conditioned, weighted by what it says of z."""
    _, means, variances, rotations = law._on(torch.float64, torch.device("cpu"))
    d, means_, covariances, logs = means.shape[1], [], [], []
    for k, mean in enumerate(means):
        S = torch.eye(d) * variances[k] if rotations is None else rotations[k] * variances[k] @ rotations[k].T
        seen = torch.distributions.MultivariateNormal(A @ mean, A @ S @ A.T + std**2 * torch.eye(len(z)))
        gain = torch.linalg.solve(seen.covariance_matrix, A @ S).T
        means_.append(mean + gain @ (z - A @ mean))
        left = S - gain @ A @ S
        covariances.append(0.5 * (left + left.T))
        logs.append(law._log_weights[k] + seen.log_prob(z))
    weights = torch.softmax(torch.stack(logs), 0).clamp(min=1e-300)
    return sdegen.GaussianMixture(torch.stack(means_), covariances=torch.stack(covariances), weights=weights)


def sliced(x: Tensor, y: Tensor) -> float:
    """The sliced Wasserstein distance of order 1, over directions that are the same every time."""
    g = torch.Generator().manual_seed(0)
    to = nn.functional.normalize(torch.randn(x.shape[1], DIRECTIONS, generator=g), dim=0)
    return float(((x @ to).sort(0).values - (y @ to).sort(0).values).abs().mean())


def accuracy(law: sdegen.GaussianMixture, std: float, steps: int) -> dict[str, list[float]]:
    """Of every method, the distance for each observation."""
    found: dict[str, list[float]] = {name: [] for name in ("model", "dps", "pigdm", "mmps", "exact")}
    solver = sdegen.SDESolver("euler", steps)
    for seed in range(OBSERVATIONS):
        g = torch.Generator().manual_seed(seed)
        truth = law.sample(1, g)[0]
        A = nn.functional.normalize(torch.randn(1, len(truth), generator=g), dim=1)
        z = A @ truth + std * torch.randn(1, generator=g)
        exact = posterior(law, A, z, std)
        reference = exact.sample(SAMPLES, g)
        found["exact"].append(sliced(exact.sample(SAMPLES, g), reference))
        found["model"].append(sliced(law.sample(SAMPLES, g), reference))
        for method in ("dps", "pigdm", "mmps"):
            observed = sdegen.Observed(law.model(sdegen.VPSDE()), A, z, std, method)
            try:
                x = sdegen.sample(observed, tuple(reference.shape), solver, generator=g)
            except sdegen.NonFiniteError:
                found[method].append(float("inf"))
                continue
            found[method].append(sliced(x, reference))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, one thread\n")
    print("| network and batch | CFG / two bare calls | CFG / one on both |\n|---|---|---|")
    nets = [
        ("MLP 3x128, 512x2", Labelled(MLP(2, hidden=128, depth=3), (2,)), (512, 2), 100),
        ("U-Net, 8x3x32x32", Labelled(UNet(channels=3, width=32), (3, 32, 32)), (8, 3, 32, 32), 10),
    ]
    for name, net, shape, steps in nets:
        row = [
            f"{statistics.median(r):.2f} [{min(r):.2f}, {max(r):.2f}]"
            for r in cost(net, shape, steps, repeats).values()
        ]
        print(f"| {name} | {' | '.join(row)} |")
    torch.set_default_dtype(torch.float64)
    print("\n| target, std | steps | model | dps | pigdm | mmps | exact |\n|---|---|---|---|---|---|---|")
    for name, std, steps in itertools.product(("ring8", "gmm16"), (0.1, 0.5), (500, 50)):
        found = accuracy(TARGETS[name](), std, steps)
        row = [f"{statistics.mean(d):.3f} ({max(d):.2f})" for d in found.values()]
        print(f"| {name}, {std} | {steps} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
