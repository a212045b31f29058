"""What may go wrong around a training: offsets, buffers, random items, idle parameters, another rate, a second look."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fitted import model, points
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sdegen
from sdegen.nets import MLP
from sdegen.training.batches import Draws, batches_of


def fit(m, data, steps=6, **options):
    return sdegen.fit(m, data, **{"steps": steps, "batch_size": 10, "progress": False, **options})


def weights(m):
    return torch.cat([p.detach().flatten() for p in m.parameters()])


def test_units_are_taken_off_before_anything_is_rounded():
    """A float32 network trained on float64 data far from 0 takes the steps of one trained on what is left of them."""
    z = points(60).double()
    x = (1e9 + 2 * z).numpy()
    curves = []
    for data, (mean, std) in ((x, (1e9, 2.0)), ((x - 1e9) / 2, (0.0, 1.0))):
        m, losses = model(standardize=sdegen.Standardize(np.array(mean), np.array(std))).float(), []
        fit(m, data, ema=None, every=1, log=lambda step, numbers, to=losses: to.append(numbers["loss"]))
        curves.append(losses)
    assert np.allclose(*curves, rtol=1e-5)
    assert np.ptp(curves[0]) > 0


def test_a_buffer_that_is_put_anew_is_that_of_the_model():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP(2, 8, 1)
            self.register_buffer("run", torch.zeros(2))

        def forward(self, x, t):
            if self.training:
                self.run = 0.9 * self.run + 0.1 * (x.mean(0).detach() + 5)
            return self.net(x - self.run, t)

    m = sdegen.ScoreModel(Running().float(), sdegen.VPSDE(), "v")
    trained = fit(m, points().float())
    assert float(m.net.run.min()) > 1
    assert torch.equal(trained.net.run, m.net.run)


class Blurred(Dataset):
    """Items that are another every time."""

    def __len__(self):
        return 50

    def __getitem__(self, i):
        return points()[i] + torch.rand(2)


def test_random_items_depend_on_the_seed_and_their_place_alone(tmp_path):
    ends = []
    for start in (1, 2):
        torch.manual_seed(start)
        m = model()
        fit(m, Blurred())
        ends.append(weights(m))
    half, file = model(), tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(half, Blurred(), every=3, checkpoint=file, log=interrupt)
    again = model()
    fit(again, Blurred(), every=3, checkpoint=file)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(weights(again), ends[0])
    of = batches_of("data", Blurred(), None, 10, torch.float64, Draws(0, torch.device("cpu")))
    whole, part = of.rows(2, slice(0, 10))[0], of.rows(2, slice(4, 7))[0]
    assert torch.equal(part, whole[4:7])


def interrupt(step, numbers):
    raise KeyboardInterrupt


def test_parameters_that_nobody_moves_leave_no_gradient_behind():
    m = model()
    last = list(m.parameters())[-2:]
    fit(m, points(), optimizer=torch.optim.SGD(last, 0.1), clip=1e-3)
    assert all(p.grad is None for p in m.parameters())
    other = model()
    for p in list(other.parameters())[:-2]:
        p.requires_grad_(False)
    fit(other, points(), optimizer=torch.optim.SGD(list(other.parameters())[-2:], 0.1), clip=1e-3)
    torch.testing.assert_close(weights(m), weights(other))


def test_every_epoch_has_an_order_of_its_own():
    of = batches_of("data", points(), None, 50, torch.float64, Draws(0, torch.device("cpu")))
    first, second = (of.rows(k, slice(0, 50))[0] for k in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, second.sort(0).values)


def test_dropout_is_another_in_every_step():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.dropout = MLP(2, 8, 1), nn.Dropout(0.5)

        def forward(self, x, t):
            if self.training:
                seen.append(self.dropout(torch.ones(20)))
            return self.net(x, t)

    fit(sdegen.ScoreModel(Watching(), sdegen.VPSDE(), "v"), points(), steps=4)
    assert len({tuple(mask.tolist()) for mask in seen}) == 4


@pytest.mark.parametrize("change", ["rate", "schedule", "weighting", "time", "tensors", "predicts"])
def test_what_decides_the_curve_is_compared(change, tmp_path):
    file = tmp_path / "c.safetensors"

    def run(other):
        predicts = "velocity" if other and change == "predicts" else "v"
        time = {"time": twice if other else once} if change == "time" else {}
        m = model(predicts=predicts, **time)
        adam = torch.optim.Adam(m.parameters(), 0.02 if other and change == "rate" else 0.01)
        schedule = torch.optim.lr_scheduler.StepLR(adam, 2, 0.5 if other and change == "schedule" else 0.9)
        weighting = sdegen.MinSNR(2.0 if other and change == "weighting" else 5.0)
        data = TensorDataset(points() + (1.0 if other and change == "tensors" else 0.0))
        fit(m, data, optimizer=(adam, schedule), weighting=weighting, checkpoint=file)

    run(False)
    words = "belongs to another training|These are the weights|differs in|another model"
    with pytest.raises(ValueError, match=words):
        run(True)
    run(False)


def once(t):
    return t


def twice(t):
    return 2 * t


def test_the_validation_is_the_average_s_with_the_training_s_weights_and_times():
    numbers, options = {}, {"weighting": sdegen.MinSNR(2.0), "times": sdegen.LowDiscrepancyTimes()}
    m, held_out = model(), points(70)[50:]
    trained = fit(m, points(), validation=held_out, log=lambda step, n: numbers.update(n), ema=0.9, **options)
    generator = Draws(0, torch.device("cpu")).generator(Draws.VALIDATION)
    with torch.no_grad():
        parts = [sdegen.loss(trained, x, generator=generator, reduction="none", **options) for x in held_out.split(10)]
    assert numbers["validation"] == pytest.approx(float(torch.cat(parts).mean()), rel=1e-12)


def test_conditions_of_items_take_the_dtype_of_the_network():
    class Items(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, i):
            return torch.randn(2), {"shift": np.full(2, 0.5)}

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.of = MLP(2, 8, 1), nn.Linear(2, 2)

        def forward(self, x, t, shift):
            return self.net(x, t) + self.of(shift)

    m = sdegen.ScoreModel(Shifted().float(), sdegen.VPSDE(), "v")
    fit(m, Items())
    fit(m, points(30).float(), cond={"shift": torch.full((30, 2), 0.5).double()})


def test_a_log_may_look_at_the_model_in_eval_mode():
    modes = []
    m = model(p=0.3)
    m.net.register_forward_pre_hook(lambda net, args: modes.append(net.training))
    fit(m, points(), every=2, log=lambda step, numbers: m.eval())
    assert all(modes)


class Short(Dataset):
    """Batches of 10 that lose samples on the way."""

    def __len__(self):
        return 50

    def __getitem__(self, i):
        return points()[i]


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda m: {"optimizer": torch.optim.LBFGS(m.parameters())}, TypeError, "LBFGS asks for the loss again"),
        (
            lambda m: {
                "optimizer": (
                    torch.optim.SGD(m.parameters(), 0.1),
                    torch.optim.lr_scheduler.StepLR(torch.optim.SGD(m.parameters(), 0.1), 2),
                )
            },
            ValueError,
            "moves the rates of another optimiser",
        ),
        (lambda m: {"validation": torch.zeros(10, 3)}, ValueError, r"samples like those of data, \(2,\), not \(3,\)"),
        (
            lambda m: {
                "data": DataLoader(
                    Short(),
                    batch_size=10,
                    collate_fn=lambda items: torch.stack(items[: 10 - (torch.equal(items[0], points()[20]))]),
                )
            },
            ValueError,
            "Every batch of data must have the same number of samples, and after 10 there came 9",
        ),
    ],
)
def test_refusals(make, kind, words):
    m = model()
    options = {"data": points(), **make(m)}
    with pytest.raises(kind, match=words):
        fit(m, **options)


def test_weights_of_half_precision_are_warned_of():
    m = sdegen.ScoreModel(MLP(2, 8, 1).bfloat16(), sdegen.VPSDE(), "v")
    with pytest.warns(UserWarning, match=r"The weights are torch.bfloat16, in which small steps and their average"):
        fit(m, points().float(), steps=1)


def test_numbers_of_numpy_are_taken():
    ends = []
    for number in (int, np.int64):
        m = model()
        fit(m, points(), steps=number(3), batch_size=number(10), seed=number(3))
        ends.append(weights(m))
    assert torch.equal(*ends)
