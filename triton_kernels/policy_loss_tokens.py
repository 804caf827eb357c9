"""How the kernels of the `policy_loss` family find the tokens of a sequence, padded or packed.

SPLITS programs share a sequence: program s takes its blocks s, s + SPLITS, ... and writes sums of
its own, so that no atomics are needed and neither padding nor neighbours change a bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

SPLITS = tl.constexpr(8)
BLOCK = tl.constexpr(1024)


@triton.jit
def span(b, cu_seqlens, width, total, PACKED: tl.constexpr):
    """First token of sequence b in its row, its length, and 0 (NaN where cu_seqlens is absurd)."""
    if PACKED:
        first = tl.load(cu_seqlens + b)
        end = tl.load(cu_seqlens + b + 1)
        bad = (first < 0) | (end < first) | (end > total)
        length = tl.where(bad, 0, end - first)
        return tl.where(bad, 0, first), length, tl.where(bad, float("nan"), 0.0)
    first = b * 0
    return first, first + width, 0.0


@triton.jit
def counted(mask, at, inside, HAS_MASK: tl.constexpr):
    """Which tokens count: those inside the sequence that the mask does not leave out."""
    if HAS_MASK:
        return tl.load(mask + at, mask=inside, other=0) != 0
    return inside


@triton.jit
def take(x, stride, b, at, used, PER_TOKEN: tl.constexpr):
    """float32 values of tokens, 0 where not used: one each, or one for the whole sequence."""
    if PER_TOKEN:
        return tl.load(x + b * stride + at, mask=used, other=0.0).to(tl.float32)
    return tl.where(used, tl.load(x + b * stride).to(tl.float32), 0.0)


@triton.jit
def total(x):
    """Sum of a block in float64."""
    return tl.sum(x.to(tl.float64), 0)


@triton.jit
def clamp(x, low, high):
    """Unlike tl.clamp, keeps a NaN whatever the target."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def whole_of(partial, b, PRODUCT: tl.constexpr):
    """Of a sequence, from [B, SPLITS, 2] sums and counts: its mean, or its sum; float64."""
    splits = partial + (b * SPLITS + tl.arange(0, SPLITS)) * 2
    if PRODUCT:
        return tl.sum(tl.load(splits), 0)
    tokens = tl.sum(tl.load(splits + 1), 0)
    return tl.sum(tl.load(splits), 0) / tl.where(tokens < 1.0, 1.0, tokens)


class Layout(NamedTuple):
    """Where tokens lie; kernels take `arguments` and the flags PACKED and HAS_MASK."""

    batch: int
    width: int  # tokens a row; 0 when packed
    total: int
    cu_seqlens: torch.Tensor | None
    mask: torch.Tensor | None
    like: torch.Tensor

    def arguments(self) -> tuple[torch.Tensor, int, int, torch.Tensor]:
        """cu_seqlens, width, total, mask; a missing tensor is any tensor."""
        return (
            self.like if self.cu_seqlens is None else self.cu_seqlens,
            self.width,
            self.total,
            self.like if self.mask is None else self.mask,
        )

    def flags(self) -> dict[str, bool]:
        """The compile-time switches of the layout."""
        return {"PACKED": self.cu_seqlens is not None, "HAS_MASK": self.mask is not None}

    def tokens(self, x: torch.Tensor | None) -> tuple[torch.Tensor, int]:
        """A tensor of tokens, or of one value a sequence, and its stride from row to row."""
        if x is None:
            return self.like, 0
        if self.per_token(x):
            x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
            return x, 0 if self.cu_seqlens is not None else x.stride(0)
        return x, x.stride(0)

    def per_token(self, x: torch.Tensor | None) -> bool:
        """Whether x has a value for each token."""
        return x is None or x.shape == self.like.shape

    def fresh(self, needed: bool) -> torch.Tensor:
        """An output in the form of the tokens; tokens of no sequence are NaN."""
        if not needed:
            return self.like.new_empty(0)
        if self.cu_seqlens is None:
            return self.like.new_empty(self.like.shape)
        return self.like.new_full(self.like.shape, float("nan"))


def layout(
    like: torch.Tensor, mask: torch.Tensor | None, cu_seqlens: torch.Tensor | None
) -> Layout:
    """The layout of `like`, [B, T] or packed [N]."""
    packed = cu_seqlens is not None
    return Layout(
        cu_seqlens.shape[0] - 1 if packed else like.shape[0],
        0 if packed else like.shape[1],
        like.numel(),
        cu_seqlens.contiguous() if packed else None,
        None if mask is None else mask.contiguous(),
        like,
    )
