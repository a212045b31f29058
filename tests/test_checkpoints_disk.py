"""Whatever happens to the process or the disk, the last checkpoint is there and whole."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_checkpoints import network, same_weights

import sdegen
from sdegen import _files


def model(seed: int = 1) -> sdegen.ScoreModel:
    return sdegen.ScoreModel(network(seed), sdegen.VPSDE())


class Died(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", range(4))
def test_a_process_that_dies_at_any_step_leaves_the_old_or_the_new_file(step, tmp_path, monkeypatch):
    """Opened, synced, renamed, folder synced."""
    file, left = tmp_path / "model.safetensors", [step]
    sdegen.save(file, model(), step=1)

    def dying(call):
        def counted(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Died
            return call(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(_files.Path, "unlink", lambda self, missing_ok=False: None)  # a dead process clears nothing
        for owner, name in ((os, "fsync"), (os, "replace"), (_files, "open")):
            patch.setattr(owner, name, dying(getattr(owner, name, open)), raising=False)
        with pytest.raises(Died):
            sdegen.save(file, model(2), step=2)
    seed = 2 if step == 3 else 1
    assert sdegen.load_state(file) == {"step": seed}
    assert same_weights(sdegen.load(file, network(3)), model(seed))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(call, tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    sdegen.save(file, model(), step=1)
    before = file.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            sdegen.save(file, model(2), step=2)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == [file.name]


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
def test_a_disk_that_is_truly_full(tmp_path):
    """A process that may write no file above 50 000 bytes; the next try is as good as the first."""
    resource = pytest.importorskip("resource")
    file, soft_and_hard = tmp_path / "model.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    sdegen.save(file, model(), step=1)
    wide = sdegen.ScoreModel(network(2, 64), sdegen.VPSDE())
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, soft_and_hard[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            sdegen.save(file, wide, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft_and_hard)
    assert sdegen.load_state(file) == {"step": 1}
    assert os.listdir(tmp_path) == [file.name]
    sdegen.save(file, wide, step=2)
    assert file.stat().st_size > 50_000


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    sdegen.save(file, model(), step=1)
    if os.geteuid():
        os.chmod(tmp_path, 0o500)
    else:  # root may write everywhere

        def denied(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(_files.tempfile, "TemporaryFile", denied)
    try:
        with pytest.raises(PermissionError, match="Permission denied"):
            sdegen.save(file, model(2), step=2)
    finally:
        os.chmod(tmp_path, 0o700)
    assert sdegen.load_state(file) == {"step": 1}
    monkeypatch.undo()
    for place in ("model.safetensors/inside", ""):
        with pytest.raises(OSError, match=r"Not a directory|Is a directory|File exists"):
            sdegen.save(tmp_path / place, model())
    assert os.listdir(tmp_path) == [file.name]


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path):
    (tmp_path / "big").mkdir()
    link = tmp_path / "last.safetensors"
    link.symlink_to(tmp_path / "big" / "model.safetensors")
    sdegen.save(link, model(), step=1)
    sdegen.save(link, model(2), step=2)
    assert link.is_symlink()
    assert sdegen.load_state(tmp_path / "big" / "model.safetensors") == {"step": 2}


def test_what_dead_processes_left_is_cleared_once_it_is_old(tmp_path):
    file = tmp_path / "a[1].safetensors"
    names = [f".{file.name}.aa.unfinished", f".{file.name}.bb.unfinished", ".b.safetensors.cc.unfinished"]
    young, old, others = (tmp_path / name for name in names)
    for each in (young, old, others):
        each.write_bytes(b"half")
        os.utime(each, (0, time.time() - (10 if each is young else 2 * _files.STALE_AFTER)))
    sdegen.save(file, model())
    assert sorted(os.listdir(tmp_path)) == sorted([young.name, others.name, file.name])


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.nightly)])
def test_kill_9_while_a_checkpoint_is_being_written(kills, tmp_path):
    """At least 3 of 5; every file that is left loads, and holds one step later than the one before."""
    script = Path(__file__).with_name("killing.py")
    command = [sys.executable, str(script), str(tmp_path / "model.safetensors"), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert int(done.stdout.split()[0]) >= 0.6 * kills
