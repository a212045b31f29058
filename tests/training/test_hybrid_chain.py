"""The hybrid loss on its chain: the steps it draws, from which generator, in which precision, and what stays fixed."""

from __future__ import annotations

import pytest
import torch

import sdegen


def doubled(field):
    return lambda x, t: torch.cat([field(x), torch.zeros_like(x)], 1)


def test_steps_lay_a_chain_on_a_path_that_is_none():
    """Every k of K comes, at the clocks where `Ancestral(K)` steps, and k = 0 never does."""
    seen, path, K = set(), sdegen.VPSDE(), 5

    def net(x, t):
        seen.update(t.tolist())
        return torch.cat([torch.tanh(x), x], 1)

    model = sdegen.ScoreModel(net, path, learns_variance=True)
    sdegen.hybrid_loss(model, torch.randn(400, 2), steps=K)
    knots = sdegen.solve(model, torch.randn(1, 2), sdegen.Ancestral(K, variance="learned")).t[:-1]
    torch.testing.assert_close(torch.tensor(sorted(seen)), torch.tensor(sorted(float(t) for t in knots)))
    with pytest.raises(ValueError, match="needs steps"):
        sdegen.hybrid_loss(model, torch.randn(4, 2))


@pytest.mark.parametrize("several", [False, True])
def test_all_draws_come_from_the_generator(several):
    path, x = sdegen.DDPM.linear(9, 1e-2, 0.3), torch.randn(6, 2)
    model = sdegen.ScoreModel(doubled(torch.tanh), path, learns_variance=True)

    def value(seed):
        g = [torch.Generator().manual_seed(seed + i) for i in range(6)] if several else [torch.Generator()]
        return sdegen.hybrid_loss(model, x, generator=g if several else g[0].manual_seed(seed))

    before = torch.get_rng_state()
    first, again, other = value(0), value(0), value(10)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_network_is_shown_the_dtype_of_the_data(dtype):
    seen = set()

    def net(x, t):
        seen.add((x.dtype, t.dtype))
        return torch.cat([torch.tanh(x), x], 1)

    model = sdegen.ScoreModel(net, sdegen.DDPM.linear(9, 1e-2, 0.3), learns_variance=True)
    loss = sdegen.hybrid_loss(model, torch.randn(4, 2).to(dtype))
    assert seen == {(dtype, dtype)}
    assert loss.dtype is torch.promote_types(dtype, torch.float32)


def test_the_bound_s_error_is_held_fixed_for_the_data_too():
    """Where the variance does not depend on the state, the bound's gradient reaches neither prediction nor data."""
    path, noise, slopes = sdegen.DDPM.linear(9, 1e-2, 0.3), torch.randn(6, 2), []
    for weight in (0.0, 10.0):
        x = torch.linspace(-1, 1, 12).reshape(6, 2).requires_grad_()
        model = sdegen.ScoreModel(doubled(torch.tanh), path, learns_variance=True)
        g = torch.Generator().manual_seed(0)
        sdegen.hybrid_loss(model, x, weight=weight, noise=noise, generator=g).backward()
        slopes.append(x.grad)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-12, atol=1e-14)
    assert float(slopes[0].abs().min()) > 0
