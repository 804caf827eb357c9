"""Triton kernel from the sums of the sequences to loss, metrics and token weights."""

from __future__ import annotations

import triton
import triton.language as tl

from oneshot.triton_kernels.policy_loss_options import AS_POLICY
from oneshot.triton_kernels.policy_loss_sums import token_weight_total, weight_of
from oneshot.triton_kernels.policy_loss_tokens import BLOCK


@triton.jit(do_not_specialize=["batch", "max_length"])
def total_kernel(
    sums, count, loss, metrics, weights, batch, max_length, policy_coef, kl_coef, entropy_coef,
    HAS_COUNT: tl.constexpr, COUNT_EMPTY: tl.constexpr, AGGREGATE: tl.constexpr,
    PRODUCT: tl.constexpr, KL_AGGREGATE: tl.constexpr, ENTROPY_AGGREGATE: tl.constexpr,
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
    if KL_AGGREGATE != AS_POLICY:
        kl_total = token_weight_total(
            tokens, filled, batch, max_length, count, KL_AGGREGATE, COUNT_EMPTY, False
        )
    entropy_total = policy_total
    if ENTROPY_AGGREGATE != AS_POLICY:
        entropy_total = token_weight_total(
            tokens, filled, batch, max_length, count, ENTROPY_AGGREGATE, COUNT_EMPTY, False
        )
    kl_mode: tl.constexpr = AGGREGATE if KL_AGGREGATE == AS_POLICY else KL_AGGREGATE
    entropy_mode: tl.constexpr = AGGREGATE if ENTROPY_AGGREGATE == AS_POLICY else ENTROPY_AGGREGATE
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
        exponent = tl.load(sums + 11 * batch + b, mask=here, other=0.0)
        if not PRODUCT:
            exponent = exponent / tl.where(own < 1.0, 1.0, own)
        tl.store(weights + 3 * batch + b, exponent, mask=here)

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
