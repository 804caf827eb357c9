"""What one token contributes to the policy loss: functions that forward and backward share."""

from __future__ import annotations

import triton
import triton.language as tl

from oneshot.triton_kernels.policy_loss_options import (
    ABS,
    ABS_PLUS,
    CISPO,
    K1,
    K1_PLUS,
    K2,
    K3_PLUS,
    KL_NONE,
    REINFORCE,
)
from oneshot.triton_kernels.policy_loss_tokens import clamp


@triton.jit
def _excess_exp(x):
    """exp(x) - 1 - x without the cancellation that leaves no digits near x = 0."""
    series = 1.0 / 3628800.0
    series = series * x + 1.0 / 362880.0
    series = series * x + 1.0 / 40320.0
    series = series * x + 1.0 / 5040.0
    series = series * x + 1.0 / 720.0
    series = series * x + 1.0 / 120.0
    series = series * x + 1.0 / 24.0
    series = series * x + 1.0 / 6.0
    series = series * x + 0.5
    return tl.where(tl.abs(x) < 0.7, x * x * series, tl.exp(x) - 1.0 - x)


@triton.jit
def kl_terms(new, ref, KL: tl.constexpr, bound, value_bound):
    """KL estimate (Schulman 2020) and its derivative by the log-probability."""
    zero = tl.zeros_like(new)
    if KL == KL_NONE:
        return zero, zero
    log_ratio = ref - new
    x = clamp(log_ratio, -bound, bound)
    if (KL == K1) | (KL == K1_PLUS):
        value = -x
        slope = zero + 1.0
    elif KL == K2:
        value = 0.5 * x * x
        slope = -x
    elif (KL == ABS) | (KL == ABS_PLUS):
        value = tl.abs(x)
        slope = tl.where(x < 0.0, 1.0, tl.where(x > 0.0, -1.0, x * 0.0))
    else:
        value = _excess_exp(x)
        slope = tl.where(tl.abs(x) < 0.7, -(x + value), 1.0 - tl.exp(x))
    held = (tl.abs(log_ratio) > bound) | (tl.abs(value) > value_bound)
    slope = tl.where(held, 0.0, slope)
    value = clamp(value, -value_bound, value_bound)
    if (KL == K1_PLUS) | (KL == K3_PLUS) | (KL == ABS_PLUS):
        slope = -log_ratio
        value += log_ratio - log_ratio  # NaN where the gradient is infinite
    return value, slope


@triton.jit
def scaled(factor, x):
    """Product of both, and 0 where the factor is 0 even if x is infinite; a NaN stays."""
    return tl.where((factor == 0.0) & (x == x), 0.0, factor * x)


@triton.jit
def factor_of(advantage, weight):
    """The product of both, where either may be 0 and the other infinite."""
    return tl.where(advantage == 0.0, scaled(advantage, weight), scaled(weight, advantage))


@triton.jit
def policy_terms(
    new, ratio, advantage, factor, SURROGATE: tl.constexpr, clip_min, clip_max, dual_clip, delta
):  # fmt: skip
    """Policy term, derivatives by log-probability and log-ratio; clipped low, high, dual.

    `factor` is the advantage times the importance weight: all that multiplies the ratio.
    """
    zero = tl.zeros_like(ratio)
    never = tl.zeros_like(ratio) != 0.0
    if SURROGATE == REINFORCE:
        return scaled(-factor, new), -factor, zero, never, never, never
    below = ratio < clip_min
    above = ratio > clip_max
    if SURROGATE == CISPO:
        weight = scaled(-factor, clamp(ratio, clip_min, clip_max))
        return scaled(weight, new), weight, zero, below, above, never
    # -min(r A, clip(r) A) with its two further bounds is -A times r held within a range, which
    # depends on the sign of A.
    negative = advantage < 0.0
    positive = advantage > 0.0
    inf = float("inf")
    cap = tl.where(delta > clip_max, delta, clip_max)
    lowest = tl.where(negative, clip_min, -inf)
    highest = tl.where(positive, tl.where(delta < clip_max, delta, clip_max), inf)
    highest = tl.where(negative, tl.where(dual_clip < cap, dual_clip, cap), highest)
    value = scaled(-factor, clamp(ratio, lowest, highest))
    dual = tl.where((dual_clip < cap) & (dual_clip < delta), dual_clip, delta)
    return (
        value,
        zero,
        tl.where((ratio < lowest) | (ratio > highest), 0.0, value),
        below & negative,
        above & positive,
        negative & (ratio > dual),
    )
