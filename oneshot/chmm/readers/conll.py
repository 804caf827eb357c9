"""CoNLL columns: token, one BIO label by each source, gold; a blank line ends a sentence.

train|valid|test.conll (or .txt, .tsv). Columns are divided by tabs if the first line has one, else
by white space. "-" (or nothing, between tabs) is a source that says nothing; a sentence whose gold
column is all "-" has no gold. The first line may name the columns: "# token NAME ... gold"; all
files of a folder need the same names. A -DOCSTART- line is no token.
"""

from __future__ import annotations

import re
from pathlib import Path

from oneshot.chmm.dataset import WeakDataset
from oneshot.chmm.readers import bio_text, files

# Only these divide columns: a no-break space or another separator of Unicode belongs to a token.
TAB, SPACES, BLANKS = re.compile("\t"), re.compile("[ \t]+"), " \t"


SUFFIXES = (".conll", ".txt", ".tsv")


def matches(file: Path) -> bool:
    """Always: nothing else has these suffixes."""
    return True


def read(folder: Path, options: files.Reading) -> tuple[WeakDataset, tuple[str, ...] | None]:
    """The set; nothing is recommended in this format."""
    rows: dict[str, list[bio_text.Row]] = {}
    before: tuple[Path, tuple[str, ...] | None, int] | None = None
    for split, path in files.require_splits(folder, *SUFFIXES).items():
        sources, rows[split] = _read_file(path, options)
        width = len(rows[split][0].columns)
        if before and before[1:] != (sources, width):
            raise ValueError(
                f"{path}: expected the columns of {before[0].name}, "
                f"{list(before[1] or ()) or before[2]}, got {list(sources or ()) or width}"
            )
        before = path, sources, width
    assert before is not None  # require_splits found a file
    return bio_text.dataset(folder, rows, before[1], options), None


def _read_file(
    path: Path, options: files.Reading
) -> tuple[tuple[str, ...] | None, list[bio_text.Row]]:
    lines = files.read_text(path).split("\n")
    separator = TAB if "\t" in lines[0] else SPACES
    options.notes.say(
        f"the columns of {path.name} are divided by {'tabs' if separator is TAB else 'white space'}"
        " (as in its first line); the first is the token, the last is gold"
    )
    sources = None
    if lines[0].startswith("#") and lines[0][1:].split()[:1] == ["token"]:
        header = [name.strip() for name in separator.split(lines[0][1:].strip())]
        if len(header) < 3:
            raise ValueError(f"{path}, line 1: expected '# token NAME ... gold', got {lines[0]!r}")
        sources = tuple(header[1:-1])
        lines[0] = ""
    width = len(sources) + 2 if sources else None

    rows: list[bio_text.Row] = []
    sentence: list[list[str]] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.startswith("-DOCSTART-") or not line.strip(BLANKS):
            if sentence:
                where = f"{path}, lines {number - len(sentence)}-{number - 1}"
                tokens, *columns, gold = zip(*sentence, strict=True)
                rows.append(
                    bio_text.Row(str(len(rows)), where, files.tokens(tokens), columns, gold)
                )
                sentence = []
            continue
        fields = [
            x.strip(" ") for x in separator.split(line if separator is TAB else line.strip(BLANKS))
        ]
        width = width or max(len(fields), 3)
        if len(fields) != width:
            raise ValueError(
                f"{path}, line {number}: expected {width} columns (token, {width - 2} sources, "
                f"gold), got {len(fields)}"
            )
        sentence.append(fields)
    if not rows:
        raise ValueError(f"{path}: no sentence in it")
    return sources, rows
