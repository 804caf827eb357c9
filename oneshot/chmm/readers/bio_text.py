"""What the readers of BIO text (WRENCH, CoNLL columns) share: from label names to a data set."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from oneshot.chmm.dataset import Sentence, WeakDataset
from oneshot.chmm.labels import ABSTAIN, LabelSpace
from oneshot.chmm.readers import files


class Row(NamedTuple):
    """A sentence as text, and the place it comes from."""

    id: str
    where: str
    tokens: tuple[str, ...]
    columns: Sequence[Sequence[str]]  # label names, one column for each source
    gold: Sequence[str] | None


def dataset(
    folder: Path,
    rows: Mapping[str, Sequence[Row]],
    sources: tuple[str, ...] | None,
    options: files.Reading,
) -> WeakDataset:
    """The set of these rows, at least one in each split.

    Args:
        folder: Named where no type is found.
        rows: By split; all with the same number of columns.
        sources: Names of the columns. Default: source1, source2, ...
        options: As in `data.load`.
    """
    for split in rows:
        if not rows[split]:
            raise ValueError(f"{folder}: no sentence with a token in {split}")
    everything = list(itertools.chain(*rows.values()))
    if sources is None:
        sources = tuple(f"source{s + 1}" for s in range(len(everything[0].columns)))
        options.notes.say(f"the sources have no names and are called {sources[0]} .. {sources[-1]}")
    entity_types = options.entity_types
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
                sentences.append(_sentence(row, labels, sources, options))
        splits[split] = tuple(sentences)
    return WeakDataset(labels, sources, splits)


def _sentence(
    row: Row,
    labels: LabelSpace,
    sources: tuple[str, ...],
    options: files.Reading,
) -> Sentence:
    votes = np.empty((len(row.tokens), len(sources)), np.int64)
    for s, column in enumerate(row.columns):
        with files.located(f"source {sources[s]!r}"):
            votes[:, s] = labels.from_names(column, options.stray_inside)
    if row.gold is None:
        return Sentence(row.tokens, votes, id=row.id)
    with files.located("gold"):
        gold = labels.from_names(row.gold, options.stray_inside)
        silent = gold == ABSTAIN
        if silent.any() and not silent.all():
            raise ValueError(
                f"token {int(silent.argmax())}: expected a label, got none (a sentence has gold "
                "labels at all tokens or at none)"
            )
    return Sentence(row.tokens, votes, None if silent.all() else gold, row.id)
