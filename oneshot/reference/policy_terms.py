"""What one token contributes to the policy loss: ratio, surrogate and KL, with derivatives."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from oneshot.policy_options import KernelOptions, KlEstimator, Surrogate


def exp_minus_one_minus_x(x: Tensor) -> Tensor:
    """exp(x) - 1 - x without the cancellation that leaves k3 with no digits near x = 0."""
    series = torch.full_like(x, 1.0 / 6227020800.0)  # 1/13!
    factorial = 6227020800.0
    for order in range(13, 2, -1):
        factorial /= order
        series = series * x + 1.0 / factorial
    return torch.where(x.abs() < 0.7, x * x * series, torch.expm1(x) - x)


def kl_terms(
    logprobs: Tensor, ref_logprobs: Tensor, options: KernelOptions
) -> tuple[Tensor, Tensor]:
    """KL estimate of each token (Schulman 2020) and its derivative by the log-probability."""
    log_ratio = ref_logprobs - logprobs
    bound = options.kl_log_ratio_clamp
    x = log_ratio.clamp(-bound, bound)
    kind = KlEstimator(options.kl)
    if kind in (KlEstimator.K1, KlEstimator.K1_PLUS):
        value, slope = -x, torch.ones_like(x)
    elif kind == KlEstimator.K2:
        value, slope = 0.5 * x * x, -x
    elif kind in (KlEstimator.ABS, KlEstimator.ABS_PLUS):
        value, slope = x.abs(), torch.where(x.isnan(), x, -x.sign())
    else:
        value = exp_minus_one_minus_x(x)
        slope = -torch.expm1(x)
    held = (log_ratio.abs() > bound) | (value.abs() > options.kl_clamp)
    slope = torch.where(held, 0, slope)
    value = value.clamp(-options.kl_clamp, options.kl_clamp)
    if kind in (KlEstimator.K1_PLUS, KlEstimator.K3_PLUS, KlEstimator.ABS_PLUS):
        slope = -log_ratio
        value = value + (log_ratio - log_ratio)  # NaN where the gradient is infinite
    return value, slope


class PolicyTerms(NamedTuple):
    """Policy term of each token, its two derivatives, and what was clipped."""

    value: Tensor
    by_logprob: Tensor
    by_log_ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    clipped_dual: Tensor


def scaled(factor: Tensor, x: Tensor) -> Tensor:
    """Product of both, and 0 where the factor is 0 even if x is infinite; a NaN stays."""
    return torch.where((factor == 0) & ~x.isnan(), 0, factor * x)


def log_bounds(options: KernelOptions) -> tuple[float, float]:
    """The clip range as bounds of the log-ratio."""
    low, high = options.clip_min, options.clip_max
    return math.log(low) if low > 0 else -math.inf, math.log(high) if high > 0 else -math.inf


def entering_log_ratio(log_ratio: Tensor, advantages: Tensor, options: KernelOptions) -> Tensor:
    """The log-ratio as it enters the mean of its sequence.

    GMPO holds it on the side on which the sign of the advantage would gain.
    """
    if options.surrogate != Surrogate.GMPO:
        return log_ratio
    low, high = log_bounds(options)
    held = torch.where(advantages > 0, log_ratio.clamp(max=high), log_ratio)
    return torch.where(advantages < 0, log_ratio.clamp(min=low), held)


def _by_sign(negative: Tensor, below: float, otherwise: float) -> Tensor:
    """One number where the advantage is negative, another elsewhere; in float64."""
    wide = torch.zeros_like(negative, dtype=torch.float64)
    return torch.where(negative, wide + below, wide + otherwise)


def policy_terms(
    exponent: Tensor,
    log_ratio: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    factor: Tensor,
    options: KernelOptions,
) -> PolicyTerms:
    """Policy term of each token.

    Args:
        exponent: Logarithm of the ratio that the loss uses, within its bounds.
        log_ratio: That of the token itself.
        logprobs: Log-probability of the token.
        advantages: One per token.
        factor: Advantage times importance weight: all that multiplies the ratio.
        options: The switches.
    """
    ratio = exponent.exp()
    zero = torch.zeros_like(ratio)
    never = torch.zeros_like(ratio, dtype=torch.bool)
    positive, negative = advantages > 0, advantages < 0
    if options.surrogate == Surrogate.SAPO:
        temperature = _by_sign(negative, options.sapo_temperature_neg, options.sapo_temperature_pos)
        temperature = temperature.to(ratio.dtype)
        steep = temperature * (ratio - 1)
        gate, rest = steep.sigmoid(), (-steep).sigmoid()
        slope = scaled(-factor, scaled(4 * gate * rest, ratio))
        return PolicyTerms(
            scaled(-factor, 4 * gate / temperature), zero, slope, never, never, never
        )
    if options.surrogate == Surrogate.VESPO:
        k = _by_sign(negative, options.vespo_k_neg, options.vespo_k_pos).to(ratio.dtype)
        rate = _by_sign(negative, options.vespo_lambda_neg, options.vespo_lambda_pos)
        rate = rate.to(ratio.dtype)
        # an infinite exponent is held, since it would meet an infinite ratio of the other sign
        phi = (rate * (1 - ratio) + k * exponent.clamp(-1e30, 1e30)).exp()
        weight = scaled(-factor, phi)
        return PolicyTerms(scaled(weight, logprobs), weight, zero, never, never, never)
    if options.surrogate == Surrogate.GMPO:
        low, high = log_bounds(options)
        value = scaled(-factor, ratio)
        below, above = (log_ratio < low) & negative, (log_ratio > high) & positive
        return PolicyTerms(value, zero, value, below, above, never)
    if options.surrogate == Surrogate.REINFORCE:
        return PolicyTerms(scaled(-factor, logprobs), -factor, zero, never, never, never)
    below, above = ratio < options.clip_min, ratio > options.clip_max
    if options.surrogate == Surrogate.CISPO:
        weight = scaled(-factor, ratio.clamp(options.clip_min, options.clip_max))
        return PolicyTerms(scaled(weight, logprobs), weight, zero, below, above, never)
    # -min(r A, clip(r) A) with its two further bounds is -A times r held within a range, which
    # depends on the sign of A. Where A is 0 or NaN there is nothing to hold.
    cap = max(options.delta, options.clip_max)
    anything = torch.full_like(ratio, torch.inf)
    lowest = (-anything).masked_fill(negative, options.clip_min)
    highest = anything.masked_fill(positive, min(options.delta, options.clip_max))
    highest = highest.masked_fill(negative, min(cap, options.dual_clip))
    value = scaled(-factor, ratio.clamp(lowest, highest))
    dual = min(options.delta, options.dual_clip if cap > options.dual_clip else torch.inf)
    return PolicyTerms(
        value,
        zero,
        torch.where((ratio < lowest) | (ratio > highest), 0, value),
        below & negative,
        above & positive,
        negative & (ratio > dual),
    )
