"""One process writes a run's folder at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

LOCK = ".lock"  # name of the file

_HELD: dict[Path, IO[str]] = {}


def hold(folder: Path) -> None:
    """Keeps other processes out of an existing folder until `release`, or until this one ends.

    The lock is the operating system's, on the file `.lock`, which stays behind and means nothing by
    itself. Ranks other than 0 of a distributed run, which write nothing, take none; nor do systems
    without `fcntl` (Windows).

    Raises:
        RuntimeError: Another process has it.
    """
    path = folder.resolve()
    if path in _HELD or int(os.environ.get("RANK", "0")) > 0:
        return
    try:
        import fcntl
    except ImportError:
        return
    file = (path / LOCK).open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise RuntimeError(f"run.output: another process is writing {folder}") from None
    _HELD[path] = file


def release(folder: Path) -> None:
    """Lets other processes into a folder again; one that is not held stays as it is."""
    file = _HELD.pop(folder.resolve(), None)
    if file is not None:
        file.close()
