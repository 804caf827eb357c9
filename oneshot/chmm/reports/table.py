"""Results of an evaluation as a Markdown table, JSON and a bar chart."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# Column of the table -> (key of a row, factor, digits)
COLUMNS = {
    "P": ("test_precision", 100, 2),
    "R": ("test_recall", 100, 2),
    "F1": ("test_f1", 100, 2),
    "valid F1": ("valid_f1", 100, 2),
    "entities": ("test_entities", 1, 0),
    "LL/token": ("test_log_likelihood_per_token", 1, 3),
    "NLL of gold": ("test_nll", 1, 3),
    "ECE": ("test_ece", 1, 3),
}


def write_report(rows: Sequence[Row], output: Path) -> None:
    """Writes results.md, results.json and results.png."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (output / "results.md").write_text(markdown(rows), encoding="utf-8")
    if scored := [row for row in rows if "test_f1" in row]:
        plot(scored, output / "results.png")


def markdown(rows: Sequence[Row]) -> str:
    """One table for each data set: scores on test, mean +- standard deviation over seeds.

    Without a split test they are those on valid; without gold labels, entities that were found and
    log-likelihoods.
    """
    parts = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        columns, on_valid = _columns([row for row in rows if row["dataset"] == dataset])
        parts.append(f"### {dataset}{' (valid: there is no split test)' if on_valid else ''}\n")
        parts.append("| method | seeds | " + " | ".join(columns) + " | minutes |")
        parts.append("|---" * (len(columns) + 3) + "|")
        for title, cells in _grouped(rows, dataset):
            minutes = statistics.fmean(cell["seconds"] for cell in cells) / 60
            filled = [cell for cell in cells if "missing" not in cell]
            figures = [_mean(filled, *column) for column in columns.values()]
            lacking = [cell["missing"] for cell in cells if "missing" in cell]
            if lacking:
                text = " ".join(lacking[0].split()).replace("|", "\\|")
                figures[0] = f"{figures[0]} {text}".strip()
            parts.append(
                f"| {title} | {len(cells)} | " + " | ".join(figures) + f" | {minutes:.1f} |"
            )
        parts.append("")
    return "\n".join(parts) + "\n"


def _columns(rows: Sequence[Row]) -> tuple[dict[str, tuple[str, float, int]], bool]:
    """Columns with keys of the split that is shown, and whether that split is valid."""
    keys = {key for row in rows for key in row}
    on_valid = bool(keys & {"valid_f1", "valid_entities"}) and not (
        keys & {"test_f1", "test_entities"}
    )
    split = "valid" if on_valid else "test"
    left_out = set() if f"{split}_entities" in keys else {"entities"}
    if on_valid:
        left_out.add("valid F1")
    if f"{split}_f1" not in keys and f"{split}_entities" in keys:
        left_out = set(COLUMNS) - {"entities", "LL/token"}
    return {
        name: (key.replace("test_", f"{split}_"), factor, digits)
        for name, (key, factor, digits) in COLUMNS.items()
        if name not in left_out
    }, on_valid


def plot(rows: Sequence[Row], path: Path) -> None:
    """Test F1 of every method as bars, one panel for each data set; dots are seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    longest = max(len(_grouped(rows, dataset)) for dataset in datasets)
    figure = Figure(figsize=(5.2 * len(datasets), 1 + 0.24 * longest), layout="constrained")
    FigureCanvasAgg(figure)
    for number, dataset in enumerate(datasets, start=1):
        axes = figure.add_subplot(1, len(datasets), number)
        groups = _grouped(rows, dataset)
        for place, (_, cells) in enumerate(groups):
            scores = [100 * cell["test_f1"] for cell in cells]
            axes.barh(place, statistics.fmean(scores), color="tab:blue", alpha=0.7)
            axes.plot(scores, [place] * len(scores), ".", color="black", markersize=3)
        axes.set_yticks(range(len(groups)), [title for title, _ in groups], fontsize=7)
        axes.invert_yaxis()
        axes.set_title(f"{dataset}: entity F1 (test)", fontsize=9)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(alpha=0.3, axis="x")
    temporary = path.with_suffix(".drawing")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(path)


def _grouped(rows: Sequence[Row], dataset: str) -> list[tuple[str, list[Row]]]:
    titles = dict.fromkeys(row["row"] for row in rows if row["dataset"] == dataset)
    return [
        (title, [row for row in rows if row["dataset"] == dataset and row["row"] == title])
        for title in titles
    ]


def _mean(cells: Sequence[Row], key: str, factor: float, digits: int) -> str:
    values = [factor * cell[key] for cell in cells if cell.get(key) is not None]
    if not values:
        return ""
    text = f"{statistics.fmean(values):.{digits}f}"
    # The NLL of a vote is inf where no source names the gold label; that has no spread.
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return text
    return f"{text} ± {statistics.stdev(values):.{digits}f}"
