"""Trained networks instead of exact models: the error of solvers and peers against the model's own fine solution.

Four models: the tests' plane MLP (v) and digits U-Net (eps, without label) on VPSDE, and two MLPs trained on the spot
on two moons, seeded: eps on VPSDE and the velocity on CondOT. All compute in float64 here, and every fine solution is
dopri8 at 1e-9: this library's solvers are judged at clean data u = 0, a peer where it natively ends.

The yardstick for the VP networks is the best of diffusers' DPM-Solver++, UniPC and DEIS on linspace, trailing, Karras
and exponential sigmas at each number of calls; for CondOT the best of flow_matching's fixed-step methods.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accuracy import Measured, Solvers, best_rows, ours, theirs
from peers import Peer
from targets import Fine, geometric_mean, latents

import sdegen
from sdegen.datasets import two_moons
from sdegen.nets import MLP

TESTS = Path(__file__).parent.parent / "tests"
CALLS = (5, 10, 20, 50)
STEPS = 3000
FINE = sdegen.ODESolver("dopri8", rtol=1e-9)
YARDSTICK = ("DPMSolver++2M", "DPMSolver++3M", "UniPC", "DEIS", "flow_matching")


def plane_mlp() -> sdegen.ScoreModel:
    """v on VPSDE for two moons, the tests' weights."""
    model: sdegen.ScoreModel = _tests_networks().plane_mlp()
    return model


def digits_unet() -> sdegen.ScoreModel:
    """eps on VPSDE for the 8x8 digits, the tests' weights."""
    model: sdegen.ScoreModel = _tests_networks().digits_unet()
    return model


def eps_mlp() -> sdegen.ScoreModel:
    """eps on VPSDE for two moons, trained here."""
    return trained(sdegen.VPSDE(), "eps")


def velocity_mlp() -> sdegen.ScoreModel:
    """The velocity on CondOT for two moons, trained here."""
    return trained(sdegen.CondOT(), "velocity")


# name: (the model, the shape of its latents)
NETWORKS: Mapping[str, tuple[Callable[[], sdegen.ScoreModel], tuple[int, ...]]] = {
    "v MLP": (plane_mlp, (512, 2)),
    "eps MLP": (eps_mlp, (512, 2)),
    "velocity MLP": (velocity_mlp, (512, 2)),
    "digits": (digits_unet, (64, 1, 8, 8)),
}


def trained(path: sdegen.GaussianPath, predicts: str, steps: int = STEPS) -> sdegen.ScoreModel:
    """A small MLP after `steps` steps of Adam on fresh points of two moons, seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = sdegen.ScoreModel(MLP(2, hidden=64, depth=3), path, predicts=predicts)
        optimiser = torch.optim.Adam(model.parameters(), 4e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.05)
        for _ in range(steps):
            optimiser.zero_grad()
            sdegen.loss(model, two_moons(512), times=sdegen.LowDiscrepancyTimes()).backward()
            optimiser.step()
            schedule.step()
    return model.requires_grad_(False).eval()


def fine_of(model: sdegen.ScoreModel, shape: tuple[int, ...]) -> dict[str, Fine]:
    """The model in float64 with its fine solutions, under the name of its path."""
    model = model.double()
    std = float(model.path.sigma(model.path.t_noise))
    return {type(model.path).__name__: Fine(model, latents(shape, std), FINE)}


def measure(
    fines: Mapping[str, Fine], solvers: Solvers, peers: Sequence[Peer], calls: Sequence[int] = CALLS
) -> tuple[list[Measured], list[Measured]]:
    """Our solvers and the yardstick's variants from the same latents."""
    (fine,) = fines.values()
    chosen = [peer for peer in peers if any(name in peer.name for name in YARDSTICK)]
    return ours(fine, solvers, calls), theirs(fines, chosen, calls)


def report(
    solvers: Solvers, peers: Sequence[Peer], calls: Sequence[int] = CALLS, networks: Sequence[str] = tuple(NETWORKS)
) -> None:
    """A table for each network: error (ratio to the best peer), and below it which peer that was."""
    for name in networks:
        make, shape = NETWORKS[name]
        mine, others = measure(fine_of(make(), shape), solvers, peers, calls)
        best = best_rows(others, calls)
        print(f"\n| {name} | " + " | ".join(f"{n} calls" for n in calls) + " | geometric mean |")
        print("|---" * (len(calls) + 2) + "|")
        for solver in dict.fromkeys(row.name for row in mine):
            rows = [row for row in mine if row.name == solver]
            over = {row.allowed: row.error / best[row.allowed].error for row in rows if row.allowed in best}
            cells = [
                f"{row.error:.2e}" + (f" ({over[row.allowed]:.2f})" if row.allowed in over else "") for row in rows
            ]
            print(f"| {solver} | " + " | ".join(cells) + f" | {geometric_mean(over.values()):.2f} |")
        for n, row in best.items():
            print(f"  best peer at {n}: {row.name} ({row.calls} calls) {row.error:.2e}", flush=True)


def _tests_networks() -> Any:
    """tests/networks.py, which is no package."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    return importlib.import_module("networks")
