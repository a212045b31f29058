"""What discrete_log_prob refuses, in a sentence and before the first network call."""

from __future__ import annotations

import math

import pytest
import torch

import sdegen

Q = sdegen.Quantized(16)
N = torch.arange(6).reshape(3, 2)


def never(x, t):
    raise AssertionError("the network was called")


MODEL = sdegen.ScoreModel(never, sdegen.CondOT(), "velocity")


class Given:
    """A dequantiser that returns what it was given."""

    def __init__(self, *drawn):
        self.drawn = drawn if len(drawn) > 1 else drawn[0]

    def sample(self, n, generator=None):
        return self.drawn


U, LOG_R = torch.full((3, 2), 0.5), torch.zeros(3)
CASES = {
    "model": ({"model": 3}, TypeError, "model must be a ScoreModel.* it is 3"),
    "n list": ({"n": [[1, 2]]}, TypeError, "n must be a tensor of whole numbers, and this is list"),
    "n bool": ({"n": N > 1}, TypeError, "whole numbers, and this is dtype torch.bool"),
    "n complex": ({"n": N * 1j}, TypeError, "whole numbers, and this is dtype torch.complex"),
    "n off the levels": ({"n": N + 11}, ValueError, "whole numbers from 0 to 15, and one value is 16.0"),
    "n not whole": ({"n": N + 0.25}, ValueError, "one value is 0.25; Quantized.quantise turns real numbers into whole"),
    "n nan": ({"n": N * math.nan}, ValueError, "one value is nan"),
    "n without batch": ({"n": N[0]}, ValueError, "n must have shape .* not \\(2,\\)"),
    "quantized": ({"quantized": 16}, TypeError, "quantized must be a Quantized, such as Quantized\\(256\\), .* is 16"),
    "decoder": ({"quantized": Q.decoder}, TypeError, "quantized must be a Quantized.* it is Discretized"),
    "draws 0": ({"draws": 0}, ValueError, "draws must be at least 1, and it is 0"),
    "draws 2.0": ({"draws": 2.0}, TypeError, "draws must be an integer, and 2.0 is float"),
    "draws True": ({"draws": True}, TypeError, "draws must be an integer, and True is bool"),
    "probes": ({"solver": sdegen.Hutchinson(2)}, TypeError, "needs the exact trace, and Hutchinson\\(probes=2\\) est"),
    "trace": ({"trace": sdegen.Hutchinson(2)}, TypeError, "unexpected keyword argument 'trace'"),
    "sde": ({"solver": sdegen.SDESolver("euler", 8)}, TypeError, "Only the ODE can be solved both ways"),
    "solver": ({"solver": "rk4"}, TypeError, "give Adams or an ODESolver, not 'rk4'"),
    "cond": ({"cond": [1]}, TypeError, "cond must be a mapping"),
    "cond list": ({"cond": {"y": [1, 2, 3]}, "draws": 2, "batch_size": 2}, TypeError, "cond\\['y'\\] is a list"),
    "generator": ({"generator": 5}, TypeError, "generator must be a torch.Generator.*5 is int"),
    "generators": ({"generator": [torch.Generator()]}, ValueError, "A batch of 3 needs 3 generators"),
    "batch_size": ({"batch_size": 0}, ValueError, "batch_size must be at least 1, and it is 0"),
    "dequantiser": ({"dequantiser": 4}, TypeError, "dequantiser must have a method sample.* and 4 has none"),
    "one tensor": ({"dequantiser": Given(U)}, TypeError, "must return two tensors"),
    "u wide": ({"dequantiser": Given(U[:, :1], LOG_R)}, ValueError, "u of shape \\(3, 2\\).*they have \\(3, 1\\)"),
    "log r wide": (
        {"dequantiser": Given(U, U)},
        ValueError,
        "of shape \\(3,\\), and they have \\(3, 2\\) and \\(3, 2\\)",
    ),
    "u one": ({"dequantiser": Given(2 * U, LOG_R)}, ValueError, "u in \\[0, 1\\), and one value is 1.0"),
    "u negative": ({"dequantiser": Given(-U, LOG_R)}, ValueError, "u in \\[0, 1\\), and one value is -0.5"),
    "u nan": ({"dequantiser": Given(U * math.nan, LOG_R)}, ValueError, "u in \\[0, 1\\), and one value is nan"),
    "log r": ({"dequantiser": Given(U, LOG_R - math.inf)}, ValueError, "a finite log r"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_before_the_first_network_call(case):
    options, error, message = CASES[case]
    with pytest.raises(error, match=message) as caught:
        sdegen.discrete_log_prob(**({"model": MODEL, "n": N, "quantized": Q} | options))
    assert case == "trace" or str(caught.value).endswith(".")


@pytest.mark.parametrize("verb", [sdegen.log_prob, sdegen.encode, sdegen.loss])
def test_whole_numbers_are_no_data_of_a_density(verb):
    with pytest.raises(TypeError, match=r"int64.* Quantized\(levels\).dequantise\(n\)"):
        verb(MODEL, N)


def test_a_random_network_is_refused():
    noisy = sdegen.ScoreModel(lambda x, t: x + torch.randn_like(x), sdegen.CondOT(), "velocity")
    with pytest.raises(ValueError, match="two different answers to one question"):
        sdegen.discrete_log_prob(noisy, N, Q, draws=4, solver=sdegen.ODESolver("rk4", steps=4))
