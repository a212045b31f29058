"""Networks and pipelines of diffusers, which is imported only where it is needed: pip install 'sdegen[diffusers]'."""

from sdegen.interop.diffusers.loading import from_diffusers, from_pretrained
from sdegen.interop.diffusers.spacings import spacing

__all__ = ["from_diffusers", "from_pretrained", "spacing"]
