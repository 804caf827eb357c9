"""Triton kernels of the value loss: sums of splits, totals, gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from oneshot.triton_kernels._launch import ceil_div, single
from oneshot.triton_kernels.policy_loss_sums import (
    SUMS,
    sequence_sums,
    token_weight_total,
    weight_of,
)  # fmt: skip
from oneshot.triton_kernels.policy_loss_tokens import (
    BLOCK,
    SPLITS,
    clamp,
    counted,
    layout,
    span,
    take,
    total,
)  # fmt: skip


@triton.jit
def _error(value, target, old, clip, HAS_OLD: tl.constexpr):
    """The error whose square counts, its derivative, and whether it is the clipped one."""
    plain = value - target
    bounded = plain
    if HAS_OLD:
        bounded = clamp(value, old - clip, old + clip) - target
    clipped = bounded * bounded > plain * plain
    error = tl.where(clipped, bounded, plain)
    if HAS_OLD:
        error = tl.where(old != old, old, error)
    return error, tl.where(clipped, 0.0, error), clipped


@triton.jit(do_not_specialize=["width", "total_tokens", "value_stride", "old_stride",
                               "target_stride"])  # fmt: skip
def _forward_kernel(
    values, value_stride, old, old_stride, targets, target_stride, cu_seqlens, width,
    total_tokens, mask, sums, clip,
    PACKED: tl.constexpr, HAS_MASK: tl.constexpr, HAS_OLD: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // SPLITS).to(tl.int64)
    split = tl.program_id(0) % SPLITS
    first, length, flaw = span(b, cu_seqlens, width, total_tokens, PACKED)
    zero = tl.zeros([], tl.float64)
    loss, value_sum, target_sum, target_squares = zero + flaw, zero, zero, zero
    error_sum, error_squares, tokens, clips = zero, zero, zero, zero
    for start in range(split * BLOCK, length, SPLITS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        used = counted(mask, b * width + first + at, at < length, HAS_MASK)
        at += first
        value = take(values, value_stride, b, at, used, True)
        target = take(targets, target_stride, b, at, used, True)
        before = take(old, old_stride, b, at, used, True)
        error, slope, clipped = _error(value, target, before, clip, HAS_OLD)
        loss += total(0.5 * error * error)
        value_sum += total(value)
        target_sum += total(target)
        wide_target = target.to(tl.float64)
        residual = wide_target - value.to(tl.float64)
        target_squares += total(wide_target * wide_target)
        error_sum += total(residual)
        error_squares += total(residual * residual)
        tokens += total(tl.where(used, 1.0, 0.0))
        clips += total(tl.where(clipped, 1.0, 0.0))
    out = sums + (b * SPLITS + split) * SUMS
    tl.store(out, loss)
    tl.store(out + 1, value_sum)
    tl.store(out + 2, target_sum)
    tl.store(out + 3, target_squares)
    tl.store(out + 4, error_sum)
    tl.store(out + 5, tokens)
    tl.store(out + 6, error_squares)
    tl.store(out + 7, clips)
    for i in range(8, SUMS):
        tl.store(out + i, zero)


@triton.jit(do_not_specialize=["batch", "max_length"])
def _total_kernel(
    sums, count, loss, metrics, weights, batch, max_length,
    HAS_COUNT: tl.constexpr, COUNT_EMPTY: tl.constexpr, AGGREGATE: tl.constexpr,
):  # fmt: skip
    lanes = tl.arange(0, BLOCK)
    zero = tl.zeros([], tl.float64)
    tokens, filled, values, targets, squares = zero, zero, zero, zero, zero
    errors, error_squares, clips, value = zero, zero, zero, zero
    for start in range(0, batch, BLOCK):
        b = (start + lanes).to(tl.int64)
        here = b < batch
        own = tl.load(sums + 5 * batch + b, mask=here, other=0.0)
        tokens += tl.sum(own, 0)
        filled += tl.sum(tl.where(own > 0.0, 1.0, 0.0).to(tl.float64), 0)
        values += tl.sum(tl.load(sums + batch + b, mask=here, other=0.0), 0)
        targets += tl.sum(tl.load(sums + 2 * batch + b, mask=here, other=0.0), 0)
        squares += tl.sum(tl.load(sums + 3 * batch + b, mask=here, other=0.0), 0)
        errors += tl.sum(tl.load(sums + 4 * batch + b, mask=here, other=0.0), 0)
        error_squares += tl.sum(tl.load(sums + 6 * batch + b, mask=here, other=0.0), 0)
        clips += tl.sum(tl.load(sums + 7 * batch + b, mask=here, other=0.0), 0)
    whole = token_weight_total(
        tokens, filled, batch, max_length, count, AGGREGATE, COUNT_EMPTY, HAS_COUNT
    )
    for start in range(0, batch, BLOCK):
        b = (start + lanes).to(tl.int64)
        here = b < batch
        own = tl.load(sums + 5 * batch + b, mask=here, other=0.0)
        weight = weight_of(whole, own, AGGREGATE)
        value += tl.sum(weight * tl.load(sums + b, mask=here, other=0.0), 0)
        tl.store(weights + b, weight, mask=here)
    tl.store(loss, value.to(tl.float32))
    n = tl.where(tokens < 1.0, 1.0, tokens)
    spread = squares / n - (targets / n) * (targets / n)
    residual = error_squares / n - (errors / n) * (errors / n)
    explained = tl.where(spread == 0.0, 0.0, 1.0 - residual / tl.where(spread == 0.0, 1.0, spread))
    tl.store(metrics, (clips / n).to(tl.float32))
    tl.store(metrics + 1, (values / n).to(tl.float32))
    tl.store(metrics + 2, (targets / n).to(tl.float32))
    tl.store(metrics + 3, explained.to(tl.float32))
    tl.store(metrics + 4, tokens.to(tl.float32))


@triton.jit(do_not_specialize=["width", "total_tokens", "value_stride", "old_stride",
                               "target_stride"])  # fmt: skip
def _backward_kernel(
    values, value_stride, old, old_stride, targets, target_stride, cu_seqlens, width,
    total_tokens, mask, grad_loss, weights, out, clip,
    PACKED: tl.constexpr, HAS_MASK: tl.constexpr, HAS_OLD: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // SPLITS).to(tl.int64)
    split = tl.program_id(0) % SPLITS
    first, length, flaw = span(b, cu_seqlens, width, total_tokens, PACKED)
    scale = (tl.load(grad_loss).to(tl.float64) * tl.load(weights + b)).to(tl.float32)
    for start in range(split * BLOCK, length, SPLITS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < length
        at += first
        dense = b * width + at
        used = counted(mask, dense, inside, HAS_MASK)
        value = take(values, value_stride, b, at, used, True)
        target = take(targets, target_stride, b, at, used, True)
        before = take(old, old_stride, b, at, used, True)
        error, slope, clipped = _error(value, target, before, clip, HAS_OLD)
        grad = tl.where(used, scale * slope, 0.0)
        tl.store(out + dense, grad.to(out.dtype.element_ty), mask=inside)


def value_loss(
    values, old_values, returns, mask, cu_seqlens, count, clip, aggregate, count_empty, max_length
):
    """Launcher of the op."""
    at = layout(values, mask, cu_seqlens)
    double = {"dtype": torch.float64}
    loss = values.new_empty((), dtype=torch.float32)
    metrics = values.new_empty(5, dtype=torch.float32)
    weights = values.new_empty(at.batch, **double)
    programs = at.batch * SPLITS.value
    by_sequence = values.new_empty((SUMS.value, at.batch), **double)
    if programs:
        sums = values.new_empty((programs, SUMS.value), **double)
        _forward_kernel[(programs,)](
            *at.tokens(values), *at.tokens(old_values), *at.tokens(returns), *at.arguments(),
            sums, single(clip), **at.flags(), HAS_OLD=old_values is not None, num_warps=8,
        )  # fmt: skip
        sequence_sums[(ceil_div(at.batch, 16),)](sums, by_sequence, at.batch)
    _total_kernel[(1,)](
        by_sequence, loss if count is None else count, loss, metrics, weights, at.batch,
        max_length, HAS_COUNT=count is not None, COUNT_EMPTY=count_empty, AGGREGATE=aggregate,
        num_warps=8,
    )  # fmt: skip
    return loss, metrics, weights


def value_loss_backward(
    grad_loss, values, old_values, returns, mask, cu_seqlens, weights, clip
):  # fmt: skip
    """Launcher of the op."""
    at = layout(values, mask, cu_seqlens)
    out = at.fresh(True)
    if at.batch:
        _backward_kernel[(at.batch * SPLITS.value,)](
            *at.tokens(values), *at.tokens(old_values), *at.tokens(returns), *at.arguments(),
            grad_loss, weights.contiguous(), out, single(clip), **at.flags(),
            HAS_OLD=old_values is not None,
        )  # fmt: skip
    return out
