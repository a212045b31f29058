"""Discriminator guidance: a model and the log-ratio to another law are that law's own model."""

from __future__ import annotations

import math

import pytest
import torch
from classified import exact_logit
from steered import COVARIANCE, LAW, MEAN, PATHS, ends, is_the_same_model

import sdegen
from sdegen.nets import MLP

OTHER = (torch.tensor([-0.2, 0.4, 0.0], dtype=torch.float64), torch.diag(torch.tensor([0.5, 1.2, 0.8]).double()))
TARGET_MEAN, TARGET_STD, STD = (torch.tensor(v, dtype=torch.float64) for v in ([0.5, -0.3], [0.4, 0.9], [0.7, 0.6]))
TARGET = sdegen.Gaussian(TARGET_MEAN, covariance=torch.diag(TARGET_STD**2))
MODEL = sdegen.Gaussian(torch.zeros(2).double(), covariance=torch.diag(STD**2))
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


def logit_of_target(path):
    return exact_logit(path, (TARGET_MEAN, torch.diag(TARGET_STD**2)), (torch.zeros(2), torch.diag(STD**2)))


@every_path
def test_with_the_exact_logit_every_answer_sampler_and_density_is_the_target_s(path):
    model = sdegen.Gaussian(OTHER[0], covariance=OTHER[1]).model(path)
    logit = exact_logit(path, (MEAN, COVARIANCE), OTHER)
    is_the_same_model(sdegen.Guided(model, logit), LAW.model(path))


@every_path
def test_the_score_and_the_density_to_rounding(path):
    guided, exact = sdegen.Guided(MODEL.model(path), logit_of_target(path)), TARGET.model(path)
    x, t = TARGET.sample(200), path.at(torch.linspace(0.05, 0.9, 200))
    x_t = path.perturb(x, t)[0]
    torch.testing.assert_close(guided.score(x_t, t), exact.score(x_t, t), rtol=1e-12, atol=1e-12)
    u = ends(path) and ends(path)[::-1]
    ours, theirs = (sdegen.log_prob(model, x, sdegen.Adams(40), u=u) for model in (guided, exact))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_the_guided_density_is_the_target_s_own():
    """In closed form, from the law that the noise end has: what the ODE solver misses is all there is."""
    path = sdegen.VPSDE()
    guided, x = sdegen.Guided(MODEL.model(path), logit_of_target(path)), TARGET.sample(20)
    prior = TARGET.marginal(path, path.t_noise)
    found = sdegen.log_prob(guided, x, sdegen.ODESolver("dopri8", rtol=1e-10), prior=prior)
    torch.testing.assert_close(found, TARGET.log_prob(x), rtol=0, atol=1e-7)


def test_a_short_training_corrects_a_model_of_other_data():
    """The cookbook's: 84 to 97 % of the gap in ten trials."""
    torch.set_default_dtype(torch.float32)
    data, held_out, rough = TARGET.sample(4000).float(), TARGET.sample(500).float(), MODEL.model(sdegen.VPSDE())
    fake, net = sdegen.sample(rough, (4000, 2), sdegen.Adams(10)), MLP(2, hidden=64, depth=2)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 200)

    def logit(x_t, t):
        return net(x_t, t).sum(1)

    for _ in range(200):
        i, j = torch.randint(4000, (2, 512))
        loss = sdegen.ratio_loss(logit, data[i], fake[j], rough.path)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    corrected = sdegen.Guided(rough, logit)
    before, after = (sdegen.log_prob(m, held_out, sdegen.Adams(40)).mean() for m in (rough, corrected))
    assert float(after - before) > 0.6 * float(TARGET.log_prob(held_out).mean() - before) > 0.3

    at_the_data = [lambda x, f=f: f(x, torch.zeros(len(x))) for f in (logit, logit_of_target(rough.path))]
    found, exact = (sdegen.jsd(f, held_out, fake) for f in at_the_data)
    assert 4 * float(found.standard_error) < float(found.value)
    assert float(found.value - exact.value) < 2 * float(exact.standard_error)  # on the same draws, and below on average


@pytest.mark.slow
def test_a_trained_logit_closes_most_of_the_gap():
    """In mean log p over 300 points of the target, 98 % where this was written; its loss is hardly above the least."""
    torch.set_default_dtype(torch.float32)
    path, net = sdegen.VPSDE(), MLP(2, hidden=64, depth=3)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)

    def logit(x_t, t):
        return net(x_t, t).sum(1)

    for _ in range(800):
        loss = sdegen.ratio_loss(logit, TARGET.sample(512).float(), MODEL.sample(512).float(), path)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        real, fake = TARGET.sample(100_000).float(), MODEL.sample(100_000).float()
        drawn = {"t": 1 - torch.rand(100_000), "noise": torch.randn(100_000, 2)}
        trained, exact = (sdegen.ratio_loss(f, real, fake, path, **drawn) for f in (logit, logit_of_target(path)))
    assert 0 < float(trained - exact) < 0.005 < math.log(2) - float(exact)
    x, model, solver = TARGET.sample(300).float(), MODEL.model(path), sdegen.Adams(40)
    before, after = (sdegen.log_prob(m, x, solver).mean() for m in (model, sdegen.Guided(model, logit)))
    closed = float((after - before) / (TARGET.log_prob(x).mean() - before))
    print(f"closed {closed:.3f} of the gap, loss above the least {float(trained - exact):.5f}")
    assert 0.6 < closed <= 1.05
