"""Several processes train one model, draw from it and score held-out data: on two CPU cores as on many GPUs.

    torchrun --nproc-per-node 2 examples/distributed.py [--quick] [--out DIRECTORY]

Stop it at any moment and start it again, with as many processes as there are now: training goes on from its last
checkpoint, and of samples and scores only the missing chunks are computed. The numbers do not depend on how often it
was stopped, and on the number of processes only by rounding in the training.

What to change for 8 GPUs: the number of processes, and nothing in this file.

    torchrun --nproc-per-node 8 examples/distributed.py --out DIRECTORY

For several nodes, here two with 8 GPUs each: start the same line on both, DIRECTORY on a disk that both see and HOST
the name of one of them. In this file, multiply BATCH, the batch of all processes together, as the GPUs have room.

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --rdzv-id 1 \\
        examples/distributed.py --out DIRECTORY
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

import sdegen
from sdegen.datasets import two_moons
from sdegen.nets import MLP

BATCH = 256
SOLVER = sdegen.StochasticAdams(30)


def train(data: torch.Tensor, device: torch.device, steps: int, checkpoint: Path) -> sdegen.ScoreModel:
    """One model from all processes: each takes its share of every batch."""
    torch.manual_seed(0)
    model = sdegen.ScoreModel(MLP(2, hidden=128).to(device), sdegen.VPSDE(), predicts="v")
    return sdegen.fit(model, data, steps=steps, batch_size=BATCH, checkpoint=checkpoint, progress=False)


def share(n: int, chunk: int, rank: int, processes: int) -> str:
    """The rows of a process, in words: every `processes`-th chunk."""
    rows = [f"{first} to {min(first + chunk, n) - 1}" for first in range(rank * chunk, n, processes * chunk)]
    return ", ".join(rows[:2]) + (" and so on" if len(rows) > 2 else "") if rows else "none"


def together() -> None:
    """Wait for the other processes: nothing else in sampling and scoring does."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def report(samples: sdegen.Samples, data: torch.Tensor) -> None:
    """How far the first samples are from fresh data, beside draws of a Gaussian fitted to the training data."""
    first, fresh = samples[:2000], two_moons(2000)
    gaussian = data.mean(0) + torch.randn_like(first) @ torch.linalg.cholesky(torch.cov(data.T)).T
    ours, theirs = (sdegen.energy_distance(x, fresh) for x in (first, gaussian))
    print(f"{len(samples)} samples in {len(samples.paths)} files, complete: {samples.complete}")
    print(f"energy distance to fresh data: the model's {ours:.4f}, a Gaussian's {theirs:.4f}")


def main(arguments: list[str] | None = None) -> None:
    """Train, sample, score; the first process prints what all of them found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller run, for tests")
    parser.add_argument("--out", type=Path, default=Path("distributed"), help="where everything is kept")
    asked = parser.parse_args(arguments)
    steps, n, chunk, scored = (300, 2000, 250, 200) if asked.quick else (5000, 100_000, 5000, 5000)
    # torchrun tells every process who it is; without it there is one.
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = torch.device(gpu if torch.cuda.is_available() else "cpu")
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)  # the same data in every process
    data, held_out = two_moons(10_000), two_moons(scored)
    if processes > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    began = time.perf_counter()
    model = train(data, device, steps, asked.out / "model.safetensors")
    trained = time.perf_counter()
    samples = sdegen.sample_many(model, (n, 2), SOLVER, directory=asked.out / "samples", batch_size=chunk)
    score = {"directory": asked.out / "scores", "batch_size": scored // 8}
    sdegen.evaluate(model, held_out.to(device), **score)
    took = f"trained {trained - began:.1f} s, drew and scored {time.perf_counter() - trained:.1f} s"
    drew, read = share(n, chunk, rank, processes), share(scored, scored // 8, rank, processes)
    print(f"process {rank} of {processes} on {device}: samples {drew}; scores {read}; {took}", flush=True)

    together()
    if rank == 0:
        print(sdegen.evaluate(model, held_out.to(device), **score))  # from the disk: no network call
        report(samples, data)
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
