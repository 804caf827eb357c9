"""Curves of a run as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PANELS = (
    ("Reward (training)", ("reward/mean",)),
    ("Accuracy (validation)", ("validation/accuracy",)),
    ("Entropy, nats per token", ("policy/entropy",)),
    ("Response length, tokens", ("response/length_mean", "validation/mean_tokens")),
    ("Share of groups", ("group/mixed", "group/all_right", "group/all_wrong")),
    ("KL to the reference", ("policy/kl",)),
    ("Gradient norm", ("optimizer/grad_norm",)),
    ("Boxed and truncated share", ("response/boxed_ratio", "response/truncated_ratio")),
    ("Critic, squared error", ("critic/squared_error",)),
)
LABELS = {"response/length_mean": "training", "validation/mean_tokens": "validation"}


def plot_curves(history: Sequence[dict[str, Any]], path: Path, title: str = "") -> None:
    """Draws the curves of metrics.jsonl's rows; panels without numbers are left out.

    Args:
        history: Rows with "step" and figures.
        path: PNG to write (replaced in one move).
        title: Text above the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (name, keys) for name, keys in PANELS if any(key in row for row in history for key in keys)
    ]
    if not panels:
        return
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.5 * lines))
    # Fixed margins: matplotlib's own layout engines take longer than the drawing.
    left, top = 0.55 / (3.2 * columns), 1 - 0.45 / (2.5 * lines)
    figure.subplots_adjust(left, 0.45 / (2.5 * lines), 0.99, top, wspace=0.25, hspace=0.45)
    FigureCanvasAgg(figure)
    for i, (name, keys) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, i + 1)
        for key in keys:
            points = [(row["step"], row[key]) for row in history if key in row]
            if points:
                marker = "o" if key.startswith("validation/") else None
                label = LABELS.get(key, key.split("/")[1].replace("_", " "))
                axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, label=label)
        if "validation/accuracy" in keys:
            _band(axes, history)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=7, labelpad=1)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if "group/mixed" in keys:  # shares fill the panel: room above them for the legend
            axes.set_ylim(-0.05, 1.45)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        if len(keys) > 1:
            axes.legend(fontsize=6, loc="upper center", ncols=len(keys), handlelength=1)
    if title:
        figure.suptitle(title, fontsize=10)
    temporary = path.with_suffix(".drawing")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(path)


def _band(axes: Any, history: Sequence[dict[str, Any]]) -> None:
    """The 95 % interval around the validation accuracy."""
    rows = [row for row in history if "validation/accuracy_low" in row]
    axes.fill_between(
        [row["step"] for row in rows],
        [row["validation/accuracy_low"] for row in rows],
        [row["validation/accuracy_high"] for row in rows],
        alpha=0.2,
    )
