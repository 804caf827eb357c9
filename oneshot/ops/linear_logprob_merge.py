"""Statistics of a distribution whose tokens lie in parts: tiles of one weight, or ranks of a group.

A part has its own softmax. With w_r the probability of part r, log p = log p_r + log w_r, and
the entropy is sum_r w_r (H_r - log w_r): no difference of large numbers, so a nearly certain token
keeps its digits.
"""

from __future__ import annotations

import torch

# Columns of a statistic, [..., FIELDS + k]; the log-probabilities of k targets follow them.
HIGH = 0  # the largest logit m
TOTAL = 1  # sum exp((v - m) / T)
MEAN = 2  # mean of (v - m) / T under the softmax
ENTROPY = 3
SQUARES = 4  # sum p^2
LOGITS = 5  # sum of v
COUNT = 6  # tokens in that sum
TOP = 7  # id of the first token with the largest logit
FIELDS = 8

# Stands in the spare column of a tile, so that a tile of nothing but -inf has a maximum. A row
# whose maximum is this has no token at all.
FLOOR = -1e30


def merge(parts: torch.Tensor, temperature: float) -> torch.Tensor:
    """One statistic from those of all parts.

    Args:
        parts: float64 [parts, rows, FIELDS + k], in the order of the vocabulary. A target outside a
            part has log-probability -inf there.
        temperature: T, as the sums were made with.

    Returns:
        float64 [rows, FIELDS + k].
    """
    if len(parts) == 1:
        return parts[0]
    high, total, mean, entropy, squares, logits, count, top = parts[..., :FIELDS].unbind(-1)
    best, first = high.max(0)  # of equal maxima the first
    lift = (high - best) / temperature
    mass = total * lift.exp()
    whole = mass.sum(0)
    weight = mass / whole
    others = (1 - torch.eye(len(parts), dtype=mass.dtype, device=mass.device)) @ mass
    # Near 1 by what the others hold; a part whose mass underflows still has a logarithm.
    log_weight = torch.where(
        weight > 0.5, -torch.log1p(others / mass), lift + total.log() - whole.log()
    )

    def mixture(values: torch.Tensor) -> torch.Tensor:
        return torch.where(weight == 0, 0, weight * values).sum(0)

    logprobs = (parts[..., FIELDS:] + log_weight.unsqueeze(-1)).amax(0)
    fields = (
        best,
        whole,
        mixture(mean + lift),
        mixture(entropy - log_weight),
        mixture(weight * squares),
        logits.sum(0),
        count.sum(0),
        top.gather(0, first.unsqueeze(0)).squeeze(0),
    )
    return torch.cat((torch.stack(fields, -1), logprobs), -1)


def merge_over_ranks(part: torch.Tensor, temperature: float, group: str) -> torch.Tensor:
    """One statistic from those of all ranks of a group, in rank order: the same bits on each."""
    ranks = process_group(group)
    parts = part.new_empty((ranks.size(), *part.shape))
    torch.distributed.all_gather_into_tensor(parts.flatten(0, 1), part.contiguous(), group=ranks)
    return merge(parts, temperature)


def process_group(name: str) -> torch.distributed.ProcessGroup:
    """The group of this name; an op takes the name, because a schema knows no groups."""
    from torch.distributed.distributed_c10d import _resolve_process_group

    return _resolve_process_group(name)  # type: ignore[arg-type]
