"""What the readers share: finding and parsing files, options, saying where a fault is."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from oneshot.chmm.dataset import SPLITS
from oneshot.chmm.labels import Ids, LabelSpace, Overlaps

# Other names of splits in use, and the name that is read.
ALIASES = {
    **dict.fromkeys(("validation", "val", "dev", "development"), "valid"),
    **dict.fromkeys(("training", "unlabeled", "unlabelled"), "train"),
    "testing": "test",
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class Notes:
    """What a reader assumed or left out, in the order in which it came up."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def say(self, what: str) -> None:
        """A fact about the files, once."""
        self._counts[what] = 0

    def count(self, what: str, number: int = 1) -> None:
        """Adds to how often something happened; 0 adds no note."""
        if number:
            self._counts[what] += number

    def lines(self) -> tuple[str, ...]:
        """The facts, and `what: number` of what was counted."""
        return tuple(f"{x}: {n}" if n else x for x, n in self._counts.items())


@dataclass(frozen=True)
class Reading:
    """How files are read: the arguments of `data.load` that readers obey, and what they noted."""

    entity_types: tuple[str, ...] | None = None
    stray_inside: Literal["error", "begin"] = "error"
    overlaps: Overlaps = "error"
    empty: Literal["error", "skip"] = "error"
    notes: Notes = dataclasses.field(default_factory=Notes)

    def check(self) -> None:
        """A ValueError names the argument that has none of its values."""
        allowed = {
            "stray_inside": ("error", "begin"),
            "overlaps": get_args(Overlaps),
            "empty": ("error", "skip"),
        }
        for name, values in allowed.items():
            value = getattr(self, name)
            if value not in values:
                expected = " or ".join(map(repr, values))
                raise ValueError(f"{name} must be {expected}, got {value!r}")

    def votes(self, labels: LabelSpace, source: str, spans: Any, length: int, silent: int) -> Ids:
        """Label ids of one source's spans; `overlaps` decides between those that share a token."""
        with located(f"source {source!r}"):
            ids = labels.from_spans(spans, length, silent, self.overlaps)
        left_out = len(spans) - int(((ids > 0) & (ids % 2 == 1)).sum())
        what = f"source {source!r}: spans that overlap the {self.overlaps} one, left out"
        self.notes.count(what, left_out)
        return ids

    def skips(self, tokens: Any) -> bool:
        """Whether a document is left out because it has no token."""
        if self.empty == "error" or not isinstance(tokens, list | tuple) or tokens:
            return False
        self.notes.count("documents without a token, left out")
        return True


def split_files(folder: Path, *suffixes: str, notes: Notes | None = None) -> dict[str, Path]:
    """The files train, valid and test with one of the suffixes, those that exist.

    Args:
        folder: Where they are.
        suffixes: Of the names.
        notes: Receives which other files of these kinds are there.

    Raises:
        ValueError: Two files of one split, or a split under another name and not under its own.
    """
    files = {}
    for split in SPLITS:
        paths = [folder / f"{split}{suffix}" for suffix in suffixes]
        paths = [path for path in paths if path.is_file()]
        if len(paths) > 1:
            raise ValueError(f"{folder}: expected one file {split}, got {paths[0].name} and more")
        if paths:
            files[split] = paths[0]
    for path in _others(folder, suffixes):
        known_as = ALIASES.get(path.stem.lower())
        if known_as is not None and known_as not in files:
            raise ValueError(f"{path}: rename it to {known_as}{path.suffix}, the name that is read")
        if notes is not None:
            notes.say(f"{path.name} is no split and is not read")
    return files


def passed_over(folder: Path, *suffixes: str) -> str:
    """The end of an error message: files that look like data and have the wrong name."""
    names = [path.name for path in _others(folder, (*suffixes, ".jsonl", ".csv", ".parquet"))]
    return f"; there is {', '.join(names)}" if names else ""


def _others(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files of these kinds that are no split; those in JSON Lines, whose name says they are one."""
    stems = {*SPLITS, *ALIASES}
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and path.name != "meta.json"
        and (
            (path.suffix in suffixes and path.stem not in SPLITS)
            or (path.suffix == ".jsonl" and path.stem.lower() in stems)
        )
    ]


def require_splits(folder: Path, *suffixes: str) -> dict[str, Path]:
    """As `split_files`; a FileNotFoundError if there is none."""
    files = split_files(folder, *suffixes)
    if not files:
        names = ", ".join(f"{split}{suffixes[0]}" for split in SPLITS)
        others = passed_over(folder, *suffixes)
        raise FileNotFoundError(f"{folder}: expected {names} or some of them, found none{others}")
    return files


def check_pointer(path: Path) -> None:
    """A ValueError if the file is what Git LFS leaves where it has not fetched the contents."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(
                f"{path}: a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"
            )


def read_text(path: Path) -> str:
    """A text file, without a byte order mark; a ValueError has the file and what is wrong."""
    check_pointer(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None


def read_json(path: Path) -> Any:
    """The contents of a JSON file; a ValueError has the file and the position of a fault."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


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


def tokens(value: Any) -> tuple[str, ...]:
    """The tokens as they are; a ValueError unless they are a list of text, at least one."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"expected a list of tokens, at least one, got {value!r}")
    if not value:
        raise ValueError(
            f"expected a list of tokens, at least one, got {value!r} (data.empty: skip leaves such "
            "documents out)"
        )
    wrong = [token for token in value if not isinstance(token, str)]
    if wrong:
        raise ValueError(f"expected tokens that are text, got {wrong[0]!r}")
    return tuple(value)


@contextmanager
def located(*where: object) -> Iterator[None]:
    """Puts the place in front of the message of a ValueError raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, where))}: {error}") from None
