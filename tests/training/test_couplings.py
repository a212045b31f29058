"""The flow-matching loss: its floor, and couplings of data with noise."""

from __future__ import annotations

import math

import pytest
import torch
from flows import OT, EightGaussians, network
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import sdegen
from sdegen.datasets import eight_gaussians, two_moons
from sdegen.nets import MLP


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_floor_of_the_flow_matching_loss(t):
    """E|target - v|^2 = sum of S_i / (t^2 S_i + (1-t)^2) with the exact velocity (THEORY 7.2, data at t = 1)."""
    S = torch.tensor([1.0, 0.25, 0.01])
    data = sdegen.Gaussian([0.8, -0.3, 0.1], S.sqrt())
    model = network(data, OT, "velocity")
    each = sdegen.loss(model, data.sample(200_000), t=t, reduction="none")
    floor = float((S / (t**2 * S + (1 - t) ** 2)).mean())
    assert abs(float(each.mean()) - floor) < 5 * float(each.std()) / math.sqrt(len(each))


def test_optimal_transport_is_the_assignment():
    x, z = torch.randn(40, 2, 3), torch.randn(40, 2, 3)
    rows, partners = sdegen.OptimalTransport()(x, z, None)
    cost = (x.flatten(1)[:, None] - z.flatten(1)[None]).square().sum(2)
    expected = linear_sum_assignment(cost.numpy())
    assert rows.tolist() == expected[0].tolist()
    assert partners.tolist() == expected[1].tolist()
    again, others = sdegen.OptimalTransport(replace=True)(x, z, torch.Generator().manual_seed(0))
    assert others.tolist() == partners[again].tolist()
    assert len(set(again.tolist())) < 40
    assert sdegen.Independent()(x, z)[1].tolist() == list(range(40))


def test_the_plan_equals_that_of_pot():
    ot = pytest.importorskip("ot")
    x, z = torch.randn(30, 2), torch.randn(30, 2)
    plan = ot.emd(torch.full((30,), 1 / 30), torch.full((30,), 1 / 30), torch.cdist(x, z).square())
    assert plan.argmax(1).tolist() == sdegen.OptimalTransport()(x, z, None)[1].tolist()


def test_a_coupled_loss_regresses_the_coupled_pairs_and_cuts_the_conditions_alike():
    x, z, labels = torch.randn(16, 2), torch.randn(16, 2), torch.arange(16)
    seen = {}

    def net(x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.update(x_t=x_t, label=label)
        return torch.zeros_like(x_t)

    model = sdegen.ScoreModel(net, sdegen.Interpolant(), "velocity")
    coupling = sdegen.OptimalTransport(replace=True)
    options = {"noise": z, "t": 0.25, "cond": {"label": labels}, "reduction": "none"}
    each = sdegen.loss(model, x, coupling=coupling, generator=torch.Generator().manual_seed(3), **options)
    rows, partners = coupling(x, z, torch.Generator().manual_seed(3))
    assert seen["label"].tolist() == rows.tolist()
    torch.testing.assert_close(seen["x_t"], 0.25 * x[rows] + 0.75 * z[partners])
    torch.testing.assert_close(each, (x[rows] - z[partners]).square().mean(1))


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 2, 3, 4))])
def test_optimal_transport_straightens_eight_gaussians_to_moons(seed):
    """Straightness, and the RMS error of two Euler steps against the same model's own fine solution."""
    torch.set_default_dtype(torch.float32)
    bends, errors = [], []
    for coupling in (sdegen.Independent(), sdegen.OptimalTransport()):
        torch.manual_seed(seed)
        model = sdegen.ScoreModel(MLP(2, 64), sdegen.Interpolant(OT, EightGaussians()), "velocity")
        optimiser = torch.optim.Adam(model.parameters(), 4e-3)
        for _ in range(400):
            loss = sdegen.loss(model, two_moons(128), coupling=coupling)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        z = eight_gaussians(500)
        bends.append(float(sdegen.straightness(model, z).mean()))
        coarse = sdegen.decode(model, z, sdegen.ODESolver("euler", steps=2, grid=sdegen.PowerGrid(1)))
        fine = sdegen.decode(model, z, sdegen.ODESolver("rk4", steps=50))
        errors.append(float((coarse - fine).square().sum(1).mean().sqrt()))
    assert bends[1] < 0.8 * bends[0]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize(
    "answer",
    [
        lambda x, z, g: (torch.arange(len(x)), torch.zeros(1, dtype=torch.long)),
        lambda x, z, g: (torch.ones(len(x), dtype=torch.bool),) * 2,
        lambda x, z, g: torch.arange(len(x)),
        lambda x, z, g: None,
    ],
)
def test_a_coupling_returns_rows(answer):
    model = sdegen.ScoreModel(lambda x, t: 0 * x, sdegen.Interpolant(), "velocity")
    with pytest.raises(ValueError, match="two int64 tensors of 6 rows"):
        sdegen.loss(model, torch.randn(6, 2), coupling=answer)
    with pytest.raises(TypeError, match="coupling must be"):
        sdegen.loss(model, torch.randn(6, 2), coupling=sdegen.OptimalTransport)
