"""Checkpoints of fit: an interrupted training ends in the bits of an uninterrupted one, or is refused."""

from __future__ import annotations

import math

import pytest
import torch
from fitted import model, of, points, sgd
from torch.utils.data import DataLoader

import sdegen
from sdegen.training import resuming

pytest.importorskip("accelerate")
pytest.importorskip("safetensors")


class StoppedError(Exception):
    pass


def run(m, steps=12, data=None, stop=None, seen=None, **options):
    """fit, interrupted after `stop` steps."""

    def log(step, numbers):
        if seen is not None:
            seen.append((step, numbers["loss"]))
        if step == stop:
            raise StoppedError

    options = {"batch_size": 16, "every": 3, "progress": False, "log": log, **options}
    return sdegen.fit(m, points() if data is None else data, steps=steps, **options)


def stopped(m, stop, **options):
    """The file of a training that is interrupted in the log of step `stop`, which comes after its file."""
    with pytest.raises(StoppedError):
        run(m, stop=stop, **options)


def with_schedule(m):
    adam = torch.optim.AdamW(m.parameters(), 0.01)
    return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, 12)


def shuffled(x):
    return DataLoader(x, batch_size=16, shuffle=True)


KINDS = {
    "default": (lambda m: {}, points),
    "momentum": (lambda m: {"optimizer": torch.optim.SGD(m.parameters(), 0.01, momentum=0.9), "ema": 0.5}, points),
    "schedule": (lambda m: {"optimizer": with_schedule(m), "clip": None}, points),
    "loader": (lambda m: {"accumulate": 2}, lambda: shuffled(points())),
}


@pytest.mark.parametrize("stop", [3, 6, 9, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_training_ends_in_the_same_bits(kind, stop, tmp_path):
    """Dropout is in the network, and every process starts from another state of torch's generator."""
    options, data = KINDS[kind]
    whole, losses = model(p=0.4), []
    expected = run(whole, seen=losses, data=data(), **options(whole))
    file, first, again, later = tmp_path / "c.safetensors", model(p=0.4), model(p=0.4), []
    stopped(first, stop, data=data(), checkpoint=file, **options(first))
    assert file.exists()  # written before the log that stopped it
    torch.manual_seed(99)
    averaged = run(again, seen=later, data=data(), checkpoint=file, **options(again))
    assert torch.equal(of(again), of(whole))
    assert torch.equal(of(averaged), of(expected))
    assert later == losses[stop // 3 :]


def test_interrupted_again_and_again(tmp_path):
    whole = run(model(p=0.4))
    for stop in (6, 9, 12):
        stopped(model(p=0.4), stop, checkpoint=tmp_path / "c")
    assert torch.equal(of(run(model(p=0.4), checkpoint=tmp_path / "c")), of(whole))
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_a_finished_training_is_read_and_nothing_is_trained(tmp_path):
    file, whole, again = tmp_path / "new" / "c", model(), model()
    expected = run(whole, checkpoint=file)
    written, seen = file.read_bytes(), []
    averaged = run(again, seen=seen, checkpoint=file)
    assert seen == []
    assert file.read_bytes() == written
    assert torch.equal(of(averaged), of(expected))
    assert torch.equal(of(again), of(whole))


def test_the_file_holds_the_average_as_its_model(tmp_path):
    averaged = run(model(), checkpoint=tmp_path / "c")
    loaded = sdegen.load(tmp_path / "c", model().net)
    assert torch.equal(of(loaded), of(averaged))
    assert loaded.predicts == "v"
    assert sdegen.load_state(tmp_path / "c")["fit"]["step"] == 12


def test_units_are_kept_with_the_weights(tmp_path):
    units = sdegen.Standardize([0.4, -0.3], [10.0, 0.1])
    whole = run(model(standardize=units))
    stopped(model(standardize=units), 9, checkpoint=tmp_path / "c")
    averaged = run(model(standardize=units), checkpoint=tmp_path / "c")
    assert torch.equal(of(averaged), of(whole))
    loaded = sdegen.load(tmp_path / "c", model().net)
    assert loaded.standardize.std.tolist() == averaged.standardize.std.tolist() == [10.0, 0.1]
    with pytest.raises(ValueError, match=r"differs in standardize \(another Standardize\)"):
        run(model(standardize=sdegen.Standardize([0.4, -0.3], [10.0, 0.2])), checkpoint=tmp_path / "c")


def test_more_steps_go_on_with_a_constant_rate_as_if_asked_for_at_once(tmp_path):
    whole, first, again = model(p=0.4), model(p=0.4), model(p=0.4)
    expected = run(whole, optimizer=sgd(whole))
    run(first, 7, optimizer=sgd(first), checkpoint=tmp_path / "c")
    assert torch.equal(of(run(again, optimizer=sgd(again), checkpoint=tmp_path / "c")), of(expected))


def test_more_steps_go_on_at_the_rate_that_the_longer_schedule_has_there(tmp_path):
    rates = []
    run(model(), 12, checkpoint=tmp_path / "c")
    run(model(), 20, checkpoint=tmp_path / "c", every=1, log=lambda step, numbers: rates.append(numbers["lr"]))
    expected = [1e-3 * (1 + math.cos(math.pi * k / 20)) / 2 for k in range(12, 20)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_fewer_steps_than_taken(tmp_path):
    run(model(), checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match=r"c' has taken 12 steps already, more than steps=10"):
        run(model(), 10, checkpoint=tmp_path / "c")


DIFFERENT = {
    "seed": ({"seed": 1}, r"seed \(0 there, 1 here\)"),
    "batch": ({"batch_size": 10}, r"batch_size \(16 there, 10 here\)"),
    "ema": ({"ema": 0.9}, r"ema \(0.999 there, 0.9 here\)"),
    "clip": ({"clip": None}, r"clip \(1.0 there, None here\)"),
    "times": ({"times": sdegen.ClockTimes()}, r"times \(None there, ClockTimes\(importance=True\) here\)"),
    "data": ({"data": torch.ones(50, 2, dtype=torch.float64)}, r"data \(another float64 tensor \(50, 2\)\)"),
    "rows": ({"data": points()[:49]}, r"data \(float\d\d tensor \(50, 2\) there, float\d\d tensor \(49, 2\) here\)"),
    "cond": ({"cond": {"shift": torch.zeros(50, 2)}}, "cond"),
    "two": ({"seed": 1, "ema": 0.9}, r"ema .*, seed"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_training_s_file_is_refused_and_left_alone(name, tmp_path):
    run(model(), 6, data=points() + 0, checkpoint=tmp_path / "c")
    written, (options, words), m = (tmp_path / "c").read_bytes(), DIFFERENT[name], model()
    with pytest.raises(ValueError, match=f"c' belongs to another training, which differs in .*{words}.*: give another"):
        run(m, checkpoint=tmp_path / "c", **options)
    assert (tmp_path / "c").read_bytes() == written
    assert torch.equal(of(m), of(model()))


def test_another_optimiser_s_file_is_refused(tmp_path):
    m = model()
    run(m, 6, checkpoint=tmp_path / "c", optimizer=sgd(m))
    for optimizer in (lambda m: sgd(m, 0.02), lambda m: torch.optim.Adam(m.parameters(), 0.01), lambda m: None):
        m = model()
        with pytest.raises(ValueError, match=r"differs in .*optimizer"):
            run(m, checkpoint=tmp_path / "c", optimizer=optimizer(m))


def test_a_file_of_another_network_or_path_or_of_no_training(tmp_path):
    run(model(), 6, checkpoint=tmp_path / "c")
    other = sdegen.ScoreModel(sdegen.nets.MLP(2, 8, 1), sdegen.VPSDE(), "v")
    with pytest.raises(ValueError, match="holds the weights of another network: 'net"):
        run(other, checkpoint=tmp_path / "c")
    units = sdegen.Standardize(0.0, 2.0)
    with pytest.raises(ValueError, match=r"differs in standardize \(None there, Standardize here\)"):
        run(model(standardize=units), checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="was saved with another path than the one given"):
        run(model(sdegen.CosineVPSDE()), checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match=r"differs in predicts \('v' there, 'eps' here\)"):
        run(model(predicts="eps"), checkpoint=tmp_path / "c")
    sdegen.save(tmp_path / "only a model", model())
    with pytest.raises(ValueError, match="holds a model and no training: give another file"):
        run(model(), checkpoint=tmp_path / "only a model")


def test_what_cannot_be_written_is_refused_before_the_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    m, calls = model(), []
    m.net.register_forward_hook(lambda *told: calls.append(1))
    with pytest.raises(OSError, match=r"checkpoint '.*file/c' cannot be written"):
        run(m, checkpoint=tmp_path / "file" / "c")
    with pytest.raises(ValueError, match=r"checkpoint must be a file, and .* is a folder"):
        run(m, checkpoint=tmp_path)
    with pytest.raises(TypeError, match="checkpoint must be the path of a file, and 7 is int"):
        run(m, checkpoint=7)

    def read_only(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(resuming, "prepare_folder", read_only)
    with pytest.raises(PermissionError, match=r"checkpoint '.*c' cannot be written: .*Permission denied"):
        run(m, checkpoint=tmp_path / "c")
    assert not calls
    assert not (tmp_path / "c").exists()


def test_a_full_disk_is_a_warning_and_the_last_file_stays(tmp_path, monkeypatch):
    file, whole, m = tmp_path / "c", run(model()), model()
    true, written = resuming.save, []

    def full(at, averaged, **state):
        if state["fit"]["step"] > 6:
            raise OSError(28, "No space left on device")
        true(at, averaged, **state)
        written.append(state["fit"]["step"])

    monkeypatch.setattr(resuming, "save", full)
    with pytest.warns(
        UserWarning, match=r"checkpoint of step \d+ could not be written .*No space left.*goes on"
    ) as told:
        averaged = run(m, checkpoint=file)
    assert [w.filename for w in told] == [__file__, __file__]
    assert torch.equal(of(averaged), of(whole))
    assert written == [0, 3, 6]
    assert sdegen.load_state(file)["fit"]["step"] == 6


def spoil(m, at, value=math.nan):
    """The network's answer is spoilt from its `at`-th training call on."""
    calls = []

    def hook(module, inputs, out):
        calls.append(1)
        return out * value if len(calls) >= at else out

    m.net.register_forward_hook(hook)
    return m


def test_a_loss_of_nan_stops_the_training_and_the_last_file_stays(tmp_path):
    m, good = spoil(model(), 8), model()
    run(good, 7, every=1)
    with pytest.raises(sdegen.NonFiniteError, match="The loss is nan at step 8: take a smaller rate"):
        run(m, checkpoint=tmp_path / "c", optimizer=sgd(m))
    assert bool(of(m).isfinite().all())
    assert sdegen.load_state(tmp_path / "c")["fit"]["step"] == 6
    assert bool(of(sdegen.load(tmp_path / "c", model().net)).isfinite().all())


def test_weights_of_nan_never_reach_a_file(tmp_path):
    """The loss of step 6 is finite, its gradient is not."""
    m, calls = model(), []

    def hook(gradient):
        calls.append(1)
        return gradient * (math.inf if len(calls) == 6 else 1)

    next(m.parameters()).register_hook(hook)
    with pytest.raises(sdegen.NonFiniteError, match="The weights are NaN or infinite after step 6"):
        run(m, checkpoint=tmp_path / "c", optimizer=sgd(m), clip=None)
    assert sdegen.load_state(tmp_path / "c")["fit"]["step"] == 3
