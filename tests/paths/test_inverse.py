"""The inverse of a clock that a path does not state: right wherever the clock is steep, flat, kinked or noisy."""

from __future__ import annotations

import math

import pytest
import torch
from pretend import DEVICE, counted, held, put
from problems import OwnFlow, OwnVP

import sdegen

GRID = torch.linspace(0.0, 1.0, 40, dtype=torch.float64)
LEVELS = torch.cumsum(torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.05, 0)


def path(alpha, sigma, t_data=0.0, t_noise=1.0):
    """A path made of two functions, as a user would write it."""
    members = {"alpha": lambda self, t: alpha(t), "sigma": lambda self, t: sigma(t)}
    own = type("Own", (sdegen.GaussianPath,), members | {"__repr__": lambda self: "Own()"})()
    own.t_data, own.t_noise = t_data, t_noise
    return own


def table(t):
    """0 to 1 through uneven levels, as a schedule read from a file."""
    k = torch.clamp((t * 39).long(), 0, 38)
    levels = ((LEVELS - LEVELS[0]) / (LEVELS[-1] - LEVELS[0])).to(t)
    return levels[k] + (t * 39 - k) * (levels[k + 1] - levels[k])


def power(p):
    return path(lambda t: 1 - t**p, lambda t: t**p)


ZOO = {
    "own vp": OwnVP(),
    "own flow": OwnFlow(),
    **{f"power {p:g}": power(p) for p in (0.25, 0.5, 1.0, 2.0, 8.0)},
    **{f"flow power {p:g}": path(lambda t, p=p: t**p, lambda t, p=p: 1 - t**p, 1.0, 0.0) for p in (0.25, 0.5, 4.0)},
    "exploding": path(lambda t: torch.ones_like(t), lambda t: 1e-3 * torch.exp(math.log(1e7) * t)),
    "square root of the rest": path(lambda t: torch.exp(-5 * t**2), lambda t: torch.sqrt(1 - torch.exp(-10 * t**2))),
    "long": path(lambda t: 1 - t / 1e6, lambda t: t / 1e6, 0.0, 1e6),
    "short, far away": path(lambda t: 1e3 * (t - 5), lambda t: 1e3 * (5.001 - t), 5.001, 5.0),
    "kinked": path(lambda t: torch.where(t < 0.4, 1 - 0.1 * t, 1.6 * (1 - t)), lambda t: torch.sqrt(t)),
    "table": path(lambda t: 1 - table(t), table),
    "jump": path(lambda t: torch.where(t < 0.37, 1 - t, 0.5 * (1 - t)), lambda t: t + 0.0),
    "single precision": path(lambda t: (1 - t.float()).to(t), lambda t: t.float().to(t)),
    "nearly flat": path(lambda t: 1 - t, lambda t: 1e-3 * t + t**40),
}
SMOOTH = [name for name in ZOO if name not in ("jump", "single precision", "table")]  # a table here is no table there
every_path = pytest.mark.parametrize("name", ZOO)


def clocks(own):
    """Clocks all over the path, evenly spread in u and in log-SNR."""
    low, high = own._clocks
    logits = torch.linspace(-32.0, 16.0, 97)
    inside = torch.cat([low + (high - low) * torch.linspace(0.0, 1.0, 101), torch.sigmoid(logits)])
    return inside[(inside >= low) & (inside <= high)]


@every_path
def test_the_clock_passes_u_within_a_few_roundings_of_the_time(name):
    own = ZOO[name]
    u = clocks(own)
    t = own.time(u)
    step = 8 * torch.finfo(torch.float64).eps * t.abs() + 1e-300
    first, last = sorted((own.t_data, own.t_noise))
    around = [torch.clamp(t + s * own._away * step, first, last) for s in (-1.0, 1.0)]
    before, after = (own._clock(at) for at in around)
    rounding = 8 * torch.finfo(torch.float64).eps * u
    assert bool(((before <= u + rounding) & (after >= u - rounding)).all())


@pytest.mark.parametrize("p", [0.25, 0.5, 1.0, 2.0])
def test_times_near_the_data_are_right_in_relative_terms(p):
    u = torch.logspace(-40, -1, 79)
    torch.testing.assert_close(power(p).time(u), u ** (1 / p), rtol=2e-14, atol=0)
    flow = path(lambda t: t**p, lambda t: 1 - t**p, 1.0, 0.0)
    left = u[u > 1e-5]  # of which 1 - u keeps eleven digits
    torch.testing.assert_close(flow.time(1 - left), left ** (1 / p), rtol=1e-10, atol=0)


def test_the_inverse_of_vp_is_its_closed_form():
    u = torch.cat([torch.logspace(-30, -2, 57), torch.linspace(0.01, 0.99, 99)])
    own, closed = OwnVP(), sdegen.VPSDE()
    torch.testing.assert_close(own.time(u), closed.time(u), rtol=1e-13, atol=0)
    torch.testing.assert_close(own.scale(u), closed.scale(u), rtol=1e-14, atol=0)


@every_path
def test_the_ends_are_met_exactly(name):
    own = ZOO[name]
    low, high = own._clocks
    ends = own.time(torch.tensor([low, high]))
    assert ends.tolist() == [own.t_data, own.t_noise]
    beyond = own.time(torch.tensor([low - 1e-7, high + 1e-7]))
    assert beyond.tolist() == [own.t_data, own.t_noise]
    single = own.time(torch.tensor([low, high], dtype=torch.float32))
    assert single.dtype == torch.float32
    assert float((single - ends).abs().max()) <= 1e-4 * abs(own.t_noise - own.t_data)


def test_shapes_modes_and_gradients():
    own = ZOO["power 2"]
    u = torch.rand(2, 3, 4, requires_grad=True)
    t = own.time(u)
    assert t.shape == u.shape
    assert not t.requires_grad
    assert own.time(0.25).shape == ()
    assert own.time(torch.empty(0, 3)).shape == (0, 3)
    with torch.inference_mode():
        inside = own.time(u.detach().clone())
    assert torch.equal(inside.clone(), t)
    assert torch.equal(own.time(u[0, 0, 0]), t[0, 0, 0])


def test_the_clock_is_asked_a_few_times_and_not_until_float64_is_exhausted():
    for own in (OwnVP(), OwnFlow(), power(0.25), power(8.0)):
        asked, clock = [], own._clock
        own._clock = lambda t, asked=asked, clock=clock: asked.append(t.numel()) or clock(t)
        own.time(torch.linspace(*own._clocks, 100))
        assert len(asked) <= 7, asked
        assert max(asked) < 300


def test_what_trains_is_inverted_as_it_is_now():
    rate = torch.nn.Parameter(torch.tensor(5.0))
    own = path(lambda t: torch.exp(-rate * t), lambda t: torch.sqrt(-torch.expm1(-2 * rate * t)))
    u = torch.linspace(0.01, 0.9, 50)
    for value in (5.0, 6.0, 9.0):
        rate.data.fill_(value)
        torch.testing.assert_close(own._clock(own.time(u)), u, rtol=1e-14, atol=1e-15)
    own.scale(u).sum().backward()
    assert rate.grad is not None


@pytest.mark.parametrize("name", SMOOTH)
def test_an_accelerator_gets_the_numbers_of_the_cpu_and_is_not_waited_for(name):
    own = ZOO[name]
    assert own._smooth
    u = torch.linspace(*own._clocks, 50)[1:-1]
    there = put(u)
    counted(lambda: own.time(there))  # the fractions move once
    t, waits = counted(lambda: own.time(there))
    assert t.device.type == DEVICE.type
    assert not waits, dict(waits)
    torch.testing.assert_close(own._clock(held(t)), u, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(held(t), own.time(u), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["jump", "single precision"])
def test_what_a_few_steps_do_not_invert_is_inverted_on_the_cpu(name):
    own = ZOO[name]
    u = torch.linspace(*own._clocks, 50)
    there = put(u)
    t, waits = counted(lambda: own.time(there))
    assert waits.total() == 2  # u here and t there
    assert torch.equal(held(t), own.time(u))
