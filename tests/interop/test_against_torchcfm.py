"""torchcfm's networks through our adapters and through the ODE they were written for, and its matcher's target.

Only its matchers, MLP and U-Net are used: torchcfm.utils imports torchdyn, which brings lightning and a torchvision
without a CPU build. So `pip install --no-deps torchcfm` with `pot` beside it is enough. Where it is absent, nothing is
run here.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

import sdegen
from sdegen.interop import from_torchcfm

matchers = pytest.importorskip("torchcfm.conditional_flow_matching")
models = pytest.importorskip("torchcfm.models.models")
unet = pytest.importorskip("torchcfm.models.unet")
TIGHT = sdegen.ODESolver("dopri5", rtol=1e-9)


def test_a_torchcfm_mlp_gives_the_samples_of_its_own_ode():
    torch.manual_seed(0)
    net = models.MLP(dim=2, time_varying=True, w=32).double()
    x_T = torch.randn(16, 2)

    def field(t: Tensor, x: Tensor) -> Tensor:  # what torchcfm.utils.torch_wrapper does
        return net(torch.cat([x, t.repeat(len(x))[:, None]], 1))

    with torch.no_grad():
        theirs = odeint(field, x_T, torch.linspace(0, 1, 2), rtol=1e-9, atol=1e-9, method="dopri5")[-1]
    model = from_torchcfm(net, joined=True)
    ours = sdegen.sample(model, (16, 2), TIGHT, x_T=x_T, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert len(list(model.parameters())) == len(list(net.parameters()))


def test_a_torchcfm_unet_gives_the_samples_of_its_own_ode():
    torch.manual_seed(0)
    net = unet.UNetModel(dim=(1, 8, 8), num_channels=32, num_res_blocks=1, channel_mult=(1, 2)).eval().float()
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
    sigma, t = 0.1, torch.rand(5)
    x, eps = torch.randn(5, 3), torch.randn(5, 3)
    matcher = matchers.TargetConditionalFlowMatcher(sigma=sigma)
    x_t = matcher.sample_xt(eps, x, t, eps)
    target = matcher.compute_conditional_flow(eps, x, t, x_t)
    path = sdegen.CondOT(sigma)
    torch.testing.assert_close(path.perturb(x, t, eps)[0], x_t, rtol=0, atol=1e-14)
    slopes = path.slopes(t)
    torch.testing.assert_close(slopes.alpha[:, None] * x + slopes.sigma[:, None] * eps, target, rtol=0, atol=1e-13)
