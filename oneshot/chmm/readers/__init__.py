"""Readers of weak-label files, one module for each form; `oneshot.chmm.data.load` chooses.

Each has `read(folder, options)`, which returns the set with all its sources, and the names of the
recommended ones where the files say.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any, Literal, get_args

from oneshot.chmm.data import SPLITS, Form, WeakDataset
from oneshot.chmm.readers.files import Reading, passed_over, read_records, split_files

Reader = Literal["chmm_json", "wrench", "conll", "skweak"]
SUFFIXES: dict[Reader, tuple[str, ...]] = {
    "chmm_json": (".json",),
    "wrench": (".json",),
    "conll": (".conll", ".txt", ".tsv"),
    "skweak": (".spacy",),
}


def detect(folder: Path) -> Reader:
    """The form of a folder, by its file names; of JSON, by how records write labels.

    Raises:
        FileNotFoundError: No file of any form.
    """
    if json_files := split_files(folder, ".json"):
        return _json_form(next(iter(json_files.values())))
    if split_files(folder, ".spacy"):
        return "skweak"
    if split_files(folder, ".conll", ".txt", ".tsv"):
        return "conll"
    raise FileNotFoundError(
        f"{folder}: expected {', '.join(SPLITS)} (or some of them) as .json, .conll, .txt, .tsv or "
        f".spacy files, found none{passed_over(folder, *(s for x in SUFFIXES.values() for s in x))}"
    )


def _json_form(file: Path) -> Reader:
    """WRENCH writes lists of names; CHMM-ALT writes lists of spans, which may all be empty."""
    for record in read_records(file).values():
        if not isinstance(record, dict):
            break
        weak = record.get("weak_labels")
        rows = [record.get("label"), *(weak if isinstance(weak, list) else ())]
        for first in (row[0] for row in rows if isinstance(row, list) and row):
            return "wrench" if isinstance(first, str) else "chmm_json"
    return "chmm_json"


def read(folder: Path, form: Form, options: Reading) -> tuple[WeakDataset, tuple[str, ...] | None]:
    """The set in a folder, and its recommended sources."""
    if form not in get_args(Form):
        raise ValueError(f"form must be {', '.join(get_args(Form))}, got {form!r}")
    options.check()
    reader: Reader = detect(folder) if form == "auto" else form
    if form == "auto":
        options.notes.say(f"{folder} is read as {reader}")
    split_files(folder, *SUFFIXES[reader], notes=options.notes)
    module: Any = importlib.import_module(f"oneshot.chmm.readers.{reader}")
    dataset, recommended = module.read(folder, options)
    return dataclasses.replace(dataset, notes=options.notes.lines()), recommended
