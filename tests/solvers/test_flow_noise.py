"""Noise added to a flow: every profile keeps the law, and both clocks give the same samples."""

from __future__ import annotations

import pytest
import torch
from flows import OT, network
from problems import affine_law, ring, slope, two_modes
from torch import Tensor

import sdegen


def test_both_clocks_give_the_same_samples():
    """Data at t = 1, and the same flow read backwards: dx/dt changes its sign, and nothing else."""
    mixture = ring()
    forward = network(mixture, OT, "velocity")
    backward = sdegen.ScoreModel(
        lambda x, t: -mixture.model(OT).velocity(x, 1 - t), sdegen.Retimed(OT, 0.0, 1.0), "velocity"
    )
    x_T, noise = torch.randn(64, 2), torch.randn(30, 64, 2)
    for solver, given in ((sdegen.ODESolver("rk4", steps=30), None), (sdegen.SDESolver("euler", 30), noise)):
        one, other = (sdegen.solve(m, x_T, solver, noise=given).x for m in (forward, backward))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


PROFILES = {f"kappa {k}": (lambda u, k=k: torch.sqrt(2 * k * u)) for k in (0.25, 1.0, 4.0)} | {"default": None}


@pytest.mark.parametrize("w", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize(("method", "steps", "order"), [("euler", (512, 1024, 2048), 1), ("srk", (64, 128, 256), 2)])
def test_every_noise_profile_keeps_the_law(method, steps, order, w):
    """Exact affine laws on N(0.8, 0.25), CondOT from end to end: mean and variance at the order of the method."""
    errors = []
    for n in steps:
        mean, variance = affine_law(OT, sdegen.SDESolver(method, n, w=w, grid=sdegen.PowerGrid(2)), 0.25, 0.8, n)
        errors.append((abs(mean - 0.8), abs(variance - 0.25)))
    for error in zip(*errors, strict=True):
        assert max(error) < 0.02
        if max(error) > 1e-12:  # at kappa = 1 and for the mean some schemes have no error at all
            assert slope(list(steps), list(error)) > order - 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [0.25, 1.0, 4.0])
def test_stochastic_flow_sampling_passes_an_energy_test(kappa):
    """Energy distance to exact draws against 999 permutations, significance 1/1000; the first mode alone would fail."""
    mixture, n = two_modes(), 600
    g = torch.Generator().manual_seed(5)
    solver = sdegen.SDESolver("srk", 100, w=lambda u: torch.sqrt(2 * kappa * u))
    ours = sdegen.sample(mixture.model(OT), (n, 1), solver, generator=g, dtype=torch.float64)
    true = mixture.sample(n, g)
    assert energy_rank(ours, true, g) < 0.999
    assert energy_rank(ours.abs(), true, g) == 1.0


def energy_rank(x: Tensor, y: Tensor, g: torch.Generator, permutations: int = 999) -> float:
    """The share of permuted pooled samples whose energy statistic lies below the one observed."""
    pooled = torch.cat([x, y])
    distance = torch.cdist(pooled, pooled)
    sign = torch.cat([torch.ones(len(x)), -torch.ones(len(y))])
    observed = -(sign @ distance @ sign)
    shuffled = sign[torch.stack([torch.randperm(len(pooled), generator=g) for _ in range(permutations)])]
    return float((-((shuffled @ distance) * shuffled).sum(1) < observed).double().mean())
