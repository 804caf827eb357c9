"""What a training run shows while it runs."""

from __future__ import annotations

from pathlib import Path

from oneshot.rlvr.plots import plot_curves
from oneshot.training.metrics import MetricsLog

# Name in metrics.jsonl -> label in the terminal.
SHOWN = {
    "reward/mean": ("reward", ".3f"),
    "policy/entropy": ("H", ".3f"),
    "policy/kl": ("KL", ".4f"),
    "response/length_mean": ("len", ".0f"),
    "group/mixed": ("mixed", ".2f"),
    "perf/tokens_per_second": ("tok/s", ".0f"),
    "validation/accuracy": ("val", ".3f"),
    "reward/timeouts": ("timeouts", ".0f"),
    "reward/crashes": ("crashes", ".0f"),
}
# Shown only while there is something to see.
TROUBLES = ("reward/timeouts", "reward/crashes")


def open_log(
    folder: Path, total_steps: int, resumed_from: int | None, progress: bool
) -> MetricsLog:
    """The log of a run, with the figures above in the terminal and curves.png beside it."""
    return MetricsLog(
        folder,
        total_steps,
        resumed_from,
        progress,
        shown=SHOWN,
        troubles=TROUBLES,
        milestones=("validation/accuracy",),
        plot=plot_curves,
    )
