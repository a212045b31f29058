"""The journal: a chunk is whole or absent whenever a process stops, and nothing else is ever taken for one."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from itertools import chain

import numpy as np
import pytest
import torch

from sdegen import _files, journal
from sdegen.journal import Chunks, Journal, checked_shard, sample_generators

ABOUT = {"seed": 1, "data": torch.arange(6.0), "solver": None}
VALUES = {"a": torch.arange(5, dtype=torch.float64) / 3, "b": torch.tensor([[True, False]]), "c": torch.ones(2, 0)}


def same(read: dict[str, torch.Tensor] | None) -> bool:
    return (
        read is not None
        and read.keys() == VALUES.keys()
        and all(read[n].dtype is v.dtype and torch.equal(read[n], v) for n, v in VALUES.items())
    )


def written(directory, chunk: int = 3):
    kept = Journal(directory, ABOUT)
    kept.prepare()
    kept.write(chunk, VALUES)
    return kept, directory / f"chunk-{chunk:08d}.npz"


def test_what_was_written_is_read_by_another_process_and_by_numpy(tmp_path):
    _, file = written(tmp_path / "new" / "folder")
    again = Journal(str(tmp_path / "new" / "folder"), dict(ABOUT))
    assert same(again.read(3))
    assert again.read(2) is None
    with np.load(file, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["a"], VALUES["a"].numpy())
    assert {entry["is"] for entry in json.loads((file.parent / "manifest.json").read_text()).values()} >= {"1", "None"}


def test_every_file_cut_off_and_every_flipped_bit_is_found(tmp_path):
    kept, file = written(tmp_path)
    data = file.read_bytes()
    for percent in range(100):
        file.write_bytes(data[: len(data) * percent // 100])
        assert kept.read(3) is None
    chance = random.Random(0)
    for _ in range(300):
        bit = chance.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        assert kept.read(3) is None
    file.write_bytes(data + b"\0")
    assert kept.read(3) is None
    kept.write(3, VALUES)
    assert same(kept.read(3))


def test_a_file_of_another_chunk_or_another_computation_is_not_taken(tmp_path):
    kept, file = written(tmp_path / "ours")
    shutil.copy(file, tmp_path / "ours" / "chunk-00000004.npz")
    assert kept.read(4) is None
    other = Journal(tmp_path / "theirs", {**ABOUT, "seed": 2})
    other.prepare()
    other.write(5, VALUES)
    shutil.copy(tmp_path / "theirs" / "chunk-00000005.npz", tmp_path / "ours")
    assert kept.read(5) is None
    pickled = tmp_path / "ours" / "chunk-00000006.npz"
    np.savez(pickled, a=np.array([{}], dtype=object))
    assert kept.read(6) is None


class Died(BaseException):
    """What no handler of errors may catch, like a kill."""


@pytest.mark.parametrize("step", range(8))
def test_a_process_that_dies_at_any_step_of_a_write_leaves_the_old_or_the_new_file(step, tmp_path, monkeypatch):
    """The steps are those of two files, first the manifest's: opened, synced, renamed, folder synced."""
    kept, left = Journal(tmp_path, ABOUT), [step]

    def dying(call):
        def counted(*args, **kwargs):
            if not left[0]:
                raise Died
            left[0] -= 1
            return call(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(journal.Path, "unlink", lambda self, missing_ok=False: None)  # a dead process clears nothing
        patch.setattr(os, "fsync", dying(os.fsync))
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(_files, "open", dying(open), raising=False)
        with pytest.raises(Died):
            kept.write(0, VALUES)
    names = {file.name for file in tmp_path.iterdir() if not file.name.endswith(".unfinished")}
    again = Journal(tmp_path, ABOUT)
    assert names == {"manifest.json", "chunk-00000000.npz"} - ({"manifest.json"} if step < 3 else set()) - (
        {"chunk-00000000.npz"} if step < 7 else set()
    )
    assert same(again.read(0)) == (step == 7)
    again.write(0, VALUES)
    assert same(Journal(tmp_path, ABOUT).read(0))


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    kept, _ = written(tmp_path)

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            kept.write(4, VALUES)
    assert {file.name for file in tmp_path.iterdir()} == {"manifest.json", "chunk-00000003.npz"}


def test_unfinished_files_are_cleared_once_they_are_old(tmp_path):
    written(tmp_path)
    young, old, foreign = (tmp_path / n for n in (".chunk-1.npz.aa.unfinished", ".chunk-2.npz.bb.unfinished", "mine"))
    for file in (young, old, foreign):
        file.write_bytes(b"half")
        os.utime(file, (0, time.time() - (10 if file is young else 2 * _files.STALE_AFTER)))
    Journal(tmp_path, ABOUT).prepare()
    assert young.exists()
    assert foreign.exists()
    assert not old.exists()


def test_another_computation_is_refused_by_name(tmp_path):
    kept, file = written(tmp_path)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"differs in seed \(1 there, 2 here\): give another directory"):
        Journal(tmp_path, {**ABOUT, "seed": 2})
    with pytest.raises(ValueError, match=r"differs in data \(another float32 tensor \(6,\)\): "):
        Journal(tmp_path, {**ABOUT, "data": torch.ones(6, dtype=torch.float32)})
    with pytest.raises(ValueError, match=r"verb \(absent there, 'sample' here\), solver \(None there, absent here\)"):
        Journal(tmp_path, {"verb": "sample", "seed": 1, "data": ABOUT["data"]})
    assert file.read_bytes() == before
    shutil.rmtree(tmp_path)
    kept.directory.mkdir()
    Journal(tmp_path, {**ABOUT, "seed": 2}).write(0, VALUES)
    with pytest.raises(ValueError, match=r"differs in seed \(2 there, 1 here\)"):  # begun here meanwhile
        kept.write(0, VALUES)


@pytest.mark.parametrize("manifest", [b"", b"{", b"[1]", b'{"seed": 3}', b"\xff\xfe", b'{"seed": {"is": "1"}}'])
def test_a_directory_that_is_no_journal_is_refused(manifest, tmp_path):
    (tmp_path / "manifest.json").write_bytes(manifest)
    with pytest.raises(ValueError, match=r"manifest.json' cannot be read as a journal's manifest: give another"):
        Journal(tmp_path, ABOUT)
    with pytest.raises(ValueError, match=r"directory must be a folder, and '.*manifest.json' is a file"):
        Journal(tmp_path / "manifest.json", ABOUT)
    with pytest.raises(TypeError, match="directory must be a path, and 3 is int"):
        Journal(3, ABOUT)


def test_opening_writes_nothing_and_the_manifest_comes_with_the_first_chunk(tmp_path):
    directory = tmp_path / "new"
    kept = Journal(directory, ABOUT)
    assert kept.read(0) is None
    assert not directory.exists()
    kept.prepare()
    assert not list(directory.iterdir())
    Journal(directory, {**ABOUT, "seed": 2})


@pytest.mark.parametrize(("n", "size"), [(0, 4), (1, 4), (4, 4), (5, 4), (12, 4), (7, 1)])
def test_shards_part_the_samples_and_chunks_do_not_depend_on_them(n, size):
    chunks = Chunks(n, size)
    rows = [list(chunks.rows(c)) for c in range(len(chunks))]
    assert list(chain(*rows)) == list(range(n))
    assert all(len(part) == size for part in rows[:-1])
    for count in (1, 2, 3, 9):
        taken = [list(chunks.of_shard((i, count))) for i in range(count)]
        assert sorted(chain(*taken)) == list(range(len(chunks)))


def test_a_shard_is_an_index_below_a_count(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert checked_shard(None) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    assert checked_shard(None) == (3, 4)
    assert checked_shard((0, 2)) == (0, 2)
    for rank in ("4", "-1", "one"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ValueError, match=f"RANK and WORLD_SIZE .* they are '{rank}' and '4'; give shard="):
            checked_shard(None)
    with pytest.raises(ValueError, match=r"0 <= index < count, and it is \(3, 3\)"):
        checked_shard((3, 3))
    with pytest.raises(ValueError, match="the index in shard must be at least 0, and it is -1"):
        checked_shard((-1, 3))
    with pytest.raises(ValueError, match="the count in shard must be at least 1, and it is 0"):
        checked_shard((0, 0))
    for wrong in (3, (1,), "01", (0, 1, 2)):
        with pytest.raises(TypeError, match="shard must be a pair"):
            checked_shard(wrong)
    with pytest.raises(TypeError, match=r"the index in shard must be an integer, and 0\.5 is float"):
        checked_shard((0.5, 2))


def test_every_sample_has_random_numbers_of_its_own():
    """Two generators of one seed on the CPU agree wherever the lowest 32 bits of their seeds do."""
    cpu = torch.device("cpu")
    seeds = [g.initial_seed() & 0xFFFFFFFF for g in sample_generators(0, range(200_000), cpu)]
    assert len(set(seeds)) == len(seeds)
    ends = [2**32 - 1, 2**31, 0]
    assert len({g.initial_seed() & 0xFFFFFFFF for g in sample_generators(7, ends, cpu)}) == 3
    first, other = (
        torch.stack([torch.randn(4, generator=g) for g in sample_generators(s, range(2000), cpu)]) for s in (0, 1)
    )
    assert len(set(first.flatten().tolist()) | set(other.flatten().tolist())) == 16_000
    assert abs(float(torch.corrcoef(torch.stack([first[:-1, 0], first[1:, 0]]))[0, 1])) < 5 / 2000**0.5
    again = torch.stack([torch.randn(4, generator=g) for g in sample_generators(0, [5, 1999, 5], cpu)])
    assert torch.equal(again, first[[5, 1999, 5]])


def test_the_generators_are_those_of_every_version():
    """Frozen: resumed on another day, by another version, a sample keeps its draws."""
    found = [g.initial_seed() for g in sample_generators(5, [0, 1, 2**32], torch.device("cpu"))]
    assert found == FROZEN


FROZEN = [3076294162506008525, 3076294161603280038, 3076294158211041229]
