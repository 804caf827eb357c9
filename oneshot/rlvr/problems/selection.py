"""Ranks training examples by the accuracy history of a run on the whole set.

A run writes accuracy.jsonl (per step: mean accuracy of each problem it visited) and, at its end,
acc_step_<steps>.json: problem index -> accuracies in the order of its visits, the format of the
paper's own acc_step_500.json. Unlike there, accuracies are exact, not floored to eighths.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from oneshot.rlvr.problems.data import Problem, row_index
from oneshot.rlvr.problems.datafiles import Row, label_of
from oneshot.training.jsonl import read_jsonl
from oneshot.training.seeding import derive_seed

METHODS = ("variance", "lim", "random")

History = dict[int, list[float]]


@dataclass(frozen=True)
class Ranked:
    """A problem with its rank (from 1), standard deviation (ddof 0) and mean of its accuracies."""

    rank: int
    index: int
    std: float
    mean: float


def step_accuracy(problems: Sequence[Problem], scores: Sequence[float]) -> dict[str, float]:
    """Share of right responses (score above 0.5) of each problem of a step, by its index."""
    visits: dict[str, list[bool]] = {}
    for problem, score in zip(problems, scores, strict=True):
        visits.setdefault(str(problem.index), []).append(score > 0.5)
    return {index: sum(right) / len(right) for index, right in visits.items()}


def fold(rows: Sequence[dict[str, Any]]) -> History:
    """The history that the lines of accuracy.jsonl add up to."""
    history: History = {}
    for row in rows:
        for index, accuracy in row["accuracy"].items():
            history.setdefault(int(index), []).append(accuracy)
    return history


def read_history(path: str | Path) -> History:
    """Reads acc_step_<n>.json or the accuracy.jsonl of a run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no history (the first wrong entry is named).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such history")
    if path.suffix == ".jsonl":
        return fold(read_jsonl(path))
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(history, dict) or not history:
        raise ValueError(f"{path}: expected an object of index -> accuracies")
    for index, values in history.items():
        fine = (
            isinstance(values, list) and values and all(isinstance(v, int | float) for v in values)
        )
        if not index.isdigit() or not fine:
            raise ValueError(f"{path}: expected index -> accuracies, got {index!r}: {values!r:.80}")
    return {int(index): [float(v) for v in values] for index, values in history.items()}


def write_history(path: Path, history: History) -> None:
    """Writes a history in the format of acc_step_500.json."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(json.dumps(history, indent=4) + "\n", encoding="utf-8")
    temporary.replace(path)


def rank(history: History, method: str = "variance", seed: int = 0) -> list[Ranked]:
    """Problems, best first; ties stay in the order of the history.

    Args:
        history: Accuracies by problem.
        method: "variance": largest standard deviation first (numpy.std, ddof 0; rounding decides
            some ties of the paper's ranking, so the variance would order a few others). "lim":
            alignment with the average learning curve. "random".
        seed: Of the random order.

    Source:
        Wang et al. 2025 (arXiv:2504.20571), section 2, and its released selection script. "lim":
        Li et al. 2025 (LIMR, arXiv:2502.11886), 1 - sum (s_i - s)^2 / sum (1 - s)^2 over the
        entries that every problem has.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not history:
        raise ValueError("history is empty")
    indices = list(history)
    if method == "random":
        random.Random(derive_seed(seed, "selection")).shuffle(indices)
    else:
        scores = _alignment(history) if method == "lim" else _deviation(history)
        indices.sort(key=lambda index: -scores[index])
    return [
        Ranked(i, index, float(numpy.std(history[index])), float(numpy.mean(history[index])))
        for i, index in enumerate(indices, start=1)
    ]


def _deviation(history: History) -> dict[int, float]:
    return {index: float(numpy.std(values)) for index, values in history.items()}


def _alignment(history: History) -> dict[int, float]:
    length = min(map(len, history.values()))
    table = numpy.array([values[:length] for values in history.values()])
    mean = table.mean(0)
    rest = ((1 - mean) ** 2).sum()
    if rest == 0:
        raise ValueError("method 'lim': every problem is always solved, nothing to rank by")
    scores = 1 - ((table - mean) ** 2).sum(1) / rest
    return dict(zip(history, scores.tolist(), strict=True))


def write_ranking(
    path: str | Path, ranking: Sequence[Ranked], labels: dict[int, str] | None = None
) -> None:
    """Writes rank, index, std, mean, label as CSV; without labels that column is empty.

    Raises:
        ValueError: A ranked problem has no label.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for entry in ranking:
        if labels is not None and entry.index not in labels:
            raise ValueError(f"problem {entry.index} of the history is not in the data")
        label = "" if labels is None else labels[entry.index]
        rows.append((entry.rank, entry.index, repr(entry.std), repr(entry.mean), label))
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("rank", "index", "std", "mean", "label"))
        writer.writerows(rows)
    temporary.replace(path)


def rows_by_index(rows: Sequence[Row]) -> dict[int, Row]:
    """Rows of a data file by their index: `extra_info.index`, else their position."""
    result: dict[int, Row] = {}
    for position, row in enumerate(rows):
        index = row_index(row, position)
        if result.setdefault(index, row) != row:
            raise ValueError(
                f"row {position + 1} and one before it have the same extra_info.index {index} and "
                "differ; number the rows anew, or remove the field to count them"
            )
    return result


def labels_by_index(rows: dict[int, Row]) -> dict[int, str]:
    """The answer of each row."""
    return {index: label_of(row, f"row of index {index}") for index, row in rows.items()}


def shots(
    rows: dict[int, Row], ranking: Sequence[Ranked], ranks: Sequence[int], total: int = 128
) -> list[Row]:
    """The examples of the given ranks, each repeated, `total` rows in all.

    Args:
        rows: The data by index.
        ranking: Of `rank`.
        ranks: Ranks from 1, in the order they are written.
        total: Rows of the file; a multiple of the number of ranks (128 / 16: 8 copies of each).

    Raises:
        ValueError: A rank that does not exist, or a total that is no multiple.
    """
    for number in ranks:
        if not 1 <= number <= len(ranking):
            raise ValueError(f"ranks must be between 1 and {len(ranking)}, got {number}")
    if not ranks or total % len(ranks):
        raise ValueError(f"rows must be a multiple of the {len(ranks)} examples, got {total}")
    chosen = [ranking[number - 1].index for number in ranks]
    missing = [index for index in chosen if index not in rows]
    if missing:
        raise ValueError(f"problem {missing[0]} of the history is not in the data")
    return [rows[index] for index in chosen for _ in range(total // len(chosen))]
