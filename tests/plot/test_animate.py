"""A GIF has its pictures, its size and its end; and the package is light until it draws."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

import sdegen
from sdegen import plot

LAW = sdegen.GaussianMixture([[-1.0], [1.0]], 0.2)
PLANE = sdegen.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.2)


def ways(law: sdegen.GaussianMixture, n: int = 20) -> dict[str, sdegen.Solution]:
    model, x_T = law.model(sdegen.VPSDE()), torch.randn(n, *law.event_shape)
    solvers = {"SDE": sdegen.SDESolver("euler", 40), "ODE": sdegen.Adams(20)}
    return {k: sdegen.solve(model, x_T, s, trajectory=True) for k, s in solvers.items()}


@pytest.mark.parametrize("law", [LAW, PLANE], ids=["lines", "points"])
def test_a_gif_has_its_pictures_and_rests_at_its_end(law, tmp_path):
    from matplotlib import pyplot
    from PIL import Image

    file = plot.animate(ways(law), tmp_path / "ways.gif", law.model(sdegen.VPSDE()), seconds=0.8)
    with Image.open(file) as film:
        times, pictures = [], []
        for k in range(film.n_frames):
            film.seek(k)
            times.append(film.info["duration"])
            pictures.append(np.asarray(film.convert("RGB")).astype(int))
    assert len(times) == 13 == round(0.8 / 0.06)
    assert times[-1] == 1500 > max(times[:-1])
    assert set(times[:-1]) == {60}
    assert file.stat().st_size < 2e6
    assert pictures[0][0, 0].tolist() == [255, 255, 255]
    changes = [np.abs(a - b).sum() for a, b in pairwise(pictures)]
    assert min(changes) > 0
    assert not pyplot.get_fignums()


def test_both_panels_show_one_clock_and_their_own_states(monkeypatch, tmp_path):
    """The dots of picture k are the states at the clock u_k, interpolated between the knots of each solver."""
    from sdegen.plot import film

    solutions, seen = ways(PLANE), {}
    monkeypatch.setattr(film, "_write", lambda ax, draws, count, path: seen.update(ax=ax, draws=draws, count=count))
    plot.animate(solutions, tmp_path / "x.gif", seconds=1.0)
    panels = seen["ax"].figure.axes
    u = np.linspace(1, 0, seen["count"]) * float(solutions["ODE"].u[0])
    for k in (0, 6, 16):
        for ax, draw, solution in zip(panels, seen["draws"], solutions.values(), strict=True):
            draw(k)
            shown, knots = ax.collections[0].get_offsets(), solution.u.flip(0).numpy()
            for b in (0, 11):
                for c in (0, 1):
                    states = solution.trajectory.flip(0)[:, b, c].numpy()
                    assert shown[b, c] == pytest.approx(np.interp(u[k], knots, states), abs=1e-9)
    assert panels[0].get_xlim() == panels[1].get_xlim()
    first = [np.asarray(s.trajectory[0]) for s in solutions.values()]
    np.testing.assert_allclose(*first)


def test_what_is_no_film_is_refused(tmp_path):
    solutions = ways(LAW, 3)
    short = sdegen.solve(LAW.model(sdegen.VPSDE()), torch.randn(3, 1), sdegen.Adams(8), u=(0.5, 0.0), trajectory=True)
    with pytest.raises(ValueError, match=r"file must end in .gif, and it is 'x.mp4'"):
        plot.animate(solutions, "x.mp4")
    with pytest.raises(ValueError, match=r"All panels show one clock, and the solutions go over u = \[\(0.5, 0.0\)"):
        plot.animate({**solutions, "short": short}, tmp_path / "x.gif")
    with pytest.raises(TypeError, match=r"solutions\['a'\] must be what solve\(..., trajectory=True\) returned"):
        plot.animate({"a": 3}, tmp_path / "x.gif")
    with pytest.raises(ValueError, match=r"seconds must be a finite number in \(0.0, inf\), and it is 0"):
        plot.animate(solutions, tmp_path / "x.gif", seconds=0)
    assert not list(tmp_path.iterdir())


def test_the_package_loads_matplotlib_when_it_draws():
    code = (
        "import sys, sdegen, sdegen.plot, torch\n"
        "assert 'matplotlib' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\n"
        "for draw in (lambda: sdegen.plot.samples(torch.zeros(3, 2)), lambda: sdegen.plot.write(3, 'x.png'),\n"
        "             lambda: sdegen.plot.samples({'a': torch.zeros(3, 2)}),\n"
        "             lambda: sdegen.plot.grid(torch.zeros(1, 1, 2, 2))):\n"
        "    try:\n"
        "        draw()\n"
        "    except ImportError as error:\n"
        "        assert \"install it with `pip install 'sdegen[plot]'`\" in str(error), error\n"
        "    else:\n"
        "        raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
