"""Files that are whole or absent, whenever the process or the machine stops.

A file is written under another name, `.{name}.{random}.unfinished` in the same folder, flushed to the disk and then
renamed: under its own name there is always the old file or the new one. What a killed process leaves behind under the
other name is cleared away an hour later, by the next one that writes there.
"""

from __future__ import annotations

import glob
import os
import secrets
import tempfile
import time
from contextlib import suppress
from pathlib import Path

STALE_AFTER = 3600.0
"""Seconds after which an unfinished file can only be a dead process's: writing one takes less."""


def write_whole(file: Path, data: bytes) -> None:
    """The whole file or nothing, whenever the process or the machine stops."""
    unfinished = file.with_name(f".{file.name}.{secrets.token_hex(8)}.unfinished")
    try:
        with open(unfinished, "xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(unfinished, file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name itself: elsewhere a directory cannot be opened
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def prepare_folder(folder: Path, name: str | None = None) -> None:
    """Make a folder and try to write to it, before hours are spent; clear away what dead processes left.

    Args:
        folder: the folder.
        name: of the one file whose unfinished versions are cleared away; by default all.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    for file in folder.glob(f".{'*' if name is None else glob.escape(name) + '.*'}.unfinished"):
        with suppress(FileNotFoundError):  # another process was here first, or has just finished it
            if time.time() - file.stat().st_mtime > STALE_AFTER:
                file.unlink()
