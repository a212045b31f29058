"""Networks of other libraries, one line each, `Adapted` for every network with a manner of its own, zuko's flows."""

from sdegen.interop.adapted import Adapted
from sdegen.interop.edm import from_edm
from sdegen.interop.flow_libraries import from_flow_matching, from_torchcfm
from sdegen.interop.zuko import FlowDequantiser

__all__ = ["Adapted", "FlowDequantiser", "from_edm", "from_flow_matching", "from_torchcfm"]
