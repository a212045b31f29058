"""diffusers' schedulers as peers: the chain of 1000 steps whose abar_k is the VP path's alpha^2 at t = (k+1)/1000.

A scheduler asks the network at the timestep k it lists, whole or not, which is t = (k+1)/1000: where it rounds its
timesteps, the network is asked beside the state's own noise level, as diffusers does with any network.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from peers import Field, Peer, clock
from torch import Tensor

import sdegen

CHAIN = 1000
Options = Mapping[str, object]

GRIDS: Mapping[str, Options] = {
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exp": {"use_exponential_sigmas": True},
}
FINALS: Mapping[str, Options] = {f",{final}": {"final_sigmas_type": final} for final in ("zero", "sigma_min")}
ANY_FINAL: Mapping[str, Options] = {"": {}}
SIGMA_MIN: Mapping[str, Options] = {",sigma_min": FINALS[",sigma_min"]}

Scheduler = tuple[str, Options, Mapping[str, Options]]  # its class, options, and the final sigmas that it knows

DPM, UNIPC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
ODE_SCHEDULERS: Mapping[str, Scheduler] = {
    "DPMSolver++2M": (DPM, {"solver_order": 2}, FINALS),
    "DPMSolver++3M": (DPM, {"solver_order": 3}, FINALS),
    "DPMSolver2M": (DPM, {"solver_order": 2, "algorithm_type": "dpmsolver"}, SIGMA_MIN),
    "DPMSolver3M": (DPM, {"solver_order": 3, "algorithm_type": "dpmsolver"}, SIGMA_MIN),
    "DPMSolver++3S": ("DPMSolverSinglestepScheduler", {"solver_order": 3}, FINALS),
    "UniPC2": (UNIPC, {"solver_order": 2}, FINALS),
    "UniPC3": (UNIPC, {"solver_order": 3}, FINALS),
    "DEIS2": (DEIS, {"solver_order": 2}, ANY_FINAL),
    "DEIS3": (DEIS, {"solver_order": 3}, ANY_FINAL),
    "SASolver": ("SASolverScheduler", {"tau_func": lambda t: 0}, ANY_FINAL),
    "Euler": ("EulerDiscreteScheduler", {}, FINALS),
    "Heun": ("HeunDiscreteScheduler", {}, ANY_FINAL),
    "LMS": ("LMSDiscreteScheduler", {}, ANY_FINAL),
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, ANY_FINAL),
    "PNDM(plms)": ("PNDMScheduler", {"skip_prk_steps": True}, ANY_FINAL),
}
SDE_SCHEDULERS: Mapping[str, Scheduler] = {
    "sde-DPMSolver++2M": (DPM, {"algorithm_type": "sde-dpmsolver++"}, ANY_FINAL),
    "sde-DPMSolver++3M": (DPM, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, ANY_FINAL),
    "SASolver": ("SASolverScheduler", {}, ANY_FINAL),
    "EulerAncestral": ("EulerAncestralDiscreteScheduler", {}, ANY_FINAL),
    "DDPM fixed_large": ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}, ANY_FINAL),
    "DDPM fixed_small": ("DDPMScheduler", {"clip_sample": False}, ANY_FINAL),
}
ONLY_GRIDS: Mapping[str, tuple[str, ...]] = {  # of the others, all
    "DPMSolverSinglestepScheduler": ("karras", "exp"),
    "DDIMScheduler": ("linspace", "trailing"),
    "PNDMScheduler": ("leading", "linspace", "trailing"),
    "DDPMScheduler": ("linspace", "trailing"),
    "EulerAncestralDiscreteScheduler": ("linspace", "trailing"),
}
STEPS: Mapping[str, Callable[[int], int]] = {  # what to ask of set_timesteps for so many network calls
    "HeunDiscreteScheduler": lambda calls: (calls + 1) // 2,
    "PNDMScheduler": lambda calls: max(calls - 1, 1),
}
END: Mapping[str, Callable[[Field], float]] = {  # those without sigmas: to abar = 1, or to abar_0
    "DDIMScheduler": lambda field: 0.0,
    "DDPMScheduler": lambda field: 0.0,
    "PNDMScheduler": lambda field: clock(field.ratio(1 / CHAIN)),
}


@lru_cache
def betas() -> list[float]:
    """1 - abar_k / abar_{k-1} of the VP path at t = (k+1)/1000."""
    B = sdegen.VPSDE().integrated_beta(torch.arange(CHAIN + 1, dtype=torch.float64) / CHAIN)
    return (-torch.expm1(-torch.diff(B))).tolist()


def scheduler_of(name: str, options: Options) -> Any:
    """A scheduler on the VP path's chain."""
    schedulers = importlib.import_module("diffusers")
    schedulers.logging.set_verbosity_error()
    return getattr(schedulers, name)(num_train_timesteps=CHAIN, trained_betas=np.array(betas()), **options)


def run(scheduler: str, options: Options, field: Field, x_T: Tensor, calls: int) -> tuple[Tensor, float]:
    """diffusers' own loop with a fresh scheduler: scale, ask, step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chain = scheduler_of(scheduler, options)
        chain.set_timesteps(STEPS.get(scheduler, int)(calls))
        x = x_T
        if float(chain.init_noise_sigma) > 1:  # the state is x/alpha
            x = x_T * (1 + float(chain.sigmas[0]) ** 2) ** 0.5
        for k in chain.timesteps:
            eps = field.eps(chain.scale_model_input(x, k), (float(k) + 1) / CHAIN)
            x = chain.step(eps, k, x).prev_sample
    if scheduler in END:
        return x, END[scheduler](field)
    return x, clock(float(chain.sigmas[-1]))


def deterministic() -> list[Peer]:
    """Every scheduler on every grid that it knows."""
    return [peer for name, row in ODE_SCHEDULERS.items() for peer in _variants(f"{name} ·", *row)]


def stochastic() -> list[Peer]:
    """The ancestral and the stochastic multistep schedulers."""
    return [peer for name, row in SDE_SCHEDULERS.items() for peer in _variants(name, *row)]


def _variants(name: str, scheduler: str, options: Options, finals: Mapping[str, Options]) -> list[Peer]:
    peers = []
    for grid in ONLY_GRIDS.get(scheduler, tuple(GRIDS)):
        spacing = GRIDS.get(grid, {"timestep_spacing": grid})
        for label, final in finals.items():
            chosen = partial(run, scheduler, {**options, **spacing, **final})
            peers.append(Peer(f"diffusers {name} {grid}{label}", "diffusers", chosen))
    return peers
