"""Isotropic components by matrix products: the law is that of the sums, and float32 keeps the digits that they keep.

The same mixture with its deviations written out per axis is summed up component by component: the law to compare with.
"""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from pretend import counted, held, put
from problems import PATHS
from torch.utils._python_dispatch import TorchDispatchMode

import sdegen


def by_products(mixture):
    return mixture._products(torch.zeros(1, dtype=torch.float64)) is not None


def pair(means, stds, weights=None):
    """(by products, by sums), one law."""
    K, d = means.shape
    each = torch.as_tensor(stds, dtype=torch.float64).expand(K)
    fast = sdegen.GaussianMixture(means, stds, weights)
    slow = sdegen.GaussianMixture(means, each[:, None].expand(K, d).clone(), weights)
    assert by_products(fast)
    assert not by_products(slow)
    return fast, slow


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sphere(K, d, radius, seed=0):
    x = normal(K, d, seed=seed)
    return radius * x / x.norm(dim=1, keepdim=True)


def even(low, high, n):
    return torch.linspace(low, high, n, dtype=torch.float64)


WEIGHTS = even(1.0, 3.0, 64)
CASES = {
    "plain": (normal(64, 16), 0.3, None),
    "its own deviation each": (normal(64, 16), 10 ** even(-2.0, 0.5, 64), WEIGHTS),
    "narrow, far out": (sphere(64, 16, 10.0), 0.01, WEIGHTS),
    "narrow and close together, far out": (10 + 0.02 * normal(64, 16), 0.01, WEIGHTS),
    "far from the origin": (1000 + normal(64, 16), 0.3, None),
    "many in the plane": (10 * normal(1000, 2), 0.01, None),
    "wide apart": (100 * normal(64, 16), even(0.01, 1.0, 64), None),
}
every_case = pytest.mark.parametrize("name", CASES)


def asked(model, y, u, c=-1.0, d=1.0):
    """The slope, or c x_hat + d eps_hat, at one clock or one per sample."""
    u = torch.as_tensor(u, dtype=torch.float64)
    c, d = (torch.full_like(u.reshape(-1), n) for n in (c, d))
    plan = model.plan(y, u.reshape(-1), None, c, d)
    query = plan.rows(slice(None), y) if u.ndim else plan[0]
    return model.estimate(y, query, {})


def states(mixture, u, n=32):
    """States whose law is that of y at the clock u."""
    x = mixture.sample(n, torch.Generator().manual_seed(3))
    u = torch.as_tensor(u)
    u = u[:, None] if u.ndim else u
    return (1 - u) * x + u * normal(*x.shape, seed=4)


CLOCKS = [0.0, 1e-6, 1e-3, 0.03, 0.5, 0.9, 1.0, even(0.0, 1.0, 32)]
QUESTIONS = [(-1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]


@every_case
def test_the_law_is_that_of_the_sums(name):
    fast, slow = pair(*CASES[name])
    x = fast.sample(32, torch.Generator().manual_seed(3))
    scale = float(x.abs().max())
    for u in CLOCKS:
        y = states(fast, u)
        for c, d in QUESTIONS:
            theirs, ours = (asked(m.model(sdegen.CondOT()), y, u, c, d) for m in (slow, fast))
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11 * scale)
    torch.testing.assert_close(fast.log_prob(x), slow.log_prob(x), rtol=1e-11, atol=1e-8)
    far = x + 50 * normal(*x.shape, seed=5)
    torch.testing.assert_close(fast.log_prob(far), slow.log_prob(far), rtol=1e-12, atol=0)


def worst(value, exact):
    return float((value.double() - exact).norm(dim=-1).max())


@every_case
def test_single_precision_keeps_the_digits_that_the_sums_keep(name):
    """At the rounded state itself the error is that of the sums, up to a factor; an expanded square loses thousands."""
    means, stds, weights = CASES[name]
    fast, slow = pair(means.float().double(), stds, weights)
    for u in CLOCKS:
        y = states(fast, u).float()
        u = u.float() if isinstance(u, torch.Tensor) else u
        for c, d in QUESTIONS:
            exact = asked(slow.model(sdegen.CondOT()), y.double(), u, c, d)
            ours, theirs = (worst(asked(m.model(sdegen.CondOT()), y, u, c, d), exact) for m in (fast, slow))
            size = float(exact.norm(dim=-1).max() + (means - means.mean(0)).norm(dim=1).max())
            assert ours <= 4 * theirs + 4e-7 * size, (u, c, d, ours, theirs)
    x = fast.sample(32).float()
    exact = slow.log_prob(x.double())[:, None]
    ours, theirs = (worst(m.log_prob(x)[:, None], exact) for m in (fast, slow))
    assert ours <= 4 * theirs + 4e-7 * float(exact.abs().max())


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_the_score_is_the_gradient_on_every_path(path):
    fast, _ = pair(*CASES["its own deviation each"])
    t = path.t_data + 0.37 * (path.t_noise - path.t_data)
    x = path.perturb(fast.sample(8), t)[0].requires_grad_()
    law = fast.marginal(path, t)
    assert by_products(law)
    (gradient,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    torch.testing.assert_close(fast.model(path).score(x.detach(), t), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["plain", "its own deviation each"])
def test_differentiable_twice(name):
    fast, slow = pair(*CASES[name])
    y = states(fast, 0.4, 3).requires_grad_()
    for f in (lambda m: m.log_prob(y), lambda m: asked(m.model(sdegen.CondOT()), y, 0.4).square().sum(1)):
        firsts = [torch.autograd.grad(f(m).sum(), y, create_graph=True)[0] for m in (fast, slow)]
        seconds = [torch.autograd.grad(first.square().sum(), y)[0] for first in firsts]
        for ours, theirs in (firsts, seconds):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_density_by_products_is_the_density():
    fast, slow = pair(*CASES["plain"])
    x = fast.sample(4)
    for trace in ("exact", sdegen.Hutchinson(2)):
        ours, theirs = (
            sdegen.log_prob(
                m.model(sdegen.VPSDE()),
                x,
                sdegen.ODESolver("rk4", steps=3),
                trace=trace,
                generator=torch.Generator().manual_seed(0),
            )
            for m in (fast, slow)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-8)


def test_shapes_batches_and_a_large_number_of_components():
    means = normal(40, 3, 4, 5)
    fast = sdegen.GaussianMixture(means, 0.2)
    assert by_products(fast)
    x = fast.sample(6)
    flat = sdegen.GaussianMixture(means.flatten(1), 0.2)
    torch.testing.assert_close(fast.log_prob(x), flat.log_prob(x.flatten(1)), rtol=0, atol=0)
    assert asked(fast.model(sdegen.CondOT()), x, 0.3).shape == x.shape
    assert fast.log_prob(x[:0]).shape == (0,)
    assert asked(fast.model(sdegen.CondOT()), x[:0], 0.3).shape == (0, 3, 4, 5)
    assert not by_products(sdegen.GaussianMixture(normal(5000, 1), 0.2))  # (K, K) distances would not fit
    assert not by_products(sdegen.GaussianMixture(normal(8, 2), 0.2))


class Largest(TorchDispatchMode):
    """The most numbers that any tensor made inside holds."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple) else (out,)
        self.most = max([self.most, *(x.numel() for x in made if isinstance(x, torch.Tensor))])
        return out


def test_nothing_as_large_as_batch_by_components_by_event_is_made():
    fast, slow = pair(*CASES["plain"])
    y = states(fast, 0.3, 100)
    made = []
    for m in (fast, slow):
        m.log_prob(y)  # the tables
        with Largest() as inside:
            asked(m.model(sdegen.CondOT()), y, 0.3)
            m.log_prob(y)
        made.append(inside.most)
    assert made == [100 * 64, 100 * 64 * 16]


def test_nan_and_infinite_states_stay_visible():
    fast, _ = pair(*CASES["plain"])
    y = normal(3, 16)
    y[1, 0] = math.nan
    out = asked(fast.model(sdegen.CondOT()), y, 0.3)
    assert out.isnan().any(1).tolist() == [False, True, False]


def test_an_accelerator_is_not_waited_for():
    fast, _ = pair(*CASES["its own deviation each"])
    x = normal(5, 16)
    there = put(x)
    counted(lambda: fast.log_prob(there))  # the tables move once
    value, waits = counted(lambda: fast.log_prob(there))
    assert not waits, dict(waits)
    torch.testing.assert_close(held(value), fast.log_prob(x), rtol=0, atol=0)


def test_a_pickle_holds_the_mixture_and_not_its_tables():
    """The (K, K) distances are computed again: a mixture of 600 means in the plane is some kilobytes, they are 3 MB."""
    mixture = sdegen.GaussianMixture(normal(600, 2, seed=8), 0.3)
    x = mixture.sample(4)
    before = mixture.log_prob(x)
    assert by_products(mixture)
    blob = pickle.dumps(mixture)
    assert len(blob) < 40_000
    assert torch.equal(pickle.loads(blob).log_prob(x), before)
