"""Splits a rollout into micro-batches that fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oneshot.rlvr.algorithm_config import AlgorithmConfig
from oneshot.rlvr.rollout.engine import Rollout, token_positions
from oneshot.training.distributed import Processes


@dataclass(frozen=True)
class SharedPrompts:
    """The G distinct prompts of a micro-batch.

    Attributes:
        first: [G] int64, the first row of the micro-batch with each prompt.
        of_row: [b] int64, the number of each row's prompt.
    """

    first: Tensor
    of_row: Tensor


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
        prompts: The distinct prompts, where a pass reads each of them once; None where it reads
            every row whole.
    """

    rows: Tensor
    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    response_ids: Tensor
    response_mask: Tensor
    prompts: SharedPrompts | None = None


def plan(
    lengths: Sequence[tuple[int, int]], max_tokens: int, prompts: Sequence[int] | None = None
) -> list[list[int]]:
    """Groups rows of similar length so that no group has more than `max_tokens` padded tokens.

    Args:
        lengths: Prompt and response length of each row.
        max_tokens: Limit of prompts * longest prompt + rows * longest response; a row that alone is
            longer makes a group of its own.
        prompts: Number of the prompt of each row, where equal prompts are read once. By default
            every row has a prompt of its own.

    Returns:
        Groups of row numbers, each row in exactly one; rows of one prompt are neighbours.
    """
    if prompts is None:
        prompts = range(len(lengths))
    longest: dict[int, int] = {}
    first: dict[int, int] = {}
    for i, prompt in enumerate(prompts):
        longest[prompt] = max(longest.get(prompt, 0), sum(lengths[i]))
        first.setdefault(prompt, i)

    def key(i: int) -> tuple[int, int, int, int]:
        prompt = prompts[i]
        return -longest[prompt], first[prompt], -lengths[i][1], i

    groups: list[list[int]] = []
    width, distinct = (0, 0), 0
    for i in sorted(range(len(lengths)), key=key):
        wider = (max(width[0], lengths[i][0]), max(width[1], lengths[i][1]))
        if groups:
            count = distinct + (prompts[i] != prompts[groups[-1][-1]])
            if count * wider[0] + (len(groups[-1]) + 1) * wider[1] <= max_tokens:
                groups[-1].append(i)
                width, distinct = wider, count
                continue
        groups.append([i])
        width, distinct = lengths[i], 1
    return groups


def split(
    rollout: Rollout,
    rows: Sequence[int],
    max_tokens: int,
    *,
    share_prompts: bool = False,
    uniform: bool = False,
) -> list[MicroBatch]:
    """Micro-batches of the given rows of a rollout.

    Args:
        rollout: N responses.
        rows: Which of them.
        max_tokens: Padded tokens of one micro-batch; a prompt that is shared counts once.
        share_prompts: Whether a pass reads a prompt once for all rows of the micro-batch that have
            it. A prompt of one token, or one for each row, leaves nothing to share.
        uniform: Share in every micro-batch alike, so that every process runs the same passes.
    """
    lengths = rollout.prompt_mask.sum(1).tolist()
    responses = rollout.response_mask.sum(1).tolist()
    sizes = [(lengths[i], responses[i]) for i in rows]
    numbers: list[int] | None = None
    if share_prompts:
        padded = torch.where(rollout.prompt_mask, rollout.prompt_ids, -1)[list(rows)]
        numbers = torch.unique(padded, dim=0, return_inverse=True)[1].tolist()
    batches = []
    for group in plan(sizes, max_tokens, numbers):
        prompt = max(sizes[i][0] for i in group)
        response = max(sizes[i][1] for i in group)
        prompts = None
        if numbers is not None and prompt > 1:
            of_group = [numbers[i] for i in group]
            distinct = list(dict.fromkeys(of_group))
            if uniform or len(distinct) < len(group):
                prompts = SharedPrompts(
                    torch.tensor([of_group.index(k) for k in distinct]),
                    torch.tensor([distinct.index(k) for k in of_group]),
                )
        batches.append(_micro_batch(rollout, [rows[i] for i in group], prompt, response, prompts))
    return batches


def update_batches(
    rollout: Rollout, algorithm: AlgorithmConfig, processes: Processes, *, share_prompts: bool
) -> list[list[MicroBatch]]:
    """The micro-batches of each optimizer step on a rollout, every row in exactly one of them.

    Log-probs and values from before the first step come from these very micro-batches, too: in
    bfloat16 a row's numbers depend on the rows beside it, and GSPO clips at differences of 3e-4.
    """
    size = len(rollout) // algorithm.updates_per_rollout
    return [
        split(
            rollout,
            list(range(begin, begin + size)),
            algorithm.microbatch_tokens,
            share_prompts=share_prompts,
            uniform=processes.size > 1,
        )
        for begin in range(0, len(rollout), size)
    ]


def _micro_batch(
    rollout: Rollout,
    rows: Sequence[int],
    prompt: int,
    response: int,
    prompts: SharedPrompts | None,
) -> MicroBatch:
    device = rollout.prompt_ids.device
    index = torch.tensor(rows, device=device)
    if prompts is not None:
        prompts = SharedPrompts(prompts.first.to(device), prompts.of_row.to(device))
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
        prompts=prompts,
    )


def loss_weights(
    masks: Sequence[Tensor], aggregate: str, processes: Processes | None = None
) -> list[float]:
    """Share of each micro-batch in the loss of the whole update, over all processes.

    With the shares of its aggregate, the sum over micro-batches is what the whole update in one
    micro-batch would give.

    Args:
        masks: [b, R] bool of each micro-batch: the tokens that count.
        aggregate: "token-mean": by tokens; "token-sum": 1 each; "sequences": by rows; any other: by
            the rows that have a token that counts.
        processes: Those that share the update; by default this one alone.

    Returns:
        Numbers that sum to 1 over the processes, but for "token-sum"; zeros when nothing counts at
        all.
    """
    if aggregate == "token-sum":
        return [1.0] * len(masks)
    if aggregate == "token-mean":
        sizes = torch.stack([mask.sum() for mask in masks]).tolist()
    elif aggregate == "sequences":
        sizes = [len(mask) for mask in masks]
    else:
        sizes = torch.stack([mask.any(1).sum() for mask in masks]).tolist()
    total = sum(sizes) if processes is None else processes.sums([sum(sizes)])[0]
    return [size / max(1, total) for size in sizes]
