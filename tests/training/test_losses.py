"""Losses: DSM is the eps-loss, weightings mean the same for every prediction, floors and minimisers."""

from __future__ import annotations

import math

import pytest
import torch
from problems import PATHS, OwnFlow
from torch import nn

import sdegen
from sdegen.models.model import PREDICTIONS

ALL = {**PATHS, "own flow": OwnFlow()}
every_path = pytest.mark.parametrize("path", ALL.values(), ids=ALL.keys())


class Wrong(nn.Module):
    """One wrong but smooth estimate of the data, handed out as any prediction."""

    def __init__(self, path, name):
        super().__init__()
        self.path, self.name = path, name

    def forward(self, x_t, t):
        alpha, sigma = self.path.alpha(t)[:, None], self.path.sigma(t)[:, None]
        x = torch.tanh(x_t) * (1 + t[:, None])
        eps = (x_t - alpha * x) / sigma
        slopes = self.path.slopes(t)
        return {
            "data": x,
            "eps": eps,
            "score": -eps / sigma,
            "velocity": slopes.alpha[:, None] * x + slopes.sigma[:, None] * eps,
            "v": alpha * eps - sigma * x,
        }[self.name]


def one_loss(path, name, x, t, noise, **options):
    model = sdegen.ScoreModel(Wrong(path, name), path, name)
    return sdegen.loss(model, x, t=t, noise=noise, reduction="none", **options)


@every_path
def test_denoising_score_matching_is_the_eps_loss(path):
    """sigma^2 |s_theta - grad log q|^2 = |eps_theta - eps|^2, sample by sample."""
    x, noise = torch.randn(6, 3), torch.randn(6, 3)
    t = path.t_data + (path.t_noise - path.t_data) * torch.linspace(0.05, 0.95, 6)
    by_hand_x_t = path.alpha(t)[:, None] * x + path.sigma(t)[:, None] * noise
    sigma = path.sigma(t)[:, None]
    score = Wrong(path, "score")(by_hand_x_t, t)
    dsm = ((sigma * (score + noise / sigma)) ** 2).mean(1)
    torch.testing.assert_close(one_loss(path, "score", x, t, noise), dsm, rtol=1e-10, atol=0)
    torch.testing.assert_close(one_loss(path, "eps", x, t, noise), dsm, rtol=1e-10, atol=0)


@every_path
@pytest.mark.parametrize("weighting", [sdegen.LikelihoodWeighting(), sdegen.MinSNR(), sdegen.MinSNR(0.5)])
def test_weightings_agree_number_for_number(path, weighting):
    x, noise = torch.randn(6, 3), torch.randn(6, 3)
    t = path.t_data + (path.t_noise - path.t_data) * torch.linspace(0.05, 0.95, 6)
    losses = [one_loss(path, name, x, t, noise, weighting=weighting) for name in PREDICTIONS]
    eps = Wrong(path, "eps")(path.perturb(x, t, noise)[0], t)
    by_hand = weighting(path, t) * ((eps - noise) ** 2).mean(1)
    for one in losses:
        torch.testing.assert_close(one, by_hand, rtol=1e-9, atol=0)


@every_path
def test_weights_are_what_they_say(path):
    t = path.t_data + (path.t_noise - path.t_data) * torch.linspace(0.05, 0.95, 9) + 3e-4
    h = 1e-6
    span = abs(path.t_noise - path.t_data)  # the weight is per fraction of the path
    rate = span * ((path.log_snr(t + h) - path.log_snr(t - h)) / (2 * h)).abs()
    torch.testing.assert_close(sdegen.LikelihoodWeighting()(path, t), 0.5 * rate, rtol=1e-6, atol=0)
    snr = torch.exp(path.log_snr(t))
    torch.testing.assert_close(sdegen.MinSNR(5)(path, t), torch.clamp(snr, max=5) / snr, rtol=1e-9, atol=0)


@every_path
def test_likelihood_times_make_the_weight_constant(path):
    times = sdegen.LikelihoodTimes(1e-3, 0.99)
    t, importance = times(path, 64, torch.Generator().manual_seed(0), torch.float64, torch.device("cpu"))
    u = path.clock(t)
    low, high = max(1e-3, path.ends[0]), min(0.99, path.ends[1])
    assert low - 1e-12 < float(u.min()) < float(u.max()) < high + 1e-12
    span = 2 * math.log((1 - low) / low) - 2 * math.log((1 - high) / high)
    product = importance * sdegen.LikelihoodWeighting()(path, t)
    torch.testing.assert_close(product, torch.full_like(product, 0.5 * span), rtol=1e-8, atol=0)
    steps = torch.diff(path.log_snr(t).sort().values)
    assert float(steps.max() / steps.min()) < 1 + 1e-5  # evenly spread in log-SNR


def test_low_discrepancy_times_are_even_and_uniform_times_are_uniform():
    path, cpu = sdegen.CondOT(), torch.device("cpu")
    t, weight = sdegen.LowDiscrepancyTimes()(path, 100, torch.Generator().manual_seed(0), torch.float64, cpu)
    assert bool((torch.diff(t.sort().values) - 0.01).abs().max() < 1e-12)
    assert torch.equal(weight, torch.ones(100))
    t, _ = sdegen.UniformTimes()(path, 100_000, torch.Generator().manual_seed(0), torch.float64, cpu)
    assert bool(((t >= 0) & (t < 1)).all())
    sorted_t, exact = t.sort().values, (torch.arange(100_000) + 0.5) / 100_000
    assert float((sorted_t - exact).abs().max()) < 2.7 / math.sqrt(100_000)  # Kolmogorov, significance 1e-6


@every_path
def test_the_floor_of_the_loss_is_the_posterior_variance(path):
    """THEORY 4.2: E|eps - eps_hat|^2 = alpha^2 S / V per dimension at the exact score, within 5 standard errors."""
    S, m, n = 0.25, 0.8, 20_000
    exact = sdegen.Gaussian([m], math.sqrt(S))
    model = exact.model(path)
    t = path.t_data + 0.45 * (path.t_noise - path.t_data)
    net = sdegen.ScoreModel(lambda x, t: model.eps(x, t), path)
    errors = sdegen.loss(net, exact.sample(n), t=t, reduction="none")
    alpha, sigma = float(path.alpha(torch.tensor(t))), float(path.sigma(torch.tensor(t)))
    floor = alpha**2 * S / (alpha**2 * S + sigma**2)
    assert abs(float(errors.mean()) - floor) < 5 * float(errors.std()) / math.sqrt(n)


@every_path
@pytest.mark.parametrize("name", list(PREDICTIONS))
def test_the_minimiser_on_gaussian_data_is_the_exact_prediction(path, name):
    """Fit prediction = w x_t + b by least squares on `loss` at one t; data nodes and noise nodes make it exact."""
    S, m = 0.25, 0.8
    t = path.t_data + 0.45 * (path.t_noise - path.t_data)
    data = torch.tensor([m - math.sqrt(S), m + math.sqrt(S)]).repeat_interleave(2)[:, None]  # two-point rules: exact
    noise = torch.tensor([-1.0, 1.0]).repeat(2)[:, None]  # for polynomials up to degree three
    line = nn.Linear(1, 1)

    def gradients():
        line.zero_grad()
        sdegen.loss(sdegen.ScoreModel(lambda x, t: line(x), path, name), data, t=t, noise=noise).backward()
        return torch.cat([line.weight.grad.flatten(), line.bias.grad])

    exact = sdegen.Gaussian([m], math.sqrt(S)).model(path)
    at = getattr(exact, name)(torch.tensor([[0.0], [1.0]]), t)[:, 0]
    with torch.no_grad():
        line.weight.fill_(at[1] - at[0])
        line.bias.fill_(at[0])
    assert float(gradients().abs().max()) < 1e-10
    with torch.no_grad():
        line.bias += 0.1
    assert float(gradients().abs().max()) > 1e-3


def test_mean_is_over_batch_and_event_and_randomness_is_the_generator_s():
    path = sdegen.VPSDE()
    model = sdegen.ScoreModel(Wrong(path, "eps"), path)
    x = torch.randn(7, 3)
    state = torch.get_rng_state()
    one = sdegen.loss(model, x, generator=torch.Generator().manual_seed(1))
    two = sdegen.loss(model, x, generator=torch.Generator().manual_seed(1), reduction="none")
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(one, two.mean())
    each = [torch.Generator().manual_seed(i) for i in range(7)]
    batch = sdegen.loss(model, x, generator=each, reduction="none")
    alone = sdegen.loss(model, x[3:4], generator=[torch.Generator().manual_seed(3)], reduction="none")
    torch.testing.assert_close(batch[3:4], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("predicts", ["eps", "score", "v"])
@pytest.mark.parametrize("path", [sdegen.CondOT(), sdegen.CosineVPSDE()])
def test_weighted_losses_are_finite_at_pure_noise(path, predicts):
    model = sdegen.ScoreModel(lambda x, t: torch.tanh(x), path, predicts)
    assert bool(torch.isfinite(sdegen.loss(model, torch.randn(4, 2), t=path.t_noise, weighting=sdegen.MinSNR())))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"times": "uniform"}, TypeError, "'uniform'"),
        ({"weighting": "likelihood"}, TypeError, "'likelihood'"),
        ({"weighting": lambda path, t: t[:, None]}, ValueError, r"\(4, 1\)"),
        ({"times": lambda *a: (torch.ones(1), torch.ones(1))}, ValueError, r"\(1,\)"),
        ({"t": 1.5}, ValueError, "1.5"),
        ({"t": torch.tensor([0.1, 0.2])}, ValueError, r"\(4,\).*\(2,\)"),
        ({"t": 0.5, "times": sdegen.UniformTimes()}, ValueError, "either"),
        ({"noise": torch.zeros(4, 3)}, ValueError, r"\(4, 3\)"),
        ({"reduction": "sum"}, ValueError, "'sum'"),
        ({"generator": [torch.Generator()]}, ValueError, "4 generators"),
        ({"generator": 3}, TypeError, "3"),
        ({"cond": [1]}, TypeError, "list"),
    ],
)
def test_bad_options(options, error, says):
    path = sdegen.VPSDE()
    calls = []
    model = sdegen.ScoreModel(lambda x, t: calls.append(1) or x, path)
    with pytest.raises(error, match=says):
        sdegen.loss(model, torch.zeros(4, 2), **options)
    assert not calls


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (torch.zeros(4, 2, dtype=torch.uint8), TypeError, "uint8.*dequantise"),
        (torch.zeros(4, 2, dtype=torch.complex64), TypeError, "complex"),
        (torch.zeros(4), ValueError, r"\(4,\)"),
        (torch.tensor([[0.0], [math.nan]]), ValueError, "1 of its 2"),
        ([[1.0]], TypeError, "list"),
    ],
)
def test_bad_data(x, error, says):
    with pytest.raises(error, match=says):
        sdegen.loss(sdegen.ScoreModel(lambda x, t: x, sdegen.VPSDE()), x)


def test_bad_values():
    for make in (
        lambda: sdegen.MinSNR(0),
        lambda: sdegen.LikelihoodTimes(0.0),
        lambda: sdegen.LikelihoodTimes(0.5, 0.4),
        lambda: sdegen.LikelihoodTimes(1e-3, 5e-3)(sdegen.VESDE(), 4, None, torch.float32, torch.device("cpu")),
        lambda: sdegen.loss(sdegen.ScoreModel(lambda x, t: x, sdegen.VPSDE()), torch.zeros(0, 2)),
        lambda: sdegen.loss(sdegen.Gaussian([0.0], 1.0).model(sdegen.VPSDE()), torch.zeros(1, 1)),
    ):
        with pytest.raises((ValueError, TypeError)):
            make()


def test_importance_weights_reach_the_loss():
    """loss(times=) is the weighted mean of the losses at the times drawn."""
    path, x, noise = sdegen.VPSDE(), torch.randn(5, 2), torch.randn(5, 2)
    t, weight = torch.linspace(0.1, 0.9, 5), torch.linspace(0.5, 2.0, 5)
    model = sdegen.ScoreModel(Wrong(path, "eps"), path)
    drawn = sdegen.loss(model, x, times=lambda *_: (t, weight), noise=noise, reduction="none")
    torch.testing.assert_close(drawn, weight * sdegen.loss(model, x, t=t, noise=noise, reduction="none"))


@pytest.mark.parametrize("times", [sdegen.LowDiscrepancyTimes(), sdegen.LikelihoodTimes(0.01, 0.9)])
def test_every_row_is_uniform_by_itself(times):
    """Over many draws each row of the batch has the mean of the whole, so sorted data does not bias the loss."""
    g, path = torch.Generator().manual_seed(0), sdegen.VPSDE()
    draws = [times(path, 4, g, torch.float64, torch.device("cpu"))[0] for _ in range(4000)]
    clock = path.log_snr(torch.stack(draws))
    error = (clock.mean(0) - clock.mean()) / (clock.std() / math.sqrt(4000))
    assert float(error.abs().max()) < 5
