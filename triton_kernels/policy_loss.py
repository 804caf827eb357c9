"""Triton kernels of the policy loss: one pass over the tokens forward, one backward.

Ratios of whole sequences take one more pass each way. A last small kernel turns the sums of the
sequences into loss, metrics and token weights, so that nothing waits for the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from oneshot.policy_options import KernelOptions, KlEstimator, RatioLevel
from oneshot.triton_kernels._launch import ceil_div, single
from oneshot.triton_kernels.policy_loss_backward import backward_kernel
from oneshot.triton_kernels.policy_loss_options import (
    EACH_ITS_OWN,
    GMPO,
    KL_NONE,
    SPREAD_SHARED,
    SUM_SHARED,
    numbers_of,
)
from oneshot.triton_kernels.policy_loss_sums import SUMS, sequence_sums
from oneshot.triton_kernels.policy_loss_terms import (
    entering_log_ratio,
    factor_of,
    kl_terms,
    policy_terms,
)
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
    whole_of,
)  # fmt: skip
from oneshot.triton_kernels.policy_loss_total import total_kernel
from oneshot.triton_kernels.policy_loss_values import value_loss, value_loss_backward
from oneshot.triton_kernels.policy_loss_weights import importance_weights

__all__ = [
    "importance_weights",
    "policy_loss",
    "policy_loss_backward",
    "value_loss",
    "value_loss_backward",
]


@triton.jit(do_not_specialize=[
    "width", "total_tokens", "new_stride", "old_stride", "advantage_stride",
])  # fmt: skip
def _log_ratio_kernel(
    new, new_stride, old, old_stride, advantages, advantage_stride, cu_seqlens, width,
    total_tokens, mask, partial, numbers,
    PACKED: tl.constexpr, HAS_MASK: tl.constexpr, TOKEN_ADVANTAGE: tl.constexpr,
    SURROGATE: tl.constexpr,
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
        if SURROGATE == GMPO:
            advantage = take(advantages, advantage_stride, b, first + at, used, TOKEN_ADVANTAGE)
            log_ratio = entering_log_ratio(log_ratio, advantage, numbers, SURROGATE)
        log_ratios += total(log_ratio)
        tokens += total(tl.where(used, 1.0, 0.0))
    out = partial + (b * SPLITS + split) * 2
    tl.store(out, log_ratios)
    tl.store(out + 1, tokens)


@triton.jit(do_not_specialize=[
    "width", "total_tokens", "new_stride", "old_stride", "advantage_stride", "ref_stride",
    "weight_stride", "entropy_stride",
])  # fmt: skip
def _forward_kernel(
    new, new_stride, old, old_stride, advantages, advantage_stride, ref, ref_stride,
    weights, weight_stride, entropy, entropy_stride, cu_seqlens, width, total_tokens, mask,
    log_ratios, sums,
    numbers,
    PACKED: tl.constexpr, HAS_MASK: tl.constexpr, HAS_OLD: tl.constexpr,
    TOKEN_ADVANTAGE: tl.constexpr, HAS_WEIGHT: tl.constexpr, TOKEN_WEIGHT: tl.constexpr,
    HAS_ENTROPY: tl.constexpr, SURROGATE: tl.constexpr, SEQUENCE: tl.constexpr,
    PRODUCT: tl.constexpr, KL: tl.constexpr, KL_WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Sums over the blocks of one split."""
    b = (tl.program_id(0) // SPLITS).to(tl.int64)
    split = tl.program_id(0) % SPLITS
    first, length, flaw = span(b, cu_seqlens, width, total_tokens, PACKED)
    zero = tl.zeros([], tl.float64)
    policy, kl_sum, entropies, log_ratio_sum = zero + flaw, zero, zero, zero
    ratios, tokens, lows, highs, duals, entering = zero, zero, zero, zero, zero, zero
    smallest, largest = zero + float("inf"), zero - float("inf")
    for start in range(split * BLOCK, length, SPLITS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        used = counted(mask, b * width + first + at, at < length, HAS_MASK)
        at += first
        x = take(new, new_stride, b, at, used, True)
        log_ratio = x - x
        if HAS_OLD:
            log_ratio = x - take(old, old_stride, b, at, used, True)
        exponent = log_ratio
        if SEQUENCE:
            exponent = tl.zeros_like(x) + whole_of(log_ratios, b, PRODUCT).to(tl.float32)
        exponent = clamp(exponent, numbers.log_ratio_min, numbers.log_ratio_max)
        ratio = tl.exp(exponent)
        advantage = take(advantages, advantage_stride, b, at, used, TOKEN_ADVANTAGE)
        factor = advantage
        if HAS_WEIGHT:
            weight = take(weights, weight_stride, b, at, used, TOKEN_WEIGHT)
            factor = factor_of(advantage, weight)
        value, by_logprob, by_log_ratio, cut_low, cut_high, cut_dual = policy_terms(
            x, log_ratio, exponent, ratio, advantage, factor, numbers, SURROGATE
        )
        policy += total(tl.where(used, value, 0.0))
        if KL != KL_NONE:
            kl, slope = kl_terms(x, take(ref, ref_stride, b, at, used, True), numbers, KL)
            if KL_WEIGHTED:
                kl = kl * ratio
            kl_sum += total(tl.where(used, kl, 0.0))
        if HAS_ENTROPY:
            entropies += total(take(entropy, entropy_stride, b, at, used, True))
        log_ratio_sum += total(log_ratio)
        if SEQUENCE:
            log_ratio = entering_log_ratio(log_ratio, advantage, numbers, SURROGATE)
        entering += total(log_ratio)
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
    tl.store(out + 11, entering)


def _switches(options, has_ref):
    """What the kernels are compiled for."""
    return {
        "SURROGATE": int(options.surrogate),
        "SEQUENCE": options.ratio != RatioLevel.TOKEN,
        "PRODUCT": options.ratio == RatioLevel.SEQUENCE_PRODUCT,
        "KL": int(options.kl if has_ref else KlEstimator.NONE),
        "KL_WEIGHTED": options.kl_importance_weighted,
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
    chosen = KernelOptions.unpacked(options, max_length)
    switches = _switches(chosen, ref_logprobs is not None)
    tensors, flags = _inputs(
        at, logprobs, old_logprobs, advantages, ref_logprobs, importance_weights
    )
    double = {"dtype": torch.float64}
    loss = logprobs.new_empty((), dtype=torch.float32)
    metrics = logprobs.new_empty(14, dtype=torch.float32)
    weights = logprobs.new_empty((4, at.batch), **double)
    programs = at.batch * SPLITS.value
    log_ratios = logprobs.new_empty((programs, 2), **double)
    if switches["SEQUENCE"] and programs:
        before = tensors[:2] if old_logprobs is None else tensors[2:4]
        _log_ratio_kernel[(programs,)](
            *tensors[:2], *before, *tensors[4:6], *at.arguments(), log_ratios,
            numbers_of(chosen), **at.flags(),
            TOKEN_ADVANTAGE=flags["TOKEN_ADVANTAGE"], SURROGATE=switches["SURROGATE"],
        )  # fmt: skip
    sums = logprobs.new_empty((programs, SUMS.value), **double)
    by_sequence = logprobs.new_empty((SUMS.value, at.batch), **double)
    if programs:
        _forward_kernel[(programs,)](
            *tensors, *at.tokens(entropy), *at.arguments(), log_ratios, sums, numbers_of(chosen),
            **at.flags(), **flags, **switches, HAS_ENTROPY=entropy is not None,
        )  # fmt: skip
        sequence_sums[(ceil_div(at.batch, 16),)](sums, by_sequence, at.batch)
    total_kernel[(1,)](
        by_sequence, loss if count is None else count, loss, metrics, weights, at.batch,
        max_length, single(chosen.policy_coef), single(chosen.kl_coef),
        single(chosen.entropy_coef), HAS_COUNT=count is not None,
        COUNT_EMPTY=chosen.count_empty, AGGREGATE=int(chosen.aggregate),
        PRODUCT=switches["PRODUCT"], KL_AGGREGATE=int(chosen.kl_aggregate),
        ENTROPY_AGGREGATE=int(chosen.entropy_aggregate),
        num_warps=8,
    )  # fmt: skip
    return loss, metrics, weights


def policy_loss_backward(
    grad_loss, logprobs, old_logprobs, advantages, mask, ref_logprobs, importance_weights,
    cu_seqlens, weights, grad_logprobs, grad_entropy, options, max_length,
):  # fmt: skip
    """Launcher of the op."""
    at = layout(logprobs, mask, cu_seqlens)
    chosen = KernelOptions.unpacked(options, max_length)
    switches = _switches(chosen, ref_logprobs is not None and chosen.kl_coef != 0)
    tensors, flags = _inputs(
        at, logprobs, old_logprobs, advantages, ref_logprobs, importance_weights
    )
    by_logprobs, by_entropy = at.fresh(grad_logprobs), at.fresh(grad_entropy)
    programs = at.batch * SPLITS.value
    if programs == 0 or not (grad_logprobs or grad_entropy):
        return by_logprobs, by_entropy
    shared = logprobs.new_empty((programs, 2), dtype=torch.float64)
    passes = [EACH_ITS_OWN]
    shares = (RatioLevel.SEQUENCE, RatioLevel.SEQUENCE_PRODUCT)
    if chosen.ratio in shares and grad_logprobs:
        passes = [SUM_SHARED, SPREAD_SHARED]
    for step in passes:
        backward_kernel[(programs,)](
            *tensors, *at.arguments(), grad_loss, weights.contiguous(), at.batch, shared,
            by_logprobs, by_entropy, numbers_of(chosen), **at.flags(), **flags, **switches,
            HAS_POLICY=chosen.policy_coef != 0, NEED_LOGPROBS=grad_logprobs,
            NEED_ENTROPY=grad_entropy and step is not SUM_SHARED, SHARED=step.value,
        )  # fmt: skip
    return by_logprobs, by_entropy
