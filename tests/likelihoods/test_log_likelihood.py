"""log_likelihood against closed forms, its cost, and how little a sample feels of its batch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from mixtures import counting, known
from often import often
from problems import PATHS, ring

import sdegen

OF_ISSUE = ("vp", "subvp", "cosine", "ve", "condot", "ddpm")
ADAMS = sdegen.Adams(320)


@pytest.mark.parametrize(("path", "name"), [(p, "ring8") for p in OF_ISSUE] + [("condot", "gmm16")])
def test_exact_mixtures(path, name):
    """The data's own density where the prior is exact: to 1e-8 in float64, to 2e-4 in float32, on every path."""
    path = PATHS[path]
    x, true, model, prior = known(name, path, 8)
    tight = sdegen.log_likelihood(model, x, sdegen.ODESolver("dopri8", rtol=1e-9, steps_for="sample"), prior=prior)
    assert float((tight.log_prob - true).abs().max()) < 1e-8
    x, true, model, prior = known(name, path, 8, torch.float32)
    loose = sdegen.log_likelihood(model, x, sdegen.ODESolver("dopri8", rtol=1e-5, steps_for="sample"), prior=prior)
    assert loose.log_prob.dtype == torch.float32
    assert float((loose.log_prob - true).abs().max()) < 2e-4


@pytest.mark.parametrize("path", often(OF_ISSUE, "condot"))
def test_exact_mixtures_in_64_dimensions(path):
    path = PATHS[path]
    x, true, model, prior = known("mix64", path, 2)
    tight = sdegen.log_likelihood(model, x, sdegen.ODESolver("dopri8", rtol=1e-9), prior=prior)
    assert float((tight.log_prob - true).abs().max()) < 1e-8
    x, true, model, prior = known("mix64", path, 8, torch.float32)
    loose = sdegen.log_likelihood(model, x, sdegen.ODESolver("dopri8", rtol=1e-5), prior=prior)
    assert float((loose.log_prob - true).abs().max()) < 2e-4


@pytest.mark.parametrize(
    ("name", "path"), [("ring8", "vp"), ("gmm16", "condot"), pytest.param("mix64", "vp", marks=pytest.mark.slow)]
)
def test_adams_in_both_precisions(path, name):
    path, size = PATHS[path], 1 if name == "mix64" else 8
    for dtype in (torch.float32, torch.float64):
        x, true, model, prior = known(name, path, size, dtype)
        ours = sdegen.log_likelihood(model, x, ADAMS, prior=prior)
        assert float((ours.log_prob - true).abs().max()) < 2e-4
        assert ours.calls == 321


def test_the_default_reaches_the_accuracy_that_it_names():
    """Its estimates are below 1e-3 nats, and the true errors with the exact prior below 1e-4."""
    x, true, model, prior = known("ring8", PATHS["vp"], 24)
    ours = sdegen.log_likelihood(model, x, prior=prior)
    assert float((ours.log_prob - true).abs().max()) < 1e-4
    assert float(ours.solver_error.max()) <= 1.01e-3
    assert torch.equal(ours.log_prob, sdegen.log_prob(model, x, prior=prior))
    named = sdegen.log_likelihood(model, x, sdegen.AdamsUntil(1e-3, first=120), prior=prior)
    assert torch.equal(ours.log_prob, named.log_prob)
    assert ours.calls == named.calls in (121, 362, 843, 1804)


def test_adams_converges_with_order_four_and_more():
    """From 80 to 640 steps, on closed forms; order 1 to 3 as fast as their correctors, at the least 2, 3, 3."""
    x, true, model, prior = known("ring8", PATHS["condot"], 16)

    def slope(order):
        errors = [
            float((sdegen.log_prob(model, x, sdegen.Adams(n, order), prior=prior) - true).abs().max())
            for n in (160, 640)
        ]
        return math.log(errors[0] / errors[1]) / math.log(4)

    assert slope(4) > 4.5
    assert slope(3) > 3
    assert slope(2) > 2.5
    assert 1.7 < slope(1) < 3
    ends = {  # its own order and grid, where it is given them
        repr(solver): sdegen.log_prob(model, x[:1], solver, prior=prior).item()
        for solver in (
            sdegen.Adams(20),
            sdegen.Adams(20, 4),
            sdegen.Adams(20, 4, grid=sdegen.PowerGrid(2, "t")),
            sdegen.Adams(20, 2),
            sdegen.Adams(20, grid=sdegen.PowerGrid(3)),
        )
    }
    default, *same, other, grid = ends.values()
    assert same == [default, default]
    assert len({default, other, grid}) == 3


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 11, 12, 13, 100])
@pytest.mark.parametrize("trace", ["exact", sdegen.Hutchinson(1)], ids=str)
def test_calls_and_traces(steps, trace):
    """N + 1 network calls; traces at every second knot and the last, at every one below twelve steps."""
    model, net = counting()
    ours = sdegen.log_likelihood(model, torch.randn(6, 2), sdegen.Adams(steps), trace=trace)
    assert (ours.calls, ours.accepted, ours.rejected) == (steps + 1, steps, 0)
    assert net.rows == [6] * (steps + 1)
    every = steps + 1 if steps < 12 else (steps + 1) // 2 + 1
    assert sum(net.traced) == every
    expected = [True] * every if steps < 12 else [k % 2 == 0 or k == steps for k in range(steps + 1)]
    assert net.traced == expected


@pytest.mark.parametrize("steps", [13, 25, 51, 101])
def test_odd_numbers_of_steps_are_as_good(steps):
    """The last interval of the traces is half as long, and the quadrature knows it."""
    x, true, model, prior = known("ring8", PATHS["condot"], 16)
    errors = [
        float((sdegen.log_prob(model, x, sdegen.Adams(n), prior=prior) - true).abs().mean())
        for n in (steps - 1, steps, steps + 1)
    ]
    assert errors[1] < 1.5 * max(errors[0], errors[2])


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_few_steps_are_the_methods_of_low_order(steps):
    """Exact on constants; one step weighs its ends as a line in s does: the integral of s over u = s^2 is 2/3."""
    model = sdegen.vector_field(lambda x, t: x.new_tensor([0.7, -0.4]).expand_as(x))
    x = torch.randn(5, 2)
    ours = sdegen.log_likelihood(model, x, sdegen.Adams(steps))
    torch.testing.assert_close(ours.latent, x - torch.tensor([0.7, -0.4]), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.log_prob, sdegen.CondOT().prior.log_prob(ours.latent), rtol=0, atol=1e-12)
    if steps == 1:
        flow = sdegen.vector_field(lambda x, t: 0.8 * x)
        ours = sdegen.log_likelihood(flow, x, sdegen.Adams(1))
        torch.testing.assert_close(ours.latent, x * (1 - 0.8 / 3 - 2 / 3 * 0.8 * (1 - 0.8)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [sdegen.Adams(80), sdegen.AdamsUntil(max_steps=320)], ids=["fixed", "until"])
@pytest.mark.parametrize("trace", ["exact", sdegen.Hutchinson(2)], ids=str)
def test_a_sample_alone_is_what_it_is_among_outliers(solver, trace):
    """One of 256 with others at |x| = 100, to 1e-12: density, errors and latent."""
    model = ring().model(PATHS["condot"])
    g = torch.Generator().manual_seed(1)
    x = ring().sample(256, generator=g)
    x[::7] = torch.nn.functional.normalize(torch.randn(len(x[::7]), 2, generator=g), dim=1) * 100
    seeded = [torch.Generator().manual_seed(i) for i in range(256)]
    batch = sdegen.log_likelihood(model, x, solver, trace=trace, generator=seeded)
    for i in (3, 5, 200):
        alone = sdegen.log_likelihood(
            model, x[i : i + 1], solver, trace=trace, generator=[torch.Generator().manual_seed(i)]
        )
        for field in ("log_prob", "latent", "solver_error", "probe_error"):
            torch.testing.assert_close(getattr(batch, field)[i : i + 1], getattr(alone, field), rtol=0, atol=1e-12)


def test_batch_size_changes_nothing():
    """Parts of a batch with conditions and generators per sample: the numbers of one batch, and their calls added."""

    class Net(torch.nn.Module):
        def forward(self, x, t, shift, scale):
            return torch.tanh(x + 2 * x.roll(1, 1) + shift) * scale

    model = sdegen.ScoreModel(Net(), sdegen.CondOT(), "velocity")
    x = torch.randn(7, 3)
    cond = {"shift": torch.randn(7, 3), "scale": sdegen.Shared(torch.rand(3))}

    def ours(**options):
        return sdegen.log_likelihood(
            model,
            x,
            sdegen.Adams(20),
            trace=sdegen.Hutchinson(3),
            data=torch.randn(50, 3, generator=torch.Generator().manual_seed(0)),
            generator=[torch.Generator().manual_seed(i) for i in range(7)],
            cond=cond,
            u=(0.0, 0.9),
            **options,
        )

    parts, whole = ours(batch_size=3), ours()  # the parts first: the network is looked at there
    for field in ("log_prob", "latent", "solver_error", "probe_error", "prior_gap", "error"):
        torch.testing.assert_close(getattr(parts, field), getattr(whole, field), rtol=0, atol=1e-12)
    assert (whole.calls, parts.calls, parts.accepted) == (21, 63, 60)


def test_the_sum_of_what_is_known():
    model, x = ring().model(PATHS["vp"]), ring().sample(4)
    known_all = sdegen.log_likelihood(model, x, sdegen.Adams(20), data=ring().sample(100))
    assert known_all.unknown == ()
    torch.testing.assert_close(known_all.error, known_all.solver_error + known_all.prior_gap)
    assert torch.equal(known_all.probe_error, torch.zeros(4))
    some = sdegen.log_likelihood(model, x, sdegen.ODESolver("rk4", steps=9), trace=sdegen.Hutchinson(1))
    assert some.unknown == ("solver_error", "probe_error", "prior_gap")
    assert torch.equal(some.error, torch.zeros(4))
    some = sdegen.log_likelihood(model, x, sdegen.Adams(20), trace=sdegen.Hutchinson(9))
    assert some.unknown == ("prior_gap",)
    torch.testing.assert_close(some.error, some.solver_error + some.probe_error)
    assert bool((some.probe_error > 0).all())
    assert (some.kind, some.log_prob.shape, some.latent.shape) == ("density", (4,), (4, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        some.log_prob = x


def test_no_samples_need_no_network():
    ours = sdegen.log_likelihood(sdegen.ScoreModel(lambda x, t: 1 / 0, PATHS["vp"]), torch.zeros(0, 3))
    assert (ours.log_prob.shape, ours.latent.shape, ours.calls) == ((0,), (0, 3), 0)
    assert ours.error.shape == (0,)


@pytest.mark.parametrize(
    ("d", "columns"), [(256, 0), (257, 4), (1024, 4), (1025, 2)], ids=["exact", "four", "four still", "two"]
)
def test_the_trace_that_auto_stands_for(d, columns):
    """Exact to 256 dimensions, four probes to 1024, then two."""
    model = sdegen.vector_field(lambda x, t: torch.sin(x + x.roll(1, 1)))
    x, solver = torch.randn(1, d), sdegen.Adams(2)

    def ours(trace):
        return sdegen.log_likelihood(model, x, solver, trace=trace, generator=torch.Generator().manual_seed(5))

    expected = ours(sdegen.Hutchinson(columns) if columns else sdegen.Exact())
    assert torch.equal(ours("auto").log_prob, expected.log_prob)
    assert torch.equal(ours("auto").probe_error, expected.probe_error)
    assert bool((expected.probe_error > 0).all()) == (columns > 0)


def test_exact_is_exact_whatever_the_chunk():
    model, x = ring().model(PATHS["vp"]), ring().sample(4)
    expected = sdegen.log_prob(model, x, sdegen.Adams(20), trace="exact")
    for chunk in (1, 2, 5):
        ours = sdegen.log_prob(model, x, sdegen.Adams(20), trace=sdegen.Exact(chunk))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("chunk", "passes"), [(None, 2), (1, 20), (7, 3), (16, 2)])
def test_a_chunk_is_what_one_backward_pass_takes(chunk, passes, monkeypatch):
    """20 products, as many backward passes as chunks of at most 16."""
    model, net = counting(dim=20)
    taken, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: taken.append(1) or grad(*a, **k))
    sdegen.log_prob(model, torch.randn(3, 20), sdegen.Adams(1), trace=sdegen.Exact(chunk))
    assert (len(taken), len(net.rows)) == (2 * passes, 2)
