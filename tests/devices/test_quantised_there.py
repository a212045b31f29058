"""Quantised data on the pretend device: the numbers of the CPU, no wait for a value, NaN where a value is no level."""

from __future__ import annotations

import torch
from cases import PATHS, few, network, same
from pretend import counted, held, put

import sdegen

Q = sdegen.Quantized(9, -4.5, 4.5)
N = torch.tensor([[0.0, 8.0], [3.0, 4.0], [5.0, 2.0], [4.0, 4.0]])


def two_step(n):
    return sdegen.ODESolver("midpoint", steps=n)


class Tilted:
    def sample(self, n, generator=None):
        u = torch.full_like(n, 0.5).sqrt()
        return u, (2 * u).log().sum(1)


def test_the_bound_of_several_draws():
    for options in ({}, {"batch_size": 3}, {"batch_size": 8}, {"dequantiser": Tilted()}):

        def call(m, n, steps=4, options=options):
            return sdegen.discrete_log_prob(m, n, Q, draws=2, solver=two_step(steps), **options).log_weights

        same(call, network(PATHS["vp"]), N)
    model, n = put(network(PATHS["vp"])), put(N)
    few(lambda steps: sdegen.discrete_log_prob(model, n, Q, draws=2, solver=two_step(steps), batch_size=8))


def test_to_and_fro_nobody_waits():
    same(lambda m, n: (Q.dequantise(n), Q.centre(n), Q.quantise(1.1 * n)), torch.nn.Identity(), N)
    n = put(N)
    y, waits = counted(lambda: Q.quantise(Q.dequantise(n)))
    assert not waits, dict(waits)
    assert torch.equal(held(y), N)


def test_what_is_no_level_is_nan_there():
    n = put(torch.tensor([[0.5, 1.0], [9.0, -1.0]]))
    y, waits = counted(lambda: Q.centre(n))
    assert held(y).isnan().tolist() == [[True, False], [True, True]]
    assert not waits
