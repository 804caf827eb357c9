"""Memory and work of a run from the shapes of its model: arithmetic, no measurement.

Counts what grows with model and run (weights, gradients, moments, logits, key/value cache), not
the activations between the blocks and not the allocator's slack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oneshot.rlvr.config import TrainConfig

GIB = 2**30
MEAN_TOKENS = 800  # of a response: about the mean of the paper's test responses


@dataclass(frozen=True)
class Shape:
    """A Llama- or Qwen2-like decoder.

    Attributes:
        layers: Blocks.
        hidden: Width.
        intermediate: Width of the gated MLP.
        heads: Query heads.
        kv_heads: Key and value heads.
        vocabulary: Token ids.
        tied: Output layer and embedding are one matrix.
        qkv_bias: Queries, keys and values have a bias (Qwen2).
        head_size: Width of a head; by default hidden / heads.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    head_size: int | None = None

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.head_size or self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        kv = 2 * self.kv_heads * self.head
        q = self.heads * self.head
        bias = q + kv if self.qkv_bias else 0
        attention = self.hidden * (2 * q + kv) + bias
        block = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        ends = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * block + ends + self.hidden

    def cache_bytes(self, tokens: int, bytes_each: int = 2) -> int:
        """Key/value cache of so many tokens."""
        return 2 * self.layers * self.kv_heads * self.head * tokens * bytes_each


# Of the models of the paper, from their published configs.
_QWEN_1_5B = Shape(28, 1536, 8960, 12, 2, 151936, True, True)
SHAPES = {
    "Qwen2.5-Math-1.5B": _QWEN_1_5B,
    "Qwen2.5-Math-1.5B-Instruct": _QWEN_1_5B,
    "Qwen2.5-1.5B": _QWEN_1_5B,
    "Qwen2.5-Math-7B": Shape(28, 3584, 18944, 28, 4, 152064, False, True),
    "Llama-3.2-3B-Instruct": Shape(28, 3072, 8192, 24, 8, 128256, True, False),
    "DeepSeek-R1-Distill-Qwen-1.5B": Shape(28, 1536, 8960, 12, 2, 151936, False, True),
}


def training_bytes(shape: Shape, processes: int, *, reference: bool, bytes_each: int = 4) -> int:
    """Bytes per process of what FSDP2 shards: weights, gradients, two moments, reference.

    Args:
        shape: Of the model.
        processes: That share it.
        reference: The KL needs the untrained weights, too.
        bytes_each: 4 for float32, 2 for bfloat16 (AdamW's moments have the type of the weights).
    """
    return shape.parameters * bytes_each * (5 if reference else 4) // processes


def logits_bytes(shape: Shape, response_tokens: int, bytes_each: int = 4) -> int:
    """Logits of one micro-batch; their gradient is written over them."""
    return response_tokens * shape.vocabulary * bytes_each


def tokens_per_second(
    sequences: int, mean_tokens: float, steps: int, hours: float, share: float = 0.5
) -> float:
    """Response tokens per second that the rollouts must reach to finish in time.

    Args:
        sequences: Responses per step.
        mean_tokens: Their mean length.
        steps: Of the run.
        hours: For the whole run.
        share: Of the time, for the rollouts.
    """
    return sequences * mean_tokens * steps / (hours * 3600 * share)


def training_flops(shape: Shape, tokens: float, *, reference: bool) -> float:
    """Floating-point operations of the update on so many tokens, attention scores left out.

    2 per parameter and token forward, 4 backward, 2 more for the reference.
    """
    return shape.parameters * tokens * (8 if reference else 6)


def shape_of(source: str) -> Shape:
    """The shape of a model: known for the models of the paper, else read from its config.

    Args:
        source: A model source (`oneshot.models`).

    Raises:
        ValueError: The config is not that of a Llama- or Qwen2-like decoder.
    """
    name = source.rstrip("/").rpartition("/")[2]
    if name in SHAPES:
        return SHAPES[name]
    from transformers import AutoConfig

    from oneshot import models

    config: Any = AutoConfig.from_pretrained(models.resolve(source)).get_text_config()
    if config.model_type not in ("llama", "qwen2"):
        raise ValueError(
            f"model.source: the plan covers Llama- and Qwen2-like models, {source!r} is "
            f"{config.model_type!r}"
        )
    return Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
        config.tie_word_embeddings,
        config.model_type == "qwen2" or bool(getattr(config, "attention_bias", False)),
        getattr(config, "head_dim", None),
    )


def plan(config: TrainConfig, processes: int, hours: float) -> dict[str, float]:
    """What a run needs: memory of each process in GiB, rates and work.

    Args:
        config: The run.
        processes: Processes (GPUs) that share it; the models are sharded over them.
        hours: For the whole run; half of the time is for rollouts of a mean length of 800 tokens.

    Returns:
        Names with units and their values.
    """
    shape, rollout = shape_of(config.model.source), config.rollout
    reference = config.algorithm.loss.kl_coef > 0
    trained = 2 if config.model.weights_dtype == "bfloat16" else 4
    computed = 2 if config.model.sampling_dtype == "bfloat16" else 4
    sequences = rollout.batch_size * rollout.samples_per_prompt
    length = rollout.max_prompt_tokens + rollout.max_new_tokens
    mean = min(MEAN_TOKENS, rollout.max_new_tokens)
    copied = processes > 1 or config.model.dtype == "mixed"
    cache = shape.cache_bytes(min(rollout.max_sequences, sequences) * length, computed)
    memory = {
        f"weights, gradients, moments{', reference' if reference else ''}": training_bytes(
            shape, processes, reference=reference, bytes_each=trained
        ),
        "whole copy that samples": shape.parameters * computed if copied else 0,
        "logits of a micro-batch": logits_bytes(
            shape, config.algorithm.microbatch_tokens, computed
        ),
        f"key/value cache, {rollout.max_sequences} sequences of full length": cache,
    }
    steps = config.run.steps
    return {
        "parameters, 1e9": shape.parameters / 1e9,
        **{f"{name}, GiB": value / GIB for name, value in memory.items()},
        f"rollouts for {steps} steps in {hours:g} h, tokens/s": tokens_per_second(
            sequences, mean, steps, hours
        ),
        "update per step, PFLOP": training_flops(shape, sequences * mean, reference=reference)
        / 1e15,
    }
