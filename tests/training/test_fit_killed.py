"""A training that is killed -9 again and again ends in the bits of one that is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
@pytest.mark.parametrize(
    "kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.nightly)]
)
def test_killed_trainings_go_on_to_the_same_bits(kills, tmp_path):
    places = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(TESTS / "killed_training.py"), str(tmp_path), str(kills)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": places},
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) >= int(0.6 * kills)
