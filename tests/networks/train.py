"""Train the two networks that the tests share, and save their weights beside this file: about 8 minutes on one core.

    PYTHONPATH=tests OMP_NUM_THREADS=1 python tests/networks/train.py

Prints what became of them: bits/dim of held-out digits and nats of held-out moons, beside those of a fitted Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from networks import FOLDER, blank_mlp, blank_unet, digits_unet, plane_mlp
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sdegen
from sdegen.datasets import bits_per_dim, dequantise, digits, two_moons

Batch = Callable[[int], tuple[Tensor, dict[str, Any] | None]]


def train(model: sdegen.ScoreModel, batch: Batch, steps: int, rate: float) -> sdegen.ScoreModel:
    """Adam on the plain loss, a rate that rises and falls once, and an average of the weights."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimiser = torch.optim.Adam(model.parameters(), rate)
    schedule = OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        x, cond = batch(step)
        loss = sdegen.loss(model, x, times=sdegen.LowDiscrepancyTimes(), cond=cond)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(model)
        if step % 1000 == 999:
            print(f"  step {step + 1}: loss {loss.item():.4f}", flush=True)
    return average.module


def train_digits(folder: Path) -> None:
    """The U-Net: eps on VPSDE, dequantised digits with their labels, every eighth step without."""
    torch.manual_seed(0)
    images, labels = digits("train")

    def batch(step: int) -> tuple[Tensor, dict[str, Any] | None]:
        i = torch.randint(len(images), (64,))
        return dequantise(images[i]), {"label": labels[i]} if step % 8 else None

    print("digits U-Net")
    model = sdegen.ScoreModel(blank_unet(), sdegen.VPSDE(), predicts="eps")
    model = train(model, batch, 8000, 6e-3)
    save_file(model.net.state_dict(), folder / "digits_unet.safetensors")


def train_plane(folder: Path) -> None:
    """The MLP: v on VPSDE, fresh points of two moons in every step."""
    torch.manual_seed(0)
    print("plane MLP")
    model = sdegen.ScoreModel(blank_mlp(), sdegen.VPSDE(), predicts="v")
    model = train(model, lambda step: (two_moons(512), None), 15_000, 4e-3)
    save_file(model.net.state_dict(), folder / "plane_mlp.safetensors")


def report() -> None:
    """Held-out likelihoods of what was saved, in float64, beside those of a Gaussian fitted to the training data."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    x, gaussian = two_moons(1000), fitted(two_moons(10_000))
    logp = sdegen.log_prob(plane_mlp(), x, sdegen.ODESolver("dopri5", rtol=1e-5))
    print(f"moons: {logp.mean():.3f} nats; a fitted Gaussian {gaussian.log_prob(x).mean():.3f}")
    images, labels = digits("test")
    y, label = dequantise(images[:64]), labels[:64]
    gaussian = fitted(dequantise(digits("train")[0]))
    for name, cond in {"given the label": {"label": label}, "without": None}.items():
        logp = sdegen.log_prob(digits_unet(), y, sdegen.ODESolver("rk4", steps=8), cond=cond, trace="exact")
        print(f"digits, {name}: {bits_per_dim(logp, y.shape[1:]).mean():.3f} bits/dim")
    print(f"digits, a fitted Gaussian: {bits_per_dim(gaussian.log_prob(y), y.shape[1:]).mean():.3f} bits/dim")


def fitted(x: Tensor) -> sdegen.Gaussian:
    """The Gaussian with the mean and covariance of x."""
    covariance = torch.cov(x.flatten(1).T)
    return sdegen.Gaussian(x.mean(0), covariance=covariance)


if __name__ == "__main__":
    train_plane(FOLDER)
    train_digits(FOLDER)
    report()
