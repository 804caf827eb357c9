"""Routing on a transformer: do new compositions of known skills need few examples?

A small decoder learns all skills from prompts that name them. Inventories of adapters are then
trained on tasks whose prompts do not: the model has the skills, and the adapters must find out
which ones a task needs. Each inventory is adapted to held-out compositions from a few examples.

<output>/tasks/split_<split>.jsonl               rows of training and held-out tasks
<output>/base/seed_<seed>/                       one decoder per seed, shared by all splits
<output>/split_<split>/seed_<seed>/<prompts>/    training runs and adaptations of one place
<output>/table.md, results.json, compositional.png

Beside the folder of each run is its result, a cell of `training.grid`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oneshot.poly.config import (
    AdaptConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from oneshot.poly.experiments import miniature
from oneshot.poly.experiments.compositional import string_tasks as tasks
from oneshot.poly.experiments.compositional.config import (
    ARMS,
    PROMPTS,
    CompositionalConfig,
    Place,
    exact_match,
    inventories,
    places,
)
from oneshot.poly.experiments.compositional.string_tasks import make_split
from oneshot.poly.experiments.miniature import Arm
from oneshot.training import checkpoints
from oneshot.training.folder import open_run, write_config
from oneshot.training.grid import Cell, run_grid
from oneshot.training.jsonl import read_jsonl
from oneshot.training.lock import release

MAY_CHANGE = {"arms", "seeds", "splits", "prompts", "progress"}
"""Fields that a resumed run may have changed: it measures other cells of the same grid."""


def compositional(config: CompositionalConfig, *, resume: bool = False) -> str:
    """Runs what is not finished yet and writes the tables.

    Args:
        config: The experiment.
        resume: Continue in `config.output`; arms, seeds, splits and prompts may differ.

    Returns:
        The tables, as Markdown; also in table.md, with results.json and compositional.png.

    Raises:
        FileExistsError: The folder has files in it and `resume` is False.
        ValueError: The run to resume has another config.
    """
    import torch

    from oneshot.poly.experiments.compositional.report import write_report

    torch.set_num_threads(config.threads)
    output, _ = open_run(Path(config.output), config, resume, MAY_CHANGE)
    write_config(output, config)
    for split in config.splits:
        _write_tasks(config, split, output)
    outcomes = run_grid(list(cells(config, output)), output, bar=config.progress)
    return write_report(config, output, {o.cell.name: o.result for o in outcomes})


def cells(config: CompositionalConfig, output: Path) -> Iterator[Cell]:
    """The grid, place by place: an inventory, then the arms that start from it.

    A base model comes before the first place that needs it.
    """
    based = set()
    for place in places(config):
        if place.seed not in based:
            based.add(place.seed)
            run = functools.partial(train_base, config, place.seed, output)
            yield Cell(f"base/seed_{place.seed}", run)
        chosen = [ARMS[name] for name in config.arms]
        for inventory in dict.fromkeys(arm.inventory for arm in chosen):
            if inventory is not None:
                run = functools.partial(train_one, config, place, output, inventory)
                yield Cell(f"{place.path}/train/{inventory}", run)
            for arm in chosen:
                if arm.inventory == inventory:
                    run = functools.partial(adapt_one_arm, config, place, output, arm)
                    yield Cell(f"{place.path}/adapt/{arm.name}", run)


def train_base(config: CompositionalConfig, seed: int, output: Path) -> dict[str, float]:
    """Trains the decoder of one seed; returns how well it follows instructions."""
    from oneshot.poly.experiments.compositional.base_model import (
        measure_base,
        write_base,
        write_instructions,
    )
    from oneshot.poly.trainer import train

    base, folder = config.base, output / "base" / f"seed_{seed}"
    write_base(base, seed, folder / "untrained")
    write_instructions(config, seed, folder / "instructions.jsonl")
    data = DataConfig(
        str(folder / "instructions.jsonl"), prompt="{input}", test_examples=1, dev_examples=300
    )
    run = _run_config(config, folder / "run", base.steps, seed, base.steps)
    train_config = TrainConfig(
        data,
        run,
        model=ModelConfig(str(folder / "untrained"), device=config.device),
        method="full",
        optimizer=base.optimizer,
    )
    train(train_config, resume=(folder / "run").exists())
    release(folder / "run")
    return measure_base(config, seed, base_model(config, seed, output))


def train_one(
    config: CompositionalConfig, place: Place, output: Path, inventory: str
) -> dict[str, Any]:
    """Trains one inventory (or, for "full", the whole model) on the training tasks of a place.

    Returns:
        Dev loss after training, and how well the routing agrees with the true skills.
    """
    from oneshot.poly.experiments.compositional import routing

    split = make_split(config.task_seed, place.split, config.tasks)
    full = inventory == "full"
    train_config = TrainConfig(
        _data(config, place, output, split.train),
        _run_config(config, output, config.train_steps, place.seed, -(-config.train_steps // 3)),
        model=base_model(config, place.seed, output),
        method="full" if full else "adapters",
        optimizer=_optimizer(config, config.train_optimizer, full),
    )
    poly = config.poly if full else inventories(config.poly)[inventory]
    checkpoint = miniature.train_inventory(train_config, inventory, poly, output / place.path)
    folder = output / place.path / "train" / inventory
    release(folder)
    weights = None if full else routing.read_weights(checkpoint)
    return {
        "dev_loss": read_jsonl(folder / "metrics.jsonl")[-1]["dev/loss"],
        "rank_correlation": None
        if weights is None
        else routing.routing_correlation(weights, split.train),
    }


def adapt_one_arm(
    config: CompositionalConfig, place: Place, output: Path, arm: Arm
) -> dict[str, Any]:
    """Adapts one arm to the held-out tasks of a place; returns the rows of its adaptations."""
    split = make_split(config.task_seed, place.split, config.tasks)
    adapt_config = AdaptConfig(
        _data(config, place, output, split.held_out),
        _run_config(config, output, config.adapt_steps, place.seed, -(-config.adapt_steps // 3)),
        model=base_model(config, place.seed, output),
        poly=inventories(config.poly)["lora"],
        shots=config.shots,
        seeds=config.draws,
        optimizer=_optimizer(config, config.adapt_optimizer, arm.mode == "full"),
        evaluation=exact_match(),
    )
    folder = output / place.path
    start = None if arm.inventory is None else checkpoint_path(config, folder, arm.inventory)
    rows = miniature.adapt_arm(adapt_config, arm, start, folder)
    release(folder / "adapt" / arm.name)
    return {"rows": rows}


def base_model(config: CompositionalConfig, seed: int, output: Path) -> ModelConfig:
    """The trained decoder of a seed."""
    run = output / "base" / f"seed_{seed}" / "run"
    source = checkpoints.path(run / "checkpoints", config.base.steps)
    return ModelConfig(str(source), device=config.device)


def checkpoint_path(config: CompositionalConfig, folder: Path, inventory: str) -> Path:
    """The last checkpoint of a training run of the place in `folder`."""
    return checkpoints.path(folder / "train" / inventory / "checkpoints", config.train_steps)


def tasks_path(output: Path, split: int) -> Path:
    """The tasks of a split."""
    return output / "tasks" / f"split_{split}.jsonl"


def _write_tasks(config: CompositionalConfig, number: int, output: Path) -> None:
    path = tasks_path(output, number)
    path.parent.mkdir(exist_ok=True)
    split = make_split(config.task_seed, number, config.tasks)
    rows = tasks.few_shot_rows(split, config.strings, config.task_seed)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _data(
    config: CompositionalConfig, place: Place, output: Path, chosen: tuple[tasks.Composition, ...]
) -> DataConfig:
    return DataConfig(
        str(tasks_path(output, place.split)),
        tasks=tuple(task.name for task in chosen),
        test_examples=config.test_examples,
        dev_examples=config.dev_examples,
        prompt=PROMPTS[place.prompts],
    )


def _run_config(
    config: CompositionalConfig, output: Path, steps: int, seed: int, evaluate_every: int
) -> RunConfig:
    return RunConfig(
        str(output),
        steps=steps,
        seed=seed,
        evaluate_every=evaluate_every,
        save_every=-(-steps // 3),
        threads=config.threads,
        progress=False,
    )


def _optimizer(
    config: CompositionalConfig, optimizer: OptimizerConfig, full: bool
) -> OptimizerConfig:
    return dataclasses.replace(optimizer, lr=config.full_lr) if full else optimizer
