"""Networks of diffusers as models: the scheduler's config tells the path, the network stays what it is.

    chains    net(x_t, k - 1, **cond).sample               k = tK, whole numbers on the chain's own grid
    flows     net(x_t, (1 - t) K, **cond).sample           which is noise - data, the negative of dx/dt on `CondOT`

diffusers is imported by `from_pretrained` alone, when it is called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen.interop.adapted import Adapted
from sdegen.interop.diffusers.schedules import Bounds, Schedule
from sdegen.models.base import Model
from sdegen.models.guidance import Clipped
from sdegen.models.model import ScoreModel

INSTALL = "pip install 'sdegen[diffusers]'"
INDEX = "model_index.json"


class _Loadable(Protocol):
    """A class of diffusers with its own loading."""

    def from_pretrained(self, place: str, **options: object) -> object: ...


def from_diffusers(
    unet: Callable[..., object], scheduler: object, *, clip: bool | Sequence[float] | None = None
) -> Model:
    """A network trained with diffusers, and a scheduler whose config says how, as a model for every solver and verb.

    The path is `DDPM(betas)`, computed in float64 from the config, or `CondOT()` for flow matching; the network is
    shown `path.index` of the time, k - 1, or sigma num_train_timesteps. Which solver the scheduler is plays no part.

    `variance_type` says which `Ancestral(variance=...)` its chain is: "fixed_small" and "fixed_small_log" are
    "posterior", "fixed_large" is "beta" ("fixed_large_log", which gives NaN in diffusers, is meant to be), and
    "learned_range", for which the network returns twice the channels, is "learned".

    Args:
        unet: the network, called as unet(x_t, timesteps, **cond) with timesteps (B,), whose answer is a tensor, has a
            tensor `.sample`, or is a tuple that starts with one. `cond` of any verb passes keywords of the U-Net by
            their names: class_labels, encoder_hidden_states, added_cond_kwargs.
        scheduler: a DDPM, DDIM, PNDM, DPMSolverMultistep, UniPCMultistep, DEISMultistep, EulerDiscrete or
            FlowMatchEulerDiscrete scheduler.
        clip: None as the scheduler says, by clip_sample or thresholding; False never; (low, high) these. diffusers'
            DDPMScheduler and DDIMScheduler clip to [-1, 1] by default. A clipped model is no longer smooth, and the
            noise goes with the clipped data, as use_clipped_model_output=True in diffusers: give False for `log_prob`.

    Returns:
        a `ScoreModel`, in a `Clipped` where something is clipped.

    Raises:
        TypeError: an argument of another type.
        ValueError: another scheduler, or a config that lacks an entry or holds one that has no meaning here.

    Examples:
        >>> from diffusers import DDPMScheduler
        >>> from sdegen.interop.diffusers import from_diffusers
        >>> unet = lambda x, timesteps: (torch.zeros_like(x),)  # yours is a UNet2DModel
        >>> model = from_diffusers(unet, DDPMScheduler(), clip=False)
        >>> model.path.steps, model.predicts
        (1000, 'eps')

    References:
        Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
        Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin et al., 2024, arXiv:2305.08891.
    """
    if not callable(unet):
        raise TypeError(f"unet must be callable as unet(x_t, timesteps), and it is {unet!r}.")
    schedule = Schedule.of(scheduler)
    bounds = _chosen(clip, schedule.bounds)
    call = _towards_noise if schedule.predicts == "velocity" else _sample_of
    model = ScoreModel(
        Adapted(cast(Callable[..., Tensor], unet), call),
        schedule.path,
        schedule.predicts,
        time=schedule.time,
        learns_variance=schedule.learns_variance,
    )
    if bounds is None:
        return model
    return Clipped(model, bounds.low, bounds.high, quantile=bounds.quantile, most=bounds.most)


def from_pretrained(
    directory_or_id: str | PathLike[str],
    *,
    clip: bool | Sequence[float] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    local_files_only: bool = False,
) -> Model:
    """The U-Net and the scheduler of a diffusers pipeline as a model: `from_diffusers` of both.

    They are loaded by diffusers, as the classes that model_index.json names. A VAE and a text encoder stay behind: the
    model of a latent pipeline is one of the latents.

    Args:
        directory_or_id: a directory that save_pretrained wrote, with model_index.json, unet/ and scheduler/, or the
            name of such a one on the Hub.
        clip: as in `from_diffusers`.
        device: where the network is moved; by default it stays where diffusers loads it.
        dtype: of the network; by default torch's default dtype.
        local_files_only: take from the Hub only what was fetched before.

    Returns:
        the model, in eval mode.

    Raises:
        ImportError: diffusers is not installed, or cannot be imported.
        TypeError: an argument of another type.
        ValueError: a file or an entry that is missing, a pipeline without a U-Net, or as in `from_diffusers`.

    Examples:
        >>> import tempfile
        >>> from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
        >>> from sdegen.interop.diffusers import from_pretrained
        >>> blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
        >>> unet = UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, **blocks)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     DDPMPipeline(unet, DDPMScheduler()).save_pretrained(directory)
        ...     model = from_pretrained(directory, clip=False)
        >>> sdegen.sample(model, (1, 3, 8, 8), sdegen.Adams(5)).shape
        torch.Size([1, 3, 8, 8])
    """
    if not isinstance(directory_or_id, (str, PathLike)):
        raise TypeError(f"directory_or_id must be a path or a name on the Hub, and it is {directory_or_id!r}.")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype or None, and it is {dtype!r}.")
    if not isinstance(local_files_only, bool):
        raise TypeError(f"local_files_only must be True or False, and it is {local_files_only!r}.")
    _chosen(clip, None)
    _class("ConfigMixin")  # before anything is looked for
    place = str(directory_or_id)
    classes = _classes(place, local_files_only)
    scheduler = _part("scheduler", classes, place, local_files_only=local_files_only)
    Schedule.of(scheduler)  # before the weights
    unet = cast(nn.Module, _part("unet", classes, place, local_files_only=local_files_only, torch_dtype=dtype))
    return from_diffusers(unet if device is None else unet.to(device), scheduler, clip=clip).eval()


def _sample_of(net: Callable[..., object], x: Tensor, t: Tensor, **cond: object) -> Tensor:
    """The network's answer, unpacked; `ScoreModel` looks whether it is a tensor."""
    out = net(x, t, **cond)
    return cast(Tensor, out[0] if isinstance(out, tuple) else getattr(out, "sample", out))


def _towards_noise(net: Callable[..., object], x: Tensor, t: Tensor, **cond: object) -> Tensor:
    """dx/dt of `CondOT`, whose time runs towards the data, from a network's noise - data."""
    return -_sample_of(net, x, t, **cond)


def _chosen(clip: bool | Sequence[float] | None, own: Bounds | None) -> Bounds | None:
    """The bounds that the user asks for, or the scheduler's own."""
    if clip is None or clip is False:
        return own if clip is None else None
    if clip is True or not isinstance(clip, Sequence) or isinstance(clip, str) or len(clip) != 2:
        raise TypeError(f"clip must be None, False or two numbers (low, high), and it is {clip!r}.")
    low, high = (_checks.real("clip", end) for end in clip)
    if not low < high:
        raise ValueError(f"clip must be (low, high) with low below high, and it is {clip!r}.")
    return Bounds(low, high)


def _class(name: str, library: str = "diffusers") -> _Loadable:
    """A class of diffusers, which imports no more of its modules than this class needs; or of this folder."""
    try:
        return cast(_Loadable, getattr(import_module(library), name))
    except AttributeError as error:
        raise ValueError(f"The {library} that is installed has no class {name}.") from error
    except (ImportError, RuntimeError, OSError) as error:
        raise not_imported("from_pretrained", error) from error


def not_imported(who: str, error: Exception) -> ImportError:
    """What to raise for `who` after diffusers could not be imported: what is missing, or what is wrong."""
    if isinstance(error, ModuleNotFoundError) and error.name == "diffusers":
        return ImportError(f"{who} needs diffusers, which is not installed: {INSTALL}")
    why = " ".join(str(error).split())
    fitting = " Install the torchvision that was built for this torch, or uninstall it." * ("torchvision" in why)
    return ImportError(f"diffusers is installed and cannot be imported: {why}{fitting}")


def _classes(place: str, local_files_only: bool) -> dict[str, object]:
    """What model_index.json says: the library and the class of each part."""
    if Path(place).is_dir():
        file = Path(place, INDEX)
        if not file.is_file():
            raise ValueError(f"{place} has no {INDEX}, which a pipeline's save_pretrained writes.")
    else:
        try:
            hub = import_module("huggingface_hub")
            file = Path(hub.hf_hub_download(place, INDEX, local_files_only=local_files_only))
        except (OSError, ValueError) as error:
            raise ValueError(f"{place!r} is no directory, and the Hub gave no {INDEX} of it: {error}") from error
    try:
        entries = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{file} must hold an object, and it holds {entries!r}.")
    return entries


def _part(name: str, classes: dict[str, object], place: str, **options: object) -> object:
    """The pipeline's part of this name, loaded by diffusers."""
    entry = classes.get(name)
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
        held = [key for key in classes if not key.startswith("_")]
        other = " A transformer is no U-Net: build it yourself and give it to from_diffusers." * ("transformer" in held)
        raise ValueError(f"{INDEX} of {place} names no {name!r}; it holds {', '.join(held) or 'nothing'}.{other}")
    library, kind = entry
    if library != "diffusers" and library.split(".")[:3] != __name__.split(".")[:3]:
        raise ValueError(f"The {name} of {place} is {library}.{kind}, and only classes of diffusers are loaded.")
    loaded = _class(kind, library)
    try:
        return loaded.from_pretrained(place, subfolder=name, **options)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"The {name} of {place} cannot be loaded as {kind}: {why}") from error
