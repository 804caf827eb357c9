"""Tables and figure of `oneshot poly compositional`: means, paired differences, routing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneshot.poly.experiments.compositional.config import (
    ARMS,
    CompositionalConfig,
    inventories,
    places,
)
from oneshot.poly.experiments.compositional.experiment import checkpoint_path
from oneshot.poly.experiments.compositional.routing import read_weights, scaled
from oneshot.poly.experiments.compositional.string_tasks import (
    DECORATION,
    SELECTION,
    Composition,
    make_split,
)
from oneshot.poly.experiments.miniature import Arm
from oneshot.poly.plots import task_distances
from oneshot.training.config import to_dict
from oneshot.training.grid import (
    Row,
    draw_bars,
    grouped,
    markdown_table,
    means,
    save_figure,
    write_json,
    write_text,
)


@dataclass(frozen=True)
class Difference:
    """One arm minus another, paired by split, seed, task and draw of examples.

    Attributes:
        mean: Mean difference.
        standard_error: Standard deviation (ddof 1) over the pairs over the root of their number.
        task_standard_error: The same with one value for each held-out task, its mean over seeds and
            draws: pairs of a task are not independent.
        pairs: Number of pairs.
        by_seed: Mean difference of each seed.
    """

    mean: float
    standard_error: float
    task_standard_error: float
    pairs: int
    by_seed: dict[int, float]


def write_report(
    config: CompositionalConfig, output: Path, results: Mapping[str, Mapping[str, Any]]
) -> str:
    """Writes table.md, results.json and compositional.png; returns the tables.

    Args:
        config: An experiment of which every part is finished.
        output: Its folder.
        results: The result of every cell by its name.
    """
    adaptation: list[Row] = []
    training: list[Row] = []
    trained = [n for n in dict.fromkeys(ARMS[name].inventory for name in config.arms) if n]
    for place in places(config):
        key = {"split": place.split, "pretraining_seed": place.seed, "prompts": place.prompts}
        for arm in config.arms:
            rows = results[f"{place.path}/adapt/{arm}"]["rows"]
            adaptation += [{**key, "arm": arm, **row} for row in rows]
        for name in trained:
            row = results[f"{place.path}/train/{name}"]
            training.append({**key, "inventory": name, **row})
    base = {seed: results[f"base/seed_{seed}"] for seed in config.seeds}
    everything = {
        "config": to_dict(config),
        "parameters": {name: trained_parameters(config, ARMS[name]) for name in config.arms},
        "base": base,
        "training": training,
        "adaptation": adaptation,
    }
    write_json(output / "results.json", everything)
    tables = [_base_table(base)]
    for prompts in config.prompts:
        mine = [row for row in adaptation if row["prompts"] == prompts]
        tables += [
            f"Prompts: {prompts}.",
            _adaptation_table(config, mine),
            _difference_table(config, mine),
            _training_table([row for row in training if row["prompts"] == prompts]),
        ]
    report = "\n\n".join(table for table in tables if table)
    write_text(output / "table.md", report + "\n")
    _plot(config, adaptation, output)
    return report


def trained_parameters(config: CompositionalConfig, arm: Arm) -> int:
    """Parameters that one adaptation of an arm trains."""
    base = config.base
    layers, width, wide = base.layers, base.hidden_size, 3 * base.hidden_size
    if arm.mode == "full":
        from oneshot.poly.experiments.compositional.base_model import SYMBOLS

        block = 4 * width * width + 3 * width * wide + 2 * width
        return layers * block + width + len(SYMBOLS) * width
    known = inventories(config.poly)
    poly = known["lora" if arm.inventory is None else arm.inventory]
    # q, k, v, o of width x width; gate, up, down of width x wide.
    adapter = layers * poly.rank * (4 * 2 * width + 3 * (width + wide))
    if arm.mode in ("mu", "soup") or poly.routing != "learned":
        return adapter
    logits = 7 * layers * poly.heads * poly.skills
    return logits if arm.mode == "z" else adapter * poly.skills + logits


def paired(rows: Iterable[Row], arm: str, other: str, shots: int) -> Difference:
    """The paired difference of two arms in exact match.

    Args:
        rows: Adaptations, with the keys arm, shots, split, pretraining_seed, task, seed (of the
            draw) and exact_match.
        arm: Name of the arm to subtract from.
        other: Name of the arm to subtract.
        shots: Number of examples.

    Raises:
        ValueError: The arms have other pairs, or fewer than two.
    """
    values: dict[str, dict[tuple[Any, ...], float]] = {arm: {}, other: {}}
    for row in rows:
        if row["arm"] in values and row["shots"] == shots:
            key = (row["split"], row["pretraining_seed"], row["task"], row["seed"])
            values[row["arm"]][key] = row["exact_match"]
    if values[arm].keys() != values[other].keys() or len(values[arm]) < 2:
        raise ValueError(
            f"arms {arm} and {other} must have the same two or more adaptations with {shots} "
            f"examples, got {len(values[arm])} and {len(values[other])}"
        )
    differences = {key: values[arm][key] - values[other][key] for key in values[arm]}
    by_task = means(((key[0], key[2]), value) for key, value in differences.items())
    by_seed = means((key[1], value) for key, value in differences.items())
    return Difference(
        statistics.fmean(differences.values()),
        standard_error(list(differences.values())),
        standard_error(list(by_task.values())),
        len(differences),
        by_seed,
    )


def standard_error(values: Sequence[float]) -> float:
    """Standard deviation (ddof 1) over the root of the number; nan for one value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _base_table(base: Mapping[int, Mapping[str, float]]) -> str:
    kinds = {"seen": "named, seen", "held_out": "named, held out", "unnamed": "not named"}
    rows = [[str(seed), *(f"{row[kind]:.3f}" for kind in kinds)] for seed, row in base.items()]
    return markdown_table(["base model, seed", *kinds.values()], rows)


def _adaptation_table(config: CompositionalConfig, rows: Sequence[Row]) -> str:
    """Exact match of each arm: every seed's mean over tasks, draws and splits, then their mean."""
    lines = []
    for arm in config.arms:
        line = [arm, f"{trained_parameters(config, ARMS[arm]):,}".replace(",", " ")]
        for shots in config.shots:
            mine = [row for row in rows if row["arm"] == arm and row["shots"] == shots]
            line.append(_listed(_by_seed(mine)))
        lines.append(line)
    head = ["arm", "parameters trained in adaptation"]
    return markdown_table([*head, *(f"{shots} examples" for shots in config.shots)], lines)


def comparisons(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of arms worth subtracting: with one head, of the same inventory, and with a LoRA."""
    pairs = []
    for arm in arms:
        one_head = arm.rsplit("-h", 1)[0]
        for other in (
            one_head.replace("poly-s", "poly").replace("mhr-z", "poly-z"),
            arm.replace("poly-mu", "poly-s").replace("mhr-z", "poly-s"),
            arm.replace("poly-z", "poly"),
            "lora",
        ):
            if other != arm and other in arms and (arm, other) not in pairs:
                pairs.append((arm, other))
    return pairs


def _difference_table(config: CompositionalConfig, rows: Sequence[Row]) -> str:
    lines = []
    for arm, other in comparisons(config.arms):
        line = [f"{arm} - {other}"]
        for shots in config.shots:
            result = paired(rows, arm, other, shots)
            each = " ".join(f"{value:+.3f}" for value in result.by_seed.values())
            errors = f"{result.standard_error:.3f}; {result.task_standard_error:.3f}"
            line.append(f"{result.mean:+.3f} ({errors}) {each}")
        lines.append(line)
    if not lines:
        return ""
    head = [f"{shots} examples" for shots in config.shots]
    return markdown_table(
        ["paired difference (standard error; over tasks), each seed", *head], lines
    )


def _training_table(rows: Sequence[Row]) -> str:
    lines = []
    for name, mine in grouped(rows, "inventory").items():
        routed = [row["rank_correlation"] for row in mine if row["rank_correlation"] is not None]
        losses = [row["dev_loss"] for row in mine]
        lines.append([name, _listed(losses), _listed(routed, "+.2f") if routed else "-"])
    if not lines:
        return ""
    head = ["inventory", "dev loss of the training tasks, each run"]
    return markdown_table([*head, "rank correlation of routing distance and shared skills"], lines)


def _by_seed(rows: Sequence[Row]) -> list[float]:
    """Exact match of each seed of pre-training, mean over tasks, draws and splits."""
    return list(means((row["pretraining_seed"], row["exact_match"]) for row in rows).values())


def _listed(values: Iterable[float], number: str = ".3f") -> str:
    """Every value and, of several, their mean in bold."""
    listed = list(values)
    each = " ".join(format(value, number) for value in listed)
    return each if len(listed) == 1 else f"{each} = **{format(statistics.fmean(listed), number)}**"


def _plot(config: CompositionalConfig, rows: Sequence[Row], output: Path) -> None:
    """Exact match of the arms (a dot for each seed), and a map of the training tasks."""
    from matplotlib.figure import Figure

    routed = [name for name in config.arms if name.startswith("poly-s")]
    first = places(config)[0]
    mine = [row for row in rows if row["prompts"] == first.prompts]
    panels = len(config.shots) + bool(routed)
    height = max(3.4, 0.2 * len(config.arms) + 1)
    figure = Figure(figsize=(3.6 * panels + 1, height), layout="constrained")
    for number, shots in enumerate(config.shots, start=1):
        axes = figure.add_subplot(1, panels, number)
        by_arm = grouped([row for row in mine if row["shots"] == shots], "arm")
        draw_bars(axes, {arm: _by_seed(by_arm[arm]) for arm in config.arms})
        axes.set_xlim(0, 1)
        axes.set_title(f"Exact match, {shots} examples of a new task", fontsize=9)
        if number > 1:
            axes.set_yticklabels([])
    if routed:
        weights = read_weights(checkpoint_path(config, output / first.path, routed[0]))
        assert weights is not None
        tasks = make_split(config.task_seed, first.split, config.tasks).train
        axes = figure.add_subplot(1, panels, panels)
        _plot_map(axes, scaled(task_distances(weights)), tasks)
        axes.set_title(f"Training tasks by the routing of {routed[0]}", fontsize=9)
    save_figure(figure, output / "compositional.png")


def _plot_map(axes: Any, points: torch.Tensor, tasks: Sequence[Composition]) -> None:
    """Tasks as points: colour says the decoration, shape the selection."""
    colours = dict(zip(DECORATION, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))
    shapes = dict(zip(SELECTION, "os^D", strict=True))
    for (x, y), task in zip(points.tolist(), tasks, strict=True):
        colour = colours[task.decoration]
        axes.plot(x, y, marker=shapes[task.selection], color=colour, markersize=5)
    for name, colour in colours.items():
        axes.plot([], [], marker="s", linestyle="", color=colour, label=name)
    for name, shape in shapes.items():
        axes.plot([], [], marker=shape, linestyle="", color="grey", label=name)
    axes.legend(fontsize=6, ncols=2)
    axes.set_xticks([])
    axes.set_yticks([])
