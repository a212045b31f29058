"""evaluate on quantised data: the K-draw bound, every sample with a generator of its own, in bits/dim of the levels."""

from __future__ import annotations

import math

import pytest
import torch

import sdegen
from sdegen.journal import sample_generators
from sdegen.likelihoods.evaluation import evaluate

pytestmark = pytest.mark.skipif(not hasattr(sdegen, "Quantized"), reason="no Quantized yet")
SOLVER = sdegen.ODESolver("rk4", steps=4)
LEVELS = sdegen.Quantized(16, -2.0, 2.0) if hasattr(sdegen, "Quantized") else None


def model() -> sdegen.Model:
    return sdegen.Gaussian([0.2, -0.1], 0.6).model(sdegen.CondOT())


def whole(n=11, dtype=torch.int64):
    return torch.randint(0, 16, (n, 2), generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64])
def test_a_sample_has_the_bound_of_its_own_generator(dtype, tmp_path):
    n, options = whole(dtype=dtype), {"quantized": LEVELS, "draws": 3, "solver": SOLVER, "batch_size": 4, "seed": 2}
    found = evaluate(model(), n, **options)
    for rows in (range(0, 4), range(4, 8), range(8, 11)):
        own = sample_generators(2, rows, torch.device("cpu"))
        bound = sdegen.discrete_log_prob(
            model(), n[rows.start : rows.stop], LEVELS, draws=3, solver=SOLVER, generator=own
        )
        assert torch.equal(found.per_sample[rows.start : rows.stop], bound.log_prob)
        assert torch.equal(found.errors["standard_error"][rows.start : rows.stop], bound.standard_error)
    assert found.kind == "bound"
    assert found.error == pytest.approx(float(found.errors["standard_error"].mean()))
    for shard in ((1, 2), (0, 2)):
        kept = evaluate(model(), n, directory=tmp_path, shard=shard, **options)
    assert torch.equal(kept.per_sample, found.per_sample)
    assert evaluate(model(), n, **{**options, "draws": 1}).error is None


def test_bits_per_dim_hold_the_cell():
    """Over all 256 pairs of levels, exact probabilities of the cells: the bound is just below their logarithms."""
    n = torch.cartesian_prod(torch.arange(16), torch.arange(16))
    edges = torch.linspace(-2, 2, 17)
    cdf = torch.distributions.Normal(torch.tensor([0.2, -0.1])[:, None], 0.6).cdf(edges)
    P = torch.diff(cdf)
    exact = torch.log(P[0][n[:, 0]]) + torch.log(P[1][n[:, 1]])
    path = sdegen.CondOT()
    found = evaluate(sdegen.Gaussian([0.2, -0.1], 0.6).model(path), n, quantized=LEVELS, draws=16, batch_size=64)
    likely = exact > -12
    gap = (exact - found.per_sample)[likely]
    assert -0.1 < float(gap.mean()) < 0.1
    assert found.bits_per_dim == pytest.approx(-found.mean / (2 * math.log(2)))
    assert float((gap / found.errors["standard_error"][likely]).abs().max()) < 6


def test_a_directory_of_other_levels_or_draws_is_refused(tmp_path):
    options = {"quantized": LEVELS, "draws": 2, "solver": SOLVER, "directory": tmp_path}
    evaluate(model(), whole(), **options)
    with pytest.raises(ValueError, match=r"differs in draws \(2 there, 3 here\)"):
        evaluate(model(), whole(), **{**options, "draws": 3})
    with pytest.raises(ValueError, match=r"differs in quantized \(Quantized\(levels=16, .* there, Quantized"):
        evaluate(model(), whole(), **{**options, "quantized": sdegen.Quantized(16, -2.0, 2.5)})


def test_what_is_no_bound_is_refused_before_the_first_call():
    def asked(x, t):
        raise AssertionError("the network was asked")

    net = sdegen.ScoreModel(asked, sdegen.CondOT(), "velocity")
    with pytest.raises(ValueError, match=r"exact trace, .* is no bound, and trace is Hutchinson\(probes=1\)"):
        evaluate(net, whole(), quantized=LEVELS, trace=sdegen.Hutchinson(1))
    with pytest.raises(ValueError, match="Unknown trace 'some'"):
        evaluate(net, whole(), quantized=LEVELS, trace="some")
    late = whole()
    late[-1, 0] = 16
    with pytest.raises(ValueError, match="whole numbers from 0 to 15, and one value is 16"):
        evaluate(net, late, quantized=LEVELS, batch_size=2)
    with pytest.raises(TypeError, match=r"quantized must be a Quantized, such as Quantized\(256\), and it is 16"):
        evaluate(net, whole(), quantized=16)
    with pytest.raises(ValueError, match=r"data must have shape \(N, ...\)"):
        evaluate(net, whole()[:, 0], quantized=LEVELS)
    with pytest.raises(ValueError, match=r"empty data set, shape \(0, 2\)"):
        evaluate(net, whole()[:0], quantized=LEVELS)
