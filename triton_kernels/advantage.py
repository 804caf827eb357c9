"""Triton kernels of the `advantage` family: group advantages. Sums are float64."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from oneshot.triton_kernels._launch import ceil_div, single
from oneshot.triton_kernels.advantage_gae import gae
from oneshot.triton_kernels.advantage_whiten import whiten

__all__ = ["gae", "group_advantages", "whiten"]

ROWS = tl.constexpr(64)  # rows of a program that walks their groups
BLOCK = tl.constexpr(1024)


@triton.jit(do_not_specialize=["steps", "stride"])
def _scores_kernel(rewards, stride, mask, scores, lengths, steps):
    """Of each row: the sum of its unmasked rewards, and how many there are."""
    row = tl.program_id(0).to(tl.int64)
    score = tl.zeros([], tl.float64)
    length = tl.zeros([], tl.float64)
    for start in range(0, steps, BLOCK):
        at = start + tl.arange(0, BLOCK)
        used = tl.load(mask + row * steps + at, mask=at < steps, other=0) != 0
        reward = tl.load(rewards + row * stride + at, mask=used, other=0.0)
        score += tl.sum(reward.to(tl.float64), 0)
        length += tl.sum(tl.where(used, 1.0, 0.0).to(tl.float64), 0)
    tl.store(scores + row, score)
    tl.store(lengths + row, length)


@triton.jit
def _member(scores, lengths, order, at, valid, IGNORE_NAN: tl.constexpr, HAS_ORDER: tl.constexpr):
    """Score, length and presence (0 or 1) of the members that stand at these places."""
    row = at
    if HAS_ORDER:
        row = tl.load(order + at, mask=valid, other=0)
    score = tl.load(scores + row, mask=valid, other=0.0).to(tl.float64)
    length = tl.load(lengths + row, mask=valid, other=0.0).to(tl.float64)
    present = tl.where(valid, 1.0, 0.0).to(tl.float64)
    if IGNORE_NAN:
        missing = score != score
        present = tl.where(missing, 0.0, present)
        length = tl.where(missing, 0.0, length)
        score = tl.where(missing, 0.0, score)
    return score, length, present


@triton.jit(do_not_specialize=["count"])
def _batch_spread_kernel(scores, spread, count, ddof, IGNORE_NAN: tl.constexpr):
    """[2]: standard deviation of all scores, and how many there are; two passes."""
    total = tl.zeros([], tl.float64)
    present = tl.zeros([], tl.float64)
    squares = tl.zeros([], tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        score, length, here = _member(scores, scores, scores, at, at < count, IGNORE_NAN, False)
        total += tl.sum(score, 0)
        present += tl.sum(here, 0)
    mean = total / present
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        score, length, here = _member(scores, scores, scores, at, at < count, IGNORE_NAN, False)
        deviation = tl.where(here > 0.0, score - mean, 0.0)
        squares += tl.sum(deviation * deviation, 0)
    tl.store(spread, tl.sqrt(squares / (present - ddof)))
    tl.store(spread + 1, present)


@triton.jit(do_not_specialize=["count", "group_size"])
def _group_kernel(
    scores, lengths, order, begins, ends, spread, out, count, group_size, ddof, eps,
    HAS_ORDER: tl.constexpr, BASELINE: tl.constexpr, SCALE: tl.constexpr,
    RAW_SINGLETON: tl.constexpr, IGNORE_NAN: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """Each row walks its group twice: sums, then squared deviations from the mean.

    BASELINE 0 mean, 1 leave-one-out, 2 none, 3 by length; SCALE 0 group, 1 batch, 2 none.
    """
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = place < count
    if FIXED:
        begin = place // group_size * group_size
        end = begin + group_size
    else:
        begin = tl.load(begins + place, mask=here, other=0)
        end = tl.load(ends + place, mask=here, other=0)
    known = (begin >= 0) & (begin <= place) & (place < end) & (end <= count) & here
    longest = tl.max(tl.where(known, end - begin, 0), 0)
    total = tl.zeros([ROWS], tl.float64)
    size = tl.zeros([ROWS], tl.float64)
    weight = tl.zeros([ROWS], tl.float64)
    weighted = tl.zeros([ROWS], tl.float64)
    for j in range(0, longest):
        valid = known & (begin + j < end)
        score, length, present = _member(
            scores, lengths, order, begin + j, valid, IGNORE_NAN, HAS_ORDER
        )
        total += score
        size += present
        weight += length
        weighted += length * score
    mean = total / size
    squares = tl.zeros([ROWS], tl.float64)
    for j in range(0, longest):
        valid = known & (begin + j < end)
        score, length, present = _member(
            scores, lengths, order, begin + j, valid, IGNORE_NAN, HAS_ORDER
        )
        deviation = tl.where(present > 0.0, score - mean, 0.0)
        squares += deviation * deviation
    score, length, present = _member(scores, lengths, order, place, known, IGNORE_NAN, HAS_ORDER)
    alone = size == 1.0
    centered = score - mean
    if BASELINE == 1:
        centered = centered * size / (size - 1.0)
    elif BASELINE == 2:
        centered = score
    elif BASELINE == 3:
        centered = score - weighted / weight
    if RAW_SINGLETON:
        centered = tl.where(alone, score, centered)
    else:
        centered = tl.where(alone, score - mean, centered)
    if SCALE == 0:
        deviation = tl.sqrt(squares / (size - ddof))
        centered = centered / (tl.where(alone, 1.0, deviation) + eps)
    elif SCALE == 1:
        deviation = tl.where(tl.load(spread + 1) == 1.0, 1.0, tl.load(spread))
        centered = centered / (deviation + eps)
    value = tl.where(known, tl.where(present > 0.0, centered, 0.0), float("nan"))
    row = place
    if HAS_ORDER:
        row = tl.load(order + place, mask=here, other=0)
    tl.store(out + row, value.to(tl.float32), mask=here)


@triton.jit(do_not_specialize=["steps"])
def _spread_kernel(advantages, mask, out, steps):
    """The advantage of a row in each of its unmasked places."""
    row = tl.program_id(0).to(tl.int64)
    value = tl.load(advantages + row)
    for start in range(0, steps, BLOCK):
        at = start + tl.arange(0, BLOCK)
        used = tl.load(mask + row * steps + at, mask=at < steps, other=0) != 0
        tl.store(out + row * steps + at, tl.where(used, value, 0.0), mask=at < steps)


def _places(group_ids, group_sizes, rows):
    """Order of the rows group by group, and of each place the begin and end of its group."""
    if group_ids is not None:
        ordered, order = torch.sort(group_ids, stable=True)
        begins = torch.searchsorted(ordered, ordered)
        return order, begins, torch.searchsorted(ordered, ordered, right=True)
    if group_sizes is None:
        return None, None, None
    ends = group_sizes.cumsum(0)
    place = torch.arange(rows, device=group_sizes.device)
    if ends.numel() == 0:
        nowhere = torch.full_like(place, -1)
        return None, nowhere, nowhere
    group = torch.searchsorted(ends, place, right=True).clamp(max=ends.numel() - 1)
    end = ends[group]
    # Sizes that do not sum to the rows belong to no grouping.
    fits = (ends[-1] == rows) & (group_sizes >= 0).all()
    return None, torch.where(fits, end - group_sizes[group], -1), end


def group_advantages(
    rewards, mask, lengths, group_size, group_ids, group_sizes, baseline, scale, ddof, eps,
    singleton, nan,
):  # fmt: skip
    """Launcher of the op; sizes that do not sum to the number of rows give NaN."""
    out = rewards.new_empty(rewards.shape)
    rows = rewards.shape[0]
    if out.numel() == 0:
        return out
    scores, counted, flat = rewards.contiguous(), rewards, out
    if mask is not None:
        mask = mask.contiguous()
        scores = rewards.new_empty(rows, dtype=torch.float64)
        counted = torch.empty_like(scores)
        flat = rewards.new_empty(rows)
        tokens = rewards if rewards.stride(1) == 1 else rewards.contiguous()
        _scores_kernel[(rows,)](
            tokens, tokens.stride(0), mask, scores, counted, rewards.shape[1]
        )  # fmt: skip
    elif lengths is None:
        counted = scores
    if lengths is not None:
        counted = lengths.contiguous()
    order, begins, ends = _places(group_ids, group_sizes, rows)
    spread = rewards.new_empty(2, dtype=torch.float64)
    ignore = nan == "ignore"
    if scale == "batch_std":
        _batch_spread_kernel[(1,)](scores, spread, rows, ddof, IGNORE_NAN=ignore)
    _group_kernel[(ceil_div(rows, ROWS.value),)](
        scores, counted, scores if order is None else order,
        scores if begins is None else begins, scores if ends is None else ends, spread, flat,
        rows, group_size, ddof, single(eps), HAS_ORDER=order is not None,
        BASELINE=("mean", "loo", "none", "opo").index(baseline),
        SCALE=("std", "batch_std", "none").index(scale), RAW_SINGLETON=singleton == "raw",
        IGNORE_NAN=ignore, FIXED=begins is None, num_warps=2,
    )  # fmt: skip
    if mask is not None:
        _spread_kernel[(rows,)](flat, mask, out, rewards.shape[1])
    return out
