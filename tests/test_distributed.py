"""The example of several processes: two of them on this machine, by torchrun, and one that finds all work done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = str(ROOT / "examples" / "distributed.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def said(*command: str, out: Path) -> str:
    """What the example prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = (sys.executable, *command, EXAMPLE, "--quick", "--out", str(out))
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_share_the_work_and_a_single_one_finds_it_done(tmp_path):
    pytest.importorskip("accelerate")
    found = said(*TORCHRUN, out=tmp_path)
    for rank, rows in enumerate((("0 to 249, 500 to 749", "0 to 24, 50"), ("250 to 499, 750 to 999", "25 to 49, 75"))):
        assert f"process {rank} of 2 on cpu: samples {rows[0]} and so on; scores {rows[1]}" in found
    assert "200 of 200 samples" in found
    assert "2000 samples in 8 files, complete: True" in found
    ours, theirs = (float(d) for d in re.search(r"the model's (\S+), a Gaussian's (\S+)\n", found).groups())
    assert ours < 0.8 * theirs
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("s*/chunk-*.npz")}
    assert len(before) == 16
    alone = said(out=tmp_path)
    assert "process 0 of 1 on cpu: samples 0 to 249, 250 to 499 and so on" in alone
    assert alone.splitlines()[-3:] == found.splitlines()[-3:]
    assert all(file.stat().st_mtime_ns == written for file, written in before.items()), "computed twice"
