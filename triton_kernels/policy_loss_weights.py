"""Triton kernels of the importance weights, of tokens or of whole sequences."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from oneshot.triton_kernels._launch import ceil_div, single
from oneshot.triton_kernels.policy_loss_sums import SUMS, sequence_sums
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
def _weight(log_ratio, low, high, bound, TRUNCATE: tl.constexpr):
    """Weight, and whether the raw one lies below or above the thresholds."""
    raw = tl.exp(clamp(log_ratio, -bound, bound))
    below = raw < low
    above = raw > high
    if TRUNCATE:
        return clamp(raw, low, high), below, above
    return tl.where(below | above, 0.0, raw), below, above


@triton.jit(do_not_specialize=["width", "total_tokens", "new_stride", "sampler_stride"])
def _tokens_kernel(
    new, new_stride, sampler, sampler_stride, cu_seqlens, width, total_tokens, mask,
    weights, sums, low, high, bound,
    PACKED: tl.constexpr, HAS_MASK: tl.constexpr, PER_SEQUENCE: tl.constexpr,
    TRUNCATE: tl.constexpr, IGNORE_NAN: tl.constexpr,
):  # fmt: skip
    """Weights of tokens and their sums; of sequences only the sums of log-ratios."""
    b = (tl.program_id(0) // SPLITS).to(tl.int64)
    split = tl.program_id(0) % SPLITS
    first, length, flaw = span(b, cu_seqlens, width, total_tokens, PACKED)
    zero = tl.zeros([], tl.float64)
    weight_sum, squares, log_ratios, tokens, lows, highs = zero + flaw, zero, zero, zero, zero, zero
    smallest, largest = zero + float("inf"), zero - float("inf")
    for start in range(split * BLOCK, length, SPLITS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < length
        at += first
        dense = b * width + at
        used = counted(mask, dense, inside, HAS_MASK)
        log_ratio = take(new, new_stride, b, at, used, True)
        log_ratio -= take(sampler, sampler_stride, b, at, used, True)
        if IGNORE_NAN:
            log_ratio = tl.where(log_ratio != log_ratio, 0.0, log_ratio)
        log_ratios += total(log_ratio)
        tokens += total(tl.where(used, 1.0, 0.0))
        if not PER_SEQUENCE:
            weight, below, above = _weight(log_ratio, low, high, bound, TRUNCATE)
            weight = tl.where(used, weight, 0.0)
            tl.store(weights + dense, weight, mask=inside)
            wide = weight.to(tl.float64)
            weight_sum += total(wide)
            squares += total(wide * wide)
            lows += total(tl.where(used & below, 1.0, 0.0))
            highs += total(tl.where(used & above, 1.0, 0.0))
            smallest = tl.minimum(smallest, tl.min(tl.where(used, wide, float("inf")), 0))
            largest = tl.maximum(largest, tl.max(tl.where(used, wide, -float("inf")), 0))
    out = sums + (b * SPLITS + split) * SUMS
    tl.store(out, weight_sum)
    tl.store(out + 1, squares)
    tl.store(out + 2, zero)
    tl.store(out + 3, log_ratios)
    tl.store(out + 4, zero)
    tl.store(out + 5, tokens)
    tl.store(out + 6, lows)
    tl.store(out + 7, highs)
    tl.store(out + 8, zero)
    tl.store(out + 9, smallest)
    tl.store(out + 10, largest)
    tl.store(out + 11, zero)


@triton.jit(do_not_specialize=["batch"])
def _sequences_kernel(weights, sums, batch, low, high, bound, TRUNCATE: tl.constexpr):
    """One weight a sequence, from the sum of its log-ratios; it stands for each of its tokens."""
    b = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    here = b < batch
    log_ratio = tl.load(sums + 3 * batch + b, mask=here, other=0.0).to(tl.float32)
    tokens = tl.load(sums + 5 * batch + b, mask=here, other=0.0)
    weight, below, above = _weight(log_ratio, low, high, bound, TRUNCATE)
    tl.store(weights + b, weight, mask=here)
    wide = weight.to(tl.float64)
    tl.store(sums + b, wide * tokens, mask=here)
    tl.store(sums + batch + b, wide * wide * tokens, mask=here)
    tl.store(sums + 6 * batch + b, tl.where(below, tokens, 0.0), mask=here)
    tl.store(sums + 7 * batch + b, tl.where(above, tokens, 0.0), mask=here)
    tl.store(sums + 9 * batch + b, tl.where(tokens > 0.0, wide, float("inf")), mask=here)
    tl.store(sums + 10 * batch + b, tl.where(tokens > 0.0, wide, -float("inf")), mask=here)


@triton.jit(do_not_specialize=["batch"])
def _total_kernel(
    sums, metrics, normalizer, batch, NORMALIZE: tl.constexpr, PER_SEQUENCE: tl.constexpr
):  # fmt: skip
    lanes = tl.arange(0, BLOCK)
    zero = tl.zeros([], tl.float64)
    weights, squares, log_ratios, tokens, lows, highs = zero, zero, zero, zero, zero, zero
    sequence_weights, filled = zero, zero
    smallest, largest = zero + float("inf"), zero - float("inf")
    for start in range(0, batch, BLOCK):
        b = (start + lanes).to(tl.int64)
        here = b < batch
        own = tl.load(sums + 5 * batch + b, mask=here, other=0.0)
        weight = tl.load(sums + b, mask=here, other=0.0)
        weight = tl.where(own > 0.0, weight, 0.0)
        tokens += tl.sum(own, 0)
        weights += tl.sum(weight, 0)
        filled += tl.sum(tl.where(own > 0.0, 1.0, 0.0).to(tl.float64), 0)
        sequence_weights += tl.sum(weight / tl.where(own < 1.0, 1.0, own), 0)
        square = tl.load(sums + batch + b, mask=here, other=0.0)
        squares += tl.sum(tl.where(own > 0.0, square, 0.0), 0)
        log_ratios += tl.sum(tl.load(sums + 3 * batch + b, mask=here, other=0.0), 0)
        lows += tl.sum(tl.load(sums + 6 * batch + b, mask=here, other=0.0), 0)
        highs += tl.sum(tl.load(sums + 7 * batch + b, mask=here, other=0.0), 0)
        least = tl.load(sums + 9 * batch + b, mask=here, other=float("inf"))
        most = tl.load(sums + 10 * batch + b, mask=here, other=-float("inf"))
        smallest = tl.minimum(smallest, tl.min(least, 0))
        largest = tl.maximum(largest, tl.max(most, 0))
    n = tl.where(tokens < 1.0, 1.0, tokens)
    mean = weights / n
    square = squares / n
    effective = tl.where(square == 0.0, 0.0, mean * mean / tl.where(square == 0.0, 1.0, square))
    divisor = zero + 1.0
    if NORMALIZE:
        divisor = mean
        if PER_SEQUENCE:
            divisor = sequence_weights / tl.where(filled < 1.0, 1.0, filled)
        divisor = tl.where(divisor <= 1e-8, 1.0, divisor)  # a NaN stays one
    smallest = tl.where(weights != weights, weights, tl.where(tokens == 0.0, 0.0, smallest))
    largest = tl.where(weights != weights, weights, tl.where(tokens == 0.0, 0.0, largest))
    tl.store(normalizer, divisor)
    tl.store(metrics, mean.to(tl.float32))
    tl.store(metrics + 1, smallest.to(tl.float32))
    tl.store(metrics + 2, largest.to(tl.float32))
    tl.store(metrics + 3, effective.to(tl.float32))
    tl.store(metrics + 4, (lows / n).to(tl.float32))
    tl.store(metrics + 5, (highs / n).to(tl.float32))
    tl.store(metrics + 6, (-log_ratios / n).to(tl.float32))
    tl.store(metrics + 7, divisor.to(tl.float32))


@triton.jit(do_not_specialize=["count"])
def _scale_kernel(weights, normalizer, count):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(weights + at, mask=at < count, other=0.0).to(tl.float64)
    factor = 1.0 / tl.load(normalizer)
    # A weight of 0, as masked tokens have, stays 0 whatever the normalizer is.
    scaled = tl.where(weight == 0.0, 0.0, weight * factor)
    tl.store(weights + at, scaled.to(tl.float32), mask=at < count)


def importance_weights(
    logprobs, sampler_logprobs, mask, cu_seqlens, per_sequence, truncate, low, high,
    log_ratio_clamp, normalize, ignore_nan,
):  # fmt: skip
    """Launcher of the op."""
    at = layout(logprobs, mask, cu_seqlens)
    real = {"dtype": torch.float32}
    double = {"dtype": torch.float64}
    shape = (at.batch,) if per_sequence else logprobs.shape
    weights = logprobs.new_empty(shape, **real)
    if cu_seqlens is not None and not per_sequence:
        weights.fill_(float("nan"))  # tokens of no sequence
    metrics = logprobs.new_empty(8, **real)
    normalizer = logprobs.new_empty((), **double)
    by_sequence = logprobs.new_empty((SUMS.value, at.batch), **double)
    bounds = (single(low), single(high), single(log_ratio_clamp))
    if at.batch:
        programs = at.batch * SPLITS.value
        sums = logprobs.new_empty((programs, SUMS.value), **double)
        _tokens_kernel[(programs,)](
            *at.tokens(logprobs), *at.tokens(sampler_logprobs), *at.arguments(), weights, sums,
            *bounds, **at.flags(), PER_SEQUENCE=per_sequence, TRUNCATE=truncate,
            IGNORE_NAN=ignore_nan,
        )  # fmt: skip
        sequence_sums[(ceil_div(at.batch, 16),)](sums, by_sequence, at.batch)
        if per_sequence:
            _sequences_kernel[(ceil_div(at.batch, BLOCK.value),)](
                weights, by_sequence, at.batch, *bounds, TRUNCATE=truncate
            )
    _total_kernel[(1,)](
        by_sequence, metrics, normalizer, at.batch, NORMALIZE=normalize, PER_SEQUENCE=per_sequence
    )
    if normalize and weights.numel():
        _scale_kernel[(ceil_div(weights.numel(), BLOCK.value),)](
            weights, normalizer, weights.numel()
        )
    return weights, metrics
