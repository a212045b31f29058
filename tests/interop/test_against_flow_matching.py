"""A network of flow_matching through our adapter and through that library's own solver.

flow_matching 1.0.10 states CC-BY-NC in its wheel's licence field and in its README, and MIT in its classifier. The
tests import it, to compare; no line of it is in sdegen. Where it is absent, nothing here runs.
"""

from __future__ import annotations

import pytest
import torch
from fields import Named

import sdegen
from sdegen.interop import from_flow_matching

schedulers = pytest.importorskip("flow_matching.path.scheduler")
solvers = pytest.importorskip("flow_matching.solver")
TIGHT = sdegen.ODESolver("dopri5", rtol=1e-9)


@pytest.mark.parametrize("scheduler", ["CondOTScheduler", "CosineScheduler"])
def test_a_flow_matching_network_gives_the_samples_and_likelihoods_of_its_own_solver(scheduler):
    net = Named().double()
    path = {"CondOTScheduler": sdegen.CondOT(), "CosineScheduler": sdegen.Trigonometric()}[scheduler]
    given = getattr(schedulers, scheduler)()(torch.tensor([0.2, 0.7]))
    torch.testing.assert_close(path.alpha(torch.tensor([0.2, 0.7])), given.alpha_t, rtol=0, atol=1e-15)
    torch.testing.assert_close(path.sigma(torch.tensor([0.2, 0.7])), given.sigma_t, rtol=0, atol=1e-15)
    solver, x_T = solvers.ODESolver(velocity_model=net), torch.randn(16, 2)
    settings = {"method": "dopri5", "step_size": None, "atol": 1e-9, "rtol": 1e-9}
    theirs = solver.sample(x_init=x_T, **settings)
    model = from_flow_matching(net, path)
    ours = sdegen.sample(model, (16, 2), TIGHT, x_T=x_T, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    prior = sdegen.Gaussian([0.0, 0.0], 1.0)
    _, log_p = solver.compute_likelihood(x_1=ours, log_p0=prior.log_prob, exact_divergence=True, **settings)
    torch.testing.assert_close(sdegen.log_prob(model, ours, TIGHT), log_p.detach(), rtol=0, atol=1e-6)
