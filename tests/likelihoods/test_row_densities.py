"""log_prob where every sample takes steps of its own: closed forms, batch-mates, probes."""

from __future__ import annotations

import math

import pytest
import torch
from often import often
from problems import PATHS, ring

import sdegen

TIGHT = sdegen.ODESolver("dopri8", rtol=1e-9, steps_for="sample")
CLOSED = {name: path for name, path in PATHS.items() if not name.startswith("own")}


@pytest.mark.parametrize("path", often(CLOSED, "cosine", "edm", "condot retimed"))
def test_eight_modes_in_the_plane(path):
    """With the exact prior, the density of the data; without, the batch solver's."""
    path, target = PATHS[path], ring()
    data = target.marginal(path, path.t_data)
    model, x = target.model(path), data.sample(16)
    ours = sdegen.log_prob(model, x, TIGHT, prior=target.marginal(path, path.t_noise))
    torch.testing.assert_close(ours, data.log_prob(x), rtol=0, atol=1e-8)
    theirs = sdegen.log_prob(model, x, sdegen.ODESolver("dopri8", rtol=1e-9))
    torch.testing.assert_close(sdegen.log_prob(model, x, TIGHT), theirs, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
@pytest.mark.parametrize("trace", ["exact", sdegen.Hutchinson(3)], ids=str)
def test_a_density_does_not_depend_on_batch_mates(method, trace):
    """Alone, in any order, and after outliers at |x| = 100; probes and generators belong to their sample."""
    model, solver = ring().model(sdegen.VPSDE()), sdegen.ODESolver(method, rtol=1e-5, steps_for="sample")
    x = torch.cat([torch.tensor([[100.0, 0.0], [0.0, -100.0]]), torch.randn(4, 2)])

    def density(rows):
        seeded = [torch.Generator().manual_seed(i) for i in rows]
        return sdegen.log_prob(model, x[rows], solver, trace=trace, generator=seeded)

    every = density([0, 1, 2, 3, 4, 5])
    alone = torch.cat([density([i]) for i in (2, 3, 4, 5)])
    torch.testing.assert_close(every[2:], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(density([5, 4, 3, 2]).flip(0), alone, rtol=0, atol=1e-12)


def test_a_sample_at_rest_still_needs_steps_for_its_density():
    """dx/dt = 6 sin(20 t) x from x = 0: nothing moves, and log p(0) = prior + d * 6 (1 - cos 20)/20."""
    model = sdegen.vector_field(lambda x, t: 6 * torch.sin(20 * t)[:, None] * x, t_data=0.0, t_noise=1.0)
    exact = -math.log(2 * math.pi) + 2 * 6 * (1 - math.cos(20)) / 20
    ours = sdegen.log_prob(model, torch.zeros(3, 2), sdegen.ODESolver("dopri5", rtol=1e-7, steps_for="sample"))
    torch.testing.assert_close(ours, torch.full((3,), exact), rtol=0, atol=1e-5)


def test_the_steps_are_those_of_the_batch_solver_on_one_sample():
    """The same error norm: a density by the batch solver on one sample, to rounding, at a loose tolerance."""
    model = ring().model(sdegen.VPSDE())
    for x in ring().sample(5)[:, None]:
        ours, theirs = (
            sdegen.log_prob(model, x, sdegen.ODESolver("dopri5", rtol=1e-3, steps_for=steps_for))
            for steps_for in ("sample", "batch")
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
