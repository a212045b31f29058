"""Draws that do not follow the density are refused, at creation or after a training; rounding alone is not."""

from __future__ import annotations

import math

import pytest
import torch
import zuko
from torch import nn

import sdegen
from sdegen.interop.zuko import source

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Searched(zuko.transforms.MonotonicTransform):
    """f(x) = x, whose inverse is searched for between the bounds, as zuko's NAF does."""

    def __init__(self, bound):
        super().__init__(f=lambda x: x, bound=bound)


class Cut(nn.Module):
    """The standard normal, with an inverse that ends at a bound, or is off by a part of it."""

    def __init__(self, bound=10.0, off=0.0, mean=0.0):
        super().__init__()
        self.bound, self.off, self.mean = bound, off, nn.Parameter(torch.tensor(mean))

    def forward(self):
        base = zuko.distributions.DiagNormal(torch.zeros(2), torch.ones(2))
        shift = torch.distributions.AffineTransform(self.mean, 1 + self.off)
        shift._inverse = lambda y: y - self.mean
        steps = zuko.transforms.ComposedTransform(Searched(self.bound), shift)
        return zuko.distributions.NormalizingFlow(zuko.transforms.DependentTransform(steps, 1), base)


def made(kind, gain=1.5, **options):
    torch.manual_seed(0)
    flow = getattr(zuko.flows, kind)(features=3, **options)
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(gain)
    return flow


@pytest.mark.parametrize(
    ("flow", "bad"),
    [(Cut(3.9), 2), (Cut(2.1), 4), (Cut(off=0.05), 8)],
    ids=["cut at 3.9", "cut at 2.1", "off by a twentieth"],
)
def test_an_inverse_that_is_none_within_four_deviations_is_refused(flow, bad):
    """The rows that miss are those beyond the bound, of -4, -3 ... 4: also where the miss is a twentieth of z."""
    words = (
        rf"^The inverse of Cut is none, so its draws would not .*, in {bad} of 9 rows, z .* missed by up to .* them\.$"
    )
    with pytest.raises(ValueError, match=words):
        source(flow)
    with pytest.raises(ValueError, match=r"^The inverse of Cut is none"):
        source(Cut(3.9, mean=-1.5))


def test_a_training_that_moves_the_draws_off_the_density_is_noticed():
    """f(x) = x + m, so that x of -10 and z = m - 10 are the least: z further below is missed."""
    flow = Cut()
    law, g = source(flow), torch.Generator().manual_seed(0)
    assert law.sample((50, 2), g).shape == (50, 2)
    with torch.no_grad():
        flow.mean.fill_(9.5)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    bad, missed = int((z < -0.51).any(1).sum()), float(-0.5 - z.min())
    model = sdegen.ScoreModel(lambda x, t: 0 * x, sdegen.Interpolant(source=law), "velocity")
    for call in (law.sample, lambda shape, g: sdegen.sample(model, shape, sdegen.Adams(3), generator=g)):
        with pytest.raises(ValueError, match=rf"in {bad} of 50 rows, .* missed by up to {missed:.2g} of them\.$"):
            call((50, 2), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["NSF", "MAF", "RealNVP", "NICE"])
def test_rounding_is_no_refusal(kind, dtype):
    """A steep flow in half precision misses z by a tenth, and in double precision by 1e-10."""
    law = source(made(kind, 2.0, transforms=2).to(dtype))
    x = law.sample((200, 3), torch.Generator().manual_seed(0))
    assert x.dtype is dtype
    assert bool(x.isfinite().all())


def test_weights_that_are_no_numbers_have_a_sentence_of_their_own():
    flow = made("MAF", transforms=1)
    law = source(flow)
    with torch.no_grad():
        next(flow.parameters()).fill_(math.nan)
    words = (
        r"^The draws of MAF are NaN or infinite in {} of {} rows: look at its weights, and whether torch\.float64 is"
    )
    with pytest.raises(ValueError, match=words.format(5, 5)):
        law.sample((5, 3))
    with pytest.raises(ValueError, match=words.format(9, 9)):
        source(flow)


def test_an_answer_that_is_no_number_on_the_way_back_is_no_inverse():
    """exp(f) is finite, and f of it is not."""
    flow = Cut(off=math.nan)
    with pytest.raises(ValueError, match=r"^The inverse of Cut is none, .* in 9 of 9 rows, .* up to nan of them\.$"):
        source(flow)


class Dropping(nn.Module):
    """A flow with dropout."""

    def __init__(self):
        super().__init__()
        self.flow = made("MAF", transforms=1, activation=lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))

    def forward(self):
        return self.flow()


def test_a_flow_in_training_is_asked_in_eval_mode_and_left_in_its_own():
    flow, x = Dropping().train(), torch.randn(6, 3)
    flow.flow.eval()
    dropout = next(module for module in flow.modules() if isinstance(module, nn.Dropout)).train()
    law = source(flow)
    found = [law.log_prob(x) for _ in range(2)]
    drawn = [law.sample((6, 3), torch.Generator().manual_seed(0)) for _ in range(2)]
    assert (flow.training, flow.flow.training, dropout.training) == (True, False, True)
    assert torch.equal(*found)
    assert torch.equal(*drawn)
    found[0].sum().backward()
    assert any(p.grad is not None for p in flow.parameters())
    dropout.eval()
    torch.testing.assert_close(flow().log_prob(x), found[0], rtol=0, atol=0)


def test_of_no_samples_there_are_no_densities():
    for kind in ("NSF", "MAF", "RealNVP", "NICE"):
        law = source(made(kind, transforms=1))
        x = torch.zeros(0, 3, dtype=torch.float32)
        assert law.log_prob(x).shape == (0,)
        assert law.log_prob(x).dtype is torch.float32


def test_a_generator_per_sample_is_one_question_to_the_flow():
    """And each row is what its generator would draw alone."""
    flow, calls = made("MAF", transforms=2), []
    flow.register_forward_pre_hook(lambda *_: calls.append(1))
    path, x = sdegen.Interpolant(source=source(flow)), torch.zeros(5, 3)
    calls.clear()
    found = path.noise_like(x, sdegen.seeds(5))
    assert len(calls) == 1
    alone = torch.cat([path.source.sample((1, 3), g) for g in sdegen.seeds(5)])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-13)
    for retimed in (sdegen.Retimed(path), path):
        assert torch.equal(retimed.noise_like(x, sdegen.seeds(5)), found)


class Steep(nn.Module):
    """z = (x - 1) / 1e-15: rounding x moves z by a tenth, so that no inverse hits it."""

    def forward(self):
        base = zuko.distributions.DiagNormal(torch.zeros(2), torch.ones(2))
        f = torch.distributions.AffineTransform(1.0, 1e-15).inv
        return zuko.distributions.NormalizingFlow(zuko.transforms.DependentTransform(f, 1), base)


def test_a_steep_flow_is_no_flow_without_an_inverse():
    x = source(Steep()).sample((200, 2), torch.Generator().manual_seed(0))
    z = (x - 1) / 1e-15
    assert float((z - torch.randn(200, 2, generator=torch.Generator().manual_seed(0))).abs().max()) > 0.05
