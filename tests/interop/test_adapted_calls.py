"""How adapted networks are called: the order of arguments, the paths, the conditions, and what is imported."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from fields import Named, TimeFirst
from torch import Tensor, nn

import sdegen
from sdegen.interop import Adapted, from_flow_matching, from_torchcfm

RK4 = sdegen.ODESolver("rk4", steps=4)
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)


class Joined(nn.Module):
    """dx/dt of x and t joined: an MLP's way, in closed form and different in every column."""

    def forward(self, xt: Tensor) -> Tensor:
        assert xt.shape[1] == 3
        return torch.stack([xt[:, 0] + 2 * xt[:, 2], xt[:, 1] * xt[:, 2] ** 2], 1)


def test_every_adapter_puts_the_arguments_in_the_library_s_order():
    wave = Named().velocity(X, T)
    torch.testing.assert_close(from_torchcfm(TimeFirst())(X, T), wave, rtol=0, atol=0)
    torch.testing.assert_close(from_flow_matching(Named())(X, T), wave, rtol=0, atol=0)
    expected = torch.stack([X[:, 0] + 2 * T, X[:, 1] * T**2], 1)
    torch.testing.assert_close(from_torchcfm(Joined(), joined=True)(X, T), expected, rtol=0, atol=1e-15)


def test_the_default_paths_are_those_of_the_libraries():
    """Noise at t = 0, data at t = 1, dx/dt; a score only where source and data are known to be independent."""
    coupled, independent = from_torchcfm(TimeFirst()), from_flow_matching(Named())
    assert (coupled.path, independent.path) == (sdegen.Interpolant(sdegen.CondOT()), sdegen.CondOT())
    assert (coupled.has_score, independent.has_score) == (False, True)
    given = sdegen.CondOT(0.1)
    assert from_torchcfm(TimeFirst(), given).path is given
    assert from_flow_matching(Named(), given).path is given
    assert {coupled.predicts, independent.predicts} == {"velocity"}


def test_a_joined_network_takes_points_alone():
    model = from_torchcfm(Joined(), joined=True)
    with pytest.raises(ValueError, match=r"takes x of shape \(B, d\), and it received \(4, 1, 2\)\.$"):
        sdegen.sample(model, (4, 1, 2), RK4)


class Asked(nn.Module):
    """dx/dt = gain (table summed) x, in any library's manner; keeps what it received."""

    def __init__(self, order: str):
        super().__init__()
        self.order, self.seen = order, []

    def forward(self, *arguments: Tensor, gain: Tensor, table: Tensor, **named: Tensor) -> Tensor:
        x = {"t, x": lambda: arguments[1], "[x, t]": lambda: arguments[0][:, :-1], "x=, t=": lambda: named["x"]}
        self.seen.append((gain, table))
        return gain[:, None] * table.sum() * x[self.order]()


ADAPTERS = {
    "t, x": from_torchcfm,
    "[x, t]": lambda net, *path: from_torchcfm(net, *path, joined=True),
    "x=, t=": from_flow_matching,
}


@pytest.mark.parametrize("order", ADAPTERS)
def test_conditions_pass_through_an_adapter_row_by_row_and_shared_ones_whole(order):
    """The sample is that of dx/dt = gain c x; a table with as many rows as the batch stays whole and is itself."""
    gain, table = torch.tensor([0.3, -0.5, 0.8, 0.1]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    net = Asked(order)
    model = ADAPTERS[order](net)
    cond = {"gain": gain, "table": sdegen.Shared(table)}
    fine = sdegen.ODESolver("dopri8", rtol=1e-10)
    x = sdegen.sample(model, (4, 2), fine, x_T=X, cond=cond, dtype=torch.float64)
    torch.testing.assert_close(x, torch.exp(gain * table.sum())[:, None] * X, rtol=1e-8, atol=0)
    log_p = sdegen.log_prob(model, x, fine, cond=cond)
    expected = sdegen.Gaussian([0.0, 0.0], 1.0).log_prob(X) - 2 * gain * table.sum()
    torch.testing.assert_close(log_p, expected, rtol=0, atol=1e-7)
    assert all(seen is table for _, seen in net.seen)


@pytest.mark.parametrize("order", ADAPTERS)
def test_conditions_are_cut_with_their_rows_behind_an_adapter(order):
    """A bound in pieces of the batch: the table that is Shared stays whole, the gain follows its rows."""
    net = Asked(order)
    model = ADAPTERS[order](net, sdegen.CondOT())
    table = torch.tensor([0.1, 0.2, 0.3, 0.4])
    cond = {"gain": torch.tensor([0.3, -0.5, 0.8, 0.1]), "table": sdegen.Shared(table)}
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    given = [
        sdegen.optimal_variance(model, X, 5, cond=cond, noise=noise, batch_size=size, generator=torch.Generator())
        for size in (4, 1)
    ]
    torch.testing.assert_close(*given, rtol=0, atol=1e-12)
    assert {len(gain) for gain, _ in net.seen} == {4, 1}
    assert all(seen is table for _, seen in net.seen)


def test_an_adapter_takes_a_function_for_a_network():
    model = sdegen.ScoreModel(Adapted(lambda t, x: -x, lambda net, x, t: net(t, x)), sdegen.CondOT(), "velocity")
    x = sdegen.sample(model, (4, 2), sdegen.ODESolver("dopri8", rtol=1e-10), x_T=X)
    torch.testing.assert_close(x, math.exp(-1) * X, rtol=1e-8, atol=0)


@pytest.mark.parametrize(("net", "call", "named"), [(None, max, "net"), (max, "net(t, x)", "call")])
def test_an_adapter_names_what_cannot_be_called(net, call, named):
    with pytest.raises(TypeError, match=rf"^{named} must be callable, and it is (None|'net\(t, x\)')\.$"):
        Adapted(net, call)


def test_sdegen_imports_no_interop_and_interop_no_other_library():
    code = (
        "import sys, sdegen\n"
        "assert not [name for name in sys.modules if name.startswith('sdegen.interop')]\n"
        "import sdegen.interop\n"
        "for heavy in ('torchcfm', 'flow_matching', 'diffusers'):\n"
        "    assert heavy not in sys.modules, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
