"""Files of one JSON object per line that outlive a kill."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """A file of one JSON object per line, cut back to the step that a run resumes from."""

    def __init__(self, path: Path, last_step: int | None) -> None:
        if last_step is None:
            path.unlink(missing_ok=True)
        else:
            retained = [row for row in read_jsonl(path) if row["step"] <= last_step]
            temporary = path.with_suffix(".rewriting")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in retained))
            temporary.replace(path)
        # Unbuffered: what a full disk refuses is not tried again when the file is closed.
        self._file = path.open("ab", buffering=0)
        self._path = path

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one line and hands it to the operating system.

        Raises:
            OSError: It could not be written as a whole (a full disk); the file is named.
        """
        line = (json.dumps(row) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            what = f"{error.strerror}; a resumed run writes this line again"
            raise OSError(error.errno, what, str(self._path)) from error

    def sync(self) -> None:
        """Forces what was written onto the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line torn by a kill is left out.

    Raises:
        ValueError: A line that is not the last one is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: damaged ({error})") from None
    return rows
