"""Laws of the networks: one sample at a time, smooth in x and t, ready for a likelihood."""

from __future__ import annotations

import pytest
import torch

from sdegen.nets import MLP, TimeEmbedding, UNet

EVENTS = {MLP: (2,), UNet: (1, 8, 8)}
NETS = list(EVENTS)


def build(kind, *, classes=None, dtype=torch.float64):
    """A small network away from its zero start, where every law would hold for nothing."""
    net = MLP(2, hidden=16, depth=2, classes=classes) if kind is MLP else UNet(1, width=8, classes=classes)
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        fan_in = p[0].numel() if p.ndim > 1 else 4
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) / fan_in**0.5
    return net.to(dtype)


def batch(kind, n=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((n, *EVENTS[kind]), generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.rand(n, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("kind", NETS)
def test_a_new_network_is_zero_and_can_leave_zero(kind):
    net = MLP(2) if kind is MLP else UNet(width=8)
    x, t = batch(kind)
    out = net(x, t)
    assert torch.equal(out, torch.zeros_like(x))
    (out - 1).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("kind", NETS)
def test_every_parameter_matters(kind):
    net = build(kind, classes=3)
    x, t = batch(kind)
    net(x, t, torch.tensor([0, 1, 2, 0, 1])).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", NETS)
def test_a_sample_does_not_depend_on_its_batch(kind):
    net, (x, t) = build(kind), batch(kind)
    together = net(x, t)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    assert torch.allclose(together, alone, rtol=1e-10, atol=1e-10)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(net(x[order], t[order]), together[order], rtol=1e-10, atol=1e-10)
    assert net(x[:0], t[:0]).shape == x[:0].shape


@pytest.mark.parametrize("kind", NETS)
def test_casting_to_float64_keeps_the_function(kind):
    net, (x, t) = build(kind, dtype=torch.float32), batch(kind, dtype=torch.float32)
    single = net(x, t)
    double = net.double()(x.double(), t.double())
    assert single.dtype is torch.float32
    assert double.dtype is torch.float64
    assert torch.allclose(single.double(), double, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", NETS)
def test_the_jacobian_is_that_of_a_finite_difference(kind):
    net, (x, t) = build(kind), batch(kind)
    direction = torch.randn_like(x)
    h = 1e-5
    numeric = (net(x + h * direction, t) - net(x - h * direction, t)) / (2 * h)
    exact = torch.autograd.functional.jvp(lambda y: net(y, t), x, direction)[1]
    assert torch.allclose(numeric, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", NETS)
def test_the_second_derivative_is_that_of_a_finite_difference(kind):
    """What training through a likelihood needs: the gradient of a vector-Jacobian product."""
    net, (x, t) = build(kind), batch(kind)
    probe, direction = torch.randn_like(x), torch.randn_like(x)

    def quadratic(y, graph):
        y = y.detach().requires_grad_(True)
        (row,) = torch.autograd.grad(net(y, t), y, probe, create_graph=graph)
        return y, (row * probe).sum()

    y, value = quadratic(x, graph=True)
    (exact,) = torch.autograd.grad(value, y)
    h = 1e-5
    numeric = (quadratic(x + h * direction, False)[1] - quadratic(x - h * direction, False)[1]) / (2 * h)
    assert float(numeric) == pytest.approx(float((exact * direction).sum()), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", NETS)
def test_batched_vector_jacobian_products_equal_a_loop(kind):
    net, (x, t) = build(kind), batch(kind, n=3)
    x.requires_grad_(True)
    out = net(x, t)
    probes = torch.randn(4, *x.shape, dtype=x.dtype)
    (together,) = torch.autograd.grad(out, x, probes, retain_graph=True, is_grads_batched=True)
    for row, probe in zip(together, probes, strict=True):
        (alone,) = torch.autograd.grad(out, x, probe, retain_graph=True)
        assert torch.allclose(row, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", NETS)
def test_the_output_feels_the_time(kind):
    net, (x, t) = build(kind), batch(kind)
    t.requires_grad_(True)
    (slope,) = torch.autograd.grad(net(x, t).square().sum(), t)
    assert bool((slope.abs() > 1e-6).all())


def test_the_embedding_tells_times_apart():
    embed = TimeEmbedding(32).double()
    t = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    distance = torch.cdist(embed(t), embed(t)) + torch.eye(len(t))
    assert distance.min() > 1e-3
    log_snr = torch.linspace(-12, 12, 49, dtype=torch.float64)
    distance = torch.cdist(embed(log_snr), embed(log_snr)) + torch.eye(len(log_snr))
    assert distance.min() > 1e-2


def test_frequencies_are_exact_and_stay_out_of_checkpoints():
    embed = TimeEmbedding(8).to(torch.float32)
    assert embed.frequencies.tolist() == [2.0**k for k in range(-4, 7)]
    assert embed.to(torch.bfloat16).frequencies.tolist() == [2.0**k for k in range(-4, 7)]
    assert "frequencies" not in embed.state_dict()
    assert TimeEmbedding(8).double()(torch.rand(3, dtype=torch.float32)).dtype is torch.float64


@pytest.mark.parametrize(
    ("shape", "multipliers"),
    [
        ((3, 32, 32), (1, 2, 2)),
        ((2, 8, 8), (1, 2)),
        ((1, 12, 4), (1, 1, 1)),
        ((1, 5, 7), (1,)),
        ((1, 8, 8), (1, 2, 3, 1)),
    ],
)
def test_unet_shapes(shape, multipliers):
    net = UNet(shape[0], width=6, multipliers=multipliers)
    x = torch.randn(2, *shape)
    assert net(x, torch.rand(2)).shape == x.shape


def test_unet_sees_the_whole_image():
    """Through the coarse level every output pixel depends on every input pixel."""
    net, (x, t) = build(UNet), batch(UNet, n=1)
    jacobian = torch.autograd.functional.jacobian(lambda y: net(y, t), x).reshape(64, 64)
    assert bool((jacobian != 0).all())


@pytest.mark.parametrize("kind", NETS)
def test_labels_matter_and_may_be_left_out(kind):
    net, (x, t) = build(kind, classes=3), batch(kind)
    outputs = [net(x, t, label=torch.full((5,), k)) for k in range(3)] + [net(x, t)]
    for i in range(4):
        for j in range(i):
            assert (outputs[i] - outputs[j]).abs().amax() > 1e-3
    mixed = net(x, t, label=torch.tensor([0, 1, 2, 1, 0]))
    assert torch.allclose(mixed[2], outputs[2][2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", NETS)
def test_the_global_generator_is_not_touched_by_a_call(kind):
    net, (x, t) = build(kind), batch(kind)
    before = torch.get_rng_state()
    net(x, t)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "error", "received"),
    [
        (lambda: MLP(2)(torch.zeros(4, 3), torch.zeros(4)), ValueError, r"\(4, 3\)"),
        (lambda: MLP(2)(torch.zeros(2), torch.zeros(2)), ValueError, r"\(2,\)"),
        (lambda: MLP(2)(torch.zeros(4, 2), torch.zeros(4, 1)), ValueError, r"\(4, 1\)"),
        (lambda: MLP(2)(torch.zeros(4, 2), torch.tensor(0.5)), ValueError, r"\(\)"),
        (lambda: MLP(0), ValueError, "0"),
        (lambda: MLP(2, depth=0), ValueError, "0"),
        (lambda: MLP(2, hidden=1.5), TypeError, "1.5"),
        (lambda: MLP(2, classes=True), TypeError, "True"),
        (lambda: MLP(2)(torch.zeros(4, 2), torch.zeros(4), torch.zeros(4).long()), ValueError, "classes"),
        (lambda: MLP(2, classes=3)(torch.zeros(4, 2), torch.zeros(4), torch.zeros(4)), ValueError, "float"),
        (lambda: MLP(2, classes=3)(torch.zeros(4, 2), torch.zeros(4), torch.zeros(1).long()), ValueError, r"\(1,\)"),
        (lambda: MLP(2, classes=3)(torch.zeros(1, 2), torch.zeros(1), torch.tensor([3])), ValueError, "3"),
        (lambda: UNet(1, 8)(torch.zeros(2, 3, 8, 8), torch.zeros(2)), ValueError, r"\(2, 3, 8, 8\)"),
        (lambda: UNet(1, 8)(torch.zeros(2, 1, 7, 8), torch.zeros(2)), ValueError, r"\(2, 1, 7, 8\)"),
        (lambda: UNet(1, 8, (1, 1, 1))(torch.zeros(2, 1, 8, 6), torch.zeros(2)), ValueError, r"\(2, 1, 8, 6\)"),
        (lambda: UNet(1, 8)(torch.zeros(1, 8, 8), torch.zeros(1)), ValueError, r"\(1, 8, 8\)"),
        (lambda: UNet(1, 8)(torch.zeros(2, 1, 8, 8), torch.zeros(3)), ValueError, r"\(3,\)"),
        (lambda: UNet(1, 8, ()), ValueError, "empty"),
        (lambda: UNet(1, 8, (1, 0)), ValueError, "0"),
    ],
)
def test_bad_input_is_named(call, error, received):
    with pytest.raises(error, match=received) as caught:
        call()
    assert str(caught.value).endswith(".")
