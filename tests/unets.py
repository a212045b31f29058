"""Tiny U-Nets of diffusers with attention, their schedulers in double precision, and their loops fed with our noise."""

from __future__ import annotations

import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    ddpm_module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    UNet2DOutput = pytest.importorskip("diffusers.models.unets.unet_2d").UNet2DOutput

BLOCKS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
SIZES = {"block_out_channels": (4, 8), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 4}


def unet(channels=1, size=4, learns_variance=False, **options):
    """In torch's default dtype, in eval mode, the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        outputs = 2 * channels if learns_variance else channels
        sizes = {"sample_size": size, "in_channels": channels, "out_channels": outputs}
        return diffusers.UNet2DModel(**sizes, **BLOCKS, **SIZES, **options).eval()


def saved(folder, net, scheduler):
    """The folder of a pipeline, as diffusers writes it."""
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(folder)
    return folder


def double(scheduler, betas):
    """Their scheduler with its tables from these betas in float64, as its constructor computes them."""
    scheduler.betas = betas.clone()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    clean = scheduler.config.get("set_alpha_to_one", True)
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones(())
    if not clean:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


@torch.no_grad()
def their_chain(monkeypatch, scheduler, net, x, noise, **options):
    """The last state of the loop of diffusers, whose noise is ours; every timestep it asked at."""
    for k, z in zip(scheduler.timesteps, noise, strict=True):
        monkeypatch.setattr(ddpm_module, "randn_tensor", lambda shape, z=z, **_: z)
        x = scheduler.step(net(scheduler.scale_model_input(x, k), k).sample, k, x, **options).prev_sample
    return x


def gap(ours, theirs):
    """The largest difference, relative to the size of the states."""
    return float(((ours - theirs).abs() / (1 + theirs.abs())).max())
