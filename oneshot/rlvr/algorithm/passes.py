"""A model's pass over a micro-batch, in which rows with the same prompt read it once.

A pass that shares prompts has two halves. The first reads all but the last token of each distinct
prompt and keeps keys and values, with their gradients. The second reads the last prompt token and
the response of every row behind them, so that it has one output for each response token:

    [G, P - 1] prompts -> cache of G rows -> cache of b rows -> [b, R] last token and response

`prompt_sharing` finds out whether a model can be run like that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from oneshot.rlvr.algorithm.microbatch import MicroBatch, SharedPrompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def response_logits(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Logits [b, R, V] that predict the response tokens; the head never sees the prompt."""
    if batch.prompts is not None:
        return shared_pass(model, batch, "logits", logits_to_keep=1)
    length, width = batch.response_ids.shape[1], batch.input_ids.shape[1]
    # Position t predicts token t + 1. Indices, not a count: the buffer is exactly [b, R, V], so
    # the backward op may write the gradient into it.
    keep = torch.arange(width - length - 1, width - 1, device=batch.input_ids.device)
    return plain_pass(model, batch, "logits", logits_to_keep=keep)


def response_values(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Values [b, R] before each response token of a token classifier, float32."""
    if batch.prompts is not None:
        return shared_pass(model, batch, "logits")[..., 0].float()
    length, width = batch.response_ids.shape[1], batch.input_ids.shape[1]
    return plain_pass(model, batch, "logits")[:, width - length - 1 : width - 1, 0].float()


def plain_pass(model: torch.nn.Module, batch: MicroBatch, output: str, **options: Any) -> Tensor:
    """An output of the model for every token of every row."""
    outputs = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        **options,
    )
    return cast(Tensor, outputs[output])


def shared_pass(model: Any, batch: MicroBatch, output: str, **prompt_options: Any) -> Tensor:
    """An output of the model, [b, R, ...], where position t predicts response token t.

    Args:
        model: A causal model, or its trunk.
        batch: With `prompts`.
        output: Name of the output.
        prompt_options: Arguments of the first half alone.
    """
    from transformers import DynamicCache

    prompts, mask = batch.prompts, batch.attention_mask
    assert prompts is not None
    # The last prompt token is read with the response: its output predicts the first token.
    width = batch.input_ids.shape[1] - batch.response_ids.shape[1] - 1
    cache = DynamicCache(config=model.config)
    first = model(
        input_ids=batch.input_ids[prompts.first, :width],
        attention_mask=None if mask is None else mask[prompts.first, :width],
        position_ids=batch.position_ids[prompts.first, :width],
        past_key_values=cache,
        use_cache=True,
        **prompt_options,
    )
    _copy_to_rows(cache, prompts)
    second = model(
        input_ids=batch.input_ids[:, width:-1],
        attention_mask=None if mask is None else mask[:, :-1],
        position_ids=batch.position_ids[:, width:-1],
        past_key_values=cache,
        use_cache=True,
    )
    return cast(Tensor, _Together.apply(second[output], first[output]))


def _copy_to_rows(cache: Any, prompts: SharedPrompts) -> None:
    """Gives every row the keys and values of its prompt; one prompt for all rows is not copied."""
    from transformers.cache_utils import DynamicLayer

    plain = all(type(layer) is DynamicLayer for layer in cache.layers)
    if len(prompts.first) > 1 or not plain:
        cache.reorder_cache(prompts.of_row)
        return
    for layer in cache.layers:
        if layer.get_seq_length() > 0:
            layer.keys = layer.keys.expand(len(prompts.of_row), -1, -1, -1)
            layer.values = layer.values.expand(len(prompts.of_row), -1, -1, -1)


class _Together(torch.autograd.Function):
    """The second half's output, behind which the first half's receives a gradient of zeros.

    FSDP gathers the weights of a layer when a gradient reaches the layer's output. The last layer
    of the first half has gradients for its keys and values alone.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, output: Tensor, other: Tensor) -> Tensor:
        ctx.like = other.detach()[:, :0], other.shape  # type: ignore[attr-defined]
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        like, shape = ctx.like
        return gradient, like.new_zeros(shape)
