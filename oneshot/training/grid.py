"""Grids of measurements: every arm of an experiment with every seed, each measured once.

    cells = [Cell(f"{a}/seed_{s}", partial(measure, a, s)) for a in arms for s in seeds]
    results = {outcome.cell.name: outcome.result for outcome in run_grid(cells, folder / "cells")}

<folder>/<cell>.json    {"config", "seconds", "cpu_seconds", "result"} of a finished cell

A cell counts as finished when its file exists, and the file appears in one step. A grid that was
killed continues with the cell it was in, and a wider grid in the same folder measures new cells
only. The second half of the module writes reports: Markdown tables, JSON, bars with a dot per seed.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One arm with one seed.

    Attributes:
        name: Unique in the grid; also the path of its file, so it may contain "/".
        run: Measures it; returns a JSON object. A long cell resumes its own work.
        config: JSON object of everything that decides the result; None where the caller has checked
            the config of the whole grid.
    """

    name: str
    run: Callable[[], Mapping[str, Any]]
    config: Mapping[str, Any] | None = None

    def file(self, folder: Path) -> Path:
        """Where its result lies in the folder of the grid."""
        return folder / f"{self.name}.json"

    def is_done(self, folder: Path) -> bool:
        """Whether it has been measured."""
        return self.file(folder).exists()


@dataclass(frozen=True)
class Outcome:
    """A cell that was measured, read or tried.

    Attributes:
        cell: The cell.
        result: What its `run` returned, as JSON keeps it; empty after an error.
        seconds: Wall time of the measurement.
        cpu_seconds: CPU time of this process meanwhile.
        error: What stopped it, of the types in `keep_going`; the next run tries it again.
    """

    cell: Cell
    result: Mapping[str, Any]
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    error: Exception | None = None


def run_grid(
    cells: Sequence[Cell],
    folder: Path,
    *,
    say: Callable[[str], object] = lambda _: None,
    bar: bool = False,
    keep_going: tuple[type[Exception], ...] = (),
) -> Iterator[Outcome]:
    """Measures the cells that are not finished, in order.

    Args:
        cells: The grid.
        folder: Folder of the results, created.
        say: Receives a line before each cell that is measured.
        bar: Show a progress bar on standard error instead; where that is no terminal, the lines.
            Only for cells that show no bar themselves.
        keep_going: Errors that cost their own cell alone.

    Yields:
        The outcome of every cell, the finished ones included, in the order of `cells`.

    Raises:
        ValueError: Two cells of one name, or a finished cell with another config or a damaged file.
    """
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"cells must have different names, got {twice!r} twice")
    left = {cell.name for cell in cells if not cell.is_done(folder)}
    with _announced(len(left), say, bar) as announce:
        for cell in cells:
            if cell.name not in left:
                yield _read(cell, folder)
                continue
            announce(cell.name)
            try:
                yield _measure(cell, folder)
            except keep_going as error:
                yield Outcome(cell, {}, error=error)


def _measure(cell: Cell, folder: Path) -> Outcome:
    start, cpu = time.perf_counter(), time.process_time()
    result = cell.run()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    stored = {
        "config": cell.config,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "result": result,
    }
    write_json(cell.file(folder), stored)
    return _read(cell, folder)


def _read(cell: Cell, folder: Path) -> Outcome:
    file = cell.file(folder)
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        config, seconds = stored["config"], stored["seconds"]
        outcome = Outcome(cell, stored["result"], seconds, stored["cpu_seconds"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: damaged ({error}); delete it to measure it again") from error
    if config != json.loads(json.dumps(cell.config)):
        raise ValueError(f"{file} was made with another config; name another output folder")
    return outcome


class _announced:
    """Announces cells on a bar or as lines "3/12 name"."""

    def __init__(self, total: int, say: Callable[[str], object], bar: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._total, self._started = total, 0
        self._bar = Progress(console=console) if bar and console.is_terminal else None
        self._say = functools.partial(console.print, soft_wrap=True, markup=False) if bar else say

    def __enter__(self) -> Callable[[str], None]:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total)
        return self._announce

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _announce(self, name: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=name, completed=self._started)
        self._started += 1
        if self._bar is None:
            self._say(f"{self._started}/{self._total} {name}")


# ---- the report ---------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one step; the folder is created."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step; the folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without a line end; "|" and line ends inside a cell are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |"
        for line in lines
    )


def grouped(rows: Iterable[Row], *keys: str) -> dict[Any, list[Row]]:
    """Rows by the value of a key (of several keys: a tuple), in the order of first appearance."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        values = tuple(row[key] for key in keys)
        groups.setdefault(values if len(keys) > 1 else values[0], []).append(row)
    return groups


def means(pairs: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    """Mean of the values of each key, in the order of first appearance."""
    groups: dict[Any, list[float]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return {key: statistics.fmean(group) for key, group in groups.items()}


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation (ddof 1), such as "72.00 ± 2.83".

    One value, or one that is not finite, has no spread; no value gives "".
    """
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def draw_bars(axes: Any, values: Mapping[str, Sequence[float]]) -> None:
    """Draws a horizontal bar per arm at the mean, and a dot per value, on matplotlib axes."""
    for position, scores in enumerate(values.values()):
        axes.barh(position, statistics.fmean(scores), color="tab:blue", alpha=0.6)
        axes.plot(scores, [position] * len(scores), ".", color="black", markersize=3)
    axes.set_yticks(range(len(values)), list(values), fontsize=7)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(alpha=0.3, axis="x")


def plot_bars(panels: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Writes a PNG with one panel of `draw_bars` per title."""
    from matplotlib.figure import Figure

    height = 1 + 0.24 * max(map(len, panels.values()))
    figure = Figure(figsize=(5.2 * len(panels), height), layout="constrained")
    for number, (title, values) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number)
        draw_bars(axes, values)
        axes.set_title(title, fontsize=9)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a matplotlib figure as a PNG in one step."""
    temporary = path.with_suffix(".drawing")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(path)
