"""PNGs of CHMM runs: curves, and matrices as heat-maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from oneshot.chmm.batches import Examples
    from oneshot.chmm.model import CHMM

PANELS = (
    ("Log-likelihood, nats per token", ("train/log_likelihood", "valid/log_likelihood")),
    ("Entity scores (valid)", ("valid/f1", "valid/precision", "valid/recall")),
    ("Entity F1 (valid)", ("chmm/valid_f1", "tagger/valid_f1")),
    ("Entity F1 (test)", ("chmm/test_f1", "tagger/test_f1")),
    ("Precision (test)", ("chmm/test_precision", "tagger/test_precision")),
    ("Recall (test)", ("chmm/test_recall", "tagger/test_recall")),
    (
        "CHMM log-likelihood, nats per token",
        ("chmm/train_log_likelihood", "chmm/valid_log_likelihood", "chmm/test_log_likelihood"),
    ),
)


def plot_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the rows of metrics.jsonl; panels without numbers are left out."""
    panels = [
        (title, keys)
        for title, keys in PANELS
        if any(key in row for row in history for key in keys)
    ]
    if not panels:
        return
    figure = _figure(3.4 * len(panels), 2.8)
    for number, (title, keys) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for key in keys:
            points = [(row["step"], row[key]) for row in history if key in row]
            if points:
                label = key.replace("/", " ").replace("_", " ")
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    _save(figure, path)


def plot_matrices(model: CHMM, examples: Examples, sources: Sequence[str], folder: Path) -> None:
    """Draws sources.png (emissions) and transitions.png, means over all words of the examples."""
    names = model.labels.names
    emissions = model.source_reliability(examples)
    columns = min(5, len(sources))
    rows = -(-len(sources) // columns)
    figure = _figure(2.4 * columns + 0.4, 2.5 * rows)
    for number, (source, matrix) in enumerate(zip(sources, emissions, strict=True), start=1):
        _heat_map(figure.add_subplot(rows, columns, number), matrix, names, source)
    figure.supxlabel("what the source says", fontsize=8)
    figure.supylabel("true label", fontsize=8)
    _save(figure, folder / "sources.png")

    figure = _figure(3.4, 3.2)
    _heat_map(
        figure.add_subplot(), model.mean_transitions(examples), names, "transitions (from row)"
    )
    _save(figure, folder / "transitions.png")


def _heat_map(
    axes: Any, matrix: npt.NDArray[np.floating], names: Sequence[str], title: str
) -> None:
    axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
    axes.set_title(title, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    if len(names) <= 9:
        for (i, j), value in np.ndenumerate(matrix):
            colour = "white" if value > 0.6 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_suffix(".drawing")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(path)
