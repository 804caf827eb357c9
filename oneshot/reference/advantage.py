"""Plain PyTorch definitions of the `advantage` family."""

from __future__ import annotations

import torch


def whiten(
    values: torch.Tensor, mask: torch.Tensor | None, shift_mean: bool, eps: float
) -> torch.Tensor:
    """(values - mean) / sqrt(var + eps) over unmasked places, unbiased variance, 0 elsewhere."""
    keep = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    # Select before computing: garbage in masked places must not meet arithmetic.
    kept = torch.where(keep, values, 0).double()
    count = keep.sum()
    mean = kept.sum() / count.clamp(min=1)
    deviation = torch.where(keep, kept - mean, 0)
    variance = (deviation * deviation).sum() / (count - 1).clamp(min=1)
    scaled = deviation * torch.rsqrt(variance + eps)
    if not shift_mean:
        scaled = torch.where(keep, scaled + mean, 0)
    return scaled.to(values.dtype).contiguous()
