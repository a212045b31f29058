"""The file from which an interrupted training goes on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from torch import nn

from sdegen import _checks
from sdegen._files import prepare_folder
from sdegen._fingerprint import fingerprint
from sdegen.checkpoints import load, load_state, save
from sdegen.journal import _difference as difference
from sdegen.journal import _words as words
from sdegen.models.model import ScoreModel

Settings = Mapping[str, tuple[str, str]]
"""By name, a few words for a setting and its fingerprint."""


class Stateful(Protocol):
    """What remembers something, as an optimiser does."""

    def state_dict(self) -> dict[str, Any]:
        """All of it."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Remember something else."""


class Checkpoint:
    """The averaged model of a training, and beside it all that the training needs to go on from there.

    That is the last weights, what the `parts` remember, the step, and fingerprints of all that decides the curve.
    Random draws depend on the step alone.

    Args:
        file: where it is; None for none.
        model: the model that is trained.
        average: its average.
        parts: what else has a state, by name; set in this order.
        settings: returns all that decides the curve, by name.
        writes: whether this process is the one that writes.

    Raises:
        TypeError: a file that is no path.
        ValueError: a file that is a folder.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | None,
        model: ScoreModel,
        average: ScoreModel,
        parts: Mapping[str, Stateful | None],
        settings: Callable[[], Mapping[str, object]],
        writes: bool,
    ):
        if file is not None and not isinstance(file, (str, os.PathLike)):
            raise TypeError(f"checkpoint must be the path of a file, and {file!r} is {type(file).__name__}.")
        self.file = None if file is None else Path(file)
        self.model, self.average, self.writes = model, average, writes
        self.parts = {name: part for name, part in parts.items() if part is not None}
        if self.file is not None:
            if self.file.is_dir():
                raise ValueError(f"checkpoint must be a file, and {str(file)!r} is a folder.")
            self.settings = {name: (words(v), fingerprint(v)) for name, v in settings().items()}

    def resume(self, steps: int) -> int:
        """The steps that were taken before, and everything as it was then; 0 without a file.

        Where some are left to take, a file is written on trial: better now than after an hour.

        Raises:
            ValueError: a file of another network, or of another training, or of more steps.
            OSError: a file that cannot be written.
        """
        if self.file is None:
            return 0
        done = self._load(self.file, steps) if self.file.exists() else 0
        if done < steps and self.writes:
            self._try_to_write(self.file)
        return done

    def write(self, step: int) -> None:
        """The file of this step instead of the last; a warning where it cannot be written, and the last one stays."""
        if self.file is None or not self.writes:
            return
        try:
            self._save(self.file, step)
        except OSError as error:
            warnings.warn(
                f"The checkpoint of step {step} could not be written to {str(self.file)!r} ({error}); the training "
                "goes on, and the last one is kept.",
                UserWarning,
                stacklevel=_checks.stacklevel_outside(),
            )

    def _load(self, file: Path, steps: int) -> int:
        state = cast("dict[str, Any]", load_state(file))
        if not isinstance(state.get("fit"), Mapping):
            raise ValueError(f"checkpoint {str(file)!r} holds a model and no training: give another file.")
        load(file, cast(nn.Module, self.average.net), path=self.model.path, time=self.model.time)
        self._compare(state["fit"]["settings"])
        done = int(state["fit"]["step"])
        if done > steps:
            raise ValueError(f"checkpoint {str(file)!r} has taken {done} steps already, more than steps={steps}.")
        cast(nn.Module, self.model.net).load_state_dict(state["weights"])
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return done

    def _save(self, file: Path, step: int) -> None:
        states = {name: part.state_dict() for name, part in self.parts.items()}
        weights = cast(nn.Module, self.model.net).state_dict()
        save(file, self.average, fit={"step": step, "settings": self.settings}, weights=weights, **states)

    def _try_to_write(self, file: Path) -> None:
        trial = file.with_name(f".{file.name}.trial.unfinished")
        try:
            prepare_folder(file.parent, file.name)
            self._save(trial, 0)
            trial.unlink()
        except OSError as error:
            raise type(error)(f"checkpoint {str(file)!r} cannot be written: {error}.") from error

    def _compare(self, theirs: Settings) -> None:
        """A ValueError that names what differs."""
        absent = ("absent", "")
        both = {n: (theirs.get(n, absent), self.settings.get(n, absent)) for n in {**theirs, **self.settings}}
        differ = [f"{name} ({difference(a[0], b[0])})" for name, (a, b) in both.items() if a[1] != b[1]]
        if differ:
            raise ValueError(
                f"checkpoint {str(self.file)!r} belongs to another training, which differs in {', '.join(differ)}: "
                "give another file, or the same arguments to go on with this one."
            )
