"""What the readers share: finding and parsing files, cleaning tokens, saying where a fault is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oneshot.chmm.data import SPLITS

EMPTY_TOKEN = "[UNK]"


def split_files(folder: Path, *suffixes: str) -> dict[str, Path]:
    """The files train, valid and test with one of the suffixes, those that exist."""
    found = {}
    for split in SPLITS:
        paths = [folder / f"{split}{suffix}" for suffix in suffixes]
        paths = [path for path in paths if path.is_file()]
        if len(paths) > 1:
            raise ValueError(f"{folder}: expected one file {split}, got {paths[0].name} and more")
        if paths:
            found[split] = paths[0]
    return found


def require_splits(folder: Path, *suffixes: str) -> dict[str, Path]:
    """As `split_files`; a FileNotFoundError if there is none."""
    found = split_files(folder, *suffixes)
    if not found:
        names = ", ".join(f"{split}{suffixes[0]}" for split in SPLITS)
        raise FileNotFoundError(f"{folder}: expected {names} or some of them, found none")
    return found


def read_json(path: Path) -> Any:
    """The contents of a JSON file; a ValueError has the file and the position of a fault."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None


def read_records(path: Path) -> dict[str, Any]:
    """The records of a JSON object {"0": record, "1": record, ...}, in the order of the file."""
    records = read_json(path)
    with located(path):
        if not mapping(records):
            raise ValueError("expected records, got an empty object")
    return records


def first_record(path: Path) -> tuple[str, Any]:
    """Key and contents of the first record of a JSON file."""
    return next(iter(read_records(path).items()))


def field(record: Any, *keys: str) -> Any:
    """record[key][key]...; a ValueError says which key is missing."""
    for depth, key in enumerate(keys):
        if key not in mapping(record):
            raise ValueError(f"no field {'.'.join(keys[: depth + 1])!r}; there is {sorted(record)}")
        record = record[key]
    return record


def mapping(value: Any) -> dict[str, Any]:
    """The value, which must be a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def names(meta: dict[str, Any], key: str) -> tuple[str, ...]:
    """A list of names in meta.json."""
    value = field(meta, key)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key} must be a list of names, got {value!r}")
    return tuple(value)


def clean_tokens(tokens: Any) -> tuple[str, ...]:
    """Tokens without characters that cannot be printed; what is then empty is `EMPTY_TOKEN`."""
    if not isinstance(tokens, Sequence) or isinstance(tokens, str) or not tokens:
        raise ValueError(f"expected a list of tokens, at least one, got {tokens!r}")
    wrong = [token for token in tokens if not isinstance(token, str)]
    if wrong:
        raise ValueError(f"expected tokens that are text, got {wrong[0]!r}")
    return tuple(
        "".join(c for c in token if c.isprintable()).strip() or EMPTY_TOKEN for token in tokens
    )


@contextmanager
def located(*where: object) -> Iterator[None]:
    """Puts the place in front of the message of a ValueError raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, where))}: {error}") from None
