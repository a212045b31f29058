"""The short pieces of examples/variational.py: Kumaraswamy's law, the broken stick, VAE-GAN's gradients."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import beta as beta_law
from torch.distributions import Beta, kl_divergence
from torch.nn.functional import softplus

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

FILE = Path(__file__).parents[1] / "examples" / "variational.py"
SPEC = importlib.util.spec_from_file_location("variational", FILE)
example = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)


def number(x):
    return torch.tensor(x, dtype=torch.float64)


def tail(a, b, v):
    """P(V > v)."""
    return (1 - v**a) ** b


@pytest.mark.parametrize("b", [0.3, 1.0, 4.0])
def test_kumaraswamy_1_b_is_beta_1_b(b):
    u = torch.linspace(0.001, 0.999, 199, dtype=torch.float64)
    v = example.kumaraswamy(number(1.0), number(b), u)
    torch.testing.assert_close(torch.from_numpy(beta_law.sf(v.numpy(), 1, b)), u, rtol=0, atol=1e-10)
    for alpha, beta in ((1.0, 5.0), (2.5, 0.7)):
        ours = example.kumaraswamy_kl(number(1.0), number(b), alpha, beta, terms=3000)
        theirs = kl_divergence(Beta(number(1.0), number(b)), Beta(number(alpha), number(beta)))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


def test_a_draw_inverts_the_distribution_function_and_has_its_slopes():
    a, b = number(2.3).requires_grad_(), number(0.6).requires_grad_()
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    v = example.kumaraswamy(a, b, u)
    torch.testing.assert_close(tail(a, b, v), u, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda a, b: example.kumaraswamy(a, b, u), (a, b))


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-24])
def test_an_extreme_uniform_leaves_finite_draws_and_slopes(uniform):
    a, b = torch.tensor([0.05, 3.0], requires_grad=True), torch.tensor([0.05, 8.0], requires_grad=True)
    v = example.kumaraswamy(a, b, torch.full((2,), uniform))
    v.sum().backward()
    for value in (v, a.grad, b.grad):
        assert value.isfinite().all()
    assert ((v >= 0) & (v <= 1)).all()


@pytest.mark.parametrize(("a", "b"), [(0.7, 0.6), (1.0, 3.0), (2.5, 1.4), (4.0, 8.0)])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 5.0), (2.0, 0.5)])
def test_the_series_of_the_divergence_is_its_integral(a, b, alpha, beta):
    def integrand(s):
        """log q/p at the quantile s of q, integrated over s: v^a = 1 - (1 - s)^(1/b)."""
        log_rest = torch.log1p(-number(s)) / b
        log_power = torch.log(-torch.expm1(log_rest))
        log_q = torch.log(number(a * b)) + (a - 1) / a * log_power + (b - 1) * log_rest
        v = torch.exp(log_power / a)
        log_one_less = torch.log(-torch.expm1(log_power / a)) if v < 1 - 1e-6 else log_rest - torch.log(number(a))
        log_p = (alpha - 1) / a * log_power + (beta - 1) * log_one_less
        return float(log_q - log_p)

    value = quad(integrand, 0, 0.5, limit=400, epsabs=1e-11)[0] + quad(integrand, 0.5, 1, limit=400, epsabs=1e-11)[0]
    value += float(torch.lgamma(number(alpha)) + torch.lgamma(number(beta)) - torch.lgamma(number(alpha + beta)))
    ours = example.kumaraswamy_kl(number(a), number(b), alpha, beta, terms=3000)
    assert abs(float(ours) - value) < 1e-8
    short = example.kumaraswamy_kl(number(a), number(b), alpha, beta)
    assert abs(float(short) - value) < 1e-3  # twenty terms and the rest, as the VAE takes them


def test_the_pieces_of_a_stick_are_those_of_the_formula_and_sum_to_one():
    v = torch.rand(40, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pieces = example.broken(v)
    torch.testing.assert_close(pieces.sum(1), torch.ones(40, dtype=torch.float64), rtol=1e-14, atol=0)
    left = torch.ones(40, dtype=torch.float64)
    for k in range(11):
        torch.testing.assert_close(pieces[:, k], v[:, k] * left)
        left = left * (1 - v[:, k])
    torch.testing.assert_close(pieces[:, 11], left)


def vae_gan():
    torch.manual_seed(0)
    networks = {
        "encoder": example.Encoder(4),
        "decoder": example.Decoder(4),
        "discriminator": example.Discriminator(),
    }
    return {name: network.double() for name, network in networks.items()}, 16 * torch.rand(6, 1, 8, 8).double()


def test_every_network_of_vae_gan_gets_the_gradient_of_its_own_loss_alone():
    networks, x = vae_gan()
    example.vae_gan_backward(networks, x)  # nothing of one step is left in the next
    torch.manual_seed(1)
    losses = example.vae_gan_backward(networks, x)
    for name, network in networks.items():
        found = [p.grad.clone() for p in network.parameters()]
        torch.manual_seed(1)
        own = example.vae_gan_losses(**networks, x=x)[name]
        for p, grad, expected in zip(
            network.parameters(), found, torch.autograd.grad(own, list(network.parameters())), strict=True
        ):
            assert p.grad is not None
            torch.testing.assert_close(grad, expected)
        torch.testing.assert_close(losses[name], own)


def test_the_discriminator_learns_to_tell_and_never_to_please():
    """Its loss reaches neither encoder nor decoder, and the features' loss does not reach it."""
    networks, x = vae_gan()
    torch.manual_seed(1)
    losses = example.vae_gan_backward(networks, x)
    others = [p for name in ("encoder", "decoder") for p in networks[name].parameters()]
    torch.manual_seed(1)
    again = example.vae_gan_losses(**networks, x=x)
    assert all(g is None for g in torch.autograd.grad(again["discriminator"], others, allow_unused=True))
    encoder = torch.autograd.grad(again["decoder"] - again["encoder"], list(networks["encoder"].parameters()))
    assert any(g.abs().max() > 0 for g in encoder)  # the GAN's loss would reach it, were it not kept away
    given = networks["discriminator"].head.bias.grad
    torch.manual_seed(1)
    mean, std = networks["encoder"](x)
    rebuilt = networks["decoder"](mean + std * torch.randn_like(mean)).mean
    made = torch.cat([rebuilt, networks["decoder"](torch.randn_like(mean)).mean])
    drawn = made[torch.randint(len(made), (len(x),))]
    real, fake = (networks["discriminator"](images) for images in (x, drawn))
    expected = 0.5 * (-torch.sigmoid(-real).mean() + torch.sigmoid(fake).mean())
    torch.testing.assert_close(given, expected.reshape(1))
    bce = 0.5 * (softplus(-real).mean() + softplus(fake).mean())
    torch.testing.assert_close(losses["discriminator"], bce)
