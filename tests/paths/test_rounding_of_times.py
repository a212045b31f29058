"""What counts as rounding, where a time leaves its path, is measured by the path's own span."""

from __future__ import annotations

import pytest
import torch

import sdegen


@pytest.mark.parametrize("span", [1e-3, 1e3])
def test_what_counts_as_rounding_grows_with_the_span(span):
    path = sdegen.Retimed(sdegen.CondOT(), 0.0, span)
    t = torch.tensor(span, dtype=torch.float64)
    assert torch.equal(path.clock(t * (1 + 5e-7)), path.clock(t))
    with pytest.raises(ValueError, match=r"t must lie in \[0.0, "):
        path.clock(t * (1 + 2e-6))
