"""Betas that were rescaled to end in pure noise: the last one is 1, and the chain starts at u = 1 exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from unets import diffusers, double, gap, unet

import sdegen
from sdegen.interop.diffusers import from_diffusers, spacing

OPTIONS = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "clip_sample": False}
MEAN, STD = 0.7, 0.4


def rescaled(steps=1000):
    """Algorithm 1 of Lin et al. on the linear betas."""
    root = torch.cumprod(1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64), 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return 1 - torch.cat([root[:1] ** 2, (root[1:] / root[:-1]) ** 2])


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_trailing_ddim_is_theirs(prediction):
    theirs = diffusers.DDIMScheduler(timestep_spacing="trailing", **{**OPTIONS, "prediction_type": prediction})
    theirs.set_timesteps(8)
    net, x = unet(), torch.randn(2, 1, 4, 4)
    model = from_diffusers(net, theirs)
    assert model.path.ends == (0.0, 1.0)
    assert gap(model.path.betas, rescaled()) < 1e-12
    solution = sdegen.solve(model, x, sdegen.DDIM(grid=spacing(theirs, 8)))
    assert solution.u[0] == 1
    double(theirs, rescaled())
    for k in theirs.timesteps:
        x = theirs.step(net(x, k).sample, k, x).prev_sample.detach()
    assert gap(solution.x, x) < 1e-12


class GaussianNet(nn.Module):
    """v of data N(MEAN, STD^2) on the rescaled chain, from the timestep alone; B is linear between the knots."""

    path = sdegen.DDPM(rescaled())

    def forward(self, x, timestep):
        t = (timestep.reshape(-1, 1) + 1) / 1000
        alpha, sigma = (f(t) for f in (self.path.alpha, self.path.sigma))
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x_hat = MEAN + gain * (x - alpha * MEAN)
        eps_hat = sigma / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        return (alpha * eps_hat - sigma * x_hat,)


def test_the_density_of_gaussian_data_is_exact_there():
    """From the first knot on by a network; by the exact model from clean data, where a network never was."""
    model = from_diffusers(GaussianNet(), diffusers.DDIMScheduler(**OPTIONS))
    x, path = torch.linspace(-1, 2, 6).reshape(3, 2), model.path
    solver = sdegen.ODESolver("dopri8", rtol=1e-10)
    exact = sdegen.Gaussian([MEAN, MEAN], STD)
    torch.testing.assert_close(sdegen.log_prob(exact.model(path), x, solver), exact.log_prob(x), rtol=0, atol=1e-8)
    first = torch.tensor(1 / 1000)
    alpha, sigma = float(path.alpha(first)), float(path.sigma(first))
    law = sdegen.Gaussian([alpha * MEAN] * 2, math.sqrt(alpha**2 * STD**2 + sigma**2))
    logp = sdegen.log_prob(model, x, solver, u=(float(path.clock(first)), 1.0))
    torch.testing.assert_close(logp, law.log_prob(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["DDPM", "DDIM", "EulerDiscrete", "UniPCMultistep"])
def test_eps_says_nothing_of_the_data_in_pure_noise(kind):
    theirs = getattr(diffusers, f"{kind}Scheduler")(rescale_betas_zero_snr=True)
    words = (
        r"^prediction_type 'epsilon' is refused at zero terminal SNR: the chain ends in pure noise, .*'v_prediction'"
    )
    with pytest.raises(ValueError, match=words):
        from_diffusers(unet(), theirs)


def test_trained_betas_that_end_in_one_are_as_much_pure_noise():
    betas = [0.1, 0.2, 1.0]
    options = {"num_train_timesteps": 3, "trained_betas": betas}
    assert from_diffusers(unet(), diffusers.DDPMScheduler(prediction_type="sample", **options)).path.ends[1] == 1
    with pytest.raises(ValueError, match="zero terminal SNR"):
        from_diffusers(unet(), diffusers.DDPMScheduler(**options))
