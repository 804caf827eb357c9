"""Triton kernel of the gradient of the policy loss."""

from __future__ import annotations

import triton
import triton.language as tl

from oneshot.triton_kernels.policy_loss_options import GMPO, KL_NONE, SPREAD_SHARED, SUM_SHARED
from oneshot.triton_kernels.policy_loss_terms import (
    factor_of,
    held_sides,
    kl_terms,
    policy_terms,
)
from oneshot.triton_kernels.policy_loss_tokens import (
    BLOCK,
    SPLITS,
    clamp,
    counted,
    span,
    take,
    total,
    whole_of,
)  # fmt: skip


@triton.jit(do_not_specialize=[
    "width", "total_tokens", "batch", "new_stride", "old_stride", "advantage_stride",
    "ref_stride", "weight_stride",
])  # fmt: skip
def backward_kernel(
    new, new_stride, old, old_stride, advantages, advantage_stride, ref, ref_stride,
    weights, weight_stride, cu_seqlens, width, total_tokens, mask,
    grad_loss, token_weights, batch, shared, by_logprobs, by_entropy,
    numbers,
    PACKED: tl.constexpr, HAS_MASK: tl.constexpr, HAS_OLD: tl.constexpr,
    TOKEN_ADVANTAGE: tl.constexpr, HAS_WEIGHT: tl.constexpr, TOKEN_WEIGHT: tl.constexpr,
    SURROGATE: tl.constexpr, SEQUENCE: tl.constexpr, PRODUCT: tl.constexpr,
    KL: tl.constexpr,
    KL_WEIGHTED: tl.constexpr, HAS_POLICY: tl.constexpr, NEED_LOGPROBS: tl.constexpr,
    NEED_ENTROPY: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Gradients of the tokens of one split.

    SHARED is one of the passes of `policy_loss_options`. A sequence's ratio hands the same share to
    all its tokens: one pass writes the sums of each split to `shared`, the next reads them.
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
            log_ratio = x - x
            if HAS_OLD and ((not SEQUENCE) or SURROGATE == GMPO):
                log_ratio = x - take(old, old_stride, b, at, used, True)
            exponent = log_ratio
            if SEQUENCE:
                whole = tl.load(token_weights + 3 * batch + b).to(tl.float32)
                exponent = tl.zeros_like(x) + whole
            low, high = numbers.log_ratio_min, numbers.log_ratio_max
            held = (exponent < low) | (exponent > high)
            exponent = clamp(exponent, low, high)
            ratio = tl.exp(exponent)
            direct = tl.zeros_like(x)
            by_ratio = tl.zeros_like(x)
            if KL != KL_NONE:
                kl, slope = kl_terms(x, take(ref, ref_stride, b, at, used, True), numbers, KL)
                if KL_WEIGHTED:
                    slope = slope * ratio
                    by_ratio = kl_scale * tl.where(held, 0.0, kl * ratio)
                direct = kl_scale * slope
            if HAS_POLICY:
                advantage = take(advantages, advantage_stride, b, at, used, TOKEN_ADVANTAGE)
                factor = advantage
                if HAS_WEIGHT:
                    weight = take(weights, weight_stride, b, at, used, TOKEN_WEIGHT)
                    factor = factor_of(advantage, weight)
                value, by_logprob, by_log_ratio, cut_low, cut_high, cut_dual = policy_terms(
                    x, log_ratio, exponent, ratio, advantage, factor, numbers, SURROGATE
                )
                by_log_ratio = tl.where(held, 0.0, by_log_ratio)
                direct += policy_scale * by_logprob
                by_ratio += policy_scale * by_log_ratio
            if SHARED == SUM_SHARED:
                collected += total(tl.where(used, by_ratio, 0.0))
                tokens += total(tl.where(used, 1.0, 0.0))
            else:
                if SHARED == SPREAD_SHARED:
                    by_ratio = tl.zeros_like(x) + whole_of(shared, b, PRODUCT).to(tl.float32)
                    if SURROGATE == GMPO:  # a log-ratio that is held does not move the ratio
                        advantage = take(advantages, advantage_stride, b, at, used, TOKEN_ADVANTAGE)
                        cut_low, cut_high = held_sides(log_ratio, advantage, numbers)
                        by_ratio = tl.where(cut_low | cut_high, 0.0, by_ratio)
                grad = tl.where(used, direct + by_ratio, 0.0)
                tl.store(by_logprobs + dense, grad.to(by_logprobs.dtype.element_ty), mask=inside)
    if SHARED == SUM_SHARED:
        out = shared + (b * SPLITS + split) * 2
        tl.store(out, collected)
        tl.store(out + 1, tokens)
