"""One process writes a run's folder at a time."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from oneshot.training.errors import RunError

LOCK = ".lock"  # name of the file

_held: dict[Path, FileLock] = {}


def hold(folder: Path) -> None:
    """Locks an existing folder until `release`, or until this process ends.

    The lock is the operating system's, on the file `.lock`. The file remains after exit; its
    presence does not mean that the folder is locked. Ranks other than 0 of a distributed run write
    nothing and take no lock.

    Raises:
        RunError: Another process holds the lock.
    """
    path = folder.resolve()
    if path in _held or int(os.environ.get("RANK", "0")) > 0:
        return
    lock = FileLock(path / LOCK, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"run.output: another process is writing {folder}") from None
    _held[path] = lock


def release(folder: Path) -> None:
    """Lets other processes into a folder again; has no effect on a folder that is not held."""
    lock = _held.pop(folder.resolve(), None)
    if lock is not None:
        lock.release()
