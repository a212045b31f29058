"""azula's samplers and k-diffusion's as peers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from functools import lru_cache, partial
from types import ModuleType, SimpleNamespace
from typing import Any

from peers import LAST, Field, Peer, clock
from torch import Tensor

K_TWO_CALLS = {"heun", "dpm_2", "dpmpp_sde"}


class _Denoiser:
    """E[x | x_t] and the schedule, as azula's samplers ask for them."""

    def __init__(self, field: Field):
        self.field = field

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.field.path.alpha(t), self.field.path.sigma(t)

    def __call__(self, x_t: Tensor, t: Tensor) -> SimpleNamespace:
        alpha, sigma = self.schedule(t)
        return SimpleNamespace(mean=(x_t - sigma * self.field.eps(x_t, float(t))) / alpha)


def azula_run(name: str, grid: str, options: Any, field: Field, x_T: Tensor, calls: int) -> tuple[Tensor, float]:
    """One of azula's samplers, from t = 1 to LAST."""
    sample = importlib.import_module("azula.sample")
    times = field.times(grid, calls)
    kind = type(name, (getattr(sample, f"{name}Sampler"),), {"timesteps": property(lambda self: times)})
    return kind(_Denoiser(field), silent=True, **options)(x_T), clock(field.ratio(LAST))


def azula_peers() -> list[Peer]:
    """The multistep samplers, REAB as it is."""
    kinds = ("zAB", "vAB", "zEAB", "xEAB", "REAB")
    rows = [(kind, order, grid) for kind in kinds for order in (2, 3) for grid in ("t", "logsnr")]
    return [Peer(f"azula {k}{n} · {g}", "azula", partial(azula_run, k, g, {"order": n})) for k, n, g in rows]


def azula_sde_peers() -> list[Peer]:
    """The ancestral and the exponential Euler scheme."""
    rows = [(kind, grid) for kind in ("DDPM", "Ito") for grid in ("t", "logsnr")]
    return [Peer(f"azula {k} {g}", "azula", partial(azula_run, k, g, {})) for k, g in rows]


@lru_cache
def k_sampling() -> Any:
    """k_diffusion.sampling alone: its package imports torchvision, CLIP and more, none of which a sampler needs."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("k_diffusion is not installed.")
    package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    package.__spec__, package.__path__ = found, list(found.submodule_search_locations)
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules.setdefault("k_diffusion", package)
    sys.modules.setdefault("k_diffusion.utils", utils)
    return importlib.import_module("k_diffusion.sampling")


def k_sigmas(grid: str, field: Field, steps: int) -> Tensor:
    """steps + 1 values of sigma/alpha from t = 1 to LAST, without the zero that k-diffusion appends."""
    sampling = k_sampling()
    ends = () if grid == "vp" else (field.ratio(LAST), field.ratio(1.0))
    kind = {"vp": "get_sigmas_vp", "karras": "get_sigmas_karras", "exp": "get_sigmas_exponential"}[grid]
    sigmas: Tensor = getattr(sampling, kind)(steps + 1, *ends)
    return sigmas[:-1].double()


def k_run(name: str, grid: str, end: str, field: Field, x_T: Tensor, calls: int) -> tuple[Tensor, float]:
    """One of k-diffusion's samplers in x/alpha, to sigma/alpha at LAST or from there to zero."""
    steps = max(calls // 2, 1) if name in K_TWO_CALLS else calls
    zero = end == "zero"
    sigmas = k_sigmas(grid, field, max(steps - zero, 1))
    if zero:
        sigmas = k_sampling().append_zero(sigmas)
    last = float(sigmas[-1])

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        ratio = float(sigma.flatten()[0])
        return x - ratio * field.eps(x / (1 + ratio**2) ** 0.5, field.time(ratio))

    x = x_T * (1 + float(sigmas[0]) ** 2) ** 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its Brownian tree rounds its ends to float32
        x = getattr(k_sampling(), f"sample_{name}")(denoised, x, sigmas, disable=True)
    return x / (1 + last**2) ** 0.5, clock(last)


def k_diffusion_peers() -> list[Peer]:
    """The deterministic samplers on its three grids."""
    names = ("euler", "lms", "dpmpp_2m", "heun", "dpm_2")
    rows = [(name, grid) for name in names for grid in ("vp", "karras", "exp")]
    return [Peer(f"k-diffusion {n} · {g},min", "k_diffusion", partial(k_run, n, g, "min")) for n, g in rows]


def k_diffusion_sde_peers() -> list[Peer]:
    """The stochastic samplers with a zero at the end, as its scripts use them, and its own Brownian tree."""
    names = ("euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
    rows = [(name, grid) for name in names for grid in ("karras", "exp")]
    return [Peer(f"k-diffusion {n} {g}", "k_diffusion", partial(k_run, n, g, "zero")) for n, g in rows]
