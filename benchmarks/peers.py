"""Other libraries' samplers on a sdegen model: from a given x_T, with a given number of network calls.

A `Peer` has a name, the package it needs, the path it is made for, and `run(field, x_T, calls) -> (x, u)`: the samples
and the clock u = sigma / (alpha + sigma) at which the peer natively ends. `Field` is the model as a peer sees it, with
every call counted. A peer that cannot make exactly `calls` calls makes the most it can below, but at least one step.

`ode_peers()` and `sde_peers()` list those whose package is installed and print one line for each that is missing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

import sdegen

LAST = 1e-3
"""The VP path's time where a peer stops that cannot reach clean data, and has no such time of its own."""


class Field:
    """What a model predicts at a time of its path, with its calls counted."""

    def __init__(self, model: sdegen.Model):
        self.model, self.path, self.calls = model, model.path, 0

    def eps(self, x: Tensor, t: float) -> Tensor:
        """E[eps | x_t = x]: one network call. A time beyond the path by rounding is the path's end."""
        self.calls += 1
        low, high = sorted((self.path.t_data, self.path.t_noise))
        return self.model.eps(x, min(max(t, low), high))

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """dx/dt in the path's time: one network call."""
        self.calls += 1
        return self.model.velocity(x, t)

    def time(self, ratio: float) -> float:
        """The time at sigma/alpha = ratio."""
        return float(self.path.time(torch.tensor(clock(ratio), dtype=torch.float64)))

    def ratio(self, t: float) -> float:
        """sigma/alpha at a time."""
        return float(self.path.sigma(t) / self.path.alpha(t))

    def times(self, grid: str, steps: int) -> Tensor:
        """steps + 1 times from 1 to LAST, equal steps in t or in log sigma/alpha, on the VP path."""
        share = torch.arange(steps + 1, dtype=torch.float64) / steps
        if grid == "t":
            return 1 + (LAST - 1) * share
        first, last = self.ratio(1.0), self.ratio(LAST)
        times = self.path.time(clock(first * (last / first) ** share))
        times[0], times[-1] = 1.0, LAST
        return times


Ratio = TypeVar("Ratio", float, Tensor)
Run = Callable[[Field, Tensor, int], tuple[Tensor, float]]


@dataclass(frozen=True)
class Peer:
    """A sampler of another library.

    Attributes:
        name: as in the tables.
        package: what must be importable.
        run: (field, x_T, calls) -> (samples, the clock where they are).
        path: "VPSDE" or "CondOT", the path its field must be on.
    """

    name: str
    package: str
    run: Run
    path: str = "VPSDE"


def clock(ratio: Ratio) -> Ratio:
    """u at sigma/alpha = ratio."""
    return ratio / (1 + ratio)


def installed(peers: Sequence[Peer]) -> list[Peer]:
    """Those whose package is there; one printed line for each package that is not."""
    there = {package: importlib.util.find_spec(package) is not None for package in {peer.package for peer in peers}}
    for package in sorted(package for package, found in there.items() if not found):
        print(f"({package} is not installed: {sum(peer.package == package for peer in peers)} peers are left out)")
    return [peer for peer in peers if there[peer.package]]


def ode_peers() -> list[Peer]:
    """Every deterministic peer that is installed."""
    from peers_diffusers import deterministic
    from peers_engines import engine_peers
    from peers_multistep import azula_peers, k_diffusion_peers

    return installed([*deterministic(), *engine_peers(), *azula_peers(), *k_diffusion_peers()])


def sde_peers() -> list[Peer]:
    """Every stochastic peer that is installed; they draw from torch's global generator."""
    from peers_diffusers import stochastic
    from peers_multistep import azula_sde_peers, k_diffusion_sde_peers

    return installed([*stochastic(), *azula_sde_peers(), *k_diffusion_sde_peers()])
