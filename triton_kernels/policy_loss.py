"""Triton kernels of the policy loss: one pass over the tokens forward, one backward.

Ratios of whole sequences take one more pass each way. A last small kernel turns the sums of the
sequences into loss, metrics and token weights, so that nothing waits for the host.
"""

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
from oneshot.triton_kernels.policy_loss_terms import kl_terms, policy_terms
from oneshot.triton_kernels.policy_loss_tokens import (
    BLOCK,
    SPLITS,
    Layout,
    clamp,
    counted,
    layout,
    span,
    take,
    total,
)  # fmt: skip
from oneshot.triton_kernels.policy_loss_values import value_loss, value_loss_backward
from oneshot.triton_kernels.policy_loss_weights import importance_weights

__all__ = [
    "importance_weights",
    "policy_loss",
    "policy_loss_backward",
    "value_loss",
    "value_loss_backward",
]


@triton.jit(do_not_specialize=["width", "total_tokens", "new_stride", "old_stride"])
def _log_ratio_kernel(
    new, new_stride, old, old_stride, cu_seqlens, width, total_tokens, mask, partial,
    PACKED: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Of each split: the sum of its log-ratios, and how many tokens count."""
    b = (tl.program_id(0) // SPLITS).to(tl.int64)
    split = tl.program_id(0) % SPLITS
    first, length, flaw = span(b, cu_seqlens, width, total_tokens, PACKED)
    log_ratios = tl.zeros([], tl.float64) + flaw
    tokens = tl.zeros([], tl.float64)
    for start in range(split * BLOCK, length, SPLITS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        used = counted(mask, b * width + first + at, at < length, HAS_MASK)
        log_ratio = take(new, new_stride, b, first + at, used, True)
        log_ratio -= take(old, old_stride, b, first + at, used, True)
        log_ratios += total(log_ratio)
        tokens += total(tl.where(used, 1.0, 0.0))
    out = partial + (b * SPLITS + split) * 2
    tl.store(out, log_ratios)
    tl.store(out + 1, tokens)


@triton.jit
def _mean(partial, b):
    """Mean of a sequence from [B, SPLITS, 2] sums and counts, float64."""
    splits = partial + (b * SPLITS + tl.arange(0, SPLITS)) * 2
    tokens = tl.sum(tl.load(splits + 1), 0)
    return tl.sum(tl.load(splits), 0) / tl.where(tokens < 1.0, 1.0, tokens)


@triton.jit(do_not_specialize=[
    "width", "total_tokens", "new_stride", "old_stride", "advantage_stride", "ref_stride",
    "weight_stride", "entropy_stride",
])  # fmt: skip
def _forward_kernel(
    new, new_stride, old, old_stride, advantages, advantage_stride, ref, ref_stride,
    weights, weight_stride, entropy, entropy_stride, cu_seqlens, width, total_tokens, mask,
    log_ratios, sums,
    clip_min, clip_max, dual_clip, delta, low, high, kl_bound, kl_value_bound,
    PACKED: tl.constexpr, HAS_MASK: tl.constexpr, HAS_OLD: tl.constexpr,
    TOKEN_ADVANTAGE: tl.constexpr, HAS_WEIGHT: tl.constexpr, TOKEN_WEIGHT: tl.constexpr,
    HAS_ENTROPY: tl.constexpr, SURROGATE: tl.constexpr, SEQUENCE: tl.constexpr,
    KL: tl.constexpr, KL_WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Sums over the blocks of one split."""
    b = (tl.program_id(0) // SPLITS).to(tl.int64)
    split = tl.program_id(0) % SPLITS
    first, length, flaw = span(b, cu_seqlens, width, total_tokens, PACKED)
    zero = tl.zeros([], tl.float64)
    policy, kl_sum, entropies, log_ratio_sum = zero + flaw, zero, zero, zero
    ratios, tokens, lows, highs, duals = zero, zero, zero, zero, zero
    smallest, largest = zero + float("inf"), zero - float("inf")
    for start in range(split * BLOCK, length, SPLITS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        used = counted(mask, b * width + first + at, at < length, HAS_MASK)
        at += first
        x = take(new, new_stride, b, at, used, True)
        log_ratio = x * 0.0
        if HAS_OLD:
            log_ratio = x - take(old, old_stride, b, at, used, True)
        exponent = log_ratio
        if SEQUENCE:
            exponent = log_ratio * 0.0 + _mean(log_ratios, b).to(tl.float32)
        ratio = tl.exp(clamp(exponent, low, high))
        advantage = take(advantages, advantage_stride, b, at, used, TOKEN_ADVANTAGE)
        value, by_logprob, by_log_ratio, cut_low, cut_high, cut_dual = policy_terms(
            x, ratio, advantage, SURROGATE, clip_min, clip_max, dual_clip, delta
        )
        if HAS_WEIGHT:
            value = value * take(weights, weight_stride, b, at, used, TOKEN_WEIGHT)
        policy += total(tl.where(used, value, 0.0))
        if KL > 0:
            kl, slope = kl_terms(x, take(ref, ref_stride, b, at, used, True), KL, kl_bound,
                             kl_value_bound)  # fmt: skip
            if KL_WEIGHTED:
                kl = kl * ratio
            kl_sum += total(tl.where(used, kl, 0.0))
        if HAS_ENTROPY:
            entropies += total(take(entropy, entropy_stride, b, at, used, True))
        log_ratio_sum += total(log_ratio)
        ratios += total(tl.where(used, ratio, 0.0))
        tokens += total(tl.where(used, 1.0, 0.0))
        lows += total(tl.where(used & cut_low, 1.0, 0.0))
        highs += total(tl.where(used & cut_high, 1.0, 0.0))
        duals += total(tl.where(used & cut_dual, 1.0, 0.0))
        wide = ratio.to(tl.float64)
        smallest = tl.minimum(smallest, tl.min(tl.where(used, wide, float("inf")), 0))
        largest = tl.maximum(largest, tl.max(tl.where(used, wide, -float("inf")), 0))
    out = sums + (b * SPLITS + split) * SUMS
    tl.store(out, policy)
    tl.store(out + 1, kl_sum)
    tl.store(out + 2, entropies)
    tl.store(out + 3, log_ratio_sum)
    tl.store(out + 4, ratios)
    tl.store(out + 5, tokens)
    tl.store(out + 6, lows)
    tl.store(out + 7, highs)
    tl.store(out + 8, duals)
    tl.store(out + 9, smallest)
    tl.store(out + 10, largest)


@triton.jit(do_not_specialize=["batch", "max_length"])
def _total_kernel(
    sums, count, loss, metrics, weights, batch, max_length, policy_coef, kl_coef, entropy_coef,
    HAS_COUNT: tl.constexpr, COUNT_EMPTY: tl.constexpr, AGGREGATE: tl.constexpr,
    KL_AGGREGATE: tl.constexpr, ENTROPY_AGGREGATE: tl.constexpr,
):  # fmt: skip
    """Loss, metrics and [4, batch] weights from the [SUMS, batch] sums of the sequences."""
    lanes = tl.arange(0, BLOCK)
    zero = tl.zeros([], tl.float64)
    tokens, filled, ratios, log_ratios, kls, entropies = zero, zero, zero, zero, zero, zero
    lows, highs, duals = zero, zero, zero
    smallest, largest = zero + float("inf"), zero - float("inf")
    for start in range(0, batch, BLOCK):
        b = (start + lanes).to(tl.int64)
        here = b < batch
        own = tl.load(sums + 5 * batch + b, mask=here, other=0.0)
        tokens += tl.sum(own, 0)
        filled += tl.sum(tl.where(own > 0.0, 1.0, 0.0).to(tl.float64), 0)
        kls += tl.sum(tl.load(sums + batch + b, mask=here, other=0.0), 0)
        entropies += tl.sum(tl.load(sums + 2 * batch + b, mask=here, other=0.0), 0)
        log_ratios += tl.sum(tl.load(sums + 3 * batch + b, mask=here, other=0.0), 0)
        ratios += tl.sum(tl.load(sums + 4 * batch + b, mask=here, other=0.0), 0)
        lows += tl.sum(tl.load(sums + 6 * batch + b, mask=here, other=0.0), 0)
        highs += tl.sum(tl.load(sums + 7 * batch + b, mask=here, other=0.0), 0)
        duals += tl.sum(tl.load(sums + 8 * batch + b, mask=here, other=0.0), 0)
        least = tl.load(sums + 9 * batch + b, mask=here, other=float("inf"))
        most = tl.load(sums + 10 * batch + b, mask=here, other=-float("inf"))
        smallest = tl.minimum(smallest, tl.min(least, 0))
        largest = tl.maximum(largest, tl.max(most, 0))

    policy_total = token_weight_total(
        tokens, filled, batch, max_length, count, AGGREGATE, COUNT_EMPTY, HAS_COUNT
    )
    kl_total = policy_total
    if KL_AGGREGATE >= 0:
        kl_total = token_weight_total(
            tokens, filled, batch, max_length, count, KL_AGGREGATE, COUNT_EMPTY, False
        )
    entropy_total = policy_total
    if ENTROPY_AGGREGATE >= 0:
        entropy_total = token_weight_total(
            tokens, filled, batch, max_length, count, ENTROPY_AGGREGATE, COUNT_EMPTY, False
        )
    kl_mode: tl.constexpr = AGGREGATE if KL_AGGREGATE < 0 else KL_AGGREGATE
    entropy_mode: tl.constexpr = AGGREGATE if ENTROPY_AGGREGATE < 0 else ENTROPY_AGGREGATE
    policy_term, kl_term, entropy_term = zero, zero, zero
    for start in range(0, batch, BLOCK):
        b = (start + lanes).to(tl.int64)
        here = b < batch
        own = tl.load(sums + 5 * batch + b, mask=here, other=0.0)
        by_policy = weight_of(policy_total, own, AGGREGATE)
        by_kl = weight_of(kl_total, own, kl_mode)
        by_entropy = weight_of(entropy_total, own, entropy_mode)
        policy_term += tl.sum(by_policy * tl.load(sums + b, mask=here, other=0.0), 0)
        kl_term += tl.sum(by_kl * tl.load(sums + batch + b, mask=here, other=0.0), 0)
        entropy_term += tl.sum(by_entropy * tl.load(sums + 2 * batch + b, mask=here, other=0.0), 0)
        tl.store(weights + b, by_policy * policy_coef, mask=here)
        tl.store(weights + batch + b, by_kl * kl_coef, mask=here)
        tl.store(weights + 2 * batch + b, by_entropy * -entropy_coef, mask=here)
        log_ratio = tl.load(sums + 3 * batch + b, mask=here, other=0.0)
        tl.store(weights + 3 * batch + b, log_ratio / tl.where(own < 1.0, 1.0, own), mask=here)

    # A term of coefficient 0 is only reported: were it infinite, 0 * inf would spoil the loss.
    value = tl.where(zero + policy_coef == 0.0, 0.0, policy_term * policy_coef)
    value += tl.where(zero + kl_coef == 0.0, 0.0, kl_term * kl_coef)
    value -= tl.where(zero + entropy_coef == 0.0, 0.0, entropy_term * entropy_coef)
    tl.store(loss, value.to(tl.float32))
    whole = tl.where(tokens < 1.0, 1.0, tokens)
    smallest = tl.where(ratios != ratios, ratios, tl.where(tokens == 0.0, 0.0, smallest))
    largest = tl.where(ratios != ratios, ratios, tl.where(tokens == 0.0, 0.0, largest))
    tl.store(metrics, policy_term.to(tl.float32))
    tl.store(metrics + 1, kl_term.to(tl.float32))
    tl.store(metrics + 2, entropy_term.to(tl.float32))
    tl.store(metrics + 3, (kls / whole).to(tl.float32))
    tl.store(metrics + 4, (entropies / whole).to(tl.float32))
    tl.store(metrics + 5, (-log_ratios / whole).to(tl.float32))
    tl.store(metrics + 6, (ratios / whole).to(tl.float32))
    tl.store(metrics + 7, smallest.to(tl.float32))
    tl.store(metrics + 8, largest.to(tl.float32))
    tl.store(metrics + 9, (lows / whole).to(tl.float32))
    tl.store(metrics + 10, (highs / whole).to(tl.float32))
    tl.store(metrics + 11, (duals / whole).to(tl.float32))
    tl.store(metrics + 12, tokens.to(tl.float32))
    tl.store(metrics + 13, filled.to(tl.float32))


@triton.jit(do_not_specialize=[
    "width", "total_tokens", "batch", "new_stride", "old_stride", "advantage_stride",
    "ref_stride", "weight_stride",
])  # fmt: skip
def _backward_kernel(
    new, new_stride, old, old_stride, advantages, advantage_stride, ref, ref_stride,
    weights, weight_stride, cu_seqlens, width, total_tokens, mask,
    grad_loss, token_weights, batch, shared, by_logprobs, by_entropy,
    clip_min, clip_max, dual_clip, delta, low, high, kl_bound, kl_value_bound,
    PACKED: tl.constexpr, HAS_MASK: tl.constexpr, HAS_OLD: tl.constexpr,
    TOKEN_ADVANTAGE: tl.constexpr, HAS_WEIGHT: tl.constexpr, TOKEN_WEIGHT: tl.constexpr,
    SURROGATE: tl.constexpr, SEQUENCE: tl.constexpr, KL: tl.constexpr,
    KL_WEIGHTED: tl.constexpr, HAS_POLICY: tl.constexpr, NEED_LOGPROBS: tl.constexpr,
    NEED_ENTROPY: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Gradients of the tokens of one split.

    SHARED 0: each token its own. A sequence's ratio hands the same share to all its tokens: pass 1
    writes the sums of each split to `shared`, pass 2 reads them.
    """
    b = (tl.program_id(0) // SPLITS).to(tl.int64)
    split = tl.program_id(0) % SPLITS
    first, length, flaw = span(b, cu_seqlens, width, total_tokens, PACKED)
    upstream = tl.load(grad_loss).to(tl.float64)
    policy_scale = (upstream * tl.load(token_weights + b)).to(tl.float32)
    kl_scale = (upstream * tl.load(token_weights + batch + b)).to(tl.float32)
    entropy_scale = (upstream * tl.load(token_weights + 2 * batch + b)).to(tl.float32)
    collected = tl.zeros([], tl.float64)
    tokens = tl.zeros([], tl.float64)
    for start in range(split * BLOCK, length, SPLITS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < length
        at += first
        dense = b * width + at
        used = counted(mask, dense, inside, HAS_MASK)
        if NEED_ENTROPY:
            grad = tl.where(used, entropy_scale, 0.0)
            tl.store(by_entropy + dense, grad.to(by_entropy.dtype.element_ty), mask=inside)
        if NEED_LOGPROBS:
            x = take(new, new_stride, b, at, used, True)
            exponent = x * 0.0
            if SEQUENCE:
                exponent += tl.load(token_weights + 3 * batch + b).to(tl.float32)
            elif HAS_OLD:
                exponent = x - take(old, old_stride, b, at, used, True)
            held = (exponent < low) | (exponent > high)
            ratio = tl.exp(clamp(exponent, low, high))
            direct = x * 0.0
            by_ratio = x * 0.0
            if KL > 0:
                kl, slope = kl_terms(x, take(ref, ref_stride, b, at, used, True), KL, kl_bound,
                                     kl_value_bound)  # fmt: skip
                if KL_WEIGHTED:
                    slope = slope * ratio
                    by_ratio = kl_scale * tl.where(held, 0.0, kl * ratio)
                direct = kl_scale * slope
            if HAS_POLICY:
                advantage = take(advantages, advantage_stride, b, at, used, TOKEN_ADVANTAGE)
                value, by_logprob, by_log_ratio, cut_low, cut_high, cut_dual = policy_terms(
                    x, ratio, advantage, SURROGATE, clip_min, clip_max, dual_clip, delta
                )
                by_log_ratio = tl.where(held, 0.0, by_log_ratio)
                if HAS_WEIGHT:
                    weight = take(weights, weight_stride, b, at, used, TOKEN_WEIGHT)
                    by_logprob = by_logprob * weight
                    by_log_ratio = by_log_ratio * weight
                direct += policy_scale * by_logprob
                by_ratio += policy_scale * by_log_ratio
            if SHARED == 1:
                collected += total(tl.where(used, by_ratio, 0.0))
                tokens += total(tl.where(used, 1.0, 0.0))
            else:
                if SHARED == 2:
                    by_ratio = x * 0.0 + _mean(shared, b).to(tl.float32)
                grad = tl.where(used, direct + by_ratio, 0.0)
                tl.store(by_logprobs + dense, grad.to(by_logprobs.dtype.element_ty), mask=inside)
    if SHARED == 1:
        out = shared + (b * SPLITS + split) * 2
        tl.store(out, collected)
        tl.store(out + 1, tokens)


class _Options:
    """The list `options` of the schema, sorted into numbers and switches of the kernels."""

    def __init__(self, options, has_ref):
        (
            surrogate, ratio, clip_min, clip_max, dual_clip, delta, low, high, kl, kl_weighted,
            kl_bound, kl_value_bound, self.policy_coef, self.kl_coef, self.entropy_coef,
            aggregate, kl_aggregate, entropy_aggregate, count_empty,
        ) = options  # fmt: skip
        self.numbers = [single(x) for x in (clip_min, clip_max, dual_clip, delta, low, high,
                                            kl_bound, kl_value_bound)]  # fmt: skip
        self.ratio = int(ratio)
        self.flags = {
            "SURROGATE": int(surrogate),
            "SEQUENCE": self.ratio != 0,
            "KL": int(kl) if has_ref else 0,
            "KL_WEIGHTED": bool(kl_weighted),
        }
        self.modes = {
            "COUNT_EMPTY": bool(count_empty),
            "AGGREGATE": int(aggregate),
            "KL_AGGREGATE": int(kl_aggregate),
            "ENTROPY_AGGREGATE": int(entropy_aggregate),
        }


def _inputs(at: Layout, new, old, advantages, ref, weights):
    """Pointers and strides of the data, and their switches."""
    tensors = [argument for x in (new, old, advantages, ref, weights) for argument in at.tokens(x)]
    return tensors, {
        "HAS_OLD": old is not None,
        "TOKEN_ADVANTAGE": at.per_token(advantages),
        "HAS_WEIGHT": weights is not None,
        "TOKEN_WEIGHT": at.per_token(weights),
    }


def policy_loss(
    logprobs, old_logprobs, advantages, mask, ref_logprobs, entropy, importance_weights,
    cu_seqlens, count, options, max_length,
):  # fmt: skip
    """Launcher of the op."""
    at = layout(logprobs, mask, cu_seqlens)
    choice = _Options(options, ref_logprobs is not None)
    tensors, flags = _inputs(
        at, logprobs, old_logprobs, advantages, ref_logprobs, importance_weights
    )
    double = {"dtype": torch.float64}
    loss = logprobs.new_empty((), dtype=torch.float32)
    metrics = logprobs.new_empty(14, dtype=torch.float32)
    weights = logprobs.new_empty((4, at.batch), **double)
    programs = at.batch * SPLITS.value
    log_ratios = logprobs.new_zeros((programs, 2), **double)
    if choice.flags["SEQUENCE"] and old_logprobs is not None and programs:
        _log_ratio_kernel[(programs,)](*tensors[:4], *at.arguments(), log_ratios, **at.flags())
    sums = logprobs.new_empty((programs, SUMS.value), **double)
    by_sequence = logprobs.new_empty((SUMS.value, at.batch), **double)
    if programs:
        _forward_kernel[(programs,)](
            *tensors, *at.tokens(entropy), *at.arguments(), log_ratios, sums, *choice.numbers,
            **at.flags(), **flags, **choice.flags, HAS_ENTROPY=entropy is not None,
        )  # fmt: skip
        sequence_sums[(ceil_div(at.batch, 16),)](sums, by_sequence, at.batch)
    _total_kernel[(1,)](
        by_sequence, loss if count is None else count, loss, metrics, weights, at.batch,
        max_length, single(choice.policy_coef), single(choice.kl_coef),
        single(choice.entropy_coef), HAS_COUNT=count is not None, **choice.modes, num_warps=8,
    )  # fmt: skip
    return loss, metrics, weights


def policy_loss_backward(
    grad_loss, logprobs, old_logprobs, advantages, mask, ref_logprobs, importance_weights,
    cu_seqlens, weights, grad_logprobs, grad_entropy, options, max_length,
):  # fmt: skip
    """Launcher of the op."""
    at = layout(logprobs, mask, cu_seqlens)
    choice = _Options(options, ref_logprobs is not None and options[13] != 0)
    tensors, flags = _inputs(
        at, logprobs, old_logprobs, advantages, ref_logprobs, importance_weights
    )
    by_logprobs, by_entropy = at.fresh(grad_logprobs), at.fresh(grad_entropy)
    programs = at.batch * SPLITS.value
    if programs == 0 or not (grad_logprobs or grad_entropy):
        return by_logprobs, by_entropy
    shared = logprobs.new_empty((programs, 2), dtype=torch.float64)
    passes = (1, 2) if choice.ratio == 1 and grad_logprobs else (0,)
    for number in passes:
        _backward_kernel[(programs,)](
            *tensors, *at.arguments(), grad_loss, weights.contiguous(), at.batch, shared,
            by_logprobs, by_entropy, *choice.numbers, **at.flags(), **flags, **choice.flags,
            HAS_POLICY=choice.policy_coef != 0, NEED_LOGPROBS=grad_logprobs,
            NEED_ENTROPY=grad_entropy and number != 1, SHARED=number,
        )  # fmt: skip
    return by_logprobs, by_entropy
