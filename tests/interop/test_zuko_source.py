"""zuko's flows as sources and priors: densities against autograd, draws by our generators, refusals in a sentence."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import zuko
from torch import nn
from torch.distributions import Normal

import sdegen
from sdegen._fingerprint import fingerprint
from sdegen.interop.zuko import source
from sdegen.nets import MLP

SMALL = {"transforms": 3, "hidden_features": [16]}
ADDED = {"univariate": zuko.transforms.AdditiveTransform, "shapes": [()]}
KINDS = {
    "nice": lambda d: zuko.flows.NICE(features=d, **SMALL, **ADDED),
    "realnvp": lambda d: zuko.flows.RealNVP(features=d, **SMALL),
    "maf": lambda d: zuko.flows.MAF(features=d, **SMALL),
    "nsf": lambda d: zuko.flows.NSF(features=d, **SMALL),
}
TIGHT = sdegen.ODESolver("dopri8", rtol=1e-12)


def flow(kind="nsf", d=4, gain=1.5):
    """A flow that is far from the identity."""
    torch.manual_seed(0)
    made = KINDS[kind](d)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(gain)
    return made


def by_autograd(made, x):
    """log base(f(x)) + log |det df/dx| of x (B, d), the determinant from the Jacobian."""
    f = made().transform
    jacobians = torch.stack([torch.autograd.functional.jacobian(f, row) for row in x])
    return Normal(0.0, 1.0).log_prob(f(x)).sum(1) + torch.linalg.slogdet(jacobians).logabsdet


@pytest.mark.parametrize("kind", KINDS)
def test_densities_are_those_of_autograd_and_draws_are_the_inverse_of_our_normals(kind):
    made, x = flow(kind), 1.5 * torch.randn(16, 4)
    law = source(made)
    torch.testing.assert_close(law.log_prob(x), by_autograd(made, x), rtol=0, atol=1e-10)
    drawn = law.sample((64, 4), torch.Generator().manual_seed(5))
    z = torch.randn(64, 4, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(made().transform(drawn), z, rtol=0, atol=1e-10)
    assert float((drawn - z).abs().mean()) > 0.05
    if kind == "nice":
        torch.testing.assert_close(made().transform.call_and_ladj(x)[1], torch.zeros(16), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_density(kind):
    """E_q[ phi(x)/q(x) ] = 1 for a density phi inside q."""
    law = source(flow(kind, 2, gain=1.0))
    x = law.sample((20_000, 2), torch.Generator().manual_seed(1))
    inside = sdegen.Gaussian(x.mean(0), 0.5 * x.std(0)).log_prob(x)
    ratio = (inside - law.log_prob(x).detach()).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(len(x)) < 0.1


@pytest.mark.parametrize("event", [(4,), (1, 2, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_under_a_linear_flow_the_density_has_its_closed_form(kind, event):
    """dx/dt = A x from source to data: log p(x) = log q(e^-A x) - tr A."""
    made = flow(kind)
    law, A, x = source(made), 0.4 * torch.randn(4, 4), torch.randn(8, *event)
    z = x.flatten(1) @ torch.linalg.matrix_exp(-A).T
    expected = (by_autograd(made, z) - A.trace()).detach()

    def field(x, t):
        return (x.flatten(1) @ A.T).reshape(x.shape)

    found = sdegen.log_prob(sdegen.vector_field(field, prior=law), x, TIGHT)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    likelihood = sdegen.log_likelihood(sdegen.vector_field(field), x, TIGHT, prior=law)
    torch.testing.assert_close(likelihood.log_prob, expected, rtol=0, atol=1e-9)


def test_a_flow_matching_model_learns_to_carry_the_flow_to_the_data():
    made = flow("realnvp", 2, gain=1.0)
    path = sdegen.Interpolant(sdegen.CondOT(), source=source(made))
    model, g = sdegen.ScoreModel(MLP(2, 48, 2), path, "velocity"), torch.Generator().manual_seed(0)
    data = sdegen.GaussianMixture([[-3.0, 1.0], [2.0, 2.0]], 0.3)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(150):
        loss = sdegen.loss(model, data.sample(128, g), generator=g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(p.grad is None for p in made.parameters())
    assert not set(made.parameters()) & set(model.parameters())
    x = sdegen.sample(model, (1000, 2), sdegen.Adams(12), generator=g)
    start = path.source.sample((1000, 2), g)
    assert data.log_prob(x).mean() > -4 > -20 > data.log_prob(start).mean()
    held_out = data.sample(64, g)
    assert (data.log_prob(held_out) - sdegen.log_prob(model, held_out, sdegen.Adams(40))).mean().abs() < 1


def test_generators_are_honoured():
    law, before = source(flow(d=4)), torch.get_rng_state()
    several = [torch.Generator().manual_seed(i) for i in range(3)]
    x = law.sample((3, 1, 2, 2), several)
    alone = law.sample((1, 1, 2, 2), torch.Generator().manual_seed(2))
    torch.testing.assert_close(x[2:], alone, rtol=0, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), before)
    again = [law.sample((5, 4), torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*again)
    torch.manual_seed(3)
    drawn = law.sample((5, 4))
    assert torch.equal(law.sample((5, 4), torch.Generator().manual_seed(3)), drawn)
    assert law.sample((0, 4), []).shape == (0, 4)
    model = sdegen.ScoreModel(lambda x, t: 0 * x, sdegen.Interpolant(source=law), "velocity")
    carried = sdegen.sample(model, (3, 1, 2, 2), sdegen.Adams(3), generator=sdegen.seeds(3))
    torch.testing.assert_close(carried, law.sample((3, 1, 2, 2), sdegen.seeds(3)), rtol=0, atol=1e-12)


def test_the_base_need_not_be_standard():
    """N(3, 0.5^2) under the map f(x) = 2 x is N(1.5, 0.25^2)."""

    class Scaled(nn.Module):
        def forward(self):
            base = zuko.distributions.DiagNormal(torch.full((2,), 3.0), torch.full((2,), 0.5))
            f = zuko.transforms.DependentTransform(torch.distributions.AffineTransform(0.0, 2.0), 1)
            return zuko.distributions.NormalizingFlow(f, base)

    law, exact, x = source(Scaled()), sdegen.Gaussian([1.5, 1.5], 0.25), torch.randn(9, 2)
    torch.testing.assert_close(law.log_prob(x), exact.log_prob(x), rtol=0, atol=1e-12)
    z = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    drawn = law.sample((9, 2), torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, 1.5 + 0.25 * z, rtol=0, atol=1e-12)


def test_draws_have_no_gradient_and_densities_have():
    made, x = flow(d=2), torch.randn(5, 2, requires_grad=True)
    law = source(made)
    assert not law.sample((5, 2)).requires_grad
    law.log_prob(x).sum().backward()
    assert float(x.grad.abs().min()) > 0
    assert any(float(p.grad.abs().max()) > 0 for p in made.parameters())


def test_a_flow_in_single_precision_serves_a_model_in_double():
    law = source(flow(d=2).float())
    path, x = sdegen.Interpolant(source=law), torch.randn(4, 2)
    assert (law.sample((4, 2)).dtype, path.noise_like(x).dtype) == (torch.float32, torch.float64)
    assert law.log_prob(x).dtype is torch.float64
    torch.testing.assert_close(law.log_prob(x), by_autograd(law.flow.double(), x), rtol=0, atol=1e-4)


def test_a_source_is_known_by_its_weights(tmp_path):
    made = flow(d=2)
    path = sdegen.Interpolant(source=source(made))
    assert repr(path) == "Interpolant(path=CondOT(sigma_min=0.0), source=FlowSource(NSF over 2 values))"
    twin = copy.deepcopy(path)
    assert fingerprint(twin) == fingerprint(path)
    with torch.no_grad():
        next(twin.source.flow.parameters()).add_(1e-3)
    assert fingerprint(twin) != fingerprint(path)
    file, net = tmp_path / "model.safetensors", MLP(2, 8, 1)
    sdegen.save(file, sdegen.ScoreModel(net, path, "velocity"))
    assert sdegen.load(file, MLP(2, 8, 1), path=path).path is path
    with pytest.raises(ValueError, match=r"was saved with a path of your own.*give it again, as path="):
        sdegen.load(file, MLP(2, 8, 1))


def test_a_conditional_flow_is_a_law_that_an_encoder_may_return():
    """log q(z_K | x) = log q_0(z_0 | x) - sum of log |det|, with gradients to the flow and to its features."""
    torch.manual_seed(0)
    made, features = zuko.flows.MAF(features=2, context=3, **SMALL), nn.Linear(5, 3)
    c = features(torch.randn(6, 5))
    law = made(c)
    z = law.rsample()
    assert (z.shape, law.log_prob(z).shape) == ((6, 2), (6,))
    f = law.transform
    jacobian = torch.autograd.functional.jacobian(lambda z: f(z).sum(0), z).permute(1, 0, 2)
    expected = Normal(0.0, 1.0).log_prob(f(z)).sum(1) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(law.log_prob(z), expected, rtol=0, atol=1e-10)

    class OfOne(nn.Module):
        """The law of the third x, which is one without a context."""

        def forward(self):
            return made(c[2])

    torch.testing.assert_close(source(OfOne()).log_prob(z)[2], expected[2], rtol=0, atol=1e-10)
    (law.log_prob(z) - sdegen.Gaussian([0.0, 0.0], 1.0).log_prob(z)).mean().backward()
    assert float(features.weight.grad.abs().max()) > 0
    assert any(float(p.grad.abs().max()) > 0 for p in made.parameters())
