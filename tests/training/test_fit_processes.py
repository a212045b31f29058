"""fit on two processes: the curve of one, in losses, weights and average."""

from __future__ import annotations

import os
import subprocess
import sys

import fitted
import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("safetensors")


@pytest.mark.slow
def test_two_processes_walk_the_curve_of_one(tmp_path):
    """60 steps in single precision: 1e-6, with parts, conditions, a coupling and a data set; resumed in its bits."""
    torch.set_default_dtype(torch.float32)
    ours = tmp_path / "one"
    ours.mkdir()
    alone = fitted.curves(str(ours))
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*launched, fitted.__file__, str(tmp_path)],
        check=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert alone.pop("bits")
    assert first.pop("bits")
    assert second.pop("bits")
    for name, curve in alone.items():
        assert len(first[name]["losses"]) == 60
        assert second[name]["losses"] == []
        torch.testing.assert_close(
            torch.tensor(first[name]["losses"]), torch.tensor(curve["losses"]), rtol=0, atol=1e-6
        )
        for what in ("weights", "average"):
            torch.testing.assert_close(first[name][what], curve[what], rtol=0, atol=1e-6)
            assert torch.equal(first[name][what], second[name][what])
    assert not torch.equal(alone["plain"]["weights"], alone["cond"]["weights"])
