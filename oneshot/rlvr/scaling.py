"""Memory and work of a run from the shapes of its model: arithmetic, no measurement.

Counts what grows with model and run (weights, gradients, moments, logits, key/value cache), not
activations between the blocks nor the allocator's slack.
"""

from __future__ import annotations

from dataclasses import dataclass


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
SHAPES = {
    "Qwen2.5-Math-1.5B": Shape(28, 1536, 8960, 12, 2, 151936, True, True),
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
    """Response tokens per second that the rollouts must make, to end in time.

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
