"""Plain PyTorch definitions of the `advantage` family."""

from __future__ import annotations

from itertools import pairwise

import torch


def _group_of_each_row(
    count: int,
    group_size: int,
    group_ids: torch.Tensor | None,
    group_sizes: torch.Tensor | None,
    device: torch.device,
) -> tuple[torch.Tensor, int]:
    """Number of the group of each row, and how many groups there are."""
    if group_ids is not None:
        ids, index = torch.unique(group_ids, return_inverse=True)
        return index, ids.numel()
    if group_sizes is not None:
        if group_sizes.numel() and int(group_sizes.min()) < 0:
            raise ValueError(f"group_sizes must be >= 0, got {int(group_sizes.min())}")
        if int(group_sizes.sum()) != count:
            raise ValueError(
                f"group_sizes must sum to the number of rows {count}, got {int(group_sizes.sum())}"
            )
        numbers = torch.arange(group_sizes.numel(), device=device)
        return torch.repeat_interleave(numbers, group_sizes), group_sizes.numel()
    if count % group_size:
        raise ValueError(f"the number of rows {count} must be a multiple of groups={group_size}")
    return torch.arange(count, device=device) // group_size, count // group_size


def group_advantages(
    rewards: torch.Tensor,
    mask: torch.Tensor | None,
    lengths: torch.Tensor | None,
    group_size: int,
    group_ids: torch.Tensor | None,
    group_sizes: torch.Tensor | None,
    baseline: str,
    scale: str,
    ddof: int,
    eps: float,
    singleton: str,
    nan: str,
) -> torch.Tensor:
    """(score - baseline of its group) / (scale + eps); see `oneshot.ops.group_advantages`."""
    # One score a row. Select before computing: garbage in masked places must not meet arithmetic.
    scores = rewards.double()
    if mask is not None:
        scores = torch.where(mask, scores, 0).sum(dim=1)
    index, groups = _group_of_each_row(
        scores.numel(), group_size, group_ids, group_sizes, scores.device
    )

    def per_group(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(groups, dtype=x.dtype, device=x.device).index_add(0, index, x)[index]

    counted = ~scores.isnan() if nan == "ignore" else torch.ones_like(scores, dtype=torch.bool)
    kept = torch.where(counted, scores, 0)
    size = per_group(counted.double())  # of the group of each row
    mean = per_group(kept) / size
    alone = size == 1

    if baseline == "mean":
        centered = kept - mean
    elif baseline == "loo":
        # r - mean of the others = (r - mean) n / (n - 1)
        centered = (kept - mean) * size / (size - 1)
    elif baseline == "opo":
        weight = mask.sum(dim=1) if lengths is None and mask is not None else lengths
        assert weight is not None, "baseline='opo' needs lengths or mask"
        weight = torch.where(counted, weight.double(), 0)
        centered = kept - per_group(weight * kept) / per_group(weight)
    else:
        centered = kept
    centered = torch.where(alone, kept if singleton == "raw" else kept - mean, centered)

    if scale == "std":
        variance = per_group(torch.where(counted, kept - mean, 0).square()) / (size - ddof)
        centered = centered / (torch.where(alone, 1, variance.sqrt()) + eps)
    elif scale == "batch_std":
        count = counted.sum()
        deviation = torch.where(counted, kept - kept.sum() / count, 0)
        spread = (deviation.square().sum() / (count - ddof)).sqrt()
        centered = centered / (torch.where(count == 1, 1, spread) + eps)

    advantages = torch.where(counted, centered, 0)
    if mask is not None:
        advantages = torch.where(mask, advantages[:, None], 0)
    return advantages.to(rewards.dtype)


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    bootstrap: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    gamma: float,
    lam: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One reverse loop over the steps of all sequences; see `oneshot.ops.gae`."""
    if cu_seqlens is not None:
        return _gae_packed(rewards, values, mask, bootstrap, cu_seqlens, gamma, lam)
    keep = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    next_value = rewards.new_zeros(rewards.shape[0]) if bootstrap is None else bootstrap
    advantage = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        kept, value = keep[:, t], values[:, t]
        delta = rewards[:, t] + gamma * next_value - value
        # A masked step hands both on unchanged, whatever stands there.
        advantage = torch.where(kept, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(kept, value, next_value)
        advantages[:, t] = torch.where(kept, advantage, 0)
        returns[:, t] = torch.where(kept, advantage + value, 0)
    return advantages, returns


def _gae_packed(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    bootstrap: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    gamma: float,
    lam: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The padded definition on each segment [cu_seqlens[i], cu_seqlens[i + 1])."""
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != rewards.numel() or sorted(bounds) != bounds:
        raise ValueError(
            f"cu_seqlens must rise from 0 to the number of places {rewards.numel()}, got {bounds}"
        )
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for i, (begin, end) in enumerate(pairwise(bounds)):
        part = slice(begin, end)
        advantages[None, part], returns[None, part] = gae(
            rewards[None, part],
            values[None, part],
            None if mask is None else mask[None, part],
            None if bootstrap is None else bootstrap[i : i + 1],
            None,
            gamma,
            lam,
        )
    return advantages, returns


def whiten(
    values: torch.Tensor, mask: torch.Tensor | None, shift_mean: bool, eps: float
) -> torch.Tensor:
    """(values - mean) / sqrt(var + eps) over unmasked places, unbiased variance, 0 elsewhere."""
    keep = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    # Select before computing: garbage in masked places must not meet arithmetic.
    kept = torch.where(keep, values, 0).double()
    count = keep.sum()
    mean = kept.sum() / count.clamp(min=1)
    deviation = torch.where(keep, kept - mean, 0)
    variance = (deviation * deviation).sum() / (count - 1).clamp(min=1)
    scaled = deviation * torch.rsqrt(variance + eps)
    if not shift_mean:
        scaled = torch.where(keep, scaled + mean, 0)
    return scaled.to(values.dtype).contiguous()
