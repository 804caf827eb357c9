"""Splits a rollout into micro-batches that fit in memory, and runs the model on one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oneshot.rlvr.rollout.engine import Rollout, token_positions
from oneshot.training.distributed import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a rollout, without the columns that none of them uses.

    Attributes:
        rows: [b] int64, rows of the rollout.
        input_ids: [b, P + R] prompt and response.
        attention_mask: [b, P + R] bool, or None when no prompt is padded: padding behind a
            response cannot be seen by what comes before it.
        position_ids: [b, P + R].
        response_ids: [b, R].
        response_mask: [b, R] bool.
    """

    rows: Tensor
    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    response_ids: Tensor
    response_mask: Tensor


def plan(lengths: Sequence[tuple[int, int]], max_tokens: int) -> list[list[int]]:
    """Groups rows of similar length so that no group has more than `max_tokens` padded tokens.

    Args:
        lengths: Prompt and response length of each row.
        max_tokens: Limit of rows * (longest prompt + longest response); a row that alone is longer
            makes a group of its own.

    Returns:
        Groups of row numbers, each row in exactly one.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-sum(lengths[i]), i))
    groups: list[list[int]] = []
    width = (0, 0)
    for i in order:
        prompt, response = lengths[i]
        wider = (max(width[0], prompt), max(width[1], response))
        if groups and (len(groups[-1]) + 1) * sum(wider) <= max_tokens:
            groups[-1].append(i)
            width = wider
        else:
            groups.append([i])
            width = (prompt, response)
    return groups


def split(rollout: Rollout, rows: Sequence[int], max_tokens: int) -> list[MicroBatch]:
    """Micro-batches of the given rows of a rollout, of at most `max_tokens` padded tokens each."""
    prompts = rollout.prompt_mask.sum(1).tolist()
    responses = rollout.response_mask.sum(1).tolist()
    groups = plan([(prompts[i], responses[i]) for i in rows], max_tokens)
    batches = []
    for group in groups:
        chosen = [rows[i] for i in group]
        prompt = max(prompts[i] for i in chosen)
        response = max(responses[i] for i in chosen)
        batches.append(_micro_batch(rollout, chosen, prompt, response))
    return batches


def update_batches(rollout: Rollout, updates: int, max_tokens: int) -> list[list[MicroBatch]]:
    """The micro-batches of each optimizer step on a rollout, every row in exactly one of them.

    Log-probs and values from before the first step come from these very micro-batches, too: in
    bfloat16 a row's numbers depend on the rows beside it, and GSPO clips at differences of 3e-4.
    """
    size = len(rollout) // updates
    begins = range(0, len(rollout), size)
    return [split(rollout, list(range(begin, begin + size)), max_tokens) for begin in begins]


def _micro_batch(rollout: Rollout, rows: Sequence[int], prompt: int, response: int) -> MicroBatch:
    index = torch.tensor(rows, device=rollout.prompt_ids.device)
    begin = rollout.prompt_ids.shape[1] - prompt
    prompt_mask = rollout.prompt_mask[index, begin:]
    response_ids = rollout.response_ids[index, :response]
    response_mask = rollout.response_mask[index, :response]
    mask = torch.cat([prompt_mask, torch.ones_like(response_mask)], 1)
    return MicroBatch(
        rows=index,
        input_ids=torch.cat([rollout.prompt_ids[index, begin:], response_ids], 1),
        attention_mask=None if bool(prompt_mask.all()) else mask,
        position_ids=token_positions(mask),
        response_ids=response_ids,
        response_mask=response_mask,
    )


def response_logits(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Logits [b, R, V] that predict the response tokens; the head never sees the prompt."""
    length = batch.response_ids.shape[1]
    width = batch.input_ids.shape[1]
    # Position t predicts token t + 1. Indices, not a count: the buffer is exactly [b, R, V], so
    # the backward op may write the gradient into it.
    keep = torch.arange(width - length - 1, width - 1, device=batch.input_ids.device)
    output = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=keep,
    )
    logits: Tensor = output.logits
    return logits


def loss_weights(
    masks: Sequence[Tensor], aggregate: str, processes: Processes | None = None
) -> list[float]:
    """Share of each micro-batch in the loss of the whole update, over all processes.

    With the shares of its aggregate, the sum over micro-batches is what the whole update in one
    micro-batch would give.

    Args:
        masks: [b, R] bool of each micro-batch: the tokens that count.
        aggregate: "token-mean": by tokens; "sequences": by rows; any other: by the rows that have
            a token that counts.
        processes: Those that share the update; by default this one alone.

    Returns:
        Numbers that sum to 1 over the processes; zeros when nothing counts at all.
    """
    if aggregate == "token-mean":
        sizes = torch.stack([mask.sum() for mask in masks]).tolist()
    elif aggregate == "sequences":
        sizes = [len(mask) for mask in masks]
    else:
        sizes = torch.stack([mask.any(1).sum() for mask in masks]).tolist()
    total = sum(sizes) if processes is None else processes.sums([sum(sizes)])[0]
    return [size / max(1, total) for size in sizes]
