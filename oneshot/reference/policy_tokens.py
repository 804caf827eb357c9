"""What the references of the `policy_loss` family share: one flat view of a batch, aggregation.

Both layouts are brought to one form first: flat tokens, and the sequence number of each token.
What a masked token holds is replaced before it is used, so garbage (NaN, inf) never spreads.
Per-token arithmetic runs in float32 (float64 for float64 inputs), sums over tokens in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from oneshot.policy_options import Aggregate


class Tokens(NamedTuple):
    """One flat view of a padded or packed batch."""

    valid: Tensor  # [N] bool
    sequence: Tensor  # [N] int64
    lengths: Tensor  # [B] float64: tokens that count
    dtype: torch.dtype

    def flat(self, x: Tensor) -> Tensor:
        """[B, T] or [N] values in the arithmetic's dtype, zero where masked."""
        return torch.where(self.valid, x.reshape(-1).to(self.dtype), 0)

    def spread(self, x: Tensor) -> Tensor:
        """Like `flat`, for values that may also be one a sequence ([B])."""
        return self.flat(x if x.numel() == self.valid.numel() else x[self.sequence])

    def per_sequence(self, x: Tensor) -> Tensor:
        """Sum over each sequence, [B] float64."""
        return x.new_zeros(self.lengths.shape, dtype=torch.float64).index_add(
            0, self.sequence, x.to(torch.float64)
        )

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the tokens that count; 0 when there is none."""
        return x.to(torch.float64).sum() / self.lengths.sum().clamp(min=1)


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def tokens_of(like: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tokens:
    """The view of a batch whose tokens lie like those of `like`."""
    if cu_seqlens is None:
        batch, width = like.shape
        sequence = torch.arange(batch, device=like.device).repeat_interleave(width)
    else:
        batch = cu_seqlens.numel() - 1
        rises = (
            cu_seqlens[0] == 0 and cu_seqlens[-1] == like.numel() and cu_seqlens.diff().ge(0).all()
        )
        if not rises:
            raise ValueError(f"cu_seqlens must rise from 0 to {like.numel()}, got {cu_seqlens}")
        sequence = torch.arange(batch, device=like.device).repeat_interleave(
            cu_seqlens.diff(), output_size=like.numel()
        )
    valid = like.new_ones(like.numel(), dtype=torch.bool) if mask is None else mask.reshape(-1)
    lengths = like.new_zeros(batch, dtype=torch.float64).index_add(
        0, sequence, valid.to(torch.float64)
    )
    return Tokens(valid, sequence, lengths, arithmetic_dtype(like))


def token_weights(
    lengths: Tensor, aggregate: int, count: Tensor | None, count_empty: bool, max_length: int
) -> Tensor:
    """Weight of one token of each sequence in the aggregated number; 0 for an empty batch.

    Args:
        lengths: [B] float64, tokens that count.
        aggregate: One of `Aggregate`.
        count: 0-dim, replaces the number of tokens (token-mean) or of sequences (seq-mean-*).
        count_empty: Whether sequences without any token count in the mean over sequences.
        max_length: The divisor of seq-mean-token-sum-norm.

    Returns:
        [B] float64.
    """
    if aggregate == Aggregate.TOKEN_SUM:
        return torch.ones_like(lengths)
    if count is not None:
        total = count.to(torch.float64)
    elif aggregate == Aggregate.TOKEN_MEAN:
        total = lengths.sum()
    elif count_empty:
        total = lengths.new_tensor(lengths.numel())
    else:
        total = (lengths > 0).sum().to(torch.float64)
    if aggregate == Aggregate.SEQ_MEAN_TOKEN_SUM_NORM:
        total = total * max_length
    if aggregate == Aggregate.SEQ_MEAN_TOKEN_MEAN:
        total = total * lengths
    else:
        total = total.expand_as(lengths)
    return torch.where(total == 0, 0.0, 1.0 / total)
