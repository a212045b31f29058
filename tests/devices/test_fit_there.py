"""fit on the pretend device: the curve of the CPU, on data here or there, and no wait that grows with the steps."""

from __future__ import annotations

import pytest
import torch
from fitted import model, of, points, sgd
from pretend import PretendDevice, held, put

import sdegen

pytest.importorskip("accelerate")


def trained(m, x, steps=5, **options):
    options = {"optimizer": sgd(m), "batch_size": 10, "progress": False, **options}
    return sdegen.fit(m, x, steps=steps, **options)


@pytest.mark.parametrize("there", [False, True], ids=["data here", "data there"])
def test_the_curve_of_the_cpu(there):
    expected, m, x = trained(model(), points()), put(model()), put(points()) if there else points()
    with PretendDevice():
        averaged = trained(m, x)
        weights = of(averaged)
    torch.testing.assert_close(held(weights), of(expected), rtol=0, atol=1e-12)


def test_more_steps_wait_no_more_often():
    """Every 32 steps the losses are looked at, and an epoch's order goes there once."""
    counts = []
    for steps in (4, 36):
        m, x = put(model()), put(points(400))
        with PretendDevice() as waits:
            trained(m, x, steps)
        counts.append(waits.copy())
    grown = counts[1] - counts[0]
    assert grown.total() <= 1, dict(grown)


def test_a_loss_of_nan_is_named_by_its_step_although_it_is_seen_late():
    m, calls = put(model()), []

    def spoil(module, inputs, out):
        calls.append(1)
        return out * float("nan") if len(calls) >= 3 else out

    m.net.register_forward_hook(spoil)
    with PretendDevice(), pytest.raises(sdegen.NonFiniteError, match="The loss is nan at step 3"):
        trained(m, put(points()), 40)
    assert len(calls) == 32
