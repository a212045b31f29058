"""log_prob against closed forms: mixtures on every path, the Gaussian pushforward, batches, probes, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from often import often
from problems import PATHS, OwnFlow, mixture64, ring
from torch import nn

import sdegen

TIGHT = sdegen.ODESolver("dopri8", rtol=1e-9)
# without those of a user, whose clocks are inverted by bisection at each of thousands of queries
CLOSED = {name: path for name, path in PATHS.items() if not name.startswith("own")}
OFTEN = ("vp", "subvp", "ve", "ddpm", "condot", "ve reversed")
every_path = pytest.mark.parametrize("path", often(CLOSED, *OFTEN))


def model_density(target, path, x):
    """DESIGN section 5: the density of the exact model under the path's own prior, from its latents."""
    z = sdegen.encode(target.model(path), x, sdegen.ODESolver("dopri8", rtol=1e-12))
    gap = path.prior.log_prob(z) - target.marginal(path, path.t_noise).log_prob(z)
    return target.marginal(path, path.t_data).log_prob(x) + gap


@every_path
def test_eight_modes_in_the_plane(path):
    path, target = PATHS[path], ring()
    x = target.marginal(path, path.t_data).sample(64)
    model, data = target.model(path), target.marginal(path, path.t_data).log_prob(x)
    assert float((sdegen.log_prob(model, x, TIGHT) - model_density(target, path, x)).abs().max()) < 1e-8
    exact_prior = target.marginal(path, path.t_noise)
    assert float((sdegen.log_prob(model, x, TIGHT, prior=exact_prior) - data).abs().max()) < 1e-8
    if path == sdegen.CondOT():  # its prior is the exact one: the data density, with no cut-off at either end
        assert float((sdegen.log_prob(model, x, TIGHT) - target.log_prob(x)).abs().max()) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("path", ["vp", "condot"])
def test_full_covariances_in_64_dimensions(path):
    path, target = PATHS[path], mixture64()
    x = target.sample(16)
    exact, latents = target.marginal(path, path.t_noise), []

    class Spy:
        """The exact prior, which also keeps the latents: both densities from one solve."""

        def log_prob(self, z):
            latents.append(z)
            return exact.log_prob(z)

    data = sdegen.log_prob(target.model(path), x, TIGHT, prior=Spy())
    assert float((data - target.log_prob(x)).abs().max()) < 1e-6
    own = data - exact.log_prob(latents[0]) + path.prior.log_prob(latents[0])
    assert float((own - model_density(target, path, x)).abs().max()) < 1e-6


@every_path
@pytest.mark.filterwarnings(
    "ignore:.*reached its last round:sdegen.AccuracyWarning"
)  # of outliers where u(t) has kinks
def test_defaults_and_outliers_in_the_batch(path):
    path, target = PATHS[path], ring()
    model, x = target.model(path), target.marginal(path, path.t_data).sample(64)
    alone = sdegen.log_prob(model, x)
    assert float((alone - model_density(target, path, x)).abs().max()) < 1e-3
    outliers = torch.tensor([[20.0, 0.0], [0.0, -20.0], [14.0, 14.0]])
    assert float((sdegen.log_prob(model, torch.cat([x, outliers]))[:-3] - alone).abs().max()) < 1e-3


def test_fixed_steps_do_not_feel_the_batch_at_all():
    model, x = ring().model(sdegen.VPSDE()), ring().sample(6)
    solver = sdegen.ODESolver("rk4", steps=40)
    batch = sdegen.log_prob(model, x, solver)
    alone = torch.cat([sdegen.log_prob(model, row[None], solver) for row in x])
    torch.testing.assert_close(batch, alone, rtol=1e-13, atol=1e-13)
    assert float((batch - sdegen.log_prob(model, x, TIGHT)).abs().max()) < 1e-2


def test_gaussian_pushforward_is_the_frozen_one():
    """THEORY 11.6 with sdegen's prior N(0, sigma_T^2): p_ODE = N(m - M_T sqrt(S/V_T), sigma_T^2 S/V_T)."""
    path, S, m = sdegen.VPSDE(), 0.25, 0.8
    alpha, sigma = float(path.alpha(1.0)), float(path.sigma(1.0))
    V = alpha**2 * S + sigma**2
    law = torch.distributions.Normal(m - alpha * m * math.sqrt(S / V), sigma * math.sqrt(S / V))
    unit = torch.distributions.Normal(0.7973713228, math.sqrt(0.2500080976))
    x = torch.linspace(-1, 3, 9)[:, None]
    model = sdegen.Gaussian([m], math.sqrt(S)).model(path)
    torch.testing.assert_close(sdegen.log_prob(model, x, TIGHT), law.log_prob(x)[:, 0], rtol=0, atol=1e-9)

    class Unit:
        def log_prob(self, z):
            return torch.distributions.Normal(0.0, 1.0).log_prob(z)[:, 0]

    torch.testing.assert_close(
        sdegen.log_prob(model, x, TIGHT, prior=Unit()), unit.log_prob(x)[:, 0], rtol=0, atol=1e-8
    )


def test_density_integrates_to_one():
    class Net(nn.Module):
        def forward(self, x, t):
            return 0.4 * torch.tanh(x @ torch.tensor([[1.0, 0.8], [-0.3, 0.5]])) * (1 + t[:, None])

    model = sdegen.ScoreModel(Net(), sdegen.CondOT(), "velocity")
    axis = torch.linspace(-9, 9, 91)
    grid = torch.cartesian_prod(axis, axis)
    density = sdegen.log_prob(model, grid, sdegen.ODESolver("rk4", steps=20)).exp()
    assert abs(float(density.sum()) * 0.2**2 - 1) < 1e-6


def test_both_time_conventions_agree():
    class Reversed(sdegen.GaussianPath):
        """CondOT with data at t = 0."""

        def alpha(self, t):
            return 1 - t

        def sigma(self, t):
            return t * 1.0

    target, x = ring(), ring().sample(8)
    solver = sdegen.ODESolver("rk4", steps=30)
    one, two = target.model(sdegen.CondOT()), target.model(Reversed())
    torch.testing.assert_close(sdegen.log_prob(one, x, solver), sdegen.log_prob(two, x, solver), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sdegen.encode(one, x, solver), sdegen.encode(two, x, solver), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.CondOT(), OwnFlow()], ids=["vp", "condot", "own"])
def test_part_of_the_path(path):
    """log_prob of x_t at u[0], with the marginal at u[1] as the prior, is the marginal's density at u[0]."""
    target, (u_from, u_to) = ring(), (0.2, 0.7)
    t_from, t_to = (float(path.time(u)) for u in (u_from, u_to))
    x = target.marginal(path, t_from).sample(16)
    logp = sdegen.log_prob(target.model(path), x, TIGHT, u=(u_from, u_to), prior=target.marginal(path, t_to))
    torch.testing.assert_close(logp, target.marginal(path, t_from).log_prob(x), rtol=0, atol=1e-8)
    solver = sdegen.ODESolver("rk4", steps=8)
    prior = torch.distributions.Normal(0.0, float(path.sigma(torch.tensor(t_to))))
    z = sdegen.solve(target.model(path), x, solver, to="noise", u=(u_from, u_to)).x
    own = sdegen.log_prob(target.model(path), x, solver, u=(u_from, u_to))
    exact = sdegen.log_prob(target.model(path), x, solver, u=(u_from, u_to), prior=target.marginal(path, t_to))
    expected = exact - target.marginal(path, t_to).log_prob(z) + prior.log_prob(z).sum(1)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-9)


def test_encode_and_decode_are_inverse():
    for path in (sdegen.VPSDE(), sdegen.CondOT(), sdegen.VESDE()):
        model, x = ring().model(path), ring().sample(8)
        solver = sdegen.ODESolver("dopri8", rtol=1e-10)
        z = sdegen.encode(model, x, solver)
        torch.testing.assert_close(sdegen.decode(model, z, solver), x, rtol=0, atol=1e-7)
        assert abs(float(z.std() / path.prior.std) - 1) < 0.6  # z is x at t_noise, unscaled


def test_hutchinson_is_unbiased_and_narrows():
    """The mean over many probe draws meets the exact value; 16 probes have a quarter of one probe's deviation."""
    model, x = ring().model(sdegen.VPSDE()), ring().sample(1).expand(2000, 2)
    solver = sdegen.ODESolver("rk4", steps=20)
    exact = float(sdegen.log_prob(model, x[:1], solver))
    spreads = []
    for probes in (1, 16):
        g = torch.Generator().manual_seed(probes)
        logp = sdegen.log_prob(model, x, solver, trace=sdegen.Hutchinson(probes), generator=g)
        spreads.append(float(logp.std()))
        assert abs(float(logp.mean()) - exact) < 5 * spreads[-1] / math.sqrt(len(x))
    assert abs(spreads[0] / spreads[1] / 4 - 1) < 0.2


def test_probes_belong_to_their_sample():
    model, x = ring().model(sdegen.VPSDE()), ring().sample(5)
    solver, trace = sdegen.ODESolver("rk4", steps=10), sdegen.Hutchinson(3)

    def seeded(*seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    batch = sdegen.log_prob(model, x, solver, trace=trace, generator=seeded(*range(5)))
    alone = sdegen.log_prob(model, x[2:3], solver, trace=trace, generator=seeded(2))
    torch.testing.assert_close(batch[2:3], alone, rtol=1e-12, atol=1e-12)


class Small(nn.Module):
    def __init__(self, d=2, wrap=lambda f: f, scale=1.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(d + 1, 32), nn.ReLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, d)
        ).double()
        self.wrap, self.scale = wrap, scale

    def forward(self, x, t):
        return self.scale * self.wrap(lambda x: self.layers(torch.cat([x, t[:, None]], 1)))(x)


def detached(f):
    return lambda x: f(x.detach())


def without_grad(f):
    return torch.no_grad()(f)


def through_numpy(f):
    return lambda x: f(torch.from_numpy(x.detach().numpy()))


def half_detached(f):
    return lambda x: 0.5 * f(x) + 0.5 * f(x.detach())


@pytest.mark.parametrize("wrap", [detached, without_grad, through_numpy, half_detached])
@pytest.mark.parametrize("predicts", ["eps", "v"])
def test_a_network_that_hides_its_gradient_is_refused(wrap, predicts):
    model = sdegen.ScoreModel(Small(wrap=wrap, scale=3.0), sdegen.VPSDE(), predicts)
    with pytest.raises(ValueError, match="blocks gradients"):
        sdegen.log_prob(model, torch.randn(4, 2))


@pytest.mark.parametrize(
    ("predicts", "std", "u"),
    [("data", 0.1, (1e-4, 0.99)), ("data", 0.01, (1e-4, 0.99)), ("eps", 10.0, None), ("eps", 100.0, None)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hidden_gradients_are_found_wherever_on_the_path_they_matter(predicts, std, u, dtype):
    """A data network on narrow data has its Jacobian near u = 0, an eps network on wide data near u = 1."""
    path, target = sdegen.VPSDE(), sdegen.Gaussian(torch.zeros(8), std)
    exact, x = target.model(path), target.sample(8).to(dtype)
    honest = sdegen.ScoreModel(getattr(exact, predicts), path, predicts)
    solver = sdegen.ODESolver("rk4", steps=8)
    sdegen.log_prob(honest, x, solver, u=u)
    for share in (1.0, 0.1) if std < 100 else (1.0,):  # a tenth of an almost constant network is lost in rounding

        def net(x, t, share=share):
            f = getattr(exact, predicts)
            return (1 - share) * f(x, t) + share * f(x.detach(), t)

        with pytest.raises(ValueError, match="blocks gradients"):
            sdegen.log_prob(sdegen.ScoreModel(net, path, predicts), x, solver, u=u)


def test_conditions_of_any_kind_reach_the_network_whole():
    def net(x, t, *, c, table):
        return torch.tanh(x + c["e"] + table[0].sum())

    model = sdegen.ScoreModel(net, sdegen.VPSDE(), "v")
    x, c = torch.randn(16, 3), {"e": torch.randn(16, 3)}
    cond = {"c": c, "table": torch.randn(16, 16)}
    whole = sdegen.log_prob(model, x, sdegen.ODESolver("rk4", steps=4), cond=cond)
    part = {"c": {"e": c["e"][:4]}, "table": cond["table"]}
    torch.testing.assert_close(whole[:4], sdegen.log_prob(model, x[:4], sdegen.ODESolver("rk4", steps=4), cond=part))
    with torch.inference_mode():
        shift = torch.rand(16, 3)
    other = sdegen.ScoreModel(lambda x, t, shift: torch.tanh(x + shift), sdegen.VPSDE(), "v")
    assert sdegen.log_prob(other, x, sdegen.ODESolver("rk4", steps=2), cond={"shift": shift}).shape == (16,)


def test_far_data_and_random_networks():
    line = nn.Linear(2, 2, dtype=torch.float32)
    honest = sdegen.ScoreModel(lambda x, t: line(x), sdegen.VPSDE(), "v")
    for size in (1e3, 1e6):
        x = size * torch.randn(16, 2, dtype=torch.float32)
        sdegen.log_prob(honest, x, sdegen.ODESolver("rk4", steps=4))
    drop = nn.Dropout(0.5)
    hidden = sdegen.ScoreModel(lambda x, t: drop(x), sdegen.VPSDE(), "v")
    with pytest.warns(UserWarning, match="Dropout"), pytest.raises(ValueError, match="two different answers"):
        sdegen.log_prob(hidden, torch.randn(16, 2))


def test_what_a_prior_returns_is_checked():
    model, x = ring().model(sdegen.VPSDE()), torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        sdegen.log_prob(model, x, sdegen.ODESolver("rk4", steps=2), prior=torch.distributions.Normal(0.0, 1.0))
    turn = 300 * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float32)
    wild = sdegen.ScoreModel(lambda x, t: x @ turn, sdegen.VPSDE(), "v")
    with pytest.raises(sdegen.NonFiniteError, match="2 of 2"):
        sdegen.log_prob(wild, 1e3 * torch.ones(2, 2, dtype=torch.float32), sdegen.ODESolver("rk4", steps=3))


def test_a_target_first_used_in_inference_mode_still_has_gradients():
    target = sdegen.Gaussian(torch.zeros(2), covariance=torch.eye(2))
    with torch.inference_mode():
        target.log_prob(torch.zeros(1, 2, dtype=torch.float32))
    x = torch.zeros(1, 2, dtype=torch.float32, requires_grad=True)
    target.log_prob(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(1, 2, dtype=torch.float32))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_honest_networks_are_not_refused(scale, dtype):
    model = sdegen.ScoreModel(Small(scale=scale).to(dtype), sdegen.VPSDE(), "v")
    solver = sdegen.ODESolver("rk4", steps=4)
    assert sdegen.log_prob(model, torch.randn(16, 2, dtype=dtype), solver).dtype == dtype


def test_inference_mode_and_gradients_outside_make_no_difference():
    model, x = sdegen.ScoreModel(Small(), sdegen.VPSDE(), "v"), torch.randn(4, 2)
    solver = sdegen.ODESolver("rk4", steps=10)
    plain = sdegen.log_prob(model, x, solver)
    with torch.inference_mode():
        inside = sdegen.log_prob(model, x * 1.0, solver)
    assert torch.equal(inside, plain)
    assert not sdegen.log_prob(model, x.requires_grad_(), solver).requires_grad


def test_float32_stays_close_to_float64():
    target, x = ring(), ring().sample(64)
    wide = sdegen.log_prob(target.model(sdegen.VPSDE()), x)
    narrow = sdegen.log_prob(target.model(sdegen.VPSDE()), x.float(), sdegen.ODESolver("dopri8", rtol=1e-5))
    assert narrow.dtype == torch.float32
    assert float((narrow.double() - wide).abs().max()) < 2e-3


def test_events_of_any_shape_and_auto_trace():
    target = sdegen.Gaussian(torch.zeros(2, 10, 15), 0.5)  # 300 dimensions: "auto" takes probes
    x = target.sample(3)
    logp = sdegen.log_prob(target.model(sdegen.CondOT()), x, sdegen.ODESolver("dopri5", rtol=1e-7))
    # an isotropic Gaussian's Jacobian is a multiple of the identity, where Rademacher probes are exact
    torch.testing.assert_close(logp, target.log_prob(x), rtol=0, atol=1e-3)
    small = sdegen.Gaussian(torch.zeros(2, 3, 4), 0.5)
    y = small.sample(3)
    exact = sdegen.log_prob(small.model(sdegen.CondOT()), y, TIGHT, trace="exact")
    torch.testing.assert_close(exact, small.log_prob(y), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"solver": sdegen.SDESolver(steps=3)}, TypeError, "ODESolver"),
        ({"trace": "hutchinson"}, ValueError, "'hutchinson'"),
        ({"trace": 3}, TypeError, "3"),
        ({"prior": "normal"}, TypeError, "'normal'"),
        ({"u": (0.9, 0.1)}, ValueError, "0.9"),
        ({"u": (0.1, 0.999)}, ValueError, "0.999"),
        ({"u": 0.5}, TypeError, "0.5"),
        ({"generator": torch.Generator}, TypeError, "Generator"),
    ],
)
def test_bad_options(options, error, says):
    calls = []
    model = sdegen.ScoreModel(lambda x, t: calls.append(1) or x, sdegen.VPSDE())
    with pytest.raises(error, match=says):
        sdegen.log_prob(model, torch.zeros(2, 2), **options)
    assert not calls
