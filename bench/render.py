"""From a result file to a Markdown table and a PNG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot.bench.results import Row, load, summary

COLOURS = {"ours": "#c1440e", "reference": "#7a7a7a", "peer": "#3b6ea5", "floor": "#b9c4a8"}


@dataclass(frozen=True)
class Ratio:
    """Quotient of two medians, and the quartiles of the quotient within single rounds."""

    median: float
    q1: float
    q3: float

    def __str__(self) -> str:
        return f"{self.median:.3g}x ({self.q1:.3g}-{self.q3:.3g})"


def ratio(numerator: Row, denominator: Row) -> Ratio:
    """Compare two providers of one operation; rounds are paired, as they ran interleaved."""
    assert numerator.median is not None
    assert denominator.median is not None
    rounds = min(len(numerator.samples), len(denominator.samples))
    pairs = [numerator.samples[i] / denominator.samples[i] for i in range(rounds)]
    spread = summary(pairs)
    return Ratio(numerator.median / denominator.median, spread["q1"], spread["q3"])


def by_operation(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows grouped by operation: ours, reference, peers, floors."""
    groups: dict[str, list[Row]] = {}
    order = list(COLOURS)
    for row in sorted(rows, key=lambda row: order.index(row.kind)):
        groups.setdefault(row.operation, []).append(row)
    return groups


def best_peer(rows: list[Row]) -> Row | None:
    """The fastest peer that was timed, by median wall time."""
    peers = [
        row
        for row in rows
        if row.kind == "peer" and row.metric == "wall" and row.median is not None
    ]
    return min(peers, key=lambda row: row.median or 0.0, default=None)


def seconds(value: float) -> str:
    """With the unit that leaves one to three digits before the point."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def _line(row: Row, rows: list[Row]) -> str:
    """One table row for the provider of a "wall" row."""
    if row.median is None:
        reason = " ".join(row.detail.split())[:160]
        return f"| {row.provider} | {row.status}{': ' if reason else ''}{reason} | | | | | | | |"
    same = {other.metric: other for other in rows if other.provider == row.provider}
    peer = best_peer(rows) if row.kind == "ours" else None
    memory = same.get("peak_memory")
    cells = [
        row.provider,
        f"{seconds(row.median)} ({seconds(row.q1 or 0)} - {seconds(row.q3 or 0)})",
        seconds(same["cpu"].median or 0),
        "?" if memory is None else f"{(memory.median or 0) / 1e6:.1f} MB",
        "" if row.error is None else f"{row.error:.1e}",
    ]
    for metric in ("wall", "cpu"):
        by_name = {other.provider: other for other in rows if other.metric == metric}
        mine = by_name[row.provider]
        cells.append(str(ratio(by_name[peer.provider], mine)) if peer else "")
        floor = by_name.get(row.floor or "")
        cells.append(str(ratio(mine, floor)) if floor else "")
    return f"| {' | '.join(cells)} |"


def markdown(machine: dict[str, Any], run: dict[str, Any], rows: list[Row]) -> str:
    """The whole run as Markdown, one table per operation."""
    cpu = machine["cpu"]
    changes = " with uncommitted changes" if run["uncommitted_changes"] else ""
    lines = [
        f"# Benchmarks of {run['date'][:10]}, commit {run['commit'][:10]}{changes}",
        "",
        f"{machine['gpu'] + ', host ' if machine['gpu'] else ''}"
        f"{cpu['brand_raw']} (family {cpu['family']}, model {cpu['model']}), "
        f"{machine['cores']} cores, {run['threads']} threads, best level {machine['best_isa']}; "
        f"torch {machine['torch']}, built with {machine['built_with'].get('compiler', '?')}; "
        f"load average at start {run['load_average_at_start'][0]}.",
        "",
        "Time per call: median (quartiles) over interleaved rounds. Memory: peak above the inputs. "
        "Error: largest of an output or gradient against float64, relative in the 2-norm. "
        "Faster: time of the best peer (by wall time) over ours. "
        "Floor: time over that of a pass over the same memory that computes nothing. Ratios of "
        "medians, in brackets the quartiles of the ratio within rounds.",
    ]
    for operation, group in by_operation(rows).items():
        lines += [
            "",
            f"## {operation}",
            "",
            "| provider | wall | CPU | memory | error "
            "| faster (wall) | floor (wall) | faster (CPU) | floor (CPU) |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(row, group) for row in group if row.metric == "wall"]
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], path: Path) -> None:
    """Bars of median wall time with quartiles, one panel per operation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    groups = {
        name: [row for row in group if row.metric == "wall" and row.median is not None]
        for name, group in by_operation(rows).items()
    }
    groups = {name: group for name, group in groups.items() if group}
    if not groups:
        raise ValueError("nothing was timed in this run, so there is nothing to plot")
    heights = [len(group) + 1.5 for group in groups.values()]
    figure = Figure(figsize=(9, 0.28 * sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, group) in zip(panels, groups.items(), strict=True):
        medians = [(row.median or 0) * 1e3 for row in group]
        low = [(row.median or 0) * 1e3 - (row.q1 or 0) * 1e3 for row in group]
        high = [(row.q3 or 0) * 1e3 - (row.median or 0) * 1e3 for row in group]
        axes.barh(
            range(len(group)),
            medians,
            xerr=[low, high],
            color=[COLOURS[row.kind] for row in group],
            error_kw={"linewidth": 0.8},
        )
        axes.set_yticks(range(len(group)), [row.provider for row in group], fontsize=7)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(name, fontsize=8, loc="left")
    panels[-1].set_xlabel("wall time per call, ms (median and quartiles, log scale)", fontsize=8)
    figure.savefig(path, dpi=130)


def render(path: Path) -> tuple[Path, Path]:
    """Write ``<path>.md`` and ``<path>.png`` beside a result file."""
    machine, run, rows = load(path)
    table, picture = path.with_suffix(".md"), path.with_suffix(".png")
    table.write_text(markdown(machine, run, rows), encoding="utf-8")
    plot(rows, picture)
    return table, picture
