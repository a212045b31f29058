"""What fit refuses, in full sentences and before the network is called."""

from __future__ import annotations

import sys

import pytest
import torch
from fitted import model, points, sgd

import sdegen

pytest.importorskip("accelerate")

REFUSED = [
    ({"steps": 0}, ValueError, "steps must be at least 1, and it is 0"),
    ({"steps": 1.5}, TypeError, "steps must be an integer, and 1.5 is float"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1, and it is 0"),
    ({"accumulate": 3}, ValueError, "must be a multiple of 3, the processes times `accumulate`, and it is 16"),
    ({"accumulate": 0}, ValueError, "accumulate must be at least 1, and it is 0"),
    ({"every": 0}, ValueError, "every must be at least 1, and it is 0"),
    ({"seed": -1}, ValueError, "seed must be at least 0, and it is -1"),
    ({"ema": 1.0}, ValueError, "ema must be below 1, where an average would never move, and it is 1.0"),
    ({"ema": -0.1}, ValueError, r"ema must be a finite number in \[0, 1\], and it is -0.1"),
    ({"clip": 0}, ValueError, r"clip must be a finite number in \(0, inf\), and it is 0"),
    ({"precision": "int8"}, ValueError, "Unknown precision 'int8'; choose one of 'no', 'bf16', 'fp16'"),
    ({"precision": "fp16"}, ValueError, "precision='fp16' needs an accelerator, and the model is on cpu: take 'bf16'"),
    ({"times": sdegen.UniformTimes}, TypeError, r"times must be a value such as MinSNR\(\), UniformTimes\(\)"),
    ({"weighting": 2.0}, TypeError, "weighting must be a value such as .*, not 2.0"),
    ({"coupling": sdegen.OptimalTransport()}, ValueError, r"OptimalTransport\(replace=False\) ties the noise to"),
    ({"log": 3}, TypeError, r"log must be callable as log\(step, numbers\), and it is 3"),
    ({"optimizer": "adam"}, TypeError, "optimizer must be a torch.optim.Optimizer or a pair .*, and it is 'adam'"),
    ({"validation": 3}, TypeError, "validation must be a tensor, .* Dataset or a DataLoader, and it is int"),
]


@pytest.mark.parametrize(("options", "error", "words"), REFUSED)
def test_refused_before_the_network_is_called(options, error, words):
    m, calls = model(), []
    m.net.register_forward_hook(lambda *told: calls.append(1))
    before = torch.get_rng_state()
    with pytest.raises(error, match=words):
        sdegen.fit(m, points(), **{"steps": 4, "batch_size": 16, "progress": False, **options})
    assert not calls
    assert torch.equal(torch.get_rng_state(), before)


def test_models_that_cannot_be_trained():
    exact = sdegen.Gaussian([0.0, 0.0], 1.0).model(sdegen.VPSDE())
    with pytest.raises(TypeError, match="fit needs a ScoreModel, whose network it trains, and model is"):
        sdegen.fit(exact, points(), steps=1)
    for net in (lambda x, t: x, model().net.requires_grad_(False)):
        with pytest.raises(ValueError, match=r"The model has no parameters to train: its net must be an nn\.Module"):
            sdegen.fit(sdegen.ScoreModel(net, sdegen.VPSDE()), points(), steps=1, batch_size=8)


def test_optimisers_of_something_else():
    m = model()
    with pytest.raises(ValueError, match="optimizer must hold parameters of the model, and 12 of its tensors are not"):
        sdegen.fit(m, points(), steps=1, batch_size=8, optimizer=sgd(model()))
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd(m))
    for pair in ((plateau.optimizer, plateau), (plateau.optimizer, 3), (plateau.optimizer,)):
        with pytest.raises(TypeError, match="an LRScheduler that needs no numbers, and it is"):
            sdegen.fit(m, points(), steps=1, batch_size=8, optimizer=pair)


@pytest.mark.parametrize("absent", ["accelerate", "tqdm.auto"])
def test_an_extra_that_is_absent(absent, monkeypatch):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=rf"needs {absent[:4]}\w*; install it with `pip install 'sdegen\[train\]'`"):
        sdegen.fit(model(), points(), steps=1, batch_size=8)
