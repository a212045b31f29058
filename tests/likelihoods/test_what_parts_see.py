"""What a network and a user's function are handed: rows of conditions, copies, and a look that knows the mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdegen


class Summed(nn.Module):
    """Its condition is a table of the whole batch: a part of it would give other numbers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 2)).double()

    def forward(self, x, t, table):
        return self.layers(torch.cat([x, t[:, None], table.sum().expand(len(x), 1)], 1))


@pytest.mark.parametrize("solver", [None, sdegen.ODESolver("dopri5", rtol=1e-4, steps_for="sample")])
def test_a_table_as_long_as_a_part_is_not_cut(solver):
    """12 samples in parts of 4, of which some leave sooner, and a table of 4."""
    model = sdegen.ScoreModel(Summed(), sdegen.CondOT(), "velocity")
    x, table = torch.randn(12, 2) * torch.logspace(-1, 1, 12)[:, None], torch.tensor([1.0, -2.0, 3.0, 1.0])
    plain, shared = (
        sdegen.log_prob(model, x, solver, cond={"table": value}, batch_size=4)
        for value in (table, sdegen.Shared(table))
    )
    assert torch.equal(plain, shared)


def test_dropout_is_found_after_an_evaluation_without_it():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Dropout(0.5), nn.Linear(32, 2)).double()

        def forward(self, x, t):
            return self.layers(x)

    model, x = sdegen.ScoreModel(Net(), sdegen.CondOT(), "velocity"), torch.randn(6, 2)
    sdegen.log_prob(model, x, sdegen.Adams(12))
    with pytest.raises(ValueError, match="two different answers"):
        sdegen.log_likelihood(model, x, sdegen.Adams(12), differentiable=True)


def test_with_a_source_the_solver_s_error_is_unknown():
    """What an error of the state is worth is told by the score, and a source's is not known; a second solve tells."""
    path = sdegen.Interpolant(source=sdegen.Gaussian([5.0, 5.0], 0.1))
    model = sdegen.ScoreModel(lambda x, t: -x, path, "velocity")
    x = torch.randn(4, 2)
    found = sdegen.log_likelihood(model, x, sdegen.Adams(20), data=x)
    assert found.unknown == ("solver_error",)
    assert found.prior_gap.tolist() == [0.0] * 4  # the path ends in its source
    second = sdegen.log_likelihood(model, x, sdegen.Adams(20), second_solve=True)
    assert second.unknown == ()
    assert second.calls == 21 + 11
    part = sdegen.log_likelihood(model, x, sdegen.Adams(20), u=(0.0, 0.7), prior=path.prior, data=x)
    assert part.prior_gap is None


def test_functions_of_importance_are_handed_copies():
    model = sdegen.Gaussian([0.0, 0.0], 1.0).model(sdegen.CondOT())
    solver = sdegen.ODESolver("rk4", steps=10)
    drawn = [
        sdegen.importance(model, target, 5, shape=(2,), solver=solver, generator=torch.Generator().manual_seed(0))
        for target in (lambda x: -0.5 * x.square().sum(1), lambda x: -0.5 * x.square_().sum(1))
    ]
    assert torch.equal(drawn[0].samples, drawn[1].samples)
    before = drawn[0].samples.clone()
    drawn[0].mean(lambda x: x.zero_())
    assert torch.equal(drawn[0].samples, before)


def test_private_numbers_of_a_network_are_part_of_an_evaluation(tmp_path):
    class Net(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self._factor = factor

        def forward(self, x, t):
            return self._factor * x

    x = torch.randn(5, 2)
    models = [sdegen.ScoreModel(Net(factor), sdegen.CondOT(), "velocity") for factor in (0.1, 0.9)]
    sdegen.evaluate(models[0], x, directory=tmp_path, solver=sdegen.Adams(12))
    with pytest.raises(ValueError, match="belongs to another"):
        sdegen.evaluate(models[1], x, directory=tmp_path, solver=sdegen.Adams(12))


def test_a_class_is_no_solver():
    model = sdegen.Gaussian([0.0, 0.0], 1.0).model(sdegen.CondOT())
    with pytest.raises(TypeError, match="give Adams or an ODESolver"):
        sdegen.log_prob(model, torch.randn(2, 2), sdegen.Adams)
