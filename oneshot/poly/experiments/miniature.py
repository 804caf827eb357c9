"""The papers' comparison in miniature: pre-train each method once, adapt it to held-out tasks.

One command runs, in order, a training run for each inventory and a few-shot adaptation for each arm
of the table; everything that is finished is kept, so the command can be killed and continued.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from oneshot.poly.config import AdaptConfig, PolyConfig, TrainConfig
from oneshot.training.config import check_types, require


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
    arms = [arm for arm in ARMS if arm.name in config.arms]
    trained = {
        name: train_inventory(config.train, name, poly, folder)
        for name, poly in inventories(config.train.poly).items()
        if any(arm.inventory == name for arm in arms)
    }
    adapting = dataclasses.replace(config.adapt, model=config.train.model)
    table: dict[str, Any] = {}
    for arm in arms:
        assert arm.inventory is not None
        table[arm.name] = summarize(adapt_arm(adapting, arm, trained[arm.inventory], folder))
    text = as_table(table)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    (folder / "table.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return text


def train_inventory(config: TrainConfig, name: str, poly: PolyConfig, folder: Path) -> Path:
    """Trains these adapters in `folder`/train/`name`, or finishes an earlier attempt.

    Returns:
        Their checkpoint.
    """
    from oneshot.poly.trainer import train

    output = folder / "train" / name
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


def as_table(table: dict[str, Any]) -> str:
    """Arms x (shots, figure): mean over tasks ± standard deviation over seeds."""
    columns = [
        (shots, name)
        for shots, figures in next(iter(table.values())).items()
        for name in figures
        if not name.startswith("dev_")
    ]
    lines = [
        "| arm | " + " | ".join(f"{name}, {shots} shots" for shots, name in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for arm, summary in table.items():
        cells = []
        for shots, name in columns:
            found = summary[shots][name]
            spread = "" if found["std"] is None else f" ± {found['std']:.3f}"
            cells.append(f"{found['mean']:.3f}{spread}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
