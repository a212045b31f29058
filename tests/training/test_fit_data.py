"""The data of fit: every kind gives the same curve, every sample comes once in an epoch, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from fitted import by_hand, model, of, points, sgd
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import sdegen
from sdegen.training.batches import Draws, batches_of

pytest.importorskip("accelerate")


class Items(Dataset):
    """x, or (x, cond), by number; it remembers who was asked for."""

    def __init__(self, x, cond=None):
        self.x, self.cond, self.asked = x, cond, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.asked.append(i)
        return self.x[i] if self.cond is None else (self.x[i], {n: v[i] for n, v in self.cond.items()})


class Stream(IterableDataset):
    """An endless one: the same 7 samples again and again."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        while True:
            yield from self.x[:7]


def trained(data, steps=9, batch_size=16, m=None, **options):
    m = m or model()
    options = {"optimizer": sgd(m), "clip": None, "progress": False, **options}
    sdegen.fit(m, data, steps=steps, batch_size=batch_size, **options)
    return of(m)


@pytest.mark.filterwarnings("error")
def test_every_kind_of_data_walks_the_same_curve():
    x = points()
    strange = np.ascontiguousarray(x.numpy()[::-1])[::-1]
    frozen = x.numpy().copy()
    frozen.setflags(write=False)
    expected = trained(x)
    for data in (x.numpy(), strange, frozen, x.numpy().astype(">f8"), TensorDataset(x), Items(x), Items(x.numpy())):
        assert torch.equal(trained(data), expected)


def test_conditions_come_beside_the_data_or_with_the_items():
    x, shift = points(), 0.1 * torch.arange(50.0)[:, None]
    expected = trained(x, cond={"shift": shift})
    assert not torch.equal(trained(x), expected)
    assert torch.equal(trained(Items(x, {"shift": shift})), expected)
    assert torch.equal(trained(x, cond={"shift": shift.numpy()}), expected)


def test_batches_have_the_dtype_of_the_network():
    for x in (points(), points().numpy(), Items(points())):
        m = model()
        m.float()
        assert trained(x, m=m).dtype is torch.float32
        batches = batches_of("data", x, None, 8, torch.float32, Draws(0, torch.device("cpu")))
        assert batches.rows(0, slice(0, 8))[0].dtype is torch.float32
    cond = {"a": points().numpy(), "b": {"label": np.arange(50)}}
    batches = batches_of("data", points(), cond, 8, torch.float32, Draws(0, torch.device("cpu")))
    received = batches.rows(0, slice(0, 8))[1]
    assert (received["a"].dtype, received["b"]["label"].dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("n", [10, 16, 50])
def test_every_sample_comes_once_in_an_epoch(n):
    """Also where batches lie across the border, and in another order in every epoch."""
    batches = batches_of(
        "data", torch.arange(2.0 * n).reshape(n, 2), None, 8, torch.float64, Draws(0, torch.device("cpu"))
    )
    seen = torch.cat([batches.rows(step, slice(0, 8))[0][:, 0] for step in range(n)]) / 2
    epochs = seen.long().reshape(8, n)
    assert torch.equal(epochs.sort(1).values, torch.arange(n).expand(8, n))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 8


def test_a_part_of_a_batch_is_a_part_of_the_batch_and_any_step_can_be_the_first():
    x = points(20)
    one, two = (batches_of("data", d, None, 8, torch.float64, Draws(3, torch.device("cpu"))) for d in (x, Items(x)))
    whole = [one.rows(step, slice(0, 8))[0] for step in range(6)]
    for step in (5, 2, 4):
        for rows in (slice(0, 3), slice(3, 8)):
            assert torch.equal(two.rows(step, rows)[0], whole[step][rows])


def test_a_data_set_is_asked_for_the_rows_of_this_process_alone():
    data = Items(points(20))
    batches = batches_of("data", data, None, 8, torch.float64, Draws(3, torch.device("cpu")))
    data.asked.clear()
    batches.rows(0, slice(4, 8))
    assert len(data.asked) == 4


def test_a_loader_keeps_its_order_and_its_batch_size():
    """The last, smaller batch of an epoch is left out."""
    x = points(10)
    m, rows = model(), iter([*range(8)] * 10)
    weights, _ = by_hand(m, x, 5, batch_size=4, rows=rows)
    assert torch.equal(trained(DataLoader(x, batch_size=4), 5), weights[-1])
    m, rows = model(), iter([*range(7)] * 10)
    weights, _ = by_hand(m, x, 5, batch_size=4, rows=rows)
    assert torch.equal(trained(DataLoader(Stream(x), batch_size=4), 5), weights[-1])


def test_a_shuffling_loader_goes_by_the_seed_and_may_start_late():
    x = torch.arange(22.0).reshape(11, 2)

    def seen(steps, seed):
        torch.manual_seed(torch.randint(1000, ()).item())
        loader = DataLoader(x, batch_size=4, shuffle=True)
        batches = batches_of("data", loader, None, 8, torch.float64, Draws(seed, torch.device("cpu")))
        return [batches.rows(step, slice(0, 4))[0] for step in steps]

    with torch.random.fork_rng([]):
        all_of_them = seen(range(6), 0)
        for first in (0, 1, 3, 4):
            assert torch.equal(torch.stack(seen(range(first, 6), 0)), torch.stack(all_of_them[first:]))
        assert not torch.equal(torch.stack(seen(range(6), 1)), torch.stack(all_of_them))
    assert len(torch.cat(all_of_them[:2]).unique(dim=0)) == 8


def test_what_a_loader_draws_depends_on_the_step_alone():
    """Augmentations, whatever the network drew in between, and from wherever the training goes on."""

    class Noisy(Items):
        def __getitem__(self, i):
            return self.x[i] + torch.rand(2)

    def seen(steps):
        batches = batches_of(
            "data", DataLoader(Noisy(points(8)), 4), None, 8, torch.float64, Draws(0, torch.device("cpu"))
        )
        for step in steps:
            yield batches.rows(step, slice(0, 4))[0]
            torch.rand(step + len(steps))

    with torch.random.fork_rng([]):
        whole, late = torch.stack([*seen(range(6))]), torch.stack([*seen(range(3, 6))])
    assert torch.equal(late, whole[3:])
    assert len(whole.flatten(0, 1).unique(dim=0)) == 24


def test_a_loader_of_whole_batches():
    batches = DataLoader([points(4), points(4)], batch_size=None)
    assert len(trained(batches, 3)) > 0
    with pytest.raises(ValueError, match="must have the same number of samples, and after 4 there came 3"):
        trained(DataLoader([points(4), points(3)], batch_size=None), 3)


REFUSED = {
    "integers": (torch.ones(50, 2).long(), TypeError, "data must have a real floating dtype, and it has torch.int64"),
    "integer array": (np.ones((50, 2), int), TypeError, "and the array has dtype int64. Scale integers to"),
    "objects": (np.array([["a", "b"]]), TypeError, "data must hold real floating numbers, and the array has dtype <U1"),
    "complex": (torch.ones(50, 2) * 1j, TypeError, "data must have a real floating dtype, and it has torch.complex"),
    "numbers": (torch.ones(50), ValueError, r"data must have shape \(B, ...\), a batch axis and .*, not \(50,\)"),
    "NaN": (torch.full((50, 2), float("nan")), ValueError, "data holds NaN or infinite values in 50 of its 50 samples"),
    "list": ([1.0], TypeError, "data must be a tensor, a NumPy array, a Dataset or a DataLoader, and it is list"),
    "no index": (Stream(torch.ones(9, 2)), TypeError, "data is a Stream without an index: give a DataLoader over it"),
    "small": (torch.ones(15, 2), ValueError, "batch_size must be at most the 15 samples of data, .* and it is 16"),
    "small set": (Items(torch.ones(15, 2)), ValueError, "batch_size must be at most the 15 samples of data"),
    "integer items": (Items(torch.ones(50, 2).long()), TypeError, "a batch of data must have a real floating dtype"),
    "labels": (
        TensorDataset(torch.ones(50, 2), torch.ones(50)),
        TypeError,
        r"data must yield x, or \(x, cond\) with cond a dict .*, and it yields list\(Tensor, Tensor\)",
    ),
    "short loader": (
        DataLoader(torch.ones(3, 2), batch_size=4),
        ValueError,
        "a loader without a single batch of 4 sam",
    ),
    "empty loader": (DataLoader(TensorDataset(torch.ones(0, 2))), ValueError, "data is a loader without a batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_network_is_called(name):
    data, error, words = REFUSED[name]
    m = model()
    calls = []
    m.net.register_forward_hook(lambda *told: calls.append(1))
    with pytest.raises(error, match=words):
        trained(data, m=m)
    assert not calls


@pytest.mark.parametrize(
    ("cond", "error", "words"),
    [
        ({"shift": torch.ones(49, 2)}, ValueError, r"cond\['shift'\] must have one row for each .* 50 .*\(49, 2\)"),
        ({"shift": torch.tensor(1.0)}, ValueError, r"it has shape \(\); give Shared\(value\) if it belongs to all"),
        ({"shift": [1.0] * 50}, TypeError, r"cond\['shift'\] is a list: give a tensor or an array, one row per sample"),
        ({1: torch.ones(50)}, TypeError, "cond must be a mapping from argument names to values"),
    ],
)
def test_conditions_that_do_not_fit(cond, error, words):
    with pytest.raises(error, match=words):
        trained(points(), cond=cond)


def test_conditions_of_a_data_set_are_its_own():
    with pytest.raises(
        ValueError, match=r"cond belongs to data in a tensor or an array; a Items yields pairs \(x, cond\)"
    ):
        trained(Items(points()), cond={"shift": torch.ones(50, 2)})


def test_a_validation_is_looked_at_before_the_training():
    with pytest.raises(TypeError, match=r"validation must have a real floating dtype, and it has torch.int64"):
        trained(points(), validation=torch.ones(3, 2).long())


@pytest.mark.parametrize("kind", [lambda x: x, Items, lambda x: DataLoader(x, batch_size=16)])
@pytest.mark.parametrize(("scale", "words"), [(100.0, "is 1"), (0.01, "is 0.0")])
def test_data_far_from_unit_scale(kind, scale, words):
    with pytest.warns(UserWarning, match=f"far from unit scale: the largest root mean square of an entry {words}.*"
                      r"standardize=sdegen\.Standardize\.of\(data\)") as told:  # fmt: skip
        trained(kind(scale * points()), 1)
    assert told[0].filename == __file__


def test_data_of_about_unit_scale_and_margins_of_pictures_are_fine():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(3 * points(), 1)
        trained(0.3 * points(), 1)
        trained(points() * torch.tensor([1.0, 0.0]), 1)
    far = 100 * points()
    trained(far, 1, m=model(standardize=sdegen.Standardize.of(far)))
