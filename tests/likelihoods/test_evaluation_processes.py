"""One evaluation by several processes, and by processes that are killed: the bits of a single quiet run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import evaluated
import pytest
import torch

import sdegen

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def alone(chunks: int) -> torch.Tensor:
    return sdegen.evaluate(*evaluated.problem(chunks), **evaluated.SETTINGS).per_sample


def worked(directory: Path, *arguments: object) -> int:
    command = [sys.executable, evaluated.__file__, str(directory), *map(str, arguments)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@FORKS
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_give_the_bits_of_one(count, tmp_path):
    assert worked(tmp_path, "shards", count) == 0
    assert len(list(tmp_path.glob("chunk-*.npz"))) == 40
    model, data = evaluated.problem()
    whole = sdegen.evaluate(model, data, directory=tmp_path, shard=(1, 4), **evaluated.SETTINGS)
    assert whole.complete
    assert torch.equal(whole.per_sample, alone(40))
    parts = [sdegen.evaluate(model, data, shard=(i, count), **evaluated.SETTINGS) for i in range(count)]
    assert not any(part.complete for part in parts)
    assert torch.equal(torch.stack([part.per_sample for part in parts]).nansum(0), whole.per_sample)
    assert sum(len(part.scored) for part in parts) == len(data)


@FORKS
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lives", [5, pytest.param(50, marks=pytest.mark.nightly)])
def test_killed_at_random_moments_and_resumed_it_gives_the_same_bits(lives, tmp_path):
    assert worked(tmp_path, "kills", lives, lives) == lives
    chunks = evaluated.kills_chunks(lives)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("chunk-*.npz")}
    assert lives <= len(before) < chunks, "there must be work done and work left"
    model, data = evaluated.problem(chunks)
    resumed = sdegen.evaluate(model, data, directory=tmp_path, **evaluated.SETTINGS)
    assert resumed.complete
    assert torch.equal(resumed.per_sample, alone(chunks))
    assert all(file.stat().st_mtime_ns == written for file, written in before.items()), "computed twice"
