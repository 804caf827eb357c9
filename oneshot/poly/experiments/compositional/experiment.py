"""Routing on a transformer: do new compositions of known skills need few examples?

A small decoder learns all skills from prompts that name them. Inventories of adapters are then
trained on tasks whose prompts do not: the model has the skills, and the adapters must find out
which ones a task needs. Each inventory is adapted to held-out compositions from a few examples.

<output>/tasks/split_<split>.jsonl               rows of training and held-out tasks
<output>/base/seed_<seed>/                       one decoder for each seed, shared by all splits
<output>/split_<split>/seed_<seed>/<prompts>/    training runs and adaptations of one cell
<output>/table.md, results.json, compositional.png
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from oneshot.poly.config import (
    AdaptConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PolyConfig,
    RunConfig,
    TrainConfig,
)
from oneshot.poly.experiments import miniature
from oneshot.poly.experiments.compositional import string_tasks as tasks
from oneshot.poly.experiments.compositional.string_tasks import make_split
from oneshot.poly.experiments.miniature import Arm
from oneshot.training import checkpoints
from oneshot.training.config import require
from oneshot.training.folder import open_run, write_config
from oneshot.training.lock import release

SKILLS, HEADS = (2, 3, 4, 8), (2, 4, 8)
MAIN = ("lora", "lora-big-k2", "poly-k2", "poly-s-k2-h8", "poly-mu-k2-h8", "mhr-z-k2-h8")
LONGEST_ANSWER = 16
"""Tokens: a blank, twice the longest word, the end."""
MAY_CHANGE = {"arms", "seeds", "splits", "prompts", "progress"}
"""Fields that a resumed run may have changed: it measures other cells of the same grid."""

Prompts = Literal["plain", "tagged"]
PROMPTS: dict[Prompts, str] = {"plain": "?:{input}=", "tagged": "?{definition}:{input}="}


def _arms() -> dict[str, Arm]:
    arms = [Arm("lora", "lora", "poly"), Arm("private", None, "poly")]
    arms += [Arm("soup", "private", "soup"), Arm("full", "full", "full")]
    for k in SKILLS:
        arms += [Arm(f"lora-big-k{k}", f"lora-big-k{k}", "poly")]
        arms += [Arm(f"poly-k{k}", f"poly-k{k}", "poly"), Arm(f"poly-z-k{k}", f"poly-k{k}", "z")]
        for h in HEADS:
            inventory = f"poly-s-k{k}-h{h}"
            arms += [Arm(inventory, inventory, "poly"), Arm(f"mhr-z-k{k}-h{h}", inventory, "z")]
            arms += [Arm(f"poly-mu-k{k}-h{h}", inventory, "mu")]
    return {arm.name: arm for arm in arms}


ARMS = _arms()


@dataclass(frozen=True)
class BaseConfig:
    """The decoder that has the skills: a Llama over characters, trained here."""

    layers: int = 4
    """Transformer blocks."""
    hidden_size: int = 128
    """Width; the feed-forward layers are three times as wide."""
    attention_heads: int = 4
    """Attention heads."""
    strings: int = 40_000
    """Training examples."""
    unnamed: float = 0.2
    """Share of examples with "?" in place of the skills: the decoder knows that form too."""
    steps: int = 1500
    """Optimizer steps."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=2e-3, batch_size=64)
    )
    """Optimizer."""


@dataclass(frozen=True)
class CompositionalConfig:
    """`oneshot poly compositional`: adapters on string tasks that share skills."""

    output: str
    """Folder of everything."""
    arms: tuple[str, ...] = MAIN
    """Lines of the table: lora, lora-big-k<K>, private, soup, full, poly-k<K>, poly-z-k<K>, and
    poly-s, poly-mu, mhr-z with -k<K>-h<H>, for K in 2, 3, 4, 8 skills and H in 2, 4, 8 heads."""
    seeds: tuple[int, ...] = (1,)
    """Seeds of pre-training: base model, inventories and adaptations."""
    splits: tuple[int, ...] = (1,)
    """Splits of the tasks, 1 to 4: each has its own training and held-out tasks."""
    prompts: tuple[Prompts, ...] = ("plain",)
    """"plain": no prompt says which task it is; "tagged", the control: every prompt has a tag of
    its task, which names no skill."""
    shots: tuple[int, ...] = (4, 16)
    """Training examples of an adaptation; it has as many dev examples."""
    draws: tuple[int, ...] = (1, 2)
    """Seeds that draw these examples."""
    task_seed: int = 0
    """Seed of tasks and words."""
    tasks: int = 48
    """Training tasks."""
    strings: int = 400
    """Words of each task."""
    dev_examples: int = 16
    """Words of each training task for validation."""
    test_examples: int = 60
    """Words of each task for the test."""
    base: BaseConfig = field(default_factory=BaseConfig)
    """The decoder."""
    poly: PolyConfig = field(default_factory=lambda: PolyConfig(rank=2, alpha=8.0))
    """Adapters; tasks, skills, heads and routing are set by the arm."""
    train_steps: int = 300
    """Steps of each inventory."""
    train_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-3, batch_size=48)
    )
    """Optimizer of the inventories."""
    adapt_steps: int = 60
    """Steps of each adaptation; it is validated every third of them."""
    adapt_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-3, batch_size=8)
    )
    """Optimizer of the adaptations."""
    full_lr: float = 5e-4
    """Learning rate of full fine-tuning, in place of both optimizers' lr."""
    device: str = "auto"
    """A torch device, or "auto": the first GPU if there is one, else the CPU."""
    threads: int = 1
    """torch threads on the CPU."""
    progress: bool = True
    """Show the progress bar."""

    def __post_init__(self) -> None:
        for name, known in (
            ("arms", tuple(ARMS)),
            ("splits", tuple(range(1, tasks.SPLITS + 1))),
            ("prompts", tuple(PROMPTS)),
        ):
            wrong = [value for value in getattr(self, name) if value not in known]
            expected = f"some of {', '.join(map(str, known))}"
            require(not wrong and bool(getattr(self, name)), name, expected, getattr(self, name))
        for name in ("seeds", "shots", "draws"):
            require(bool(getattr(self, name)), name, "at least one number", getattr(self, name))
        for name in ("arms", "splits", "prompts", "seeds", "shots", "draws"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), name, "values that differ", values)
        for name in ("dev_examples", "test_examples", "train_steps", "adapt_steps", "threads"):
            value = getattr(self, name)
            require(value > 0, name, "a positive number", value)
        most = len(tasks.COMPOSITIONS) - tasks.SPLITS * tasks.HELD_OUT
        require(1 < self.tasks <= most, "tasks", f"in 2 .. {most}", self.tasks)
        left = self.strings - self.test_examples
        needed = max(2 * max(self.shots), self.dev_examples + 1)
        require(left >= needed, "strings", f">= {needed + self.test_examples}", self.strings)


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: everything but the arm.

    Attributes:
        split: Number of the split.
        seed: Seed of pre-training.
        prompts: Kind of prompts.
    """

    split: int
    seed: int
    prompts: Prompts

    def folder(self, output: Path) -> Path:
        """Where its training runs and adaptations are."""
        return output / f"split_{self.split}" / f"seed_{self.seed}" / self.prompts


@dataclass(frozen=True)
class Job:
    """A part of the grid that is done once.

    Attributes:
        label: What it is, for the progress bar.
        is_done: Whether an earlier run has finished it.
        run: Does it, or finishes an earlier attempt.
    """

    label: str
    is_done: Callable[[], bool]
    run: Callable[[], object]


def inventories(poly: PolyConfig) -> dict[str, PolyConfig]:
    """Adapters of each training run; "full" has none and is not among them."""
    found: dict[str, PolyConfig] = {}
    for k in SKILLS:
        for h in HEADS:
            four = miniature.inventories(dataclasses.replace(poly, skills=k, heads=h))
            found["lora"] = four["lora"]
            found[f"lora-big-k{k}"] = four["lora-big"]
            found[f"poly-k{k}"] = four["poly"]
            found[f"poly-s-k{k}-h{h}"] = four["poly-s"]
    found["private"] = dataclasses.replace(found["lora"], routing="private")
    return found


def cells(config: CompositionalConfig) -> list[Cell]:
    """The cells of the grid: seeds of one split after another."""
    return [
        Cell(split, seed, prompts)
        for split in config.splits
        for prompts in config.prompts
        for seed in config.seeds
    ]


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
    _run_all([job for job in jobs(config, output) if not job.is_done()], config.progress)
    return write_report(config, output)


def _run_all(left: list[Job], progress: bool) -> None:
    """Runs jobs in their order, with a bar (without a terminal: a line for each)."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not (progress and console.is_terminal)) as bar:
        shown = bar.add_task("", total=len(left))
        for number, job in enumerate(left, start=1):
            bar.update(shown, description=job.label)
            if progress and not console.is_terminal:
                console.print(f"{number}/{len(left)} {job.label}", soft_wrap=True)
            job.run()
            bar.advance(shown)


def jobs(config: CompositionalConfig, output: Path) -> Iterator[Job]:
    """Everything to do for a config, cell by cell; a base model before the first cell it is in."""
    based = set()
    for cell in cells(config):
        seed = cell.seed
        if seed not in based:
            based.add(seed)
            folder = output / "base" / f"seed_{seed}"
            yield Job(
                f"seed {seed}: training the base model",
                (folder / "exact_match.json").exists,
                functools.partial(train_base, config, seed, folder),
            )
        yield from _cell_jobs(config, cell, output)


def _cell_jobs(config: CompositionalConfig, cell: Cell, output: Path) -> Iterator[Job]:
    """Training runs and arms of one cell: an inventory, then the arms that start from it."""
    folder = cell.folder(output)
    where = f"split {cell.split}, {cell.prompts} prompts, seed {cell.seed}"
    chosen = [ARMS[name] for name in config.arms]
    for inventory in dict.fromkeys(arm.inventory for arm in chosen):
        if inventory is not None:
            yield Job(
                f"{where}: training {inventory}",
                checkpoint_path(config, folder, inventory).exists,
                functools.partial(train_one, config, cell, output, inventory),
            )
        for arm in chosen:
            if arm.inventory == inventory:
                yield Job(
                    f"{where}: adapting {arm.name}",
                    (folder / "adapt" / arm.name / "summary.json").exists,
                    functools.partial(adapt_one_arm, config, cell, output, arm),
                )


def train_base(config: CompositionalConfig, seed: int, folder: Path) -> None:
    """Trains the decoder of one seed and measures whether it follows instructions."""
    from oneshot.poly.experiments.compositional.base_model import (
        measure_base,
        write_base,
        write_instructions,
    )
    from oneshot.poly.trainer import train

    base = config.base
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
    measure_base(config, seed, folder, base_model(config, seed, folder))


def train_one(config: CompositionalConfig, cell: Cell, output: Path, inventory: str) -> None:
    """Trains one inventory (or, for "full", the whole model) on the training tasks of a cell."""
    split = make_split(config.task_seed, cell.split, config.tasks)
    full = inventory == "full"
    train_config = TrainConfig(
        _data(config, cell, output, split.train),
        _run_config(config, output, config.train_steps, cell.seed, -(-config.train_steps // 3)),
        model=base_model(config, cell.seed, output / "base" / f"seed_{cell.seed}"),
        method="full" if full else "adapters",
        optimizer=_optimizer(config, config.train_optimizer, full),
    )
    poly = config.poly if full else inventories(config.poly)[inventory]
    folder = cell.folder(output)
    miniature.train_inventory(train_config, inventory, poly, folder)
    release(folder / "train" / inventory)


def adapt_one_arm(config: CompositionalConfig, cell: Cell, output: Path, arm: Arm) -> None:
    """Adapts one arm to the held-out tasks of a cell."""
    split = make_split(config.task_seed, cell.split, config.tasks)
    adapt_config = AdaptConfig(
        _data(config, cell, output, split.held_out),
        _run_config(config, output, config.adapt_steps, cell.seed, -(-config.adapt_steps // 3)),
        model=base_model(config, cell.seed, output / "base" / f"seed_{cell.seed}"),
        poly=inventories(config.poly)["lora"],
        shots=config.shots,
        seeds=config.draws,
        optimizer=_optimizer(config, config.adapt_optimizer, arm.mode == "full"),
        evaluation=exact_match(),
    )
    folder = cell.folder(output)
    start = None if arm.inventory is None else checkpoint_path(config, folder, arm.inventory)
    miniature.adapt_arm(adapt_config, arm, start, folder)
    release(folder / "adapt" / arm.name)


def exact_match() -> EvaluationConfig:
    """Exact match of greedy answers."""
    return EvaluationConfig(("exact_match",), max_new_tokens=LONGEST_ANSWER, batch_size=60)


def base_model(config: CompositionalConfig, seed: int, folder: Path) -> ModelConfig:
    """The trained decoder of a seed, of which `folder` is the folder."""
    source = checkpoints.path(folder / "run" / "checkpoints", config.base.steps)
    return ModelConfig(str(source), device=config.device)


def checkpoint_path(config: CompositionalConfig, folder: Path, inventory: str) -> Path:
    """The last checkpoint of a training run of the cell in `folder`."""
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
    config: CompositionalConfig, cell: Cell, output: Path, chosen: tuple[tasks.Composition, ...]
) -> DataConfig:
    return DataConfig(
        str(tasks_path(output, cell.split)),
        tasks=tuple(task.name for task in chosen),
        test_examples=config.test_examples,
        dev_examples=config.dev_examples,
        prompt=PROMPTS[cell.prompts],
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
