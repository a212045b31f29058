"""Flow matching: paths in its clock, models moved between paths, couplings, rectification, fields without a path."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from problems import PATHS, OwnFlow, affine_law, ring, slope, start_law, two_modes
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import sdegen
from sdegen.datasets import eight_gaussians, two_moons
from sdegen.nets import MLP

VP, OT = sdegen.VPSDE(), sdegen.CondOT()
TIGHT = sdegen.ODESolver("dopri8", rtol=1e-10)
FLOWS = {
    "condot": OT,
    "condot with sigma_min": sdegen.CondOT(0.05),
    "trigonometric": sdegen.Trigonometric(),
    "condot backwards": sdegen.Retimed(OT, 0.0, 1.0),
    "vp on [1, 3]": sdegen.Retimed(VP, 3.0, 1.0),
    "interpolant": sdegen.Interpolant(sdegen.Trigonometric()),
}


class Exact(nn.Module):
    """The exact prediction of a mixture, dressed as a network."""

    def __init__(self, mixture: sdegen.GaussianMixture, path: sdegen.GaussianPath, predicts: str):
        super().__init__()
        self.answer = getattr(mixture.model(path), predicts)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.answer(x, t)


def network(mixture, path, predicts) -> sdegen.ScoreModel:
    return sdegen.ScoreModel(Exact(mixture, path, predicts), path, predicts)


@pytest.mark.parametrize("path", FLOWS.values(), ids=FLOWS)
def test_slopes_clock_and_scale_of_the_flows(path):
    t = torch.linspace(path.t_noise, path.t_data, 301)[1:-1].requires_grad_()
    slopes = path.slopes(t)
    for value, given in ((path.alpha(t), slopes.alpha), (path.sigma(t), slopes.sigma)):
        (true,) = torch.autograd.grad(value.sum(), t)
        torch.testing.assert_close(given, true, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(slopes.variance, 2 * path.sigma(t) * slopes.sigma, rtol=1e-11, atol=1e-12)
    u = torch.linspace(*path.ends, 301)
    torch.testing.assert_close(path.clock(path.time(u)), u, rtol=0, atol=1e-13)
    torch.testing.assert_close(path.alpha(path.time(u)) + path.sigma(path.time(u)), path.scale(u), rtol=1e-13, atol=0)
    assert path.alpha(path.t_data) == 1
    if path.ends[1] == 1:
        assert (float(path.alpha(path.t_noise)), float(path.sigma(path.t_noise))) == (0, 1)


def test_the_trigonometric_flow_is_the_one_a_user_would_write():
    own, given, t = OwnFlow(), sdegen.Trigonometric(), torch.linspace(0, 1, 101)
    torch.testing.assert_close(given.alpha(t), own.alpha(t), rtol=0, atol=1e-15)
    torch.testing.assert_close(given.sigma(t), own.sigma(t), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", ["eps", "score", "data", "v"])
def test_a_velocity_says_everything(name):
    mixture, t = ring(), torch.tensor([0.1, 0.37, 0.5, 0.9])
    x = mixture.marginal(OT, 0.5).sample(4)
    model, exact = network(mixture, OT, "velocity"), mixture.model(OT)
    torch.testing.assert_close(getattr(model, name)(x, t), getattr(exact, name)(x, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_floor_of_the_flow_matching_loss(t):
    """E|target - v|^2 = sum of S_i / (t^2 S_i + (1-t)^2) with the exact velocity (THEORY 7.2, data at t = 1)."""
    S = torch.tensor([1.0, 0.25, 0.01])
    data = sdegen.Gaussian([0.8, -0.3, 0.1], S.sqrt())
    model = network(data, OT, "velocity")
    each = sdegen.loss(model, data.sample(200_000), t=t, reduction="none")
    floor = float((S / (t**2 * S + (1 - t) ** 2)).mean())
    assert abs(float(each.mean()) - floor) < 5 * float(each.std()) / math.sqrt(len(each))


# One model on several paths


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


def test_log_densities_agree_once_the_prior_does_and_differ_by_the_reported_gap():
    mixture = ring()
    x = mixture.sample(64, torch.Generator().manual_seed(0))
    exact_prior, own_prior = {}, {}
    for name, path in {"vp": VP, "condot": OT}.items():
        model = network(mixture, path, "v")
        exact_prior[name] = sdegen.log_prob(model, x, TIGHT, prior=mixture.marginal(path, path.t_noise))
        own_prior[name] = sdegen.log_prob(model, x, TIGHT)
    torch.testing.assert_close(exact_prior["vp"], exact_prior["condot"], rtol=0, atol=1e-7)
    torch.testing.assert_close(exact_prior["vp"], mixture.log_prob(x), rtol=0, atol=1e-7)
    z = sdegen.encode(mixture.model(VP), x, TIGHT)
    gap = VP.prior.log_prob(z) - mixture.marginal(VP, VP.t_noise).log_prob(z)
    torch.testing.assert_close(own_prior["vp"] - own_prior["condot"], gap, rtol=0, atol=1e-7)
    assert 0.3e-4 < float(gap.abs().max()) < 3e-4


@pytest.mark.parametrize("path", [*PATHS.values(), sdegen.Trigonometric(), sdegen.Retimed(OT, 0.0, 1.0)], ids=repr)
def test_encode_and_decode_are_inverse(path):
    model = ring().model(path)
    x = ring().marginal(path, path.t_data).sample(64)
    torch.testing.assert_close(sdegen.decode(model, sdegen.encode(model, x, TIGHT), TIGHT), x, rtol=0, atol=1e-7)


def test_encode_on_one_path_and_decode_on_another():
    x = ring().sample(64)
    z = sdegen.encode(ring().model(VP), x, TIGHT, u=(0.0, 0.99)) / VP.scale(0.99) * OT.scale(0.99)
    torch.testing.assert_close(sdegen.decode(ring().model(OT), z, TIGHT, u=(0.99, 0.0)), x, rtol=0, atol=1e-9)


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
    with pytest.raises(ValueError, match="trained between the clocks"):
        sdegen.decode(ve.on(VP), x, u=(0.9, 0.001))
    with pytest.raises(ValueError, match="use it on a path that stays there"):
        sdegen.vlb(vp.on(OT), x, steps=10)
    with pytest.raises(TypeError, match="path must be a GaussianPath"):
        vp.on("condot")
    assert not calls
    assert sdegen.sample(vp.on(OT), (3, 2), sdegen.SDESolver("euler", 4), u=(end, 0.0)).shape == (3, 2)
    assert ring().model(VP).on(OT).clocks == (0, 1)


def test_both_clocks_give_the_same_samples():
    """Data at t = 1, and the same flow read backwards: dx/dt changes its sign, and nothing else."""
    mixture = ring()
    forward = network(mixture, OT, "velocity")
    backward = sdegen.ScoreModel(
        lambda x, t: -mixture.model(OT).velocity(x, 1 - t), sdegen.Retimed(OT, 0.0, 1.0), "velocity"
    )
    x_T, noise = torch.randn(64, 2), torch.randn(30, 64, 2)
    for solver, given in ((sdegen.ODESolver("rk4", steps=30), None), (sdegen.SDESolver("euler", 30), noise)):
        one, other = (sdegen.solve(m, x_T, solver, noise=given).x for m in (forward, backward))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


# Noise added to a flow


PROFILES = {f"kappa {k}": (lambda u, k=k: torch.sqrt(2 * k * u)) for k in (0.25, 1.0, 4.0)} | {"default": None}


@pytest.mark.parametrize("w", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize(("method", "steps", "order"), [("euler", (512, 1024, 2048), 1), ("srk", (64, 128, 256), 2)])
def test_every_noise_profile_keeps_the_law(method, steps, order, w):
    """Exact affine laws on N(0.8, 0.25), CondOT from end to end: mean and variance at the order of the method."""
    errors = []
    for n in steps:
        mean, variance = affine_law(OT, sdegen.SDESolver(method, n, w=w, grid=sdegen.PowerGrid(2)), 0.25, 0.8, n)
        errors.append((abs(mean - 0.8), abs(variance - 0.25)))
    for error in zip(*errors, strict=True):
        assert max(error) < 0.02
        if max(error) > 1e-12:  # at kappa = 1 and for the mean some schemes have no error at all
            assert slope(list(steps), list(error)) > order - 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [0.25, 1.0, 4.0])
def test_stochastic_flow_sampling_passes_an_energy_test(kappa):
    """Energy distance to exact draws against 999 permutations, significance 1/1000; the first mode alone would fail."""
    mixture, n = two_modes(), 600
    g = torch.Generator().manual_seed(5)
    solver = sdegen.SDESolver("srk", 100, w=lambda u: torch.sqrt(2 * kappa * u))
    ours = sdegen.sample(mixture.model(OT), (n, 1), solver, generator=g, dtype=torch.float64)
    true = mixture.sample(n, g)
    assert energy_rank(ours, true, g) < 0.999
    assert energy_rank(ours.abs(), true, g) == 1.0


def energy_rank(x: Tensor, y: Tensor, g: torch.Generator, permutations: int = 999) -> float:
    """The share of permuted pooled samples whose energy statistic lies below the one observed."""
    pooled = torch.cat([x, y])
    distance = torch.cdist(pooled, pooled)
    sign = torch.cat([torch.ones(len(x)), -torch.ones(len(y))])
    observed = -(sign @ distance @ sign)
    shuffled = sign[torch.stack([torch.randperm(len(pooled), generator=g) for _ in range(permutations)])]
    return float((-((shuffled @ distance) * shuffled).sum(1) < observed).double().mean())


# Couplings


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


class EightGaussians:
    """A source of the user's."""

    def sample(self, shape, generator=None):
        return eight_gaussians(shape[0], generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
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


def test_data_to_data_has_no_score():
    path = sdegen.Interpolant(OT, EightGaussians())
    calls = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return torch.zeros_like(x)

    model = sdegen.ScoreModel(net, path, "velocity")
    x = torch.randn(4, 2)
    for refused in (
        lambda: model.score(x, 0.5),
        lambda: sdegen.ScoreModel(net, path, "score"),
        lambda: sdegen.sample(model, (4, 2), sdegen.SDESolver("euler", 5)),
        lambda: sdegen.sample(model, (4, 2), sdegen.Ancestral(5)),
        lambda: sdegen.sample(model, (4, 2), sdegen.DDIM(5, eta=0.5)),
        lambda: sdegen.sample(model.on(sdegen.Trigonometric()), (4, 2), sdegen.SDESolver("euler", 5), x_T=x),
        lambda: sdegen.vlb(model, x, steps=5),
        lambda: sdegen.GaussianMixture([[0.0, 0.0]], 1.0).model(path),
        lambda: sdegen.sample(model, (4, 2), sdegen.ODESolver(), u=(0.5, 0.0)),
        lambda: sdegen.loss(sdegen.ScoreModel(net, OT, "velocity"), x, coupling=sdegen.OptimalTransport()),
        lambda: sdegen.Interpolant(VP, EightGaussians()),
    ):
        with pytest.raises(ValueError, match=r"\."):
            refused()
    with pytest.raises(TypeError, match="log_prob"):
        sdegen.log_prob(model, x)
    assert not calls
    g = torch.Generator().manual_seed(1)
    start = eight_gaussians(4, generator=torch.Generator().manual_seed(1))
    still = sdegen.sample(model, (4, 2), sdegen.ODESolver("euler", steps=3), generator=g, dtype=torch.float64)
    torch.testing.assert_close(still, start, rtol=0, atol=1e-14)
    assert torch.equal(sdegen.sample(model, (4, 2), sdegen.DDIM(3), x_T=x, dtype=torch.float64), x)


# Straightness and rectification


def test_straightness_of_a_gaussian_flow_has_a_closed_form():
    """N(0, s^2): y(u) = y(1) sqrt(q^2 s^2 + u^2), so S = y(1)^2 (integral of (dc/du)^2 - (1 - s)^2)."""
    s = 0.3
    model = sdegen.Gaussian([0.0], s).model(OT)
    u = torch.linspace(0, 1, 200_001)
    c = torch.sqrt((1 - u) ** 2 * s**2 + u**2)
    bend = torch.trapezoid(((u - (1 - u) * s**2) / c) ** 2, u) - (1 - s) ** 2
    z = torch.tensor([[1.0], [-2.0]])
    fine = sdegen.ODESolver("rk4", steps=400, grid=sdegen.PowerGrid(1))
    for solver, tolerance in ((None, 4e-4), (fine, 2e-5)):
        given = sdegen.straightness(model, z, solver)
        torch.testing.assert_close(given, bend * z[:, 0] ** 2, rtol=tolerance, atol=0)
    point = sdegen.vector_field(lambda x, t: torch.full_like(x, 0.7))
    assert float(sdegen.straightness(point, z).max()) < 1e-20


@pytest.mark.slow
def test_rectification_straightens():
    torch.set_default_dtype(torch.float32)
    bends = []
    model = None
    for round_ in range(2):
        torch.manual_seed(round_)
        teacher = model
        model = sdegen.ScoreModel(MLP(2, 64), OT if teacher is None else sdegen.Interpolant(), "velocity")
        optimiser = torch.optim.Adam(model.parameters(), 4e-3)
        z = torch.randn(4000, 2)
        x = two_moons(4000) if teacher is None else sdegen.rectify(teacher, z, sdegen.ODESolver("rk4", steps=20))
        for _ in range(800):
            i = torch.randint(4000, (256,))
            loss = sdegen.loss(model, x[i], noise=None if teacher is None else z[i])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        bends.append(float(sdegen.straightness(model, torch.randn(500, 2)).mean()))
    assert bends[1] < 0.4 * bends[0]


def test_rectify_is_decode_from_the_source():
    mixture, z = ring(), torch.randn(8, 2)
    x = sdegen.rectify(mixture.model(sdegen.VESDE()), z)
    torch.testing.assert_close(x, sdegen.decode(mixture.model(sdegen.VESDE()), 50.0 * z), rtol=0, atol=1e-12)
    with pytest.raises(TypeError, match="model must be"):
        sdegen.rectify(lambda x, t: x, z)


# Vector fields


def planar(w: Tensor, v: Tensor, b: float):
    """dx/dt = v tanh(w.x + b) and its closed form: end point and integral of the trace (THEORY 8.4)."""
    c = float(w @ v)

    def f(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x @ w + b)[:, None] * v

    def flow(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        y = x @ w + b
        after = torch.asinh(math.exp(c * t) * torch.sinh(y))
        return x + v * ((after - y) / c)[:, None], c * t + torch.log(torch.cosh(y)) - torch.log(torch.cosh(after))

    return f, flow


@pytest.mark.parametrize("length", [1.0, 2.5])
def test_the_planar_flow_has_its_closed_form(length):
    f, flow = planar(torch.tensor([0.7, -1.1]), torch.tensor([0.9, 0.4]), 0.3)
    model = sdegen.vector_field(f, t_data=0.0, t_noise=length)
    x = torch.randn(64, 2)
    z, trace = flow(x, length)
    torch.testing.assert_close(sdegen.encode(model, x, TIGHT), z, rtol=0, atol=1e-8)
    expected = sdegen.Gaussian([0.0, 0.0], 1.0).log_prob(z) + trace
    torch.testing.assert_close(sdegen.log_prob(model, x, TIGHT), expected, rtol=0, atol=1e-8)
    backwards = sdegen.vector_field(lambda x, t: -length * f(x, t))
    torch.testing.assert_close(sdegen.log_prob(backwards, x, TIGHT), expected, rtol=0, atol=1e-8)


def test_the_hamiltonian_flow_keeps_volume():
    """dx1/dt = f2(x2), dx2/dt = f1(x1): trace exactly zero; one probe is not, its mean is (THEORY 8.5)."""

    def f(x: Tensor, t: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([torch.tanh(b) + 0.5 * b, -torch.sin(a)], 1)

    wide = sdegen.Gaussian([0.0] * 4, 2.0)
    model = sdegen.vector_field(f, t_data=0.0, t_noise=1.0, prior=wide)
    x = torch.randn(8, 4)
    latents = wide.log_prob(sdegen.encode(model, x, TIGHT))
    exact = sdegen.log_prob(model, x, TIGHT, trace="exact")
    torch.testing.assert_close(exact, latents, rtol=0, atol=1e-9)
    g = torch.Generator().manual_seed(0)
    one = sdegen.log_prob(
        model, x[:1].expand(4000, 4), sdegen.ODESolver("rk4", steps=20), trace=sdegen.Hutchinson(1), generator=g
    )
    assert float(one.std()) > 0.1
    assert abs(float(one.mean() - latents[0])) < 5 * float(one.std()) / math.sqrt(4000)


def test_a_field_with_time_and_a_prior_of_the_users():
    """dx/dt = cos(t) x on [0, 2]: x(2) = e^{sin 2} x(0)."""

    class Wide:
        def sample(self, shape, generator=None):
            return 3 * torch.randn(shape, generator=generator)

        def log_prob(self, x):
            return sdegen.Gaussian([0.0], 3.0).log_prob(x)

    model = sdegen.vector_field(lambda x, t: torch.cos(t)[:, None] * x, t_data=2.0, t_noise=0.0, prior=Wide())
    g = torch.Generator().manual_seed(2)
    x = sdegen.sample(model, (5, 1), TIGHT, generator=g, dtype=torch.float64)
    start = 3 * torch.randn((5, 1), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(x, math.exp(math.sin(2)) * start, rtol=1e-8, atol=0)
    expected = sdegen.Gaussian([0.0], 3 * math.exp(math.sin(2))).log_prob(x)
    torch.testing.assert_close(sdegen.log_prob(model, x, TIGHT), expected, rtol=0, atol=1e-8)


def test_bad_flows_are_refused():
    for refused, kind in (
        (lambda: sdegen.Retimed(OT, 1.0, 1.0), ValueError),
        (lambda: sdegen.Retimed(OT, math.nan, 1.0), ValueError),
        (lambda: sdegen.Retimed("condot", 0.0, 1.0), TypeError),
        (lambda: sdegen.Interpolant("condot"), TypeError),
        (lambda: sdegen.vector_field(3), TypeError),
        (lambda: sdegen.straightness(ring().model(OT), torch.randn(3, 2), sdegen.SDESolver("euler", 5)), TypeError),
    ):
        with pytest.raises(kind, match=r"\."):
            refused()


def test_knots_of_a_short_flow_are_where_they_should_be():
    """Steps of a retimed path fall on the same clocks as the path's own."""
    still = sdegen.ODESolver("euler", steps=5)
    models = [sdegen.ScoreModel(lambda x, t: 0 * x, p, "v") for p in FLOWS.values()]
    seen = [sdegen.solve(model, torch.zeros(1, 2), still) for model in models]
    for (one, other), (p, q) in zip(pairwise(seen), pairwise(FLOWS.values()), strict=True):
        if p.ends == q.ends:
            torch.testing.assert_close(one.u, other.u, rtol=0, atol=1e-15)


def test_start_law_helper_sees_the_flow_end():
    assert start_law(sdegen.Gaussian([0.8], 0.5).marginal(OT, OT.t_noise)) == pytest.approx((0, 1), abs=1e-12)


# What must not happen quietly


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


def test_a_mixture_is_a_source_like_any():
    source = sdegen.Gaussian([5.0, 5.0], 0.1)
    path = sdegen.Interpolant(OT, source)
    still = sdegen.ScoreModel(lambda x, t: 0 * x, path, "velocity")
    assert float(sdegen.sample(still, (50, 2), sdegen.ODESolver("euler", steps=2)).mean()) == pytest.approx(5, abs=0.1)
    x_t, z = path.perturb(torch.zeros(50, 2), 0.25)
    torch.testing.assert_close(x_t, 0.75 * z)
    assert float(z.mean()) == pytest.approx(5, abs=0.1)
    assert float(sdegen.loss(still, torch.zeros(50, 2))) == pytest.approx(25, abs=1)
    for refused in (lambda: path.transition(0.9, 0.5), lambda: path.bridge(0.9, 0.5)):
        with pytest.raises(ValueError, match="no transition kernels"):
            refused()
    for option in ({"weighting": sdegen.LikelihoodWeighting()}, {"times": sdegen.LikelihoodTimes()}):
        with pytest.raises(ValueError, match="score"):
            sdegen.loss(still, torch.zeros(50, 2), **option)
    with pytest.raises(TypeError, match="source must have"):
        sdegen.Interpolant(OT, "noise")

    class Density:
        def log_prob(self, x):
            return -x.square().sum(1)

    scored = sdegen.ScoreModel(lambda x, t: 0 * x, sdegen.Interpolant(OT, Density()), "velocity")
    for refused in (
        lambda: sdegen.sample(scored, (3, 2), sdegen.ODESolver("euler", steps=2)),
        lambda: sdegen.loss(scored, torch.zeros(3, 2)),
    ):
        with pytest.raises(ValueError, match="no method sample"):
            refused()
    assert sdegen.log_prob(scored, torch.ones(3, 2)).tolist() == pytest.approx([-2.0] * 3)


def test_an_exact_model_moves_anywhere_and_a_network_only_where_it_was_trained():
    data = sdegen.Gaussian([0.3], 0.5)
    assert sdegen.sample(data.model(VP).on(OT), (4, 1), sdegen.ODESolver("rk4", steps=5)).shape == (4, 1)
    moved = sdegen.ScoreModel(lambda x, t: 0 * x, VP).on(OT)
    with pytest.raises(ValueError, match="trained between the clocks"):
        moved.data(torch.zeros(3, 1), 1e-3)
    assert moved.data(torch.zeros(3, 1, dtype=torch.float32), 0.5).shape == (3, 1)
    assert not moved.learns_variance


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


def test_straightness_counts_every_step_by_its_length_and_keeps_its_digits():
    model, z = sdegen.Gaussian([0.0], 0.3).model(OT), torch.randn(16, 1)
    even = sdegen.straightness(model, z, sdegen.ODESolver("rk4", steps=400, grid=sdegen.PowerGrid(1)))
    crowded = sdegen.straightness(model, z, sdegen.ODESolver("rk4", steps=400, grid=sdegen.PowerGrid(2)))
    torch.testing.assert_close(crowded, even, rtol=1e-3, atol=0)
    straight = sdegen.vector_field(lambda x, t: 0 * x + 3)
    assert float(sdegen.straightness(straight, (100 + z).half()).max()) < 1e-4
    with pytest.raises(ValueError, match="fixed steps"):
        sdegen.straightness(model, z, sdegen.ODESolver("dopri5"))
