"""How the kernels of the `logprob` family read tiles of rows."""

from __future__ import annotations

import triton
import triton.language as tl

from oneshot.triton_kernels._launch import rows_of

TILE = 8192
PARTS = tl.constexpr(32)  # partial sums, or targets, that a program takes at a time
NEVER = tl.constexpr(float("-inf"))
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
# What changes from batch to batch makes no new kernel. Strides may: whether 16 divides them decides
# whether loads are 16 bytes wide.


@triton.jit
def row_start(row, inner, outer, step):
    """Where a row begins, see `Rows`."""
    row = row.to(tl.int64)
    return (row // inner) * outer + (row % inner) * step


@triton.jit
def row_counts(mask, row, HAS_MASK: tl.constexpr):
    """Whether the mask leaves a row in."""
    if HAS_MASK:
        return tl.load(mask + row) != 0
    return row >= 0


@triton.jit
def tile_of(
    logits, start, keep, keep_start, columns, used, HAS_KEEP: tl.constexpr
):  # fmt: skip
    """Logits as float32, -inf where `used` or the keep-mask leave them out."""
    if HAS_KEEP:
        used &= tl.load(keep + keep_start + columns, mask=used, other=0) != 0
    return tl.load(logits + start + columns, mask=used, other=float("-inf")).to(tl.float32)


def keep_rows(logits, keep_mask):
    """Arguments of the keep-mask; without one, those of any tensor."""
    if keep_mask is None:
        return logits, 1, 0, 0
    return rows_of(keep_mask.expand(logits.shape)).arguments()


def tile_size(vocab):
    """Logits of a tile: few for a small vocabulary."""
    return TILE if vocab > 1024 else 1024
