"""Documents annotated by skweak: spaCy's DocBin files, one span group for each source.

train|valid|test.spacy, as skweak.utils.docbin_writer writes them. Gold is `doc.ents`; a document
on which nobody has set them has none. A group that a document lacks is a silent source there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from oneshot.chmm.data import ABSTAIN, LabelSpace, Sentence, WeakDataset
from oneshot.chmm.readers import files


def read(
    folder: Path,
    entity_types: tuple[str, ...] | None,
    stray_inside: Literal["error", "begin"],
) -> tuple[WeakDataset, tuple[str, ...] | None]:
    """The set; nothing is recommended in this form, and spans leave no use for `stray_inside`."""
    docs = {
        split: (file, _documents(file))
        for split, file in files.require_splits(folder, ".spacy").items()
    }
    everything = [doc for _, split in docs.values() for doc in split]
    sources = tuple(dict.fromkeys(name for doc in everything for name in doc.spans))
    if entity_types is None:
        found = {
            span.label_
            for doc in everything
            for group in (doc.ents, *doc.spans.values())
            for span in group
        }
        entity_types = tuple(sorted(found))
    with files.located(folder):
        labels = LabelSpace(entity_types)

    splits = {}
    for split, (file, documents) in docs.items():
        sentences = []
        for number, doc in enumerate(documents):
            with files.located(file, f"document {number}"):
                sentences.append(_sentence(doc, labels, sources))
        splits[split] = tuple(sentences)
    return WeakDataset(labels, sources, splits), None


def _documents(path: Path) -> list[Any]:
    try:
        import spacy
        from spacy.tokens import DocBin
    except ImportError as error:
        raise ImportError(f"{path}: reading DocBin files needs `pip install spacy`") from error
    try:
        documents = list(DocBin().from_disk(path).get_docs(spacy.blank("xx").vocab))
    except Exception as error:  # zlib, msgpack and spaCy each raise their own
        raise ValueError(f"{path}: not a DocBin file ({error})") from error
    if not documents:
        raise ValueError(f"{path}: no document in it")
    return documents


def _sentence(doc: Any, labels: LabelSpace, sources: tuple[str, ...]) -> Sentence:
    votes = np.empty((len(doc), len(sources)), np.int64)
    for s, name in enumerate(sources):
        with files.located(f"source {name!r}"):
            group = doc.spans.get(name, ())
            votes[:, s] = labels.from_spans(_spans(group), len(doc), ABSTAIN)
    gold = None
    if doc.has_annotation("ENT_IOB"):
        with files.located("ents"):
            gold = labels.from_spans(_spans(doc.ents), len(doc))
    return Sentence(files.clean_tokens([token.text for token in doc]), votes, gold)


def _spans(group: Any) -> list[tuple[int, int, str]]:
    return [(span.start, span.end, span.label_) for span in group]
