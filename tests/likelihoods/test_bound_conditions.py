"""What the network of a bound receives: rows of its own, shared things whole, copies, and never the wrapper."""

from __future__ import annotations

import pytest
import torch

import sdegen

B = 4

CHAIN = sdegen.DDPM.linear(6, 0.05, 0.4)

LAW = sdegen.Gaussian(torch.tensor([0.2, -0.5], dtype=torch.float64), 0.6)


def generator():
    return torch.Generator().manual_seed(4)


VERBS = {
    "vlb": lambda m, x, n, **o: sdegen.vlb(m, x, noise=n, **o).total,
    "vlb optimal": lambda m, x, n, **o: sdegen.vlb(m, x, noise=n, variance="optimal", **o).total,
    "vlb draws": lambda m, x, n, **o: sdegen.vlb(m, x, noise=n, draws=4, generator=generator(), **o).total,
    "iwae": lambda m, x, n, **o: sdegen.iwae(m, x, 2, generator=generator(), **o).log_weights,
    "iwae optimal": lambda m, x, n, **o: sdegen.iwae(m, x, 2, variance="optimal", generator=generator(), **o).log_prob,
    "continuous_vlb": lambda m, x, n, **o: sdegen.continuous_vlb(m, x, draws=4, generator=generator(), **o).total,
    "optimal_variance": lambda m, x, n, **o: sdegen.optimal_variance(m, x, noise=n, **o),
    "entropy_form": lambda m, x, n, **o: sdegen.entropy_form(m, LAW, x, noise=n, **o).model,
    "entropy_form optimal": lambda m, x, n, **o: sdegen.entropy_form(m, LAW, x, noise=n, variance="optimal", **o).model,
    "hybrid_loss": lambda m, x, n, **o: sdegen.hybrid_loss(m, x, noise=n, weight=1.0, generator=generator(), **o),
}


def network(verb, field):
    """A ScoreModel of `field`, with the second half of a learned variance where the verb trains one."""

    def net(x, t, **cond):
        out = field(x, t, **cond)
        return torch.cat([out, torch.cos(out)], 1) if verb == "hybrid_loss" else out

    return sdegen.ScoreModel(net, CHAIN, learns_variance=verb == "hybrid_loss")


def batch():
    return torch.randn(B, 2), torch.randn(B, 2)


def mixed(x, t, table):
    """A (B, 2) table, as long as the batch, that belongs to all samples."""
    assert table.shape == (B, 2)
    return torch.tanh(x @ table.T @ table / B + t[:, None])


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_shared_reaches_the_network_whole(verb):
    x, noise = batch()
    table = torch.randn(B, 2)
    shared = VERBS[verb](network(verb, mixed), x, noise, cond={"table": sdegen.Shared(table)})
    built_in = VERBS[verb](network(verb, lambda x, t: mixed(x, t, table)), x, noise)
    torch.testing.assert_close(shared, built_in, rtol=0, atol=0)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.split()[0] in ("vlb", "optimal_variance")])
@pytest.mark.parametrize("shared", [True, False])
def test_a_table_as_long_as_the_batch_means_the_same_in_parts(verb, shared):
    """With `Shared` it belongs to all samples and without it holds one row per sample, in any batch size."""
    x, noise = batch()
    table = torch.randn(B, 2)
    model = network(verb, mixed if shared else lambda x, t, table: torch.tanh(x * table + t[:, None]))
    cond = {"table": sdegen.Shared(table) if shared else table}
    g = {"generator": [torch.Generator().manual_seed(i) for i in range(B)]} if verb == "vlb draws" else {}
    call = (lambda **o: sdegen.vlb(model, x, noise=noise, draws=4, **o).total) if g else VERBS[verb]

    def bound(size):
        for own in g.get("generator", []):
            own.manual_seed(own.initial_seed())
        arguments = () if g else (model, x, noise)
        return call(*arguments, cond=cond, batch_size=size, **g)

    whole = bound(None)
    for size in (1, 3, B):
        torch.testing.assert_close(bound(size), whole, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("verb", VERBS)
def test_each_row_is_that_of_a_network_with_its_condition_built_in(verb):
    x, noise = batch()
    shift = torch.tensor([0.7, -0.3, 1.1, 0.2])

    def field(x, t, shift):
        return torch.tanh(1.3 * x + shift.reshape(-1, 1) * t[:, None])

    ours = VERBS[verb](network(verb, field), x, noise, cond={"shift": shift})
    twin = VERBS[verb](network(verb, lambda x, t: field(x, t, shift.repeat(len(x) // B))), x, noise)
    dropped = VERBS[verb](network(verb, lambda x, t: field(x, t, torch.zeros(1))), x, noise)
    torch.testing.assert_close(ours, twin, rtol=1e-12, atol=1e-12)
    assert float((ours - dropped).abs().max()) > 1e-6


@pytest.mark.parametrize("verb", VERBS)
def test_a_network_may_write_into_what_it_receives(verb):
    x, noise = batch()
    shift = torch.ones(B)
    before = x.clone(), noise.clone()

    def writing(x, t, shift):
        x.mul_(0.5)
        t.zero_()
        shift.mul_(2.0)
        return torch.tanh(x)

    VERBS[verb](network(verb, writing), x, noise, cond={"shift": shift})
    assert torch.equal(shift, torch.ones(B))
    assert torch.equal(x, before[0])
    assert torch.equal(noise, before[1])


@pytest.mark.parametrize("verb", VERBS)
def test_lists_are_handed_over_whole_and_refused_where_rows_are_cut(verb):
    x, noise = batch()
    seen, words = [], ["a", "b", "c", "d"]

    def net(x, t, words):
        seen.append(words)
        return torch.tanh(x)

    VERBS[verb](network(verb, net), x, noise, cond={"words": words})
    assert all(w is words for w in seen)
    if verb.split()[0] in ("entropy_form", "hybrid_loss"):
        return
    seen.clear()
    with pytest.raises(TypeError, match=r"cond\['words'\] is a list.*Shared"):
        VERBS[verb](network(verb, net), x, noise, cond={"words": words}, batch_size=3)
    assert not seen


def test_parts_as_large_as_the_batch_are_the_batch():
    """Nothing is cut, so that a list passes."""
    model = sdegen.ScoreModel(lambda x, t, names: torch.tanh(x) * len(names), sdegen.DDPM.linear(4, 0.1, 0.4))
    x, noise = torch.randn(3, 2), torch.randn(3, 2)
    whole, *parts = (
        sdegen.vlb(model, x, cond={"names": ["a", "b"]}, noise=noise, batch_size=size).total for size in (None, 3, 100)
    )
    assert all(torch.equal(part, whole) for part in parts)


def test_a_table_of_another_length_is_never_cut():
    """Longer or shorter than the batch, it can hold no rows of it."""
    for entries in (2, 3, 7):
        model = sdegen.ScoreModel(lambda x, t, table: torch.tanh(x + table.sum() + len(table)), CHAIN)
        x, noise = batch()
        cond = {"table": torch.arange(float(entries))}
        whole, parts = (sdegen.vlb(model, x, cond=cond, noise=noise, batch_size=size).total for size in (None, 2))
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
