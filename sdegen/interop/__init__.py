"""Networks of other libraries, one line each, and `Adapted` for every network with a manner of its own."""

from sdegen.interop.adapted import Adapted
from sdegen.interop.flow_libraries import from_flow_matching, from_torchcfm

__all__ = ["Adapted", "from_flow_matching", "from_torchcfm"]
