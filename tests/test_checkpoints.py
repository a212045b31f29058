"""Checkpoints: what `save` was given comes back bit for bit, and nothing else is taken for it."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from problems import PATHS
from safetensors.torch import load_file
from torch import nn

import sdegen
from sdegen.nets import MLP


def network(seed: int = 1, width: int = 8) -> MLP:
    net = MLP(2, width, 1)
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=p.dtype)
    return net


def bits(value: torch.Tensor) -> tuple[object, ...]:
    data = value.detach().cpu().contiguous().reshape(-1)
    return value.dtype, tuple(value.shape), data.view(torch.uint8).tolist() if data.numel() else []


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    a, b = ({n: bits(v) for n, v in m.state_dict().items() if n != "_extra_state"} for m in (a, b))
    return list(a) == list(b) and a == b


STORED = {**PATHS, "pairs": sdegen.Interpolant(sdegen.Trigonometric()), "vp, integers": sdegen.VPSDE(1, 5)}


@pytest.mark.parametrize("name", STORED)
def test_every_path_of_the_library_comes_back(name, tmp_path):
    path, file = STORED[name], tmp_path / "new" / "model.safetensors"
    predicts = "velocity" if name == "pairs" else "eps"
    model = sdegen.ScoreModel(network(), path, predicts, time=getattr(path, "index", None))
    sdegen.save(file, model)
    mine = name.startswith("own")
    if mine:
        with pytest.raises(ValueError, match=r"saved with a path of your own, Own.*\(\): give it again, as path="):
            sdegen.load(file, network(2))
    net = network(2)
    again = sdegen.load(str(file), net, path=path if mine else None)
    assert again.net is net
    assert again.predicts == predicts
    assert again.path is path if mine else again.path == path
    assert again.time is None if model.time is None else again.time == again.path.index
    assert same_weights(model, again)
    x, t = torch.randn(3, 2), path.t_data + (path.t_noise - path.t_data) * torch.tensor([0.3, 0.5, 0.7])
    assert torch.equal(model(x, t), again(x, t))


def test_another_process_finds_the_same_path_of_the_users_own(tmp_path):
    """What is compared are numbers: a repr with an address in it, or another name of the class, changes nothing."""
    body = "(sdegen.GaussianPath):\n    rate = {}\n    alpha = lambda self, t: torch.exp(-self.rate * t**2)\n"
    body += "    sigma = lambda self, t: torch.sqrt(-torch.expm1(-2 * self.rate * t**2))\n"
    head = "import sys, torch, sdegen; from sdegen.nets import MLP\n"
    code = (
        f"{head}class Mine{body.format(4.0)}\nsdegen.save(sys.argv[1], sdegen.ScoreModel(MLP(2, 8, 1), Mine(), 'v'))\n"
    )
    file = tmp_path / "model.safetensors"
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    net = MLP(2, 8, 1).float()
    found: dict[str, object] = {"torch": torch, "sdegen": sdegen}
    exec(f"class Renamed{body.format(4.0)}\nclass Other{body.format(4.001)}", found)
    assert sdegen.load(file, net, path=found["Renamed"]()).predicts == "v"
    with pytest.raises(ValueError, match=r"another path than the one given: Mine there, Other here: alpha is .* there"):
        sdegen.load(file, net, path=found["Other"]())


def test_a_path_that_is_given_is_compared(tmp_path):
    file = tmp_path / "model.safetensors"
    sdegen.save(file, sdegen.ScoreModel(network(), sdegen.VPSDE(), "v"))
    assert sdegen.load(file, network(2), path=sdegen.VPSDE(0.1, 20)).path == sdegen.VPSDE()
    with pytest.raises(ValueError, match=r"VPSDE\(.*20.0\) there, VPSDE\(.*beta_max=20.1\) here: alpha is .* way to"):
        sdegen.load(file, network(2), path=sdegen.VPSDE(0.1, 20.1))
    with pytest.raises(
        ValueError, match=r"VPSDE\(.*\) there, CondOT\(.*\) here: t is 0 there and 1 here, 0 of the way"
    ):
        sdegen.load(file, network(2), path=sdegen.CondOT())
    with pytest.raises(ValueError, match=r"VPSDE\(.*\) there, Interpolant\(.*\) here: their sources"):
        sdegen.load(file, network(2), path=sdegen.Interpolant(sdegen.VPSDE()))
    with pytest.raises(TypeError, match="path must be a GaussianPath such as VPSDE"):
        sdegen.load(file, network(2), path="vp")


def test_a_source_of_the_users_own_makes_the_path_his(tmp_path):
    file, path = tmp_path / "m.safetensors", sdegen.Interpolant(sdegen.CondOT(), sdegen.Gaussian(torch.zeros(2), 1.0))
    sdegen.save(file, sdegen.ScoreModel(network(), sdegen.Retimed(path), "velocity"))
    with pytest.raises(ValueError, match=r"with a path of your own, Retimed.*: give it again, as path="):
        sdegen.load(file, network(2))
    assert sdegen.load(file, network(2), path=sdegen.Retimed(path)).path.source is path.source


def test_a_time_is_restored_or_asked_for(tmp_path):
    file, chain = tmp_path / "model.safetensors", sdegen.DDPM.linear(20, 1e-3, 0.3)
    same = sdegen.DDPM(chain.betas)
    for time in (chain.index, same.index):
        sdegen.save(file, sdegen.ScoreModel(network(), chain, time=time))
        assert sdegen.load(file, network(2)).time(torch.tensor([0.5])).item() == 9
    given = lambda t: 1.0 * chain.index(t)  # noqa: E731
    assert sdegen.load(file, network(2), time=given).time is given
    for other in (lambda t: 7 * t, lambda t: chain.index(t)[:, None], lambda t: chain.index(t) + 1e-4):
        with pytest.raises(
            ValueError, match=r"saved with time=path.index, and the time= given is another: its network"
        ):
            sdegen.load(file, network(2), time=other)
    for time in (lambda t: 20 * t, sdegen.DDPM.linear(30).index):
        sdegen.save(file, sdegen.ScoreModel(network(), chain, time=time))
        with pytest.raises(ValueError, match=r"model.safetensors' was saved with a time= of your own: give it again"):
            sdegen.load(file, network(2))
        assert sdegen.load(file, network(2), time=time).time is time
    sdegen.save(file, sdegen.ScoreModel(network(), chain))
    with pytest.raises(ValueError, match="saved without a time=, and one is given: its network saw the path's own"):
        sdegen.load(file, network(2), time=chain.index)


def test_a_learned_variance_and_the_units_come_back(tmp_path):
    file, units = tmp_path / "model.safetensors", sdegen.Standardize(torch.tensor([1e3, 0.1]), torch.tensor([3.0, 7.0]))
    model = sdegen.ScoreModel(network(), sdegen.VPSDE(), "v", learns_variance=True, standardize=units)
    sdegen.save(file, model)
    again = sdegen.load(file, network(2))
    assert again.learns_variance
    assert bits(again.standardize.mean) == bits(units.mean)
    assert bits(again.standardize.std) == bits(units.std)


def test_a_network_behind_scalings_is_whatever_the_user_gives(tmp_path):
    file = tmp_path / "model.safetensors"
    model = sdegen.ScoreModel(sdegen.Preconditioned(network()), sdegen.EDM(20.0), "data")
    sdegen.save(file, model)
    assert same_weights(sdegen.load(file, sdegen.Preconditioned(network(2))), model)


class Odd(nn.Module):
    """Everything that may stand in the state of a network."""

    def __init__(self, fill: float = 0.0):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.tied = nn.Linear(3, 4)
        self.tied.weight = self.linear.weight
        self.norm = nn.BatchNorm1d(4)
        self.brain = nn.Parameter(torch.full((2, 3), math.pi + fill, dtype=torch.bfloat16))
        wide = torch.full((3, 5), fill)
        values = {
            "scalar": torch.tensor(fill),
            "empty": torch.empty(0, 3),
            "turned": wide.T,
            "cut": wide[:, 1:3],
            "float16": torch.full((2,), fill, dtype=torch.float16),
            "float8": torch.full((3,), fill).to(torch.float8_e4m3fn),
            "float8b": torch.full((3,), fill).to(torch.float8_e5m2),
            "single": torch.full((2,), fill, dtype=torch.float32),
            "special": torch.tensor([math.nan, math.inf, -0.0, 5e-324]) + fill,
            "flags": torch.tensor([True, False]) ^ (fill > 0),
            **{f"int{n}": torch.full((2,), int(fill), dtype=getattr(torch, f"int{n}")) for n in (8, 16, 32, 64)},
            **{f"uint{n}": torch.full((2,), int(fill), dtype=getattr(torch, f"uint{n}")) for n in (8, 16, 32, 64)},
        }
        for name, value in values.items():
            self.register_buffer(name, value)

    def get_extra_state(self) -> object:
        return {"calls": 3, "shape": (1, 2)}

    def set_extra_state(self, state: object) -> None:
        self.state = state


def test_every_kind_of_tensor_survives_bit_for_bit(tmp_path):
    file, net, empty = tmp_path / "model.safetensors", Odd(3.0), Odd()
    net.turned.requires_grad_(True)
    sdegen.save(file, sdegen.ScoreModel(net, sdegen.VPSDE()))
    again = sdegen.load(file, empty)
    theirs, ours = again.net.state_dict(), net.state_dict()
    assert list(theirs) == list(ours)
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert bits(theirs[name]) == bits(value), name
    assert empty.state == {"calls": 3, "shape": (1, 2)}
    assert empty.tied.weight is empty.linear.weight
    assert {f"net.{name}" for name in ours} - load_file(file).keys() == {"net._extra_state"}


def test_the_file_is_one_that_other_tools_read(tmp_path):
    file, model = tmp_path / "model.safetensors", sdegen.ScoreModel(network(), sdegen.VPSDE(), "v")
    sdegen.save(file, model)
    tensors = load_file(file)
    other = sdegen.ScoreModel(network(2), sdegen.VPSDE(), "v")
    assert str(other.load_state_dict(tensors)) == "<All keys matched successfully>"
    assert same_weights(other, model)


STATE = {
    "numbers": [1, -(2**80), 0.1, -0.0, 5e-324, math.inf, -math.inf, True, False, None],
    "NumPy's": [np.float64(0.1), np.float32(0.1), np.int64(3), np.bool_(True)],
    "words": ("", "schön", 'a "quoted" \\ line\n', "\ud800", "\x1f", b"", b"\x00\xff", {}),
    "by key": {0: torch.arange(3), "0": torch.ones(2, 0), -1: {"a.b": torch.tensor(1)}, "a": {"b": torch.tensor(2)}},
    "a.b": [torch.tensor(3)],
    "a": {"b": [torch.tensor(4)]},
    "again": [torch.arange(6.0).reshape(2, 3).T] * 2,
    "\ud800": torch.tensor(5.0),
    "__metadata__": torch.tensor(6.0),
}


def alike(a: object, b: object) -> bool:
    """Equal, and of the same types, to the bits."""
    if isinstance(a, np.generic):
        a = a.item()
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and bits(a) == bits(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return (
            list(a) == list(b)
            and all(type(k) is type(n) for k, n in zip(a, b, strict=True))
            and all(alike(a[k], b[k]) for k in a)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return repr(a) == repr(b)


def test_the_state_comes_back(tmp_path):
    file, model = tmp_path / "model.safetensors", sdegen.ScoreModel(network(), sdegen.VPSDE())
    sdegen.save(file, model, **STATE, nan=math.nan)
    found = sdegen.load_state(file)
    assert math.isnan(found.pop("nan"))
    assert alike(STATE, found)
    sdegen.save(file, model)
    assert sdegen.load_state(file) == {}
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_training_goes_on_in_the_same_bits(tmp_path):
    """The optimiser, the generator and the weights of a run that stopped after 3 of 6 steps."""

    def steps(model, optimizer, g, n):
        for _ in range(n):
            optimizer.zero_grad()
            sdegen.loss(model, torch.randn(16, 2, generator=g), generator=g).backward()
            optimizer.step()

    def begun(seed):
        model = sdegen.ScoreModel(network(seed), sdegen.CosineVPSDE(), "v")
        return model, torch.optim.AdamW(model.parameters(), 1e-2, amsgrad=True), torch.Generator().manual_seed(seed)

    model, optimizer, g = begun(1)
    steps(model, optimizer, g, 3)
    file = tmp_path / "model.safetensors"
    sdegen.save(file, model, optimizer=optimizer.state_dict(), generator=g.get_state())
    steps(model, optimizer, g, 3)
    other, again, h = begun(2)
    other, state = sdegen.load(file, other.net), sdegen.load_state(file)
    again.load_state_dict(state["optimizer"])
    h.set_state(state["generator"])
    steps(other, again, h, 3)
    assert same_weights(model, other)
    assert alike(copy.deepcopy(optimizer.state_dict()), again.state_dict())
