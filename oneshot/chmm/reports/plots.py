"""PNGs of CHMM runs: curves, what sources are worth, and transitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oneshot.training import curves
from oneshot.training.curves import Panel
from oneshot.training.grid import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from oneshot.chmm.label_model.batches import Examples
    from oneshot.chmm.model import CHMM
    from oneshot.chmm.reports.sources import SourceTable

BOTH = ("CHMM", "tagger")
PANELS = (
    Panel(
        "Log-likelihood, nats per token",
        ("train/log_likelihood", "valid/log_likelihood"),
        ("train log likelihood", "valid log likelihood"),
    ),
    Panel("Entity scores (valid)", ("valid/f1", "valid/precision", "valid/recall")),
    Panel("Entity F1 (valid)", ("chmm/valid_f1", "tagger/valid_f1"), BOTH),
    Panel("Entity F1 (test)", ("chmm/test_f1", "tagger/test_f1"), BOTH),
    Panel("Precision (test)", ("chmm/test_precision", "tagger/test_precision"), BOTH),
    Panel("Recall (test)", ("chmm/test_recall", "tagger/test_recall"), BOTH),
)
# Only where there is nothing better: agreement with the weak labels that the tagger was trained on.
# The log-likelihoods of an alternation are no curve: each CHMM of it explains other votes.
WITHOUT_GOLD = (
    Panel("Tagger's score by weak labels (valid)", ("tagger/score",), ("tagger score",)),
)


def plot_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the rows of metrics.jsonl: by epoch, or by stage of an alternation."""
    scored = any("tagger/valid_f1" in row for row in history)
    stages = any(key.startswith(("chmm/", "tagger/")) for row in history for key in row)
    panels = PANELS if scored else (*PANELS, *WITHOUT_GOLD)
    curves.plot_curves(history, path, panels, x_label="stage" if stages else "epoch")


def plot_sources(table: SourceTable, path: Path) -> None:
    """Draws agreement and coverage of each source and type, with the number of votes."""
    types = list(next(iter(table.values()))["by_type"])
    figure = _figure(2.4 + 1.4 * len(types), 1.4 + 0.34 * len(table))
    for number, (key, title) in enumerate(
        (
            ("agreement", "share of the source's votes that agree with the final label"),
            ("coverage", "share of the final labels that the source gives"),
        ),
        start=1,
    ):
        axes = figure.add_subplot(1, 2, number)
        values = [[x["by_type"][kind][key] for kind in types] for x in table.values()]
        matrix = np.array([[np.nan if v is None else v for v in row] for row in values])
        _heat_map(figure, axes, matrix, (types, list(table)), title)
        for s, numbers in enumerate(table.values()):
            for k, kind in enumerate(types):
                if not np.isnan(matrix[s, k]):
                    text = f"{matrix[s, k]:.2f}"
                    if key == "agreement":
                        text += f" of {numbers['by_type'][kind]['votes']}"
                    _write(axes, k, s, matrix[s, k], text)
    save_figure(figure, path)


def plot_transitions(model: CHMM, examples: Examples, path: Path) -> None:
    """Draws the mean transition matrix over all words of the examples."""
    names = model.labels.names
    figure = _figure(1.6 + 0.42 * len(names), 1.4 + 0.36 * len(names))
    axes = figure.add_subplot()
    matrix = model.mean_transitions(examples)
    _heat_map(figure, axes, matrix, (names, names), "p(label | label before), mean over words")
    axes.set_ylabel("label before", fontsize=7)
    for (i, j), value in np.ndenumerate(matrix):
        _write(axes, j, i, value, f"{value:.2f}")
    save_figure(figure, path)


def _heat_map(
    figure: Figure,
    axes: Any,
    matrix: npt.NDArray[np.floating],
    names: tuple[Sequence[str], Sequence[str]],
    title: str,
) -> None:
    """A matrix of shares with a colour bar; what is not a number stays white and empty."""
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_title(title, fontsize=7)
    axes.set_xticks(range(len(names[0])), names[0], rotation=90, fontsize=6)
    axes.set_yticks(range(len(names[1])), names[1], fontsize=6)
    figure.colorbar(image, ax=axes).ax.tick_params(labelsize=6)


def _write(axes: Any, x: int, y: int, value: float, text: str) -> None:
    colour = "white" if value > 0.6 else "black"
    axes.text(x, y, text, ha="center", va="center", fontsize=5, color=colour)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure
