"""Loading the model to train, the reference and a model to evaluate: one way for all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from oneshot import models
from oneshot.rlvr.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_policy(
    config: ModelConfig, source: str | Path, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The model of `source` on the configured device, without dropout.

    Raises:
        ValueError: The tokenizer has more tokens than the model has embeddings.
    """
    model = models.load_model(str(source), dtype=config.dtype)
    embeddings = cast(torch.nn.Embedding, model.get_input_embeddings())
    size = embeddings.num_embeddings
    if len(tokenizer) > size:
        raise ValueError(
            f"the tokenizer of {config.source!r} has {len(tokenizer)} tokens, but the model "
            f"{str(source)!r} has embeddings for {size}: they do not belong together"
        )
    module: torch.nn.Module = model  # transformers' own annotation of `to` is that of a decorator
    module.to(resolve_device(config.device)).eval()
    return model


def resolve_device(device: str) -> str:
    """A torch device; "auto" is the first GPU if there is one, else the CPU."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
