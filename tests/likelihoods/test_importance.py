"""Importance sampling: closed forms of another mixture, honest standard errors, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

import sdegen

PATH = sdegen.CondOT()
"""Its prior is the law of x_T: an exact model's ODE has the density of the mixture itself."""

WIDE = sdegen.GaussianMixture(torch.tensor([[-1.0, 0.3], [1.2, -0.4]], dtype=torch.float64), 0.9)

TARGET = sdegen.GaussianMixture(
    torch.tensor([[-0.6, 0.0], [1.0, 0.5]], dtype=torch.float64), 0.5, torch.tensor([0.3, 0.7], dtype=torch.float64)
)

RK4 = sdegen.ODESolver("rk4", steps=20)


def seeded(model, log_target, n, seed=0, **options):
    return sdegen.importance(model, log_target, n, shape=(2,), generator=torch.Generator().manual_seed(seed), **options)


def test_a_model_that_is_the_target_has_equal_weights():
    """Their constant is the normaliser; on VP too, where the density is the ODE's and not the data's."""
    found = seeded(WIDE.model(PATH), lambda x: WIDE.log_prob(x) + 3, 200)
    assert found.samples.shape == (200, 2)
    assert float((found.log_weights - 3).abs().max()) < 1e-5
    assert abs(float(found.effective_size) - 200) < 1e-6
    assert abs(float(found.log_normaliser.value) - 3) < 1e-5
    assert float(found.log_normaliser.standard_error) < 1e-6
    model = WIDE.model(sdegen.VPSDE())
    assert float(seeded(model, lambda x: sdegen.log_prob(model, x), 20).log_weights.abs().max()) < 1e-4


@pytest.mark.parametrize("path", [PATH, sdegen.VPSDE(), sdegen.VESDE(0.05, 10.0)], ids=repr)
def test_means_and_normaliser_of_another_mixture(path):
    found = seeded(WIDE.model(path), lambda x: TARGET.log_prob(x) - 7, 4000)
    weights, means = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([[-0.6, 0.0], [1.0, 0.5]])
    right = 0.5 * torch.erfc(-means[:, 0] / 0.5 / math.sqrt(2))
    exact = {
        "mean": (lambda x: x, weights @ means),
        "square": (lambda x: x**2, weights @ (means**2 + 0.25)),
        "product": (lambda x: x[:, 0] * x[:, 1], (weights * means.prod(1)).sum()),
        "side": (lambda x: x[:, 0] > 0, (weights * right).sum()),
    }
    for f, truth in exact.values():
        value, error = found.mean(f)
        assert value.shape == error.shape == truth.shape
        assert bool(((value - truth).abs() < 4.5 * error).all())
        assert float(error.max()) < 0.05
    value, error = found.log_normaliser
    assert abs(float(value) + 7) < 4.5 * float(error)
    assert float(error) < 0.05
    assert 400 < float(found.effective_size) < 3900


def test_standard_errors_are_the_spread_over_repeats():
    n, repeats = 150, 300
    found = seeded(WIDE.model(PATH), TARGET.log_prob, n * repeats, solver=sdegen.ODESolver("rk4", steps=10))
    rows = [slice(i * n, (i + 1) * n) for i in range(repeats)]
    parts = [sdegen.Importance(found.samples[r], found.log_weights[r]) for r in rows]
    for estimate in (lambda part: part.mean(lambda x: x), lambda part: part.log_normaliser):
        values, errors = (torch.stack(both) for both in zip(*map(estimate, parts), strict=True))
        ratio = errors.square().mean(0).sqrt() / values.std(0)
        assert bool(((ratio - 1).abs() < 0.15).all()), ratio


def test_estimates_by_hand():
    log_w = torch.tensor([0.0, math.log(2), -math.inf, math.log(3)], dtype=torch.float64) + 500
    x = torch.tensor([[1.0], [2.0], [-5.0], [4.0]])
    found = sdegen.Importance(x, log_w)
    assert float(found.effective_size) == pytest.approx(36 / 14)
    assert float(found.log_normaliser.value) == pytest.approx(500 + math.log(1.5))
    assert float(found.log_normaliser.standard_error) == pytest.approx(math.sqrt(5 / 3) / 2 / 1.5)
    value, error = found.mean(torch.log)  # NaN where the weight is zero
    truth = (2 * math.log(2) + 3 * math.log(4)) / 6
    terms = [(w / 6 * (math.log(v) - truth)) ** 2 for w, v in ((1, 1), (2, 2), (3, 4))]
    assert float(value) == pytest.approx(truth)
    assert float(error) == pytest.approx(math.sqrt(sum(terms) * 4 / 3))
    assert value.dtype == torch.float64
    single = sdegen.Importance(x[:1], log_w[:1])
    assert float(single.mean(lambda x: x[:, 0]).value) == 1
    assert bool(single.mean(lambda x: x[:, 0]).standard_error.isnan())
    assert bool(single.log_normaliser.standard_error.isnan())


def shifted(x, t, shift, table):
    assert len(table) == 2
    return torch.tanh(x + shift[:, None]) + table.sum()


def test_conditions_and_generators_per_sample_and_batches():
    """A part of the draws is what they would be alone; what belongs to all is not cut, whatever its length."""
    model, shift, table = sdegen.ScoreModel(shifted, PATH, "velocity"), torch.randn(5), torch.tensor([0.1, -0.2])
    seen = []

    def log_target(x):
        seen.append(len(x))
        return -x.square().sum(1)

    def draw(rows, batch_size=None, table=table):
        g = [torch.Generator().manual_seed(i) for i in rows]
        cond = {"shift": shift[rows], "table": table}
        return sdegen.importance(
            model, log_target, len(rows), shape=(2,), solver=RK4, generator=g, cond=cond, batch_size=batch_size
        )

    whole = draw([0, 1, 2, 3, 4])
    assert seen == [5]
    for other, rows in (
        (draw([0, 1, 2, 3, 4], 2), [0, 1, 2, 3, 4]),
        (draw([3, 1], table=sdegen.Shared(table)), [3, 1]),
        (draw([0, 1, 2, 3, 4], 3, sdegen.Shared(table)), [0, 1, 2, 3, 4]),
    ):
        torch.testing.assert_close(other.samples, whole.samples[rows], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.log_weights, whole.log_weights[rows], rtol=1e-10, atol=1e-10)
    assert seen[1:4] == [2, 2, 1]
    x = whole.samples
    density = sdegen.log_prob(model, x, RK4, trace="exact", cond={"shift": shift, "table": table})
    torch.testing.assert_close(whole.log_weights, -x.square().sum(1) - density, rtol=1e-12, atol=1e-12)
    own = sdegen.ODESolver("dopri5", rtol=1e-9, steps_for="sample")  # it cuts conditions as samples arrive
    one, other = (
        sdegen.importance(
            model,
            log_target,
            5,
            shape=(2,),
            solver=own,
            generator=torch.Generator().manual_seed(0),
            cond={"shift": shift, "table": table},
            batch_size=size,
        ).log_weights
        for size in (None, 2)
    )
    torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


def test_the_trace_is_exact_in_any_dimension():
    """Beyond 256 dimensions "auto" is random, and a random density would bias the weights."""
    basis = torch.linalg.qr(torch.randn(300, 300))[0]
    target = sdegen.Gaussian(torch.zeros(300), covariance=(basis * torch.linspace(0.25, 2, 300)) @ basis.T)
    found = sdegen.importance(target.model(PATH), target.log_prob, 2, shape=(300,), solver=RK4)
    assert float(found.log_weights.abs().max()) < 1e-2


def test_single_precision_and_events_of_two_axes():
    class Single(torch.nn.Linear):
        def forward(self, x, t):
            return super().forward(x)

    model = sdegen.ScoreModel(Single(2, 2).float(), PATH, "velocity")
    found = sdegen.importance(model, lambda x: -x.square().sum((1, 2)), 6, shape=(3, 2), solver=RK4)
    assert found.samples.shape == (6, 3, 2)
    assert found.samples.dtype == torch.float32
    assert found.log_weights.dtype == torch.float64


def test_a_target_without_mass_at_some_draws():
    found = seeded(WIDE.model(PATH), lambda x: torch.where(x[:, 0] > 0, WIDE.log_prob(x), -math.inf), 2000)
    value, error = found.log_normaliser
    right = 0.5 * sum(0.5 * math.erfc(-m / 0.9 / math.sqrt(2)) for m in (-1.0, 1.2))
    assert abs(float(value) - math.log(right)) < 4.5 * float(error)
    assert float(error) > 0
    assert bool((found.mean(lambda x: x[:, 0] <= 0).value == 0).all())


CALLS = []


def net(x, t):
    CALLS.append(len(x))
    return torch.tanh(x)


MODEL = sdegen.ScoreModel(net, PATH, "velocity")


def ask(log_target=lambda x: x.sum(1), n=3, shape=(2,), model=MODEL, **options):
    return sdegen.importance(model, log_target, n, shape=shape, **options)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: ask(model=net), TypeError, "model must be a ScoreModel"),
        (lambda: ask(log_target=3), TypeError, "log_target must be a function.* 3"),
        (lambda: ask(n=0), ValueError, "n must be at least 1, and it is 0"),
        (lambda: ask(n=2.0), TypeError, "n must be an integer, and 2.0 is float"),
        (lambda: ask(shape=2), TypeError, r"shape must be that of one sample.* 2"),
        (lambda: ask(shape=()), ValueError, r"shape must be that of one sample.* \(\)"),
        (lambda: ask(shape=(2, 0)), ValueError, "every size in shape must be at least 1, and it is 0"),
        (lambda: ask(solver=sdegen.SDESolver("euler", 5)), TypeError, "Only the ODE can be solved both ways"),
        (lambda: ask(cond=3), TypeError, "cond must be a mapping.* int"),
        (lambda: ask(cond={"names": ["a", "b", "c"]}, batch_size=2), TypeError, r"cond\['names'\] is a list"),
        (lambda: ask(generator=[torch.Generator()] * 2, batch_size=2), ValueError, "3 generators.* 2 were given"),
        (lambda: ask(batch_size=0), ValueError, "batch_size must be at least 1, and it is 0"),
    ],
)
def test_bad_input_is_refused_before_the_network_is_asked(call, error, says):
    CALLS.clear()
    with pytest.raises(error, match=says):
        call()
    assert not CALLS


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (lambda x: 3.0, TypeError, "log_target must return a tensor of floating .*, and it returned float"),
        (lambda x: x[:, 0].long(), TypeError, "returned torch.int64"),
        (
            lambda x: x,
            ValueError,
            r"log_target must return one number per sample, shape \(3,\), and it returned \(3, 2",
        ),
        (lambda x: x[:, :1], ValueError, r"returned \(3, 1\)"),
        (lambda x: x[:, 0] * math.nan, ValueError, r"log_target is NaN or \+inf at 3 of 3 samples"),
        (lambda x: x[:, 0] + math.inf, ValueError, r"log_target is NaN or \+inf at 3 of 3 samples"),
        (lambda x: x[:, 0] - math.inf, ValueError, "log_target is -inf at all of 3 draws"),
    ],
)
def test_a_log_target_that_is_none_is_refused(answer, error, says):
    with pytest.raises(error, match=says):
        ask(log_target=answer, solver=RK4)


@pytest.mark.parametrize(
    ("f", "error", "says"),
    [
        (lambda x: 2.0, TypeError, "f must return a tensor of real numbers, and it returned float"),
        (lambda x: x.to(torch.complex128), TypeError, "returned torch.complex128"),
        (lambda x: x.mean(), ValueError, r"one value per sample, shape \(3, ...\), not \(\)"),
        (lambda x: x[:2], ValueError, r"not \(2, 2\)"),
    ],
)
def test_a_function_that_is_none_is_refused(f, error, says):
    found = sdegen.Importance(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(error, match=says):
        found.mean(f)


def test_gradients_and_modes_are_left_alone():
    """log_target may need a gradient of its own, as a force field does; none comes out."""

    def log_target(x):
        x = x.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(-0.5 * x.square().sum(), x)
        return -0.5 * slope.square().sum(1) + 0 * x[:, 0]

    found = ask(log_target, n=4, solver=RK4)
    assert not found.log_weights.requires_grad
    assert not found.samples.requires_grad
    state = torch.get_rng_state()
    ask(log_target, n=4, solver=RK4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
