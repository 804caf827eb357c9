"""Triton kernels of the `advantage` family: group advantages, GAE, whitening. Sums are float64."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from oneshot.triton_kernels._launch import ceil_div, single

ROWS = tl.constexpr(64)  # rows of a program that walks their groups
BLOCK = tl.constexpr(1024)


# ---- group_advantages


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


# ---- gae


@triton.jit
def _compose(slope_later, shift_later, slope, shift):
    """Of two affine maps, met from the end of the sequence: first the later one."""
    return slope * slope_later, slope * shift_later + shift


@triton.jit
def _nearest(valid_later, value_later, valid, value):
    """The value of the nearest valid step, met from the end."""
    return valid | valid_later, tl.where(valid != 0, value, value_later)


@triton.jit(
    do_not_specialize=["steps", "total", "reward_stride", "value_stride", "bootstrap_stride"]
)
def _gae_kernel(
    rewards, reward_stride, values, value_stride, mask, bootstrap, bootstrap_stride, cu_seqlens,
    advantages, returns, steps, total, gamma, gamma_lam,
    PACKED: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BOOTSTRAP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One sequence, block after block from its end; a block is two reverse scans.

    A masked step hands V_next and A_next on: it is no valid value, and the map x -> 1 x + 0.
    """
    b = tl.program_id(0).to(tl.int64)
    first = b * 0
    length = first + steps
    bad = length < 0
    if PACKED:
        first = tl.load(cu_seqlens + b)
        end = tl.load(cu_seqlens + b + 1)
        bad = (first < 0) | (end < first) | (end > total)
        length = tl.where(bad, 0, end - first)
    next_value = tl.zeros([], tl.float32)
    if HAS_BOOTSTRAP:
        next_value += tl.load(bootstrap + b * bootstrap_stride)
    advantage = tl.zeros([], tl.float32)
    lanes = tl.arange(0, BLOCK)
    blocks = (length + BLOCK - 1) // BLOCK
    for i in range(0, blocks):
        at = (blocks - 1 - i) * BLOCK + lanes
        inside = at < length
        dense = b * steps + first + at
        kept = inside
        after = at + 1 < length
        if HAS_MASK:
            kept = tl.load(mask + dense, mask=inside, other=0) != 0
            after = tl.load(mask + dense + 1, mask=after, other=0) != 0
        # The next block's first step is taken by the carry, so only this block's own are scanned.
        after = after & (lanes + 1 < BLOCK)
        reward = tl.load(rewards + b * reward_stride + first + at, mask=kept, other=0.0)
        value = tl.load(values + b * value_stride + first + at, mask=kept, other=0.0)
        later = tl.load(values + b * value_stride + first + at + 1, mask=after, other=0.0)
        found, nearest = tl.associative_scan((after.to(tl.int32), later), 0, _nearest, reverse=True)
        nearest = tl.where(found != 0, nearest, next_value)
        shift = tl.where(kept, reward + gamma * nearest - value, 0.0)
        slope = tl.where(kept, gamma_lam, 1.0)
        slope, shift = tl.associative_scan((slope, shift), 0, _compose, reverse=True)
        result = slope * advantage + shift
        tl.store(advantages + dense, tl.where(kept, result, 0.0), mask=inside)
        tl.store(returns + dense, tl.where(kept, result + value, 0.0), mask=inside)
        advantage = tl.sum(tl.where(lanes == 0, result, 0.0), 0)
        found_here = tl.max(tl.where(kept, 1, 0), 0)
        leftmost = tl.min(tl.where(kept, lanes, BLOCK), 0)
        front = tl.sum(tl.where(lanes == leftmost, value, 0.0), 0)
        next_value = tl.where(found_here > 0, front, next_value)


def gae(rewards, values, mask, bootstrap, cu_seqlens, gamma, lam):
    """Launcher of the op; steps of no sequence, where cu_seqlens is absurd, are NaN."""
    packed = cu_seqlens is not None
    rewards = rewards if rewards.stride(-1) == 1 else rewards.contiguous()
    values = values if values.stride(-1) == 1 else values.contiguous()
    if packed:
        advantages = rewards.new_full(rewards.shape, float("nan"))
        returns = rewards.new_full(rewards.shape, float("nan"))
    else:
        advantages, returns = rewards.new_empty(rewards.shape), rewards.new_empty(rewards.shape)
    sequences = cu_seqlens.shape[0] - 1 if packed else rewards.shape[0]
    if sequences and rewards.numel():
        _gae_kernel[(sequences,)](
            rewards, 0 if packed else rewards.stride(0), values,
            0 if packed else values.stride(0), rewards if mask is None else mask.contiguous(),
            rewards if bootstrap is None else bootstrap,
            0 if bootstrap is None else bootstrap.stride(0),
            cu_seqlens.contiguous() if packed else rewards, advantages, returns,
            0 if packed else rewards.shape[1], rewards.numel(), single(gamma),
            single(gamma * lam), PACKED=packed, HAS_MASK=mask is not None,
            HAS_BOOTSTRAP=bootstrap is not None, BLOCK=512,
        )  # fmt: skip
    return advantages, returns


# ---- whiten


@triton.jit(do_not_specialize=["count"])
def _moments_kernel(values, mask, parts, count, HAS_MASK: tl.constexpr):
    """Of each block: how many values count, their mean, and their squared deviations from it."""
    program = tl.program_id(0).to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    used = at < count
    if HAS_MASK:
        used = tl.load(mask + at, mask=used, other=0) != 0
    value = tl.load(values + at, mask=used, other=0.0).to(tl.float64)
    present = tl.sum(tl.where(used, 1.0, 0.0).to(tl.float64), 0)
    mean = tl.sum(value, 0) / tl.where(present == 0.0, 1.0, present)
    deviation = tl.where(used, value - mean, 0.0)
    tl.store(parts + program * 3, present)
    tl.store(parts + program * 3 + 1, mean)
    tl.store(parts + program * 3 + 2, tl.sum(deviation * deviation, 0))


@triton.jit(do_not_specialize=["blocks"])
def _combine_kernel(parts, result, blocks, eps):
    """[2]: mean and scale of all values, from the moments of the blocks (Chan et al. 1979)."""
    lanes = tl.arange(0, BLOCK)
    present = tl.zeros([], tl.float64)
    total = tl.zeros([], tl.float64)
    squares = tl.zeros([], tl.float64)
    for start in range(0, blocks, BLOCK):
        here = start + lanes < blocks
        size = tl.load(parts + (start + lanes) * 3, mask=here, other=0.0)
        own = tl.load(parts + (start + lanes) * 3 + 1, mask=here, other=0.0)
        present += tl.sum(size, 0)
        total += tl.sum(size * own, 0)
    mean = total / tl.where(present == 0.0, 1.0, present)
    for start in range(0, blocks, BLOCK):
        here = start + lanes < blocks
        size = tl.load(parts + (start + lanes) * 3, mask=here, other=0.0)
        own = tl.load(parts + (start + lanes) * 3 + 1, mask=here, other=0.0)
        inner = tl.load(parts + (start + lanes) * 3 + 2, mask=here, other=0.0)
        squares += tl.sum(inner + size * (own - mean) * (own - mean), 0)
    variance = squares / tl.where(present < 2.0, 1.0, present - 1.0)
    tl.store(result, mean)
    tl.store(result + 1, 1.0 / tl.sqrt(variance + eps))


@triton.jit(do_not_specialize=["count"])
def _whiten_kernel(
    values, mask, result, out, count, HAS_MASK: tl.constexpr, SHIFT_MEAN: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    used = inside
    if HAS_MASK:
        used = tl.load(mask + at, mask=inside, other=0) != 0
    mean = tl.load(result)
    value = tl.load(values + at, mask=used, other=0.0).to(tl.float64)
    scaled = (value - mean) * tl.load(result + 1)
    if not SHIFT_MEAN:
        scaled += mean
    tl.store(out + at, tl.where(used, scaled, 0.0).to(tl.float32), mask=inside)


def whiten(values, mask, shift_mean, eps):
    """Launcher of the op."""
    values = values.contiguous()
    out = torch.empty_like(values)
    count = values.numel()
    if count == 0:
        return out
    mask_of = values if mask is None else mask.contiguous()
    blocks = ceil_div(count, BLOCK.value)
    parts = values.new_empty((blocks, 3), dtype=torch.float64)
    result = values.new_empty(2, dtype=torch.float64)
    _moments_kernel[(blocks,)](values, mask_of, parts, count, HAS_MASK=mask is not None)
    _combine_kernel[(1,)](parts, result, blocks, single(eps))
    _whiten_kernel[(blocks,)](
        values, mask_of, result, out, count, HAS_MASK=mask is not None, SHIFT_MEAN=shift_mean
    )
    return out
