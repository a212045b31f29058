"""Where the losses of density ratios meet infinity, dropout, other times and mixed precisions."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from classified import FAKE, REAL, P, Q, of_state
from torch import nn

import sdegen
from sdegen.nets import MLP

X = torch.zeros(4, 2)


class Seen(nn.Module):
    """A logit that keeps what it was asked."""

    def forward(self, x, t=None, **cond):
        self.asked = x.detach().clone(), t
        return x.flatten(1).sum(1)


def test_a_function_that_hides_dropout_is_named_where_jsd_was_called():
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1)).float()
    words = r"^logit is a function that hides Sequential, whose Dropout is in training mode and stays in it: call"
    with pytest.warns(UserWarning, match=words) as caught:
        sdegen.jsd(lambda x: net(x)[:, 0], X, X)
    assert [warning.filename for warning in caught] == [__file__]
    net.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sdegen.jsd(lambda x: net(x)[:, 0], X, X)


def test_infinite_logits_of_the_contrastive_loss():
    """A fake of -inf is one that is not there, a real sample of -inf is never found; the rest has no answer."""

    def loss(real, *others, sign=1):
        real, others = torch.tensor(real)[:, None], torch.tensor(others)[..., None]
        return sdegen.contrastive_loss(lambda x: sign * x[:, 0].log(), real, others)

    torch.testing.assert_close(loss([2.0, 3.0], [0.0, 1.0], [2.0, 0.0]), torch.tensor([0.5, 0.75]).log().mean().neg())
    assert float(loss([0.0, 3.0], [1.0, 1.0])) == math.inf
    for real, fake, sign, infinite, lost in (
        ([0.0, 3.0], [0.0, 1.0], 1, 0, 1),
        ([0.0, 3.0], [1.0, 1.0], -1, 1, 0),
        ([1.0, 3.0], [0.0, 0.0], -1, 2, 0),
    ):
        words = (
            rf"^The loss is NaN: net is infinite in {infinite} of 4 rows, and -infinite for {lost} real samples and all"
        )
        with pytest.raises(sdegen.NonFiniteError, match=words):
            loss(real, fake, sign=sign)


@pytest.mark.parametrize("T", [19.0, 21.0, 30.0, 45.0, 700.0])
def test_large_logits_are_right_to_rounding(T):
    """log(1 + exp(-T)) where the classifier is right, and T more where it is wrong."""
    wrong, right = T + math.log1p(math.exp(-T)), math.log1p(math.exp(-T))
    for sign, expected in ((1.0, right), (-1.0, wrong)):
        x = sign * torch.tensor([[T]])
        assert float(sdegen.ratio_loss(lambda x: x[:, 0], x, -x)) == pytest.approx(expected, rel=4e-16, abs=0)
        found = math.log(2) - float(sdegen.jsd(lambda x: x[:, 0], x, -x).value)
        assert found == pytest.approx(expected, rel=4e-16, abs=2e-16)


def test_gradients_where_a_logit_is_infinite_are_no_nan():
    x = torch.tensor([[math.inf], [1.0]])
    T = x[:, 0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(sdegen.ratio_loss(lambda x: torch.cat([T, -T]), X[:2], X[:2]), T)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -torch.sigmoid(-T[1]).item() / 2]), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "path",
    [sdegen.EDM(), sdegen.DDPM.linear(), sdegen.Retimed(sdegen.VPSDE(), 3.0, -2.0)],
    ids=lambda path: type(path).__name__,
)
def test_times_are_the_path_s_own_and_uniform(path):
    net = Seen()
    sdegen.ratio_loss(net, torch.zeros(500, 1), torch.zeros(500, 1), path, generator=torch.Generator().manual_seed(2))
    u = 1 - torch.rand(500, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(net.asked[1], path.at(u).repeat(2))
    low, high = sorted([path.t_data, path.t_noise])
    assert low <= float(net.asked[1].min()) < low + 0.02 * (high - low)
    assert high >= float(net.asked[1].max()) > high - 0.02 * (high - low)


def test_noise_comes_from_the_source_of_the_path():
    class Far(sdegen.Gaussian):
        """A law that no standard normal comes near."""

    path, net = sdegen.Interpolant(source=Far(torch.full((2,), 100.0), 1e-3)), Seen()
    sdegen.ratio_loss(net, torch.randn(6, 2), torch.randn(12, 2), path, t=0.5)
    assert float((net.asked[0] - 50).abs().max()) < 5


@pytest.mark.parametrize(("real", "other"), [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str)
def test_fakes_of_another_precision_take_that_of_the_real_samples(real, other):
    net, x, fake = Seen(), torch.randn(4, 2).to(real), torch.randn(4, 2).to(other)
    for call in (lambda: sdegen.ratio_loss(net, x, fake), lambda: sdegen.contrastive_loss(net, x, fake[None])):
        call()
        assert net.asked[0].dtype is real
        assert torch.equal(net.asked[0], torch.cat([x, fake.to(real)]))


def test_samples_that_a_smaller_precision_cannot_hold_are_refused():
    """Of the real samples, or of the weights."""
    half, large = X.half(), torch.full((4, 2), 1e6)
    words = r"^The samples are too large for (net|logit): in the dtype that it receives, torch\.float16, or on the way"

    def never(x, *rest):
        raise AssertionError

    calls = (
        lambda: sdegen.ratio_loss(never, half, large),
        lambda: sdegen.ratio_loss(never, half, large, sdegen.VPSDE()),
        lambda: sdegen.contrastive_loss(never, half, -large[None]),
        lambda: sdegen.ratio_loss(MLP(2, 4, 1).half(), large, large, sdegen.CondOT(), t=1.0),
        lambda: sdegen.jsd(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).half(), X, large),
    )
    for call in calls:
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("row", range(12))
def test_a_single_nan_is_found_in_every_row(row):
    logits = torch.zeros(12)
    logits[row] = math.nan
    calls = (
        lambda: sdegen.ratio_loss(lambda x: logits, X, torch.zeros(8, 2)),
        lambda: sdegen.contrastive_loss(lambda x: logits, X, torch.zeros(2, 4, 2)),
        lambda: sdegen.jsd(lambda x: logits, torch.zeros(12, 2), torch.zeros(12, 2)),
    )
    for call in calls:
        with pytest.raises(sdegen.NonFiniteError, match=r"^(net|logit) is NaN in 1 of 12 rows\.$"):
            call()


def test_conditions_that_are_none_of_the_real_rows():
    fake = torch.zeros(12, 2)
    for rows in (12, 16):
        words = rf"^cond\['c'\] has {rows} rows, and there are 4 real samples with 3 fakes each: give one row per real"
        with pytest.raises(ValueError, match=words):
            sdegen.ratio_loss(Seen(), X, fake, cond={"c": torch.zeros(rows, 3)})
        sdegen.ratio_loss(Seen(), X, fake, cond={"c": sdegen.Shared(torch.zeros(rows, 3))})
    for fine in (torch.zeros(()), torch.zeros(7, 3), torch.zeros(4)):
        sdegen.ratio_loss(Seen(), X, fake, cond={"c": fine})
    with pytest.raises(
        ValueError, match=r"^On a path the network is called as net\(x_t, t, \*\*cond\), and cond has a 't'"
    ):
        sdegen.ratio_loss(Seen(), X, fake, sdegen.VPSDE(), cond={"t": torch.zeros(4)})
    sdegen.ratio_loss(Seen(), X, fake, cond={"t": torch.zeros(4)})


def test_a_logit_that_is_infinitely_wrong_has_no_standard_error():
    T = (P / Q).log()
    for wrong in ([-math.inf, T[1], T[2]], [T[0], T[1], math.inf]):
        found = sdegen.jsd(of_state(torch.tensor(wrong)), REAL, FAKE)
        assert float(found.value) == -math.inf
        assert math.isnan(found.standard_error)
