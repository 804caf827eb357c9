"""The report of a study: arms against the untrained model, as tables, JSON and one figure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oneshot.rlvr.studies.definitions import Study
from oneshot.rlvr.studies.summary import SATURATED, WINDOW
from oneshot.training.grid import markdown_table, write_json, write_text

BASELINE = "untrained"
# Key of a point of a curve -> title of its panel.
PANELS = {
    "unseen_accuracy": "Accuracy on {problems} unseen problems",
    "reward": "Training reward",
    "entropy": "Entropy, nats per token",
}

TITLES = (
    "arm",
    "unseen accuracy, %",
    "range",
    "change",
    "best mean (step)",
    f"reward, last {WINDOW} steps",
    "boxed, %",
)

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Arm -> the metrics of its runs (`study.run_metrics`), one per seed."""


def write_report(
    folder: Path, name: str, study: Study, seeds: int, runs_by_arm: Runs
) -> dict[str, Any]:
    """Writes table.md, table.json and figure.png.

    Args:
        folder: Of the study; made if need be.
        name: Of the study.
        study: The study.
        seeds: Seeds requested; the report says when fewer are finished.
        runs_by_arm: At least one run of every arm.

    Returns:
        What is in table.json.
    """
    result = summary(name, study, seeds, runs_by_arm)
    write_json(folder / "table.json", result)
    write_text(folder / "table.md", markdown(result))
    plot(result, folder / "figure.png")
    return result


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, sample standard deviation (ddof 1; None of one value), lowest and highest."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "low": min(values),
        "high": max(values),
    }


def summary(name: str, study: Study, seeds: int, runs_by_arm: Runs) -> dict[str, Any]:
    """All metrics of a study; see `write_report` for the arguments."""
    arms = {}
    for arm, runs in runs_by_arm.items():
        curves = [run["curve"] for run in runs]
        arms[arm] = {
            "overrides": dict(study.arms[arm]),
            "runs": [dict(run) for run in runs],
            "after": spread([run["accuracy_after"] for run in runs]),
            "change": spread([run["accuracy_after"] - run["accuracy_before"] for run in runs]),
            "reward_end": spread([run["reward_end"] for run in runs]),
            "boxed_after": spread([run["boxed_after"] for run in runs]),
            "families": _families([run["families_after"] for run in runs]),
            "curve": {key: _curve(curves, key) for key in PANELS},
        }
    first = next(iter(runs_by_arm.values()))
    before = first[0]["families_before"]
    return {
        "study": name,
        "question": study.question,
        "seeds": [run["seed"] for run in first],
        "seeds_wanted": seeds,
        "steps": first[0]["curve"][-1]["step"],
        "problems": sum(family["problems"] for family in before.values()),
        "baseline": {
            "accuracy": spread([run["accuracy_before"] for run in first]),
            "interval": first[0]["interval_before"],
            "boxed": spread([run["boxed_before"] for run in first]),
            "families": _families([run["families_before"] for run in first]),
        },
        "arms": arms,
    }


def _families(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    return {source: spread([run[source]["accuracy"] for run in runs]) for source in runs[0]}


def _curve(curves: Sequence[Sequence[Mapping[str, Any]]], key: str) -> list[dict[str, Any]]:
    """Spread over the runs at every step that has the figure."""
    return [
        {"step": points[0]["step"], **spread([point[key] for point in points])}
        for points in zip(*curves, strict=True)
        if points[0][key] is not None
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The report of `summary`'s metrics."""
    seeds, arms = result["seeds"], result["arms"]
    low, high = result["baseline"]["interval"]
    missing = result["seeds_wanted"] - len(seeds)
    unfinished = f" **Unfinished: {missing} of {result['seeds_wanted']} seeds missing.**"
    parts = [
        f"# {result['study']}: {result['question']}\n",
        f"{result['steps']} steps, seeds {', '.join(map(str, seeds))}; mean ± standard deviation "
        "(ddof 1) over the seeds, with the range. "
        f"{result['problems']} unseen problems; Wilson 95 % interval of the untrained model "
        f"{_percent(low)} - {_percent(high)} %.{unfinished if missing else ''}\n",
        _table(
            TITLES,
            [_baseline_row(result["baseline"]), *(_row(arm, row) for arm, row in arms.items())],
        ),
        "## Unseen accuracy by data source, %\n",
        _family_table(result),
        "## Unseen accuracy over the steps, mean, %\n",
        _curve_table(arms),
        f"## After saturation (mean reward of {WINDOW} steps at {SATURATED:.0%})\n",
        _saturation_table(arms),
    ]
    return "\n".join(parts)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _with_std(value: Mapping[str, float | None], scale: float = 100, style: str = ".1f") -> str:
    mean, std = value["mean"], value["std"]
    assert mean is not None
    return format(scale * mean, style) + ("" if std is None else f" ± {format(scale * std, style)}")


def _range(value: Mapping[str, float]) -> str:
    return f"{_percent(value['low'])} - {_percent(value['high'])}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(titles, rows) + "\n"


def _baseline_row(row: Mapping[str, Any]) -> list[str]:
    accuracy = row["accuracy"]
    boxed = _with_std({**row["boxed"], "std": None}, style=".0f")
    return [BASELINE, _percent(accuracy["mean"]), _range(accuracy), "", "", "", boxed]


def _row(arm: str, row: Mapping[str, Any]) -> list[str]:
    best = max(row["curve"]["unseen_accuracy"], key=lambda point: point["mean"])
    return [
        arm,
        _with_std(row["after"]),
        _range(row["after"]),
        _with_std(row["change"], style="+.1f").replace("± +", "± "),
        f"{_percent(best['mean'])} ({best['step']})",
        _with_std(row["reward_end"], scale=1, style=".2f"),
        _with_std(row["boxed_after"], style=".0f"),
    ]


def _family_table(result: Mapping[str, Any]) -> str:
    before = result["baseline"]["families"]
    rows = [[BASELINE, *(_percent(value["mean"]) for value in before.values())]]
    for arm, row in result["arms"].items():
        rows.append([arm, *(_with_std(row["families"][source]) for source in before)])
    return _table(("arm", *(source or "unnamed" for source in before)), rows)


def _curve_table(arms: Mapping[str, Any]) -> str:
    steps = [point["step"] for point in next(iter(arms.values()))["curve"]["unseen_accuracy"]]
    rows = [
        [arm, *(f"{100 * point['mean']:.0f}" for point in row["curve"]["unseen_accuracy"])]
        for arm, row in arms.items()
    ]
    return _table(("arm", *map(str, steps)), rows)


def _saturation_table(arms: Mapping[str, Any]) -> str:
    """Every run that saturated: when, and unseen accuracy from the next evaluation to the end."""
    rows = []
    for arm, row in arms.items():
        for run in row["runs"]:
            cells = [arm, str(run["seed"]), "never", "", "", ""]
            start = run["accuracy_at_saturation"]
            if start is not None:
                gain = run["accuracy_after"] - start
                cells[2:] = [
                    str(run["saturated_step"]),
                    _percent(start),
                    _percent(run["accuracy_after"]),
                    f"{100 * gain:+.1f}",
                ]
            rows.append(cells)
    return _table(("arm", "seed", "step", "next evaluation, %", "end, %", "gain"), rows)


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draws mean and range over the seeds of accuracy, reward and entropy, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (key, title) in enumerate(PANELS.items(), start=1):
        axes = figure.add_subplot(1, len(PANELS), number)
        for colour, (arm, row) in enumerate(result["arms"].items()):
            points = row["curve"][key]
            steps = [point["step"] for point in points]
            marker = "o" if key == "unseen_accuracy" else None
            means = [point["mean"] for point in points]
            axes.plot(steps, means, color=f"C{colour}", marker=marker, markersize=3, label=arm)
            low, high = ([point[end] for point in points] for end in ("low", "high"))
            axes.fill_between(steps, low, high, color=f"C{colour}", alpha=0.15, linewidth=0)
        if key == "unseen_accuracy":
            baseline = result["baseline"]["accuracy"]["mean"]
            axes.axhline(baseline, color="black", linestyle=":", linewidth=1, label=BASELINE)
            figure.legend(loc="outside lower center", ncols=4, fontsize=8)
        axes.set_title(title.format(problems=result["problems"]), fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0, top=None if key == "entropy" else 1.02)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{result['question']} (mean and range of {len(result['seeds'])} seeds)")
    figure.savefig(path, dpi=80)
    with Image.open(path) as picture:  # a third of the size
        picture.convert("RGB").quantize(128).save(path, optimize=True)
