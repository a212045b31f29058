"""A process that saves checkpoints without end, killed again and again, most times while a file is being written.

    python killing.py FILE KILLS

One process is forked for every kill, so that torch is imported once. It goes on from the checkpoint that is there; its
model and its state are filled with the number of its step, so that a file of two steps would be seen.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

import sdegen
from sdegen.nets import MLP


def build() -> MLP:
    return MLP(2, 300, 3)


def save_without_end(file: Path) -> None:
    model, step = sdegen.ScoreModel(build(), sdegen.VPSDE()), whole(file)
    while True:
        step += 1
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(step)
        sdegen.save(file, model, step=step, filled=torch.full((100_000,), float(step)))


def whole(file: Path) -> int:
    """The step of the checkpoint, in which everything is of one step; 0 where there is none yet."""
    if not file.exists():
        return 0
    state, model = sdegen.load_state(file), sdegen.load(file, build())
    step = state["step"]
    for value in (*model.parameters(), state["filled"]):
        assert bool((value == step).all()), step
    return step


def unfinished(file: Path) -> set[str]:
    return {name for name in os.listdir(file.parent) if name.endswith(".unfinished")}


def killed(file: Path, delay: float, writing: bool) -> bool:
    """Start a process and kill -9 it `delay` seconds after its first save; whether a file was being written."""
    before, began = unfinished(file), file.stat().st_mtime_ns if file.exists() else 0
    process = os.fork()
    if process == 0:
        save_without_end(file)
    while not file.exists() or file.stat().st_mtime_ns == began:
        time.sleep(0.0005)
    time.sleep(delay)
    while writing and not unfinished(file) - before:
        pass
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return bool(unfinished(file) - before)


def main(place: str, kills: str) -> None:
    torch.set_num_threads(1)
    file, caught, step = Path(place), 0, 0
    for k in range(int(kills)):
        caught += killed(file, 0.003 * (k % 7), writing=k % 5 != 4)
        last, step = step, whole(file)
        assert step > last, (step, last)
    print(f"{caught} of {kills} kills while a checkpoint was being written, {step} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
