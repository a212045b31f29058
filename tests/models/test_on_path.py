"""Models moved between paths: one trajectory, the clocks they were trained on, and the source they keep."""

from __future__ import annotations

import pytest
import torch
from flows import OT, VP, network
from problems import ring
from torch import Tensor

import sdegen


@pytest.mark.parametrize("name", ["eps", "score", "data", "v"])
def test_a_velocity_says_everything(name):
    mixture, t = ring(), torch.tensor([0.1, 0.37, 0.5, 0.9])
    x = mixture.marginal(OT, 0.5).sample(4)
    model, exact = network(mixture, OT, "velocity"), mixture.model(OT)
    torch.testing.assert_close(getattr(model, name)(x, t), getattr(exact, name)(x, t), rtol=1e-12, atol=1e-12)


def test_trajectories_of_vp_and_flow_coincide():
    """A VP network, the same moved to CondOT, and a CondOT network, from the same y at u = 0.99."""
    mixture, u = ring(), (0.99, 0.0)
    y = torch.randn(64, 2)
    ends = []
    vp = network(mixture, VP, "eps")
    for model in (vp, vp.on(OT), network(mixture, OT, "velocity"), network(mixture, OT, "velocity").on(VP)):
        r = float(model.path.scale(0.99))
        solution = sdegen.solve(model, r * y, sdegen.ODESolver("rk4", steps=40), u=u, trajectory=True)
        ends.append(solution.trajectory / model.path.scale(solution.u)[:, None, None])
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=0, atol=1e-8)


def test_a_model_may_be_moved_twice_and_keeps_its_own_clock():
    chain = sdegen.DDPM.linear(smooth=True)
    seen = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return torch.zeros_like(x)

    model = sdegen.ScoreModel(net, chain, "eps").on(OT).on(VP)
    sdegen.solve(model, torch.zeros(1, 2), sdegen.SDESolver("euler", grid=torch.tensor([0.9, 0.5, 0.1])), u=(0.9, 0.1))
    torch.testing.assert_close(torch.tensor(seen[-2:]), chain.time(torch.tensor([0.9, 0.5])), rtol=1e-14, atol=0)


def test_a_flow_network_by_the_reverse_sde_has_the_vp_law():
    """A CondOT velocity network moved to VP takes the same steps as the exact VP model, noise for noise."""
    mixture, solver = ring(), sdegen.SDESolver("srk", 50)
    x_T, noise = torch.randn(32, 2), torch.randn(50, 2, 32, 2)
    moved = sdegen.solve(network(mixture, OT, "velocity").on(VP), x_T, solver, noise=noise)
    exact = sdegen.solve(mixture.model(VP), x_T, solver, noise=noise)
    torch.testing.assert_close(moved.x, exact.x, rtol=0, atol=1e-11)


def test_leaving_the_trained_clocks_is_refused_with_the_way_out():
    calls = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return x

    vp, ve = sdegen.ScoreModel(net, VP), sdegen.ScoreModel(net, sdegen.VESDE())
    end = VP.ends[1]
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=rf"u=\({end}, 0.0\) stays inside"):
        sdegen.sample(vp.on(OT), (3, 2), sdegen.SDESolver("euler", 10))
    with pytest.raises(ValueError, match=rf"u=\(0.0, {end}\) stays inside"):
        sdegen.log_prob(vp.on(OT), x)
    with pytest.raises(ValueError, match=r"u=\(0\.0099"):
        sdegen.encode(ve.on(VP), x)
    with pytest.raises(ValueError, match="answers between the clocks"):
        sdegen.decode(ve.on(VP), x, u=(0.9, 0.001))
    with pytest.raises(ValueError, match=rf"u=\(0.0, {end}\) stays inside"):
        sdegen.vlb(vp.on(OT), x, steps=10)
    with pytest.raises(TypeError, match="path must be a GaussianPath"):
        vp.on("condot")
    assert not calls
    assert sdegen.sample(vp.on(OT), (3, 2), sdegen.SDESolver("euler", 4), u=(end, 0.0)).shape == (3, 2)
    assert ring().model(VP).on(OT).clocks == (0, 1)


def test_a_model_keeps_its_source_when_it_moves():
    wide = sdegen.Gaussian([0.0, 0.0], 3.0)
    field = sdegen.vector_field(lambda x, t: 0 * x, prior=wide)
    with pytest.raises(ValueError, match="keeps its source"):
        field.on(OT)
    gaussian = sdegen.ScoreModel(lambda x, t: 0 * x, OT)
    with pytest.raises(ValueError, match="keeps its source"):
        gaussian.on(sdegen.Interpolant(OT, wide))
    with pytest.raises(ValueError, match="Gaussian path"):
        sdegen.Interpolant(sdegen.Interpolant(OT, wide))
    moved = field.on(sdegen.Interpolant(sdegen.Trigonometric(), wide))
    x = torch.randn(5, 2)
    torch.testing.assert_close(sdegen.log_prob(moved, x), sdegen.log_prob(field, x), rtol=0, atol=1e-9)


def test_an_exact_model_moves_anywhere_and_a_network_only_where_it_was_trained():
    data = sdegen.Gaussian([0.3], 0.5)
    assert sdegen.sample(data.model(VP).on(OT), (4, 1), sdegen.ODESolver("rk4", steps=5)).shape == (4, 1)
    moved = sdegen.ScoreModel(lambda x, t: 0 * x, VP).on(OT)
    with pytest.raises(ValueError, match="answers between the clocks"):
        moved.data(torch.zeros(3, 1), 1e-3)
    assert moved.data(torch.zeros(3, 1, dtype=torch.float32), 0.5).shape == (3, 1)
    assert not moved.learns_variance
