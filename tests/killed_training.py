"""A training that is killed again and again, most times while its checkpoint is being written, and one that is not.

    python killed_training.py FOLDER KILLS

One process is forked for every life of the training, so that torch is imported once. At the end every tensor of both
checkpoints, the average, the last weights and the optimiser's state, must have the same bits.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import fitted
import torch
from killing import unfinished
from torch import nn

import sdegen
from sdegen.nets import MLP

STEPS_A_KILL = 8


class Dropping(nn.Module):
    """A network whose steps depend on torch's own generator too."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.dropout = MLP(2, 64, 2), nn.Dropout(0.2)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.net(self.dropout(x), t)


def train(file: Path, steps: int) -> None:
    torch.manual_seed(0)
    model = sdegen.ScoreModel(Dropping(), sdegen.VPSDE(), "v")
    sdegen.fit(model, fitted.points(200), steps=steps, batch_size=32, checkpoint=file, every=1, progress=False)


def life(file: Path, steps: int) -> int:
    """A process that trains, and goes on from the checkpoint that is there."""
    process = os.fork()
    if process == 0:
        train(file, steps)
        os._exit(0)
    return process


def ended(process: int) -> bool:
    """Whether a process has ended by itself, which is left to be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def killed(file: Path, steps: int, delay: float, writing: bool) -> bool:
    """Kill -9 one life `delay` seconds after its first checkpoint; whether a file was being written."""
    before, began = unfinished(file), file.stat().st_mtime_ns if file.exists() else 0
    process = life(file, steps)
    while not file.exists() or file.stat().st_mtime_ns == began:
        time.sleep(0.0005)
    time.sleep(delay)
    while writing and not unfinished(file) - before and not ended(process):
        pass
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return bool(unfinished(file) - before)


def tensors(value: object, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested state, by its place."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {place: part for key, inner in pairs for place, part in tensors(inner, f"{name}.{key}").items()}


def whole(file: Path) -> dict[str, torch.Tensor]:
    """The averaged model and the state of the training; whatever was torn or changed is refused."""
    model = sdegen.load(file, Dropping())
    return {**tensors(sdegen.load_state(file)), **tensors(dict(model.state_dict()), "model")}


def main(place: str, number: str) -> None:
    torch.set_num_threads(1)
    folder, kills, caught = Path(place), int(number), 0
    file, other = folder / "killed.safetensors", folder / "whole.safetensors"
    steps = STEPS_A_KILL * kills
    for k in range(kills):
        caught += killed(file, steps, 0.004 * (k % 5), writing=k % 5 != 4)
        whole(file)
    for last in (file, other):
        assert os.waitpid(life(last, steps), 0)[1] == 0
    ours, theirs = whole(file), whole(other)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 30
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    print(f"{caught} of {kills} kills while a checkpoint was being written, {len(ours)} tensors equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
