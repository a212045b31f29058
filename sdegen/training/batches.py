"""What turns data into the batches of a training: which rows step k sees is decided by the seed and k alone.

Data of n samples are permuted anew in every epoch, the permutations follow each other without a gap, and step k of
batch size B takes entries k B ... (k+1) B - 1 of that sequence: every sample is seen once in an epoch, also where B
does not divide n. A process takes its own rows out of such a batch, so that the number of processes changes nothing.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from sdegen import _checks
from sdegen.journal import sample_generators
from sdegen.models.base import Cond

Batch = tuple[Tensor, dict[str, object]]
"""Samples (B, *event) and their conditions, one row per sample."""

Data = Tensor | np.ndarray | Dataset[Any] | DataLoader[Any]
"""Any: what the items of a data set are is looked at when they come."""

LOOKED_AT = 4096
"""Samples of a tensor whose scale is looked at; of a data set, whose items may be costly, a sixteenth of that."""
FAR = 4.0
"""How far from 1, as a factor, the largest root mean square of an entry may be without a word."""


class Draws:
    """The random numbers of one training: a stream for each purpose, and in it a generator for each step.

    Args:
        seed: of all of them.
        device: where the samples are drawn.
        process: the number of this process; only what happens inside the network depends on it.
    """

    STEP, ROWS, LOADING, VALIDATION, NETWORK = range(5)

    def __init__(self, seed: int, device: torch.device, process: int = 0):
        self.seed, self.device, self.process = seed, device, process

    def generator(self, purpose: int, number: int = 0, device: torch.device | None = None) -> torch.Generator:
        """The generator of one step, epoch or the like; that of STEP is `journal.sample_generators`' own."""
        return sample_generators(self.seed + (purpose << 64), (number,), device or self.device)[0]

    def seed_torch(self, purpose: int, number: int = 0) -> None:
        """Start torch's global generators anew, those of the CPU and of this device: for dropout, for a loader."""
        started = self.generator(purpose, number, torch.device("cpu")).initial_seed()
        torch.default_generator.manual_seed(started)
        if self.device.type in ("cuda", "xpu", "mps"):
            getattr(torch, self.device.type).manual_seed(started)


class Batches(ABC):
    """Data, cut into the batches of a training.

    Args:
        size: samples in the batch of one step, over all processes.
        dtype: of the network, and so of the batches.
        draws: the random numbers, on the device that the batches go to.

    Attributes:
        wide: whether samples keep a wider dtype of their own: units are taken off before they are rounded.
    """

    wide = False

    def __init__(self, size: int, dtype: torch.dtype, draws: Draws):
        self.size, self.dtype, self.draws = size, dtype, draws

    def check(self, parts: int) -> None:
        """A ValueError unless the batch can be cut into so many equal parts."""
        if self.size % parts:
            raise ValueError(
                f"batch_size must be a multiple of {parts}, the processes times `accumulate`, and it is {self.size}."
            )

    @abstractmethod
    def rows(self, step: int, part: slice) -> Batch:
        """Some rows of the batch of a step, on the device of the training."""

    @abstractmethod
    def in_order(self) -> Iterator[Batch]:
        """Every sample once, in batches of at most `size`."""

    @abstractmethod
    def some(self) -> Tensor:
        """Samples from all over the data, as they come."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, object]:
        """What tells these data from others, by name."""

    def ready(self, x: Tensor, cond: Mapping[str, object]) -> Batch:
        """A batch on its device, in its dtype."""
        dtype = torch.promote_types(x.dtype, self.dtype) if self.wide else self.dtype
        x = x.detach().to(self.draws.device, dtype, non_blocking=True)
        return x, {name: _moved(value, self.draws.device, self.dtype) for name, value in cond.items()}


class _Permuted(Batches):
    """Data with an index: their rows come by permutations."""

    def __init__(self, name: str, n: int, size: int, dtype: torch.dtype, draws: Draws):
        super().__init__(size, dtype, draws)
        self.n = n
        self.name, self._permutations = name, dict[int, Tensor]()

    def check(self, parts: int) -> None:
        """See `Batches.check`; no batch may be larger than the data."""
        if self.size > self.n:
            raise ValueError(
                f"batch_size must be at most the {self.n} samples of {self.name}, of which a batch holds none twice, "
                f"and it is {self.size}."
            )
        super().check(parts)

    @abstractmethod
    def take(self, indices: Tensor, first: int | None = None) -> Batch:
        """The samples with these numbers, as they come; `first`, their place in the training, decides random ones."""

    def rows(self, step: int, part: slice) -> Batch:
        """See `Batches.rows`."""
        at, stop, pieces = step * self.size + part.start, step * self.size + part.stop, []
        while at < stop:
            epoch, first = divmod(at, self.n)
            pieces.append(self._permutation(epoch)[first : first + stop - at])
            at += len(pieces[-1])
        indices = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return self.ready(*self.take(indices, step * self.size + part.start))

    def in_order(self) -> Iterator[Batch]:
        """See `Batches.in_order`."""
        for indices in torch.arange(self.n, device=self.place).split(self.size):
            yield self.ready(*self.take(indices))

    @property
    def place(self) -> torch.device:
        """Where the indices are."""
        return torch.device("cpu")

    def _permutation(self, epoch: int) -> Tensor:
        """That of an epoch; two are kept, since a batch may lie across their border."""
        if epoch not in self._permutations:
            generator = self.draws.generator(Draws.ROWS, epoch, torch.device("cpu"))
            order = torch.randperm(self.n, generator=generator).to(self.place)
            kept = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations = {**kept, epoch: order}
        return self._permutations[epoch]


class _InMemory(_Permuted):
    """A tensor or an array, which stays where it is."""

    def __init__(self, name: str, data: Tensor, cond: Mapping[str, object], *of: Any):
        super().__init__(name, len(data), *of)
        self.data, self.cond = data, cond

    def take(self, indices: Tensor, first: int | None = None) -> Batch:
        """See `_Permuted.take`."""
        return self.data.index_select(0, indices), {name: _rows_of(value, indices) for name, value in self.cond.items()}

    def some(self) -> Tensor:
        """See `Batches.some`."""
        return self.data[:: -(-self.n // LOOKED_AT)]

    @property
    def place(self) -> torch.device:
        """See `_Permuted.place`."""
        return self.data.device

    @property
    def identity(self) -> dict[str, object]:
        """See `Batches.identity`."""
        return {"data": self.data, "cond": dict(self.cond)}


class _Indexed(_Permuted):
    """A data set with an index, whose items are x or (x, cond)."""

    def __init__(self, name: str, data: Dataset[Any], *of: Any):
        super().__init__(name, len(data), *of)  # type: ignore[arg-type]  # a Dataset promises no length; asked before
        self.data = data

    def take(self, indices: Tensor, first: int | None = None) -> Batch:
        """See `_Permuted.take`: what an item draws from torch's generator depends on its own place alone."""
        several, numbers = getattr(self.data, "__getitems__", None), indices.tolist()
        if several is not None:
            self.draws.seed_torch(Draws.LOADING, 0 if first is None else first + 1)
            return _pair(self.name, default_collate(several(numbers)))
        items = []
        for k, i in enumerate(numbers):
            self.draws.seed_torch(Draws.LOADING, 0 if first is None else first + k + 1)
            items.append(self.data[i])
        return _pair(self.name, default_collate(items))

    def some(self) -> Tensor:
        """See `Batches.some`."""
        return self.take(torch.arange(0, self.n, -(-self.n // (LOOKED_AT // 16))))[0]

    @property
    def identity(self) -> dict[str, object]:
        """See `Batches.identity`: the number of items and their class, since an item may be another every time."""
        held = {"tensors": self.data.tensors} if isinstance(self.data, TensorDataset) else {}
        return {"data": type(self.data), "samples": self.n, **held}


class _Loaded(Batches):
    """The batches of a loader, in its own order; every process loads all of them and takes its own rows."""

    def __init__(self, name: str, loader: DataLoader[Any], *of: Any):
        super().__init__(*of)
        self.name, self.loader = name, loader
        self._batches: Iterator[Any] = iter(())
        self._next, self._epoch = 0, 0

    def rows(self, step: int, part: slice) -> Batch:
        """See `Batches.rows`; on the way to a later step than the next the batches in between are loaded, too."""
        length = self._epoch_length()
        if self._next == 0 and length and self.loader.generator is None:
            self._epoch, self._next = step // length, step - step % length
        while True:
            x, cond = self._load(self._next)
            self._next += 1
            if self._next > step:
                return self.ready(x[part], _checks.conditions_of_rows(cond, part, len(x)))

    def _load(self, step: int) -> Batch:
        """The next whole batch: in an epoch's order, which the seed decides, unless the loader has its own generator.

        The last batch of an epoch is left out where it is smaller than the others.
        """
        for _ in range(3):
            self.draws.seed_torch(Draws.LOADING, step)
            for batch in self._batches:
                x, cond = _checked(self.name, *_pair(self.name, batch))
                if len(x) == self.size:
                    return x, cond
                if self.loader.batch_size is None or len(x) > self.size or next(self._batches, None) is not None:
                    raise ValueError(
                        f"Every batch of {self.name} must have the same number of samples, and after "
                        f"{self.size} there came {len(x)}."
                    )
            self.draws.seed_torch(Draws.ROWS, self._epoch)
            self._batches, self._epoch = iter(self.loader), self._epoch + 1
        raise ValueError(f"{self.name} is a loader without a single batch of {self.size} samples.")

    def _epoch_length(self) -> int:
        """Whole batches in an epoch; 0 where that is not known."""
        if isinstance(self.loader.dataset, IterableDataset):
            return 0
        if self.loader.batch_size is None:
            return len(self.loader)
        return len(self.loader.sampler) // self.loader.batch_size  # type: ignore[arg-type]  # of sized data it has one

    def in_order(self) -> Iterator[Batch]:
        """See `Batches.in_order`."""
        for batch in self.loader:
            yield self.ready(*_checked(self.name, *_pair(self.name, batch)))

    def some(self) -> Tensor:
        """See `Batches.some`: the first batch, which may be any under a shuffling loader."""
        self.draws.seed_torch(Draws.ROWS)
        for batch in self.loader:
            return _pair(self.name, batch)[0]
        raise ValueError(f"{self.name} is a loader without a batch.")

    @property
    def identity(self) -> dict[str, object]:
        """See `Batches.identity`."""
        return {"data": type(self.loader.dataset), "batches": self._epoch_length()}


def batches_of(name: str, data: object, cond: Cond, batch_size: int, dtype: torch.dtype, draws: Draws) -> Batches:
    """The batches of `data`; every check that needs no network.

    Raises:
        TypeError: data of another kind or dtype.
        ValueError: data of another shape; a batch larger than they are; conditions without one row per sample.
    """
    if isinstance(data, (Dataset, DataLoader)):
        if cond is not None:
            raise ValueError(
                f"cond belongs to data in a tensor or an array; a {type(data).__name__} yields pairs (x, cond)."
            )
        return _loaded(name, data, batch_size, dtype, draws)
    if isinstance(data, np.ndarray):
        data = _from_array(name, data)
    if not isinstance(data, Tensor):
        raise TypeError(
            f"{name} must be a tensor, a NumPy array, a Dataset or a DataLoader, and it is {type(data).__name__}."
        )
    _checks.batch(name, data, finite=data.device.type == "cpu")
    received = {n: _condition(n, value, len(data), dtype) for n, value in _checks.conditions(cond).items()}
    return _InMemory(name, data, received, batch_size, dtype, draws)


def _loaded(
    name: str, data: Dataset[Any] | DataLoader[Any], batch_size: int, dtype: torch.dtype, draws: Draws
) -> Batches:
    """The batches of a data set or of a loader, after a look at the first items."""
    made: Batches
    if isinstance(data, DataLoader):
        made = _Loaded(name, data, data.batch_size or batch_size, dtype, draws)
    elif isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise TypeError(f"{name} is a {type(data).__name__} without an index: give a DataLoader over it.")
    else:
        made = _Indexed(name, data, batch_size, dtype, draws)
    x = made.some()
    _checked(name, x, {})
    if isinstance(made, _Loaded) and made.loader.batch_size is None:
        made.size = len(x)
    return made


def warn_of_scale(data: Tensor) -> None:
    """A UserWarning where data are far from unit scale, to which noise schedules and networks are made; on the CPU.

    The measure is the largest root mean square, about 0, of an entry over the samples; entries that are nearly
    constant, as the margin of a picture, say nothing about the others.
    """
    if data.device.type != "cpu":
        return
    rms = float(data.detach().double().square().mean(0).max().sqrt())
    if not 1 / FAR <= rms <= FAR:
        warnings.warn(
            f"The data are far from unit scale: the largest root mean square of an entry is {rms:.3g}. Paths and "
            "networks are made for about 1: give the model standardize=sdegen.Standardize.of(data), or scale them.",
            UserWarning,
            stacklevel=_checks.stacklevel_outside(),
        )


def _from_array(name: str, data: np.ndarray[Any, Any]) -> Tensor:
    """A NumPy array as a tensor that shares its memory where it can."""
    if not np.issubdtype(data.dtype, np.floating):
        raise TypeError(
            f"{name} must hold real floating numbers, and the array has dtype {data.dtype}. Scale integers to floats "
            "first."
        )
    if not data.dtype.isnative or any(stride < 0 for stride in data.strides):
        data = data.astype(data.dtype.newbyteorder("="))
    if data.dtype.itemsize > 8:
        data = data.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an array that cannot be written to is only read
        return torch.from_numpy(data)


def _condition(name: str, value: object, n: int, dtype: torch.dtype) -> object:
    """A condition that holds one row per sample, or is `Shared`, or belongs to no sample; arrays become tensors."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value))
        value = value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {inner: _condition(f"{name}[{inner!r}]", part, n, dtype) for inner, part in value.items()}
    if isinstance(value, Tensor) and value.shape[:1] != (n,):
        raise ValueError(
            f"cond[{name!r}] must have one row for each of the {n} samples, and it has shape {tuple(value.shape)}; "
            "give Shared(value) if it belongs to all of them."
        )
    if isinstance(value, (list, tuple)):
        raise TypeError(f"cond[{name!r}] is a {type(value).__name__}: give a tensor or an array, one row per sample.")
    return value


def _rows_of(value: object, indices: Tensor) -> object:
    """Some rows of a condition."""
    if isinstance(value, Mapping):
        return {name: _rows_of(part, indices) for name, part in value.items()}
    return value.index_select(0, indices.to(value.device)) if isinstance(value, Tensor) else value


def _moved(value: object, device: torch.device, dtype: torch.dtype) -> object:
    """A condition on the device of the training, real numbers in the network's dtype."""
    if isinstance(value, _checks.Shared):
        return _checks.Shared(_moved(value.value, device, dtype))
    if isinstance(value, Mapping):
        return {name: _moved(part, device, dtype) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value))
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(device, dtype if value.is_floating_point() else value.dtype, non_blocking=True)


def _pair(name: str, batch: object) -> Batch:
    """(x, cond) from what a data set or a loader yields: x, (x,) or (x, cond)."""
    x, cond = batch, dict[str, object]()
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        x, cond = batch[0], batch[1] if len(batch) == 2 else {}
    x = _from_array(name, x) if isinstance(x, np.ndarray) else x
    if not isinstance(x, Tensor) or not isinstance(cond, Mapping):
        held = f"({', '.join(type(part).__name__ for part in batch)})" if isinstance(batch, (tuple, list)) else ""
        raise TypeError(
            f"{name} must yield x, or (x, cond) with cond a dict such as {{'label': y}}, and it yields "
            f"{type(batch).__name__}{held}."
        )
    return x, dict(cond)


def _checked(name: str, x: Tensor, cond: dict[str, object]) -> Batch:
    """A loaded batch, known to be one."""
    _checks.batch(f"a batch of {name}", x, finite=x.device.type == "cpu")
    for of, value in cond.items():
        _condition(of, value, len(x), x.dtype)
    return x, cond
