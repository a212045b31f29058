"""Networks of other libraries, one line each, `Adapted` for every network with a manner of its own.

zuko's flows as sources and priors are in `sdegen.interop.zuko`, scikit-learn's mixtures in `sdegen.interop.sklearn`.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from sdegen.interop import sklearn as sklearn
from sdegen.interop import zuko as zuko
from sdegen.interop.adapted import Adapted
from sdegen.interop.edm import from_edm
from sdegen.interop.flow_libraries import from_flow_matching, from_torchcfm
from sdegen.interop.zuko import FlowDequantiser

if TYPE_CHECKING:
    from sdegen.interop import diffusers as diffusers
else:

    def __getattr__(name: str) -> ModuleType:
        """`sdegen.interop.diffusers`, imported when it is first asked for."""
        if name == "diffusers":
            return import_module("sdegen.interop.diffusers")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Adapted", "FlowDequantiser", "from_edm", "from_flow_matching", "from_torchcfm"]
