"""Where the numbers of a run go: metrics.jsonl, samples.jsonl, TensorBoard and the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from oneshot.training.jsonl import JsonLines, read_jsonl

PLAIN_LINES = 20
SECONDS_BETWEEN_PLOTS = 30.0


class MetricsLog:
    """Writes each step everywhere.

    Args:
        folder: Output folder of the run.
        total_steps: Length of the run.
        resumed_from: Step of the checkpoint the run resumes from; None for a fresh start. Later
            lines of an earlier attempt are cut off.
        progress: Show a progress bar (a plain line now and then when there is no terminal).
        shown: Figures for the terminal: name -> (label, format).
        milestones: Figures that always earn a plain line.
        troubles: Figures of `shown` that are left out of the terminal while they are 0.
        plot: Draws the rows of metrics.jsonl into a PNG, `curves.png`.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        resumed_from: int | None,
        progress: bool,
        *,
        shown: Mapping[str, tuple[str, str]],
        milestones: Collection[str] = (),
        troubles: Collection[str] = (),
        plot: Callable[[Sequence[dict[str, Any]], Path], None],
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.total_steps = total_steps
        self._shown = shown
        self._milestones = milestones
        self._troubles = troubles
        self._draw = plot
        self._folder = folder
        self._plotted = time.monotonic()
        self.metrics = JsonLines(folder / "metrics.jsonl", resumed_from)
        self.samples = JsonLines(folder / "samples.jsonl", resumed_from)
        purge = 0 if resumed_from is None else resumed_from + 1  # hides events of a killed attempt
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        self._latest: dict[str, float] = {}
        self._console = Console(stderr=True)
        self._show = progress
        self._bar: Progress | None = None
        if progress and self._console.is_terminal:
            # In a narrow terminal the figures wrap; step and time stay whole.
            self._bar = Progress(
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                BarColumn(bar_width=12),
                TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[figures]}", table_column=Column(ratio=1)),
                console=self._console,
                expand=True,
            )
            done = resumed_from or 0
            self._task = self._bar.add_task("", total=total_steps, completed=done, figures="")
            self._bar.start()

    def step(self, step: int, figures: Mapping[str, float], samples: Sequence[Any] = ()) -> None:
        """Records one step.

        Args:
            step: Step (epoch) of the run; 0 for what is measured before training.
            figures: Names and values.
            samples: JSON objects for samples.jsonl.
        """
        self.metrics.write({"step": step, **figures})
        for sample in samples:
            self.samples.write({"step": step, **sample})
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._latest.update(figures)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=self._figures())
        elif self._show and (
            any(name in figures for name in self._milestones)
            or step % max(1, self.total_steps // PLAIN_LINES) == 0
        ):
            self.say(f"step {step}/{self.total_steps}  {self._figures()}")

    def sync(self) -> None:
        """Forces the figures onto the disk, before a checkpoint relies on them."""
        self.metrics.sync()
        self.samples.sync()

    def plot(self) -> None:
        """Draws the curves again, unless they were drawn a moment ago."""
        if time.monotonic() - self._plotted >= SECONDS_BETWEEN_PLOTS:
            self._draw(read_jsonl(self._folder / "metrics.jsonl"), self._folder / "curves.png")
            self._plotted = time.monotonic()

    def say(self, message: str) -> None:
        """Prints a line above the progress bar."""
        if self._show:
            self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Ends the bar and closes the files."""
        if self._bar is not None:
            self._bar.stop()
        self._writer.close()
        self.metrics.close()
        self.samples.close()

    def _figures(self) -> str:
        known = {
            name: value
            for name, value in self._latest.items()
            if name in self._shown and (value != 0 or name not in self._troubles)
        }
        return "  ".join(
            f"{label} {known[name]:{form}}"
            for name, (label, form) in self._shown.items()
            if name in known
        )
