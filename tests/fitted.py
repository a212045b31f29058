"""What the tests of `fit` share: a small model, data, the same loop written out, and comparisons bit for bit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import sdegen
from sdegen.journal import sample_generators
from sdegen.nets import MLP


class Dropped(nn.Module):
    """A network with dropout, and a condition that is added."""

    def __init__(self, p: float = 0.0):
        super().__init__()
        self.net, self.dropout = MLP(2, 8, 1), nn.Dropout(p)

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        return self.dropout(self.net(x, t) + torch.tanh(x)) + shift


def model(path: sdegen.GaussianPath | None = None, predicts: str = "v", p: float = 0.0) -> sdegen.ScoreModel:
    """A new one every time, with the same weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        net = Dropped(p)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
    return sdegen.ScoreModel(net, path or sdegen.VPSDE(), predicts)


def points(n: int = 50) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(5)) + torch.tensor([0.5, -0.5])


def orders(n: int, seed: int = 0) -> Iterator[int]:
    """The rows of one permutation after another, as `fit` takes them."""
    for epoch in range(1000):
        (generator,) = sample_generators(seed + (1 << 64), [epoch], torch.device("cpu"))
        yield from torch.randperm(n, generator=generator).tolist()


def by_hand(
    m, x, steps, batch_size=16, seed=0, cond=None, clip=None, lr=0.01, rows=None, make=None, schedule=None, **options
):
    """SGD, or what `make` gives, on sdegen.loss, all draws from a generator of (seed, step): weights and losses."""
    optimiser = torch.optim.SGD(m.parameters(), lr) if make is None else make(m.parameters())
    scheduler = None if schedule is None else schedule(optimiser)
    rows = orders(len(x), seed) if rows is None else rows
    weights, losses = [], []
    for step in range(steps):
        (generator,) = sample_generators(seed, [step], torch.device("cpu"))
        chosen = torch.tensor([next(rows) for _ in range(batch_size)])
        of_rows = {name: value[chosen] for name, value in (cond or {}).items()}
        value = sdegen.loss(m, x[chosen], generator=generator, cond=of_rows, **options)
        optimiser.zero_grad()
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(m.parameters(), clip, foreach=True)
        optimiser.step()
        if scheduler is not None:
            scheduler.step()
        weights.append(of(m))
        losses.append(value.item())
    return weights, losses


def sgd(m: nn.Module, lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.SGD(m.parameters(), lr)


def of(m: nn.Module) -> Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().flatten() for p in m.parameters()])


def curves(folder: str) -> dict[str, object]:
    """Losses and weights of 60 steps in single precision, on as many processes as there are."""
    torch.set_num_threads(1)
    x, found = points(1000).float(), {}
    shift = 0.1 * x[:, :1]
    flow = sdegen.Interpolant()
    kinds = {
        "plain": {},
        "parts": {"accumulate": 2},
        "cond": {"cond": {"shift": shift}},
        "coupling": {"coupling": sdegen.OptimalTransport()},
        "set": {"set": True},
    }
    for name, options in kinds.items():
        m = (model(flow, "velocity") if name == "coupling" else model()).float()
        data = torch.utils.data.TensorDataset(x) if options.pop("set", False) else x
        told: list[tuple[int, dict[str, float]]] = []
        how = {"steps": 60, "batch_size": 64, "every": 1, "progress": False, **options}
        averaged = sdegen.fit(m, data, log=lambda *numbers, told=told: told.append(numbers), **how)
        losses = [numbers["loss"] for _, numbers in told]
        found[name] = {"losses": losses, "weights": of(m), "average": of(averaged)}
    found["bits"] = resumed_bits(x, folder)
    return found


def resumed_bits(x: Tensor, folder: str) -> bool:
    """Whether a training that was stopped ends in the bits of one that was not, dropout included."""
    whole, first, again = (model(p=0.3).float() for _ in range(3))
    how = {"batch_size": 64, "progress": False}
    sdegen.fit(whole, x, steps=20, optimizer=sgd(whole), **how)
    for m, steps in ((first, 10), (again, 20)):
        sdegen.fit(m, x, steps=steps, optimizer=sgd(m), checkpoint=f"{folder}/c", **how)
    return torch.equal(of(whole), of(again)) and not torch.equal(of(first), of(again))


if __name__ == "__main__":
    found = curves(sys.argv[1])
    torch.save(found, f"{sys.argv[1]}/rank{os.environ['RANK']}.pt")
