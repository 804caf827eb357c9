"""What one token contributes to the policy loss: functions that forward and backward share."""

from __future__ import annotations

import triton
import triton.language as tl

from oneshot.triton_kernels.policy_loss_options import (
    CISPO,
    GMPO,
    KL_ABS,
    KL_ABS_PLUS,
    KL_K1,
    KL_K1_PLUS,
    KL_K2,
    KL_K3_PLUS,
    KL_NONE,
    REINFORCE,
    SAPO,
    VESPO,
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
def kl_terms(new, ref, numbers, KL: tl.constexpr):
    """KL estimate (Schulman 2020) and its derivative by the log-probability."""
    zero = tl.zeros_like(new)
    if KL == KL_NONE:
        return zero, zero
    bound = numbers.kl_log_ratio_clamp
    value_bound = numbers.kl_clamp
    log_ratio = ref - new
    x = clamp(log_ratio, -bound, bound)
    if (KL == KL_K1) | (KL == KL_K1_PLUS):
        value = -x
        slope = zero + 1.0
    elif KL == KL_K2:
        value = 0.5 * x * x
        slope = -x
    elif (KL == KL_ABS) | (KL == KL_ABS_PLUS):
        value = tl.abs(x)
        slope = tl.where(x < 0.0, 1.0, tl.where(x > 0.0, -1.0, x * 0.0))
    else:
        value = _excess_exp(x)
        slope = tl.where(tl.abs(x) < 0.7, -(x + value), 1.0 - tl.exp(x))
    held = (tl.abs(log_ratio) > bound) | (tl.abs(value) > value_bound)
    slope = tl.where(held, 0.0, slope)
    value = clamp(value, -value_bound, value_bound)
    if (KL == KL_K1_PLUS) | (KL == KL_K3_PLUS) | (KL == KL_ABS_PLUS):
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
def held_sides(log_ratio, advantage, numbers):
    """Where GMPO holds the log-ratio at its lower bound, and where at its upper one."""
    low = (log_ratio < numbers.log_min) & (advantage < 0.0)
    return low, (log_ratio > numbers.log_max) & (advantage > 0.0)


@triton.jit
def entering_log_ratio(log_ratio, advantage, numbers, SURROGATE: tl.constexpr):
    """The log-ratio as it enters the sum over its sequence; GMPO holds it on one side."""
    if SURROGATE != GMPO:
        return log_ratio
    low, high = held_sides(log_ratio, advantage, numbers)
    return tl.where(low, numbers.log_min, tl.where(high, numbers.log_max, log_ratio))


@triton.jit
def _sigmoid_terms(ratio, factor, steepness):
    """SAPO: value and derivative by the log-ratio."""
    x = steepness * (ratio - 1.0)
    e = tl.exp(-tl.abs(x))
    larger = 1.0 / (1.0 + e)  # sigmoid(|x|)
    gate = tl.where(x < 0.0, e * larger, larger)
    slope = scaled(4.0 * e * larger * larger, ratio)
    return scaled(-factor, 4.0 * gate / steepness), scaled(-factor, slope)


@triton.jit
def _gamma_weight(ratio, exponent, k, rate):
    """VESPO's weight of log p. An infinite exponent is held: the ratio may be infinite, too."""
    return tl.exp(rate * (1.0 - ratio) + k * clamp(exponent, -1e30, 1e30))


@triton.jit
def policy_terms(
    new, log_ratio, exponent, ratio, advantage, factor, numbers, SURROGATE: tl.constexpr
):  # fmt: skip
    """Policy term, derivatives by log-probability and log-ratio; clipped low, high, dual.

    `log_ratio` is the token's own, `exponent` the logarithm of `ratio`; `factor` is the advantage
    times the importance weight: all that multiplies the ratio.
    """
    zero = tl.zeros_like(ratio)
    never = zero != 0.0
    negative = advantage < 0.0
    positive = advantage > 0.0
    if SURROGATE == REINFORCE:
        return scaled(-factor, new), -factor, zero, never, never, never
    if SURROGATE == SAPO:
        steepness = tl.where(negative, numbers.sapo_temperature_neg, numbers.sapo_temperature_pos)
        value, slope = _sigmoid_terms(ratio, factor, steepness)
        return value, zero, slope, never, never, never
    if SURROGATE == VESPO:
        k = tl.where(negative, numbers.vespo_k_neg, numbers.vespo_k_pos)
        rate = tl.where(negative, numbers.vespo_lambda_neg, numbers.vespo_lambda_pos)
        weight = scaled(-factor, _gamma_weight(ratio, exponent, k, rate))
        return scaled(weight, new), weight, zero, never, never, never
    if SURROGATE == GMPO:
        value = scaled(-factor, ratio)
        held_low, held_high = held_sides(log_ratio, advantage, numbers)
        return value, zero, value, held_low, held_high, never
    clip_min, clip_max = numbers.clip_min, numbers.clip_max
    below = ratio < clip_min
    above = ratio > clip_max
    if SURROGATE == CISPO:
        weight = scaled(-factor, clamp(ratio, clip_min, clip_max))
        return scaled(weight, new), weight, zero, below, above, never
    # -min(r A, clip(r) A) with its two further bounds is -A times r held within a range, which
    # depends on the sign of A.
    inf = float("inf")
    dual_clip, delta = numbers.dual_clip, numbers.delta
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
