"""Conditions of which nobody can tell whether they are rows are refused where rows are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sdegen


@pytest.mark.parametrize("value", [np.arange(6.0), {"k": torch.arange(5)}, list(range(6)), (1, 2)], ids=type)
def test_arrays_mappings_and_lists_are_not_cut(value):
    model = sdegen.ScoreModel(lambda x, t, words: 0.1 * x, sdegen.DDPM.linear(5, 1e-3, 0.3))
    x = torch.randn(6, 2)
    sdegen.vlb(model, x, cond={"words": value})
    with pytest.raises(TypeError, match=rf"cond\['words'\] is a {type(value).__name__}, and the batch is cut"):
        sdegen.vlb(model, x, cond={"words": value}, batch_size=3)
    sdegen.vlb(model, x, cond={"words": sdegen.Shared(value)}, batch_size=3)
    for one in ("word", 3, None, torch.tensor(2.0)):
        sdegen.vlb(model, x, cond={"words": one}, batch_size=3)


def test_a_fresh_path_is_looked_at_by_its_own_verbs():
    class Frozen(sdegen.GaussianPath):
        def alpha(self, t):
            return torch.from_numpy(np.exp(-4 * torch.as_tensor(t).detach().numpy() ** 2))

        def sigma(self, t):
            return torch.from_numpy(np.sqrt(-np.expm1(-8 * torch.as_tensor(t).detach().numpy() ** 2)))

    t = torch.tensor([0.5])
    for ask in (
        lambda path: path.diffusion(t),
        lambda path: path.drift(torch.ones(1, 1), t),
        lambda path: sdegen.LikelihoodWeighting()(path, t),
    ):
        with pytest.raises(ValueError, match="slopes"):
            ask(Frozen())
