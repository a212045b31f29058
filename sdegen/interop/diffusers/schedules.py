"""What the config of a diffusers scheduler says of its network: the path, the prediction, the time, the bounds.

Betas, in float64, with q evenly spaced over k = 1 ... K:

    linear               beta = q,                          q from beta_start to beta_end
    scaled_linear        beta = q^2,                        q from sqrt(beta_start) to sqrt(beta_end)
    sigmoid              beta = beta_start + (beta_end - beta_start) / (1 + exp(-q)),    q from -6 to 6
    squaredcos_cap_v2    Nichol and Dhariwal's, `DDPM.cosine`

or a table of one's own, trained_betas. With rescale_betas_zero_snr the square roots a_k of their alphas_cumprod are
shifted and scaled, a_k' = a_1 (a_k - a_K) / (a_1 - a_K), so that the chain ends in pure noise.

A flow's network is shown sigma times num_train_timesteps, and predicts noise - data. Its path is `CondOT`, on which the
straight clock u is that sigma and t = 1 - sigma. The `shift` of its scheduler says which sigmas are visited, and is no
part of the network: see `spacing`.

diffusers is not imported here. Its schedulers are known by the names of their classes.

References:
    Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin et al., 2024, arXiv:2305.08891 (zero SNR).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen import _checks
from sdegen.paths.chain import DDPM
from sdegen.paths.flows import CondOT
from sdegen.paths.gaussian import GaussianPath

CHAINS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "EulerDiscreteScheduler",
    "AdamsScheduler",
)
"""The schedulers whose config holds betas."""

FLOW = "FlowMatchEulerDiscreteScheduler"

OF_CHAINS = {"epsilon": "eps", "sample": "data", "v_prediction": "v"}
OF_FLOWS = {"flow_prediction": "velocity", "epsilon": "eps", "sample": "data"}
"""The names of predictions there, and here."""

BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": lambda steps, start, end: torch.linspace(start, end, steps, dtype=torch.float64),
    "scaled_linear": lambda steps, start, end: (
        torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2
    ),
    "squaredcos_cap_v2": lambda steps, start, end: DDPM.cosine(steps).betas,
    "sigmoid": lambda steps, start, end: (
        start + (end - start) * torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64))
    ),
}
"""The K betas of each schedule, from K, beta_start and beta_end."""


class Bounds(NamedTuple):
    """Where the estimate of the data is clipped: the arguments of `Clipped`."""

    low: float
    high: float
    quantile: float | None = None
    most: float = math.inf


class Config:
    """A scheduler's config, which names what it lacks.

    Attributes:
        kind: the name of the scheduler's class, or of the known one it inherits from.

    Args:
        scheduler: a scheduler of diffusers.

    Raises:
        TypeError: it has no config.
        ValueError: one of another kind.
    """

    def __init__(self, scheduler: object) -> None:
        entries = getattr(scheduler, "config", None)
        if isinstance(scheduler, type) or not isinstance(entries, Mapping):
            raise TypeError(f"scheduler must be a scheduler of diffusers, with a config, and it is {scheduler!r}.")
        known = [kind.__name__ for kind in type(scheduler).__mro__ if kind.__name__ in (*CHAINS, FLOW)]
        if not known:
            raise ValueError(
                f"{type(scheduler).__name__} is no scheduler that a path is known for; those are "
                f"{', '.join(CHAINS)} and {FLOW}. Of another one with betas give "
                "DDIMScheduler.from_config(scheduler.config, clip_sample=False)."
            )
        self.kind, self._entries = known[0], entries

    def __getitem__(self, key: str) -> object:
        if key not in self._entries:
            raise ValueError(f"The config of the {self.kind} lacks {key!r}; it holds {', '.join(self._entries)}.")
        return self._entries[key]

    def get(self, key: str, default: object = None) -> object:
        """The entry, or `default` where there is none."""
        return self._entries.get(key, default)

    def real(self, key: str) -> float:
        """An entry that is a number."""
        return _checks.real(key, self[key])

    @property
    def steps(self) -> int:
        """K, num_train_timesteps."""
        return _checks.whole("num_train_timesteps", self["num_train_timesteps"])

    @property
    def is_flow(self) -> bool:
        """Whether the network is one of flow matching."""
        return self.kind == FLOW or bool(self.get("use_flow_sigmas"))

    @property
    def betas(self) -> Tensor:
        """The K betas, in float64."""
        trained = self.get("trained_betas")
        if trained is not None:
            betas = _checks.numbers("trained_betas", trained)[0]
            if betas.shape != (self.steps,):
                raise ValueError(
                    f"trained_betas must be num_train_timesteps = {self.steps} numbers, not of {tuple(betas.shape)}."
                )
        else:
            name = _checks.choice("beta_schedule", self["beta_schedule"], BETAS)
            start, end = (_checks.real(key, self[key], 0) for key in ("beta_start", "beta_end"))
            betas = BETAS[name](self.steps, start, end)
        return _ending_in_noise(betas) if self.get("rescale_betas_zero_snr") else betas


@dataclass(frozen=True)
class Schedule:
    """What a network of diffusers needs to be a model.

    Attributes:
        path: a `DDPM`, or `CondOT()`.
        predicts: the name of its prediction here.
        time: from the path's time to what the network is shown.
        learns_variance: whether the network also places the variance.
        bounds: where its scheduler clips the data, or None.
    """

    path: GaussianPath
    predicts: str
    time: Callable[[Tensor], Tensor]
    learns_variance: bool
    bounds: Bounds | None

    @classmethod
    def of(cls, scheduler: object) -> Schedule:
        """What a scheduler's config says, after a TypeError or ValueError if that has no meaning here."""
        config = Config(scheduler)
        variance = config.get("variance_type")
        if variance == "learned":
            raise ValueError(
                "variance_type 'learned' is refused: such a network returns the variance itself, tied to the steps it "
                "was trained on, and not a place between the least and the largest, as 'learned_range' does."
            )
        numbers = _flow(config) if config.is_flow else _chain(config)
        return cls(*numbers, variance == "learned_range", _bounds(config))


def _chain(config: Config) -> tuple[GaussianPath, str, Callable[[Tensor], Tensor]]:
    """The path, the prediction and the time of a chain: k - 1, whole numbers on its own grid."""
    if config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction":
        raise ValueError(
            "timestep_type 'continuous' is refused: its network is shown log(sigma/alpha)/4, infinite at clean data."
        )
    name = _checks.choice("prediction_type", config["prediction_type"], OF_CHAINS)
    path = DDPM(config.betas)
    if name == "epsilon" and bool(path.betas[-1] == 1):
        raise ValueError(
            "prediction_type 'epsilon' is refused at zero terminal SNR: the chain ends in pure noise, where x_t is the "
            "noise itself and its prediction says nothing of the data; such networks predict 'v_prediction' or "
            "'sample'."
        )
    return path, OF_CHAINS[name], path.index


def _flow(config: Config) -> tuple[GaussianPath, str, Callable[[Tensor], Tensor]]:
    """The same of a flow."""
    if config.get("invert_sigmas"):
        raise ValueError("invert_sigmas=True is refused: such a network is shown 1 - sigma, and predicts data - noise.")
    kind = "flow_prediction" if config.kind == FLOW else config["prediction_type"]
    name = _checks.choice("prediction_type", kind, OF_FLOWS)
    return CondOT(), OF_FLOWS[name], partial(_noise_level, config.steps)


def _noise_level(steps: int, t: Tensor) -> Tensor:
    """sigma = 1 - t, in num_train_timesteps."""
    return steps * (1 - t)


def _ending_in_noise(betas: Tensor) -> Tensor:
    """The betas of a_k' = a_1 (a_k - a_K) / (a_1 - a_K), of which the last is 1."""
    a = torch.cumprod(1 - betas, 0).sqrt()
    abar = (a[0] * (a - a[-1]) / (a[0] - a[-1])) ** 2
    return 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])


def _bounds(config: Config) -> Bounds | None:
    """Where x_hat is clipped; thresholding wins, as there."""
    if config.get("thresholding"):
        return Bounds(-1.0, 1.0, config.real("dynamic_thresholding_ratio"), config.real("sample_max_value"))
    if not config.get("clip_sample"):
        return None
    bound = _checks.real("clip_sample_range", config.get("clip_sample_range", 1.0), 0, strict=True)
    return Bounds(-bound, bound)
