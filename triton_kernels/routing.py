"""Triton kernels of the `routing` family: mixing adapters, and LoRA with the mixture of each row.

A few rows are served from the inventories (`routing_inventory`). More are listed mixture by mixture
and cut into tiles of one mixture (`routing_tiles`), so every product is a dense tile on tensor
cores: x A and grad B^T ("shrink"), u B and du A ("expand"), and x^T du and u^T grad with the rows
of a mixture as the reduction ("outer"). Nothing is gathered in memory, and no sum uses atomics.
Products of half formats accumulate in float32; float32 is multiplied as float32, not as TF32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from oneshot.triton_kernels import routing_inventory
from oneshot.triton_kernels._launch import ceil_div, power_of_two, single
from oneshot.triton_kernels.routing_mix import mix, mix_adapters, mix_adapters_backward, mix_back
from oneshot.triton_kernels.routing_tiles import Tiles, locate, tiles_of

__all__ = ["mix_adapters", "mix_adapters_backward", "routed_lora", "routed_lora_backward"]

SPAN = 64  # features of a product at a time


@triton.jit(do_not_specialize=["repeat", "mixtures"])
def _shrink_kernel(
    x, mixture, shrunk, tile_of, first_of, order, starts, counts,
    repeat, mixtures, features, rank, scaling,
    ROWS: tl.constexpr, RANK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """shrunk[row] = scaling * x[row] mixture[u]^T, [rank]; NaN for rows of no mixture."""
    u, rows, inside = locate(
        tl.program_id(0), tile_of, first_of, order, starts, counts, repeat, mixtures, ROWS
    )
    ranks = tl.arange(0, RANK)
    lanes = tl.arange(0, SPAN)
    known = u < mixtures
    base = mixture + tl.where(known, u, 0) * rank * features
    sums = tl.zeros([ROWS, RANK], tl.float32)
    for start in range(0, features, SPAN):
        columns = start + lanes
        own = columns < features
        left = tl.load(
            x + rows[:, None] * features + columns[None, :],
            mask=inside[:, None] & own[None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(
            base + ranks[None, :] * features + columns[:, None],
            mask=(ranks < rank)[None, :] & own[:, None], other=0.0,
        )  # fmt: skip
        sums = tl.dot(left, right.to(left.dtype), sums, input_precision="ieee")
    sums = tl.where(known, sums * scaling, float("nan"))
    out = shrunk + rows[:, None] * rank + ranks[None, :]
    tl.store(out, sums, mask=inside[:, None] & (ranks < rank)[None, :])


@triton.jit(do_not_specialize=["repeat", "mixtures"])
def _expand_kernel(
    shrunk, mixture, base, y, tile_of, first_of, order, starts, counts,
    repeat, mixtures, features, rank, blocks,
    HAS_BASE: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """y[row] = base[row] + shrunk[row] mixture[u], one span of features."""
    program = tl.program_id(0)
    u, rows, inside = locate(
        program // blocks, tile_of, first_of, order, starts, counts, repeat, mixtures, ROWS
    )
    ranks = tl.arange(0, RANK)
    columns = (program % blocks) * SPAN + tl.arange(0, SPAN)
    own = columns < features
    dtype = y.dtype.element_ty
    left = tl.load(
        shrunk + rows[:, None] * rank + ranks[None, :],
        mask=inside[:, None] & (ranks < rank)[None, :], other=0.0,
    )  # fmt: skip
    right = tl.load(
        mixture + tl.where(u < mixtures, u, 0) * rank * features
        + ranks[:, None] * features + columns[None, :],
        mask=(ranks < rank)[:, None] & own[None, :], other=0.0,
    )  # fmt: skip
    value = tl.dot(left.to(dtype), right.to(dtype), input_precision="ieee")
    at = rows[:, None] * features + columns[None, :]
    keep = inside[:, None] & own[None, :]
    if HAS_BASE:
        value += tl.load(base + at, mask=keep, other=0.0).to(tl.float32)
    tl.store(y + at, value.to(dtype), mask=keep)


@triton.jit(do_not_specialize=["repeat"])
def _outer_kernel(
    left_rows, right_rows, out, order, starts, counts, repeat, features, rank, blocks,
    ROWS: tl.constexpr, RANK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """out[u] = sum over the rows of mixture u of left^T right, [rank, one span of features]."""
    program = tl.program_id(0)
    u = (program // blocks).to(tl.int64)
    ranks = tl.arange(0, RANK)
    columns = (program % blocks) * SPAN + tl.arange(0, SPAN)
    own = columns < features
    total = tl.load(counts + u) * repeat
    group = tl.load(starts + u)
    sums = tl.zeros([RANK, SPAN], tl.float32)
    for first in range(0, total, ROWS):
        local = first + tl.arange(0, ROWS).to(tl.int64)
        inside = local < total
        rows = tl.load(order + group + local // repeat, mask=inside, other=0) * repeat
        rows += local % repeat
        right = tl.load(
            right_rows + rows[:, None] * features + columns[None, :],
            mask=inside[:, None] & own[None, :], other=0.0,
        )  # fmt: skip
        left = tl.load(
            left_rows + rows[None, :] * rank + ranks[:, None],
            mask=inside[None, :] & (ranks < rank)[:, None], other=0.0,
        )  # fmt: skip
        sums = tl.dot(left.to(right.dtype), right, sums, input_precision="ieee")
    at = out + (u * rank + ranks[:, None]) * features + columns[None, :]
    tl.store(at, sums, mask=(ranks < rank)[:, None] & own[None, :])


class _Product:
    """The three products for one set of rows and one rank."""

    def __init__(self, tiles: Tiles, rank: int):
        self.tiles, self.rank = tiles, rank
        self.size = {"RANK": power_of_two(rank, 16), "SPAN": SPAN, "ROWS": tiles.size}

    def shrink(self, x, mixture, shrunk, scaling):
        _shrink_kernel[(self.tiles.count,)](
            x, mixture, shrunk, *self.tiles.table(), self.tiles.repeat, self.tiles.mixtures,
            x.shape[-1], self.rank, single(scaling), **self.size,
        )  # fmt: skip

    def expand(self, shrunk, mixture, base, y):
        blocks = ceil_div(y.shape[-1], SPAN)
        _expand_kernel[(self.tiles.count * blocks,)](
            shrunk, mixture, y if base is None else base, y, *self.tiles.table(),
            self.tiles.repeat, self.tiles.mixtures, y.shape[-1], self.rank, blocks,
            HAS_BASE=base is not None, **self.size,
        )  # fmt: skip

    def outer(self, left, right):
        features = right.shape[-1]
        out = left.new_empty((self.tiles.mixtures, self.rank, features))
        blocks = ceil_div(features, SPAN)
        if out.numel():
            _outer_kernel[(self.tiles.mixtures * blocks,)](
                left, right, out, self.tiles.order, self.tiles.starts, self.tiles.counts,
                self.tiles.repeat, features, self.rank, blocks, **self.size,
            )  # fmt: skip
        return out


def _mixtures(x, lora_a, lora_b, weights):
    """Mixed adapters [U, rank, features]; made for this call, they are kept in the dtype of x."""
    if weights is None:
        return lora_a.contiguous(), lora_b.contiguous()
    return mix(lora_a, weights, True, x.dtype), mix(lora_b, weights, False, x.dtype)


def routed_lora(x, lora_a, lora_b, weights, rows, base, scaling):
    """Launcher of the op; a row whose mixture lies outside [0, U) becomes NaN."""
    x = x.contiguous()
    few = weights is not None and routing_inventory.takes(x.shape[0] * x.shape[1], len(weights))
    if few and x.numel() and lora_b.numel():
        return routing_inventory.lora(x, lora_a, lora_b, weights, rows, base, scaling)
    a, b = _mixtures(x, lora_a, lora_b, weights)
    mixtures, rank = a.shape[:2]
    y = x.new_empty((*x.shape[:2], b.shape[2]))
    shrunk = x.new_empty((*x.shape[:2], rank), dtype=torch.float32)
    if shrunk.numel():
        product = _Product(tiles_of(rows, x.shape[1], mixtures), rank)
        product.shrink(x, a, shrunk, scaling)
        product.expand(shrunk, b, None if base is None else base.contiguous(), y)
    elif y.numel():  # rank 0
        y.copy_(base if base is not None else torch.zeros_like(y))
    return y, shrunk


def routed_lora_backward(
    grad, x, lora_a, lora_b, weights, rows, shrunk, scaling, need_x, need_a, need_b, need_weights
):
    """Launcher of the op; one that is not needed is empty. Mixtures are made again."""
    x, grad, shrunk = x.contiguous(), grad.contiguous(), shrunk.contiguous()
    a, b = _mixtures(x, lora_a, lora_b, weights)
    mixtures, rank = a.shape[:2]
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    grad_shrunk = torch.empty_like(shrunk)
    product = _Product(tiles_of(rows, x.shape[1], mixtures), rank)
    if shrunk.numel():
        product.shrink(grad, b, grad_shrunk, scaling)
        if need_x:
            product.expand(grad_shrunk, a, None, grad_x)
    elif need_x:
        grad_x.zero_()
    grad_a, grad_b = lora_a.new_empty(0), lora_b.new_empty(0)
    grad_weights = shrunk.new_empty(0)
    if need_a or need_weights:
        grad_a = product.outer(grad_shrunk, x)
    if need_b or need_weights:
        grad_b = product.outer(shrunk, grad)
    if weights is not None:
        needs = (need_a, need_weights), (need_b, need_weights)
        if any(needs[0]):
            grad_a, grad_weights = mix_back(grad_a, lora_a, weights, True, *needs[0])
        if any(needs[1]):
            grad_b, more = mix_back(grad_b, lora_b, weights, False, *needs[1])
            grad_weights = grad_weights + more
    return grad_x, grad_a, grad_b, grad_weights
