"""What is no flow, or none for these states, is refused in a sentence, and before the network is asked."""

from __future__ import annotations

import sys

import pytest
import torch
import zuko
from torch import nn
from torch.distributions import Independent, Normal

import sdegen
from sdegen.interop.zuko import source


class Several(nn.Module):
    """Three laws at once."""

    def forward(self):
        base = Independent(Normal(torch.zeros(3, 2), torch.ones(3, 2)), 1)
        return zuko.distributions.NormalizingFlow(zuko.transforms.IdentityTransform(), base)


class Conditional(nn.Module):
    """A flow of one's own that is nothing without its context."""

    def forward(self, c):
        raise AssertionError


def never(x, t):
    raise AssertionError("the network was asked")


def nsf(d=2, context=0):
    return zuko.flows.NSF(features=d, context=context, transforms=1, hidden_features=[8])


@pytest.mark.parametrize(
    ("flow", "error", "message"),
    [
        (3, TypeError, r"^flow must be a flow of zuko, called as flow\(\), and it is 3\.$"),
        (zuko.flows.NSF, TypeError, r"it is the class NSF itself: call it, NSF\(\.\.\.\)\.$"),
        (nsf()(), TypeError, r"^flow must be a flow of zuko, called as flow\(\), and it is NormalizingFlow\("),
        (nn.Linear(2, 2), TypeError, r"called as flow\(\), and Linear says: .*missing 1 required.*'input'\.$"),
        (Conditional(), TypeError, r"called as flow\(\), and Conditional says: .*missing 1 required.*'c'\.$"),
        (
            zuko.mixtures.GMM(features=2),
            TypeError,
            r"^flow\(\) must be a NormalizingFlow of zuko, and GMM returns Mixture\.$",
        ),
        (zuko.flows.NCSF(features=2), TypeError, r"^The flow's base must be normal, .*BoxUniform"),
        (nsf(context=3), ValueError, r"^flow must be one without a context, and NSF says: .*\(9x2 and 5x8\)\.$"),
        (zuko.flows.CNF(features=2, exact=False), ValueError, r"same at every call: build it with exact=True\.$"),
        (
            zuko.flows.GF(features=2),
            ValueError,
            r"^The inverse of GF is none, .* is missed by up to \d\.\d+ of them\.$",
        ),
        (Several(), ValueError, r"^flow\(\) must be one law, and that of Several is a batch of \(3,\)\.$"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_flow_is_refused(flow, error, message):
    with pytest.raises(error, match=message):
        source(flow)


@pytest.mark.parametrize("call", [
    lambda model, law, x: sdegen.sample(model, tuple(x.shape), sdegen.Adams(4)),
    lambda model, law, x: sdegen.loss(model, x),
    lambda model, law, x: sdegen.log_prob(model, x),
    lambda model, law, x: sdegen.log_likelihood(sdegen.ScoreModel(never, sdegen.CondOT(), "velocity"), x, prior=law),
    lambda model, law, x: law.log_prob(x),
])  # fmt: skip
@pytest.mark.parametrize("event", [(3,), (1, 2, 2)])
def test_a_flow_of_another_dimension_is_refused_before_the_network_is_asked(call, event):
    law, x = source(nsf()), torch.zeros(5, *event)
    model = sdegen.ScoreModel(never, sdegen.Interpolant(source=law), "velocity")
    d = x[0].numel()
    with pytest.raises(ValueError, match=rf"has {d} values a sample, and the (flow|prior) is .* over 2\b.*\.$"):
        call(model, law, x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda law: law.sample((3, 2), [torch.Generator()]),
            ValueError,
            "batch of 3 needs 3 generators.*1 were given",
        ),
        (lambda law: law.sample((3, 2), 7), TypeError, "generator must be a torch.Generator.*7 is int"),
        (lambda law: law.sample(3), TypeError, r"shape must be a tuple \(B, \.\.\.\) of integers, and it is 3"),
        (lambda law: law.log_prob([[0.0, 0.0]]), TypeError, "z must be a tensor.*it is list"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(source(nsf()))


def test_without_zuko_the_extra_is_named(monkeypatch):
    flow = nsf()
    for name in ("zuko", "zuko.distributions"):
        monkeypatch.setitem(sys.modules, name, None)
    words = r"^source needs zuko, which is not installed: pip install 'sdegen\[flows\]'\.$"
    with pytest.raises(ImportError, match=words):
        source(flow)
