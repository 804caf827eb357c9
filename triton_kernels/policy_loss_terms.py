"""What one token contributes to the policy loss: device functions shared by forward and backward.

Enums have the numbers of `oneshot.reference.policy_loss`, which is the definition.
"""

from __future__ import annotations

import triton
import triton.language as tl

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
    zero = new * 0.0
    if KL == 0:
        return zero, zero
    log_ratio = ref - new
    x = clamp(log_ratio, -bound, bound)
    if (KL == 1) | (KL == 5):
        value = -x
        slope = zero + 1.0
    elif KL == 2:
        value = 0.5 * x * x
        slope = -x
    elif (KL == 4) | (KL == 7):
        value = tl.abs(x)
        slope = tl.where(x < 0.0, 1.0, tl.where(x > 0.0, -1.0, zero))
    else:
        value = _excess_exp(x)
        slope = -(x + value)
    held = (tl.abs(log_ratio) > bound) | (tl.abs(value) > value_bound)
    slope = tl.where(held, 0.0, slope)
    value = clamp(value, -value_bound, value_bound)
    if KL >= 5:
        slope = -log_ratio
    return value, slope


@triton.jit
def policy_terms(
    new, ratio, advantage, SURROGATE: tl.constexpr, clip_min, clip_max, dual_clip, delta
):  # fmt: skip
    """Policy term, derivatives by log-probability and log-ratio; clipped low, high, dual."""
    zero = ratio * 0.0
    never = ratio != ratio
    never = never & (ratio == ratio)
    if SURROGATE == 2:
        return -advantage * new, zero - advantage, zero, never, never, never
    below = ratio < clip_min
    above = ratio > clip_max
    clipped = clamp(ratio, clip_min, clip_max)
    if SURROGATE == 1:
        weight = -clipped * advantage
        return weight * new, weight, zero, below, above, never
    over = ratio > delta
    plain = tl.where(over, delta, ratio) * advantage
    bounded = clipped * advantage
    takes_plain = plain <= bounded
    # In this order a NaN of either side stays.
    value = -tl.where(takes_plain | (plain != plain), plain, bounded)
    moves = tl.where(takes_plain, over == 0, (below | above) == 0)
    negative = advantage < 0.0
    limit = -dual_clip * advantage  # positive where it is used
    cut = negative & (value > limit)
    return (
        tl.where(cut, limit, value),
        zero,
        tl.where(moves & (cut == 0), -ratio * advantage, 0.0),
        below & negative,
        above & (advantage > 0.0),
        cut | (negative & over),
    )
