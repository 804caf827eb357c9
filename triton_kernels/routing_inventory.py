"""Triton kernels of LoRA from the inventories themselves: decoding, where mixtures do not pay.

Each of a few rows takes a mixture of its own or nearly so. All skills are applied to a tile of rows
and weighted where the rows are: at rank r, before and after it. Two launches, no mixture in memory,
nothing gathered, no list of rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from oneshot.triton_kernels._launch import ceil_div, power_of_two, single

ROWS = 16  # the least that a tensor core takes
SPAN = 64  # features of a product at a time
PART = 256  # features that one program reduces
MOST_ROWS = 64  # up to here, whatever the number of mixtures


def takes(total: int, mixtures: int) -> bool:
    """Whether mixtures would be read about as often as they would be made."""
    return total <= max(MOST_ROWS, 2 * mixtures)


@triton.jit
def _rows(tile, rows, total, repeat, mixtures, ROWS: tl.constexpr):
    """Numbers of the rows of a tile, their mixtures, which rows exist, and which have a mixture."""
    n = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = n < total
    u = tl.load(rows + n // repeat, mask=inside, other=0)
    known = inside & (u >= 0) & (u < mixtures)
    return n, tl.where(known, u, 0), inside, known


@triton.jit(do_not_specialize=["total", "repeat", "mixtures"])
def _shrink_kernel(
    x, lora_a, weights, rows, parts, total, repeat, mixtures, heads, skills, length, rank, pieces,
    PART: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """parts[piece of a head, row] = sum over its features of x times the mixture, [rank]."""
    n, u, inside, known = _rows(tl.program_id(0), rows, total, repeat, mixtures, ROWS)
    part = tl.program_id(1).to(tl.int64)
    h = part // pieces
    first = (part % pieces) * PART
    ranks = tl.arange(0, RANK)
    sums = tl.zeros([ROWS, RANK], tl.float32)
    for start in range(first, tl.minimum(first + PART, length), SPAN):
        columns = start + tl.arange(0, SPAN)
        own = columns < length
        left = tl.load(
            x + n[:, None] * heads * length + h * length + columns[None, :],
            mask=inside[:, None] & own[None, :], other=0.0,
        )  # fmt: skip
        for k in range(0, skills):
            right = tl.load(
                lora_a + ((h * skills + k) * length + columns[:, None]) * rank + ranks[None, :],
                mask=own[:, None] & (ranks < rank)[None, :], other=0.0,
            )  # fmt: skip
            weight = tl.load(weights + (u * heads + h) * skills + k, mask=known, other=0.0)
            product = tl.dot(left, right.to(left.dtype), input_precision="ieee")
            sums += weight[:, None] * product
    to = parts + (part * total + n[:, None]) * rank + ranks[None, :]
    tl.store(to, sums, mask=inside[:, None] & (ranks < rank)[None, :])


@triton.jit(do_not_specialize=["total", "repeat", "mixtures"])
def _expand_kernel(
    parts, lora_b, weights, rows, base, y, shrunk, total, repeat, mixtures, heads, skills, length,
    rank, blocks, count, scaling,
    HAS_BASE: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """One span of a head of y = base + shrunk times the mixture; NaN for rows of no mixture."""
    n, u, inside, known = _rows(tl.program_id(0), rows, total, repeat, mixtures, ROWS)
    program = tl.program_id(1)
    h = (program // blocks).to(tl.int64)
    columns = (program % blocks) * SPAN + tl.arange(0, SPAN)
    own = columns < length
    ranks = tl.arange(0, RANK)
    at = n[:, None] * rank + ranks[None, :]
    keep = inside[:, None] & (ranks < rank)[None, :]
    left = tl.zeros([ROWS, RANK], tl.float32)
    step = total.to(tl.int64) * rank
    for part in range(0, count):
        left += tl.load(parts + part * step + at, mask=keep, other=0.0)
    left = tl.where(known[:, None], left * scaling, float("nan"))
    if program == 0:
        tl.store(shrunk + at, left, mask=keep)
    # Lanes past the rank meet zeros of the inventory, and must not be NaN.
    left = tl.where((ranks < rank)[None, :], left, 0.0)
    dtype = y.dtype.element_ty
    value = tl.zeros([ROWS, SPAN], tl.float32)
    for k in range(0, skills):
        right = tl.load(
            lora_b + ((h * skills + k) * rank + ranks[:, None]) * length + columns[None, :],
            mask=(ranks < rank)[:, None] & own[None, :], other=0.0,
        )  # fmt: skip
        weight = tl.load(weights + (u * heads + h) * skills + k, mask=known, other=0.0)
        product = tl.dot(left.to(dtype), right.to(dtype), input_precision="ieee")
        value += weight[:, None] * product
    at = n[:, None] * heads * length + h * length + columns[None, :]
    keep = inside[:, None] & own[None, :]
    if HAS_BASE:
        value += tl.load(base + at, mask=keep, other=0.0).to(tl.float32)
    tl.store(y + at, value.to(dtype), mask=keep)


def lora(x, lora_a, lora_b, weights, rows, base, scaling):
    """What `routing.routed_lora` returns; the rank is at least 1 and there are rows."""
    lora_a, lora_b, weights = lora_a.contiguous(), lora_b.contiguous(), weights.contiguous()
    heads, skills, length, rank = lora_a.shape
    total = x.shape[0] * x.shape[1]
    y = x.new_empty((*x.shape[:2], heads * lora_b.shape[3]))
    shrunk = x.new_empty((*x.shape[:2], rank), dtype=torch.float32)
    pieces = ceil_div(length, PART)
    parts = shrunk.new_empty((heads * pieces, total, rank))
    tiles = ceil_div(total, ROWS)
    size = {"ROWS": ROWS, "RANK": power_of_two(rank, 16), "SPAN": SPAN}
    routes = weights, rows.contiguous()
    counts = total, x.shape[1], weights.shape[0], heads, skills
    _shrink_kernel[(tiles, heads * pieces)](
        x, lora_a, *routes, parts, *counts, length, rank, pieces, PART=PART, **size
    )
    blocks = ceil_div(lora_b.shape[3], SPAN)
    _expand_kernel[(tiles, heads * blocks)](
        parts, lora_b, *routes, y if base is None else base.contiguous(), y, shrunk, *counts,
        lora_b.shape[3], rank, blocks, heads * pieces, single(scaling),
        HAS_BASE=base is not None, **size,
    )  # fmt: skip
    return y, shrunk
