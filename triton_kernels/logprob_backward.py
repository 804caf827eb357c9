"""Triton kernels of the gradient of log-probabilities and entropy: one write, also in place."""

from __future__ import annotations

import triton
import triton.language as tl

from oneshot.triton_kernels._launch import ceil_div, rows_of, single
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


@triton.jit(do_not_specialize=["count"])
def _prepare_kernel(
    grad_logprobs, grad_entropy, mask, targets, logprobs, stats, coefficients, own,
    vocab, count, temperature,
    HAS_LOGPROBS: tl.constexpr, HAS_ENTROPY: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """What the gradient of a row needs: 2^z (offset + slope z), and its targets' own elements.

    d log p_t / d x_i = (1[i = t] - p_i) / T and d entropy / d x_i = p_i (mean - y_i) / T. At a
    target the sum that does not cancel when p_t is near 1 takes the place of the general one.
    """
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, PARTS)
    total = tl.load(stats + row * 3 + 1).to(tl.float64)
    mean = tl.load(stats + row * 3 + 2).to(tl.float64)
    upstream = tl.zeros([], tl.float64)
    if HAS_ENTROPY:
        upstream = tl.load(grad_entropy + row).to(tl.float64)
    active = upstream != 0.0
    target_sum = tl.zeros([], tl.float64)
    if HAS_LOGPROBS:
        silent = tl.zeros([], tl.int32)
        for first in range(0, count, PARTS):
            here = first + lanes < count
            at = row * count + first + lanes
            grad = tl.load(grad_logprobs + at, mask=here, other=0.0).to(tl.float64)
            alive = tl.load(logprobs + at, mask=here, other=NEVER) != NEVER
            ids = tl.load(targets + at, mask=here, other=0)
            grad_or_nan = tl.where((ids >= 0) & (ids < vocab), grad, float("nan"))
            target_sum += tl.sum(tl.where(alive, grad_or_nan, 0.0), 0)
            silent += tl.sum(tl.where(here & (grad != 0.0), 1, 0), 0)
        active |= silent > 0
    active &= row_counts(mask, row, HAS_MASK)
    wide_temperature = tl.zeros([], tl.float64) + temperature
    unit = 1.0 / (total * wide_temperature)
    out = coefficients + row * 4
    tl.store(out, tl.where(active, 1.0, 0.0))
    tl.store(out + 1, tl.load(stats + row * 3))
    tl.store(out + 2, ((upstream * mean - target_sum) * unit).to(tl.float32))
    tl.store(out + 3, (-upstream * LN2 * unit).to(tl.float32))
    if HAS_LOGPROBS:
        log_total = tl.log(total)
        for j in range(0, count):
            at = row * count + j
            target = tl.load(targets + at)
            logp = tl.load(logprobs + at).to(tl.float64)
            mine = tl.zeros([], tl.float64)  # the same id may be asked for more than once
            for first in range(0, count, PARTS):
                here = first + lanes < count
                other = row * count + first + lanes
                same = tl.load(targets + other, mask=here, other=-1) == target
                grad = tl.load(grad_logprobs + other, mask=here & same, other=0.0)
                mine += tl.sum(grad.to(tl.float64), 0)
            p = tl.exp(logp)
            shared = upstream * (mean - (logp + log_total)) - (target_sum - mine)
            value = (p * shared + mine * (1.0 - p)) / wide_temperature
            tl.store(own + at, value.to(tl.float32))


@triton.jit(do_not_specialize=["inner", "keep_inner", "out_inner", "count"])
def _backward_kernel(
    logits, inner, outer, step, keep, keep_inner, keep_outer, keep_step,
    out, out_inner, out_outer, out_step, targets, logprobs, coefficients, own,
    vocab, tiles, count, scale,
    HAS_LOGPROBS: tl.constexpr, HAS_KEEP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The gradient of one tile, written to `out`, which may be the logits themselves."""
    program = tl.program_id(0).to(tl.int64)
    row = program // tiles
    begin = (program % tiles) * TILE
    columns = begin + tl.arange(0, TILE)
    inside = columns < vocab
    active = tl.load(coefficients + row * 4) != 0.0
    high = tl.load(coefficients + row * 4 + 1)
    offset = tl.load(coefficients + row * 4 + 2)
    slope = tl.load(coefficients + row * 4 + 3)
    keep_start = row_start(row, keep_inner, keep_outer, keep_step)
    start = row_start(row, inner, outer, step)
    used = columns < tl.where(active, vocab, 0)
    x = tile_of(logits, start, keep, keep_start, columns, used, HAS_KEEP)
    z = (x - high) * scale
    e = tl.exp2(z)
    grad = e * offset + tl.where(e == 0.0, 0.0, e * (slope * z))
    if HAS_LOGPROBS:
        for j in range(0, count):
            target = tl.load(targets + row * count + j)
            alive = tl.load(logprobs + row * count + j) != NEVER
            value = tl.load(own + row * count + j)
            grad = tl.where(columns == tl.where(alive, target, -1), value, grad)
    grad = tl.where(active, grad, 0.0)
    to = out + row_start(row, out_inner, out_outer, out_step) + columns
    tl.store(to, grad.to(out.dtype.element_ty), mask=inside)


def _backward_into(
    out, grad_logprobs, grad_entropy, logits, targets, mask, keep_mask, logprobs, stats, temperature
):
    rows = stats.numel() // 3
    if rows == 0:
        return
    vocab, count = logits.shape[-1], targets.numel() // rows
    ids, values = targets.contiguous(), logprobs.contiguous()
    coefficients, own = stats.new_empty(rows * 4), stats.new_empty(max(rows * count, 1))
    by_logprobs = stats if grad_logprobs is None else grad_logprobs.contiguous()
    by_entropy = stats if grad_entropy is None else grad_entropy.contiguous()
    has_logprobs = grad_logprobs is not None
    _prepare_kernel[(rows,)](
        by_logprobs, by_entropy, stats if mask is None else mask.contiguous(), ids, values,
        stats.contiguous(), coefficients, own, vocab, count, single(temperature),
        HAS_LOGPROBS=has_logprobs, HAS_ENTROPY=grad_entropy is not None,
        HAS_MASK=mask is not None, num_warps=1,
    )  # fmt: skip
    size = tile_size(vocab)
    tiles = ceil_div(vocab, size)
    _backward_kernel[(rows * tiles,)](
        *rows_of(logits).arguments(), *keep_rows(logits, keep_mask), *rows_of(out).arguments(),
        ids, values, coefficients, own, vocab, tiles, count, single(LOG2E.value / temperature),
        HAS_LOGPROBS=has_logprobs, HAS_KEEP=keep_mask is not None, TILE=size,
        num_warps=8 if size == TILE else 4,
    )  # fmt: skip


def token_logprobs_and_entropy_backward(
    grad_logprobs, grad_entropy, logits, targets, mask, keep_mask, logprobs, stats, temperature
):
    """Launcher of the op."""
    out = logits.new_empty(logits.shape)
    _backward_into(
        out, grad_logprobs, grad_entropy, logits, targets, mask, keep_mask, logprobs, stats,
        temperature,
    )  # fmt: skip
    return out


def token_logprobs_and_entropy_backward_(
    grad_logprobs, grad_entropy, logits, targets, mask, keep_mask, logprobs, stats, temperature
):
    """Launcher of the op: over the logits, which must be readable in place."""
    if rows_of(logits).data.data_ptr() != logits.data_ptr():
        raise ValueError(
            "logits must have a last stride of 1 and leading dimensions that two strides describe "
            f"to be overwritten, got shape {list(logits.shape)}, strides {list(logits.stride())}"
        )
    _backward_into(
        logits, grad_logprobs, grad_entropy, logits, targets, mask, keep_mask, logprobs, stats,
        temperature,
    )  # fmt: skip
