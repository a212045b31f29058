"""Many samples, more than fit into memory: interrupted, resumed, spread over processes, the same bits.

Sample i of seed s is a function of the model, the solver, s and i: its start x_T and all its noise come from a
generator of its own, which depends on (s, i) alone. Samples are drawn in chunks of fixed composition, every finished
chunk is a file (journal.py), and what comes back reads these files when it is asked. So neither the number of processes
nor an interruption can be told from the samples, and no more than one chunk is ever held.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from operator import index
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import check_model, interval
from sdegen._solving import dtype_and_device, torch_device
from sdegen._version import __version__
from sdegen.journal import Chunks, Journal, checked_shard, compute_missing, refuse_collective, sample_generators
from sdegen.models.base import Cond, Model
from sdegen.sampling import check_solver, sample
from sdegen.solvers.base import Solver


class Samples:
    """The samples of a `sample_many`, read from the disk when they are asked for, on the CPU.

    `samples[i]` is sample i, shape (*event), `samples[3:9]` several, (6, *event), and `len(samples)` is n: a data set
    that torch's DataLoader takes. One chunk is kept in memory, the last that was read. A sample that another process
    has yet to draw is a ValueError.

    Attributes:
        shape: (n, *event).
        dtype: of the samples.

    Examples:
        >>> import sdegen, tempfile
        >>> model = sdegen.Gaussian([0.0, 1.0], 0.5).model(sdegen.CondOT())
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     samples = sdegen.sample_many(model, (10, 2), sdegen.Adams(10), directory=directory, batch_size=4)
        ...     print(samples[7].shape, samples[:3].shape, samples.tensor().shape, len(samples.paths))
        torch.Size([2]) torch.Size([3, 2]) torch.Size([10, 2]) 3
    """

    def __init__(self, journal: Journal, chunks: Chunks, shape: tuple[int, ...], dtype: torch.dtype):
        self.shape, self.dtype = shape, dtype
        self._journal, self._chunks = journal, chunks
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: SupportsIndex | slice | Sequence[int] | Tensor | np.ndarray) -> Tensor:
        """Sample i, (*event), or several, (k, *event), as a tensor of its own."""
        if isinstance(which, (Tensor, np.ndarray)):
            which = which.tolist()
        if isinstance(which, slice):
            which = range(len(self))[which]
        if isinstance(which, (range, list, tuple)):
            return torch.stack([self._one(i) for i in which]) if len(which) else self._empty()
        return self._one(which)

    def __iter__(self) -> Iterator[Tensor]:
        """One sample after another; `chunks` is quicker."""
        return (row.clone() for chunk in self.chunks() for row in chunk)

    def __repr__(self) -> str:
        n, dtype = len(self.paths), str(self.dtype).removeprefix("torch.")
        return f"Samples({self.shape}, {dtype}, {n} of {len(self._chunks)} files in {str(self._journal.directory)!r})"

    def chunks(self) -> Iterator[Tensor]:
        """Chunk after chunk, (batch_size, *event), the last with what remains.

        Raises:
            ValueError: at a chunk that is not there.
        """
        return (self._read(c) for c in range(len(self._chunks)))

    def tensor(self) -> Tensor:
        """All of them in memory, (n, *event).

        Raises:
            ValueError: if some are not there.
        """
        return torch.cat([self._empty(), *self.chunks()])

    @property
    def complete(self) -> bool:
        """Whether all of them are there and undamaged: reads every file."""
        return all(self._journal.read(c) is not None for c in range(len(self._chunks)))

    @property
    def paths(self) -> list[str]:
        """The files that are there, one for every finished chunk, in their order.

        `numpy.load(path)["x"]` opens one; bfloat16, which NumPy lacks, is kept there as float32.
        """
        files = (self._journal.file(c) for c in range(len(self._chunks)))
        return [str(file) for file in files if file.exists()]

    def _one(self, i: object) -> Tensor:
        if isinstance(i, bool) or not isinstance(i, SupportsIndex):
            raise TypeError(f"A sample has an integer number, and {i!r} is {type(i).__name__}.")
        number = index(i)
        if not -len(self) <= number < len(self):
            raise IndexError(f"There is no sample {number} among {len(self)}.")
        chunk, row = divmod(number % len(self), self._chunks.size)
        if self._last is None or self._last[0] != chunk:
            self._last = chunk, self._read(chunk)
        return self._last[1][row].clone()

    def _read(self, chunk: int) -> Tensor:
        values = self._journal.read(chunk)
        if values is None:
            rows = self._chunks.rows(chunk)
            raise ValueError(
                f"Samples {rows[0]} to {rows[-1]} are not in {str(self._journal.directory)!r}: another process has not "
                "drawn them yet, or their file is damaged. When all have ended, call sample_many again with the same "
                "arguments."
            )
        return values["x"].to(self.dtype)

    def _empty(self) -> Tensor:
        return torch.empty(0, *self.shape[1:], dtype=self.dtype)


def sample_many(
    model: Model,
    shape: Sequence[int],
    solver: Solver,
    *,
    directory: str | os.PathLike[str],
    batch_size: int = 64,
    seed: int = 0,
    shard: tuple[int, int] | None = None,
    cond: Cond = None,
    u: tuple[float, float] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Samples:
    """Draw samples into a directory, by any number of processes, which may be killed at any moment.

    Sample i is row i of `sample(model, shape, solver, generator=seeds(n, seed))`, to the rounding of the network's
    kernels: its draws depend on `seed` and i alone. Samples go through the network in chunks of `batch_size`, and every
    finished chunk is a file, written whole or not at all. Called again with the same arguments, `sample_many` draws the
    chunks that are missing or damaged, and gives the bits of an uninterrupted run. Several processes, each with its own
    `shard`, share one directory and never wait for each other; a call after all of them have ended finds the whole and
    asks no network. The same bits need the same kind of machine, device, number of threads and torch, and the same
    batch_size. Where the samples of a batch depend on each other, by the shared steps of an adaptive ODESolver or the
    variance of Ancestral(variance="optimal"), so do those of a chunk.

    A directory belongs to one computation, known by all that the arguments hold: weights, buffers, settings, functions,
    a model's private attributes. Only the code of classes, and the private attributes of networks that are neither
    floats nor strings, where networks keep what they computed, do not count: give a new directory when these change.

    Args:
        model: as in `sample`.
        shape: (n, *event), n the samples of all processes together.
        solver: as in `sample`; one that takes a generator per sample.
        directory: where finished chunks are kept, made if it is not there.
        batch_size: samples in one chunk, which go through the network at once.
        seed: of the random numbers, of which sample i has its own for every seed.
        shard: (index, count), 0 <= index < count: the chunks c with c mod count = index; by default RANK and
            WORLD_SIZE, which torchrun sets, or else (0, 1), all of them.
        cond: as in `sample`; tensors with n rows are cut with the samples, `Shared` ones are not.
        u: as in `sample`.
        dtype: as in `sample`.
        device: as in `sample`.
        progress: whether to show a bar, a step for every missing chunk (needs tqdm).

    Returns:
        The samples of all processes, as far as they are there, to be read from the disk.

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, before the first network call: a shard that is none, a network with
            collective operations on several shards, or a directory that belongs to another model, shape, seed or
            setting, which the message names.
        NonFiniteError: a state became NaN or infinite; finished chunks are kept.
        OSError: a directory that cannot be written to, a full disk.

    Examples:
        >>> import sdegen, tempfile
        >>> model = sdegen.Gaussian([0.0, 1.0], 0.5).model(sdegen.VPSDE())
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     samples = sdegen.sample_many(model, (1000, 2), sdegen.Adams(10), directory=directory, batch_size=256)
        ...     print(len(samples), samples.complete, [len(chunk) for chunk in samples.chunks()])
        1000 True [256, 256, 256, 232]
    """
    check_model(model)
    check_solver(solver)
    shape, shard = _checks.batch_shape(shape), checked_shard(shard)
    dtype, device = dtype_and_device(model, dtype, device)
    ends = interval(model, "data", u, solver.span)
    u = None if u is None else ends
    refuse_collective(model, shard)
    n, cond, seed = shape[0], dict(_checks.conditions(cond)), _checks.whole("seed", seed, least=0)
    batch_size = _checks.whole("batch_size", batch_size)
    chunks = Chunks(n, batch_size)
    settings = {"model": model, "solver": solver, "shape": shape, "dtype": dtype, "device": device.type, "u": u}
    settings |= {"cond": cond, "seed": seed, "batch_size": batch_size}
    journal = Journal(directory, {"verb": "sample_many", "sdegen": __version__, **settings})

    def drawn(rows: range) -> dict[str, Tensor]:
        generator = sample_generators(seed, rows, device)
        of_rows = _checks.conditions_of_rows(cond, slice(rows.start, rows.stop), n)
        size = (len(rows), *shape[1:])
        x = sample(model, size, solver, generator=generator, cond=of_rows, u=u, dtype=dtype, device=device)
        return {"x": x.float() if dtype is torch.bfloat16 else x}

    compute_missing(journal, chunks, shard, drawn, progress)
    return Samples(journal, chunks, shape, dtype)


def seeds(n: int, seed: int = 0, *, device: torch.device | str | None = None) -> list[torch.Generator]:
    """Generators, one per sample: number i depends on `seed` and i alone.

    Given as `generator=` they make sample i the same in a batch of any size, to the rounding of the network's kernels,
    and the same as sample i of `sample_many`. Every use moves a generator on: make them anew to draw the same again.

    Args:
        n: their number, the size of the batch.
        seed: at least 0. No two of the first 2^32 generators of a seed share their draws.
        device: where the samples are drawn; the CPU by default.

    Returns:
        the generators, in the order of the samples.

    Raises:
        TypeError: a number that is no integer.
        ValueError: a negative number, or a device that is none.

    Examples:
        >>> import sdegen, torch
        >>> model = sdegen.Gaussian([0.0, 1.0], 0.5).model(sdegen.VPSDE())
        >>> three = sdegen.sample(model, (3, 2), sdegen.Adams(10), generator=sdegen.seeds(3))
        >>> nine = sdegen.sample(model, (9, 2), sdegen.Adams(10), generator=sdegen.seeds(9))
        >>> torch.allclose(three, nine[:3])
        True
    """
    _checks.whole("n", n, least=0), _checks.whole("seed", seed, least=0)
    return sample_generators(seed, range(n), torch_device("cpu" if device is None else device))
