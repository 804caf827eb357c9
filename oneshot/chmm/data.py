"""Reads weak labels from a folder.

A reader per format (`oneshot.chmm.readers`) returns the votes as they are written. Most files have
one sign for silence and O: spans leave both out, WRENCH writes O for both. `load` reads that sign
as silence; the abstention rule of `label_model.observations` decides what silence means to a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from oneshot.chmm.dataset import SPLITS, WeakDataset
from oneshot.chmm.labels import ABSTAIN, Overlaps
from oneshot.chmm.readers import registry
from oneshot.chmm.readers.files import Reading
from oneshot.chmm.readers.registry import Format


def load(
    path: str | Path,
    *,
    format: Format = "auto",
    sources: Literal["recommended", "all"] | Sequence[str] = "recommended",
    entity_types: Sequence[str] | None = None,
    stray_inside: Literal["error", "begin"] = "error",
    overlaps: Overlaps = "error",
    empty: Literal["error", "skip"] = "error",
    o_is_silence: bool | None = None,
) -> WeakDataset:
    """Reads a folder with one file for each split it has: train, valid, test.

    Args:
        path: The folder.
        format: "chmm_json" (the JSON of the CHMM-ALT repository), "wrench" (WRENCH's JSON), "conll"
            (columns), "skweak" (spaCy's DocBin), or "auto": by the names and contents of the files.
        sources: The sources to keep: those that meta.json recommends (all, if it recommends none),
            all, or these, in this order.
        entity_types: The types and their order. Default: those of meta.json, else the sorted
            types that occur.
        stray_inside: How BIO text (WRENCH, CoNLL) with an I- that continues no entity is read: not
            at all, or as if it were a B-.
        overlaps: Of spans of one source that share a token: an error, or keep the first or the
            longest of them. Spans of gold labels must not overlap.
        empty: A document without tokens is an error, or is left out.
        o_is_silence: Whether a source that says O is silent. Default: unless the files have both,
            O and a sign for silence.

    Returns:
        The data set; its `notes` name what was assumed or left out.

    Raises:
        FileNotFoundError: No such folder, or none of the files that belong there.
        ValueError: A malformed record; the message has file and record, what was expected and what
            came.
        ImportError: format "skweak" without spaCy.
    """
    folder = Path(path)
    if folder.is_file():
        raise FileNotFoundError(
            f"{folder}: expected a folder that holds {', '.join(SPLITS)} (or some of them), got a "
            "file"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of weak labels")
    if isinstance(sources, str) and sources not in ("recommended", "all"):
        raise ValueError(
            f"sources must be 'recommended', 'all' or a list of names, got {sources!r}"
        )
    types = None if entity_types is None else tuple(entity_types)
    dataset, recommended = registry.read(
        folder, format, Reading(types, stray_inside, overlaps, empty)
    )
    if o_is_silence is None:
        said = np.unique(
            np.concatenate([s.votes.ravel() for x in dataset.splits.values() for s in x])
        )
        o_is_silence = not {ABSTAIN, 0} <= set(said.tolist())
        if o_is_silence and 0 in said:
            note = (
                "no source is ever silent, so O is read as silence (data.o_is_silence: false "
                "makes it a vote for O)"
            )
            dataset = dataclasses.replace(dataset, notes=(*dataset.notes, note))
    if o_is_silence:
        dataset = dataset.read_o_as_silence()
    if sources == "recommended":
        sources = recommended or dataset.sources
    elif sources == "all":
        sources = dataset.sources
    return dataset.select_sources(sources)
