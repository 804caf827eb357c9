"""A model's pass over a micro-batch, in which rows with the same prompt read it once.

A pass that shares prompts has two halves. The first reads all but the last token of each distinct
prompt and keeps keys and values, with their gradients. The second reads the last prompt token and
the response of every row behind them, so that it has one output for each response token:

    [G, P - 1] prompts -> cache of G rows -> cache of b rows -> [b, R] last token and response

`prompt_sharing` finds out whether a model can be run like that.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from oneshot import ops
from oneshot.integrations.fused_head import is_fused
from oneshot.rlvr.algorithm.microbatch import MicroBatch, SharedPrompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def response_logits(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Logits [b, R, V] that predict the response tokens; the head never sees the prompt."""
    if batch.prompts is not None:
        second, first = shared_pass(model, batch, {"logits_to_keep": 1})
        return cast(Tensor, _Together.apply(second.logits, first))
    return cast(Tensor, plain_pass(model, batch, logits_to_keep=_predicting(batch)).logits)


def response_statistics(
    model: PreTrainedModel, batch: MicroBatch, mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropy [b, R] of the response tokens where `mask` [b, R] is True.

    A model with a fused head never holds the logits, and leaves masked tokens out of their product.
    """
    if not is_fused(model):
        return ops.token_logprobs_and_entropy(
            response_logits(model, batch),
            batch.response_ids,
            temperature=temperature,
            mask=mask,
            inplace_backward=True,
        )
    head = {"targets": batch.response_ids, "temperature": temperature, "mask": mask}
    if batch.prompts is not None:
        second, first = shared_pass(model, batch, {"logits_to_keep": 1}, head)
        return _Together.apply(second.logprobs, first), second.entropy
    result = plain_pass(model, batch, logits_to_keep=_predicting(batch), **head)
    return result.logprobs, result.entropy


def response_values(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Values [b, R] before each response token of a token classifier, float32."""
    if batch.prompts is not None:
        second, first = shared_pass(model, batch)
        return cast(Tensor, _Together.apply(second.logits, first)[..., 0].float())
    values: Tensor = plain_pass(model, batch).logits[:, _predicting(batch), 0]
    return values.float()


def plain_pass(model: Any, batch: MicroBatch, **options: Any) -> Any:
    """The outputs of the model for every token of every row."""
    return model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        **options,
    )


def shared_pass(
    model: Any,
    batch: MicroBatch,
    prompt_options: Mapping[str, Any] = MappingProxyType({}),
    response_options: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Any, Tensor]:
    """The two halves of a pass that reads each distinct prompt once.

    Args:
        model: A causal model, or its trunk.
        batch: With `prompts`.
        prompt_options: Further arguments of the first half.
        response_options: Further arguments of the second half.

    Returns:
        The outputs of the second half, whose position t predicts response token t; and what the
        first half returned first, for `_Together`.
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
        **response_options,
    )
    return second, first[0]


def _predicting(batch: MicroBatch) -> Tensor:
    """Positions [R] of a row whose outputs predict the response: position t predicts token t + 1.

    As indices, not as a count, they make the buffer of the logits exactly [b, R, V], so that the
    backward op may write the gradient into it.
    """
    length, width = batch.response_ids.shape[1], batch.input_ids.shape[1]
    return torch.arange(width - length - 1, width - 1, device=batch.input_ids.device)


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
    """An output of the second half, whose gradient sends zeros into the output of the first half.

    FSDP gathers the weights of a layer when a gradient reaches the layer's output. The last layer
    of the first half would otherwise receive gradients for its keys and values alone.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, second: Tensor, first: Tensor) -> Tensor:
        ctx.like = first.detach()[:, :0], first.shape  # type: ignore[attr-defined]
        return second.view_as(second)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        like, shape = ctx.like
        return gradient, like.new_zeros(shape)
