"""Results of an evaluation as a Markdown table, JSON and a bar chart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from oneshot.training.grid import (
    Row,
    grouped,
    markdown_table,
    mean_and_spread,
    plot_bars,
    write_json,
    write_text,
)

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
    """Writes results.md, results.json and results.png (test F1, one panel per data set)."""
    write_json(output / "results.json", rows)
    write_text(output / "results.md", markdown(rows))
    panels = {
        f"{dataset}: entity F1 (test)": {
            title: [100 * row["test_f1"] for row in cells]
            for title, cells in grouped(scored, "row").items()
        }
        for dataset, scored in grouped([r for r in rows if "test_f1" in r], "dataset").items()
    }
    if panels:
        plot_bars(panels, output / "results.png")


def markdown(rows: Sequence[Row]) -> str:
    """One table per data set: scores on test, mean ± standard deviation over seeds.

    Without a split test they are those on valid; without gold labels, entities that were found and
    log-likelihoods.
    """
    parts = []
    for dataset, mine in grouped(rows, "dataset").items():
        columns, on_valid = _columns(mine)
        lines = []
        for title, cells in grouped(mine, "row").items():
            minutes = statistics.fmean(cell["seconds"] for cell in cells) / 60
            values = [_value(cells, *column) for column in columns.values()]
            lacking = [cell["missing"] for cell in cells if "missing" in cell]
            values[0] = " ".join([values[0], *lacking[:1]]).strip()
            lines.append([title, str(len(cells)), *values, f"{minutes:.1f}"])
        parts += [
            f"### {dataset}{' (valid: there is no split test)' if on_valid else ''}",
            markdown_table(["method", "seeds", *columns, "minutes"], lines),
        ]
    return "\n\n".join(parts) + "\n"


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


def _value(cells: Sequence[Row], key: str, factor: float, digits: int) -> str:
    """One entry; the NLL of a vote is inf where no source names the gold label."""
    values = [factor * cell[key] for cell in cells if cell.get(key) is not None]
    return mean_and_spread(values, digits)
