"""What is drawn is what was given, nothing is cut, and the densities behind are the exact ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import sdegen
from sdegen import plot

LAW = sdegen.GaussianMixture([[-1.0], [0.8]], [0.15, 0.35], [0.4, 0.6])


def ways(path: sdegen.GaussianPath, law: sdegen.GaussianMixture = LAW) -> dict[str, sdegen.Solution]:
    x_T = path.prior.sample((7, *law.event_shape))
    solvers = {"SDE": sdegen.SDESolver("euler", 30), "ODE": sdegen.ODESolver("rk4", steps=10)}
    u = (path.ends[1], path.ends[0])
    return {k: sdegen.solve(law.model(path), x_T, s, u=u, trajectory=True) for k, s in solvers.items()}


def own_axes(figure) -> list:
    from matplotlib import pyplot

    pyplot.close(figure)
    return figure.axes


def test_samples_are_dots_where_they_are_and_none_is_cut():
    x, data = torch.randn(50, 2), 3 * torch.randn(40, 2).float()
    ax = Figure().subplots()
    assert plot.samples(x, ax, data=data, color="#123456") is ax
    behind, front = (dots.get_offsets() for dots in ax.collections)
    np.testing.assert_array_equal(front, x)
    np.testing.assert_array_equal(behind, data)
    for points in (x, data):
        for (low, high), values in zip((ax.get_xlim(), ax.get_ylim()), points.T, strict=True):
            assert low < values.min() <= values.max() < high
    assert ax.get_aspect() == 1


def test_panels_share_limits_that_hold_all_points():
    sets = {name: scale * torch.randn(20, 2) for name, scale in (("a", 1), ("b", 4), ("c", 0.1), ("d", 1), ("e", 1))}
    axes = own_axes(plot.samples(sets))
    assert [ax.get_title() for ax in axes] == list(sets)
    everything = torch.cat(list(sets.values()))
    for ax, x in zip(axes, sets.values(), strict=True):
        np.testing.assert_array_equal(ax.collections[0].get_offsets(), x)
        for (low, high), values in zip((ax.get_xlim(), ax.get_ylim()), everything.T, strict=True):
            assert low < values.min() <= values.max() < high


def test_a_second_set_on_the_same_axes_widens_them():
    ax, small, large = Figure().subplots(), torch.rand(9, 2), 5 * torch.rand(9, 2)
    for x in (large, small):
        plot.samples(x, ax)
    assert ax.get_xlim()[1] > large[:, 0].max()


@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.CondOT(), sdegen.VESDE(sigma_max=5.0)], ids=repr)
@pytest.mark.parametrize("straight", [False, True])
def test_lines_are_the_states_from_noise_on_the_left_to_data(path, straight):
    solutions = ways(path)
    axes = own_axes(plot.trajectories(solutions, LAW.model(path), straight=straight))
    for ax, solution in zip(axes, solutions.values(), strict=True):
        scale = path.scale(solution.u)[:, None, None] if straight else 1.0
        time = solution.u if straight else solution.t
        assert len(ax.get_lines()) == 7
        for line, states in zip(ax.get_lines(), (solution.trajectory / scale).unbind(1), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), time)
            np.testing.assert_allclose(line.get_ydata(), states[:, 0], rtol=1e-14)
            assert ax.get_ylim()[0] < states.min() <= states.max() < ax.get_ylim()[1]
        assert ax.get_xlim() == (float(time[0]), float(time[-1]))


@pytest.mark.parametrize("path", [sdegen.CosineVPSDE(), sdegen.CondOT()], ids=repr)
@pytest.mark.parametrize("straight", [False, True])
def test_the_density_behind_is_the_exact_marginal(path, straight):
    """Read off the picture at a few of its pixels, where the axes say that they are."""
    solution = ways(path)["ODE"]
    ax = plot.trajectories(solution, LAW.model(path), Figure().subplots(), straight=straight)
    (image,) = ax.images
    values, (left, right, low, high) = image.get_array(), image.get_extent()
    rows, columns = values.shape
    assert min(left, right) <= min(ax.get_xlim())
    assert max(ax.get_xlim()) <= max(left, right)
    for i, j in ((0, 0), (100, 50), (rows // 2, columns // 2), (rows - 90, columns - 1)):
        moment = torch.tensor(left + (right - left) * (j + 0.5) / columns)
        moment = moment.clamp(0, float(path.ends[1]) if straight else 1)  # rounding
        x = torch.tensor([[low + (high - low) * (i + 0.5) / rows]])
        t, r = (path.time(moment), path.scale(moment)) if straight else (moment, torch.tensor(1.0))
        expected = r * LAW.marginal(path, float(t)).log_prob(r * x).exp()
        np.testing.assert_allclose(values[i, j], expected[0], rtol=1e-9)
    integral = values.sum(0) * (high - low) / rows
    np.testing.assert_allclose(integral[-20:], 1, atol=0.02)  # near the data all of it is inside


def test_points_go_through_the_plane_from_grey_to_ink():
    ring = sdegen.GaussianMixture([[1.0, 0.0], [-1.0, 0.0]], 0.2)
    solution = ways(sdegen.VPSDE(), ring)["SDE"]
    ax = plot.trajectories(solution, ring.model(sdegen.VPSDE()), Figure().subplots())
    for line, states in zip(ax.get_lines(), solution.trajectory.unbind(1), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), states)
    for dots, k in zip(ax.collections, (0, -1), strict=True):
        np.testing.assert_array_equal(dots.get_offsets(), solution.trajectory[k])
    assert not ax.images


def test_towards_noise_the_noise_is_on_the_left_still():
    model = LAW.model(sdegen.VPSDE())
    solution = sdegen.solve(model, torch.randn(3, 1), sdegen.Adams(8), to="noise", trajectory=True)
    ax = plot.trajectories(solution, model, Figure().subplots())
    assert ax.get_xlim() == (1.0, 0.0)


def test_panels_stay_inside_their_figure_and_no_setting_changes(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = plot.trajectories(ways(sdegen.VPSDE()), LAW.model(sdegen.VPSDE()))
    figure.canvas.draw()
    for ax in figure.axes:
        box = ax.get_tightbbox()
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1
    for suffix in (".png", ".svg"):
        assert plot.write(figure, tmp_path / f"ways{suffix}").stat().st_size > 5000
    from matplotlib import pyplot
    from PIL import Image

    assert not pyplot.fignum_exists(figure.number)
    with Image.open(tmp_path / "ways.png") as picture:
        assert round(picture.info["dpi"][0]) == 150
    assert dict(matplotlib.rcParams) == before


REFUSED = {
    "points": (lambda: plot.samples(torch.zeros(5, 3)), ValueError, r"x must have shape \(n, 2\), and it has \(5, 3\)"),
    "nan": (
        lambda: plot.samples({"a": torch.tensor([[0.0, torch.nan]])}),
        ValueError,
        r"x\['a'\] must be finite, and 1 of its 2 numbers are not",
    ),
    "none": (
        lambda: plot.samples(torch.zeros(0, 2)),
        ValueError,
        r"x has shape \(0, 2\), and there is nothing",
    ),
    "empty": (lambda: plot.samples({}), ValueError, "x is an empty mapping, and there is nothing to draw"),
    "list": (lambda: plot.samples([[0.0, 1.0]]), TypeError, r"x must be a tensor of shape \(n, 2\), or a mapping"),
    "ax": (lambda: plot.samples(torch.zeros(5, 2), 3), TypeError, "ax must be the Axes to draw on, .* and it is 3"),
    "axes": (
        lambda: plot.samples({"a": torch.zeros(5, 2)}, Figure().subplots()),
        TypeError,
        "1 panels have a figure of their own: leave ax out",
    ),
    "data": (lambda: plot.samples(torch.zeros(5, 2), data=torch.zeros(5)), ValueError, "data must have shape"),
    "solution": (lambda: plot.trajectories(torch.zeros(3)), TypeError, r"solution must be what solve\(..., traj"),
    "model": (lambda: plot.trajectories(bare(), LAW), TypeError, "model must be a Model, such as"),
    "trajectory": (
        lambda: plot.trajectories({"ODE": replace(bare(), trajectory=None)}),
        ValueError,
        r"solution\['ODE'\] has no trajectory: solve with trajectory=True",
    ),
    "dimensions": (
        lambda: plot.trajectories(replace(bare(), trajectory=torch.zeros(9, 2, 3))),
        ValueError,
        r"must have shape \(n \+ 1, B, 1\) or \(n \+ 1, B, 2\), and it has \(9, 2, 3\): keep one or two coordinates",
    ),
    "straight": (lambda: plot.trajectories(bare(), straight=True), ValueError, "need the path: give model= too"),
    "sizes": (
        lambda: plot.trajectories({"a": bare(), "b": replace(bare(), trajectory=torch.zeros(9, 2, 2))}),
        ValueError,
        r"events of one size, and these have \[1, 2\]",
    ),
    "figure": (lambda: plot.write(3, "x.png"), TypeError, "figure must be a Figure or an Axes, and it is 3"),
}


def bare() -> sdegen.Solution:
    return sdegen.solve(LAW.model(sdegen.VPSDE()), torch.zeros(2, 1), sdegen.Adams(8), trajectory=True)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(case):
    from matplotlib import pyplot

    call, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words):
        call()
    assert not pyplot.get_fignums()


def test_columns_of_other_units_fill_their_panels():
    """One scale where the sides are alike, and ticks that tell the units where they are not."""
    alike, unlike = torch.randn(50, 2), torch.randn(50, 2) * torch.tensor([1000.0, 0.1])
    figure = plot.samples({"alike": alike})
    assert figure.axes[0].get_aspect() == 1.0
    assert not len(figure.axes[0].get_xticks())
    figure = plot.samples({"unlike": unlike})
    assert figure.axes[0].get_aspect() == "auto"
    assert len(figure.axes[0].get_xticks())
    width, height = figure.get_size_inches()
    assert height > width
