"""Value loss in plain PyTorch: the definition of the op."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from oneshot.reference.policy_tokens import Tokens, token_weights, tokens_of


class ValueMetric(IntEnum):
    """Index of each metric in ``ValueLoss.metrics``."""

    CLIP_FRACTION = 0  # share of tokens where the clipped error is the larger one
    VALUE_MEAN = 1
    RETURN_MEAN = 2
    EXPLAINED_VARIANCE = 3  # 1 - Var(return - value) / Var(return); 0 when the returns do not vary
    TOKENS = 4


def value_loss(
    values: Tensor,
    old_values: Tensor | None,
    returns: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    count: Tensor | None,
    clip: float,
    aggregate: int,
    count_empty: bool,
    max_length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, metrics and the [B] float64 token weights. ``clip`` = inf: no clipping."""
    tokens = tokens_of(values, mask, cu_seqlens)
    value, target = tokens.flat(values), tokens.flat(returns)
    squared, _, clipped = _value_terms(tokens, values, old_values, returns, clip)
    weights = token_weights(tokens.lengths, aggregate, count, count_empty, max_length)
    loss = (weights * tokens.per_sequence(squared)).sum()

    total = tokens.lengths.sum().clamp(min=1)

    def variance(x: Tensor) -> Tensor:
        x = x.to(torch.float64)
        centred = torch.where(tokens.valid, x - x.sum() / total, 0)
        return (centred * centred).sum() / total

    spread = variance(target)
    explained = torch.where(spread == 0, 0.0, 1 - variance(target - value) / spread)
    metrics = {
        ValueMetric.CLIP_FRACTION: tokens.mean(clipped),
        ValueMetric.VALUE_MEAN: tokens.mean(value),
        ValueMetric.RETURN_MEAN: tokens.mean(target),
        ValueMetric.EXPLAINED_VARIANCE: explained,
        ValueMetric.TOKENS: tokens.lengths.sum(),
    }
    stacked = torch.stack([metrics[metric] for metric in ValueMetric])
    return loss.to(tokens.dtype), stacked.to(tokens.dtype), weights


def _value_terms(
    tokens: Tokens, values: Tensor, old_values: Tensor | None, returns: Tensor, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Half the (clipped) squared error of each token, its derivative, and whether clipped."""
    value, target = tokens.flat(values), tokens.flat(returns)
    error = value - target
    clipped = torch.zeros_like(tokens.valid)
    if old_values is not None:
        old = tokens.flat(old_values)
        bounded_error = value.clamp(old - clip, old + clip) - target
        clipped = bounded_error * bounded_error > error * error
        error = torch.where(clipped | old.isnan(), bounded_error, error)  # a NaN is not hidden
    return 0.5 * error * error, torch.where(clipped, 0, error), clipped


def value_loss_backward(
    grad_loss: Tensor,
    values: Tensor,
    old_values: Tensor | None,
    returns: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    weights: Tensor,
    clip: float,
) -> Tensor:
    """Gradient by the values, in their shape and dtype."""
    tokens = tokens_of(values, mask, cu_seqlens)
    _, slope, _ = _value_terms(tokens, values, old_values, returns, clip)
    scale = (grad_loss.to(torch.float64) * weights).to(tokens.dtype)[tokens.sequence]
    grad = torch.where(tokens.valid, scale * slope, 0)
    return grad.to(values.dtype).reshape(values.shape)
