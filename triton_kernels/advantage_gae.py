"""Triton kernel of generalised advantage estimation."""

from __future__ import annotations

import triton
import triton.language as tl

from oneshot.triton_kernels._launch import single


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
