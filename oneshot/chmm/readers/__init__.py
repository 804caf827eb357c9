"""Readers of weak-label files, one module for each form; `oneshot.chmm.data.load` chooses.

Each has `read(folder, entity_types, stray_inside)`, which returns the set with all its sources,
and the names of the recommended ones where the files say.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Literal, get_args

from oneshot.chmm.data import SPLITS, WeakDataset
from oneshot.chmm.readers.files import first_record, split_files

Reader = Literal["chmm_json", "wrench", "conll", "skweak"]


def detect(folder: Path) -> Reader:
    """The form of a folder, by its file names; of JSON, by how the first record's label is told.

    Raises:
        FileNotFoundError: No file of any form.
    """
    if split_files(folder, ".json"):
        _, record = first_record(next(iter(split_files(folder, ".json").values())))
        label = record.get("label") if isinstance(record, dict) else None
        strings = isinstance(label, list) and label and isinstance(label[0], str)
        return "wrench" if strings else "chmm_json"
    if split_files(folder, ".spacy"):
        return "skweak"
    if split_files(folder, ".conll", ".txt", ".tsv"):
        return "conll"
    raise FileNotFoundError(
        f"{folder}: expected {', '.join(SPLITS)} (or some of them) as .json, .conll, .txt, .tsv or "
        ".spacy files, found none"
    )


def read(
    folder: Path,
    form: Reader,
    entity_types: tuple[str, ...] | None,
    stray_inside: Literal["error", "begin"],
) -> tuple[WeakDataset, tuple[str, ...] | None]:
    """The set in a folder, and its recommended sources (arguments as in `data.load`)."""
    if form not in get_args(Reader):
        raise ValueError(f"form must be auto, {', '.join(get_args(Reader))}, got {form!r}")
    if stray_inside not in ("error", "begin"):
        raise ValueError(f"stray_inside must be 'error' or 'begin', got {stray_inside!r}")
    reader = importlib.import_module(f"oneshot.chmm.readers.{form}")
    dataset, recommended = reader.read(folder, entity_types, stray_inside)
    return dataset, recommended
