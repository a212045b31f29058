"""What is refused of chains and their solvers, before the network is asked."""

from __future__ import annotations

import math

import pytest
import torch
from chains import Counting

import sdegen

CALLS = Counting()

CHAIN = sdegen.DDPM.linear(20, 1e-2, 0.3)

MODEL = sdegen.ScoreModel(CALLS, CHAIN)

X = torch.zeros(3, 2, dtype=torch.float64)


def generators(n):
    return [torch.Generator().manual_seed(i) for i in range(n)]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: sdegen.DDPM([]), ValueError, "1-D"),
        (lambda: sdegen.DDPM(torch.zeros(2, 3) + 0.1), ValueError, r"\(2, 3\)"),
        (lambda: sdegen.DDPM(torch.tensor(0.1)), ValueError, "1-D"),
        (lambda: sdegen.DDPM([0.1, -0.2]), ValueError, r"betas\[1\] is -0.2"),
        (lambda: sdegen.DDPM([0.1, 0.0]), ValueError, r"betas\[1\] is 0"),
        (lambda: sdegen.DDPM([0.1, 1.0, 2.0]), ValueError, r"betas\[1\] is 1"),
        (lambda: sdegen.DDPM([math.nan, 0.1]), ValueError, r"betas\[0\] is nan"),
        (lambda: sdegen.DDPM([0.1], smooth=1), TypeError, "smooth"),
        (lambda: sdegen.DDPM.linear(0), ValueError, "0"),
        (lambda: sdegen.DDPM.linear(10, 0.0, 0.1), ValueError, "beta_start"),
        (lambda: sdegen.DDPM.linear(10, 0.1, 1.0), ValueError, "beta_end"),
        (lambda: sdegen.DDPM.cosine(10, max_beta=1.0), ValueError, "max_beta"),
        (lambda: sdegen.DDPM.cosine(2.5), TypeError, "2.5"),
        (lambda: sdegen.DDPM.from_path(sdegen.CondOT(), 10), ValueError, "CondOT"),
        (lambda: sdegen.DDPM.from_path(sdegen.SubVPSDE(), 10), ValueError, "SubVPSDE"),
        (lambda: sdegen.DDPM.from_path(sdegen.VESDE(), 10), ValueError, "VESDE"),
        (lambda: sdegen.DDPM.from_path(sdegen.CosineVPSDE(), 10), ValueError, "max_beta"),
        (lambda: sdegen.DDPM.from_path(sdegen.VPSDE(0.1, 140.0), 1), ValueError, "max_beta"),
        (lambda: sdegen.DDPM.from_path(sdegen.VPSDE(), 0), ValueError, "0"),
        (lambda: CHAIN.respaced(21), ValueError, "21"),
        (lambda: CHAIN.respaced(0), ValueError, "0"),
        (lambda: CHAIN.respaced(5, "linspace"), ValueError, "'linspace'"),
        (lambda: CHAIN.index("3"), TypeError, "'3'"),
        (lambda: CHAIN.index(torch.tensor([3])), TypeError, "int64"),
        (lambda: sdegen.ChainTimes(0), ValueError, "0"),
        (lambda: sdegen.ChainTimes(2.0), TypeError, "2.0"),
        (lambda: sdegen.DDIM(0), ValueError, "0"),
        (lambda: sdegen.DDIM(10, eta=-0.1), ValueError, "-0.1"),
        (lambda: sdegen.DDIM(10, eta=1.5), ValueError, "1.5"),
        (lambda: sdegen.DDIM(10, eta=math.nan), ValueError, "nan"),
        (lambda: sdegen.DDIM(10, 0.5), TypeError, "positional"),
        (lambda: sdegen.Ancestral(10, "posterior"), TypeError, "positional"),
        (lambda: sdegen.ScoreModel(CALLS, CHAIN, learns_variance=1), TypeError, "learns_variance"),
    ],
)
def test_bad_options(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: sdegen.loss(MODEL, X, t=1.5), ValueError, "1.5"),
        (lambda: sdegen.loss(MODEL, X, t=-0.1), ValueError, "-0.1"),
        (lambda: sdegen.loss(MODEL, X, t=torch.tensor([0.1, 0.5, 2.0])), ValueError, "0.1, 2"),
        (lambda: sdegen.loss(MODEL, X, t=math.nan), ValueError, "nan"),
        (lambda: MODEL(X, 1.01), ValueError, "1.01"),
        (lambda: MODEL(X, -0.01), ValueError, "-0.01"),
        (lambda: MODEL.eps(X, 7.0), ValueError, "7"),
        (lambda: MODEL.score(X, torch.tensor([0.1, 0.2, 1.2])), ValueError, "1.2"),
        (lambda: MODEL.data(X, -1.0), ValueError, "-1"),
        (lambda: MODEL.v(X, math.inf), ValueError, "inf"),
        (lambda: MODEL.velocity(X, 1.5), ValueError, "1.5"),
        (lambda: sdegen.Gaussian([0.0, 0.0], 1.0).model(CHAIN).eps(X, 1.5), ValueError, "1.5"),
        (lambda: sdegen.solve(MODEL, X, sdegen.Ancestral(variance="learned")), ValueError, "learns_variance"),
        (
            lambda: sdegen.solve(MODEL, X, sdegen.Ancestral(variance="optimal"), generator=generators(3)),
            ValueError,
            "optimal_variance",
        ),
        (
            lambda: sdegen.sample(MODEL, (3, 2), sdegen.Ancestral(variance="optimal"), generator=generators(3)),
            ValueError,
            "optimal_variance",
        ),
        (lambda: sdegen.solve(MODEL, X, sdegen.Ancestral(variance=torch.ones(19))), ValueError, "20.*19"),
        (lambda: sdegen.solve(MODEL, X, sdegen.DDIM(grid=CHAIN.respaced(5)[:])), ValueError, "grid runs"),
        (lambda: sdegen.solve(MODEL, X, sdegen.DDIM(), to="noise"), ValueError, "DDIM"),
        (lambda: sdegen.solve(MODEL, X, sdegen.DDIM(eta=0.5), noise=torch.zeros(19, 3, 2)), ValueError, "noise"),
        (
            lambda: sdegen.solve(sdegen.ScoreModel(CALLS, sdegen.VPSDE()), X, sdegen.DDIM()),
            ValueError,
            "DDIM needs steps",
        ),
        (
            lambda: sdegen.loss(sdegen.ScoreModel(CALLS, sdegen.VPSDE()), X, times=sdegen.ChainTimes()),
            ValueError,
            "ChainTimes needs steps",
        ),
        (lambda: sdegen.encode(MODEL, X, sdegen.DDIM()), TypeError, "DDIM"),
        (lambda: sdegen.log_prob(MODEL, X, sdegen.DDIM()), TypeError, "DDIM"),
    ],
)
def test_bad_input_is_refused_before_the_network_is_asked(call, error, says):
    CALLS.calls = 0
    with pytest.raises(error, match=says):
        call()
    assert CALLS.calls == 0
