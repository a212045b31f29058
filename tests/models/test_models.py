"""Models: one conversion between all predictions, one network call a query, and where each prediction is finite."""

from __future__ import annotations

import pytest
import torch
from problems import PATHS, ring
from torch import nn

import sdegen
from sdegen.models.base import PREDICTIONS

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
NAMES = list(PREDICTIONS)


class Counting(nn.Module):
    """An exact prediction behind a counter."""

    def __init__(self, exact, name):
        super().__init__()
        self.calls = 0
        self.exact, self.name = exact, name

    def forward(self, x_t, t):
        self.calls += 1
        return getattr(self.exact, self.name)(x_t, t)


@every_path
@pytest.mark.parametrize("name", NAMES)
def test_every_prediction_gives_every_other_in_one_call(path, name):
    exact = ring().model(path)
    t = path.t_data + (path.t_noise - path.t_data) * torch.tensor([0.05, 0.3, 0.6, 0.93])
    x_t, _ = path.perturb(torch.randn(4, 2), t)
    net = Counting(exact, name)
    model = sdegen.ScoreModel(net, path, name)
    for i, other in enumerate(NAMES):
        expected = getattr(exact, other)(x_t, t)
        torch.testing.assert_close(getattr(model, other)(x_t, t), expected, rtol=1e-9, atol=1e-11)
        assert net.calls == i + 1


@every_path
def test_predictions_fit_together(path):
    """x_t = alpha x_hat + sigma eps_hat, s = -eps_hat/sigma, velocity and v from their definitions, by hand."""
    exact = ring().model(path)
    t = path.t_data + (path.t_noise - path.t_data) * torch.tensor([0.11, 0.5, 0.87])
    x_t, _ = path.perturb(torch.randn(3, 2), t)
    x, eps = exact.data(x_t, t), exact.eps(x_t, t)
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    slopes = path.slopes(t)
    torch.testing.assert_close(alpha * x + sigma * eps, x_t)
    torch.testing.assert_close(exact.score(x_t, t), -eps / sigma)
    torch.testing.assert_close(exact.velocity(x_t, t), slopes.alpha[:, None] * x + slopes.sigma[:, None] * eps)
    torch.testing.assert_close(exact.v(x_t, t), alpha * eps - sigma * x)


@every_path
def test_probability_flow_velocity_is_f_minus_half_g2_score(path):
    exact = ring().model(path)
    away = 1.0 if path.t_noise > path.t_data else -1.0
    t = path.t_data + (path.t_noise - path.t_data) * torch.tensor([0.21, 0.7])
    x_t, _ = path.perturb(torch.randn(2, 2), t)
    expected = path.drift(x_t, t) - 0.5 * path.diffusion(t)[:, None] ** 2 * exact.score(x_t, t)
    torch.testing.assert_close(away * exact.velocity(x_t, t), expected, rtol=1e-8, atol=1e-9)


def test_one_time_serves_floats_scalars_and_batches():
    model = ring().model(sdegen.VPSDE())
    x = torch.randn(3, 2)
    assert torch.equal(model.eps(x, 0.3), model.eps(x, torch.full((3,), 0.3)))
    assert torch.equal(model.eps(x, 0.3), model.eps(x, torch.tensor(0.3)))


def test_network_sees_the_path_time_or_the_adapted_one():
    seen = []

    def net(x, t):
        seen.append(t.clone())
        return x

    path = sdegen.DDPM(torch.linspace(1e-4, 0.02, 10))
    x = torch.randn(2, 3)
    sdegen.sample(sdegen.ScoreModel(net, path), (2, 3), sdegen.Ancestral())
    assert torch.equal(torch.stack(seen), (torch.arange(10, 0, -1) / 10)[:, None].expand(10, 2))  # k/K to the bit
    seen.clear()
    model = sdegen.ScoreModel(net, path, time=lambda t: t * 10 - 1)
    model.eps(x, 0.7)
    torch.testing.assert_close(seen[0], torch.full((2,), 6.0))


def test_conditions_reach_the_network_by_name():
    def net(x, t, *, shift):
        return x + shift[:, None]

    model = sdegen.ScoreModel(net, sdegen.VPSDE())
    x, shift = torch.randn(3, 2), torch.arange(3.0)
    torch.testing.assert_close(model.eps(x, 0.5, cond={"shift": shift}), x + shift[:, None])
    x_T = torch.zeros(3, 2)
    out = sdegen.sample(model, (3, 2), sdegen.ODESolver("euler", steps=3), x_T=x_T, cond={"shift": shift})
    assert bool((torch.diff(out[:, 0]) != 0).all())


@pytest.mark.parametrize("net_dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_state_and_network_keep_their_own_dtypes(net_dtype):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2, dtype=net_dtype)

        def forward(self, x, t):
            assert x.dtype == t.dtype == net_dtype
            return self.layer(x)

    model = sdegen.ScoreModel(Net(), sdegen.VPSDE())
    x = torch.randn(4, 2, dtype=torch.float64)
    assert model.eps(x, 0.5).dtype == torch.float64
    assert sdegen.solve(model, x, sdegen.ODESolver("euler", steps=2)).x.dtype == torch.float64
    assert sdegen.sample(model, (4, 2), sdegen.SDESolver(steps=2)).dtype == net_dtype
    assert sdegen.sample(model, (4, 2), sdegen.SDESolver(steps=2), dtype=torch.float32).dtype == torch.float32
    assert sdegen.log_prob(model, x, sdegen.ODESolver("rk4", steps=3)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("predicts", NAMES)
def test_predictions_keep_the_dtype_and_the_device_of_the_state(dtype, predicts, device):
    layer = nn.Linear(3, 3, dtype=torch.float32, device=device)
    for path in (sdegen.VPSDE(), sdegen.CondOT(), sdegen.VESDE()):
        model = sdegen.ScoreModel(lambda x, t: layer(x.float()).to(x.dtype), path, predicts)
        x = torch.randn(4, 3, dtype=dtype, device=device)
        for name in NAMES:
            out = getattr(model, name)(x, 0.5)
            assert (out.dtype, out.device) == (dtype, x.device)
        if dtype != torch.bfloat16:
            for weighting in (None, sdegen.MinSNR(), sdegen.LikelihoodWeighting()):
                assert sdegen.loss(model, x, weighting=weighting).dtype == dtype
    exact = sdegen.Gaussian(torch.zeros(3, device=device), covariance=torch.eye(3, device=device)).model(sdegen.VPSDE())
    assert exact.score(x, 0.5).dtype == dtype


def test_conversions_need_nothing_from_another_device():
    """The meta device stands in for an accelerator: mixing it with CPU tensors of one value a sample raises."""
    for predicts in NAMES:
        model = sdegen.ScoreModel(lambda x, t: x * 1, sdegen.CosineVPSDE(), predicts)
        x, t = torch.empty(4, 3, device="meta"), torch.empty(4, device="meta")
        for name in NAMES:
            assert getattr(model, name)(x, t).device.type == "meta"
        for weighting in (None, sdegen.MinSNR(), sdegen.LikelihoodWeighting()):
            assert sdegen.loss(model, x, weighting=weighting).device.type == "meta"


def test_an_exact_score_exists_at_clean_data():
    target = sdegen.Gaussian([0.5, -1.0], 0.5)
    x = torch.randn(3, 2)
    for path in (sdegen.VPSDE(), sdegen.CondOT(), sdegen.CosineVPSDE()):
        expected = -(x - torch.tensor([0.5, -1.0])) / 0.25
        torch.testing.assert_close(target.model(path).score(x, path.t_data), expected)


def test_a_network_may_write_into_what_it_is_given():
    def rude(x, t):
        t *= 999
        out = torch.tanh(x) * torch.sin(t)[:, None]
        x.fill_(0)
        return out

    def polite(x, t):
        return torch.tanh(x) * torch.sin(t * 999)[:, None]

    path, x, t = sdegen.VPSDE(), torch.randn(4, 2), torch.full((4,), 0.2)
    kept = x.clone(), t.clone()
    one, two = (sdegen.ScoreModel(net, path) for net in (rude, polite))
    noise = torch.randn(4, 2)
    for weighting in (None, sdegen.MinSNR(0.05), sdegen.LikelihoodWeighting()):
        a, b = (sdegen.loss(m, x, t=t, noise=noise, weighting=weighting) for m in (one, two))
        assert torch.equal(a, b)
    assert torch.equal(one.eps(x, t), two.eps(x, t))
    assert torch.equal(one.data(x, t), two.data(x, t))
    assert torch.equal(x, kept[0])
    assert torch.equal(t, kept[1])


def test_integer_clocks_arrive_whole():
    """K - 1, ..., 0 exactly, in the adapter's own precision, also for a half-precision network."""
    seen = []

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2, dtype=torch.bfloat16)

        def forward(self, x, k):
            seen.append(int(k[0]))
            return self.layer(x)

    path = sdegen.DDPM(torch.linspace(1e-4, 0.02, 1000))
    model = sdegen.ScoreModel(Half(), path, time=lambda t: (t * 1000).round().long() - 1)
    sdegen.sample(model, (1, 2), sdegen.Ancestral())
    assert seen == list(range(999, -1, -1))


END_TABLE = [  # prediction, path, end, finite
    ("eps", "vp", 0.0, True),
    ("score", "vp", 0.0, True),
    ("data", "vp", 0.0, False),
    ("v", "vp", 0.0, True),
    ("velocity", "vp", 0.0, False),
    ("velocity", "cosine", 0.0, False),
    ("velocity", "ddpm", 0.0, False),
    ("velocity", "subvp", 0.0, True),
    ("velocity", "condot", 0.0, True),
    ("eps", "condot", 1.0, False),
    ("score", "condot", 1.0, False),
    ("eps", "cosine", 1.0, False),
    ("data", "condot", 1.0, True),
    ("v", "condot", 1.0, True),
    ("v", "cosine", 1.0, True),
    ("velocity", "condot", 1.0, True),
    ("velocity", "cosine", 1.0, True),
]


@pytest.mark.parametrize(("name", "path", "end", "finite"), END_TABLE)
def test_which_prediction_is_finite_where(name, path, end, finite):
    """DESIGN's table of ends: a solver that would query a singular end is refused before the first network call."""
    calls = []

    def net(x, t):
        calls.append(t)
        return torch.zeros_like(x)

    model = sdegen.ScoreModel(net, PATHS[path], name)
    other = 0.5
    u = (end, other) if end == 1 else (other, end)
    solver = sdegen.ODESolver("heun2", steps=2)  # queries the end it arrives at
    x = torch.ones(1, 2)
    if finite:
        assert bool(torch.isfinite(sdegen.solve(model, x, solver, u=u).x).all())
        return
    with pytest.raises(ValueError, match=f"u = {end:g}.*{name}"):
        sdegen.solve(model, x, solver, u=u)
    assert not calls
    if end == 0:  # a method that never queries the end it arrives at is welcome
        sdegen.solve(model, x, sdegen.ODESolver("midpoint", steps=2), u=u)


def test_wrong_outputs_are_refused_at_every_call():
    calls = []

    def net(x, t):
        calls.append(1)
        return x[:, :1] if len(calls) == 7 else x

    with pytest.raises(ValueError, match=r"\(4, 2\).*\(4, 1\)"):
        sdegen.sample(sdegen.ScoreModel(net, sdegen.VPSDE()), (4, 2), sdegen.SDESolver(steps=10))
    assert len(calls) == 7
    with pytest.raises(ValueError, match="NoneType"):
        sdegen.ScoreModel(lambda x, t: None, sdegen.VPSDE()).eps(torch.ones(1, 2), 0.5)
    with pytest.raises(TypeError, match="complex"):
        sdegen.ScoreModel(lambda x, t: x * 1j, sdegen.VPSDE()).eps(torch.ones(1, 2), 0.5)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: sdegen.ScoreModel("net", sdegen.VPSDE()), TypeError, "'net'"),
        (lambda: sdegen.ScoreModel(nn.Identity(), "vp"), TypeError, "'vp'"),
        (lambda: sdegen.ScoreModel(nn.Identity(), sdegen.VPSDE(), "noise"), ValueError, "'noise'.*'eps'"),
        (lambda: sdegen.ScoreModel(nn.Identity(), sdegen.VPSDE(), time=3), TypeError, "3"),
        (lambda: ring().model(sdegen.VPSDE()).eps(torch.ones(3, 2), torch.ones(2)), ValueError, r"\(3,\).*\(2,\)"),
        (lambda: ring().model(sdegen.VPSDE()).eps(torch.ones(3, 3), 0.5), ValueError, r"\(3, 3\)"),
        (lambda: ring().model(sdegen.VPSDE()).eps(torch.ones(3, 2, dtype=torch.int64), 0.5), TypeError, "int64"),
    ],
)
def test_bad_input(make, error, says):
    with pytest.raises(error, match=says):
        make()
