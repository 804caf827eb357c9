"""Benchmark results as Markdown tables and as curves over training steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oneshot.rlvr.evaluation.benchmarks import BENCHMARKS
from oneshot.training.grid import markdown_table

Results = dict[str, dict[str, Any]]
"""Checkpoint -> {"source", "step", "benchmarks": {task: metrics of an Evaluation}}."""

VALIDATION = "validation"
# Title, metric, factor and format of the plain tables.
METRICS = (
    ("Boxed answers, percent of responses", "boxed_ratio", 100, ".0f"),
    ("Responses cut at the length limit, percent", "truncated_ratio", 100, ".1f"),
    ("Mean response length, tokens", "mean_tokens", 1, ".0f"),
    ("Longest response, tokens", "max_tokens", 1, ".0f"),
)

# Title and metric of the panels of the curves.
PANELS: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
    ("Accuracy, percent", lambda metrics: 100 * metrics["accuracy"]),
    ("Boxed answers, percent", lambda metrics: 100 * metrics["boxed_ratio"]),
    ("Response length, tokens", lambda metrics: metrics["mean_tokens"]),
    ("Self-reflection, percent of responses", lambda metrics: 100 * metrics["reflection"]["any"]),
)

Cell = Callable[[dict[str, Any], str], str]


def averaged(tasks: Sequence[str]) -> list[str]:
    """The benchmarks of the average: all but validation and multiple choice."""
    return [task for task in tasks if task != VALIDATION and not BENCHMARKS[task].choices]


def average(entry: dict[str, Any], tasks: Sequence[str]) -> float:
    """Unweighted mean accuracy over benchmarks (the paper's average for its six)."""
    return sum(entry["benchmarks"][task]["accuracy"] for task in tasks) / len(tasks)


def markdown(results: Results, tasks: Sequence[str], paper_protocol: bool) -> str:
    """The report.

    Args:
        results: Every checkpoint with every task.
        tasks: In the order of the columns; "validation" chooses the checkpoint.
        paper_protocol: Also name the best by the benchmarks themselves.
    """
    math = averaged(tasks)
    parts = ["# Benchmarks\n"]
    columns = [*tasks, *(["average"] if len(math) > 1 else [])]

    def accuracy(entry: dict[str, Any], column: str) -> str:
        if column == "average":
            return f"{100 * average(entry, math):.1f}"
        metrics = entry["benchmarks"][column]
        low, high = (100 * x for x in metrics["interval"])
        return f"{100 * metrics['accuracy']:.1f} [{low:.1f}, {high:.1f}]"

    parts.append("Accuracy in percent (mean over responses), Wilson 95 % interval over problems.\n")
    parts.append(_table(results, columns, accuracy))
    parts.append(_selection(results, tasks, math, paper_protocol))
    several = [
        task
        for task in tasks
        if any(len(entry["benchmarks"][task]["pass_at_k"]) > 1 for entry in results.values())
    ]
    if several:
        parts.append("## pass@k, percent\n")
        parts.append(_table(results, several, lambda e, t: _pass_at_k(e["benchmarks"][t])))
    for title, key, scale, style in METRICS:
        parts.append(f"## {title}\n")
        parts.append(_table(results, tasks, _metric(key, scale, style)))
    parts.append("## Responses with a word of self-reflection, percent\n")
    parts.append(_table(results, tasks, lambda e, t: _reflection(e["benchmarks"][t])))
    parts += _groups(results, tasks)
    return "\n".join(parts)


def _metric(key: str, scale: float, style: str) -> Cell:
    return lambda entry, task: format(scale * entry["benchmarks"][task][key], style)


def _table(results: Results, columns: Sequence[str], cell: Cell) -> str:
    rows = [[name, *(cell(entry, c) for c in columns)] for name, entry in results.items()]
    return markdown_table(["checkpoint", *columns], rows) + "\n"


def _selection(
    results: Results, tasks: Sequence[str], math: Sequence[str], paper_protocol: bool
) -> str:
    """Which checkpoint is the best, and by what; the first one wins a tie."""
    lines = []
    if VALIDATION in tasks:
        best = max(results, key=lambda n: results[n]["benchmarks"][VALIDATION]["accuracy"])
        value = results[best]["benchmarks"][VALIDATION]["accuracy"]
        lines.append(f"Best on validation: **{best}** ({100 * value:.1f}).")
    if paper_protocol and math:
        best = max(results, key=lambda n: average(results[n], math))
        lines.append(
            f"Best average on the benchmarks themselves: **{best}** "
            f"({100 * average(results[best], math):.1f}). Chosen on the test sets, as in the "
            "paper: optimistic."
        )
        for task in math:
            values = {name: entry["benchmarks"][task] for name, entry in results.items()}
            best = max(values, key=lambda name: values[name]["accuracy"])
            lines.append(f"Best on {task} itself: {best} ({100 * values[best]['accuracy']:.1f}).")
    return "\n".join(f"* {line}" for line in lines) + "\n" if lines else ""


def _pass_at_k(metrics: dict[str, Any]) -> str:
    return ", ".join(f"@{k} {100 * value:.1f}" for k, value in metrics["pass_at_k"].items())


def _reflection(metrics: dict[str, Any]) -> str:
    shares = metrics["reflection"]
    words = ", ".join(f"{word} {100 * x:.1f}" for word, x in shares.items() if word != "any" and x)
    return f"{100 * shares['any']:.1f}" + (f" ({words})" if words else "")


def _groups(results: Results, tasks: Sequence[str]) -> list[str]:
    """A table per benchmark and field: a row for each checkpoint, a column for each value."""
    parts = []
    for task in tasks:
        fields = next(iter(results.values()))["benchmarks"][task]["groups"]
        for name, values in fields.items():
            parts.append(f"## {task} by {name}, percent\n")
            titles = {f"{v} ({group['problems']:.0f})": v for v, group in values.items()}
            parts.append(_table(results, list(titles), _group(task, name, titles)))
    return parts


def _group(task: str, name: str, titles: dict[str, str]) -> Cell:
    def cell(entry: dict[str, Any], column: str) -> str:
        group = entry["benchmarks"][task]["groups"][name][titles[column]]
        return f"{100 * group['accuracy']:.1f}"

    return cell


def plot(results: Results, tasks: Sequence[str], path: Path) -> None:
    """Draws accuracy, boxed share, length and self-reflection over training steps.

    Models without a step (a base model beside a run) are dotted lines. Without steps, or with two
    checkpoints of one step, the order given takes their place.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [entry["step"] for entry in results.values() if entry["step"] is not None]
    stepped = bool(steps) and len(set(steps)) == len(steps)
    entries = [e for e in results.values() if not stepped or e["step"] is not None]
    others = [e for e in results.values() if stepped and e["step"] is None]
    if stepped:
        entries.sort(key=lambda entry: entry["step"])
    x = [entry["step"] if stepped else i for i, entry in enumerate(entries)]
    math = averaged(tasks)
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (title, value) in enumerate(PANELS):
        axes = figure.add_subplot(2, 2, i + 1)
        lines: list[tuple[str, str, Callable[[dict[str, Any]], float]]] = [
            (task, f"C{n}", lambda entry, t=task, v=value: v(entry["benchmarks"][t]))  # type: ignore[misc]
            for n, task in enumerate(tasks)
        ]
        if i == 0 and len(math) > 1:
            lines.append(("average", "black", lambda entry: 100 * average(entry, math)))
        for label, colour, height in lines:
            y = [height(entry) for entry in entries]
            axes.plot(x, y, color=colour, marker="o", markersize=3, label=label)
            for entry in others:
                axes.axhline(height(entry), color=colour, linestyle=":", linewidth=1)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step" if stepped else "checkpoint, in the order given", fontsize=8)
        # All zeros would have an axis up to 1e-17.
        highest = max(height(entry) for _, _, height in lines for entry in results.values())
        axes.set_ylim(0, 1 if highest == 0 else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if i == 0:
            axes.legend(fontsize=7)
    temporary = path.with_name(f".{path.name}.writing")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(path)
