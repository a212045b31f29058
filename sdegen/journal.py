"""A journal: the results of a long computation, chunk by chunk, in a directory that outlives its processes.

n samples are cut into chunks of fixed composition: chunk c holds the samples c b ... min((c+1) b, n) - 1, whatever the
number of processes; of `count` processes, the one called `index` computes the chunks with c mod count = index. They
never talk to each other. Every chunk is one file, and so are the settings of the computation:

    manifest.json            SHA-256 and description of everything that decides the numbers
    chunk-00000012.npz       the tensors of one chunk, behind them 64 digits of SHA-256 (key, number, all other bytes)

with the manifest's own SHA-256 as the key. A file is written under another name, flushed to the disk and then renamed,
so under its own name it is whole or absent, whenever a process is killed. On reading, the digest is compared before
anything else: a file that was cut off, changed, renamed, or brought from another journal counts as absent.
Nothing is pickled; `numpy.load` opens a chunk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sdegen import _checks
from sdegen._files import prepare_folder, write_whole
from sdegen._fingerprint import fingerprint
from sdegen.solvers.base import bar

FORMAT = 1
MANIFEST = "manifest.json"
DIGITS = 64
COLLECTIVE = ("DistributedDataParallel", "FullyShardedDataParallel")
"""Networks whose processes wait for each other in every call."""


@dataclass(frozen=True)
class Chunks:
    """n samples in chunks of `size`, the last one smaller where it must be.

    Args:
        n: the number of samples.
        size: samples in one chunk.
    """

    n: int
    size: int

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def rows(self, chunk: int) -> range:
        """The samples of a chunk."""
        return range(chunk * self.size, min((chunk + 1) * self.size, self.n))

    def of_shard(self, shard: tuple[int, int]) -> range:
        """The chunks of one of several processes."""
        return range(shard[0], len(self), shard[1])


def checked_shard(shard: object) -> tuple[int, int]:
    """(index, count), 0 <= index < count; where None is given, torchrun's RANK and WORLD_SIZE, or else (0, 1)."""
    if shard is None:
        rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        if rank is None or world is None:
            return 0, 1
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            raise ValueError(
                f"RANK and WORLD_SIZE in the environment must be whole numbers, the first below the second, and they "
                f"are {rank!r} and {world!r}; give shard=(index, count)."
            )
        return int(rank), int(world)
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise TypeError(f"shard must be a pair (index, count) of integers, and it is {shard!r}.")
    index, count = _checks.whole("the index in shard", shard[0], 0), _checks.whole("the count in shard", shard[1], 1)
    if index >= count:
        raise ValueError(f"shard must be (index, count) with 0 <= index < count, and it is {(index, count)}.")
    return index, count


def sample_generators(seed: int, samples: Iterable[int], device: torch.device) -> list[torch.Generator]:
    """One generator for each sample, which depends on the seed and the sample's number alone.

    On the CPU a torch.Generator knows only the lowest 32 bits of what it is seeded with. These are a permutation of the
    sample's number, another one for every seed, so that no two of the first 2^32 samples share their draws.
    """
    keys = hashlib.sha256(f"sdegen {seed}".encode()).digest()
    first, second, high = (int.from_bytes(keys[4 * i : 4 * i + 4], "big") for i in range(3))
    return [
        torch.Generator(device=device).manual_seed(
            (high ^ (i >> 32)) << 32 | _mixed(_mixed(i & 0xFFFFFFFF ^ first) ^ second)
        )
        for i in samples
    ]


def _mixed(n: int) -> int:
    """A permutation of the numbers of 32 bits, the last step of MurmurHash3."""
    n = (n ^ n >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    n = (n ^ n >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return n ^ n >> 16


class Unsaved:
    """A journal that stays in memory: the chunks of this process alone."""

    def __init__(self) -> None:
        self._chunks: dict[int, dict[str, Tensor]] = {}

    def read(self, chunk: int) -> dict[str, Tensor] | None:
        """The tensors of a chunk, None if it is not there."""
        return self._chunks.get(chunk)

    def prepare(self) -> None:
        """Nothing to do."""

    def write(self, chunk: int, values: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a chunk."""
        self._chunks[chunk] = dict(values)


class Journal:
    """The chunks of one computation in one directory, which any number of processes may write to.

    Opening it compares the manifest and writes nothing, so that a finished journal may lie where nobody can write. The
    manifest comes with the first chunk: a computation that fails before leaves the directory to any other.

    Args:
        directory: where the files are; made if it is not there.
        about: everything that decides the numbers, by name: models, tensors, values, see `fingerprint`.

    Raises:
        TypeError: a directory that is no path.
        ValueError: a directory of another computation, naming what differs; a file; a manifest that cannot be read.
        OSError: later, for a directory that cannot be made or written to, or a full disk.
    """

    def __init__(self, directory: str | os.PathLike[str], about: Mapping[str, object]):
        if not isinstance(directory, (str, os.PathLike)):
            raise TypeError(f"directory must be a path, and {directory!r} is {type(directory).__name__}.")
        self.directory = Path(directory)
        about = {"format": FORMAT, **about}
        self.manifest = {name: {"is": _words(v), "sha256": fingerprint(v)} for name, v in about.items()}
        digests = {name: entry["sha256"] for name, entry in self.manifest.items()}
        self._key = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).digest()
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"directory must be a folder, and {str(directory)!r} is a file.")
        self._compare()

    def read(self, chunk: int) -> dict[str, Tensor] | None:
        """The tensors of a chunk, on the CPU; None if it is not there, damaged or another computation's."""
        try:
            data = self.file(chunk).read_bytes()
        except FileNotFoundError:
            return None
        body, digest = data[:-DIGITS], data[-DIGITS:]
        if self._digest(chunk, body) != digest:
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    def prepare(self) -> None:
        """Make the directory and try to write to it, before hours are spent; clear away what dead processes left."""
        prepare_folder(self.directory)

    def write(self, chunk: int, values: Mapping[str, Tensor]) -> None:
        """Write the tensors of a chunk, after the manifest if that is not there yet."""
        if not self._compare():  # another computation may have begun here meanwhile
            write_whole(self.directory / MANIFEST, json.dumps(self.manifest, indent=2, sort_keys=True).encode())
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as file:
            for name, value in values.items():
                with file.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, value.detach().cpu().numpy(), allow_pickle=False)
            file.comment = bytes(DIGITS)  # the last bytes of the file
        body = held.getvalue()[:-DIGITS]
        write_whole(self.file(chunk), body + self._digest(chunk, body))

    def file(self, chunk: int) -> Path:
        """Where a chunk is kept."""
        return self.directory / f"chunk-{chunk:08d}.npz"

    def _digest(self, chunk: int, body: bytes) -> bytes:
        return hashlib.sha256(self._key + chunk.to_bytes(8, "big") + body).hexdigest().encode()

    def _compare(self) -> bool:
        """Whether there is a manifest; a ValueError that names what differs if it is another computation's."""
        try:
            theirs = json.loads((self.directory / MANIFEST).read_bytes())
            there = {name: (entry["is"], entry["sha256"]) for name, entry in theirs.items()}
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{str(self.directory / MANIFEST)!r} cannot be read as a journal's manifest: give another directory."
            ) from error
        here = {name: (entry["is"], entry["sha256"]) for name, entry in self.manifest.items()}
        absent = ("absent", "")
        pairs = {name: (there.get(name, absent), here.get(name, absent)) for name in {**here, **there}}
        differ = [f"{name} ({_difference(a[0], b[0])})" for name, (a, b) in pairs.items() if a[1] != b[1]]
        if differ:
            raise ValueError(
                f"directory {str(self.directory)!r} belongs to another computation, which differs in "
                f"{', '.join(differ)}: give another directory, or the same arguments to go on with this one."
            )
        return True


def refuse_collective(network: nn.Module, shard: tuple[int, int]) -> None:
    """A ValueError if processes with different numbers of chunks would wait for each other inside the network."""
    together = [type(m).__name__ for m in network.modules() if type(m).__name__ in COLLECTIVE]
    if together and shard[1] > 1:
        raise ValueError(
            f"The network is a {together[0]}, whose processes wait for each other in every call, and shards take "
            "different numbers of calls, so they would wait for ever: pass model.module, whole in every process."
        )


def compute_missing(
    journal: Journal | Unsaved,
    chunks: Chunks,
    shard: tuple[int, int],
    compute: Callable[[range], Mapping[str, Tensor]],
    progress: bool,
) -> None:
    """Write what `compute` gives for the samples of every chunk of this shard that is not in the journal yet."""
    missing = [c for c in chunks.of_shard(shard) if journal.read(c) is None]
    if missing:
        journal.prepare()
    with bar(len(missing), progress) as chunk_done:
        for c in missing:
            journal.write(c, compute(chunks.rows(c)))
            chunk_done()


def _words(value: object) -> str:
    """A few words for a value: its repr where that is short and holds no address, else its class."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
    words = type(value).__name__ if isinstance(value, torch.nn.Module) else repr(value)
    short = len(words) <= 200 and "\n" not in words and not re.search(r"0x[0-9a-fA-F]{4,}|tensor\(", words)
    return words if short else type(value).__name__


def _difference(there: str, here: str) -> str:
    return f"{there} there, {here} here" if there != here else f"another {here}"
