"""A small data set to evaluate, and a process that does it in several processes, or is killed over and over.

    python evaluated.py DIRECTORY shards COUNT         COUNT processes at once, as torchrun starts them
    python evaluated.py DIRECTORY kills COUNT SEED     one after another, each killed after a random number of chunks

Processes are forked from one that has imported torch and computed nothing. Prints how many failed, or
how many died by SIGKILL.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import sdegen
from sdegen.nets import MLP

SOLVER = sdegen.ODESolver("rk4", steps=2)
SETTINGS = {"solver": SOLVER, "trace": sdegen.Hutchinson(1), "batch_size": 3, "seed": 5}
CHUNKS_A_LIFE = 4
"""The mean number of chunks that a process finishes before it is killed."""


def problem(chunks: int = 40) -> tuple[sdegen.ScoreModel, torch.Tensor]:
    """A network on the plane and data whose last chunk is smaller than the rest, in float64."""
    g = torch.Generator().manual_seed(3)
    net = MLP(2, 16, 1).double()
    for p in net.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64)
    data = torch.randn(3 * chunks - 1, 2, generator=g, dtype=torch.float64)
    return sdegen.ScoreModel(net, sdegen.CondOT(), "velocity"), data


def work(directory: str, chunks: int) -> None:
    """What one process does."""
    sdegen.evaluate(*problem(chunks), directory=directory, **SETTINGS)


def start(directory: str, chunks: int, index: int = 0, count: int = 1) -> int:
    """A process that works on its shard and ends; its id."""
    pid = os.fork()
    if pid == 0:
        os.environ.update(RANK=f"{index}", WORLD_SIZE=f"{count}")
        try:
            work(directory, chunks)
        finally:
            sys.stderr.flush()
            os._exit(1 if sys.exc_info()[0] else 0)
    return pid


def shards(directory: str, count: int) -> int:
    """All at once; how many failed."""
    pids = [start(directory, 40, index, count) for index in range(count)]
    return sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)


def kills(directory: str, count: int, seed: int) -> int:
    """Start and kill; every second process is one of two shards, so that gaps arise."""
    chance, died = random.Random(seed), 0
    for life in range(count):
        before = len(list(Path(directory).glob("chunk*")))
        pid = start(directory, kills_chunks(count), *((life // 2 % 2, 2) if life % 2 else (0, 1)))
        wanted = before + chance.randint(0, 2 * CHUNKS_A_LIFE)
        ended = 0
        while not ended and len(list(Path(directory).glob("chunk*"))) < wanted:
            ended = os.waitpid(pid, os.WNOHANG)[0]
        time.sleep(chance.uniform(0, 0.02))
        if not ended:
            os.kill(pid, signal.SIGKILL)
            died += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    return died


def kills_chunks(count: int) -> int:
    """Chunks enough for so many lives."""
    return 3 * CHUNKS_A_LIFE * count


def main() -> None:
    """As the arguments say."""
    torch.set_num_threads(1)
    where, what, *numbers = sys.argv[1:]
    print({"shards": shards, "kills": kills}[what](where, *map(int, numbers)))


if __name__ == "__main__":
    main()
