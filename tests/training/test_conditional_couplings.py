"""Couplings and conditions: pairs within a class, rows that exist, and what the network receives."""

from __future__ import annotations

import pytest
import torch

import sdegen


class WithinLabels:
    """Optimal transport among the samples of each label, written by a user."""

    def __call__(self, x, z, generator, cond):
        partner = torch.arange(len(x))
        for label in cond["label"].unique():
            rows = torch.nonzero(cond["label"] == label)[:, 0]
            partner[rows] = rows[sdegen.OptimalTransport()(x[rows], z[rows])[1]]
        return torch.arange(len(x)).flip(0), partner.flip(0)


def recording(seen):
    def net(x_t, t, **cond):
        seen.update(x_t=x_t, **cond)
        return torch.zeros_like(x_t)

    return sdegen.ScoreModel(net, sdegen.Interpolant(), "velocity")


def test_a_coupling_that_asks_for_conditions_couples_within_labels():
    x, z, labels = torch.randn(32, 2), torch.randn(32, 2), torch.randint(3, (32,))
    seen = {}
    coupling = WithinLabels()
    options = {"noise": z, "t": 0.25, "cond": {"label": labels}, "reduction": "none"}
    each = sdegen.loss(recording(seen), x, coupling=coupling, **options)
    i, j = coupling(x, z, None, {"label": labels})
    assert labels[i].tolist() == labels[j].tolist() == seen["label"].tolist()
    assert j.sort().values.tolist() == list(range(32))
    torch.testing.assert_close(seen["x_t"], 0.25 * x[i] + 0.75 * z[j])
    torch.testing.assert_close(each, (x[i] - z[j]).square().mean(1))
    across = sdegen.OptimalTransport()(x, z)[1]
    assert labels[across].tolist() != labels.tolist()
    for label in range(3):
        rows = torch.nonzero(labels == label)[:, 0]
        within = (x[i] - z[j]).square().sum(1)[labels[i] == label].sum()
        best = sdegen.OptimalTransport()(x[rows], z[rows])[1]
        assert float(within) == pytest.approx(float((x[rows] - z[rows][best]).square().sum()))


def test_what_a_coupling_receives():
    received = []

    def keyword_only(x, z, generator, *, cond):
        received.append(cond)
        cond["label"].zero_()
        return torch.arange(len(x)), torch.arange(len(x))

    def three(x, z, generator):
        return torch.arange(len(x)), torch.arange(len(x))

    def anything(x, z, generator, **options):
        received.append(options)
        return torch.arange(len(x)), torch.arange(len(x))

    x, labels, table = torch.randn(4, 2), torch.arange(4), torch.randn(4, 3)
    cond = {"label": labels, "table": sdegen.Shared(table)}
    seen = {}
    for coupling in (keyword_only, three, anything):
        sdegen.loss(recording(seen), x, coupling=coupling, cond=cond)
        assert seen["label"].tolist() == [0, 1, 2, 3]
        assert seen["table"] is table
    assert received[0]["table"] is table
    assert received[1] == {}
    sdegen.loss(recording({}), x, coupling=lambda x, z, g, cond: received.append(cond) or three(x, z, g))
    assert received[2] == {}


def test_lists_are_refused_where_a_coupling_reorders_them():
    calls = {}
    x, names = torch.randn(4, 2), ["a", "b", "c", "d"]
    with pytest.raises(TypeError, match=r"cond\['name'\] is a list.*a dict of such tensors, or Shared"):
        sdegen.loss(recording(calls), x, coupling=sdegen.OptimalTransport(), cond={"name": names})
    assert not calls
    sdegen.loss(recording(calls), x, coupling=sdegen.OptimalTransport(), cond={"name": sdegen.Shared(names)})
    assert calls["name"] is names
    sdegen.loss(recording(calls), x, cond={"name": names})
    assert calls["name"] is names


@pytest.mark.parametrize("path", [sdegen.VPSDE(), sdegen.Interpolant()])
def test_a_plain_loss_hands_over_shared_values_and_copies_of_the_rest(path):
    seen = {}

    def rude(x_t, t, label, table, scale):
        seen.update(label=label, table=table, scale=scale)
        label.zero_()
        x_t.zero_()
        t.zero_()
        return torch.zeros_like(x_t)

    x, t, noise = torch.randn(4, 2), torch.full((4,), 0.3), torch.randn(4, 2)
    kept = [v.clone() for v in (x, t, noise)]
    labels, table = torch.arange(4), torch.randn(4, 7)
    model = sdegen.ScoreModel(rude, path, "v")
    cond = {"label": labels, "table": sdegen.Shared(table), "scale": 2.0}
    sdegen.loss(model, x, t=t, noise=noise, cond=cond)
    assert seen["table"] is table
    assert seen["scale"] == 2.0
    assert labels.tolist() == [0, 1, 2, 3]
    for now, before in zip((x, t, noise), kept, strict=True):
        assert torch.equal(now, before)


def test_a_condition_that_is_trained_keeps_its_gradient():
    table = torch.randn(4, 2, requires_grad=True)
    for coupling in (None, sdegen.OptimalTransport()):
        model = sdegen.ScoreModel(lambda x, t, c: x + c, sdegen.Interpolant(), "velocity")
        sdegen.loss(model, torch.randn(4, 2), cond={"c": table}, coupling=coupling).backward()
        assert float(table.grad.abs().min()) > 0
        table.grad = None


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (lambda n: (torch.arange(n) + 1, torch.arange(n)), r"0 \.\.\. 5.* run from 1 to 6"),
        (lambda n: (torch.arange(n), torch.arange(n) - 1), r"0 \.\.\. 5.* run from -1 to 4"),
        (lambda n: (torch.arange(n).int(), torch.arange(n)), "two int64 tensors of 6 rows"),
        (lambda n: (torch.arange(n).double(), torch.arange(n)), "two int64 tensors of 6 rows"),
        (lambda n: (torch.arange(n), torch.arange(n)[:, None]), "two int64 tensors of 6 rows"),
        (lambda n: (torch.arange(n), list(range(n))), "two int64 tensors of 6 rows"),
        (lambda n: (torch.arange(n),) * 3, "two int64 tensors of 6 rows"),
    ],
)
def test_rows_of_a_coupling(rows, says):
    seen = {}
    with pytest.raises(ValueError, match=says):
        sdegen.loss(recording(seen), torch.randn(6, 2), coupling=lambda x, z, g: rows(len(x)))
    assert not seen


def test_replacement_draws_from_the_first_generator():
    x, z = torch.randn(20, 2), torch.randn(20, 2)
    coupling = sdegen.OptimalTransport(replace=True)
    each = coupling(x, z, [torch.Generator().manual_seed(i) for i in range(20)])
    first = coupling(x, z, torch.Generator().manual_seed(0))
    assert [rows.tolist() for rows in each] == [rows.tolist() for rows in first]
    state = torch.get_rng_state()
    coupling(x, z, torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())


def test_replacement_redraws_pairs_of_the_optimal_plan():
    x, z = torch.randn(20, 2), torch.randn(20, 2)
    partner = dict(enumerate(sdegen.OptimalTransport()(x, z)[1].tolist()))
    i, j = sdegen.OptimalTransport(replace=True)(x, z, torch.Generator().manual_seed(0))
    assert [partner[row] for row in i.tolist()] == j.tolist()
    assert len(set(i.tolist())) < 20


def test_the_distance_is_squared():
    """9 + 10 beats 0 + 37; without the squares the crossing would win, 0 + 6.08 against 3 + 3.16."""
    x, z = torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([[3.0, 0.0], [6.0, 1.0]])
    assert sdegen.OptimalTransport()(x, z)[1].tolist() == [0, 1]


def test_a_coupling_without_a_signature_is_called_with_three_arguments():
    class Compiled:
        __signature__ = "none"

        def __call__(self, x, z, generator):
            return torch.arange(len(x)), torch.arange(len(x))

    seen = {}
    sdegen.loss(recording(seen), torch.randn(4, 2), coupling=Compiled(), cond={"label": torch.arange(4)})
    assert seen["label"].tolist() == [0, 1, 2, 3]
