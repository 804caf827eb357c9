"""The papers' comparison in miniature: pre-train each method once, adapt it to held-out tasks.

One command runs, in order, a training run for each inventory and a few-shot adaptation for each arm
of the table; a killed command continues with the arm it was in.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from oneshot.poly.config import AdaptConfig, PolyConfig, TrainConfig
from oneshot.training import checkpoints
from oneshot.training.config import check_types, require
from oneshot.training.grid import Cell, markdown_table, run_grid, write_json, write_text


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: Its name.
        inventory: Which training run it starts from; None: no training run, new adapters.
        mode: How it is adapted.
    """

    name: str
    inventory: str | None
    mode: Literal["poly", "z", "mu", "soup", "full"]


ARMS = (
    Arm("lora", "lora", "poly"),
    Arm("lora-big", "lora-big", "poly"),
    Arm("poly", "poly", "poly"),
    Arm("poly-s", "poly-s", "poly"),
    Arm("poly-mu", "poly-s", "mu"),
    Arm("poly-z", "poly-s", "z"),
)


@dataclass(frozen=True)
class MiniatureConfig:
    """`oneshot poly miniature`: LoRA, LoRA-big, Poly, Poly-S, Poly-mu and Poly-z, compared."""

    train: TrainConfig
    """Training; `poly` is that of Poly-S, and `run.output` the folder of everything."""
    adapt: AdaptConfig
    """Adaptation; its model, pretrained, mode, poly and run.output are set by the arm."""
    arms: tuple[str, ...] = field(default=tuple(arm.name for arm in ARMS))
    """Which lines of the table."""

    def __post_init__(self) -> None:
        check_types(self)
        known = [arm.name for arm in ARMS]
        wrong = [name for name in self.arms if name not in known]
        require(not wrong, "arms", f"some of {', '.join(known)}", wrong)
        overlap = set(self.train.data.tasks) & set(self.adapt.data.tasks)
        require(
            bool(self.train.data.tasks) and bool(self.adapt.data.tasks) and not overlap,
            "adapt.data.tasks",
            "tasks that are not in train.data.tasks, both named",
            sorted(overlap),
        )


def inventories(poly: PolyConfig) -> dict[str, PolyConfig]:
    """Adapters of each training run, from those of Poly-S.

    LoRA-big has the rank of the whole inventory, so as many parameters as Poly; alpha grows with
    it, so that the scale stays.
    """
    shared = dataclasses.replace(poly, routing="uniform", skills=1, heads=1)
    big = dataclasses.replace(shared, rank=poly.rank * poly.skills, alpha=poly.alpha * poly.skills)
    return {
        "lora": shared,
        "lora-big": big,
        "poly": dataclasses.replace(poly, heads=1),
        "poly-s": poly,
    }


def miniature(config: MiniatureConfig, *, resume: bool = False) -> str:
    """Runs what is not finished yet and writes the table.

    Args:
        config: The comparison.
        resume: Continue in `config.train.run.output`.

    Returns:
        The table, as Markdown; also in table.md, its numbers in table.json.

    Raises:
        FileExistsError: The folder has files in it and `resume` is False.
    """
    from oneshot.poly.adaptation import summarize
    from oneshot.training.folder import open_run, write_config

    folder, _ = open_run(
        Path(config.train.run.output), config, resume, {"train.run.progress", "adapt.run.progress"}
    )
    write_config(folder, config)
    known = inventories(config.train.poly)
    adapting = dataclasses.replace(config.adapt, model=config.train.model)

    def measure(arm: Arm) -> dict[str, Any]:
        assert arm.inventory is not None
        start = train_inventory(config.train, arm.inventory, known[arm.inventory], folder)
        return summarize(adapt_arm(adapting, arm, start, folder))

    cells = [
        Cell(f"adapt/{arm.name}", functools.partial(measure, arm))
        for arm in ARMS
        if arm.name in config.arms
    ]
    table = {
        outcome.cell.name.removeprefix("adapt/"): outcome.result
        for outcome in run_grid(cells, folder)
    }
    text = as_table(table)
    write_text(folder / "table.md", text + "\n")
    write_json(folder / "table.json", table)
    return text


def train_inventory(config: TrainConfig, name: str, poly: PolyConfig, folder: Path) -> Path:
    """Trains these adapters in `folder`/train/`name`, unless that is done, or finishes it.

    Returns:
        Their checkpoint.
    """
    from oneshot.poly.trainer import train

    output = folder / "train" / name
    last = checkpoints.path(output / "checkpoints", config.run.steps)
    if last.exists():
        return last
    run = dataclasses.replace(config.run, output=str(output))
    return train(dataclasses.replace(config, poly=poly, run=run), resume=output.exists()).checkpoint


def adapt_arm(
    config: AdaptConfig, arm: Arm, pretrained: Path | None, folder: Path
) -> list[dict[str, Any]]:
    """Adapts one arm in `folder`/adapt/`arm.name`, or finishes an earlier attempt.

    Returns:
        Its rows of results.jsonl.
    """
    from oneshot.poly.adaptation import adapt

    output = folder / "adapt" / arm.name
    return adapt(
        dataclasses.replace(
            config,
            pretrained=None if pretrained is None else str(pretrained),
            mode=arm.mode,
            run=dataclasses.replace(config.run, output=str(output)),
        ),
        resume=output.exists(),
    )


def as_table(table: Mapping[str, Mapping[str, Any]]) -> str:
    """Arms x (shots, metric): mean over tasks ± standard deviation over seeds."""
    columns = [
        (shots, name)
        for shots, metrics in next(iter(table.values())).items()
        for name in metrics
        if not name.startswith("dev_")
    ]
    lines = [
        [arm, *(_value(summary[shots][name]) for shots, name in columns)]
        for arm, summary in table.items()
    ]
    return markdown_table(["arm", *(f"{name}, {shots} shots" for shots, name in columns)], lines)


def _value(metric: Mapping[str, Any]) -> str:
    spread = "" if metric["std"] is None else f" ± {metric['std']:.3f}"
    return f"{metric['mean']:.3f}{spread}"
