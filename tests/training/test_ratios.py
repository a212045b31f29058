"""The cross-entropy of real and fake: what it is, where it is least, and what the network sees on a path."""

from __future__ import annotations

import math

import pytest
import torch
from classified import FAKE, JSD, REAL, P, Q, exact_logit, fakes, jsd_by_quadrature, minimised, of_state
from torch import nn

import sdegen

RATIO = (P / Q).log()
every_k = pytest.mark.parametrize("k", [1, 2, 5])


@every_k
def test_at_any_logit_it_is_the_expectation_over_one_real_state_and_k_fakes(k):
    T = torch.tensor([0.3, -1.2, 2.0])
    D = torch.sigmoid(T - math.log(k))
    expected = -0.5 * ((P * D.log()).sum() + k * (Q * (1 - D).log()).sum())
    torch.testing.assert_close(sdegen.ratio_loss(of_state(T), REAL, fakes(k)), expected, rtol=1e-14, atol=1e-14)


@every_k
def test_the_network_is_the_log_ratio_at_the_optimum_for_every_k(k):
    found = minimised(lambda T: sdegen.ratio_loss(of_state(T), REAL, fakes(k)), 3)
    torch.testing.assert_close(found, RATIO, rtol=0, atol=1e-7)
    T = RATIO.clone().requires_grad_()
    loss = sdegen.ratio_loss(of_state(T), REAL, fakes(k))
    (gradient,) = torch.autograd.grad(loss, T)
    assert float(gradient.abs().max()) < 1e-15
    m = (P + k * Q) / (1 + k)
    kl_p, kl_q = (float((law * (law / m).log()).sum()) for law in (P, Q))
    least = 0.5 * ((1 + k) * math.log(1 + k) - k * math.log(k) - kl_p - k * kl_q)
    assert float(loss.detach()) == pytest.approx(least, abs=1e-15)


def test_the_game_of_a_gan_at_its_optimum():
    """D* = p/(p + q), one half where the laws agree; C = -log 4 + 2 JSD, and -log 4 where they agree everywhere."""
    T = minimised(lambda T: sdegen.ratio_loss(of_state(T), REAL, FAKE), 3)
    torch.testing.assert_close(torch.sigmoid(T), P / (P + Q), rtol=0, atol=1e-7)
    assert float(torch.sigmoid(T[1])) == pytest.approx(0.5, abs=1e-7)
    value = -2 * float(sdegen.ratio_loss(of_state(T), REAL, FAKE))
    assert value == pytest.approx(-math.log(4) + 2 * JSD, abs=1e-12)
    T = minimised(lambda T: sdegen.ratio_loss(of_state(T), REAL, REAL), 3)
    torch.testing.assert_close(torch.sigmoid(T), torch.full((3,), 0.5))
    assert -2 * float(sdegen.ratio_loss(of_state(T), REAL, REAL)) == pytest.approx(-math.log(4), abs=1e-12)


def test_with_many_fakes_the_gradient_is_that_of_maximum_likelihood():
    T = torch.tensor([0.3, -1.2, 0.5], requires_grad=True)
    (gradient,) = torch.autograd.grad(sdegen.ratio_loss(of_state(T), REAL, fakes(5000)), T)
    torch.testing.assert_close(gradient, 0.5 * (Q * T.detach().exp() - P), rtol=0, atol=1e-3)


# On a path

LAWS = [(torch.tensor([m]).double(), torch.tensor([[s * s]]).double()) for m, s in ((0.5, 0.4), (-0.3, 0.9))]


@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.CondOT(), sdegen.VESDE()], ids=lambda p: type(p).__name__)
def test_on_a_path_it_is_the_mean_over_uniform_times(path):
    """With the exact logit it is log 2 less the mean JSD of the diffused laws, within 4 standard errors."""
    p, q = (sdegen.Gaussian(mean, covariance=covariance) for mean, covariance in LAWS)
    logit = exact_logit(path, *LAWS)
    losses = torch.stack([sdegen.ratio_loss(logit, p.sample(500), q.sample(500), path) for _ in range(100)])
    times = path.at((torch.arange(200) + 0.5) / 200)
    alpha, sigma = path.alpha(times), path.sigma(times)
    laws = torch.stack([alpha * 0.5, torch.hypot(0.4 * alpha, sigma), -0.3 * alpha, torch.hypot(0.9 * alpha, sigma)], 1)
    expected = math.log(2) - sum(jsd_by_quadrature(*law) for law in laws.tolist()) / 200
    assert abs(float(losses.mean()) - expected) < 4 * float(losses.std()) / 10 < 0.01


class Seen(nn.Module):
    """A logit that keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t=None, **cond):
        self.seen.append((x.clone(), t, cond))
        return x.flatten(1).sum(1)


@pytest.mark.parametrize("event", [(3,), (2, 2, 2)])
@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.CondOT()], ids=lambda p: type(p).__name__)
def test_a_real_sample_and_its_fakes_share_their_time_and_noise(path, event):
    net, real, fake = Seen(), torch.randn(4, *event), torch.randn(8, *event)
    t, noise = torch.rand(4), torch.randn(4, *event)
    sdegen.ratio_loss(net, real, fake, path, t=t, noise=noise)
    ((x, times, _),) = net.seen
    for copy, samples in enumerate([real, fake[:4], fake[4:]]):
        rows = slice(4 * copy, 4 * copy + 4)
        torch.testing.assert_close(x[rows], path.perturb(samples, t, noise)[0], rtol=1e-14, atol=1e-14)
        assert torch.equal(times[rows], t)
    sdegen.ratio_loss(net, real, fake, path, t=0.5, noise=noise)
    assert torch.equal(net.seen[1][1], torch.full((12,), 0.5))
    net.seen.clear()
    sdegen.ratio_loss(net, real, real.repeat(3, *[1] * len(event)), path)
    x, times, _ = net.seen[0]
    for copy in range(1, 4):  # fakes that are the real samples are diffused as these are
        assert torch.equal(x[4 * copy : 4 * copy + 4], x[:4])
        assert torch.equal(times[4 * copy : 4 * copy + 4], times[:4])
    assert len(times[:4].unique()) == 4


def test_one_generator_per_real_sample_draws_its_time_and_its_noise():
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in range(4)]

    net, real, fake, path = Seen(), torch.randn(4, 2), torch.randn(8, 2), sdegen.VPSDE()
    sdegen.ratio_loss(net, real, fake, path, generator=generators())
    sdegen.ratio_loss(net, real[2:], fake.unflatten(0, (2, 4))[:, 2:].flatten(0, 1), path, generator=generators()[2:])
    both, part = (x.unflatten(0, (3, -1)) for x, _, _ in net.seen)
    assert torch.equal(both[:, 2:], part)
    before = torch.get_rng_state()
    drawn = [sdegen.ratio_loss(net, real, fake, path, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("path", [None, sdegen.VPSDE()])
def test_conditions_go_with_the_real_rows_and_with_their_fakes(path):
    net, c, table = Seen(), torch.randn(4, 2), torch.randn(4, 7)
    sdegen.ratio_loss(
        net, torch.randn(4, 3), torch.randn(12, 3), path, cond={"c": c, "table": sdegen.Shared(table), "scale": 2.0}
    )
    ((x, t, cond),) = net.seen
    assert (t is None) == (path is None)
    assert len(x) == 16
    assert torch.equal(cond["c"], torch.cat([c] * 4))
    assert torch.equal(cond["table"], table)
    assert cond["scale"] == 2.0


def test_a_module_is_asked_in_its_own_precision_and_in_the_mode_it_is_in():
    class Logit(nn.Linear):
        def forward(self, x, t):
            assert x.dtype is t.dtype is self.weight.dtype
            assert self.training
            return super().forward(x)[:, 0]

    real, fake = torch.randn(4, 3), torch.randn(4, 3)
    for dtype in (torch.float32, torch.bfloat16):
        loss = sdegen.ratio_loss(Logit(3, 1).to(dtype), real, fake, sdegen.VPSDE())
        assert loss.dtype is torch.float32
        assert loss.shape == ()


def test_times_are_not_rounded_to_half_precision():
    net, path, real, noise = Seen(), sdegen.VESDE(), torch.randn(2, 4, 3).half(), torch.randn(4, 3).half()
    loss = sdegen.ratio_loss(net, real[0], real[1], path, t=0.9003, noise=noise)
    wide = torch.cat([path.perturb(x.float(), 0.9003, noise.float())[0] for x in real])
    torch.testing.assert_close(net.seen[0][0], wide.half(), rtol=0, atol=0)
    assert loss.dtype is torch.float32


def test_a_network_may_write_into_what_it_sees():
    def net(x, *rest):
        return x.mul_(2).sum(1)

    real, fake, path = torch.randn(4, 2), torch.randn(8, 2), sdegen.VPSDE()
    before = real.clone(), fake.clone()
    for _ in range(2):
        sdegen.ratio_loss(net, real, fake)
        sdegen.ratio_loss(net, real, fake, path)
        sdegen.contrastive_loss(net, real, fake.unflatten(0, (2, 4)))
        sdegen.jsd(net, real, fake)
    assert torch.equal(real, before[0])
    assert torch.equal(fake, before[1])


def test_gradients_reach_what_made_the_fakes():
    """A generator's shift moves the fakes towards the real samples: minus this loss is its own."""
    shift = torch.zeros(1, requires_grad=True)
    real, fake = sdegen.Gaussian([1.0], 1.0).sample(2000), sdegen.Gaussian([0.0], 1.0).sample(2000)
    logit = exact_logit(sdegen.VPSDE(), *[(torch.tensor([m]), torch.eye(1)) for m in (1.0, 0.0)])
    losses = (
        sdegen.ratio_loss(lambda x: logit(x, torch.zeros(len(x))), real, fake + shift),
        sdegen.ratio_loss(logit, real, fake + shift, sdegen.VPSDE()),
    )
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, shift)
        assert float(gradient) > 0.01
