"""The vectors z of z . J z: signs, orthogonal along a solve, independent of each other and of the batch."""

from __future__ import annotations

import math

import pytest
import torch
from mixtures import counting

import sdegen

DIMENSIONS = [1, 2, 3, 5, 16, 33]


def drawn(d, probes=2, samples=3, seed=0, fresh=True):
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    return sdegen.Hutchinson(probes).draw(torch.zeros(samples, d), generator, fresh)


def block(d):
    """The least power of two that is at least d, and at least 2."""
    return 2 ** max(1, math.ceil(math.log2(d)))


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("start", [0, 1, 7])
def test_any_n_successive_probes_are_orthogonal(d, start):
    """The sum of z z' over them is n I, to the digit, for every sample and every estimate; they are signs."""
    n, probes = block(d), drawn(d)
    z = torch.stack([probes.at(j) for j in range(start, start + n)])
    assert z.shape == (n, 2, 3, d)
    assert torch.equal(z.abs(), torch.ones_like(z))
    assert torch.equal(torch.einsum("jpbi,jpbk->pbik", z, z), (n * torch.eye(d)).expand(2, 3, d, d))
    for shape in ((3, 5, 2), (4, 2, 2, 2)):  # an event of any shape is one vector
        probes = sdegen.Hutchinson(1).draw(torch.zeros(shape), None, True)
        assert probes.at(0).shape == (1, shape[0], math.prod(shape[1:]))


@pytest.mark.parametrize("d", [2, 5, 16])
def test_one_query_is_unbiased(d):
    """E z z' = I at every query, over samples; estimates and samples are independent of each other."""
    samples = 4000
    probes = drawn(d, 2, samples)
    bound = 5.5 / math.sqrt(samples)
    for j in (0, 1, 3, block(d)):
        one, two = probes.at(j)
        assert float((one.T @ one / samples - torch.eye(d)).abs().max()) < bound
        assert float((one.T @ two / samples).abs().max()) < bound
        assert float((one[1:].T @ one[:-1] / samples).abs().max()) < bound


def test_every_estimate_walks_in_an_order_of_its_own():
    """What turns the probe of one query into the next: 31 rows in many orders; the next block repeats the first."""
    probes = drawn(32, 64, 4)
    turns = torch.stack([probes.at(j) * probes.at(0) for j in range(1, 32)], 2).reshape(256, -1)
    assert len(torch.unique(turns, dim=0)) > 128
    for j in (0, 1, 9, 31):
        assert torch.equal(probes.at(j), probes.at(j + 32))
        assert torch.equal(probes.at(j), probes.at(j))
    assert not torch.equal(probes.at(0), probes.at(1))


def test_adaptive_steps_keep_one():
    probes = drawn(5, fresh=False)
    assert torch.equal(probes.at(0), probes.at(17))
    assert torch.equal(probes.at(0).abs(), torch.ones(2, 3, 5))
    samples = drawn(5, 2, 4000, fresh=False).at(0)
    assert float((samples[0].T @ samples[0] / 4000 - torch.eye(5)).abs().max()) < 0.09
    assert float((samples[0].T @ samples[1] / 4000).abs().max()) < 0.09


@pytest.mark.parametrize("fresh", [True, False])
def test_probes_belong_to_their_sample(fresh):
    """One generator per sample: those of a sample alone. Cut: those of the rows that are left, later ones too."""
    every = drawn(6, 3, 4, [torch.Generator().manual_seed(i) for i in range(4)], fresh)
    alone = drawn(6, 3, 1, [torch.Generator().manual_seed(2)], fresh)
    rows = torch.tensor([3, 1])
    for j in (0, 5, 8, 30):
        assert torch.equal(every.at(j)[:, 2:3], alone.at(j))
        assert torch.equal(every.cut(rows).at(j), every.at(j)[:, rows])
    unit = sdegen.Exact().draw(torch.zeros(4, 6), None, fresh)
    assert torch.equal(unit.cut(rows).at(0), torch.eye(6)[:, None].expand(6, 2, 6))
    assert (unit.count, unit.columns, unit.exact, every.count, every.columns, every.exact) == (6, 1, True, 3, 3, False)


@pytest.mark.parametrize(
    "solver", [sdegen.Adams(14), sdegen.AdamsUntil(10.0, first=14), sdegen.ODESolver("rk4", steps=5)], ids=repr
)
def test_unbiased_on_a_field_that_is_not_symmetric(solver):
    """dx/dt = sin(A x), A anisotropic and skew: the mean over many draws is the exact log-density."""
    A = torch.tensor([[1.0, 2.0, -0.5], [-1.5, 0.2, 0.3], [0.4, -0.8, -0.7]])
    model = sdegen.vector_field(lambda x, t: torch.sin(x @ A.T) * (1 + t[:, None]))
    x = torch.tensor([[0.3, -0.2, 0.5]]).expand(3000, 3)
    exact = float(sdegen.log_prob(model, x[:1], solver, trace="exact"))
    g = torch.Generator().manual_seed(3)
    ours = sdegen.log_prob(model, x, solver, trace=sdegen.Hutchinson(1), generator=g)
    assert float(ours.std()) > 0.01
    assert abs(float(ours.mean()) - exact) < 5 * float(ours.std()) / math.sqrt(len(x))


@pytest.mark.parametrize("probes", [1, 2, 3])
def test_few_probes_are_plain_backward_passes(probes, monkeypatch):
    """One for each product where there are one or two, nothing batched; one batched pass for three."""
    model, _ = counting()
    taken, grad = [], torch.autograd.grad

    def spy(*args, **kept):
        taken.append(bool(kept.get("is_grads_batched")))
        return grad(*args, **kept)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    sdegen.log_prob(model, torch.randn(4, 2), sdegen.Adams(20), trace=sdegen.Hutchinson(probes))
    assert taken == ([True] * 11 if probes == 3 else [False] * 11 * probes)


def test_options_of_a_trace():
    with pytest.raises(ValueError, match="probes must be at least 1, and it is 0"):
        sdegen.Hutchinson(0)
    with pytest.raises(TypeError, match=r"probes must be an integer, and 2\.0 is float"):
        sdegen.Hutchinson(2.0)
    with pytest.raises(ValueError, match="chunk must be at least 1, and it is 0"):
        sdegen.Exact(0)
    with pytest.raises(TypeError, match="chunk must be an integer, and True is bool"):
        sdegen.Exact(True)
    assert sdegen.Exact() == sdegen.Exact(None) != sdegen.Exact(4)
    assert sdegen.Hutchinson() == sdegen.Hutchinson(1)
