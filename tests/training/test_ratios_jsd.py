"""The Jensen-Shannon divergence by a logit: exact where it can be, calibrated where it is drawn, a bound elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from classified import FAKE, JSD, JSD_OF_NORMALS, REAL, P, Q, jsd_by_quadrature, of_state
from torch import nn

import sdegen


def normals(mu, n, m):
    """n draws of N(mu, 1), m of N(0, 1), and the logit of the first."""
    return torch.randn(n, 1) + mu, torch.randn(m, 1), lambda x: mu * (x[:, 0] - 0.5 * mu)


@pytest.mark.parametrize("mu", JSD_OF_NORMALS)
def test_two_normals(mu):
    expected = JSD_OF_NORMALS[mu]
    assert jsd_by_quadrature(0.0, 1.0, mu, 1.0) == pytest.approx(expected, abs=1e-10)
    real, fake, logit = normals(mu, 200_000, 150_000)
    found = sdegen.jsd(logit, real, fake)
    assert abs(float(found.value) - expected) < 4 * float(found.standard_error) < 0.01
    loss = sdegen.ratio_loss(logit, real[:150_000], fake)  # log 2 - JSD at the optimum
    assert abs(math.log(2) - float(loss) - expected) < 4.2 * float(found.standard_error)


def test_the_standard_error_is_the_spread_of_the_estimate():
    found = [sdegen.jsd(logit, real, fake) for real, fake, logit in (normals(1.0, 300, 900) for _ in range(1000))]
    values, errors = (torch.stack(column) for column in zip(*found, strict=True))
    assert float(errors.mean() / values.std()) == pytest.approx(1, abs=0.1)  # 4 standard errors of a deviation
    assert abs(float(values.mean()) - JSD_OF_NORMALS[1.0]) < 4 * float(values.std()) / 1000**0.5


def test_on_three_states_it_is_exact_and_less_for_any_other_logit():
    exact = sdegen.jsd(of_state((P / Q).log()), REAL, FAKE)
    assert float(exact.value) == pytest.approx(JSD, abs=1e-15)
    for _ in range(20):
        T = (P / Q).log() + torch.randn(3)
        found = sdegen.jsd(of_state(T), REAL, FAKE)
        assert float(found.value) < JSD
        assert float(found.value) == pytest.approx(math.log(2) - float(sdegen.ratio_loss(of_state(T), REAL, FAKE)))


def test_laws_without_a_common_point_are_log_2_apart():
    x = torch.rand(50, 2)
    for infinite in (math.inf, 1e4):
        found = sdegen.jsd(lambda x: infinite * x[:, 0].sign(), x, -x)  # noqa: B023
        assert float(found.value) == pytest.approx(math.log(2), abs=1e-15)
        assert float(found.standard_error) == 0


def test_a_single_draw_has_no_standard_error():
    found = sdegen.jsd(lambda x: x.sum(1), torch.zeros(1, 2), torch.zeros(3, 2))
    assert float(found.value) == pytest.approx(0, abs=1e-15)
    assert math.isnan(found.standard_error)


def test_a_module_is_asked_in_eval_mode_without_a_graph():
    class Logit(nn.Sequential):
        def forward(self, x):
            assert not self.training
            assert not torch.is_grad_enabled()
            return super().forward(x)[:, 0]

    net = Logit(nn.Linear(2, 1), nn.Dropout(0.5)).float()
    found = sdegen.jsd(net, torch.randn(5, 2), torch.randn(7, 2))
    assert net.training
    assert found.value.dtype is torch.float64
    assert not found.value.requires_grad
    assert all(number.shape == () for number in found)
