"""What the losses of density ratios refuse, in words: before the network is called, or at its first answer."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

import sdegen

VP = sdegen.VPSDE()
X = torch.zeros(4, 2)
NAN = torch.tensor([[0.0, math.nan]]).expand(4, 2)


def refused(kind, words, verb, *arguments, **options):
    """The words, and that the network was not called."""
    calls = []

    def net(x, *rest, **cond):
        calls.append(1)
        return x.sum(1)

    with pytest.raises(kind, match=words) as caught:
        verb(net, *arguments, **options)
    assert type(caught.value) is kind
    assert not calls


@pytest.mark.parametrize("verb", [sdegen.ratio_loss, sdegen.jsd])
def test_samples(verb):
    for bad, kind, words in (
        (torch.zeros(4, 3), ValueError, r"real and fake must hold samples of one shape.* \(4, 2\) and \(4, 3\)\."),
        (torch.zeros(4, 2, 1), ValueError, r"samples of one shape.* \(4, 2\) and \(4, 2, 1\)\."),
        (NAN, ValueError, "fake holds NaN or infinite values in 4 of its 4 samples"),
        (torch.zeros(0, 2), ValueError, r"fake holds no samples, and its shape is \(0, 2\)\."),
        (torch.zeros(4), ValueError, r"fake must have shape \(B, \.\.\.\).*not \(4,\)"),
        (torch.zeros(4, 2, dtype=torch.int64), TypeError, "fake must have a real floating dtype.*int64"),
        ([[0.0, 0.0]], TypeError, r"fake must be a tensor.*list: pass torch.as_tensor\(fake\)"),
    ):
        refused(kind, words, verb, X, bad)
        if words.startswith("fake"):
            refused(kind, words.replace("fake", "real"), verb, bad, X)


def test_fakes_come_k_to_a_real_sample():
    for n in (3, 6, 2):
        words = f"fake must hold k samples for every real one, a multiple of 4 rows, and it holds {n}\\."
        refused(ValueError, words, sdegen.ratio_loss, X, torch.zeros(n, 2))
    assert sdegen.jsd(lambda x: x.sum(1), X, torch.zeros(6, 2)).value.shape == ()


def test_fakes_of_the_contrastive_loss():
    for shape in ((4, 2), (3, 2, 2), (3, 4, 3), (3, 4, 2, 1), (12, 2), (0, 4, 2)):
        words = re.escape(f"fakes must have shape (k, 4, 2), k for every real sample, and it has {shape}.")
        refused(ValueError, words, sdegen.contrastive_loss, X, torch.zeros(shape))
    refused(TypeError, "fakes must be a tensor.*list", sdegen.contrastive_loss, X, [[0.0]])
    refused(ValueError, "fakes holds NaN", sdegen.contrastive_loss, X, NAN[None])
    refused(ValueError, "real holds NaN", sdegen.contrastive_loss, NAN, X[None])
    refused(ValueError, "real holds no samples", sdegen.contrastive_loss, X[:0], X[:0][None])


def test_times_noise_and_generators():
    for options, kind, words in (
        ({"t": torch.zeros(3)}, ValueError, r"A time must be a scalar or have shape \(4,\), and it has \(3,\)"),
        ({"t": torch.zeros(8)}, ValueError, r"have shape \(4,\), and it has \(8,\)"),
        ({"t": 1.5}, ValueError, "1.5"),
        ({"t": torch.zeros(4, dtype=torch.int64)}, TypeError, "int64"),
        ({"noise": torch.zeros(8, 2)}, ValueError, r"noise must have the shape of real, \(4, 2\), and it has \(8, 2\)"),
        ({"noise": NAN}, ValueError, "noise holds NaN or infinite values in 4 of its 4"),
        ({"noise": 0.0}, TypeError, "noise must be a tensor.*float"),
        ({"generator": [torch.Generator()] * 8}, ValueError, "A batch of 4 needs 4 generators.*8 were given"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator.*3 is int"),
    ):
        refused(kind, words, sdegen.ratio_loss, X, torch.zeros(8, 2), VP, **options)
    for name, value in (("t", 0.5), ("noise", X), ("generator", torch.Generator())):
        words = f"{name} belongs to a path, and path is None: real and fake are compared as they are"
        refused(ValueError, words, sdegen.ratio_loss, X, X, **{name: value})


def test_paths_and_conditions():
    for path in (0.5, sdegen.VPSDE, sdegen.Gaussian([0.0], 1.0).model(VP)):
        refused(TypeError, r"path must be a GaussianPath such as VPSDE\(\), and it is", sdegen.ratio_loss, X, X, path)
    refused(TypeError, "cond must be a mapping.*it is list", sdegen.ratio_loss, X, X, VP, cond=[1])
    words = r"cond\['c'\] is a list, and the batch is cut into rows: give a tensor with one row per sample"
    refused(TypeError, words, sdegen.ratio_loss, X, X, VP, cond={"c": [1, 2, 3, 4]})


def each(net):
    """Every function with this network, called."""
    return (
        lambda: sdegen.ratio_loss(net, X, torch.zeros(8, 2)),
        lambda: sdegen.ratio_loss(net, X, torch.zeros(8, 2), VP),
        lambda: sdegen.contrastive_loss(net, X, torch.zeros(2, 4, 2)),
        lambda: sdegen.jsd(net, torch.zeros(12, 2), X),
    )


def all_refuse(net, kind, words):
    for call in each(net):
        with pytest.raises(kind, match=words) as caught:
            call()
        assert type(caught.value) is kind


def test_networks():
    for net in (0.5, None, X):
        all_refuse(net, TypeError, "(net|logit) must be callable, from samples to logits, and it is ")
    all_refuse(nn.Linear, TypeError, "from samples to logits, and it is the class Linear itself")


def test_logits():
    for net, shape in (
        (lambda x, *_: x.sum(1, keepdim=True), r"\(12, 1\)"),
        (lambda x, *_: x, r"\(12, 2\)"),
        (lambda x, *_: x.sum(), r"\(\)"),
        (lambda x, *_: x[:4].sum(1), r"\(4,\)"),
    ):
        words = rf"(net|logit) must return one logit per row, shape \(12,\), and it returned {shape}\."
        all_refuse(net, ValueError, words)
    all_refuse(lambda *_: 0.5, TypeError, "must return a tensor of floating logits, and it returned float")
    all_refuse(lambda x, *_: x[:, 0] > 0, TypeError, "of floating logits, and it returned torch.bool")
    all_refuse(lambda x, *_: x[:, 0].long(), TypeError, "of floating logits, and it returned torch.int64")
    nan = torch.tensor([0.0, math.nan, math.nan]).repeat(4)
    all_refuse(lambda *_: nan, sdegen.NonFiniteError, r"(net|logit) is NaN in 8 of 12 rows\.")


def test_networks_that_return_logits_of_two_classes_or_points_are_told_the_shape():
    model = sdegen.ScoreModel(lambda x, t: x, VP)
    with pytest.raises(ValueError, match=r"net must return one logit per row, shape \(8,\), and it returned \(8, 2\)"):
        sdegen.ratio_loss(model, X, X, VP)
