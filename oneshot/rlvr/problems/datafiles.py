"""Training files as rows: read, change, write. `data.py` turns such rows into problems."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oneshot.rlvr.problems.data import answer_text, file_rows

Row = dict[str, Any]


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a .parquet, .jsonl or .json file, unchanged.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another suffix, a damaged file, or a row that is not an object.
    """
    rows = []
    for number, row in file_rows(Path(path)):
        if not isinstance(row, Mapping):
            raise ValueError(f"{path}, row {number}: expected an object, got {type(row).__name__}")
        rows.append(dict(row))
    return rows


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Writes rows as .parquet, .jsonl or .json, under a temporary name first.

    Raises:
        ValueError: Another suffix, or no rows.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".jsonl", ".json"):
        raise ValueError(f"{path}: expected .parquet, .jsonl or .json, got {path.suffix!r}")
    if not rows:
        raise ValueError(f"{path}: no rows to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), temporary)
    elif path.suffix == ".jsonl":
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        temporary.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def label_of(row: Row, where: str = "row") -> str:
    """The answer of a row (verl's `reward_model.ground_truth`, else `answer`) as text."""
    if isinstance(row.get("reward_model"), Mapping):
        return answer_text(row["reward_model"]["ground_truth"])
    if "answer" not in row:
        raise ValueError(f"{where}: no field 'reward_model' or 'answer'; it has {sorted(row)}")
    return answer_text(row["answer"]).rpartition("####")[2].strip()


def with_label(row: Row, label: str) -> Row:
    """A copy of a row with another answer; every other field stays."""
    row = copy.deepcopy(row)
    if isinstance(row.get("reward_model"), Mapping):
        row["reward_model"] = {**row["reward_model"], "ground_truth": label}
    else:
        row["answer"] = label
    return row
