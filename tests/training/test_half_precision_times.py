"""Data in half precision: the times of a loss are not rounded to it, whoever gives them."""

from __future__ import annotations

import pytest
import torch

import sdegen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_time_that_is_given_reaches_the_network_as_it_is(dtype):
    seen = []
    model = sdegen.ScoreModel(lambda x, t: x, sdegen.VPSDE(), time=lambda t: seen.append(t) or t)
    x = torch.randn(3, 2, dtype=dtype)
    each = sdegen.loss(model, x, t=0.7003, reduction="none")
    model(x, 0.7003)
    model.score(x, 0.7003)
    assert each.dtype == torch.float32
    for t in seen:
        torch.testing.assert_close(t, torch.full((3,), 0.7003, dtype=torch.float32), rtol=1e-6, atol=0)
