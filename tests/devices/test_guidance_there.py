"""Guided models on the pretend device: the numbers of the CPU, and hardly a wait for them."""

from __future__ import annotations

import pytest
import torch
from cases import INSIDE, Net, few, same
from pretend import put

import sdegen

A, SEEN = torch.tensor([[0.8, -0.4]], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)


def log_weight(x, t):
    return (torch.cos(x) * t[:, None]).sum(1)


def first(x):
    return x[:, :1]


GUIDED = {
    "of x_t": lambda model: sdegen.Guided(model, log_weight, 2.0),
    "of data": lambda model: sdegen.Guided(model, log_weight, lambda u: 1 + u, of="data"),
    "clipped": lambda model: sdegen.Clipped(model, -0.5, 0.5),
    "thresholds": lambda model: sdegen.Clipped(model, -0.5, 0.5, quantile=0.9),
    "mmps": lambda model: sdegen.Observed(model, A, SEEN, 0.3),
    "pigdm": lambda model: sdegen.Observed(model, first, SEEN, 0.3, "pigdm"),
    "dps": lambda model: sdegen.Observed(model, A, SEEN, 0.3, "dps"),
    "guided and clipped": lambda model: sdegen.Guided(sdegen.Clipped(model, -0.5, 0.5), log_weight),
}


def start():
    torch.manual_seed(2)
    return torch.randn(4, 2)


@pytest.mark.parametrize("kind", GUIDED)
@pytest.mark.parametrize("solver", [sdegen.Adams, lambda n: sdegen.SDESolver("euler", n)], ids=["adams", "euler"])
def test_samples_are_those_of_the_cpu_and_nobody_waits(kind, solver):
    model, x = GUIDED[kind](sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v")), start()
    same(lambda m, x: sdegen.solve(m, x, solver(6), u=INSIDE["data"]).x, model, x)
    model, x = put(model), put(x)
    few(lambda n: sdegen.solve(model, x, solver(n), u=INSIDE["data"]))


@pytest.mark.parametrize("kind", ["of x_t", "of data", "clipped", "mmps"])
def test_densities_are_those_of_the_cpu(kind):
    model = GUIDED[kind](sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v"))
    same(lambda m, x: sdegen.log_prob(m, x, sdegen.Adams(6), u=INSIDE["noise"]), model, start())


def test_both_branches_are_there():
    """Conditions are doubled where they live; what stands for none may be a number or a tensor of the CPU."""
    shift = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    for none in (0.0, torch.zeros(1, 1)):
        inner = sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v")
        guided = sdegen.ClassifierFree(inner, 2.0, {"shift": none}, rescale=0.5)

        def solved(m, x, shift):
            return sdegen.solve(m, x, sdegen.Adams(6), u=INSIDE["data"], cond={"shift": shift}).x

        same(solved, guided, start(), shift)
    model, x, cond = put(guided), put(start()), {"shift": put(shift)}
    few(lambda n: sdegen.solve(model, x, sdegen.Adams(n), u=INSIDE["data"], cond=cond))
