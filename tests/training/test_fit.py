"""fit: its curve is that of a loop written by hand, bit for bit; the average; what it reports and leaves behind."""

from __future__ import annotations

import math

import pytest
import torch
from fitted import by_hand, model, of, points, sgd
from torch import nn

import sdegen
from sdegen.training.batches import Draws

pytest.importorskip("accelerate")

FLOW = sdegen.Interpolant()
OPTIONS = {
    "plain": {},
    "likelihood": {"times": sdegen.LikelihoodTimes(), "weighting": sdegen.LikelihoodWeighting()},
    "even times": {"times": sdegen.LowDiscrepancyTimes()},
    "own times": {"times": lambda path, n, g, dtype, device: (torch.linspace(0.1, 0.9, n), torch.full((n,), 2.0))},
    "coupling": {"coupling": sdegen.OptimalTransport(replace=True)},
    "cond": {"cond": {"shift": 0.1 * torch.arange(50.0)[:, None]}},
    "units": {},
    "coupling and units": {"coupling": sdegen.OptimalTransport()},
    "coupling and cond": {
        "coupling": sdegen.OptimalTransport(replace=True),
        "cond": {"shift": 0.1 * torch.arange(50.0)[:, None]},
    },
}


def start(name):
    units = {"standardize": sdegen.Standardize([0.4, -0.3], [10.0, 0.1])} if "units" in name else {}
    return model(FLOW, "velocity", **units) if "coupling" in name else model(**units)


def fitted(m, x, steps=9, batch_size=16, **options):
    """The averaged model, and (step, numbers) of every step."""
    seen = []
    options = {"optimizer": sgd(m), "clip": None, "every": 1, "progress": False, **options}
    averaged = sdegen.fit(m, x, steps=steps, batch_size=batch_size, log=lambda *told: seen.append(told), **options)
    return averaged, seen


@pytest.mark.parametrize("name", OPTIONS)
def test_the_curve_is_that_of_a_loop_by_hand(name):
    """Bit for bit, also where a batch lies across two epochs (50 samples, 9 steps of 16), whatever is drawn."""
    mine, theirs, x = start(name), start(name), points()
    weights, losses = by_hand(theirs, x, 9, seed=4, **OPTIONS[name])
    _, seen = fitted(mine, x, seed=4, **OPTIONS[name])
    assert [step for step, _ in seen] == list(range(1, 10))
    assert [numbers["loss"] for _, numbers in seen] == losses
    assert torch.equal(of(mine), weights[-1])


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_in_parts_walks_the_same_curve(name, parts):
    whole, cut = start(name), start(name)
    _, one = fitted(whole, points(), **OPTIONS[name])
    _, several = fitted(cut, points(), accumulate=parts, **OPTIONS[name])
    for (_, a), (_, b) in zip(one, several, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-12)
    torch.testing.assert_close(of(whole), of(cut), rtol=0, atol=1e-12)


def test_a_shared_condition_is_not_cut():
    mine, theirs = model(), model()
    shift = torch.tensor([0.3, -0.2])
    _, seen = fitted(mine, points(), accumulate=2, cond={"shift": sdegen.Shared(shift)})
    _, same = fitted(theirs, points(), cond={"shift": shift.expand(50, 2)})
    assert [n["loss"] for _, n in seen] == pytest.approx([n["loss"] for _, n in same], rel=1e-12)
    assert not torch.equal(of(mine), of(model()))


def test_gradients_are_clipped_to_the_norm():
    mine, theirs, x = model(), model(), points()
    weights, _ = by_hand(theirs, x, 5, clip=0.01, lr=1.0)
    fitted(mine, x, 5, clip=0.01, optimizer=sgd(mine, 1.0))
    assert torch.equal(of(mine), weights[-1])
    assert (weights[0] - of(model())).norm() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("ema", [0.5, 0.15, 0, None])
def test_the_average_is_the_recursion(ema):
    """d_k = min(ema, (1 + k)/(10 + k)) from the first weights on; without an average, the last weights."""
    mine, theirs = model(), model()
    weights, _ = by_hand(theirs, points(), 9)
    expected = of(model())
    for k, latest in enumerate(weights):
        d = min(ema or 0, (1 + k) / (10 + k))
        expected = d * expected + (1 - d) * latest
    averaged, _ = fitted(mine, points(), ema=ema)
    torch.testing.assert_close(of(averaged), expected, rtol=0, atol=1e-14)
    if not ema:
        assert torch.equal(of(averaged), of(mine))


def test_the_first_weights_are_soon_forgotten():
    weight = 1.0
    for k in range(100):
        weight *= min(0.999, (1 + k) / (10 + k))
    assert weight < 1e-12


def test_buffers_are_those_of_the_model_and_the_average_is_a_model_of_its_own():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x, t):
            return self.norm(x)

    m = sdegen.ScoreModel(Counted(), sdegen.VPSDE())
    averaged, _ = fitted(m, points())
    assert m.net.norm.num_batches_tracked == 9
    assert torch.equal(averaged.net.norm.running_mean, m.net.norm.running_mean)
    assert (averaged.training, m.training) == (False, True)
    assert all(p.requires_grad for p in averaged.parameters())
    before = of(averaged)
    fitted(m, points())
    assert torch.equal(of(averaged), before)


def test_on_gaussian_data_the_loss_reaches_its_floor():
    """At one time the best eps network is affine; its loss is that of the exact score, known in closed form.

    With S the covariance of the data and m their mean, eps_hat = sigma (alpha^2 S + sigma^2)^-1 (x_t - alpha m), and
    the floor is the mean of alpha^2 S (alpha^2 S + sigma^2)^-1 over the diagonal. Excess over it at most 1e-3 of it.
    """

    class Affine(nn.Linear):
        def forward(self, x, t):
            return super().forward(x)

    path, x = sdegen.VPSDE(), points(400) @ torch.tensor([[1.0, 0.6], [0.0, 0.5]])
    net = Affine(2, 2)
    at = torch.tensor(0.3)
    alpha, sigma, mean = path.alpha(at), path.sigma(at), x.mean(0)
    C = alpha**2 * torch.cov(x.T, correction=0) + sigma**2 * torch.eye(2)
    floor = 1 - sigma**2 * torch.linalg.inv(C).trace() / 2
    trained = sdegen.fit(
        sdegen.ScoreModel(net, path),
        x,
        steps=1500,
        batch_size=400,
        optimizer=torch.optim.SGD(net.parameters(), 0.5),
        ema=0.99,
        clip=None,
        times=lambda path, n, g, dtype, device: (torch.full((n,), 0.3), torch.ones(n)),
        progress=False,
    ).net
    off = trained.weight - sigma * torch.linalg.inv(C)
    shift = trained.weight @ (alpha * mean) + trained.bias
    excess = ((off @ C @ off.T).trace() + shift.square().sum()) / 2
    assert 0 < excess < 1e-3 * floor
    assert float(floor) == pytest.approx(0.4, abs=0.2)


def test_validation_takes_the_same_draws_every_time():
    m, held_out = model(), points(21)
    generator = Draws(7, torch.device("cpu")).generator(Draws.VALIDATION)
    frozen = sdegen.fit(m, points(), steps=1, optimizer=sgd(m, 0.0), batch_size=16, progress=False)
    parts = [sdegen.loss(frozen, x, generator=generator, reduction="none") for x in held_out.split(16)]
    _, seen = fitted(m, points(), 3, optimizer=sgd(m, 0.0), seed=7, validation=held_out)
    assert [n["validation"] for _, n in seen] == [torch.cat(parts).mean().item()] * 3


def test_a_validation_changes_no_curve_and_may_have_conditions():
    one, two = model(p=0.3), model(p=0.3)
    fitted(one, points())
    _, seen = fitted(two, points(), validation=(points(8), {"shift": torch.full((8, 2), 100.0)}))
    assert torch.equal(of(one), of(two))
    assert all(n["validation"] > 1000 for _, n in seen)


def test_the_log_gets_the_mean_since_the_last_call_and_the_rate_of_the_last_step():
    mine, theirs = model(), model()
    _, losses = by_hand(theirs, points(), 10)
    optimiser = sgd(mine)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 100, 0.5)
    _, seen = fitted(mine, points(), 10, every=4, optimizer=(optimiser, schedule))
    assert [step for step, _ in seen] == [4, 8, 10]
    means = [math.fsum(losses[a:b]) / (b - a) for a, b in ((0, 4), (4, 8), (8, 10))]
    assert [n["loss"] for _, n in seen] == means
    assert [n["lr"] for _, n in seen] == [0.01] * 3
    assert schedule.last_epoch == 10


def test_the_default_optimiser_is_adam_with_warm_up_and_decay():
    """Up over a twentieth of the steps, down to 0 along a cosine."""

    def factor(k):
        return min(1, (k + 1) / 5) * 0.5 * (1 + math.cos(math.pi * k / 100))

    mine, theirs, rates = model(), model(), []
    weights, _ = by_hand(
        theirs,
        points(),
        100,
        batch_size=10,
        clip=1.0,
        make=lambda p: torch.optim.Adam(p, 1e-3, fused=True),
        schedule=lambda adam: torch.optim.lr_scheduler.LambdaLR(adam, factor),
    )
    sdegen.fit(
        mine, points(), steps=100, batch_size=10, every=1, progress=False, log=lambda k, n: rates.append(n["lr"])
    )
    assert torch.equal(of(mine), weights[-1])
    assert rates == pytest.approx([1e-3 * factor(k) for k in range(100)], rel=1e-12)


def test_nothing_but_the_seed_decides_and_torch_s_generator_is_left_alone():
    """Dropout included; gradients are on although they were off outside."""
    weights = []
    for outside, seed in ((0, 1), (5, 1), (0, 2)):
        torch.manual_seed(outside)
        before = torch.get_rng_state()
        m = model(p=0.5)
        with torch.no_grad():
            fitted(m, points(), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(of(m))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_half_precision_is_the_network_s_alone_and_of_this_training_alone():
    from accelerate import Accelerator

    mine = Accelerator(gradient_accumulation_steps=3)
    kinds = []
    for precision in ("bf16", None, "no", "bf16"):
        m = model()
        m.float()
        m.net.net.first.register_forward_hook(lambda *told: kinds.append(told[2].dtype))
        averaged, seen = fitted(m, points(), 1, precision=precision)
        assert {p.dtype for p in averaged.parameters()} == {torch.float32}
        assert math.isfinite(seen[0][1]["loss"])
    assert kinds == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    assert mine.mixed_precision == "no"
    assert mine.gradient_accumulation_steps == 3


def test_a_bar_shows_the_loss_in_a_terminal_alone(monkeypatch, capsys):
    import io
    import sys

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    fitted(model(), points(), progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", Terminal())
    m = model()
    sdegen.fit(m, points(), steps=5, batch_size=16, validation=points(4))
    said = sys.stderr.getvalue()
    assert "5/5" in said
    assert "loss=" in said
    assert "validation=" in said
