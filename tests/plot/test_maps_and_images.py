"""Maps hold the numbers at the middles of their cells, arrows the model's answers, and images the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import sdegen
from sdegen import plot
from sdegen.nets import MLP

LAW = sdegen.GaussianMixture([[1.0, 0.5], [-0.5, -1.0]], [0.4, 0.3])
WINDOW = ((-2.0, 2.5), (-2.0, 1.0))


def middles(rows: int, columns: int) -> torch.Tensor:
    (left, right), (low, high) = WINDOW
    x = left + (right - left) * (torch.arange(columns) + 0.5) / columns
    y = low + (high - low) * (torch.arange(rows) + 0.5) / rows
    return torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], -1).reshape(-1, 2)


def closed(figure):
    from matplotlib import pyplot

    pyplot.close(figure)
    return figure


def test_a_map_is_the_density_at_the_middles_whatever_the_batch():
    expected = LAW.log_prob(middles(30, 30)).reshape(30, 30)
    for batch_size in (7, 10_000):
        ax = plot.density(LAW, Figure().subplots(), limits=WINDOW, points=30, batch_size=batch_size)
        np.testing.assert_allclose(ax.images[0].get_array(), expected.exp(), rtol=1e-12)
        assert ax.images[0].get_extent() == [*WINDOW[0], *WINDOW[1]]
        assert (ax.get_xlim(), ax.get_ylim()) == WINDOW
    numbers = plot.density(expected, Figure().subplots(), limits=WINDOW)
    np.testing.assert_array_equal(numbers.images[0].get_array(), expected.exp())
    log = plot.density(LAW, Figure().subplots(), limits=WINDOW, points=30, log=True).images[0]
    np.testing.assert_allclose(log.get_array(), expected.clamp(min=expected.max() - 10), rtol=1e-12)


def test_a_model_s_map_is_its_log_likelihood_and_its_error():
    model, solver = LAW.model(sdegen.VPSDE()), sdegen.Adams(20)
    found = sdegen.log_likelihood(model, middles(8, 8), solver)
    drawn = plot.density(model, Figure().subplots(), limits=WINDOW, points=8, solver=solver, batch_size=20)
    np.testing.assert_allclose(drawn.images[0].get_array(), found.log_prob.exp().reshape(8, 8), rtol=1e-9)
    errors = plot.density(model, Figure().subplots(), limits=WINDOW, points=8, solver=solver, error=True)
    np.testing.assert_allclose(errors.images[0].get_array(), found.error.reshape(8, 8), rtol=1e-6)


def test_several_maps_share_one_scale_and_ask_for_no_more_than_a_batch():
    class Counted:
        most = 0

        def log_prob(self, x):
            self.most = max(self.most, len(x))
            return LAW.log_prob(x) + 1

    counted = Counted()
    figure = closed(plot.density({"one": LAW, "more": counted}, points=20, batch_size=64))
    one, more = (ax.images[0] for ax in figure.axes if ax.images and ax.get_title())
    assert counted.most == 64
    assert one.norm is more.norm
    assert more.norm.vmin == 0
    assert more.norm.vmax == more.get_array().max() > one.get_array().max()


@pytest.mark.parametrize("kind", ["velocity", "score"])
def test_arrows_are_the_model_s_answers(kind):
    model, x = sdegen.ScoreModel(MLP(2).float(), sdegen.VPSDE(), "v"), middles(9, 9)
    for t, one in ((0.3, model), (0.5, LAW.model(sdegen.VPSDE()))):
        ax = plot.field(one, t, Figure().subplots(), kind=kind, limits=WINDOW, points=9)
        (arrows,) = ax.collections
        expected = getattr(one, kind)(x.float() if one is model else x, t).detach()
        np.testing.assert_allclose(arrows.get_offsets(), x, rtol=1e-6)
        np.testing.assert_allclose(np.stack([arrows.U, arrows.V], 1), expected, rtol=1e-4, atol=1e-5)
        reach = np.stack([arrows.U, arrows.V], 1) / arrows.scale / 2
        for side, (low, high) in enumerate((ax.get_xlim(), ax.get_ylim())):
            ends = x.numpy()[:, side] + reach[:, side] * np.array([[-1], [1]])
            assert low - 1e-9 <= ends.min() <= ends.max() <= high + 1e-9
        assert len(ax.images) == (one is not model)  # over the exact density
    image = ax.images[0]
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    corner = torch.tensor([[left + (right - left) / 400, low + (high - low) / 400]])
    np.testing.assert_allclose(
        image.get_array()[0, 0], LAW.marginal(sdegen.VPSDE(), 0.5).log_prob(corner).exp()[0], rtol=1e-9
    )


def test_limits_may_be_the_points_around_which_to_draw():
    x = torch.randn(30, 2)
    ax = plot.density(LAW, Figure().subplots(), limits=x, points=5)
    for (low, high), values in zip((ax.get_xlim(), ax.get_ylim()), x.T, strict=True):
        assert low < values.min() <= values.max() < high


def test_images_are_drawn_as_they_are_one_row_for_every_name():
    rows = {"real": torch.randn(4, 1, 5, 6), "SDE": torch.randn(3, 4, 1, 5, 6), "ODE": torch.randn(4, 1, 5, 6)}
    rows["ODE"][2, 0, :, :3] = torch.nan
    ax = plot.grid(rows, Figure().subplots(), span=(-2.0, 1.0))
    every = torch.cat([x.reshape(-1, 4, 1, 5, 6) for x in rows.values()])
    assert len(ax.images) == 20
    for image, (row, column) in zip(ax.images, np.ndindex(5, 4), strict=True):
        given = every[row, column, 0].numpy()
        np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), given)
        assert (image.norm.vmin, image.norm.vmax) == (-2.0, 1.0)
        left, right, bottom, top = image.get_extent()
        assert (right - left, bottom - top) == pytest.approx((6, 5))  # square pixels, the first row on top
        assert ax.get_xlim()[0] < left < right < ax.get_xlim()[1]
        assert ax.get_ylim()[1] < top < bottom <= ax.get_ylim()[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(rows)
    middle = (ax.images[4].get_extent()[3] + ax.images[15].get_extent()[2]) / 2
    assert ax.get_yticks()[1] == pytest.approx(middle)


def test_colours_go_from_span_to_one_and_nan_is_the_ground():
    x = torch.rand(5, 3, 4, 4) * 2 - 1
    x[1, :, 0, 0] = torch.nan
    ax = plot.grid(x, Figure().subplots(), columns=2)
    assert len(ax.images) == 6  # the last is empty
    np.testing.assert_allclose(ax.images[2].get_array()[..., :3], (x[2].permute(1, 2, 0) + 1) / 2)
    assert ax.images[1].get_array()[0, 0, 3] == 0 == ax.images[5].get_array()[..., 3].max()
    assert ax.images[1].get_array()[1:, :, 3].min() == 1


def test_names_and_bars_are_not_cut():
    for ax in (
        plot.grid({"a long name, of which nothing is cut off": torch.zeros(8, 1, 8, 8)}),
        plot.density(LAW, points=10),
    ):
        figure = ax.figure
        figure.canvas.draw()
        box = figure.get_tightbbox()  # inches
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= figure.get_size_inches()[0] + 1e-3
        assert box.y1 <= figure.get_size_inches()[1] + 1e-3


Z = torch.zeros(4, 1, 8, 8)
REFUSED = {
    "law": (lambda: plot.density(3), TypeError, r"law must be a Model, a law with .log_prob, or .* and it is 3"),
    "limits": (lambda: plot.density(LAW, limits=(3, 1)), ValueError, r"limits must be .* and they are \(3, 1\)"),
    "turned": (lambda: plot.density(LAW, limits=((1, 0), (0, 1))), ValueError, "each growing"),
    "words": (lambda: plot.density(LAW, limits="ab"), TypeError, "limits must be .* not 'ab'"),
    "error": (lambda: plot.density(LAW, error=True), ValueError, "Only a Model's log-density comes with its error"),
    "values": (lambda: plot.density(torch.zeros(5)), ValueError, r"law must have shape \(rows, columns\)"),
    "nan": (lambda: plot.density(torch.full((2, 2), torch.nan)), ValueError, "the density must be finite, and 4 of"),
    "points": (lambda: plot.density(LAW, points=1), ValueError, "points must be at least 2"),
    "kind": (lambda: plot.field(LAW.model(sdegen.VPSDE()), 0.5, kind="eps"), ValueError, "Unknown kind 'eps'"),
    "time": (lambda: plot.field(LAW.model(sdegen.VPSDE()), 1.5), ValueError, "1.5"),
    "model": (lambda: plot.field(LAW, 0.5), TypeError, "model"),
    "images": (lambda: plot.grid(torch.zeros(4, 8, 8)), ValueError, r"shape \(n, C, h, w\), C of 1 or 3, and it has"),
    "channels": (lambda: plot.grid({"a": torch.zeros(4, 2, 8, 8)}), ValueError, r"images\['a'\] must have shape"),
    "rows": (lambda: plot.grid({"a": Z, "b": Z[:3]}), ValueError, "All rows must hold as many images of one shape"),
    "columns": (lambda: plot.grid({"a": Z}, columns=3), ValueError, "leave out columns = 3"),
    "span": (lambda: plot.grid(Z, span=(1, 0)), ValueError, r"the lower number first, and it is \(1, 0\)"),
    "infinite": (
        lambda: plot.grid(Z + torch.inf),
        ValueError,
        "or NaN where nothing is to be drawn, and it holds infinity",
    ),
    "array": (lambda: plot.grid(3), TypeError, r"images must be a tensor \(n, C, h, w\), or a mapping"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(case):
    from matplotlib import pyplot

    call, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words):
        call()
    assert not pyplot.get_fignums()
