"""The curves of a run as one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4
WIDTH, HEIGHT = 3.2, 2.5  # of a panel, inches
FEW = 50  # points of a curve that are marked one by one

Rows = Sequence[Mapping[str, Any]]
"""Rows of metrics.jsonl: "step" and any metrics."""


@dataclass(frozen=True)
class Panel:
    """Metrics that share an axis.

    Attributes:
        title: Text above the panel, with the unit.
        metrics: Names in metrics.jsonl. Where rows also have NAME_low and NAME_high, the interval
            is shaded.
        labels: Names in the legend; by default from those of the metrics.
        shares: The metrics are shares in [0, 1]: a fixed axis with room for the legend.
    """

    title: str
    metrics: tuple[str, ...]
    labels: tuple[str, ...] = ()
    shares: bool = False


def plot_curves(
    history: Rows, path: Path, panels: Sequence[Panel], *, title: str = "", x_label: str = "step"
) -> None:
    """Draws the metrics of a run; panels without values are left out.

    Args:
        history: The rows.
        path: PNG to write (replaced in one move); not written when there is nothing to draw.
        panels: What to draw.
        title: Text above the panels.
        x_label: What a row is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [panel for panel in panels if any(m in row for row in history for m in panel.metrics)]
    if not shown:
        return
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    width, height = WIDTH * columns, HEIGHT * lines
    figure = Figure(figsize=(width, height))
    # Fixed margins: matplotlib's own layout engines take longer than the drawing.
    figure.subplots_adjust(
        0.55 / width, 0.45 / height, 0.99, 1 - 0.45 / height, wspace=0.25, hspace=0.45
    )
    FigureCanvasAgg(figure)
    for i, panel in enumerate(shown):
        axes = figure.add_subplot(lines, columns, i + 1)
        _draw(axes, panel, history)
        axes.set_xlabel(x_label, fontsize=7, labelpad=1)
    if title:
        figure.suptitle(title, fontsize=10)
    temporary = path.with_suffix(".drawing")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(path)


def _draw(axes: Axes, panel: Panel, history: Rows) -> None:
    for metric, label in zip(panel.metrics, panel.labels or _labels(panel.metrics), strict=True):
        rows = [row for row in history if metric in row]
        if not rows:
            continue
        marker = "o" if len(rows) <= FEW or len(rows) <= len(history) // 2 else None
        steps = [row["step"] for row in rows]
        axes.plot(steps, [row[metric] for row in rows], marker=marker, markersize=3, label=label)
        ends = [f"{metric}_low", f"{metric}_high"]
        rows = [row for row in rows if all(end in row for end in ends)]
        if rows:
            low, high = ([row[end] for row in rows] for end in ends)
            axes.fill_between([row["step"] for row in rows], low, high, alpha=0.2)
    axes.set_title(panel.title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if panel.shares:
        axes.set_ylim(-0.05, 1.45)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    if len(panel.metrics) > 1:
        axes.legend(fontsize=6, loc="upper center" if panel.shares else "best", handlelength=1,
                    ncols=len(panel.metrics) if panel.shares else 1)  # fmt: skip


def _labels(metrics: Sequence[str]) -> list[str]:
    """The whole name of a single metric; of several the last parts, unless these repeat."""
    last = [metric.rpartition("/")[2] for metric in metrics]
    clear = 1 < len(metrics) == len(set(last))
    names = last if clear else [metric.replace("/", " ") for metric in metrics]
    return [name.replace("_", " ") for name in names]
