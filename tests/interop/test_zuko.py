"""zuko's flows as laws of u: densities, generators, and what training leaves of the uniform law's gap."""

from __future__ import annotations

import math

import pytest
import torch
import zuko

import sdegen
from sdegen.interop import FlowDequantiser

Q = sdegen.Quantized(8, -3.0, 3.0)
MEAN, STD = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.6, 0.4], dtype=torch.float64)
GAUSSIAN = sdegen.Gaussian(MEAN, covariance=torch.diag(STD**2))


def nsf(d=2, context=2, seed=0):
    torch.manual_seed(seed)
    return zuko.flows.NSF(features=d, context=context, transforms=1, hidden_features=[32], passes=2)


def masses():
    edges = (Q.low + Q.cell * torch.arange(Q.levels + 1) - MEAN[:, None]) / STD[:, None]
    return torch.diff(torch.special.ndtr(edges))


def drawn(size, g):
    return torch.stack([torch.multinomial(mass, size, True, generator=g) for mass in masses()], 1)


def gap(n, **options):
    logs = masses().log()
    exact = logs[0][n[:, 0]] + logs[1][n[:, 1]]
    model, solver = GAUSSIAN.model(sdegen.CondOT()), sdegen.ODESolver("rk4", steps=12)
    return float((exact - sdegen.discrete_log_prob(model, n, Q, solver=solver, **options).log_prob).mean())


def test_a_trained_flow_at_one_draw_leaves_a_quarter_of_the_uniform_gap():
    dequantiser, g = FlowDequantiser(nsf(), Q), torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(dequantiser.parameters(), 1e-2)
    for _ in range(150):
        loss = dequantiser.loss(GAUSSIAN.log_prob, drawn(256, g), g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    n = drawn(3000, g)
    uniform, trained = gap(n, generator=g), gap(n, generator=g, dequantiser=dequantiser)
    assert uniform > 0.15
    assert -0.01 < trained < uniform / 4
    assert all(p.requires_grad and p.grad is not None for p in dequantiser.parameters())


@pytest.mark.parametrize(
    "flow",
    [
        nsf(),
        zuko.flows.MAF(features=2, context=2, transforms=2, hidden_features=[8]),
        zuko.flows.NICE(features=2, context=2, transforms=2, hidden_features=[8]),
    ],
    ids=lambda flow: type(flow).__name__,
)
def test_the_density_is_that_of_u(flow):
    """It integrates to one over the cell, as E_r[1/r] = 1 says, and equals the flow's own at v."""
    dequantiser, n = FlowDequantiser(flow.double(), Q), torch.tensor([[3, 5]]).expand(20_000, 2)
    with torch.no_grad():
        u, log_r = dequantiser.sample(n, torch.Generator().manual_seed(0))
        v = torch.special.ndtri(u)
        by_flow = flow((2 * n + 1) / 8.0 - 1).log_prob(v) - torch.distributions.Normal(0.0, 1.0).log_prob(v).sum(1)
    assert bool(((u >= 0) & (u < 1)).all())
    torch.testing.assert_close(log_r, by_flow, rtol=1e-4, atol=1e-4)
    inverse = (-log_r).exp()
    assert abs(float(inverse.mean()) - 1) < 5 * float(inverse.std()) / math.sqrt(20_000)


class Identity(torch.nn.Module):
    """The flow that leaves its noise as it is, or moves it."""

    def __init__(self, mean=0.0):
        super().__init__()
        self.mean = mean

    def forward(self, c):
        base = zuko.distributions.DiagNormal(torch.full((len(c), 2), self.mean, dtype=c.dtype), torch.ones_like(c))
        return zuko.distributions.NormalizingFlow(
            zuko.transforms.DependentTransform(zuko.transforms.IdentityTransform(), 1), base
        )


def test_a_normal_flow_is_the_uniform_law():
    u, log_r = FlowDequantiser(Identity(), Q).sample(torch.zeros(5000, 2), torch.Generator().manual_seed(2))
    torch.testing.assert_close(log_r, torch.zeros(5000), rtol=0, atol=1e-12)
    assert abs(float(u.mean()) - 0.5) < 5 / math.sqrt(12 * 10_000)
    assert abs(float(u.square().mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / 10_000)


@pytest.mark.parametrize("mean", [12.0, -50.0])
def test_u_stays_inside_however_far_the_flow_goes(mean):
    """Phi(12) is 1 and Phi(-50) is 0 to rounding: u is one of [0, 1), and its density finite."""
    u, log_r = FlowDequantiser(Identity(mean), Q).sample(torch.zeros(50, 2))
    assert bool(((u >= 0) & (u < 1)).all())
    assert bool(log_r.isfinite().all())
    assert torch.equal(Q.quantise(Q.spread(torch.zeros(50, 2), u)), torch.zeros(50, 2))


def test_events_features_dtypes_and_generators():
    """Images, features of one's own, a float32 flow on float64 data, and samples that do not know each other."""
    flow = zuko.flows.NSF(features=4, context=1, transforms=1, hidden_features=[8]).float()
    dequantiser = FlowDequantiser(flow, Q, features=lambda n: n.flatten(1).mean(1, keepdim=True))
    n, before = torch.randint(0, 8, (3, 1, 2, 2)), torch.get_rng_state()
    with torch.no_grad():
        u, log_r = dequantiser.sample(n, [torch.Generator().manual_seed(i) for i in range(3)])
        alone = dequantiser.sample(n[2:], [torch.Generator().manual_seed(2)])
    assert torch.equal(before, torch.get_rng_state())
    assert (u.shape, u.dtype, log_r.shape) == (n.shape, torch.float32, (3,))
    torch.testing.assert_close(u[2:], alone[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(log_r[2:], alone[1], rtol=0, atol=1e-5)
    model = sdegen.ScoreModel(lambda x, t: 0 * x, sdegen.CondOT(), "velocity")
    bound = sdegen.discrete_log_prob(model, n, Q, dequantiser=dequantiser, solver=sdegen.ODESolver("rk4", steps=2))
    assert bound.log_prob.dtype is torch.get_default_dtype()


def test_the_loss_is_the_bound_it_lowers():
    n, g = torch.randint(0, 8, (50, 2)), torch.Generator()
    dequantiser = FlowDequantiser(nsf().double(), Q)
    loss = dequantiser.loss(GAUSSIAN.log_prob, n, g.manual_seed(5))
    model, solver = GAUSSIAN.model(sdegen.CondOT()), sdegen.ODESolver("rk4", steps=48)
    bound = sdegen.discrete_log_prob(model, n, Q, dequantiser=dequantiser, solver=solver, generator=g.manual_seed(5))
    torch.testing.assert_close(loss.detach(), -bound.log_prob.mean(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: FlowDequantiser(3, Q), TypeError, "flow must be a flow of zuko.*it is 3"),
        (lambda: FlowDequantiser(nsf(), 256), TypeError, "quantized must be a Quantized.*it is 256"),
        (lambda: FlowDequantiser(nsf(), Q, features=2), TypeError, "features must be a function of n, and it is 2"),
        (
            lambda: FlowDequantiser(zuko.flows.CNF(features=2, context=2, exact=False), Q),
            ValueError,
            "exact=False.*build it with exact=True",
        ),
        (
            lambda: FlowDequantiser(zuko.flows.NCSF(features=2, context=2), Q).sample(torch.zeros(3, 2)),
            TypeError,
            "base must be normal.*BoxUniform",
        ),
        (
            lambda: FlowDequantiser(nsf(d=3), Q).sample(torch.zeros(3, 2)),
            ValueError,
            "n has 2 values a sample, and the flow is one over 3",
        ),
        (
            lambda: FlowDequantiser(nsf(), Q).sample(torch.full((3, 2), 8)),
            ValueError,
            "from 0 to 7, and one value is 8",
        ),
        (
            lambda: FlowDequantiser(nsf(), Q).loss(lambda y: y, torch.zeros(3, 2)),
            ValueError,
            r"log_prob must return shape \(3,\), and it returned \(3, 2\)",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert str(caught.value).endswith(".")
