"""The JSON of the CHMM-ALT and Sparse-CHMM repositories: spans of every source.

meta.json: lf (names of the sources), lf_rec (recommended ones), entity_types, and optionally
num_lf, priors {source: {type: [precision, recall]}} and the sizes of the splits ("test_size " is
spelled with a space at its end there). train|valid|test.json: {"0": {"data": {"text": [token,
...]}, "label": [[start, end, type], ...], "weak_labels": [[[start, end, type], ...], one list for
each source of lf]}, ...}. A record without label has no gold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oneshot.chmm.dataset import SPLITS, Priors, Sentence, WeakDataset
from oneshot.chmm.labels import ABSTAIN, LabelSpace
from oneshot.chmm.readers import files

SUFFIXES = (".json",)


def matches(file: Path) -> bool:
    """Always: the registry tries WRENCH, whose files are JSON too, first."""
    return True


def read(folder: Path, options: files.Reading) -> tuple[WeakDataset, tuple[str, ...] | None]:
    """The set and its recommended sources; spans leave no use for `stray_inside`."""
    path = folder / "meta.json"
    meta = files.read_json(path)
    with files.located(path):
        sources = files.names(meta, "lf")
        recommended = files.names(meta, "lf_rec") if "lf_rec" in meta else None
        labels = LabelSpace(options.entity_types or files.names(meta, "entity_types"))
        _check_count(meta, "num_lf", len(sources))
        priors = _priors(meta["priors"], sources, labels) if meta.get("priors") else None

    splits, sizes = {}, {}
    for split, file in files.require_splits(folder, *SUFFIXES).items():
        sentences = []
        records = files.read_records(file)
        sizes[split] = len(records)
        for key, record in records.items():
            with files.located(file, f"record {key!r}"):
                if options.skips(files.field(record, "data", "text")):
                    continue
                sentences.append(_sentence(key, record, labels, sources, options))
        splits[split] = tuple(sentences)
    with files.located(path):
        for split in SPLITS:
            if split in sizes:
                _check_count(meta, f"{split}_size", sizes[split])
    return WeakDataset(labels, sources, splits, priors), recommended


def _sentence(
    key: str, record: Any, labels: LabelSpace, sources: tuple[str, ...], options: files.Reading
) -> Sentence:
    tokens = files.tokens(files.field(record, "data", "text"))
    weak = files.field(record, "weak_labels")
    if not isinstance(weak, list) or len(weak) != len(sources):
        came = len(weak) if isinstance(weak, list) else type(weak).__name__
        raise ValueError(f"weak_labels: expected a list for {len(sources)} sources, got {came}")
    votes = np.empty((len(tokens), len(sources)), np.int64)
    for s, spans in enumerate(weak):
        with files.located(f"source {sources[s]!r}"):
            _list(spans)
        votes[:, s] = options.votes(labels, sources[s], spans, len(tokens), ABSTAIN)
    gold = None
    if record.get("label") is not None:
        with files.located("label"):
            gold = labels.from_spans(_list(record["label"]), len(tokens))
    return Sentence(tokens, votes, gold, key)


def _list(spans: Any) -> list[Any]:
    if not isinstance(spans, list):
        raise ValueError(f"expected a list of spans, got {spans!r}")
    return spans


def _check_count(meta: dict[str, Any], key: str, count: int) -> None:
    """A figure of meta.json, if there, must be the count; keys may end in white space."""
    stated = {name.strip(): value for name, value in meta.items()}.get(key, count)
    if stated != count:
        raise ValueError(
            f"{key}: meta.json says {stated!r}, but there are {count}; if this is a part of the "
            f"data set on purpose, delete {key} from meta.json"
        )


def _priors(stated: Any, sources: tuple[str, ...], labels: LabelSpace) -> Priors:
    priors: dict[str, dict[str, tuple[float, float]]] = {}
    with files.located("priors"):
        for source, by_type in files.mapping(stated).items():
            if source not in sources:
                raise ValueError(f"{source!r} is no source of lf")
            priors[source] = {}
            for name, pair in files.mapping(by_type).items():
                if name not in labels.entity_types:
                    raise ValueError(f"{source!r}: {name!r} is no entity type")
                if not _probabilities(pair):
                    raise ValueError(
                        f"{source!r}, {name!r}: expected [precision, recall], got {pair!r}"
                    )
                priors[source][name] = (float(pair[0]), float(pair[1]))
    return priors


def _probabilities(pair: Any) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(x, int | float) and 0 <= x <= 1 for x in pair)
    )
