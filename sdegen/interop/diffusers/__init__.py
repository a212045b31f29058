"""Networks and pipelines of diffusers, which is imported only where it is needed: pip install 'sdegen[diffusers]'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdegen.interop.diffusers.loading import from_diffusers, from_pretrained
from sdegen.interop.diffusers.spacings import spacing

if TYPE_CHECKING:
    from sdegen.interop.diffusers.adams_scheduler import AdamsScheduler
    from sdegen.interop.diffusers.pipelines import SdegenPipeline

__all__ = ["AdamsScheduler", "SdegenPipeline", "from_diffusers", "from_pretrained", "spacing"]


def __getattr__(name: str) -> object:
    """The two that inherit from classes of diffusers, imported when they are first asked for."""
    if name == "AdamsScheduler":
        from sdegen.interop.diffusers.adams_scheduler import AdamsScheduler

        return AdamsScheduler
    if name == "SdegenPipeline":
        from sdegen.interop.diffusers.pipelines import SdegenPipeline

        return SdegenPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
