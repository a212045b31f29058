"""Classifier-free guidance: the line through two models, in one call on twice the batch."""

from __future__ import annotations

import math

import pytest
import torch
from steered import PATHS
from torch import nn

import sdegen

SIDES = [sdegen.Gaussian([m, -m], 0.3) for m in (-1.0, 1.0)]
LAWS = [SIDES[0], sdegen.GaussianMixture([[-1.0, 1.0], [1.0, -1.0]], 0.3), SIDES[1]]
"""By the label -1, 0 (none), 1."""


class Labelled(nn.Module):
    """v of the three laws by the label, row by row."""

    def __init__(self, path):
        super().__init__()
        self.rows = []
        self.answers = [law.model(path).v for law in LAWS]

    def forward(self, x, t, label):
        self.rows.append(len(x))
        every = torch.stack([answer(x, t) for answer in self.answers], 1)
        return every[torch.arange(len(x)), label + 1]


def states(path, n=6):
    t = path.at(torch.linspace(0.1, 0.9, n))
    return path.sigma(t)[:, None] * torch.randn(n, 2), t


LABEL = torch.tensor([1, -1, 1, -1, 1, 1])


def of_sides(name, path, x, t):
    """What the conditional models say, row by row of LABEL, and the unconditional one."""
    low, free, high = (getattr(law.model(path), name)(x, t) for law in LAWS)
    return torch.where(LABEL[:, None] == 1, high, low), free


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_it_is_the_line_through_two_exact_models(path, scale):
    net = Labelled(path)
    guided = sdegen.ClassifierFree(sdegen.ScoreModel(net, path, "v"), scale, {"label": 0})
    x, t = states(path)
    for name in ("eps", "data", "score", "v"):
        given, free = of_sides(name, path, x, t)
        found = getattr(guided, name)(x, t, {"label": LABEL})
        torch.testing.assert_close(found, free + scale * (given - free), rtol=1e-12, atol=1e-12)
    assert net.rows == [12] * 4


def test_a_scale_may_depend_on_the_clock():
    """A guidance interval: between the clocks 0.3 and 0.7 alone."""
    path = sdegen.CondOT()
    model = sdegen.ScoreModel(Labelled(path), path, "v")
    guided = sdegen.ClassifierFree(model, lambda u: 1 + 2 * ((u > 0.3) & (u < 0.7)), {"label": torch.tensor(0)})
    x, t = states(path)
    given, free = of_sides("v", path, x, t)
    scale = torch.where((path.clock(t) > 0.3) & (path.clock(t) < 0.7), 3.0, 1.0)[:, None]
    torch.testing.assert_close(guided.v(x, t, {"label": LABEL}), free + scale * (given - free), rtol=1e-12, atol=1e-12)
    plain = sdegen.sample(model, (6, 2), sdegen.Adams(8), x_T=x, cond={"label": LABEL}, u=(1.0, 0.7))
    whole = sdegen.sample(guided, (6, 2), sdegen.Adams(8), x_T=x, cond={"label": LABEL}, u=(1.0, 0.7))
    torch.testing.assert_close(whole, plain, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaling_gives_x_hat_back_its_deviation(rescale):
    path = sdegen.VPSDE()
    model = sdegen.ScoreModel(Labelled(path), path, "v")
    x, t = states(path)
    given, free = of_sides("data", path, x, t)
    guided = free + 4.0 * (given - free)
    scaled = guided * (rescale * given.std(1) / guided.std(1) + 1 - rescale)[:, None]
    found = sdegen.ClassifierFree(model, 4.0, {"label": 0}, rescale=rescale)
    torch.testing.assert_close(found.data(x, t, {"label": LABEL}), scaled, rtol=1e-11, atol=1e-11)
    clean = [m.eps(x, 0.0, {"label": LABEL}) for m in (found, sdegen.ClassifierFree(model, 4.0, {"label": 0}))]
    torch.testing.assert_close(*clean, rtol=1e-12, atol=1e-12)  # at u = 0, where x_hat is y, nothing is rescaled


def test_every_kind_of_condition_is_doubled():
    """Rows, rows inside mappings, what is shared, numbers and names; what stands for none is broadcast."""
    seen = []

    def net(x, t, words, added, table, strength, name, mask):
        seen.append({"words": words, "added": added, "table": table, "strength": strength, "name": name, "mask": mask})
        return x

    words, none, table = torch.randn(3, 5, 2), torch.randn(5, 2), torch.randn(3, 4)
    added = {"ids": torch.arange(3.0), "text": torch.randn(3, 2)}
    cond = {"words": words, "added": added, "table": sdegen.Shared(table), "strength": 2.0, "name": "x"}
    cond["mask"] = torch.ones(3, 1, dtype=torch.bool)
    guided = sdegen.ClassifierFree(
        sdegen.ScoreModel(net, sdegen.VPSDE()), 2.0, {"words": none, "added": {"text": torch.zeros(1, 2)}}
    )
    guided.eps(torch.randn(3, 2), 0.5, cond)
    (got,) = seen
    torch.testing.assert_close(got["words"], torch.cat([words, none.expand(3, 5, 2)]), rtol=0, atol=0)
    torch.testing.assert_close(got["added"]["ids"], torch.arange(3.0).repeat(2), rtol=0, atol=0)
    torch.testing.assert_close(got["added"]["text"], torch.cat([added["text"], torch.zeros(3, 2)]), rtol=0, atol=0)
    torch.testing.assert_close(got["table"], table, rtol=0, atol=0)
    assert got["mask"].shape == (6, 1)
    assert (got["strength"], got["name"]) == (2.0, "x")


@pytest.mark.parametrize("solver", [sdegen.Adams(10), sdegen.SDESolver(steps=10), sdegen.Ancestral(10)], ids=repr)
def test_a_solve_costs_one_call_a_query_and_follows_the_rows(solver):
    path = sdegen.VPSDE()
    net = Labelled(path)
    guided = sdegen.ClassifierFree(sdegen.ScoreModel(net, path, "v"), 3.0, {"label": 0})
    noise = None if solver.solves_ode else torch.randn(10, 6, 2)
    x = torch.randn(6, 2)
    whole = sdegen.solve(guided, x, solver, noise=noise, cond={"label": LABEL})
    assert (whole.calls, net.rows) == (10, [12] * 10)
    one = sdegen.solve(
        guided, x[1:2], solver, noise=None if noise is None else noise[:, 1:2], cond={"label": LABEL[1:2]}
    )
    torch.testing.assert_close(one.x, whole.x[1:2], rtol=1e-10, atol=1e-10)


def test_rows_that_step_by_themselves_and_batches_that_are_cut_keep_their_labels():
    path = sdegen.VPSDE()
    guided = sdegen.ClassifierFree(sdegen.ScoreModel(Labelled(path), path, "v"), 2.0, {"label": 0})
    x, cond = torch.randn(6, 2), {"label": LABEL}
    tight = sdegen.ODESolver("dopri5", rtol=1e-9, steps_for="sample")
    found = [sdegen.solve(guided, x, s, cond=cond).x for s in (tight, sdegen.ODESolver("dopri8", rtol=1e-10))]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
    logps = [sdegen.log_prob(guided, x, sdegen.Adams(40), cond=cond, batch_size=size) for size in (None, 4)]
    torch.testing.assert_close(*logps, rtol=1e-10, atol=1e-10)


def test_guidance_of_guidance():
    """Clipped inside or outside, and two conditions, one after the other."""
    path = sdegen.VPSDE()
    model = sdegen.ScoreModel(Labelled(path), path, "v")
    x, t = states(path)
    given, free = of_sides("data", path, x, t)
    clipped = sdegen.ClassifierFree(sdegen.Clipped(model, -0.5, 0.5), 3.0, {"label": 0})
    inside = free.clamp(-0.5, 0.5) + 3.0 * (given.clamp(-0.5, 0.5) - free.clamp(-0.5, 0.5))
    torch.testing.assert_close(clipped.data(x, t, {"label": LABEL}), inside, rtol=1e-11, atol=1e-11)
    outside = sdegen.Clipped(sdegen.ClassifierFree(model, 3.0, {"label": 0}), -0.5, 0.5)
    held = (free + 3.0 * (given - free)).clamp(-0.5, 0.5)
    torch.testing.assert_close(outside.data(x, t, {"label": LABEL}), held, rtol=1e-11, atol=1e-11)
    twice = sdegen.ClassifierFree(sdegen.ClassifierFree(model, 2.0, {"label": 0}), 1.5, {"label": 0})
    line = free + 3.0 * (given - free)
    torch.testing.assert_close(twice.data(x, t, {"label": LABEL}), line, rtol=1e-11, atol=1e-11)


def refused(kind, words, without, cond):
    def net(x, t, **cond):
        raise AssertionError("the network was called")

    guided = sdegen.ClassifierFree(sdegen.ScoreModel(net, sdegen.VPSDE()), 2.0, without)
    with pytest.raises(kind, match=words):
        sdegen.sample(guided, (3, 2), sdegen.Adams(4), cond=cond)


def test_conditions_that_do_not_fit_are_refused_before_the_network_is_called():
    label = torch.tensor([1, 2, 3])
    refused(ValueError, r"without names the condition 'label', and cond holds \['y'\]", {"label": 0}, {"y": label})
    refused(ValueError, r"without names the condition 'label', and cond holds \[\]", {"label": 0}, None)
    refused(
        ValueError,
        r"cond\['label'\] to be a tensor with 3 rows, one per sample, not of shape \(2,\)",
        {"label": 0},
        {"label": label[:2]},
    )
    refused(ValueError, r"with 3 rows, one per sample, not of type int", {"label": 0}, {"label": 4})
    refused(
        ValueError, r"with 3 rows, one per sample, not of type list", {"label": 0}, {"label": label, "y": [1, 2, 3]}
    )
    refused(
        ValueError,
        r"What stands for no 'label' must broadcast against \(3,\), not \(2,\)",
        {"label": torch.zeros(2).long()},
        {"label": label},
    )
    refused(
        TypeError,
        "What stands for no 'label' must be a number or a tensor, and it is None",
        {"label": None},
        {"label": label},
    )
    refused(ValueError, "holds torch.int64, and 0.5, which stands for none, is none", {"label": 0.5}, {"label": label})


def test_bad_arguments_are_refused():
    model = LAWS[1].model(sdegen.VPSDE())
    for scale in (math.nan, math.inf):
        with pytest.raises(ValueError, match="scale must be a finite number"):
            sdegen.ClassifierFree(model, scale, {"label": 0})
    with pytest.raises(TypeError, match="without must map names of conditions"):
        sdegen.ClassifierFree(model, 1.0, "label")
    with pytest.raises(ValueError, match="without names no condition"):
        sdegen.ClassifierFree(model, 1.0, {})
    with pytest.raises(ValueError, match=r"rescale must be a finite number in \[0, 1\], and it is 1.5"):
        sdegen.ClassifierFree(model, 1.0, {"label": 0}, rescale=1.5)
