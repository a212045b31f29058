"""What log_prob finds out about a network before it starts: in three calls, on a few rows, once."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import sdegen

RK4 = sdegen.ODESolver("rk4", steps=2)  # eight calls


class Net(nn.Module):
    """Smooth, with a condition; it notes the size of every batch."""

    def __init__(self, d=3):
        super().__init__()
        self.layers, self.sizes = nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, d)).double(), []

    def forward(self, x, t, c=None):
        self.sizes.append(len(x))
        return self.layers(x) * (1 + t[:, None]) + (
            0 if c is None else torch.tanh(c["c"] if isinstance(c, dict) else c)
        )


@pytest.mark.parametrize("trace", ["exact", sdegen.Hutchinson(1)])
@pytest.mark.parametrize("cond", [None, "rows", "shared"])
def test_three_calls_on_a_few_rows_once(trace, cond):
    net = Net()
    model, x = sdegen.ScoreModel(net, sdegen.VPSDE(), "v"), torch.randn(500, 3)
    given = {"rows": {"c": torch.randn(500, 3)}, "shared": {"c": sdegen.Shared(torch.randn(1, 3))}}.get(cond)
    sdegen.log_prob(model, x, RK4, trace=trace, cond=given)
    assert len(net.sizes) == 3 + 8
    assert max(net.sizes[:3]) <= 64
    assert net.sizes[3:] == [500] * 8
    net.sizes.clear()
    again = sdegen.log_prob(sdegen.ScoreModel(net, sdegen.VPSDE(), "v"), x, RK4, trace=trace, cond=given)
    assert net.sizes == [500] * 8
    assert again.shape == (500,)


def test_a_network_whose_conditions_cannot_be_cut_sees_its_whole_batch():
    net = Net()
    model, x = sdegen.ScoreModel(net, sdegen.VPSDE(), "v"), torch.randn(70, 3)
    sdegen.log_prob(model, x, RK4, cond={"c": {"c": torch.randn(70, 3)}})
    assert net.sizes == [70] * 11


class Hides(nn.Module):
    """Hides its gradient in one way, everywhere or at some clocks alone."""

    def __init__(self, how, low=0.0, high=1.0):
        super().__init__()
        self.how, self.low, self.high = how, low, high
        self.inner = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3)).double()

    def forward(self, x, t):
        hidden = ((t >= self.low) & (t <= self.high))[:, None]
        if self.how == "no_grad":
            with torch.no_grad():
                blind = self.inner(x)
        elif self.how == "detach":
            blind = self.inner(x.detach())
        else:
            blind = self.inner(torch.from_numpy(x.detach().numpy()))
        return 3 * torch.where(hidden, blind, self.inner(x))


@pytest.mark.parametrize("how", ["no_grad", "detach", "numpy"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.3), (0.9, 1.0)])
def test_a_hidden_gradient_is_refused_wherever_it_hides(how, low, high):
    model = sdegen.ScoreModel(Hides(how, low, high), sdegen.VPSDE(), "v")
    for trace in ("exact", sdegen.Hutchinson(1)):
        with pytest.raises(ValueError, match="blocks gradients"):
            sdegen.log_prob(model, torch.randn(9, 3), RK4, trace=trace)


@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU, nn.SELU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_honest_networks_pass_however_rough(activation, dtype):
    for seed in range(20):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(16, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 16)).to(
            dtype
        )
        model = sdegen.ScoreModel(lambda x, t, net=net: 2 * net(x), sdegen.VPSDE(), "v")
        sdegen.log_prob(model, torch.randn(8, 16, dtype=dtype), sdegen.ODESolver("euler", steps=1))


def test_a_network_made_in_inference_mode_is_named():
    with torch.inference_mode():
        model = sdegen.ScoreModel(Net(), sdegen.VPSDE(), "v")
    with pytest.raises(ValueError, match=r"inference_mode"):
        sdegen.log_prob(model, torch.randn(4, 3), RK4)


def test_everything_may_come_from_inference_mode_but_the_network():
    net = Net()
    model = sdegen.ScoreModel(net, sdegen.VPSDE(), "v")
    with torch.inference_mode():
        x, c = torch.randn(6, 3), torch.randn(6, 3)
        inside = sdegen.log_prob(model, x, RK4, cond={"c": c})
    torch.testing.assert_close(inside.clone(), sdegen.log_prob(model, x.clone(), RK4, cond={"c": c.clone()}))


def test_what_is_known_of_a_network_is_known_for_one_shape_of_event():
    """Honest in the plane, and blind in space."""
    model = sdegen.ScoreModel(lambda x, t: torch.tanh(x if x.shape[1] == 2 else x.detach()), sdegen.VPSDE(), "v")
    sdegen.log_prob(model, torch.randn(4, 2), RK4)
    with pytest.raises(ValueError, match="blocks gradients"):
        sdegen.log_prob(model, torch.randn(4, 3), RK4)


class Blind(nn.Module):
    """Hides its gradient, and begins as the zero function, where nothing can be seen of that."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 16).double(), nn.Linear(16, 3).double()
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x, t, c=None):
        shift = 0 if c is None else 3 * torch.sin(2 * x.detach()) * c
        return self.last(torch.tanh(self.first(x.detach()))) + shift


def test_a_network_that_has_changed_is_looked_at_again():
    x = torch.randn(9, 3)
    trained, replaced = (sdegen.ScoreModel(Blind(), sdegen.CondOT(), "v") for _ in range(2))
    for model in (trained, replaced):
        sdegen.log_prob(model, x, RK4)
    with torch.no_grad():
        trained.net.last.weight.add_(torch.randn(3, 16))
    replaced.net.last = nn.Linear(16, 3).double()
    for model in (trained, replaced):
        with pytest.raises(ValueError, match="blocks gradients"):
            sdegen.log_prob(model, x, RK4)


def test_another_condition_and_another_part_are_looked_at():
    x, model = torch.randn(9, 3), sdegen.ScoreModel(Blind(), sdegen.CondOT(), "v")
    sdegen.log_prob(model, x, RK4, cond={"c": None})
    with pytest.raises(ValueError, match="blocks gradients"):
        sdegen.log_prob(model, x, RK4, cond={"c": torch.ones(9, 1)})
    late = sdegen.ScoreModel(Hides("detach", 0.0, 0.5), sdegen.CondOT(), "v")
    sdegen.log_prob(late, x, RK4, u=(0.05, 0.2))
    with pytest.raises(ValueError, match="blocks gradients"):
        sdegen.log_prob(late, x, RK4)


@pytest.mark.parametrize("size", [0.1, 1.0])
def test_a_double_network_on_single_precision_data_is_honest(size):
    for seed, activation in enumerate([nn.SiLU, nn.GELU, nn.Tanh, nn.ReLU, nn.SELU, nn.LeakyReLU]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 2)).double()
        inside = sdegen.ScoreModel(_Bound(net, size), sdegen.CondOT(), "v")
        sdegen.log_prob(inside, torch.randn(5, 2, dtype=torch.float32), sdegen.ODESolver("euler", steps=1))


class _Bound(nn.Module):
    def __init__(self, net, size):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x, t):
        return self.size * self.net(x)


@pytest.mark.parametrize(("activation", "width", "d"), [(nn.SELU, 256, 1), (nn.LeakyReLU, 256, 2), (nn.ReLU, 512, 16)])
def test_kinks_are_no_lies(activation, width, d):
    """Wide networks of Kaiming's scale, where some row always meets a kink."""
    for seed in range(25):
        torch.manual_seed(seed)
        sizes = [d, width, width, width, d]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), activation())]
        for layer in layers[::2]:
            nn.init.kaiming_normal_(layer.weight)
        model = sdegen.ScoreModel(_Bound(nn.Sequential(*layers[:-1]).double(), 1.0), sdegen.CondOT(), "v")
        sdegen.log_prob(model, torch.randn(8, d), sdegen.ODESolver("euler", steps=1), trace=sdegen.Hutchinson(1))


def test_what_is_known_of_a_network_is_known_for_one_set_of_conditions():
    """Honest by itself, and blind where it is given a label."""
    model = sdegen.ScoreModel(
        lambda x, t, label=None: torch.tanh(x if label is None else x.detach()), sdegen.VPSDE(), "v"
    )
    x = torch.randn(4, 2)
    sdegen.log_prob(model, x, RK4)
    with pytest.raises(ValueError, match="blocks gradients"):
        sdegen.log_prob(model, x, RK4, cond={"label": torch.zeros(4)})


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e5), (torch.float64, 1e14)])
def test_a_hidden_gradient_is_found_in_data_of_any_scale(dtype, scale):
    """The steps of the differences grow with the data, or rounding would drown them."""
    net, x = Net(8).layers.to(dtype), scale * torch.randn(6, 8, dtype=dtype)
    for hidden in (False, True):
        model = sdegen.ScoreModel(
            lambda x, t, hidden=hidden: scale * net((x.detach() if hidden else x) / scale), sdegen.CondOT(), "velocity"
        )
        if not hidden:
            sdegen.log_prob(model, x, RK4)
            continue
        with pytest.raises(ValueError, match="blocks gradients"):
            sdegen.log_prob(model, x, RK4)
