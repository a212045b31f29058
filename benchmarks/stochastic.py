"""Bias of the mean exact log-density of samples: stochastic solvers and peers on exact targets.

    OMP_NUM_THREADS=1 python benchmarks/stochastic.py [--targets ...] [--calls 10 20 50] [--samples 100000] [--no-peers]

For samples x_i of a solver the bias is mean log p(x_i) - E log p(x), in nats, with p the data's own density: 0 is
right, negative is too spread, positive too concentrated. The expectation is the mean over a million exact samples; the
standard error counts both means. Everything in float64 and seeded: a solver draws from a generator, a peer from torch's
global one, which is put back. A peer that natively stops before clean data is judged by the same p.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from peers import Field, Peer, sde_peers
from targets import TARGETS
from torch import Tensor

import sdegen

CALLS = (10, 20, 50)
SAMPLES, EXACT, CHUNK = 100_000, 1_000_000, 20_000

SOLVERS: Mapping[str, Callable[[int], sdegen.Solver]] = {  # the solver for a number of network calls
    "StochasticAdams": lambda calls: sdegen.StochasticAdams(calls),
    "SDE-DPM-Solver++ 2M": lambda calls: sdegen.DPMSolver(calls, eta=1.0),
    "SA-Solver": lambda calls: sdegen.SASolver(calls),
    "Churn(Heun)": lambda calls: sdegen.Churn(sdegen.Heun(max((calls + 1) // 2, 1))),
    "SDESolver euler": lambda calls: sdegen.SDESolver("euler", calls),
    "SDESolver srk": lambda calls: sdegen.SDESolver("srk", max(calls // 2, 1)),
    "SDESolver heun": lambda calls: sdegen.SDESolver("heun", max(calls // 2, 1)),
    "Ancestral": lambda calls: sdegen.Ancestral(calls),
    "Ancestral posterior": lambda calls: sdegen.Ancestral(calls, variance="posterior"),
}


class Mean(NamedTuple):
    """A mean of n values with its standard error; `calls` counts the network's."""

    value: float
    error: float
    calls: int = 0

    def __sub__(self, other: Mean) -> Mean:
        return Mean(self.value - other.value, math.hypot(self.error, other.error), self.calls)


def mean_log_prob(target: sdegen.GaussianMixture, chunks: Iterator[Tensor], calls: int = 0) -> Mean:
    """The mean of log p over samples that come in chunks; nan where one is not finite."""
    values = torch.cat([target.log_prob(x.double()) for x in chunks])
    return Mean(float(values.mean()), float(values.std() / len(values) ** 0.5), calls)


def exact_mean(target: sdegen.GaussianMixture, samples: int = EXACT, seed: int = 0) -> Mean:
    """E log p, by exact samples."""
    generator = torch.Generator().manual_seed(seed)
    return mean_log_prob(target, (target.sample(n, generator) for n in sizes(samples)))


def sizes(samples: int) -> list[int]:
    """How many samples each chunk has."""
    return [min(CHUNK, samples - start) for start in range(0, samples, CHUNK)]


def bias(
    target: sdegen.GaussianMixture, solver: sdegen.Solver, exact: Mean, samples: int = SAMPLES, seed: int = 1
) -> Mean:
    """The bias of a solver on VPSDE."""
    model, generator, made = target.model(sdegen.VPSDE()), torch.Generator().manual_seed(seed), []

    def chunks() -> Iterator[Tensor]:
        for n in sizes(samples):
            x_T = torch.randn(n, *target.event_shape, generator=generator, dtype=torch.float64)
            solution = sdegen.solve(model, x_T, solver, generator=generator)
            made.append(solution.calls)
            yield solution.x

    mean = mean_log_prob(target, chunks())
    return mean._replace(calls=made[0]) - exact


def bias_of_peer(
    target: sdegen.GaussianMixture, peer: Peer, calls: int, exact: Mean, samples: int = SAMPLES, seed: int = 1
) -> Mean:
    """The bias of another library's sampler."""
    field = Field(target.model(sdegen.VPSDE()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        starts = (torch.randn(n, *target.event_shape, dtype=torch.float64) for n in sizes(samples))
        mean = mean_log_prob(target, (peer.run(field, x_T, calls)[0] for x_T in starts))
    return mean._replace(calls=field.calls // len(sizes(samples))) - exact


def cell(mean: Mean, allowed: int) -> str:
    """bias +- standard error, and the calls where they are not those allowed."""
    made = "" if mean.calls == allowed else f" ({mean.calls} calls)"
    return f"{mean.value:+.3f} ± {mean.error:.3f}{made}"


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--calls", nargs="+", type=int, default=list(CALLS))
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", sdegen.AccuracyWarning)  # what it warns of stands in the table
    peers = [] if options.no_peers else sde_peers()
    for name in options.targets:
        target = TARGETS[name]()
        exact = exact_mean(target, 10 * options.samples)
        print(f"\n| {name} | " + " | ".join(f"{n} calls" for n in options.calls) + " |")
        print("|---" * (len(options.calls) + 1) + "|")
        for label in options.solvers:
            cells = [cell(bias(target, SOLVERS[label](n), exact, options.samples), n) for n in options.calls]
            print(f"| {label} | " + " | ".join(cells) + " |", flush=True)
        for peer in peers:
            cells = [cell(bias_of_peer(target, peer, n, exact, options.samples), n) for n in options.calls]
            print(f"| {peer.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
