"""Where guided models meet an end, a rounding, a part of a batch, or a network that hides what they need."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import ring
from steered import LAW, SEEN, STD, A
from torch import nn

import sdegen
from sdegen._arguments import evaluating

VP = sdegen.VPSDE()
HALF = sdegen.Gaussian(torch.zeros(16, dtype=torch.float64), 0.7)


def first(x):
    return x[:, :8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"quantile": 0.9}], ids=["static", "dynamic"])
def test_adaptive_solvers_come_to_clean_data(dtype, options):
    """torchdiffeq asks at the number next to u = 0."""
    clipped = sdegen.Clipped(ring().model(VP), -1.2, 1.2, **options)
    x = torch.randn(16, 2, dtype=dtype)
    fine = sdegen.solve(clipped, x.double(), sdegen.ODESolver("rk4", steps=400)).x
    for method, rtol in (("dopri5", 1e-4), ("dopri8", 1e-5)):
        found = sdegen.solve(clipped, x, sdegen.ODESolver(method, rtol=rtol)).x
        assert float((found - fine).abs().max()) < 0.02


@pytest.mark.parametrize("method", ["mmps", "pigdm", "dps"])
def test_what_is_solved_has_gradients_still(method):
    """A mask is solved in one step: the others must divide nothing by the rounding that is left."""
    observed = [
        sdegen.Observed(HALF.model(VP), first, torch.linspace(-1, 1, 8), 0.1, method, iterations=n) for n in (1, 20)
    ]
    x = torch.randn(4, 16)
    once, often = (sdegen.log_prob(model, x, sdegen.Adams(6)) for model in observed)
    torch.testing.assert_close(once, often, rtol=1e-9, atol=1e-9)
    single = sdegen.log_prob(observed[1], x.float(), sdegen.Adams(6))
    torch.testing.assert_close(single.double(), once, rtol=1e-4, atol=1e-2)


def blocked(x, t):
    with torch.no_grad():
        return torch.tanh(x)


def test_a_network_that_blocks_gradients_is_refused_and_a_constant_one_is_not():
    def constant(x, t):
        return torch.full_like(x, 0.3)

    for network, right in ((blocked, False), (lambda x, t: blocked(x, t).detach(), False), (constant, True)):
        for learns in (False, True):
            net = (lambda x, t, f=network: torch.cat([f(x, t), f(x, t)], 1)) if learns else network
            model = sdegen.ScoreModel(net, sdegen.DDPM.linear(6, 0.05, 0.4), "v", learns_variance=learns)
            solver = sdegen.Ancestral(variance="learned") if learns else sdegen.Adams(3)
            for guided in (
                sdegen.Guided(model, lambda x, t: -x.square().sum(1), of="data"),
                sdegen.Observed(model, A, SEEN, STD),
            ):
                if right:
                    sdegen.sample(guided, (2, 3), solver)
                    continue
                with pytest.raises(ValueError, match="The network blocks gradients"):
                    sdegen.sample(guided, (2, 3), solver)
    sdegen.sample(sdegen.Guided(model, lambda x, t: -x.square().sum(1)), (2, 3), sdegen.Adams(3))


def test_a_weight_may_ask_another_model_without_a_gradient():
    """Only the network that the gradient is taken through must have one."""
    other = sdegen.ScoreModel(lambda x, t: torch.tanh(x), VP)

    def log_weight(x, t):
        with torch.no_grad():
            target = other.denoise(x, t)[0]
        return -(x - target).square().sum(1)

    model, x = LAW.model(VP), torch.randn(4, 3)
    found = sdegen.Guided(model, log_weight, of="data").score(x, 0.5).detach()
    x_hat, u = model.data(x, 0.5).detach(), VP.clock(0.5)
    J = torch.func.vmap(torch.func.jacrev(lambda x: model.data(x[None], 0.5)[0]))(x)
    pull = -2 * (x_hat - other.denoise(x_hat, 0.5)[0])
    torch.testing.assert_close(found, model.score(x, 0.5) + (J.mT @ pull[..., None]).squeeze(-1))
    assert 0 < float(u) < 1


def seen_by(net_seen):
    def net(x, t, label, table):
        net_seen.append(tuple(table.shape))
        return torch.tanh(x + label[:, None])

    return sdegen.ScoreModel(net, sdegen.DDPM.linear(4, 0.05, 0.4))


def test_what_is_shared_stays_single_inside_two_wrappers_and_in_every_part():
    shapes = []
    model = seen_by(shapes)
    cfg = sdegen.ClassifierFree(model, 2.0, {"label": 0})
    label = torch.arange(5)
    sdegen.ClassifierFree(cfg, 1.5, {"label": 0}).eps(
        torch.randn(5, 2), 0.5, {"label": label, "table": sdegen.Shared(torch.randn(10, 2))}
    )
    assert shapes == [(10, 2)]
    shapes.clear()
    sdegen.vlb(cfg, torch.randn(5, 2), steps=3, batch_size=2, cond={"label": label, "table": torch.randn(2, 2)})
    assert set(shapes) == {(2, 2)}
    rows = sdegen.Shared(torch.arange(5))  # named all the same: it is doubled
    model = sdegen.ScoreModel(lambda x, t, label: torch.tanh(x + label[:, None]), VP)
    x = torch.randn(5, 2)
    found = sdegen.ClassifierFree(model, 2.0, {"label": 0}).eps(x, 0.5, {"label": rows})
    plain = sdegen.ClassifierFree(model, 2.0, {"label": 0}).eps(x, 0.5, {"label": label})
    torch.testing.assert_close(found, plain)


def test_entries_of_a_mapping_are_named_and_a_number_stands_for_all():
    seen = []
    model = sdegen.ScoreModel(lambda x, t, added: seen.append(added["text"]) or x, VP)
    x, cond = torch.randn(2, 2), {"added": {"text": torch.ones(2, 3)}}
    sdegen.ClassifierFree(model, 5.0, {"added": 0.0}).eps(x, 0.5, cond)
    torch.testing.assert_close(seen[0], torch.cat([torch.ones(2, 3), torch.zeros(2, 3)]))
    with pytest.raises(ValueError, match=r"without names the condition \"?'?added.*txt.* and cond holds \['text'\]"):
        sdegen.ClassifierFree(model, 5.0, {"added": {"txt": 0.0}}).eps(x, 0.5, cond)
    with pytest.raises(ValueError, match="without names no condition"):
        sdegen.ClassifierFree(model, 5.0, {"added": {}})


@pytest.mark.parametrize(
    ("value", "none", "kind", "words"),
    [
        (torch.arange(2), torch.tensor(0.5), TypeError, "holds torch.int64, and what stands for none torch.float"),
        (torch.arange(2), True, TypeError, "must be a number or a tensor, and it is True"),
        (torch.zeros(2, dtype=torch.uint8), 300, ValueError, "holds torch.uint8, and 300"),
        (torch.zeros(2), math.nan, ValueError, "and nan, which stands for none, is none"),
        (torch.zeros(2, dtype=torch.bool), 2, ValueError, "holds torch.bool, and 2"),
    ],
)
def test_what_cannot_stand_for_none_is_refused(value, none, kind, words):
    guided = sdegen.ClassifierFree(sdegen.ScoreModel(lambda x, t, c: x, VP), 2.0, {"c": none})
    with pytest.raises(kind, match=words):
        guided.eps(torch.randn(2, 2), 0.5, {"c": value})


@pytest.mark.parametrize(
    ("value", "none"),
    [(torch.ones(2, dtype=torch.bool), False), (torch.arange(2), np.int64(7)), (torch.ones(2), np.float32(0.5))],
)
def test_masks_and_numbers_of_numpy_may(value, none):
    seen = []
    model = sdegen.ScoreModel(lambda x, t, c: seen.append(c) or x, VP)
    sdegen.ClassifierFree(model, 2.0, {"c": none}).eps(torch.randn(2, 2), 0.5, {"c": value})
    assert seen[0].tolist() == [*value.tolist(), none, none]


def test_conditions_may_come_from_inference_mode():
    net = nn.Linear(3, 3)
    inner = sdegen.ScoreModel(lambda x, t, label, table: net(x + label[:, None]) + table, VP)
    guided = sdegen.Guided(inner, lambda x, t, **_: -x.square().sum(1), of="data")
    x = torch.randn(2, 3)
    with torch.inference_mode():
        cond = {"label": torch.ones(2), "table": sdegen.Shared(torch.ones(3))}
        found = sdegen.solve(guided, x, sdegen.Adams(3), cond=cond).x.clone()
        logp = sdegen.log_prob(guided, x, sdegen.Adams(3), cond=cond, check=False)
    own = {"label": torch.ones(2), "table": torch.ones(3)}
    torch.testing.assert_close(found.clone(), sdegen.solve(guided, x, sdegen.Adams(3), cond=own).x)
    torch.testing.assert_close(logp.clone(), sdegen.log_prob(guided, x, sdegen.Adams(3), cond=own))


def test_rescaling_leaves_alone_what_has_no_deviation():
    """An event of one value, and an answer that is constant over the event."""
    for event, predicts in ((1, "v"), (3, "data")):
        model = sdegen.ScoreModel(lambda x, t, label: 0 * x + label[:, None], VP, predicts)
        x, t, label = torch.randn(4, event), 0.5, torch.ones(4)
        ours, plain = (
            sdegen.ClassifierFree(model, 3.0, {"label": 0.0}, rescale=r).data(x, t, {"label": label}) for r in (1, 0)
        )
        torch.testing.assert_close(ours, plain)


def test_a_scale_of_another_shape_or_not_finite_is_refused():
    model = LAW.model(VP)
    for scale, kind, words in (
        (lambda u: torch.ones(3), ValueError, r"scale\(u\) must be shaped like u, \(\), and it is \(3,\)"),
        (lambda u: u * math.nan, ValueError, r"scale\(u\) must be finite, and it is nan at u = 0.9"),
        (lambda u: None, TypeError, r"scale\(u\) must be a real number"),
        (lambda u: math.inf, ValueError, r"scale\(u\) must be a finite number"),
    ):
        with pytest.raises(kind, match=words):
            sdegen.sample(sdegen.Guided(model, lambda x, t: x.sum(1), scale), (2, 3), sdegen.Adams(2))


def test_small_values_are_left_alone_by_dynamic_thresholding():
    """s is at least 1: nothing inside the range is stretched."""
    law = sdegen.Gaussian(torch.zeros(20), 0.1)
    x, t = 0.1 * torch.randn(3, 20), torch.tensor([1e-4, 1e-3, 1e-2])
    for dtype in (torch.float32, torch.float64):
        model = law.model(VP)
        ours, own = (m.data(x.to(dtype), t.to(dtype)) for m in (sdegen.Clipped(model, -1, 1, quantile=0.5), model))
        torch.testing.assert_close(ours, own)


def test_the_clocks_are_those_of_the_model_inside():
    high = VP.ends[1]
    guided = sdegen.Guided(LAW.model(VP), lambda x, t: x.sum(1))
    assert sdegen.Guided(sdegen.ScoreModel(lambda x, t: x, VP).on(sdegen.CondOT()), guided.log_weight).clocks[1] == high


def test_a_weight_sees_one_time_per_row():
    shapes = []

    def log_weight(x, t):
        shapes.append((t.shape, t.dtype))
        return x.sum(1) * t

    sdegen.sample(sdegen.Guided(LAW.model(VP), log_weight), (4, 3), sdegen.Adams(2), dtype=torch.float32)
    assert shapes == [((4,), torch.float32)] * 2


def test_an_observation_follows_the_states_precision_and_may_be_of_one_number():
    observed = sdegen.Observed(LAW.model(VP), A, SEEN, STD)
    single = sdegen.sample(observed, (2, 3), sdegen.Adams(3), dtype=torch.float32)
    assert single.dtype == torch.float32
    module, x = nn.Linear(3, 2).float(), torch.randn(2, 3)
    by_module = sdegen.Observed(LAW.model(VP), module, SEEN, STD).eps(x, 0.5)
    by_rows = sdegen.Observed(LAW.model(VP), module.weight, SEEN - module.bias.detach().double(), STD).eps(x, 0.5)
    assert by_module.dtype == torch.float64
    torch.testing.assert_close(by_module, by_rows, rtol=1e-5, atol=1e-5)
    scalar = sdegen.Observed(LAW.model(VP), lambda x: x[:, 0], torch.tensor(0.7), STD)
    row = sdegen.Observed(LAW.model(VP), torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0.7]), STD)
    torch.testing.assert_close(scalar.eps(x, 0.5), row.eps(x, 0.5))
    assert observed.eps(torch.empty(0, 3), 0.5).shape == (0, 3)


def test_an_operator_without_a_gradient_is_refused():
    for operator in (lambda x: x[:, :2].detach(), lambda x: torch.zeros(len(x), 2)):
        with pytest.raises(ValueError, match="A blocks gradients, or does not look at the event"):
            sdegen.Observed(LAW.model(VP), operator, SEEN, STD).eps(torch.randn(2, 3), 0.5)


class Attending(nn.Module):
    """Fused attention over an event of 4 tokens of 2 numbers, in single precision."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(2, 6).float()

    def forward(self, x, t=None):
        q, k, v = self.mix(x.reshape(len(x), 4, 2)).chunk(3, -1)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return out.reshape(x.shape)


@pytest.mark.parametrize("kind", ["of data", "mmps", "operator"])
def test_attention_is_differentiated_twice(kind):
    """In the network or in A: densities and gradients of a guided solve."""
    net, half = Attending(), torch.eye(8)[:3]
    model = sdegen.ScoreModel(net, VP, "v")
    guided = {
        "of data": lambda: sdegen.Guided(model, lambda x, t: -x.square().sum(1), of="data"),
        "mmps": lambda: sdegen.Observed(model, half, torch.zeros(3), 0.5),
        "operator": lambda: sdegen.Observed(model, net, torch.zeros(8), 0.5, iterations=2),
    }[kind]().float()
    x, found = torch.randn(2, 8).float(), []
    for dtype in (torch.float32, torch.float64):  # in double precision attention has no fused kernel on the CPU
        start = x.to(dtype).requires_grad_(True)
        guided = guided.to(dtype)
        end = sdegen.solve(guided, start, sdegen.Adams(3), differentiable=True, u=(0.8, 0.1)).x
        (slope,) = torch.autograd.grad(end.square().sum(), start)
        logp = sdegen.log_prob(guided, x.to(dtype), sdegen.Adams(4), u=(0.1, 0.8))
        found.append(torch.cat([slope.flatten(), logp]).double())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6 cannot switch it off")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_gives_every_backward_pass():
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    class Timeless(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x)

    plain, x = Timeless(), torch.randn(2, 3)
    made = torch.compile(plain, backend="aot_eager")
    ends = [
        sdegen.solve(sdegen.Observed(sdegen.ScoreModel(n, VP), A, SEEN, STD), x, sdegen.Adams(3)).x
        for n in (made, plain)
    ]
    torch.testing.assert_close(*ends)


def test_nothing_that_is_kept_has_a_graph():
    chain = sdegen.DDPM.linear(6, 0.05, 0.4)
    net = nn.Linear(3, 6)
    guided = sdegen.Guided(
        sdegen.ScoreModel(lambda x, t: net(x), chain, learns_variance=True), lambda x, t: x.sum(1), of="data"
    )
    y, one = torch.randn(2, 3), torch.tensor([0.5], dtype=torch.float64)
    (query,) = guided.plan(y, one, None, -one / one, one / one)
    with torch.no_grad():
        for part in guided.estimate_with_variance(y, query, {}):
            assert not part.requires_grad


def test_a_hidden_classifier_in_training_mode_is_told_of():
    classifier = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5))
    guided = sdegen.Guided(LAW.model(VP), lambda x, t: classifier(x)[:, 0])
    with pytest.warns(UserWarning, match="log_weight is a function that hides Sequential"), evaluating(guided):
        pass
    observed = sdegen.Observed(LAW.model(VP), lambda x: classifier(x), torch.zeros(1), 0.1)
    with pytest.warns(UserWarning, match="A is a function that hides Sequential"), evaluating(observed):
        pass


def test_single_precision_s_own_end_is_an_end():
    """torch.linspace(path.ends[1], 0, n) is 3e-8 beyond it."""
    beyond = float(torch.tensor(VP.ends[1], dtype=torch.float32))
    assert beyond > VP.ends[1]
    x = torch.randn(3, 3)
    ends = [sdegen.solve(LAW.model(VP), x, sdegen.Adams(4), u=(high, 0.0)).x for high in (beyond, VP.ends[1])]
    torch.testing.assert_close(*ends, rtol=0, atol=0)
