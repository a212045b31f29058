"""The same networks through our adapters and through the ODE code of the libraries they were written for."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

import sdegen
from sdegen.interop import Adapted, from_flow_matching, from_torchcfm

TIGHT = sdegen.ODESolver("dopri5", rtol=1e-9)


class Wave(nn.Module):
    """A fixed, smooth velocity of x (B, ...) that depends on time, in the order of arguments that is asked for."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.8))

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x + (2 * t).reshape(-1, *[1] * (x.ndim - 1))) * self.gain - 0.3 * x


class TimeFirst(Wave):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.velocity(x, t)


class Named(Wave):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.velocity(x, t)


def test_a_torchcfm_mlp_gives_the_samples_of_its_own_ode():
    pytest.importorskip("torchcfm")
    from torchcfm.models.models import MLP
    from torchcfm.utils import torch_wrapper

    torch.manual_seed(0)
    net = MLP(dim=2, time_varying=True, w=32).double()
    x_T = torch.randn(16, 2)
    with torch.no_grad():
        theirs = odeint(torch_wrapper(net), x_T, torch.linspace(0, 1, 2), rtol=1e-9, atol=1e-9, method="dopri5")[-1]
    model = from_torchcfm(net, joined=True)
    ours = sdegen.sample(model, (16, 2), TIGHT, x_T=x_T, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert len(list(model.parameters())) == len(list(net.parameters()))


def test_a_torchcfm_unet_gives_the_samples_of_its_own_ode():
    pytest.importorskip("torchcfm")
    from torchcfm.models.unet import UNetModel

    torch.manual_seed(0)
    net = UNetModel(dim=(1, 8, 8), num_channels=32, num_res_blocks=1, channel_mult=(1, 2)).eval().float()
    for parameter in net.out[-1].parameters():  # begins as zero
        nn.init.normal_(parameter, std=0.05)
    x_T = torch.randn(2, 1, 8, 8)
    with torch.no_grad():  # the network is single precision; the states are not, so that only its rounding is left
        steps = torch.linspace(0, 1, 21)
        theirs = odeint(lambda t, x: net(t.float(), x.float()).double(), x_T, steps, method="rk4")[-1]
    solver = sdegen.ODESolver("rk4", steps=20, grid=sdegen.PowerGrid(1))
    ours = sdegen.sample(from_torchcfm(net), (2, 1, 8, 8), solver, x_T=x_T, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert float((ours - x_T).abs().max()) > 1e-2


def test_a_torchcfm_matcher_and_our_loss_ask_for_the_same_target():
    """x_t and u_t of TargetConditionalFlowMatcher(sigma) are those of CondOT(sigma), noise for noise."""
    matchers = pytest.importorskip("torchcfm.conditional_flow_matching")
    sigma, t = 0.1, torch.rand(5)
    x, eps = torch.randn(5, 3), torch.randn(5, 3)
    matcher = matchers.TargetConditionalFlowMatcher(sigma=sigma)
    x_t = matcher.sample_xt(eps, x, t, eps)
    target = matcher.compute_conditional_flow(eps, x, t, x_t)
    path = sdegen.CondOT(sigma)
    torch.testing.assert_close(path.perturb(x, t, eps)[0], x_t, rtol=0, atol=1e-14)
    slopes = path.slopes(t)
    torch.testing.assert_close(slopes.alpha[:, None] * x + slopes.sigma[:, None] * eps, target, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scheduler", ["CondOTScheduler", "CosineScheduler"])
def test_a_flow_matching_network_gives_the_samples_and_likelihoods_of_its_own_solver(scheduler):
    pytest.importorskip("flow_matching")
    from flow_matching.path import scheduler as schedulers
    from flow_matching.solver import ODESolver

    net = Named().double()
    path = {"CondOTScheduler": sdegen.CondOT(), "CosineScheduler": sdegen.Trigonometric()}[scheduler]
    given = getattr(schedulers, scheduler)()(torch.tensor([0.2, 0.7]))
    torch.testing.assert_close(path.alpha(torch.tensor([0.2, 0.7])), given.alpha_t, rtol=0, atol=1e-15)
    torch.testing.assert_close(path.sigma(torch.tensor([0.2, 0.7])), given.sigma_t, rtol=0, atol=1e-15)
    solver, x_T = ODESolver(velocity_model=net), torch.randn(16, 2)
    settings = {"method": "dopri5", "step_size": None, "atol": 1e-9, "rtol": 1e-9}
    theirs = solver.sample(x_init=x_T, **settings)
    model = from_flow_matching(net, path)
    ours = sdegen.sample(model, (16, 2), TIGHT, x_T=x_T, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    prior = sdegen.Gaussian([0.0, 0.0], 1.0)
    _, log_p = solver.compute_likelihood(x_1=ours, log_p0=prior.log_prob, exact_divergence=True, **settings)
    torch.testing.assert_close(sdegen.log_prob(model, ours, TIGHT), log_p.detach(), rtol=0, atol=1e-6)


def test_an_adapted_network_stays_in_sight():
    net = TimeFirst().double().train()
    model = from_torchcfm(net)
    x_T = torch.randn(4, 3, 2)
    named = from_flow_matching(Named().double())
    same = (sdegen.sample(m, (4, 3, 2), TIGHT, x_T=x_T, dtype=torch.float64) for m in (model, named))
    torch.testing.assert_close(*same, rtol=0, atol=1e-12)
    assert net.training
    assert model.working_dtype(torch.float32) is torch.float64
    scaled = sdegen.ScoreModel(Adapted(net, lambda net, x, t, gain: gain * net(t, x)), sdegen.CondOT(), "velocity")
    torch.testing.assert_close(scaled(x_T, 0.5, {"gain": 2.0}), 2 * net(torch.full((4,), 0.5), x_T))


def test_adapted_models_are_pickled_and_checked():
    for model in (from_torchcfm(TimeFirst()), from_torchcfm(TimeFirst(), joined=True), from_flow_matching(Named())):
        again = pickle.loads(pickle.dumps(model))
        assert type(again.net.net) is type(model.net.net)
    for refused in (lambda: from_torchcfm(None), lambda: from_torchcfm(Named(), joined="no"), lambda: Adapted(1, 2)):
        with pytest.raises(TypeError, match="must be"):
            refused()
