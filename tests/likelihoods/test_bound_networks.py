"""How bounds treat the network: its mode, its precision, the clocks it knows and the score it must have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdegen

CHAIN = sdegen.DDPM.linear(6, 0.05, 0.4)

LAW = sdegen.Gaussian(torch.zeros(2, dtype=torch.float64), 0.6)

BOUNDS = {
    "vlb": lambda m, x, **o: sdegen.vlb(m, x, **o),
    "vlb draws": lambda m, x, **o: sdegen.vlb(m, x, draws=2, **o),
    "vlb optimal": lambda m, x, **o: sdegen.vlb(m, x, variance="optimal", **o),
    "iwae": lambda m, x, **o: sdegen.iwae(m, x, 2, **o),
    "iwae optimal": lambda m, x, **o: sdegen.iwae(m, x, 2, variance="optimal", **o),
    "continuous_vlb": lambda m, x, **o: sdegen.continuous_vlb(m, x, draws=2, **o),
    "optimal_variance": lambda m, x, **o: sdegen.optimal_variance(m, x, **o),
    "entropy_form": lambda m, x, **o: sdegen.entropy_form(m, LAW, x, **o),
}


@pytest.mark.parametrize("verb", BOUNDS)
def test_the_network_is_shown_the_dtype_of_the_data_or_its_own(verb):
    """Bounds compute in float64 whatever x is; the network must not notice."""
    seen = []

    class Looking(nn.Linear):
        def forward(self, x, t):
            seen.append((x.dtype, t.dtype))
            return super().forward(x)

    def plain(x, t):
        seen.append((x.dtype, t.dtype))
        return torch.tanh(x)

    for net, dtype in ((plain, torch.float32), (plain, torch.float64), (Looking(2, 2).to(torch.bfloat16), None)):
        x = torch.randn(4, 2, dtype=dtype or torch.float32)
        seen.clear()
        options = {"batch_size": 3} if verb != "entropy_form" else {}
        BOUNDS[verb](sdegen.ScoreModel(net, CHAIN), x, **options)
        assert set(seen) == {(dtype or torch.bfloat16,) * 2}


@pytest.mark.parametrize("verb", BOUNDS)
def test_the_network_is_in_eval_mode_without_gradients_and_put_back(verb):
    seen = []

    class Looking(nn.Linear):
        def forward(self, x, t):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    net = Looking(2, 2)
    x = torch.randn(3, 2, requires_grad=True)
    result = BOUNDS[verb](sdegen.ScoreModel(net, CHAIN), x)
    assert set(seen) == {(False, False)}
    assert net.training
    tensors = [result] if isinstance(result, torch.Tensor) else [v for v in vars(result).values() if v is not None]
    assert not any(isinstance(v, torch.Tensor) and v.requires_grad for v in tensors)


@pytest.mark.parametrize("verb", BOUNDS)
def test_a_network_without_a_score_or_without_the_whole_path_has_no_bound(verb):
    calls = []

    def net(x, t):
        calls.append(len(x))
        return torch.tanh(x)

    pairs = sdegen.ScoreModel(net, sdegen.Interpolant(), "velocity")
    with pytest.raises(ValueError, match="A variational bound needs the score, and this model was trained on pairs"):
        BOUNDS[verb](pairs, torch.zeros(3, 2))
    moved = sdegen.ScoreModel(net, CHAIN, "v").on(sdegen.CondOT())
    steps = {} if verb == "continuous_vlb" else {"steps": 5}
    with pytest.raises(
        ValueError, match=r"The model answers between .* from u = 0.0 to 1.0; u=\(0.0, 0\.\d+\) stays inside"
    ):
        BOUNDS[verb](moved, torch.zeros(3, 2), **steps)
    assert not calls
