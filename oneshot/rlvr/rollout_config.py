"""Configuration of the sampling of responses. This module imports neither torch nor vllm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from oneshot.training.config import check_types, require


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
    """Who samples: the model in place, vLLM in this process, or a server of `oneshot rlvr serve`.
    """
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
