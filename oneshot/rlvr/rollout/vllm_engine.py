"""The rollout engine on vLLM in this process.

The weights of the trainer are handed to vLLM's worker after every update, tensor by tensor. The
engine's own process (vLLM's default) is turned off: tensors could not be handed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from oneshot.rlvr.config import ModelConfig, RolloutConfig
from oneshot.rlvr.rollout.engine import Rollout, assemble, check_prompts
from oneshot.rlvr.rollout.vllm_settings import (
    Vocabulary,
    engine_arguments,
    prompt_seeds,
    request_settings,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VllmEngine:
    """Samples with vLLM, which has a copy of the policy.

    Args:
        source: Folder or hub name of the model.
        tokenizer: For the texts.
        vocabulary: Stop and padding ids.
        model: For the type of the weights.
        rollout: Temperature, lengths and vLLM's own options.
        seed: Of vLLM itself; every request has its own.
        device: Where the tensors of a rollout go.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
    """

    needs_weights = True

    def __init__(
        self,
        source: str,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        model: ModelConfig,
        rollout: RolloutConfig,
        *,
        seed: int,
        device: str,
    ) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            from vllm import LLM
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"rollout.engine is 'vllm', but {error.name} is not installed: pip install vllm "
                "(on a CPU: see `make test-vllm`)"
            ) from error
        arguments = engine_arguments(source, model, rollout)
        if rollout.vllm.tensor_parallel_size == 1:
            arguments["distributed_executor_backend"] = "uni"
        self.llm = LLM(**arguments, seed=seed % 2**31)
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.rollout = rollout
        self.device = device

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seed: int,
        *,
        indices: Sequence[int] | None = None,
        limit: int | None = None,
    ) -> Rollout:
        """Samples `n` responses to each prompt; see `RolloutEngine`."""
        from vllm import SamplingParams

        check_prompts(prompts, self.vocabulary.size)
        stops = self.vocabulary.stop_ids
        settings = [
            SamplingParams(**request_settings(self.rollout, stops, n, own, limit))
            for own in prompt_seeds(seed, len(prompts), indices)
        ]
        requests = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], settings, use_tqdm=False
        )
        outputs = [output for request in requests for output in request.outputs]
        return assemble(
            [prompt for prompt in prompts for _ in range(n)],
            [list(output.token_ids) for output in outputs],
            [output.finish_reason == "stop" for output in outputs],
            [
                [spot[token].logprob for token, spot in zip(o.token_ids, o.logprobs, strict=True)]
                for o in outputs
            ],
            self.tokenizer,
            pad_id=self.vocabulary.pad_id,
            vocabulary=self.vocabulary.size,
            device=self.device,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Hands all weights to vLLM and forgets the cached prompts."""
        self.llm.collective_rpc("receive_weights", args=(list(weights),))
        self.llm.reset_prefix_cache()

    def close(self) -> None:
        """Frees the engine."""
        self.llm.llm_engine.engine_core.shutdown()
