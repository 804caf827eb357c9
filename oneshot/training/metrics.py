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
    """Writes the metrics of each step to all of these.

    Args:
        folder: Output folder of the run.
        total_steps: Length of the run.
        resumed_from: Step of the checkpoint the run resumes from; None for a fresh start. Later
            lines of an earlier attempt are cut off.
        progress: Show a progress bar (a plain line now and then when there is no terminal).
        shown: Metrics for the terminal: name -> (label, format).
        milestones: Metrics whose steps always get a plain line.
        troubles: Metrics of `shown` that are left out of the terminal while they are 0.
        plot: Draws the rows of metrics.jsonl into `curves.png`, such as a `partial` of
            `oneshot.training.curves.plot_curves`.
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
            # In a narrow terminal the metrics wrap; step and time stay whole.
            self._bar = Progress(
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                BarColumn(bar_width=12),
                TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[metrics]}", table_column=Column(ratio=1)),
                console=self._console,
                expand=True,
            )
            done = resumed_from or 0
            self._task = self._bar.add_task("", total=total_steps, completed=done, metrics="")
            self._bar.start()

    def step(self, step: int, metrics: Mapping[str, float], samples: Sequence[Any] = ()) -> None:
        """Records one step.

        Args:
            step: Step (epoch) of the run; 0 before training.
            metrics: Names and values.
            samples: JSON objects for samples.jsonl.
        """
        self.metrics.write({"step": step, **metrics})
        for sample in samples:
            self.samples.write({"step": step, **sample})
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._latest.update(metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, metrics=self._line())
        elif self._show and (
            any(name in metrics for name in self._milestones)
            or step % max(1, self.total_steps // PLAIN_LINES) == 0
        ):
            self.say(f"step {step}/{self.total_steps}  {self._line()}")

    def sync(self) -> None:
        """Forces the metrics onto the disk, before a checkpoint relies on them."""
        self.metrics.sync()
        self.samples.sync()

    def plot(self, *, last: bool = False) -> None:
        """Draws the curves again: at most every 30 seconds, and always when it is the last time."""
        if last or time.monotonic() - self._plotted >= SECONDS_BETWEEN_PLOTS:
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

    def _line(self) -> str:
        visible = {
            name: value
            for name, value in self._latest.items()
            if name in self._shown and (value != 0 or name not in self._troubles)
        }
        return "  ".join(
            f"{label} {visible[name]:{style}}"
            for name, (label, style) in self._shown.items()
            if name in visible
        )


class Stopwatch:
    """Seconds of the parts of one step."""

    def __init__(self) -> None:
        self._begin = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends the part `name`; parts of one name add up."""
        moment = time.perf_counter()
        self._laps[name] = self._laps.get(name, 0.0) + moment - self._last
        self._last = moment

    def metrics(self, tokens: int) -> dict[str, float]:
        """Seconds of each part and of the whole, and tokens per second of the whole."""
        seconds = self._last - self._begin
        return {
            "perf/tokens_per_second": tokens / seconds,
            "perf/step_seconds": seconds,
            **{f"perf/{name}_seconds": value for name, value in self._laps.items()},
        }
