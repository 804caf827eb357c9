"""Triton kernels of the `logprob` family: one read of the logits forward, one write backward.

A row is cut into tiles of TILE logits, which depend on nothing but the length of the row, so
neighbours change no bit. A program holds one tile in registers: its maximum, then its sums, without
reading anything twice. Small kernels, one program a row, put the tiles together in float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from oneshot.triton_kernels._launch import ceil_div, rows_of, single
from oneshot.triton_kernels.logprob_backward import (
    token_logprobs_and_entropy_backward,
    token_logprobs_and_entropy_backward_,
)  # fmt: skip
from oneshot.triton_kernels.logprob_tiles import (
    LN2,
    LOG2E,
    NEVER,
    PARTS,
    TILE,
    keep_rows,
    row_counts,
    row_start,
    tile_of,
    tile_size,
)  # fmt: skip

__all__ = [
    "token_logprobs_and_entropy",
    "token_logprobs_and_entropy_backward",
    "token_logprobs_and_entropy_backward_",
]


@triton.jit
def _sum(x, TILE: tl.constexpr):
    """In float64 but for neighbours: 1 - p of a nearly certain token must not round to 0."""
    return tl.sum(tl.sum(tl.reshape(x, (TILE // 4, 4)), 1).to(tl.float64), 0)


@triton.jit(do_not_specialize=["inner", "keep_inner"])
def _partial_kernel(
    logits, inner, outer, step, keep, keep_inner, keep_outer, keep_step, mask, partials,
    vocab, tiles, scale,
    HAS_KEEP: tl.constexpr, HAS_MASK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of each tile: its maximum, sum 2^z and sum z 2^z, with z = (x - maximum) * scale."""
    program = tl.program_id(0).to(tl.int64)
    row = program // tiles
    columns = (program % tiles) * TILE + tl.arange(0, TILE)
    used = columns < tl.where(row_counts(mask, row, HAS_MASK), vocab, 0)
    keep_start = row_start(row, keep_inner, keep_outer, keep_step)
    start = row_start(row, inner, outer, step)
    x = tile_of(logits, start, keep, keep_start, columns, used, HAS_KEEP)
    high = tl.max(x, 0)
    z = (x - tl.where(high == NEVER, 0.0, high)) * scale
    e = tl.exp2(z)
    # 2^-inf is 0, and so is what it adds; a NaN is no zero and stays.
    weighted = tl.where(e == 0.0, 0.0, z * e)
    out = partials + program * 3
    tl.store(out, high)
    tl.store(out + 1, _sum(e, TILE))
    tl.store(out + 2, _sum(weighted, TILE))


@triton.jit(do_not_specialize=["inner", "keep_inner", "count"])
def _finish_kernel(
    logits, inner, outer, step, keep, keep_inner, keep_outer, keep_step, mask, partials,
    targets, logprobs, entropy, stats, vocab, tiles, count, scale,
    HAS_KEEP: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Puts the tiles of a row together, and looks its targets up."""
    row = tl.program_id(0).to(tl.int64)
    counted = row_counts(mask, row, HAS_MASK)
    lanes = tl.arange(0, PARTS)
    high = tl.full([], NEVER, tl.float64)
    to_read = tl.where(counted, tiles, 0)
    for first in range(0, tiles, PARTS):
        here = first + lanes < to_read
        part = tl.load(partials + (row * tiles + first + lanes) * 3, mask=here, other=NEVER)
        high = tl.maximum(high, tl.max(part, 0))
    total = tl.zeros([], tl.float64)
    weighted = tl.zeros([], tl.float64)
    wide_scale = tl.zeros([], tl.float64) + scale
    for first in range(0, tiles, PARTS):
        here = first + lanes < to_read
        part = partials + (row * tiles + first + lanes) * 3
        own = tl.load(part, mask=here, other=NEVER)
        sums = tl.load(part + 1, mask=here, other=0.0)
        products = tl.load(part + 2, mask=here, other=0.0)
        # A tile of nothing but -inf has sums of 0; of -inf and NaN, NaN.
        drop = tl.where(own == NEVER, 0.0, (own - high) * wide_scale)
        shrink = tl.exp(drop * LN2)
        total += tl.sum(sums * shrink, 0)
        moved = (products + drop * sums) * shrink
        weighted += tl.sum(tl.where(shrink == 0.0, 0.0, moved), 0)
    log_total = tl.log(total)
    mean = weighted / total * LN2
    tl.store(entropy + row, tl.where(counted, log_total - mean, 0.0).to(tl.float32))
    tl.store(stats + row * 3, tl.where(counted, high, 0.0).to(tl.float32))
    tl.store(stats + row * 3 + 1, tl.where(counted, total, 0.0).to(tl.float32))
    tl.store(stats + row * 3 + 2, tl.where(counted, mean, 0.0).to(tl.float32))

    start = row_start(row, inner, outer, step)
    keep_start = row_start(row, keep_inner, keep_outer, keep_step)
    for first in range(0, count, PARTS):
        here = first + lanes < count
        ids = tl.load(targets + row * count + first + lanes, mask=here, other=0)
        known = (ids >= 0) & (ids < vocab)
        safe = here & known & (first + lanes < tl.where(counted, count, 0))
        x = tile_of(logits, start, keep, keep_start, ids, safe, HAS_KEEP)
        # `scale` as in the sums, so that both sides mean the same temperature.
        value = (x.to(tl.float64) - high) * (wide_scale * LN2) - log_total
        value = tl.where(known, value, float("nan"))
        value = tl.where(counted, value, 0.0)
        tl.store(logprobs + row * count + first + lanes, value.to(tl.float32), mask=here)


def token_logprobs_and_entropy(
    logits, targets, mask, keep_mask, temperature, inplace_backward
):  # fmt: skip
    """Launcher of the op; a target outside the vocabulary gives NaN."""
    rows, vocab = logits.shape[:-1], logits.shape[-1]
    logprobs = logits.new_empty(targets.shape, dtype=torch.float32)
    entropy = logits.new_empty(rows, dtype=torch.float32)
    stats = logits.new_empty((*rows, 3), dtype=torch.float32)
    if entropy.numel() == 0:
        return logprobs, entropy, stats
    size = tile_size(vocab)
    tiles = ceil_div(vocab, size)
    partials = logits.new_empty(entropy.numel() * tiles * 3, dtype=torch.float64)
    ids = targets.contiguous()
    counted = logits if mask is None else mask.contiguous()
    shared = (*rows_of(logits).arguments(), *keep_rows(logits, keep_mask), counted, partials)
    flags = {"HAS_KEEP": keep_mask is not None, "HAS_MASK": mask is not None}
    scale = single(LOG2E.value / temperature)
    _partial_kernel[(entropy.numel() * tiles,)](
        *shared, vocab, tiles, scale, **flags, TILE=size, num_warps=8 if size == TILE else 4
    )
    _finish_kernel[(entropy.numel(),)](
        *shared, ids, logprobs, entropy, stats, vocab, tiles, ids.numel() // entropy.numel(),
        scale, **flags, num_warps=1,
    )  # fmt: skip
    return logprobs, entropy, stats
