"""Checkpoint folders that survive `kill -9` at any moment.

A checkpoint `step_<step>` is written under a temporary name, flushed to the disk and renamed; so a
folder with its final name is complete, and a failure while writing (a full disk) leaves the
previous ones as they were.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from oneshot.training.errors import RunError

_NAME = re.compile(r"step_(\d{6,})")


class CheckpointError(RunError):
    """A checkpoint could not be written or read."""


def path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies once it is complete."""
    return folder / f"step_{step:06d}"


@contextmanager
def writing(folder: Path, step: int) -> Iterator[Path]:
    """A temporary folder that becomes `folder/step_<step>` when the block ends well.

    Raises:
        CheckpointError: Writing failed; the temporary files are gone and older checkpoints intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = path(folder, step)
    temporary = folder / f".{final.name}.writing"
    _remove(temporary)
    try:
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        _remove(final)
        temporary.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        previous = latest(folder)
        raise CheckpointError(
            f"checkpoint of step {step} could not be written to {folder}: {error}. "
            + ("No older checkpoint." if previous is None else f"{previous} is intact.")
        ) from error


def prune(folder: Path, keep: int | None) -> None:
    """Removes all but the newest `keep` checkpoints; None keeps all."""
    for old in [] if keep is None else _complete(folder)[:-keep]:
        _remove(old)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    complete = _complete(folder)
    return complete[-1] if complete else None


def clean(folder: Path) -> None:
    """Removes what an interrupted write left behind."""
    for leftover in [*folder.glob(".step_*.writing"), *folder.glob(".step_*.removed")]:
        shutil.rmtree(leftover)


def _complete(folder: Path) -> list[Path]:
    complete = [(int(m[1]), p) for p in folder.glob("step_*") if (m := _NAME.fullmatch(p.name))]
    return [checkpoint for _, checkpoint in sorted(complete)]


def _remove(folder: Path) -> None:
    """Removes a folder so that a kill in the middle leaves nothing that looks complete."""
    if folder.exists():
        doomed = folder.parent / f".{folder.name.lstrip('.').removesuffix('.writing')}.removed"
        if doomed.exists():
            shutil.rmtree(doomed)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _sync_tree(folder: Path) -> None:
    for file in folder.rglob("*"):
        _sync(file)
    _sync(folder)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
