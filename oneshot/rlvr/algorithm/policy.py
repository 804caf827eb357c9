"""Loads the policy, the reference and models to evaluate, and shards them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from oneshot import models
from oneshot.rlvr.config import ModelConfig
from oneshot.rlvr.rollout.engine import embedding_count
from oneshot.training.distributed import Processes, resolve_device, shard

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_policy(
    config: ModelConfig,
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sampling: bool = False,
) -> PreTrainedModel:
    """The model of `source` on the configured device, without dropout.

    Args:
        config: Device and type of the weights.
        source: Of the weights.
        tokenizer: It must fit. Added tokens beyond the embeddings are accepted (Gemma 3 has one for
            images); a prompt that uses one is refused when prompts are checked.
        sampling: The model only samples: the weights have the type of the computation.

    Raises:
        ValueError: The tokenizer's own vocabulary is larger than the model's embeddings.
    """
    dtype = config.sampling_dtype if sampling else config.weights_dtype
    model = models.load_model(str(source), dtype=dtype)
    size, added = embedding_count(model), tokenizer.added_tokens_decoder
    if any(token >= size and token not in added for token in tokenizer.get_vocab().values()):
        raise ValueError(
            f"the tokenizer of {config.source!r} has {len(tokenizer)} tokens, but the model "
            f"{str(source)!r} has embeddings for {size}: they do not belong together"
        )
    module: torch.nn.Module = model  # transformers' own annotation of `to` is that of a decorator
    module.to(resolve_device(config.device)).eval()
    return model


def distribute(model: PreTrainedModel, config: ModelConfig, processes: Processes) -> None:
    """Shards a loaded model over the processes and sets the type of its computation.

    Mixed precision is FSDP2's on several processes (bfloat16 parameters gathered from float32
    shards, gradients summed in float32) and autocast on one.
    """
    device, mixed = resolve_device(config.device), config.dtype == "mixed"
    if processes.size > 1:
        shard(model, device, processes, mixed)
    elif mixed:
        autocast = torch.autocast(torch.device(device).type, torch.bfloat16)
        model.forward = autocast(model.forward)
