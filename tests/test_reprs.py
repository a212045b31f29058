"""Models and what the verbs return print in one line: what they are and their shapes, never layers nor numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import sdegen

NET = "ScoreModel(Linear with 6 parameters, VPSDE(beta_min=0.1, beta_max=20.0), predicts='v')"


class Linear(nn.Linear):
    def forward(self, x, t):
        return super().forward(x)


def velocity(x, t):
    return x


def score_model():
    return sdegen.ScoreModel(Linear(2, 2), sdegen.VPSDE(), "v")


def exact(path=None):
    return sdegen.Gaussian(torch.zeros(2), 0.5).model(path or sdegen.CondOT())


def with_learned_variance():
    return sdegen.ScoreModel(nn.Conv2d(1, 2, 3), sdegen.DDPM.linear(20), learns_variance=True)


def lazy():
    return sdegen.ScoreModel(nn.LazyLinear(2), sdegen.CondOT(), "velocity")


MODELS = [
    (score_model, NET),
    (
        lambda: sdegen.ScoreModel(velocity, sdegen.CondOT(), "velocity"),
        "ScoreModel(velocity, CondOT(sigma_min=0.0), predicts='velocity')",
    ),
    (
        with_learned_variance,
        "ScoreModel(Conv2d with 20 parameters, DDPM(20 betas from 0.0001 to 0.02), predicts='eps', "
        "learns_variance=True)",
    ),
    (lazy, "ScoreModel(LazyLinear with 0 parameters, CondOT(sigma_min=0.0), predicts='velocity')"),
    (exact, "ExactModel(Gaussian(event (2,)), CondOT(sigma_min=0.0))"),
    (
        lambda: sdegen.GaussianMixture(torch.zeros(3, 4), 1.0).model(sdegen.VESDE()),
        "ExactModel(GaussianMixture(3 components, event (4,)), VESDE(sigma_min=0.01, sigma_max=50.0))",
    ),
    (
        lambda: sdegen.ClassifierFree(score_model(), 2, {"label": None}),
        f"ClassifierFree({NET}, scale=2.0, rescale=0.0)",
    ),
    (
        lambda: sdegen.Clipped(score_model(), -1, 1, quantile=0.9),
        f"Clipped({NET}, low=-1.0, high=1.0, quantile=0.9, most=inf)",
    ),
    (lambda: sdegen.Guided(score_model(), lambda x, t: x.sum(1)), f"Guided({NET}, scale=1.0, of='x_t')"),
    (lambda: sdegen.Observed(score_model(), torch.ones(1, 2), torch.zeros(5, 1), 0.25), f"Observed({NET}, std=0.25)"),
    (lambda: score_model().on(sdegen.CondOT()), f"OnPath({NET}, path=CondOT(sigma_min=0.0))"),
    (
        lambda: sdegen.Clipped(sdegen.Clipped(score_model(), -1, 1), 0, 1),
        f"Clipped(Clipped({NET}, low=-1.0, high=1.0, quantile=None, most=inf), low=0.0, high=1.0, quantile=None, "
        "most=inf)",
    ),
]


@pytest.mark.parametrize(("make", "says"), MODELS, ids=[says[:30] for _, says in MODELS])
def test_a_model_is_one_line(make, says):
    assert repr(make()) == str(make()) == says


def test_a_network_still_shows_its_layers():
    assert "Linear(in_features=2, out_features=2, bias=True)" in repr(score_model().net)


def outcome(name):
    """What a verb returns, and how it prints."""
    x, solver = torch.randn(5, 2), sdegen.Adams(8)
    chain = exact(sdegen.DDPM.linear(5))
    if name == "Solution":
        return sdegen.solve(exact(), x, solver, trajectory=True), (
            "Solution(x=Tensor(5, 2), trajectory=Tensor(9, 5, 2), t=Tensor(9,), u=Tensor(9,), calls=8, accepted=8, "
            "rejected=0, y=Tensor(5, 2))"
        )
    if name == "LogLikelihood":
        return sdegen.log_likelihood(exact(), x, sdegen.ODESolver("rk4", 2), trace=sdegen.Hutchinson(1)), (
            "LogLikelihood(log_prob=Tensor(5,), latent=Tensor(5, 2), prior_gap=Tensor(5,), calls=8, accepted=2, "
            "rejected=0)"
        )
    if name == "VLB":
        found = sdegen.vlb(chain, x)
        ends = f"u=({found.u[0]:.6g}, {found.u[1]:.6g}), sigma=0.01"
        return found, f"VLB(prior=Tensor(5,), transitions=Tensor(5, 4), decoder=Tensor(5,), size=2, {ends})"
    if name == "IWAE":
        return sdegen.iwae(chain, x, samples=3), "IWAE(log_weights=Tensor(5, 3), size=2)"
    if name == "DiscreteLogProb":
        levels = torch.zeros(5, 2, dtype=torch.long)
        return sdegen.discrete_log_prob(exact(), levels, sdegen.Quantized(4), solver=sdegen.ODESolver("rk4", 2)), (
            "DiscreteLogProb(log_weights=Tensor(5, 1), size=2"
        )
    found = sdegen.importance(exact(), lambda x: -x.square().sum(1), 6, shape=(2,), solver=sdegen.ODESolver("rk4", 2))
    return found, "Importance(samples=Tensor(6, 2), log_weights=Tensor(6,))"


@pytest.mark.parametrize("name", ["Solution", "LogLikelihood", "VLB", "IWAE", "DiscreteLogProb", "Importance"])
def test_what_a_verb_returns_is_one_line(name):
    found, says = outcome(name)
    assert isinstance(found, getattr(sdegen, name))
    assert repr(found).startswith(says)
    assert repr(found).count("\n") == 0


def test_conditions_too():
    assert repr(sdegen.Shared(torch.zeros(100, 3))) == "Shared(value=Tensor(100, 3))"
    assert repr(sdegen.Shared("text")) == "Shared(value='text')"


def test_every_returned_value_with_tensors_has_a_short_repr():
    """One that is added later and forgets it would print its numbers."""
    for name in sdegen.__all__:
        kind = getattr(sdegen, name)
        if dataclasses.is_dataclass(kind) and "Tensor" in {str(f.type) for f in dataclasses.fields(kind)}:
            own = kind.__repr__.__qualname__
            assert own in ("summary", "Evaluation.__repr__") or issubclass(kind, sdegen.Solver), name
