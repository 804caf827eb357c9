"""Configuration of `oneshot poly compositional`: arms, adapters, and the size of everything."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from oneshot.poly.config import EvaluationConfig, OptimizerConfig, PolyConfig
from oneshot.poly.experiments import miniature
from oneshot.poly.experiments.compositional import string_tasks as tasks
from oneshot.poly.experiments.miniature import Arm
from oneshot.training.config import require

SKILLS, HEADS = (2, 3, 4, 8), (2, 4, 8)
MAIN = ("lora", "lora-big-k2", "poly-k2", "poly-s-k2-h8", "poly-mu-k2-h8", "mhr-z-k2-h8")
LONGEST_ANSWER = 16
"""Tokens: a blank, twice the longest word, the end."""
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
    """Share of examples with "?" in place of the skills: the decoder knows such prompts too."""
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
class Place:
    """Where in the grid an arm is measured: everything but the arm.

    Attributes:
        split: Number of the split.
        seed: Seed of pre-training.
        prompts: Kind of prompts.
    """

    split: int
    seed: int
    prompts: Prompts

    @property
    def path(self) -> Path:
        """Where its training runs and adaptations are, inside the output folder."""
        return Path(f"split_{self.split}", f"seed_{self.seed}", self.prompts)


def places(config: CompositionalConfig) -> list[Place]:
    """The places of the grid: seeds of one split after another."""
    return [
        Place(split, seed, prompts)
        for split in config.splits
        for prompts in config.prompts
        for seed in config.seeds
    ]


def inventories(poly: PolyConfig) -> dict[str, PolyConfig]:
    """Adapters of each training run; "full" has none and is not among them."""
    known: dict[str, PolyConfig] = {}
    for k in SKILLS:
        for h in HEADS:
            four = miniature.inventories(dataclasses.replace(poly, skills=k, heads=h))
            known["lora"] = four["lora"]
            known[f"lora-big-k{k}"] = four["lora-big"]
            known[f"poly-k{k}"] = four["poly"]
            known[f"poly-s-k{k}-h{h}"] = four["poly-s"]
    known["private"] = dataclasses.replace(known["lora"], routing="private")
    return known


def exact_match() -> EvaluationConfig:
    """Exact match of greedy answers."""
    return EvaluationConfig(("exact_match",), max_new_tokens=LONGEST_ANSWER, batch_size=60)
