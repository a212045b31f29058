"""The solvers whose gradients are tested, and a network to take them through.

A new solver is a row of SOLVERS, of STEPS steps, and has its gradients tested against central differences
(test_differentiable.py) and its checkpoints against them (test_checkpointing.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import sdegen


@dataclass(frozen=True)
class Ralston(sdegen.Solver):
    """A user's one-step scheme."""

    steps: int
    solves_ode = True

    def run(self, problem):
        u, t = problem.knots(sdegen.PowerGrid(1.5), self.steps)

        def step(k, y, ask):
            h = u[k + 1] - u[k]
            slope = ask(y, u[k])
            return y + h / 4 * (slope + 3 * ask(y + 2 / 3 * h * slope, u[k] + 2 / 3 * h))

        return sdegen.march(problem, u, t, step)


@dataclass(frozen=True)
class AdamsBashforth2(sdegen.Solver):
    """A user's multistep scheme, that of march's docstring."""

    steps: int
    solves_ode = True

    def run(self, problem):
        u, t = problem.knots(sdegen.PowerGrid(1.5), self.steps)

        def step(k, y, ask, memory):
            h, slope = u[k + 1] - u[k], ask(y, u[k])
            if not memory:
                return y + h * slope, (slope,)
            ratio = 0.5 * h / (u[k] - u[k - 1])
            return y + h * ((1 + ratio) * slope - ratio * memory[0]), (slope,)

        return sdegen.march(problem, u, t, step, memory=())


STEPS = 5
SOLVERS = {  # name: (solver, whether it marches: the steps of an engine cannot be taken in chunks)
    **{f"ode {m}": (sdegen.ODESolver(m, steps=STEPS), False) for m in ("euler", "midpoint", "heun2", "heun3", "rk4")},
    **{f"sde {m}": (sdegen.SDESolver(m, STEPS, eta=0.5), False) for m in sdegen.solvers.SDE_METHODS},
    "ancestral": (sdegen.Ancestral(STEPS), True),
    "ancestral posterior": (sdegen.Ancestral(STEPS, variance="posterior"), True),
    "ancestral optimal": (sdegen.Ancestral(STEPS, variance="optimal"), True),
    "ancestral learned": (sdegen.Ancestral(STEPS, variance="learned"), True),
    "ddim": (sdegen.DDIM(STEPS), True),
    "ddim eta": (sdegen.DDIM(STEPS, eta=0.5), True),
    "adams": (sdegen.Adams(STEPS), True),
    "adams 4": (sdegen.Adams(STEPS, 4), True),
    "stochastic adams": (sdegen.StochasticAdams(STEPS), True),
    "own one-step": (Ralston(STEPS), True),
    "own multistep": (AdamsBashforth2(STEPS), True),
}


class Net(nn.Module):
    """A network with parameters and a condition; `channels` is 2 where it learns a variance."""

    def __init__(self, channels: int = 1, dropout: float = 0.0):
        super().__init__()
        self.first, self.last, self.dropout = nn.Linear(3, 8), nn.Linear(8, 2 * channels), nn.Dropout(dropout)

    def forward(self, x, t, shift):
        return self.last(self.dropout(torch.tanh(self.first(torch.cat([x + shift, t[:, None]], 1)))))


def model_for(solver, dropout: float = 0.0) -> sdegen.ScoreModel:
    learned = getattr(solver, "variance", None) == "learned"
    return sdegen.ScoreModel(Net(1 + learned, dropout), sdegen.VPSDE(), "v", learns_variance=learned)
