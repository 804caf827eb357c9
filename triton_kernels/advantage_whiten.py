"""Triton kernels of whitening: moments of blocks, put together in float64, and the result."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from oneshot.triton_kernels._launch import ceil_div, single

BLOCK = tl.constexpr(1024)


@triton.jit(do_not_specialize=["count"])
def _moments_kernel(values, mask, parts, count, HAS_MASK: tl.constexpr):
    """Of each block: how many values count, their mean, and their squared deviations from it."""
    program = tl.program_id(0).to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    used = at < count
    if HAS_MASK:
        used = tl.load(mask + at, mask=used, other=0) != 0
    value = tl.load(values + at, mask=used, other=0.0).to(tl.float64)
    present = tl.sum(tl.where(used, 1.0, 0.0).to(tl.float64), 0)
    mean = tl.sum(value, 0) / tl.where(present == 0.0, 1.0, present)
    deviation = tl.where(used, value - mean, 0.0)
    tl.store(parts + program * 3, present)
    tl.store(parts + program * 3 + 1, mean)
    tl.store(parts + program * 3 + 2, tl.sum(deviation * deviation, 0))


@triton.jit(do_not_specialize=["blocks"])
def _combine_kernel(parts, result, blocks, eps):
    """[2]: mean and scale of all values, from the moments of the blocks (Chan et al. 1979)."""
    lanes = tl.arange(0, BLOCK)
    present = tl.zeros([], tl.float64)
    total = tl.zeros([], tl.float64)
    squares = tl.zeros([], tl.float64)
    for start in range(0, blocks, BLOCK):
        here = start + lanes < blocks
        size = tl.load(parts + (start + lanes) * 3, mask=here, other=0.0)
        own = tl.load(parts + (start + lanes) * 3 + 1, mask=here, other=0.0)
        present += tl.sum(size, 0)
        total += tl.sum(size * own, 0)
    mean = total / tl.where(present == 0.0, 1.0, present)
    for start in range(0, blocks, BLOCK):
        here = start + lanes < blocks
        size = tl.load(parts + (start + lanes) * 3, mask=here, other=0.0)
        own = tl.load(parts + (start + lanes) * 3 + 1, mask=here, other=0.0)
        inner = tl.load(parts + (start + lanes) * 3 + 2, mask=here, other=0.0)
        squares += tl.sum(inner + size * (own - mean) * (own - mean), 0)
    variance = squares / tl.where(present < 2.0, 1.0, present - 1.0)
    tl.store(result, mean)
    tl.store(result + 1, 1.0 / tl.sqrt(variance + eps))


@triton.jit(do_not_specialize=["count"])
def _whiten_kernel(
    values, mask, result, out, count, HAS_MASK: tl.constexpr, SHIFT_MEAN: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    used = inside
    if HAS_MASK:
        used = tl.load(mask + at, mask=inside, other=0) != 0
    mean = tl.load(result)
    value = tl.load(values + at, mask=used, other=0.0).to(tl.float64)
    scaled = (value - mean) * tl.load(result + 1)
    if not SHIFT_MEAN:
        scaled += mean
    tl.store(out + at, tl.where(used, scaled, 0.0).to(tl.float32), mask=inside)


def whiten(values, mask, shift_mean, eps):
    """Launcher of the op."""
    values = values.contiguous()
    out = torch.empty_like(values)
    count = values.numel()
    if count == 0:
        return out
    mask_of = values if mask is None else mask.contiguous()
    blocks = ceil_div(count, BLOCK.value)
    parts = values.new_empty((blocks, 3), dtype=torch.float64)
    result = values.new_empty(2, dtype=torch.float64)
    _moments_kernel[(blocks,)](values, mask_of, parts, count, HAS_MASK=mask is not None)
    _combine_kernel[(1,)](parts, result, blocks, single(eps))
    _whiten_kernel[(blocks,)](
        values, mask_of, result, out, count, HAS_MASK=mask is not None, SHIFT_MEAN=shift_mean
    )
    return out
