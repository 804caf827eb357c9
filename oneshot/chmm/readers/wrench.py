"""The JSON of the WRENCH benchmark: a BIO name for every token and source.

train|valid|test.json: {"0": {"data": {"text": [token, ...]}, "label": ["O", "B-x", ...],
"weak_labels": [[name by each source], one list for each token]}, ...}. A record without label has
no gold. meta.json is optional: lf (names of the sources), lf_rec (recommended ones), entity_types.
The benchmark has no sign for silence, and O stands for both; where a file has "-", which is read
as silence, O is a vote (`data.load`, `o_is_silence`).
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from oneshot.chmm.dataset import WeakDataset
from oneshot.chmm.readers import bio_text, files

SUFFIXES = (".json",)


def matches(file: Path) -> bool:
    """Whether the first label of a file is a name; CHMM-ALT writes spans."""
    for record in files.read_records(file).values():
        if not isinstance(record, dict):
            return False
        weak = record.get("weak_labels")
        rows = [record.get("label"), *(weak if isinstance(weak, list) else ())]
        for first in (row[0] for row in rows if isinstance(row, list) and row):
            return isinstance(first, str)
    return False


def read(folder: Path, options: files.Reading) -> tuple[WeakDataset, tuple[str, ...] | None]:
    """The set, and the recommended sources if meta.json has some."""
    path = folder / "meta.json"
    meta = files.read_json(path) if path.is_file() else {}
    with files.located(path):
        recommended = files.names(meta, "lf_rec") if "lf_rec" in meta else None
        sources = files.names(meta, "lf") if "lf" in meta else None
        if options.entity_types is None and "entity_types" in meta:
            types = files.names(meta, "entity_types")
            options = dataclasses.replace(options, entity_types=types)

    width = len(sources) if sources else None
    rows: dict[str, list[bio_text.Row]] = {}
    for split, file in files.require_splits(folder, *SUFFIXES).items():
        rows[split] = []
        for key, record in files.read_records(file).items():
            where = f"{file}, record {key!r}"
            with files.located(where):
                if options.skips(files.field(record, "data", "text")):
                    continue
                row = _row(key, where, record, width)
            width = len(row.columns)
            rows[split].append(row)
    return bio_text.dataset(folder, rows, sources, options), recommended


def _row(key: str, where: str, record: Any, width: int | None) -> bio_text.Row:
    tokens = files.tokens(files.field(record, "data", "text"))
    weak = _list("weak_labels", files.field(record, "weak_labels"), len(tokens), "tokens")
    for t, line in enumerate(weak):
        _list(f"weak_labels, token {t}", line, len(weak[0]) if width is None else width, "sources")
    gold = record.get("label")
    if gold is not None:
        _list("label", gold, len(tokens), "tokens")
    for name in itertools.chain(*weak, gold or ()):
        if not isinstance(name, str):
            raise ValueError(f"expected labels as text, got {name!r}")
    return bio_text.Row(key, where, tokens, list(zip(*weak, strict=True)), gold)


def _list(name: str, value: Any, length: int, of: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        came = len(value) if isinstance(value, list) else repr(value)
        raise ValueError(f"{name}: expected a list for {length} {of}, got {came}")
    return value
