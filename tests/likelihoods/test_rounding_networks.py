"""Half precision inside a network is no lie, and hides none: who is refused, and who is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdegen
from sdegen._arguments import evaluating
from sdegen.likelihoods.gradients import products_at_once


class Net(nn.Module):
    """An MLP, with autocast inside or without, that may hide its gradient at times from `low` to `high`."""

    def __init__(self, d, activation, dtype=torch.float32, autocast=None, hides=None, low=0.0, high=1.0):
        super().__init__()
        layers = (nn.Linear(d, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, d))
        self.inner, self.autocast, self.hides = nn.Sequential(*layers).to(dtype), autocast, hides
        self.low, self.high, self.rows = low, high, []

    def honest(self, x):
        with torch.autocast("cpu", dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            return self.inner(x)

    def forward(self, x, t):
        self.rows.append(len(x))
        if self.hides is None:
            return self.honest(x)
        if self.hides == "numpy":
            blind = self.honest(torch.from_numpy(x.detach().double().numpy()).to(x.dtype))
        else:
            with torch.set_grad_enabled(self.hides != "no_grad" and torch.is_grad_enabled()):
                blind = self.honest(x.detach() if self.hides == "detach" else x)
        hidden = ((t >= self.low) & (t <= self.high))[:, None]
        return blind if (self.low, self.high) == (0, 1) else torch.where(hidden, blind, self.honest(x))


def refused(net, d, path, predicts):
    """Whether the network is refused, on float32 data."""
    model = sdegen.ScoreModel(net, path, predicts)
    with evaluating(model):
        try:
            products_at_once(model, torch.randn(8, d, dtype=torch.float32), (0.0, model.path.ends[1]), {}, 1)
        except ValueError as error:
            if "blocks gradients" in str(error):
                return True
            raise
    return False


KINDS = {
    "bf16 autocast": {"activation": nn.SiLU, "autocast": torch.bfloat16},
    "fp16 autocast": {"activation": nn.SiLU, "autocast": torch.float16},
    "bf16 autocast, kinks": {"activation": nn.ReLU, "autocast": torch.bfloat16},
    "bf16": {"activation": nn.SiLU, "dtype": torch.bfloat16},
    "fp16": {"activation": nn.SiLU, "dtype": torch.float16},
    "double with kinks": {"activation": nn.ReLU, "dtype": torch.float64},
    "kinks": {"activation": nn.ReLU},
    "smooth": {"activation": nn.SiLU},
}
QUESTIONS = [(sdegen.CondOT(), "velocity"), (sdegen.VPSDE(), "eps")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [2, 16, pytest.param(256, marks=pytest.mark.nightly)])
def test_an_honest_network_passes_and_a_dishonest_one_does_not(kind, d):
    """Every way to hide, everywhere; the eps of a small network, which its slope's multiple of y would cover."""
    for seed in range(20):
        torch.manual_seed(seed)
        path, predicts = QUESTIONS[seed % 2]
        assert not refused(Net(d, **KINDS[kind]), d, path, predicts), f"honest, seed {seed}"
        for hides in ("no_grad", "detach", "numpy"):
            assert refused(Net(d, **KINDS[kind], hides=hides), d, path, predicts), f"{hides}, seed {seed}"


@pytest.mark.parametrize("kind", ["bf16 autocast", "fp16 autocast", "smooth", "kinks"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.3), (0.9, 1.0)])
def test_a_gradient_hidden_at_some_times_alone_is_found(kind, low, high):
    for seed in range(20):
        torch.manual_seed(seed)
        path, predicts = QUESTIONS[seed % 2]
        assert refused(Net(16, **KINDS[kind], hides="detach", low=low, high=high), 16, path, predicts), f"seed {seed}"


@pytest.mark.parametrize("kind", ["bf16 autocast", "smooth"])
def test_three_calls_on_a_few_rows_once(kind):
    net = Net(2, **KINDS[kind])
    for _ in range(2):
        assert not refused(net, 2, *QUESTIONS[0])
        assert len(net.rows) == 3
    assert max(net.rows) <= 168


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_network_whose_conditions_cannot_be_cut(autocast):
    """Its whole batch is one row each: three calls, and more where it rounds."""
    for hides in (None, "detach"):
        torch.manual_seed(0)
        net = Net(16, nn.SiLU, autocast=autocast, hides=hides)
        model = sdegen.ScoreModel(lambda x, t, c, net=net: net(x, t) + c["c"], sdegen.CondOT(), "velocity")
        x = torch.randn(9, 16, dtype=torch.float32)
        arguments = model, x, (0.0, 1.0), {"c": {"c": torch.ones(9, 16)}}, 1
        with evaluating(model):
            if hides is None:
                assert products_at_once(*arguments) == 1
            else:
                with pytest.raises(ValueError, match="blocks gradients"):
                    products_at_once(*arguments)
        assert set(net.rows) == {9}
        assert len(net.rows) == 3 if autocast is None else 3 < len(net.rows) <= 11


def test_without_the_check_nobody_is_refused_and_one_or_two_products_cost_no_call():
    net = Net(2, nn.SiLU, dtype=torch.float64, hides="detach")
    model, x = sdegen.ScoreModel(net, sdegen.CondOT(), "velocity"), torch.randn(8, 2)
    with evaluating(model):
        for probes, calls in ((1, 0), (2, 0), (3, 1), (64, 1)):
            assert (products_at_once(model, x, (0.0, 1.0), {}, probes, check=False) > 1) == (probes > 2)
            assert len(net.rows) == calls
        for probes in (1, 3):
            with pytest.raises(ValueError, match="blocks gradients"):
                products_at_once(model, x, (0.0, 1.0), {}, probes)
