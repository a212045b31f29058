"""Times and clocks off a path are refused, rounding is taken back, and both ends are met."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from problems import PATHS, OwnVP

import sdegen

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
TARGET = sdegen.GaussianMixture([[0.3], [0.5]], 0.2)


@every_path
@pytest.mark.parametrize("fraction", [-1.0, 1.01, 500.0, math.nan])
def test_times_off_the_path_are_refused(path, fraction):
    x, t = torch.zeros(3, 2), path.at(fraction)
    inside = path.at(torch.full((3,), 0.5))
    one_wrong = torch.where(torch.arange(3) == 1, t, inside)
    for act in (
        lambda: path.perturb(x, t),
        lambda: path.perturb(x, one_wrong),
        lambda: path.clock(t),
        lambda: path.clock(one_wrong),
        lambda: path.log_snr(t),
        lambda: path.drift(x, t),
        lambda: path.diffusion(t),
        lambda: path.transition(path.at(0.5), t),
        lambda: TARGET.marginal(path, t),
    ):
        with pytest.raises(ValueError, match=r"t must lie in \[") as caught:
            act()
        assert f"{t:g}" in str(caught.value)


@every_path
@pytest.mark.parametrize("u", [2.0, -0.5, math.nan])
def test_clocks_off_the_path_are_refused(path, u):
    for act in (
        lambda: path.time(u),
        lambda: path.time(torch.tensor([0.5, u])),
        lambda: path.scale(u),
        lambda: path.scale(torch.tensor([0.5, u])),
        lambda: path.prior_at(u),
    ):
        with pytest.raises(ValueError, match=r"u must lie in \[") as caught:
            act()
        assert f"{u:g}" in str(caught.value)


def test_a_clock_that_another_path_would_reach_is_refused():
    with pytest.raises(ValueError, match=r"u must lie in \[0.0, 0.99347.*and it is 1\."):
        sdegen.VPSDE().time(1.0)
    with pytest.raises(ValueError, match=r"u must lie in \[0.0099.*and it spans \[0, 0.5\]"):
        sdegen.VESDE().scale(torch.tensor([0.0, 0.5]))


def test_the_prior_asks_for_clocks_of_the_path_whatever_scale_a_user_wrote():
    class Own(OwnVP):
        def scale(self, u):
            return 1 / torch.sqrt((1 - u) ** 2 + u**2)

    with pytest.raises(ValueError, match=r"u must lie in \[0.0, 0.99.*it is 2\."):
        Own().prior_at(2.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_rounding_of_half_precision_is_rounding(dtype):
    path = sdegen.VPSDE()
    u = torch.linspace(0.0, path.ends[1], 50).to(dtype)
    assert float(u[-1]) != path.ends[1]
    assert bool(torch.isfinite(path.scale(torch.cat([u, u[-1:] + torch.finfo(dtype).eps / 2]))).all())
    with pytest.raises(ValueError, match="u must lie"):
        path.scale(torch.ones(1, dtype=dtype) + 4 * torch.finfo(dtype).eps)


@every_path
def test_rounding_is_taken_back_to_the_ends(path):
    low, high = (torch.tensor(end) for end in path.ends)
    span = abs(path.t_noise - path.t_data)
    for end, beyond in ((low, low - 1e-9), (high, high + 1e-9)):
        assert torch.equal(path.time(beyond), path.time(end))
        assert torch.equal(path.scale(beyond), path.scale(end))
        assert abs(float(path.time(end.float()) - path.time(end))) < 1e-4 * span
    for end, beyond in ((0.0, -1e-9), (1.0, 1 + 1e-9)):
        assert torch.equal(path.clock(path.at(beyond)), path.clock(path.at(end)))
        x_t, _ = path.perturb(torch.ones(2, 1), path.at(beyond), torch.ones(2, 1))
        assert torch.equal(x_t, path.perturb(torch.ones(2, 1), path.at(end), torch.ones(2, 1))[0])
    assert path.time(torch.empty(0)).shape == path.clock(torch.empty(0)).shape == (0,)


@every_path
def test_no_accelerator_is_waited_for(path):
    """On the device without values any look at them would raise."""
    t = torch.empty(3, device="meta")
    assert path.clock(t).device.type == "meta"
    assert path.checked_times(t).device.type == "meta"
    assert path.checked_clocks(t).device.type == "meta"


@every_path
def test_what_an_accelerator_has_off_the_path_stays_nan(path):
    """There the checks, which are left out here, answer NaN instead of raising: a loss must not come out finite."""
    nan = torch.tensor([math.nan, 0.5])
    unchecked = copy.deepcopy(path)
    for owner in (unchecked, getattr(unchecked, "path", unchecked)):
        vars(owner).update(checked_clocks=lambda u: torch.as_tensor(u), checked_times=lambda t: t)
    for value in (unchecked.alpha(nan) + unchecked.sigma(nan), unchecked.time(nan), unchecked.scale(nan)):
        assert value.isnan().tolist() == [True, False]


@every_path
@pytest.mark.parametrize("fraction", [0.0, 0.37, 1.0])
def test_from_a_time_to_itself_nothing_happens(path, fraction):
    t = path.at(torch.tensor(fraction))
    for numbers, expected in ((path.transition(t, t), (1.0, 0.0)), (path.bridge(t, t), (1.0, 0.0, 0.0))):
        torch.testing.assert_close(torch.stack(numbers), torch.tensor(expected), rtol=0, atol=0)


def test_the_bridge_from_clean_data_is_the_data():
    c_t, c_x, std = sdegen.VPSDE().bridge(torch.zeros(3), torch.tensor([0.0, 1e-9, 0.5]))
    torch.testing.assert_close(c_t, torch.tensor([1.0, 0.0, 0.0]), rtol=0, atol=0)
    torch.testing.assert_close(c_x, torch.tensor([0.0, 1.0, 1.0]), rtol=1e-12, atol=0)
    assert not std.any()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"generator": 5}, TypeError, "generator must be a torch.Generator or a list of them, and 5 is int"),
        ({"generator": [torch.Generator()]}, ValueError, "batch of 4 needs 4 generators.*and 1 were given"),
        ({"generator": [torch.Generator()] * 5}, ValueError, "batch of 4 needs 4 generators.*and 5 were given"),
        ({"generator": [1, 2, 3, 4]}, TypeError, "generator must be.*1 is int"),
        ({"noise": torch.zeros(4, 3, dtype=torch.complex128)}, TypeError, "noise must have a real floating.*complex"),
        ({"noise": torch.full((4, 3), math.nan)}, ValueError, "noise holds NaN"),
        ({"noise": torch.zeros(4, 1)}, ValueError, r"noise must have the shape of x, \(4, 3\).*\(4, 1\)"),
        ({"noise": 0.0}, TypeError, "noise must be a tensor.*float"),
    ],
)
def test_perturb_refuses_what_does_not_fit(arguments, error, says):
    with pytest.raises(error, match=says):
        sdegen.VPSDE().perturb(torch.zeros(4, 3), 0.5, **arguments)
