"""The error that a solver reports covers the true one, and is not far above it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from kinked import Bent
from mixtures import known
from problems import PATHS
from torch import nn

import sdegen
from sdegen.datasets import two_moons

QUICK = {"ring8": 64, "gmm16": 24}
ADAMS = (sdegen.Adams(160), sdegen.Adams(320))


def dopri8(k: int, steps_for: str = "batch") -> sdegen.ODESolver:
    return sdegen.ODESolver("dopri8", rtol=10.0**-k, steps_for=steps_for)


def measured(name, size, solver, dtype=torch.float64, path="vp"):
    """(share of points whose error is covered, median ratio of the reported error to the true one)."""
    x, true, model, prior = known(name, PATHS[path], size, dtype)
    ours = sdegen.log_likelihood(model, x, solver, prior=prior)
    error, reported = (ours.log_prob.double() - true).abs(), ours.solver_error.double()
    assert bool((reported >= 0).all())
    return float((error <= reported).double().mean()), float((reported / error).median())


@pytest.mark.parametrize(
    ("name", "dtype"), [("ring8", torch.float32), ("ring8", torch.float64), ("gmm16", torch.float64)]
)
def test_coverage_of_dopri8(name, dtype):
    ratios = []
    for solver in (dopri8(3), dopri8(5), dopri8(5, "sample")):
        covered, ratio = measured(name, QUICK[name], solver, dtype)
        assert covered >= 0.92
        assert ratio < 100
        ratios.append(ratio)
    assert math.prod(ratios) ** (1 / len(ratios)) < 20


@pytest.mark.parametrize(("name", "path"), [("ring8", "vp"), ("gmm16", "condot")])
def test_coverage_of_adams(name, path):
    for solver in ADAMS:
        covered, ratio = measured(name, QUICK[name], solver, path=path)
        assert covered >= 0.9
        assert solver.steps > 160 or ratio < 100
    covered, _ = measured(name, QUICK[name], sdegen.AdamsUntil(), path=path)
    assert covered >= 0.9


def test_the_rounding_of_many_steps_is_covered():
    covered, ratio = measured("ring8", 128, sdegen.Adams(320), torch.float32, "condot")
    assert covered >= 0.94
    assert ratio < 100


@pytest.mark.parametrize("solver", [*ADAMS, sdegen.AdamsUntil(1e-3, max_steps=320)], ids=repr)
@pytest.mark.filterwarnings("ignore:.*reached its last round:sdegen.AccuracyWarning")
def test_kinks_are_covered(solver):
    """A divergence that jumps once in every coordinate, of known log-density: in 2 and in 8 dimensions."""
    g = torch.Generator().manual_seed(2)
    for d in (2, 8):
        below, above = 0.2 + torch.rand(2, d, generator=g)
        flow = Bent(-below, above)
        x = torch.randn(16, d, generator=g)
        ours = sdegen.log_likelihood(flow.model, x, solver)
        error = (ours.log_prob - flow.log_prob(x)).abs()
        assert int((error <= ours.solver_error).sum()) >= 15
        assert float((ours.solver_error / error).median()) < 100
        assert float(error.max()) < 0.1


def test_known_log_density_of_the_kinked_flow():
    """Its formulas against many plain steps."""
    flow = Bent(torch.tensor([0.3, -0.7, -0.4]), torch.tensor([1.5, 0.9, -0.2]))
    x = torch.randn(8, 3)
    ours = sdegen.log_prob(flow.model, x, sdegen.ODESolver("rk4", steps=300))
    torch.testing.assert_close(ours, flow.log_prob(x), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "solver",
    [sdegen.ODESolver("rk4", steps=60), sdegen.ODESolver("dopri5", rtol=1e-4), sdegen.Adams(160)],
    ids=["rk4", "dopri5", "adams"],
)
def test_a_second_solve_says_what_halving_changes(solver):
    """|log p - log p at half the steps or ten times the tolerance|, at the cost of both; Adams has its own."""
    x, true, model, prior = known("ring8", PATHS["condot"], 32)
    coarser = {
        "rk4": sdegen.ODESolver("rk4", steps=30),
        "dopri5": sdegen.ODESolver("dopri5", rtol=1e-3, atol=1e-3),
    }.get(getattr(solver, "method", ""))
    alone = sdegen.log_likelihood(model, x, solver, prior=prior)
    both = sdegen.log_likelihood(model, x, solver, prior=prior, second_solve=True)
    assert torch.equal(alone.log_prob, both.log_prob)
    if coarser is None:
        assert torch.equal(alone.solver_error, both.solver_error)
        assert alone.calls == both.calls
        return
    other = sdegen.log_likelihood(model, x, coarser, prior=prior)
    assert alone.solver_error is None
    assert torch.equal(both.solver_error, (alone.log_prob - other.log_prob).abs())
    for cost in ("calls", "accepted", "rejected"):
        assert getattr(both, cost) == getattr(alone, cost) + getattr(other, cost)
    assert float(((both.log_prob - true).abs() <= both.solver_error).double().mean()) > 0.9


class Bashforth(sdegen.Multistep):
    """A user's Adams-Bashforth of order 2."""

    solves_ode = True
    own_grid = sdegen.PowerGrid(2)

    def predictor(self, knots):
        h = torch.diff(knots.u).tolist()
        later = [sdegen.Row(1.0, (b + b * b / (2 * a), -b * b / (2 * a))) for a, b in pairwise(h)]
        return [sdegen.Row(1.0, (h[0],)), *later]


def test_a_second_solve_of_a_users_scheme():
    x, _, model, prior = known("ring8", PATHS["condot"], 8)
    both = sdegen.log_likelihood(model, x, Bashforth(100), prior=prior, second_solve=True)
    fine, coarse = (sdegen.log_prob(model, x, Bashforth(n), prior=prior) for n in (100, 50))
    assert torch.equal(both.solver_error, (fine - coarse).abs())
    assert sdegen.log_likelihood(model, x, Bashforth(100), prior=prior).solver_error is None
    assert sdegen.log_likelihood(model, x, Bashforth(1), prior=prior, second_solve=True).solver_error is None


def test_a_second_solve_has_the_probes_of_the_first():
    """Kept ones, so that the difference is that of the steps: fresh ones would differ by their own noise."""
    x, _, model, prior = known("gmm16", PATHS["condot"], 8)
    ours = sdegen.log_likelihood(
        model, x, sdegen.ODESolver("rk4", steps=80), prior=prior, trace=sdegen.Hutchinson(2), second_solve=True
    )
    assert float(ours.probe_error.square().mean().sqrt()) > 0.3
    assert float(ours.solver_error.max()) < 0.05


@pytest.mark.parametrize("steps", [None, 8])
def test_a_tensor_of_knots_has_a_density_and_a_second_solve(steps):
    """On every second of its knots."""
    x, _, model, prior = known("ring8", PATHS["condot"], 8)
    grid = torch.linspace(1, 0, 9) ** 2
    for make in (lambda g, n: sdegen.ODESolver("rk4", grid=g, steps=n), lambda g, n: Bashforth(n, grid=g)):
        both = sdegen.log_likelihood(model, x, make(grid, steps), prior=prior, second_solve=True)
        other = sdegen.log_prob(model, x, make(grid[::2], None), prior=prior)
        assert torch.equal(both.solver_error, (both.log_prob - other).abs())
        assert sdegen.log_likelihood(model, x, make(grid, steps), prior=prior).solver_error is None


@pytest.mark.parametrize("steps_for", ["batch", "sample"])
def test_dopri5_claims_no_error(steps_for):
    """What its embedded error tells of a log-density is a tenth of the truth."""
    x, _, model, _ = known("ring8", PATHS["condot"], 4)
    ours = sdegen.log_likelihood(model, x, sdegen.ODESolver("dopri5", rtol=1e-3, steps_for=steps_for))
    assert ours.solver_error is None
    assert "solver_error" in ours.unknown


def test_single_precision_has_a_floor():
    """With steps as fine as can be the reported error is rounding, and still covers."""
    covered, ratio = measured("gmm16", 32, sdegen.Adams(500), torch.float32)
    assert covered >= 0.94
    assert ratio < 100


FULL = [
    pytest.param("ring8", 2048, marks=pytest.mark.nightly),
    pytest.param("gmm16", 256, marks=pytest.mark.nightly),
    pytest.param("mix64", 32, marks=pytest.mark.nightly),
    pytest.param("gmm16", 2048, marks=pytest.mark.nightly),
    pytest.param("mix64", 2048, marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("name", "size"), FULL)
def test_coverage_of_dopri8_at_full_size(name, size):
    """Seed 0, tolerances 1e-3 to 1e-8, in single precision to 1e-6: 94 % but for one case of 92 %."""
    cases = []
    for dtype, finest in ((torch.float64, 8), (torch.float32, 6)):
        found = [measured(name, size, dopri8(k), dtype) for k in range(3, finest + 1)]
        assert math.prod(ratio for _, ratio in found) ** (1 / len(found)) < 25
        assert max(ratio for _, ratio in found) < 100
        cases += [covered for covered, _ in found]
    first, second, *_ = sorted(cases)
    assert first >= 0.92 - 1 / size
    assert second >= 0.94 - 1 / size


@pytest.mark.parametrize(("name", "size"), FULL)
def test_coverage_of_adams_at_full_size(name, size):
    for solver in (*ADAMS, sdegen.AdamsUntil()):
        covered, ratio = measured(name, size, solver)
        assert covered >= 0.94
        assert solver != ADAMS[0] or ratio < 100


@pytest.mark.filterwarnings("ignore:.*reached its last round:sdegen.AccuracyWarning")
@pytest.mark.parametrize(
    "act", [pytest.param(act, marks=pytest.mark.nightly) for act in (nn.SiLU, nn.ELU, nn.SELU, nn.ReLU)]
)
def test_trained_networks_with_kinks(act):
    """Three layers of 64 on two moons, against 20480 steps: 15 of 16 points, 2565 calls at most, in the default."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            widths = (3, 64, 64, 64)
            layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), act())]
            self.layers = nn.Sequential(*layers, nn.Linear(64, 2))

        def forward(self, x, t):
            return self.layers(torch.cat([x, t[:, None]], 1))

    torch.manual_seed(0)
    net = Net().float()
    model = sdegen.ScoreModel(net, sdegen.CondOT(), "velocity")
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(600):
        optimiser.zero_grad()
        sdegen.loss(model, two_moons(256).float()).backward()
        optimiser.step()
    net.double()
    x = two_moons(16).double()
    fine = sdegen.log_prob(model, x, sdegen.Adams(20480, order=2))
    for solver in (sdegen.AdamsUntil(), sdegen.Adams(160), sdegen.Adams(320)):
        ours = sdegen.log_likelihood(model, x, solver)
        assert int(((ours.log_prob - fine).abs() <= ours.solver_error).sum()) >= 15
        assert ours.calls <= 2 * 1280 + 5
