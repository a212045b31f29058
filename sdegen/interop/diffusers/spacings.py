"""The timesteps that a diffusers scheduler visits, as a grid: with K = num_train_timesteps, in K/K ... 1/K,

    leading     k = 1 + steps_offset + gap (n-1, ..., 1, 0),      gap = K // n
                k = 1 + steps_offset + gap (n, ..., 2, 1),        gap = K // (n+1), of DPMSolver, UniPC and DEIS
    trailing    k = K, K - K/n, ..., rounded
    linspace    k - 1 = K - 1, (K-1) (n-1)/n, ..., rounded,   of DPMSolver, UniPC and DEIS alone

and last k = 0, the data, or k = 1 where the scheduler stops at its first alphas_cumprod.

References:
    Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin et al., 2024, arXiv:2305.08891, table 2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdegen import _checks
from sdegen.interop.diffusers.schedules import FLOW, Config
from sdegen.paths.chain import DDPM, Knots

ABOVE_THE_FIRST = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
"""Those whose leading timesteps leave out the lowest."""

OFF_THE_GRID = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas")
"""Options that replace the spacing."""


def spacing(scheduler: object, steps: int) -> Knots:
    """The clocks that a scheduler of diffusers visits in so many steps, for `grid=` of any solver.

    On a chain the network is asked at exactly the timesteps of `scheduler.set_timesteps(steps)` (PNDM's without those
    it repeats), by "leading" or "trailing", and of DPMSolver, UniPC and DEIS by "linspace". A scheduler with
    set_alpha_to_one=False or final_sigmas_type="sigma_min", and every DEIS, stops at t = 1/K, where sigma^2 is beta_1,
    and not at the data; where that is also its last timestep, the step without length that it takes there is left out.
    In the last step to the data diffusers' DDPMScheduler adds noise where the timestep is not 0 and the variance not
    the posterior one, and its DDIM and PNDM go from t to t - K // steps, which under "trailing" is the next timestep
    only where `steps` divides K; here a chain goes from knot to knot and ends cleanly.

    Of a FlowMatchEulerDiscreteScheduler the knots are its sigmas, with its shift, from 1 to 0.

    Args:
        scheduler: one that `from_diffusers` takes.
        steps: how many network calls of a one-call method.

    Returns:
        the knots u from noise to data, (steps + 1,) in float64 on the CPU, with their own start and end.

    Raises:
        TypeError: an argument of another type.
        ValueError: a spacing that is no grid of its path, such as DDIM's "linspace", or more steps than there are.

    Examples:
        >>> from diffusers import DDIMScheduler
        >>> from sdegen.interop.diffusers import spacing
        >>> knots = spacing(DDIMScheduler(), 10)
        >>> len(knots), float(knots[-1])  # the data end
        (11, 0.0)

    References:
        Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin et al., 2024, arXiv:2305.08891, table 2.
    """
    config, steps = Config(scheduler), _checks.whole("steps", steps)
    for option in OFF_THE_GRID:
        if config.get(option):
            raise ValueError(
                f"{option}=True is refused: diffusers rounds the timesteps that belong to such sigmas, or interpolates "
                "them, so that they are on no grid of the path; give the solver one of sdegen's, such as KarrasGrid()."
            )
    if config.get("interpolation_type", "linear") != "linear":
        raise ValueError(
            f"interpolation_type {config.get('interpolation_type')!r} is refused: its sigmas are not those of the "
            "timesteps that the network is shown."
        )
    if config.kind == FLOW:
        return _shifted(config, getattr(scheduler, "shift", None), steps).as_subclass(Knots)
    path = DDPM(config.betas)
    k = torch.from_numpy(_visited(config, path, steps)).double()
    cleans = config.get("set_alpha_to_one", True) and config.get("final_sigmas_type", "zero") == "zero"
    last = 0 if cleans and config.kind != "DEISMultistepScheduler" else 1
    k = torch.cat([k, k.new_full((int(k[-1] != last),), last)])
    if k[0] > path.steps or len(k) < 2 or not bool((torch.diff(k) < 0).all()):
        raise ValueError(f"{config.kind} has no {steps} falling timesteps below {path.steps}: take fewer steps.")
    return path.clock(k / path.steps).as_subclass(Knots)


def _visited(config: Config, path: DDPM, steps: int) -> np.ndarray:
    """The k where the network is asked, in the arithmetic of diffusers."""
    name = config["timestep_spacing"]
    if name == "linspace" and config.kind not in ABOVE_THE_FIRST:
        why = (
            "asks between them" if config.kind == "EulerDiscreteScheduler" else "steps to t - K // steps, not the next"
        )
        raise ValueError(
            f"timestep_spacing 'linspace' is refused: {config.kind} then {why} of its timesteps, so that no grid is "
            f"its own; take {config.kind}.from_config(scheduler.config, timestep_spacing='trailing'), or 'leading'."
        )
    _checks.choice("timestep_spacing", name, ("leading", "trailing", "linspace"))
    last = _checks.whole("the number of timesteps above lambda_min_clipped", _unclipped(config, path))
    if name == "linspace":
        return 1 + np.linspace(0, last - 1, steps + 1).round()[:0:-1]
    if name == "trailing":
        k = np.arange(last, 0, -path.steps / steps).round()
        return k[k >= 1]
    above = int(config.kind in ABOVE_THE_FIRST)
    gap, offset = last // (steps + above), _checks.whole("steps_offset", config.get("steps_offset", 0), 0)
    return 1.0 + offset + gap * np.arange(steps - 1 + above, above - 1, -1)


def _unclipped(config: Config, path: DDPM) -> int:
    """How many timesteps have log(alpha/sigma) of at least lambda_min_clipped, an option of DPMSolver."""
    t = torch.arange(1, path.steps + 1, dtype=torch.float64) / path.steps
    least = config.get("lambda_min_clipped", -float("inf"))
    if not isinstance(least, (int, float)):
        raise TypeError(f"lambda_min_clipped must be a real number, and it is {least!r}.")
    return int((0.5 * path.log_snr(t) >= least).sum())


def _shifted(config: Config, shift: object, steps: int) -> Tensor:
    """The sigmas of flow matching: evenly spaced between the shifted ends, and shifted once more, as there."""
    if config.get("use_dynamic_shifting"):
        raise ValueError(
            "use_dynamic_shifting=True is refused: that shift depends on the size of the image, and no grid follows "
            "from the config; give the scheduler a shift."
        )
    first = config.real("shift")
    now = first if shift is None else _checks.real("shift", shift, 0, strict=True)
    least = 1 / config.steps
    sigma = torch.linspace(1, first * least / (1 + (first - 1) * least), steps, dtype=torch.float64)
    sigma = now * sigma / (1 + (now - 1) * sigma)
    if config.get("shift_terminal"):
        _checks.whole("steps of a schedule with shift_terminal", steps, 2)
        sigma = 1 - (1 - sigma) * (1 - config.real("shift_terminal")) / (1 - sigma[-1])
    return torch.cat([sigma, sigma.new_zeros(1)])
