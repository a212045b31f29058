"""The timesteps that diffusers' schedulers visit, as knots of the path."""

from __future__ import annotations

import pytest
import torch
from unets import diffusers, gap, unet

import sdegen
from sdegen.interop.diffusers import from_diffusers, spacing
from sdegen.paths.chain import Knots

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # their np.array(tensor)

KINDS = ["DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "EulerDiscrete"]


def scheduler(kind, **options):
    options |= {"skip_prk_steps": True} if kind == "PNDM" else {}
    return getattr(diffusers, f"{kind}Scheduler")(**options)


def timesteps(theirs, steps):
    """Those of set_timesteps; PNDM's also repeat some for its Runge-Kutta steps."""
    theirs.set_timesteps(steps)
    if isinstance(theirs, diffusers.PNDMScheduler):
        return torch.from_numpy(theirs._timesteps[::-1].copy()).double()
    return theirs.timesteps.double()


def indices(theirs, grid):
    """k - 1 at the knots, as the network is shown them, and the last k."""
    path = from_diffusers(unet(), theirs, clip=False).path
    t = path.time(grid.as_subclass(torch.Tensor))
    return path.index(t), float(t[-1] * path.steps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
def test_the_timesteps_are_theirs(kind, name, offset):
    """Where steps divides K and where it does not; at 61 steps numpy's own arange would add a timestep of -1."""
    for steps in (1, 2, 7, 50, 61)[kind == "PNDM" :]:
        theirs = scheduler(kind, timestep_spacing=name, steps_offset=offset)
        expected = timesteps(theirs, steps)[:steps]
        grid = spacing(theirs, steps)
        assert type(grid) is Knots
        assert grid.dtype is torch.float64
        shown, last = indices(theirs, grid)
        torch.testing.assert_close(shown[:steps], expected, rtol=0, atol=1e-9)
        ends_clean = kind not in ("PNDM", "DEISMultistep")
        assert last == pytest.approx(0 if ends_clean else 1, abs=1e-9)


@pytest.mark.parametrize("kind", ["DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"])
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 61])
def test_linspace_of_these_is_a_grid(kind, steps):
    """It is their default."""
    theirs = scheduler(kind)
    shown, last = indices(theirs, spacing(theirs, steps))
    torch.testing.assert_close(shown[:steps], timesteps(theirs, steps), rtol=0, atol=1e-9)
    assert last == pytest.approx(float(kind == "DEISMultistep"), abs=1e-9)


def test_thresholds_hold_on_a_flow_too():
    theirs = scheduler("DPMSolverMultistep", use_flow_sigmas=True, prediction_type="flow_prediction", thresholding=True)
    assert from_diffusers(unet(), theirs).clips


def test_where_the_last_timestep_is_the_end_its_empty_step_is_left_out():
    """PNDM as it comes ends at its first alphas_cumprod, and leading without an offset asks there."""
    theirs = scheduler("PNDM")
    grid = spacing(theirs, 10)
    assert len(grid) == 10
    torch.testing.assert_close(indices(theirs, grid)[0], timesteps(theirs, 10))
    with pytest.raises(ValueError, match=r"PNDMScheduler has no 1 falling timesteps below 1000: take fewer steps\."):
        spacing(theirs, 1)


@pytest.mark.parametrize("kind", ["DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete"])
def test_sigma_min_ends_at_the_first_alphas_cumprod(kind):
    theirs = scheduler(kind, timestep_spacing="trailing", final_sigmas_type="sigma_min")
    assert indices(theirs, spacing(theirs, 10))[1] == pytest.approx(1)


@pytest.mark.parametrize("name", ["leading", "trailing"])
def test_timesteps_below_lambda_min_clipped_are_left_out(name):
    theirs = scheduler(
        "DPMSolverMultistep", timestep_spacing=name, lambda_min_clipped=-5.1, beta_schedule="squaredcos_cap_v2"
    )
    expected = timesteps(theirs, 20)
    assert expected[0] < 999
    torch.testing.assert_close(indices(theirs, spacing(theirs, 20))[0][: len(expected)], expected, rtol=0, atol=1e-9)


def test_the_steps_of_euler_are_ddim_on_its_knots():
    """In x/alpha, with networks asked at x_t: the same path, in float32 as theirs computes."""
    theirs = scheduler("EulerDiscrete", timestep_spacing="leading", steps_offset=1, beta_schedule="scaled_linear")
    net, grid = unet(), spacing(theirs, 6)
    theirs.set_timesteps(6)
    x = torch.randn(2, 1, 4, 4)
    ours = sdegen.solve(from_diffusers(net, theirs), x, sdegen.DDIM(grid=grid)).x
    x = x * (1 + theirs.sigmas[0].double() ** 2).sqrt()
    for t in theirs.timesteps:
        x = theirs.step(net(theirs.scale_model_input(x, t), t).sample, t, x).prev_sample.detach()
    assert gap(ours, x) < 1e-5


@pytest.mark.parametrize("options", [{"shift": 3.0}, {}, {"shift": 2.0, "shift_terminal": 0.1}], ids=str)
def test_the_sigmas_of_flow_matching_are_theirs_and_so_are_the_steps(options):
    """dx/dsigma = noise - data there, dx/dt = data - noise here; the network is shown 1000 sigma."""
    theirs = scheduler("FlowMatchEulerDiscrete", **options)
    theirs.set_timesteps(6)
    net, grid = unet(), spacing(theirs, 6)
    torch.testing.assert_close(grid.as_subclass(torch.Tensor), theirs.sigmas.double(), rtol=0, atol=1e-6)
    model = from_diffusers(net, theirs)
    assert (model.path, model.predicts) == (sdegen.CondOT(), "velocity")
    x = torch.randn(2, 1, 4, 4)
    v = model.velocity(x, 0.25)
    torch.testing.assert_close(v, -net(x, 750.0).sample, rtol=0, atol=1e-12)
    ours = sdegen.solve(model, x, sdegen.DDIM(grid=grid)).x
    for t in theirs.timesteps:
        x = theirs.step(net(x, t.double()).sample, t, x).prev_sample.detach()
    assert gap(ours, x) < 1e-5


def test_a_shift_that_was_set_later_counts():
    theirs = scheduler("FlowMatchEulerDiscrete", shift=3.0)
    theirs.set_shift(5.0)
    theirs.set_timesteps(7)
    torch.testing.assert_close(torch.Tensor(spacing(theirs, 7)), theirs.sigmas.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "flow_prediction"])
def test_flow_sigmas_of_a_chains_scheduler_put_the_network_on_a_flow(prediction):
    """UniPC of Wan's kind: x_hat as its own conversion, which takes x_t = (1 - sigma) x + sigma eps."""
    theirs = scheduler("UniPCMultistep", use_flow_sigmas=True, prediction_type=prediction)
    net, x, t = unet(), torch.randn(2, 1, 4, 4), 0.3
    out = net(x, 700.0).sample
    expected = {"epsilon": (x - 0.7 * out) / 0.3, "sample": out, "flow_prediction": x - 0.7 * out}[prediction]
    torch.testing.assert_close(from_diffusers(net, theirs).data(x, t), expected)
    with pytest.raises(ValueError, match="use_flow_sigmas=True is refused"):
        spacing(theirs, 5)


@pytest.mark.parametrize(
    ("kind", "options", "steps", "words"),
    [
        (
            "DDIM",
            {"timestep_spacing": "linspace"},
            5,
            r"'linspace' is refused: .* t - K // steps.*DDIMScheduler\.f",
        ),
        ("EulerDiscrete", {}, 5, "'linspace' is refused: EulerDiscreteScheduler then asks between them"),
        ("DDIM", {"timestep_spacing": "odd"}, 5, "Unknown timestep_spacing 'odd'; choose one of 'leading', 'trailing'"),
        ("DPMSolverMultistep", {"use_karras_sigmas": True}, 5, "use_karras_sigmas=True is refused.*KarrasGrid"),
        ("EulerDiscrete", {"interpolation_type": "log_linear"}, 5, "interpolation_type 'log_linear' is refused"),
        ("FlowMatchEulerDiscrete", {"use_exponential_sigmas": True}, 5, "use_exponential_sigmas=True is refused"),
        ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}, 5, "use_dynamic_shifting=True is refused"),
        (
            "FlowMatchEulerDiscrete",
            {"shift_terminal": 0.1},
            1,
            "steps of a schedule with shift_terminal must be at least 2",
        ),
        ("DDIM", {}, 0, "steps must be at least 1, and it is 0"),
        ("DDIM", {}, 1001, "DDIMScheduler has no 1001 falling timesteps below 1000"),
        ("DDIM", {"steps_offset": 30}, 50, "DDIMScheduler has no 50 falling timesteps below 1000"),
        ("EDMEuler", {}, 5, "EDMEulerScheduler is no scheduler that a path is known for"),
    ],
)
def test_what_is_no_grid_of_the_path_is_refused(kind, options, steps, words):
    with pytest.raises(ValueError, match=words):
        spacing(scheduler(kind, **options), steps)
