"""Importance weights in plain PyTorch: the definition of the op."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from oneshot.reference.policy_tokens import tokens_of


class WeightMetric(IntEnum):
    """Index of each metric in ``ImportanceWeights.metrics``; means run over counted tokens."""

    MEAN = 0  # of the weights as applied (before normalize)
    MIN = 1
    MAX = 2
    EFFECTIVE_SAMPLE_SIZE = 3  # (mean w)^2 / mean w^2, in (0, 1]
    FRACTION_LOW = 4  # share of tokens whose raw weight is below `low`
    FRACTION_HIGH = 5  # share of tokens whose raw weight is above `high`
    KL = 6  # mean of sampler_logprobs - logprobs: k1 estimate of KL(sampler || trainer)
    NORMALIZER = 7  # what the weights were divided by (1 without normalize)


def importance_weights(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    per_sequence: bool,
    truncate: bool,
    low: float,
    high: float,
    log_ratio_clamp: float,
    normalize: bool,
    ignore_nan: bool,
) -> tuple[Tensor, Tensor]:
    """Weights ([B] per sequence, else in the shape of ``logprobs``) and metrics."""
    tokens = tokens_of(logprobs, mask, cu_seqlens)
    log_ratio = tokens.flat(logprobs) - tokens.flat(sampler_logprobs)
    if ignore_nan:
        log_ratio = torch.where(log_ratio.isnan(), 0, log_ratio)
    exponent = log_ratio
    share = tokens.valid.to(torch.float64)  # how many tokens one weight stands for
    if per_sequence:
        exponent = tokens.per_sequence(log_ratio).to(tokens.dtype)
        share = tokens.lengths
    raw = exponent.clamp(-log_ratio_clamp, log_ratio_clamp).exp()
    below, above = raw < low, raw > high
    weights = raw.clamp(low, high) if truncate else torch.where(below | above, 0, raw)
    if not per_sequence:
        weights = torch.where(tokens.valid, weights, 0)

    total = share.sum().clamp(min=1)
    wide = weights.to(torch.float64)
    mean = (share * wide).sum() / total
    square = (share * wide * wide).sum() / total
    counted = wide[share > 0]
    smallest = largest = mean.new_zeros(())
    if counted.numel() > 0:
        smallest, largest = counted.amin(), counted.amax()
    normalizer = mean.new_ones(())
    if normalize:
        if per_sequence:
            filled = (share > 0).to(torch.float64)
            normalizer = (filled * wide).sum() / filled.sum().clamp(min=1)
        else:
            normalizer = mean
        normalizer = torch.where(normalizer <= 1e-8, 1.0, normalizer)  # a NaN stays one
        # Masked tokens weigh 0, and stay at it whatever the normalizer is.
        weights = torch.where(wide == 0, 0, wide / normalizer).to(tokens.dtype)
    metrics = {
        WeightMetric.MEAN: mean,
        WeightMetric.MIN: smallest,
        WeightMetric.MAX: largest,
        WeightMetric.EFFECTIVE_SAMPLE_SIZE: torch.where(square == 0, 0.0, mean * mean / square),
        WeightMetric.FRACTION_LOW: (share * below).sum() / total,
        WeightMetric.FRACTION_HIGH: (share * above).sum() / total,
        WeightMetric.KL: tokens.mean(-log_ratio),
        WeightMetric.NORMALIZER: normalizer,
    }
    stacked = torch.stack([metrics[metric] for metric in WeightMetric])
    if not per_sequence:
        weights = weights.reshape(logprobs.shape)
    return weights, stacked.to(tokens.dtype)
