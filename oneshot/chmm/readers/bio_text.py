"""What the readers of BIO text (WRENCH, CoNLL columns) share: from label names to a data set."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from oneshot.chmm.data import ABSTAIN, LabelSpace, Sentence, WeakDataset
from oneshot.chmm.readers import files


class Row(NamedTuple):
    """A sentence as text, and the place it comes from."""

    where: str
    tokens: tuple[str, ...]
    columns: Sequence[Sequence[str]]  # label names, one column for each source
    gold: Sequence[str] | None


def dataset(
    folder: Path,
    rows: Mapping[str, Sequence[Row]],
    sources: tuple[str, ...] | None,
    entity_types: tuple[str, ...] | None,
    stray_inside: Literal["error", "begin"],
) -> WeakDataset:
    """The set of these rows, at least one in each split.

    Args:
        folder: Named where no type is found.
        rows: By split; all with the same number of columns.
        sources: Names of the columns. Default: source1, source2, ...
        entity_types: Default: those that occur, sorted.
        stray_inside: As in `data.load`.
    """
    everything = list(itertools.chain(*rows.values()))
    if sources is None:
        sources = tuple(f"source{s + 1}" for s in range(len(everything[0].columns)))
    if entity_types is None:
        names = {
            name
            for row in everything
            for column in (*row.columns, row.gold or ())
            for name in column
        }
        entity_types = tuple(sorted({name[2:] for name in names if name[:2] in ("B-", "I-")}))
    with files.located(folder):
        labels = LabelSpace(entity_types)
    splits = {}
    for split in rows:
        sentences = []
        for row in rows[split]:
            with files.located(row.where):
                sentences.append(_sentence(row, labels, sources, stray_inside))
        splits[split] = tuple(sentences)
    return WeakDataset(labels, sources, splits)


def _sentence(
    row: Row,
    labels: LabelSpace,
    sources: tuple[str, ...],
    stray_inside: Literal["error", "begin"],
) -> Sentence:
    votes = np.empty((len(row.tokens), len(sources)), np.int64)
    for s, column in enumerate(row.columns):
        with files.located(f"source {sources[s]!r}"):
            votes[:, s] = labels.from_names(column, stray_inside)
    if row.gold is None:
        return Sentence(row.tokens, votes)
    with files.located("gold"):
        gold = labels.from_names(row.gold, stray_inside)
        silent = gold == ABSTAIN
        if silent.any() and not silent.all():
            raise ValueError(f"token {int(silent.argmax())}: expected a label, got none")
    return Sentence(row.tokens, votes, None if silent.all() else gold)
