"""EDM against its source, written out here: preconditioning and loss, the sampler of a denoiser, exact densities."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from problems import ring
from torch import nn

import sdegen
from sdegen.interop import from_edm
from sdegen.nets import MLP

SIGMA_MIN, SIGMA_MAX, STEPS = 0.002, 80.0, 18
HEUN = sdegen.Heun(STEPS, grid=sdegen.KarrasGrid(7, SIGMA_MIN))


class F(nn.Module):
    """A network of images, called with c_noise (B,) and labels by name."""

    def forward(self, x, noise_labels, class_labels=None):
        shift = 0.0 if class_labels is None else class_labels.sum(1)[:, None, None, None]
        return torch.tanh(x + noise_labels[:, None, None, None]) + shift


class Precond(nn.Module):
    """Karras et al. (2022), table 1, column "Ours", as one writes it for images."""

    def __init__(self, model, sigma_data):
        super().__init__()
        self.model, self.sigma_data, self.seen = model, sigma_data, []

    def forward(self, x, sigma, class_labels=None):
        self.seen.append(sigma)
        sigma = sigma.reshape(-1, 1, 1, 1)
        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()
        c_in = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        c_noise = sigma.log() / 4
        return c_skip * x + c_out * self.model(c_in * x, c_noise.flatten(), class_labels=class_labels)


def images(n, seed=0):
    return torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def denoiser(law):
    """The exact D(x, sigma) of a law of points."""
    exact = law.model(sdegen.EDM())
    return lambda x, sigma: exact.data(x, sigma)


# Table 1 and the loss


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_preconditioning_is_table_1(sigma_data):
    x, labels = images(5), torch.rand(5, 4)
    sigma = torch.tensor([1e-3, 0.02, 0.5, 7.0, 80.0])
    ours, theirs = sdegen.Preconditioned(F(), sigma_data), Precond(F(), sigma_data)
    torch.testing.assert_close(ours(x, sigma), theirs(x, sigma), rtol=1e-12, atol=1e-13)
    with_labels = ours(x, sigma, class_labels=labels)
    torch.testing.assert_close(with_labels, theirs(x, sigma, labels), rtol=1e-12, atol=1e-13)
    assert not torch.equal(with_labels, ours(x, sigma))
    model = sdegen.ScoreModel(ours, sdegen.EDM(), "data")
    x_t = sigma[:, None, None, None] * x
    torch.testing.assert_close(model.data(x_t, sigma), theirs(x_t, sigma), rtol=1e-12, atol=1e-13)


def test_preconditioning_gives_the_network_and_its_target_variance_one():
    """Of data N(0, s^2): E (c_in x)^2 = 1, E ((y - c_skip x)/c_out)^2 = 1, and no c_out smaller keeps the latter so."""
    s, sigma = 0.7, torch.tensor([0.01, 0.3, 2.0, 50.0])
    zero = sdegen.Preconditioned(lambda x, c: torch.zeros_like(x), s)
    one = sdegen.Preconditioned(lambda x, c: torch.ones_like(x), s)
    ones = torch.ones(4, 1)
    c_skip, c_out = zero(ones, sigma)[:, 0], (one(ones, sigma) - zero(ones, sigma))[:, 0]
    torch.testing.assert_close((1 - c_skip) ** 2 * s**2 + c_skip**2 * sigma**2, c_out**2, rtol=1e-12, atol=0)
    seen = []
    sdegen.Preconditioned(lambda x, c: seen.append((x, c)) or x, s)(ones, sigma)
    torch.testing.assert_close(seen[0][0][:, 0] ** 2 * (s**2 + sigma**2), torch.ones(4), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.exp(4 * seen[0][1]), sigma, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_the_loss_is_edms(sigma_data):
    """EDMLoss: weight (D(y + n; sigma) - y)^2 with sigma = exp(1.2 z - 1.2); given sigma and noise, and by one seed."""
    y, net = images(64), F()
    g = torch.Generator().manual_seed(7)
    sigma = (torch.randn(64, 1, 1, 1, generator=g) * 1.2 - 1.2).exp()
    eps = torch.randn(y.shape, generator=g)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    theirs = (weight * (Precond(net, sigma_data)(y + sigma * eps, sigma.flatten()) - y) ** 2).flatten(1).mean(1)
    model = sdegen.ScoreModel(sdegen.Preconditioned(net, sigma_data), sdegen.EDM(), "data")
    how = {"weighting": sdegen.EDMWeighting(sigma_data), "reduction": "none"}
    ours = sdegen.loss(model, y, t=sigma.flatten(), noise=eps, **how)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    drawn = sdegen.loss(model, y, times=sdegen.LogNormalTimes(), generator=torch.Generator().manual_seed(7), **how)
    torch.testing.assert_close(drawn, theirs, rtol=1e-11, atol=0)


def test_under_edms_weighting_the_networks_error_has_weight_one():
    """Weight c_out^2 = 1: at every noise level a network that is off by 0.3 everywhere has 0.09 more."""
    sigma = torch.tensor([0.01, 0.3, 2.0, 50.0]).repeat_interleave(2)
    x, eps = torch.tensor([[0.5], [-0.5]]).repeat(4, 1), torch.ones(8, 1)

    def loss(shift):
        model = sdegen.ScoreModel(sdegen.Preconditioned(lambda x, c: shift + 0 * x), sdegen.EDM(), "data")
        return sdegen.loss(model, x, t=sigma, noise=eps, weighting=sdegen.EDMWeighting(), reduction="none")

    pairs = 0.5 * (loss(0.3) + loss(-0.3)) - loss(0.0)
    torch.testing.assert_close(pairs, torch.full((8,), 0.09), rtol=1e-8, atol=0)


# The sampler


def test_the_karras_grid_is_edms_list_of_noise_levels():
    i = torch.arange(STEPS, dtype=torch.float64)
    rho = 7
    levels = (SIGMA_MAX ** (1 / rho) + i / (STEPS - 1) * (SIGMA_MIN ** (1 / rho) - SIGMA_MAX ** (1 / rho))) ** rho
    solution = sdegen.solve(ring().model(sdegen.EDM()), torch.zeros(1, 2), HEUN, trajectory=True)
    torch.testing.assert_close(solution.t, torch.cat([levels, levels.new_zeros(1)]), rtol=1e-12, atol=0)


def test_heun_is_edms_sampler():
    """Algorithm 1 in its own words, from latents times sigma_max, with labels; 2N - 1 calls, none below sigma_min."""
    theirs, labels, latents = Precond(F(), 0.5), torch.rand(3, 4), images(3)
    i = torch.arange(STEPS, dtype=torch.float64)
    t_steps = (SIGMA_MAX ** (1 / 7) + i / (STEPS - 1) * (SIGMA_MIN ** (1 / 7) - SIGMA_MAX ** (1 / 7))) ** 7
    t_steps = torch.cat([t_steps, torch.zeros(1)])
    x = latents * t_steps[0]
    for k in range(STEPS):
        t, after = t_steps[k], t_steps[k + 1]
        d = (x - theirs(x, t.expand(3), labels)) / t
        ahead = x + (after - t) * d
        if k < STEPS - 1:
            ahead = x + (after - t) * (d + (ahead - theirs(ahead, after.expand(3), labels)) / after) / 2
        x = ahead
    net = Precond(F(), 0.5)
    model = from_edm(net, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    solution = sdegen.solve(model, SIGMA_MAX * latents, HEUN, cond={"class_labels": labels})
    torch.testing.assert_close(solution.x, x, rtol=1e-10, atol=1e-12)
    assert solution.calls == len(net.seen) == 2 * STEPS - 1
    drawn = sdegen.sample(
        model, latents.shape, HEUN, generator=torch.Generator().manual_seed(0), cond={"class_labels": labels}
    )
    torch.testing.assert_close(drawn, x.to(drawn), rtol=1e-10, atol=1e-12)


def test_the_network_is_shown_no_level_below_sigma_min():
    net = Precond(F(), 0.5)
    model = from_edm(net, sigma_min=0.1, sigma_max=SIGMA_MAX)
    for solver in (sdegen.DDIM(40), sdegen.Ancestral(40), sdegen.Adams(20), HEUN):
        net.seen.clear()
        x = sdegen.sample(model, (2, 2, 3, 3), solver)
        assert float(x.abs().max()) < 10  # the denoised state of the end, not noise of deviation 80
        assert min(float(sigma.min()) for sigma in net.seen) == pytest.approx(0.1, rel=1e-6)
        assert max(float(sigma.max()) for sigma in net.seen) == pytest.approx(SIGMA_MAX, rel=1e-6)
    with pytest.raises(ValueError, match=r"at u = 0, where EDM.* is singular for 'data'"):
        sdegen.log_prob(model, x)


def test_samplers_end_at_the_exact_law_of_clean_data():
    """The affine law of Heun on N(m, S) tends to that of the ODE, which scales by the ratio of deviations."""
    law = sdegen.Gaussian([0.8], 0.5)
    model = from_edm(denoiser(law), sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    x = sdegen.solve(model, torch.tensor([[0.0], [1.0]]), sdegen.Heun(1200, grid=sdegen.KarrasGrid(7, SIGMA_MIN))).x
    gain, mean = float(x[1] - x[0]), float(x[0])
    exact = 0.5 / math.sqrt(0.25 + SIGMA_MAX**2)
    assert gain == pytest.approx(exact, rel=2e-5)  # of which the last step leaves (sigma_min/0.5)^2 / 2 = 8e-6
    assert mean == pytest.approx(0.8 - 0.8 * exact, rel=2e-5)


# Densities


@pytest.mark.parametrize("name", ["gaussian", "ring"])
def test_log_prob_is_the_closed_form(name):
    """Of clean data by the exact model; by a denoiser, of data blurred by sigma_min."""
    law = ring() if name == "ring" else sdegen.Gaussian([0.8, -0.3], covariance=[[0.25, 0.1], [0.1, 0.1]])
    path, x = sdegen.EDM(), law.sample(6, generator=torch.Generator().manual_seed(2))
    prior, tight = law.marginal(path, SIGMA_MAX), sdegen.ODESolver("dopri8", rtol=1e-10)
    clean = sdegen.log_prob(law.model(path), x, tight, prior=prior)
    torch.testing.assert_close(clean, law.log_prob(x), rtol=0, atol=1e-7)
    model = from_edm(denoiser(law), sigma_min=0.01, sigma_max=SIGMA_MAX)
    ends = 0.01 / (1 + 0.01), SIGMA_MAX / (1 + SIGMA_MAX)
    blurred = sdegen.log_prob(model, x, tight, u=ends, prior=prior)
    torch.testing.assert_close(blurred, law.marginal(path, 0.01).log_prob(x), rtol=0, atol=1e-6)


def test_edm_is_ve_from_clean_data():
    edm, ve = sdegen.EDM(50.0), sdegen.VESDE(0.01, 50.0)
    u = torch.linspace(ve.ends[0], ve.ends[1], 20)
    torch.testing.assert_close(edm.scale(u), ve.scale(u), rtol=1e-13, atol=0)
    torch.testing.assert_close(edm.time(u), ve.sigma(ve.time(u)), rtol=1e-11, atol=0)
    assert edm.ends == (0.0, pytest.approx(50 / 51))
    assert (edm.t_data, edm.t_noise) == (0.0, 50.0)
    for same in (pickle.loads(pickle.dumps(edm)), copy.deepcopy(edm), sdegen.EDM(50)):
        assert same == edm
        assert same.t_noise == 50.0
    assert edm != sdegen.EDM()


def test_models_train_are_pickled_and_stay_in_sight():
    net = sdegen.Preconditioned(MLP(2, hidden=8, depth=1).double(), 0.8)
    for model in (
        sdegen.ScoreModel(net, sdegen.EDM(), "data"),
        from_edm(net, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX),
    ):
        how = {"times": sdegen.LogNormalTimes(), "weighting": sdegen.EDMWeighting(0.8)}
        sdegen.loss(model, torch.randn(16, 2), **how).backward()
        assert any(float(p.grad.abs().sum()) > 0 for p in model.parameters())
        assert model.working_dtype(torch.float32) is torch.float64
        again, x = pickle.loads(pickle.dumps(model)), torch.randn(3, 2)
        assert torch.equal(again(x, 0.3), model(x, 0.3))
    assert "sigma_data=0.8" in repr(net)


# What is refused


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: from_edm(F(), sigma_min=2.0, sigma_max=1.0), ValueError, "sigma_min must be below.*2.0 and 1.0"),
        (lambda: from_edm(F(), sigma_min=1.0, sigma_max=1.0), ValueError, "sigma_min must be below.*1.0 and 1.0"),
        (lambda: from_edm(F(), sigma_min=0.0, sigma_max=1.0), ValueError, "sigma_min must be a finite.*it is 0.0"),
        (lambda: from_edm(F(), sigma_min=0.1, sigma_max=math.inf), ValueError, "sigma_max must be a finite.*is inf"),
        (lambda: from_edm(F(), sigma_min="a", sigma_max=1.0), TypeError, "sigma_min must be a real number.*'a'"),
        (lambda: from_edm(3, sigma_min=0.1, sigma_max=1.0), TypeError, "net must be callable.*3 is int"),
        (lambda: sdegen.EDM(0.0), ValueError, "sigma_max must be a finite number in .0, inf.*it is 0.0"),
        (lambda: sdegen.EDM("80"), TypeError, "sigma_max must be a real number.*'80'"),
        (lambda: sdegen.Preconditioned(F(), 0.0), ValueError, "sigma_data must be a finite.*it is 0.0"),
        (lambda: sdegen.Preconditioned(None), TypeError, "net must be callable.*None is NoneType"),
        (lambda: sdegen.EDMWeighting(-0.5), ValueError, "sigma_data must be a finite.*it is -0.5"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_a_noise_level_of_zero_is_refused_before_the_network_is_asked():
    calls = []
    net = sdegen.Preconditioned(lambda x, c: calls.append(1) or x)
    with pytest.raises(ValueError, match=r"sigma must be positive.*and it is 0"):
        net(torch.zeros(2, 1), torch.tensor([0.5, 0.0]))
    with pytest.raises(ValueError, match=r"sigma must be positive.*and it is 0"):
        sdegen.loss(sdegen.ScoreModel(net, sdegen.EDM(), "data"), torch.zeros(2, 1), t=0.0)
    assert not calls
