"""The pretend device itself: what raises, what waits, what it leaves behind."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from pretend import DEVICE, PretendDevice, PretendTensor, counted, held, put
from torch import nn


@pytest.fixture
def x():
    return put(torch.arange(6.0).reshape(3, 2))


WAITS = {
    "item": (lambda x: x.sum().item(), 1),
    "float": (lambda x: float(x[0, 1]), 1),
    "int": (lambda x: int(x[0, 1]), 1),
    "bool": (lambda x: bool((x >= 0).all()), 1),
    "range": (lambda x: list(range(x[1, 0].long())), 1),
    "tolist": (lambda x: x.tolist(), 1),
    "cpu": (lambda x: x.cpu(), 1),
    "to cpu": (lambda x: x.to("cpu", torch.float32), 1),
    "format": (lambda x: f"{x.sum():g}", 1),
    "nonzero": (lambda x: torch.nonzero(x), 1),
    "where": (lambda x: torch.where(x > 1)[0], 1),
    "masked_select": (lambda x: torch.masked_select(x, x > 1), 1),
    "mask": (lambda x: x[x > 1], 1),
    "mask in the second place": (lambda x: x[:, x[0] > 0], 1),
    "put by mask": (lambda x: x.clone().index_put_((x[:, 0] > 1,), x[:2]), 1),
    "index of one number": (lambda x: x[x[0, 1].long()], 1),
    "unique": (lambda x: torch.unique(x), 1),
    "repeat_interleave": (lambda x: x.repeat_interleave(x[:, 0].long(), 0), 1),
    "equal": (lambda x: torch.equal(x, x + 1), 1),
    "allclose": (lambda x: torch.allclose(x, x + 1), 1),
    "eigh": (lambda x: torch.linalg.eigh(x.T @ x)[0], 1),
    "from the CPU": (lambda x: x + torch.ones(2).to(x), 1),
    "copy_ to the CPU": (lambda x: torch.zeros(3, 2).copy_(x), 1),
    "tensor": (lambda x: x + torch.tensor([1.0, 2.0], device=x.device), 1),
    "new_tensor": (lambda x: x + x.new_tensor([1.0, 2.0]), 1),
    "list as index": (lambda x: x[[0, -1]], 1),
    "fill by mask": (lambda x: x.clone().__setitem__(x > 1, 0.0), 0),
    "arithmetic": (lambda x: torch.where(x > 1, 2 * x, x @ x.T @ x), 0),
    "number on the CPU": (lambda x: x * torch.tensor(2.0), 0),
    "factories": (lambda x: x + torch.ones(2, device=x.device) + x.new_zeros(2) + torch.rand_like(x), 0),
    "indices there": (lambda x: x[torch.arange(2, device=x.device)], 0),
    "gradient": (lambda x: torch.autograd.grad((y := x.clone().requires_grad_()).square().sum(), y)[0], 0),
    "in place": (lambda x: x.clone().add_(1)[0].mul_(2), 0),
    "views": (lambda x: torch.stack(x.clone().t().unbind(0)).flatten(), 0),
}


@pytest.mark.parametrize("name", WAITS)
def test_every_wait_is_counted_and_the_numbers_are_those_of_the_cpu(name, x):
    call, expected = WAITS[name]
    torch.manual_seed(0)
    there, waits = counted(lambda: call(x))
    assert sum(waits.values()) == expected, waits
    if isinstance(there, PretendTensor):
        there = held(there)
    torch.manual_seed(0)
    here = call(held(x))
    assert torch.equal(there, here) if isinstance(here, torch.Tensor) else there == here


MIXTURES = {
    "sum": lambda x: x + torch.ones(2),
    "other way": lambda x: torch.ones(2) + x,
    "into the CPU": lambda x: torch.tensor(1.0).add_(x[0, 0]),
    "stack": lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
    "matmul": lambda x: nn.Linear(2, 2)(x),
    "CPU rows": lambda x: x[torch.arange(2)],
    "rows of the CPU": lambda x: torch.ones(3)[x[:, 0].long() // 2],
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixing_devices_raises(name, x):
    with PretendDevice(), pytest.raises(RuntimeError, match="Devices are mixed in aten"):
        MIXTURES[name](x)


def test_generators_belong_to_one_device():
    with PretendDevice():
        here, there = torch.Generator().manual_seed(1), torch.Generator(DEVICE).manual_seed(1)
        assert isinstance(here, torch.Generator)
        assert isinstance(there, torch.Generator)
        assert (here.device.type, there.device.type) == ("cpu", DEVICE.type)
        assert torch.equal(torch.randn(3, generator=here), held(torch.randn(3, generator=there, device=DEVICE)))
        with pytest.raises(RuntimeError, match="A generator on cpu came to randn on meta"):
            torch.randn(3, generator=here, device=DEVICE)
        with pytest.raises(RuntimeError, match="A generator on meta came to randn on cpu"):
            torch.randn(3, generator=there)


def test_what_it_cannot_do_is_refused(x):
    with PretendDevice():
        with pytest.raises(TypeError, match="can't convert meta device type tensor to numpy"):
            x.numpy()
        with pytest.raises(NotImplementedError, match="changes a shape in place"):
            x.clone().t_()
    hollow = torch.empty(2, device=DEVICE)
    with PretendDevice(), pytest.raises(RuntimeError, match="A tensor without values came to aten"):
        x + hollow
    with pytest.raises(ValueError, match="lives on cpu, not on the pretend device"):
        held(torch.ones(2))


def test_modules_train_there_as_here():
    torch.manual_seed(0)
    net, data = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)), torch.randn(5, 2)

    def trained(net, data):
        optimiser = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(3):
            optimiser.zero_grad()
            net(data).square().mean().backward()
            optimiser.step()
        return [p.detach().clone() for p in net.parameters()]

    here = trained(net, data)
    torch.manual_seed(0)
    twin = put(nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)))
    assert {p.device.type for p in twin.parameters()} == {DEVICE.type}
    there, waits = counted(lambda: trained(twin, put(torch.randn(5, 2))))
    assert not waits
    torch.testing.assert_close(held(there), here, rtol=0, atol=0)


def test_the_place_of_a_wait_is_the_line_of_the_package(x):
    import sdegen

    _, waits = counted(lambda: sdegen._checks.finite_state(x, 0.5))
    (place,) = waits
    assert place.startswith("sdegen._checks:")
    assert counted(lambda: float(x.sum()))[1] == {"elsewhere": 1}


def test_nothing_is_left_behind():
    """In a process of its own, so that nothing another test did can hide a trace."""
    program = """
import torch

def facts():
    torch.manual_seed(3)
    return (
        torch.Generator, torch.get_default_device(), torch.accelerator.is_available(),
        torch.accelerator.current_accelerator(), torch._C._get_privateuse1_backend_name(), hasattr(torch, "pretend"),
        torch.randn(2).tolist(), torch.randn(2, generator=torch.Generator()).tolist(),
        torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack(),
    )

before = facts()
from pretend import DEVICE, PretendDevice, put
with PretendDevice():
    put(torch.nn.Linear(2, 2))(torch.randn(3, 2, device=DEVICE)).sum().backward()
    torch.Generator(DEVICE)
try:
    with PretendDevice():
        raise KeyError
except KeyError:
    pass
assert facts() == before, (facts(), before)
assert type(torch.empty(2, device="meta")) is torch.Tensor
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env={"PYTHONPATH": "tests"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
