"""Configuration of `oneshot rlvr eval`: a set of problems, or benchmarks over checkpoints.

This module imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from oneshot.rlvr.config import DataConfig, ModelConfig, RewardConfig
from oneshot.training.config import check_types, require


@dataclass(frozen=True)
class EvaluateConfig:
    """`oneshot rlvr eval`: one model and one set of problems, or checkpoints and benchmarks."""

    model: ModelConfig
    """The model, such as a checkpoint folder; `reference` plays no part."""
    data: DataConfig = field(default_factory=lambda: DataConfig(path=""))
    """Problems; with benchmarks only its prompt and limit count."""
    benchmarks: tuple[str, ...] = ()
    """Benchmarks instead of data.path: names such as math500, aime24@64 (64 responses a problem)
    or "six", the paper's six. More than one response: at benchmark_temperature, else greedy."""
    benchmark_folder: str | None = None
    """Folder of <name>/test.jsonl; by default the hub."""
    benchmark_temperature: float = 0.6
    """Sampling temperature of benchmarks with several responses per problem."""
    checkpoints: tuple[str, ...] = ()
    """Models for the benchmarks: sources, or run folders, which stand for all their checkpoints;
    by default model.source alone."""
    validation: str | None = None
    """Problems (forms of data.path) whose greedy accuracy chooses among the checkpoints."""
    paper_protocol: bool = False
    """Also report the best checkpoint by the benchmarks themselves, as the paper does. Chosen on
    the test sets, these figures are optimistic."""
    grader: RewardConfig = field(default_factory=RewardConfig)
    """What decides that a response is correct (multiple choice always by its letter)."""
    temperature: float = 0.0
    """Sampling temperature for data.path; 0 is greedy."""
    samples: int = 1
    """Responses per problem of data.path; more than one needs a temperature above 0."""
    top_p: float = 1.0
    """Nucleus mass when sampling."""
    max_new_tokens: int | None = None
    """Tokens after which a response is cut; by default 3072, or what the model's positions leave
    room for behind the longest prompt."""
    batch_size: int = 128
    """Sequences decoded at once."""
    stop_tokens: tuple[str, ...] = ()
    """As rollout.stop_tokens."""
    seed: int = 0
    """Seed of the sampling."""
    threads: int | None = None
    """torch threads on the CPU; by default torch's own choice."""
    output: str | None = None
    """JSON file for the figures and every response; with benchmarks a folder, which is needed."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("samples", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            require(value is None or value > 0, name, "a positive number", value)
        require(self.temperature >= 0, "temperature", ">= 0", self.temperature)
        require(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        require(
            self.samples == 1 or self.temperature > 0,
            "temperature",
            "> 0 when samples is above 1",
            self.temperature,
        )
        sampling = self.benchmark_temperature
        require(sampling > 0, "benchmark_temperature", "> 0", sampling)
        if self.benchmarks:
            require(not self.data.path, "data.path", "unset with benchmarks", self.data.path)
            require(bool(self.output), "output", "a folder with benchmarks", self.output)
            return
        require(bool(self.data.path), "data.path", "set without benchmarks", self.data.path)
        for name in ("benchmark_folder", "checkpoints", "validation", "paper_protocol"):
            value = getattr(self, name)
            require(not value, name, "unset without benchmarks", value)
