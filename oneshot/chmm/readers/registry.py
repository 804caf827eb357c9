"""The formats of weak labels.

A new format is a module of this folder, which is a `Reader`, and its name in `READERS`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

from oneshot.chmm.dataset import SPLITS, WeakDataset
from oneshot.chmm.readers.files import Reading, passed_over, split_files


class Reader(Protocol):
    """A module that reads one format."""

    SUFFIXES: tuple[str, ...]
    """Of its files, such as ".json"."""

    def matches(self, file: Path) -> bool:
        """Whether a file with one of the suffixes is in this format."""

    def read(self, folder: Path, options: Reading) -> tuple[WeakDataset, tuple[str, ...] | None]:
        """The set with all its sources, and the names of the recommended ones if the files say."""


# "auto" takes the first that matches.
READERS: Mapping[str, Reader] = {
    name: cast(Reader, importlib.import_module(f"oneshot.chmm.readers.{name}"))
    for name in ("wrench", "chmm_json", "skweak", "conll")
}
if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[("auto", *READERS)]


def detect(folder: Path) -> str:
    """The format of a folder, by the names and contents of its files.

    Raises:
        FileNotFoundError: No file of any format.
    """
    for name, reader in READERS.items():
        files = split_files(folder, *reader.SUFFIXES)
        if files and reader.matches(next(iter(files.values()))):
            return name
    suffixes = list(dict.fromkeys(x for reader in READERS.values() for x in reader.SUFFIXES))
    expected = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
    raise FileNotFoundError(
        f"{folder}: expected {', '.join(SPLITS)} (or some of them) as {expected} files, found none"
        f"{passed_over(folder, *suffixes)}"
    )


def read(folder: Path, format: str, options: Reading) -> tuple[WeakDataset, tuple[str, ...] | None]:
    """The set in a folder, and its recommended sources."""
    if format != "auto" and format not in READERS:
        raise ValueError(f"format must be {', '.join(('auto', *READERS))}, got {format!r}")
    options.check()
    name = detect(folder) if format == "auto" else format
    if format == "auto":
        options.notes.say(f"{folder} is read as {name}")
    split_files(folder, *READERS[name].SUFFIXES, notes=options.notes)
    dataset, recommended = READERS[name].read(folder, options)
    return dataclasses.replace(dataset, notes=options.notes.lines()), recommended
