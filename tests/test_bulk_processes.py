"""Samples by several processes, by torchrun's, and by processes that are killed: the bits of a single quiet run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import evaluated
import pytest
import sampled
import torch

import sdegen

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def worked(directory: Path, *arguments: object) -> int:
    command = [sys.executable, sampled.__file__, str(directory), *map(str, arguments)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@FORKS
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_give_the_bits_of_one(count, tmp_path):
    assert worked(tmp_path / "many", "shards", count) == 0
    found = sampled.draw(tmp_path / "many", 40)
    assert found.complete
    assert len(found.paths) == 40
    assert torch.equal(found.tensor(), sampled.draw(tmp_path / "one", 40).tensor())


@FORKS
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lives", [5, pytest.param(50, marks=pytest.mark.nightly)])
def test_killed_at_random_moments_and_resumed_the_samples_have_the_same_bits(lives, tmp_path):
    """Each life is ended by SIGKILL; what was finished before it is never drawn again."""
    assert worked(tmp_path / "killed", "kills", lives, lives) == lives
    chunks = evaluated.kills_chunks(lives)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed").glob("chunk-*.npz")}
    assert lives <= len(before) < chunks, "there must be work done and work left"
    resumed = sampled.draw(tmp_path / "killed", chunks)
    assert torch.equal(resumed.tensor(), sampled.draw(tmp_path / "quiet", chunks).tensor())
    assert all(file.stat().st_mtime_ns == written for file, written in before.items()), "drawn twice"


def test_a_process_of_torchrun_draws_its_own_chunks_and_says_which_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    model, data = evaluated.problem(4)
    ours = sampled.draw(tmp_path, 4)
    assert [Path(path).name for path in ours.paths] == ["chunk-00000001.npz", "chunk-00000003.npz"]
    assert not ours.complete
    expected = sdegen.sample(model, data.shape, sampled.SOLVER, generator=sdegen.seeds(11, 5))
    torch.testing.assert_close(ours[3:6], expected[3:6], rtol=0, atol=1e-12)
    for unread in (lambda: ours[2], ours.tensor, lambda: list(ours.chunks()), lambda: next(iter(ours))):
        with pytest.raises(ValueError, match=r"Samples 0 to 2 are not in '.*': another process has not drawn them"):
            unread()
    sampled.draw(tmp_path, 4)
    monkeypatch.setenv("RANK", "0")
    assert sampled.draw(tmp_path, 4).complete
    assert ours.complete, "what was returned earlier reads the disk"
    torch.testing.assert_close(ours.tensor(), expected, rtol=0, atol=1e-12)


MEMORY = """
import sys, torch, sdegen
n, d = 20_000, 640

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

torch.set_num_threads(1)
model = sdegen.Gaussian(torch.zeros(640), 1.0).model(sdegen.VPSDE())
kept = {"directory": sys.argv[1], "batch_size": 200}
sdegen.sample_many(model, (200, d), sdegen.DDIM(1), directory=sys.argv[1] + "/warm", batch_size=200)
before = peak()
samples = sdegen.sample_many(model, (n, d), sdegen.DDIM(1), **kept)
read = sum(len(chunk) for chunk in samples.chunks())
grown = peak() - before
last = sdegen.sample(model, (1, d), sdegen.DDIM(1), generator=sdegen.seeds(n)[-1:])
print(grown, 4 * n * d // 1024, read, float((samples[-1] - last[0]).abs().max() / last.std()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of the memory from /proc")
def test_drawing_and_reading_hold_a_few_chunks_and_not_the_samples(tmp_path):
    said = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], check=True, capture_output=True, text=True)
    grown, size, read, apart = map(float, said.stdout.split())
    assert grown < 0.2 * size
    assert read == 20_000
    assert apart < 1e-5
