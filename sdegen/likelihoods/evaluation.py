"""The log-likelihood of a data set with its interval: interrupted, resumed, spread over processes, the same bits.

With l_i the log-density of sample i, or a bound on its log-probability, in nats, and d values in one sample

    mean = 1/n sum over i of l_i         bits/dim = -mean / (d ln 2)
    interval = mean -+ q s / sqrt(n)     s^2 = sum over i of (l_i - mean)^2 / (n - 1), q the 97.5 % point of Student's t

The interval says how far the mean over these n samples may be from that over all that could have been drawn. Samples
are scored in chunks of fixed composition (journal.py), each with random numbers of its own, so that a number depends on
neither the number of processes nor on interruptions. There is no collective operation anywhere: an adaptive solver
takes as many steps as its chunk needs, and no process waits for another.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from scipy.special import stdtrit
from torch import Tensor

from sdegen import _checks
from sdegen._arguments import check_model
from sdegen._checks import NonFiniteError
from sdegen._shapes import event_size
from sdegen._version import __version__
from sdegen.journal import (
    Chunks,
    Journal,
    Unsaved,
    checked_shard,
    compute_missing,
    refuse_collective,
    sample_generators,
)
from sdegen.likelihoods.density import LogLikelihood, log_likelihood
from sdegen.likelihoods.quantised import DiscreteLogProb, Quantized, discrete_log_prob
from sdegen.models.base import Cond, Model
from sdegen.sampling import ode_solver
from sdegen.solvers.base import Solver
from sdegen.solvers.divergence import Exact, Hutchinson

ERRORS = {"density": ("solver_error", "probe_error", "prior_gap"), "bound": ("solver_error", "standard_error")}
"""The error estimates of a sample, as far as its result knows them, by the kind of its number."""
DRAWS_FOR_GAP = 4096
"""The samples of the data set against which the prior is held."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The log-likelihood of a data set, in nats.

    Attributes:
        per_sample: log-densities, or lower bounds on log-probabilities, (n,); NaN where a sample is not scored yet.
        size: d, the number of values in one sample.
        kind: "density", or "bound" for quantised data.
        complete: whether every sample is scored. All else is about those that are.
        errors: the numerical errors of `per_sample` by name, as far as they were estimated, each (n,) in nats:
            "solver_error", "probe_error" and, without `cond`, "prior_gap" of `log_likelihood`, the latter against 4096
            of the data; "solver_error" and "standard_error" of `discrete_log_prob`.

    Examples:
        >>> law = sdegen.Gaussian([1.0], 0.5)
        >>> result = sdegen.evaluate(law.model(sdegen.CondOT()), law.sample(100))
        >>> result.per_sample.shape, result.size, result.kind
        (torch.Size([100]), 1, 'density')
    """

    per_sample: Tensor
    size: int
    kind: str
    complete: bool
    errors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def scored(self) -> Tensor:
        """The samples that are scored, by their numbers, (m,)."""
        return torch.nonzero(~torch.isnan(self.per_sample))[:, 0]

    @property
    def mean(self) -> float:
        """The mean log-likelihood, in nats; NaN where no sample is scored."""
        return float(self.per_sample.cpu().double().nanmean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval (low, high) of `mean`, in nats: over the choice of the data and whatever was drawn for them.

        A bias, such as a solver's or that of a bound, is not in it. Infinite for fewer than two samples.
        """
        there = self.per_sample[self.scored].cpu().double()
        if len(there) < 2:
            return -math.inf, math.inf
        half = float(stdtrit(len(there) - 1, 0.975)) * float(there.std()) / math.sqrt(len(there))
        return self.mean - half, self.mean + half

    @property
    def bits_per_dim(self) -> float:
        """-`mean` / (d ln 2): bits/dim of the levels for quantised data, their cells included, else of the density."""
        return self._bits(self.mean)

    @property
    def bits_interval(self) -> tuple[float, float]:
        """95 % interval (low, high) of `bits_per_dim`."""
        low, high = self.interval
        return self._bits(high), self._bits(low)

    @property
    def error(self) -> float | None:
        """The numerical error of one sample, all of `errors` added up, on average, in nats; None where none is known.

        At most so much the mean may be off because of it; what is random in it (probes, draws) differs from sample to
        sample, averages out and is already within `interval`.
        """
        if not self.errors:
            return None
        together = torch.stack([error.cpu().double() for error in self.errors.values()]).nansum(0)
        return float(together[self.scored.cpu()].mean())

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names of the numerical errors that were not estimated."""
        return tuple(name for name in ERRORS[self.kind] if name not in self.errors)

    def _bits(self, nats: float) -> float:
        return -nats / (self.size * math.log(2))

    def __repr__(self) -> str:
        (low, high), (least, most) = self.interval, self.bits_interval
        error = "unknown" if self.error is None else f"{self.error:.2g} nats a sample"
        error += f" without {', '.join(self.unknown)}" if self.errors and self.unknown else ""
        return (
            f"Evaluation({self.kind}, {len(self.scored)} of {len(self.per_sample)} samples: "
            f"{self.mean:.6g} nats in [{low:.6g}, {high:.6g}], "
            f"{self.bits_per_dim:.5g} bits/dim in [{least:.5g}, {most:.5g}], numerical error {error})"
        )


def evaluate(
    model: Model,
    data: Tensor,
    *,
    directory: str | os.PathLike[str] | None = None,
    quantized: Quantized | None = None,
    draws: int = 1,
    batch_size: int = 64,
    shard: tuple[int, int] | None = None,
    seed: int = 0,
    solver: Solver | None = None,
    trace: str | Exact | Hutchinson = "auto",
    cond: Cond = None,
    progress: bool = False,
) -> Evaluation:
    """The mean log-likelihood of a data set with its 95 % interval, sample by sample, in nats.

    The log-density by `log_likelihood`, or with `quantized` the bound of `discrete_log_prob`, in chunks of
    `batch_size` samples. With a `directory` every finished chunk is a file there, written so that a process may be
    killed at any moment: called again with the same arguments, it computes the chunks that are missing and gives the
    bits of an uninterrupted run. A chunk's file that is damaged or was brought from elsewhere counts as missing.
    Several processes, each with its own `shard`, share one directory and never wait for each other; a call after all of
    them have ended gets the whole and asks no network. The same bits need the same kind of machine, device, number of
    threads and torch. A directory belongs to one computation, known as in `sample_many`: the private attributes of
    networks that are neither floats nor strings do not count.

    Args:
        model: a `ScoreModel`, or the `.model(path)` of an exact target.
        data: (N, *event), N at least 1: real numbers, or whole numbers 0 ... levels-1 of any real dtype with
            `quantized`.
        directory: where finished chunks are kept, made if it is not there; by default nowhere.
        quantized: a `Quantized`, for data on its levels.
        draws: K, the draws of the bound per sample, with `quantized` alone.
        batch_size: samples in one chunk, which go through the network at once.
        shard: (index, count), 0 <= index < count: the chunks c with c mod count = index; by default RANK and
            WORLD_SIZE, which torchrun sets, or else (0, 1), all of them.
        seed: of the random numbers, of which sample i has its own for every seed.
        solver: as in `log_likelihood`.
        trace: as in `log_likelihood`; with `quantized` it is exact.
        cond: keyword arguments for the network; tensors with N rows are cut with the data, `Shared` ones are not.
        progress: whether to show a bar, a step for every missing chunk (needs tqdm).

    Returns:
        The numbers of every sample that is scored: with a directory, of all the chunks that are there; without, of this
        shard's.

    Raises:
        TypeError: an argument of another type, before the first network call.
        ValueError: an argument that does not fit, before the first network call: data off the levels, a shard
            that is none, a network with collective operations on several shards, or a directory that belongs to another
            model, data set, seed or setting, which the message names.
        NonFiniteError: a state or a log-likelihood became NaN or infinite; finished chunks are kept.
        OSError: a directory that cannot be written to, a full disk.

    Examples:
        >>> law = sdegen.Gaussian([1.0], 0.5)
        >>> x = law.sample(200)
        >>> result = sdegen.evaluate(law.model(sdegen.CondOT()), x)
        >>> bool((result.mean - law.log_prob(x).mean()).abs() < 1e-3), result.complete
        (True, True)
    """
    check_model(model)
    part = checked_shard(shard)
    work = _Work(model, data, quantized, draws, batch_size, seed, solver, trace, _checks.conditions(cond))
    work.check(part)
    chunks = Chunks(len(data), batch_size)
    journal = Unsaved() if directory is None else Journal(directory, work.settings())
    compute_missing(journal, chunks, part, work.scores, progress)
    found = [journal.read(c) for c in range(len(chunks))]
    columns = _joined(found, chunks, data.device)
    kind = "density" if quantized is None else "bound"
    return Evaluation(columns.pop("log_prob"), event_size(data.shape), kind, None not in found, columns)


@dataclass(frozen=True)
class _Work:
    """Everything that decides the numbers, as given to `evaluate`."""

    model: Model
    data: Tensor
    quantized: Quantized | None
    draws: int
    batch_size: int
    seed: int
    solver: Solver | None
    trace: str | Exact | Hutchinson
    cond: Mapping[str, object]

    def settings(self) -> dict[str, object]:
        """What a journal compares."""
        return {"verb": "evaluate", "sdegen": __version__, "device": self.data.device.type, **vars(self)}

    def check(self, shard: tuple[int, int]) -> None:
        """Every check that needs no network; an accelerator's values are not waited for."""
        for name, least in (("draws", 1), ("batch_size", 1), ("seed", 0)):
            _checks.whole(name, getattr(self, name), least=least)
        ode_solver(self.solver)
        if self.quantized is None:
            self._check_real()
        else:
            self._check_levels(self.quantized)
        if not len(self.data):
            raise ValueError(f"The mean over an empty data set, shape {tuple(self.data.shape)}, does not exist.")
        refuse_collective(self.model, shard)

    def _check_real(self) -> None:
        if isinstance(self.data, Tensor) and not (self.data.is_floating_point() or self.data.is_complex()):
            raise TypeError(
                f"data must be real numbers, and they have {self.data.dtype}: whole numbers have a probability and no "
                "density. Give quantized=Quantized(levels), or data that were dequantised."
            )
        _checks.batch("data", self.data, finite=isinstance(self.data, Tensor) and self.data.device.type == "cpu")
        if self.draws != 1:
            raise ValueError(f"draws={self.draws} are those of quantised data: give quantized=Quantized(levels) too.")

    def _check_levels(self, quantized: Quantized) -> None:
        if not isinstance(quantized, Quantized):
            raise TypeError(f"quantized must be a Quantized, such as Quantized(256), and it is {quantized!r}.")
        quantized.centre(self.data)  # refuses what is no level
        if self.data.ndim < 2 or math.prod(self.data.shape[1:]) == 0:
            raise ValueError(
                f"data must have shape (N, ...), a batch axis and a non-empty event, not {tuple(self.data.shape)}."
            )
        if isinstance(self.trace, Hutchinson):
            raise ValueError(
                "A bound of K draws takes the exact trace, since a noisy density in an exponent is no bound, and "
                f"trace is {self.trace!r}."
            )
        if not isinstance(self.trace, Exact):
            _checks.choice("trace", self.trace, ("auto", "exact"))

    def scores(self, rows: range) -> dict[str, Tensor]:
        """The log-likelihoods of some samples, and what is known of their errors, by name, each (B,)."""
        part, N = slice(rows.start, rows.stop), len(self.data)
        n, cond = self.data[part], _checks.conditions_of_rows(self.cond, part, N)
        generator = sample_generators(self.seed, rows, n.device)
        scored: LogLikelihood | DiscreteLogProb
        if self.quantized is None:
            # given conditions the data have other laws, one for each
            data = self.data[:: -(-N // DRAWS_FOR_GAP)] if N > 1 and not cond else None
            scored = log_likelihood(
                self.model, n, self.solver, trace=self.trace, data=data, generator=generator, cond=cond
            )
        else:
            scored = discrete_log_prob(
                self.model, n, self.quantized, draws=self.draws, solver=self.solver, generator=generator, cond=cond
            )
        bad = torch.nonzero(torch.isnan(scored.log_prob))[:, 0].tolist()
        if bad:
            raise NonFiniteError(
                f"The log-likelihood of {len(bad)} samples is NaN, the first of them sample {rows[bad[0]]}."
            )
        kind = "density" if self.quantized is None else "bound"
        errors = {name: getattr(scored, name, None) for name in ERRORS[kind]}
        return {"log_prob": scored.log_prob, **{name: e for name, e in errors.items() if e is not None}}


def _joined(found: Sequence[Mapping[str, Tensor] | None], chunks: Chunks, device: torch.device) -> dict[str, Tensor]:
    """Every column over all samples, (n,); NaN where a chunk is missing, or has no such column."""
    names = {"log_prob"}.union(*(values for values in found if values is not None))
    missing = torch.full((chunks.n,), math.nan, device=device)
    columns: dict[str, list[Tensor]] = {name: [] for name in sorted(names)}
    for c, values in enumerate(found):
        rows = chunks.rows(c)
        for name, column in columns.items():
            column.append((values or {}).get(name, missing[rows.start : rows.stop]).to(device))
    return {name: torch.cat(column) for name, column in columns.items()}
