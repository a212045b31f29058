"""Rounding of times: what passes for it grows with the span of a path, and slopes by autograd know nothing of it."""

from __future__ import annotations

import pytest
import torch
from problems import OwnFlow, OwnVP

import sdegen


@pytest.mark.parametrize("span", [1e-3, 1e3])
def test_what_counts_as_rounding_grows_with_the_span(span):
    path = sdegen.Retimed(sdegen.CondOT(), 0.0, span)
    t = torch.tensor(span, dtype=torch.float64)
    assert torch.equal(path.clock(t * (1 + 5e-7)), path.clock(t))
    with pytest.raises(ValueError, match=r"t must lie in \[0.0, "):
        path.clock(t * (1 + 2e-6))


@pytest.mark.parametrize("path", [OwnVP(), OwnFlow()], ids=repr)
def test_slopes_by_autograd_are_taken_in_double_precision(path):
    t = torch.linspace(0, 1, 30, dtype=torch.float32)[1:-1]
    for single, double in zip(path.slopes(t), path.slopes(t.double()), strict=True):
        assert single.dtype == torch.float32
        assert torch.equal(single, double.float())


@pytest.mark.parametrize("path", [OwnVP(), OwnFlow()], ids=repr)
def test_the_clock_is_inverted_in_double_precision(path):
    u = torch.linspace(0.01, 0.98, 30, dtype=torch.float32)
    assert torch.equal(path.time(u), path.time(u.double()).float())
