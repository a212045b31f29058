"""The ODE engines as peers: flow_matching on straight (CondOT) coordinates, torchdiffeq in t on two grids."""

from __future__ import annotations

import importlib
from functools import partial

import torch
from peers import LAST, Field, Peer, clock
from torch import Tensor
from torchdiffeq import odeint

STAGES = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}


def flow_matching_run(method: str, field: Field, x_T: Tensor, calls: int) -> tuple[Tensor, float]:
    """flow_matching's solver on the CondOT path, from its noise at time 0 to data at 1 in equal steps."""
    ode_solver = importlib.import_module("flow_matching.solver").ODESolver
    steps = max(calls // STAGES[method], 1)
    grid = torch.arange(steps + 1, dtype=torch.float64) / steps
    solver = ode_solver(lambda x, t: field.velocity(x, float(t)))
    x: Tensor = solver.sample(x_T, step_size=None, method=method, time_grid=grid)
    return x, 0.0


def torchdiffeq_run(method: str, grid: str, field: Field, x_T: Tensor, calls: int) -> tuple[Tensor, float]:
    """torchdiffeq on dx/dt, from t = 1 to LAST: at t = 0 the slope has no limit."""
    times = field.times(grid, max(calls // STAGES[method], 1))
    x: Tensor = odeint(lambda t, x: field.velocity(x, float(t)), x_T, times, method=method)[-1]
    return x, clock(field.ratio(LAST))


def engine_peers() -> list[Peer]:
    """Fixed-step methods only: the number of calls is given."""
    straight = ("euler", "midpoint", "heun3", "rk4")
    peers = [
        Peer(f"flow_matching {m} · CondOT", "flow_matching", partial(flow_matching_run, m), "CondOT") for m in straight
    ]
    for method in ("midpoint", "heun2", "rk4"):
        for label, grid in (("t", "t"), ("logsnr-grid", "logsnr")):
            peers.append(Peer(f"torchdiffeq {method} · {label}", "torchdiffeq", partial(torchdiffeq_run, method, grid)))
    return peers
