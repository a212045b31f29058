"""A diffusers pipeline that samples with any solver of sdegen.

A scheduler of diffusers is handed one answer of the network per step, by a loop that belongs to the pipeline. Adaptive
methods, several stages a step, a way back up to more noise: none of these fit into that, and all fit here, where the
loop is sdegen's.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor

from sdegen import _checks
from sdegen._shapes import Generators
from sdegen.interop.diffusers.loading import from_diffusers, not_imported
from sdegen.interop.diffusers.storing import restored, stored
from sdegen.models.base import Cond, Model
from sdegen.sampling import sample
from sdegen.solvers import Solver

try:
    import diffusers  # noqa: F401  # the first to fail where it is absent
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
except (ImportError, RuntimeError, OSError) as error:
    raise not_imported("SdegenPipeline", error) from error

OUTPUTS = ("pil", "np", "pt", "latent")


class SdegenPipeline(DiffusionPipeline):
    """Images from a U-Net of diffusers by any solver of sdegen, adaptive ones too.

    The images are those of sample(from_diffusers(unet, scheduler), shape, solver), moved from [-1, 1] to [0, 1]. It is
    saved with its solver, and SdegenPipeline.from_pretrained(directory, solver=...) also opens what a pipeline of
    diffusers with a `unet` and a `scheduler` has saved.

    Args:
        unet: the network, with `config.in_channels` and `config.sample_size`.
        scheduler: that it was trained with; its schedule and prediction are read, its steps are not taken.
        solver: any `Solver`; None asks for one at every call. `from_pretrained` hands over what was stored.

    Raises:
        TypeError: `solver` is none.
        ValueError: a scheduler that `from_diffusers` does not take; a stored solver that this version does not know.

    Examples:
        >>> from diffusers import DDPMScheduler, UNet2DModel
        >>> from sdegen.interop.diffusers import SdegenPipeline
        >>> blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
        >>> unet = UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, **blocks)
        >>> pipeline = SdegenPipeline(unet, DDPMScheduler(), sdegen.Adams(5))
        >>> pipeline.solver.steps
        5
    """

    model_cpu_offload_seq = "unet"  # type: ignore[assignment]  # theirs is typed as None

    def __init__(self, unet: Any, scheduler: Any, solver: Any = None) -> None:  # diffusers checks what stands here
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.solver = cast(Solver, restored(solver)) if isinstance(solver, Mapping) else solver
        _ = self.model  # a scheduler that is not known is refused here

    @property
    def model(self) -> Model:
        """The U-Net and its schedule as a model: for `log_prob`, guidance and every other verb."""
        return from_diffusers(self.unet, self.scheduler)

    @property
    def solver(self) -> Solver | None:
        """The solver of calls that name none."""
        return self._solver

    @solver.setter
    def solver(self, solver: Solver | None) -> None:
        self._solver = solver if solver is None else _checked(solver)
        try:
            self.register_to_config(solver=stored(solver))
        except ValueError:  # it can be used, and `save_pretrained` will say why it cannot be saved
            self.register_to_config(solver=None)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save the U-Net, the scheduler and the solver, see diffusers.

        Args:
            save_directory: where to.
            args: as in diffusers.
            kwargs: as in diffusers.

        Raises:
            ValueError: a solver that JSON cannot hold: one of your own class, or with a function among its fields.
        """
        try:
            stored(self.solver)
        except ValueError as error:
            raise ValueError(
                f"{self.solver!r} cannot be saved with its pipeline. Set pipe.solver = None before, and give solver= "
                f"again at the call or to from_pretrained. {error}"
            ) from error
        super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        generator: Generators = None,
        cond: Cond = None,
        solver: Solver | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: B, how many.
            generator: a torch.Generator, or one per sample.
            cond: keyword arguments for the network, such as {"class_labels": labels}, one row per sample.
            solver: instead of the pipeline's own.
            output_type: "pil" for PIL images, "np" for (B, H, W, C) and "pt" for a tensor (B, C, H, W), both in [0, 1],
                "latent" for the samples themselves, neither moved nor clamped.
            return_dict: whether to return an ImagePipelineOutput, or a tuple.

        Returns:
            the images, as `images`.

        Raises:
            TypeError: an argument of another type, before the first network call.
            ValueError: an argument that does not fit, before the first network call.
        """
        solver = _checked(self.solver if solver is None else solver)
        batch_size = _checks.whole("batch_size", batch_size)
        _checks.choice("output_type", output_type, OUTPUTS)
        x = sample(
            self.model,
            (batch_size, *_event(self.unet)),
            solver,
            generator=generator,
            cond=cond,
            device=self._execution_device,
            progress=not getattr(self, "_progress_bar_config", {}).get("disable", False),
        )
        images = self._shown(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _shown(self, x: Tensor, output_type: str) -> Any:
        """The samples as what was asked for."""
        if output_type == "latent":
            return x
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        pixels = images.cpu().float().permute(0, 2, 3, 1).numpy()
        return pixels if output_type == "np" else self.numpy_to_pil(pixels)


def _checked(solver: object) -> Solver:
    """The solver, after a TypeError unless it is one."""
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver, such as Adams(20) or ODESolver(), and it is {solver!r}.")
    return solver


def _event(unet: Any) -> tuple[int, ...]:
    """(C, H, W) of a network's images, from its config."""
    size, channels = (getattr(unet.config, name, None) for name in ("sample_size", "in_channels"))
    if size is None or channels is None:
        raise ValueError(
            f"{type(unet).__name__} must tell its sample_size and in_channels, and they are {size}, {channels}."
        )
    return (channels, size, size) if isinstance(size, int) else (channels, *size)
