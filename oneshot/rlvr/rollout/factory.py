"""The rollout engine that a config names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oneshot import models
from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.rollout.engine import RolloutEngine, embedding_count, stop_ids
from oneshot.rlvr.rollout.transformers_engine import TransformersEngine
from oneshot.training.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def make_engine(
    config: TrainConfig,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    copy: bool = False,
) -> RolloutEngine:
    """The engine that samples from the policy as the config says.

    Args:
        config: Of the run.
        policy: The policy, or this process's whole copy of a sharded one.
        tokenizer: For texts and special tokens.
        copy: It is a copy; then the engine reports log-probs, so that it can be checked.
    """
    rollout = config.rollout
    if rollout.engine == "transformers":
        return TransformersEngine(
            policy,
            tokenizer,
            temperature=rollout.temperature,
            max_new_tokens=rollout.max_new_tokens,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            max_sequences=rollout.max_sequences,
            stop_tokens=rollout.stop_tokens,
            report_logprobs=copy or config.algorithm.correction.level != "none",
        )
    from oneshot.rlvr.rollout.vllm_engine import VllmEngine
    from oneshot.rlvr.rollout.vllm_server import VllmServerEngine
    from oneshot.rlvr.rollout.vllm_settings import Vocabulary

    stops = stop_ids(policy, tokenizer, rollout.stop_tokens)
    pad = tokenizer.pad_token_id
    vocabulary = Vocabulary(stops, stops[0] if pad is None else pad, embedding_count(policy))
    device = str(policy.device)
    if rollout.engine == "vllm_server":
        return VllmServerEngine(tokenizer, vocabulary, rollout, device=device)
    return VllmEngine(
        str(models.resolve(config.model.source)),
        tokenizer,
        vocabulary,
        config.model,
        rollout,
        seed=derive_seed(config.run.seed, "vllm"),
        device=device,
    )
