"""The settings of vLLM that both modes share: the engine's arguments and those of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oneshot.rlvr.config import ModelConfig, RolloutConfig
from oneshot.rlvr.rollout.vllm_worker import EXTENSION
from oneshot.training.seeding import derive_seed

SEED_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Vocabulary:
    """The token ids an engine needs to know.

    Attributes:
        stop_ids: Those that end a response.
        pad_id: Padding of the rollout.
        size: Number of token ids of the model.
    """

    stop_ids: list[int]
    pad_id: int
    size: int


def engine_arguments(source: str, model: ModelConfig, rollout: RolloutConfig) -> dict[str, Any]:
    """Arguments of `vllm.LLM`; `server_argv` turns them into options of the server.

    Args:
        source: Folder or hub name of the model.
        model: For the type of the weights.
        rollout: Lengths and vLLM's own options.
    """
    length = rollout.max_prompt_tokens + rollout.max_new_tokens
    options = rollout.vllm
    arguments = {
        "model": source,
        "dtype": model.sampling_dtype,
        "max_model_len": length,
        "max_num_seqs": rollout.max_sequences,
        "enforce_eager": options.enforce_eager,
        "tensor_parallel_size": options.tensor_parallel_size,
        "worker_extension_cls": EXTENSION,
        # Of the distribution that was sampled from, at the temperature.
        "logprobs_mode": "processed_logprobs",
        # Seeds of requests crash the CPU engine when a prompt is read in chunks (0.32.0).
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(length, 8192),
        # Ignore the model's sampling defaults (repetition penalty, top-k).
        "generation_config": "vllm",
    }
    if options.gpu_memory_utilization is not None:
        arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
    return arguments


def server_argv(arguments: dict[str, Any]) -> list[str]:
    """The same as options of vLLM's server."""
    argv = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            argv.append(f"--{option}" if value else f"--no-{option}")
        else:
            argv += [f"--{option}", str(value)]
    return argv


def request_settings(
    rollout: RolloutConfig, stop_ids: Sequence[int], n: int, seed: int, limit: int | None
) -> dict[str, Any]:
    """Sampling parameters of one prompt; its stop tokens are ours and no others."""
    longest = rollout.max_new_tokens
    return {
        "n": n,
        "temperature": rollout.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "max_tokens": longest if limit is None else min(limit, longest),
        "seed": seed,
        "logprobs": 0,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,
    }


def prompt_seeds(seed: int, count: int, indices: Sequence[int] | None) -> list[int]:
    """A seed for each prompt, from its position: equal prompts must not get equal responses."""
    order = range(count) if indices is None else indices
    return [derive_seed(seed, "vllm", index) % SEED_LIMIT for index in order]
