"""Documents annotated by skweak: spaCy's DocBin files, one span group for each source.

train|valid|test.spacy, as skweak.utils.docbin_writer writes them. Gold is `doc.ents`; a document
without annotated ones has no gold labels. A group that a document lacks is a silent source there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oneshot.chmm.dataset import Sentence, WeakDataset
from oneshot.chmm.labels import ABSTAIN, Ids, LabelSpace
from oneshot.chmm.readers import files

SUFFIXES = (".spacy",)


def matches(file: Path) -> bool:
    """Always: nothing else has this suffix."""
    return True


def read(folder: Path, options: files.Reading) -> tuple[WeakDataset, tuple[str, ...] | None]:
    """The set; nothing is recommended in this format."""
    docs = {
        split: (file, _documents(file))
        for split, file in files.require_splits(folder, *SUFFIXES).items()
    }
    everything = [doc for _, split in docs.values() for doc in split]
    sources = tuple(dict.fromkeys(name for doc in everything for name in doc.spans))
    entity_types = options.entity_types
    if entity_types is None:
        types = {
            span.label_
            for doc in everything
            for group in (doc.ents, *doc.spans.values())
            for span in group
        }
        entity_types = tuple(sorted(types))
    with files.located(folder):
        labels = LabelSpace(entity_types)

    splits = {}
    for split, (file, documents) in docs.items():
        sentences = []
        for number, doc in enumerate(documents):
            with files.located(file, f"document {number}"):
                if options.skips([token.text for token in doc]):
                    continue
                sentences.append(_sentence(str(number), doc, labels, sources, options))
        splits[split] = tuple(sentences)
    return WeakDataset(labels, sources, splits), None


def _documents(path: Path) -> list[Any]:
    files.check_pointer(path)
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


def _sentence(
    number: str, doc: Any, labels: LabelSpace, sources: tuple[str, ...], options: files.Reading
) -> Sentence:
    tokens = files.tokens([token.text for token in doc])
    votes = np.empty((len(tokens), len(sources)), np.int64)
    for s, name in enumerate(sources):
        spans = _spans(doc.spans.get(name, ()))
        votes[:, s] = options.votes(labels, name, spans, len(tokens), ABSTAIN)
    return Sentence(tokens, votes, _gold(doc, labels), number)


def _gold(doc: Any, labels: LabelSpace) -> Ids | None:
    """Label ids of `doc.ents`; spaCy marks unannotated tokens, which are no O."""
    unknown = [token.i for token in doc if not token.ent_iob_]
    if len(unknown) == len(doc):
        return None
    with files.located("ents"):
        if unknown:
            raise ValueError(
                f"token {unknown[0]}: expected an annotation, got none (a document has gold labels "
                "at all tokens or at none; `doc.set_ents(..., default='outside')` makes the rest O)"
            )
        return labels.from_spans(_spans(doc.ents), len(doc))


def _spans(group: Any) -> list[tuple[int, int, str]]:
    return [(span.start, span.end, span.label_) for span in group]
