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

TILE = 8192
PARTS = tl.constexpr(32)  # partial sums, or targets, that a program takes at a time
NEVER = tl.constexpr(float("-inf"))
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
# What changes from batch to batch makes no new kernel. Strides may: whether 16 divides them decides
# whether loads are 16 bytes wide.


@triton.jit
def _row(row, inner, outer, step):
    row = row.to(tl.int64)
    return (row // inner) * outer + (row % inner) * step


@triton.jit
def _counted(mask, row, HAS_MASK: tl.constexpr):
    if HAS_MASK:
        return tl.load(mask + row) != 0
    return row >= 0


@triton.jit
def _tile(
    logits, start, keep, keep_start, columns, used, HAS_KEEP: tl.constexpr
):  # fmt: skip
    """Logits as float32, -inf where `used` or the keep-mask leave them out."""
    if HAS_KEEP:
        used &= tl.load(keep + keep_start + columns, mask=used, other=0) != 0
    return tl.load(logits + start + columns, mask=used, other=float("-inf")).to(tl.float32)


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
    used = columns < tl.where(_counted(mask, row, HAS_MASK), vocab, 0)
    keep_start = _row(row, keep_inner, keep_outer, keep_step)
    start = _row(row, inner, outer, step)
    x = _tile(logits, start, keep, keep_start, columns, used, HAS_KEEP)
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
    counted = _counted(mask, row, HAS_MASK)
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

    start = _row(row, inner, outer, step)
    keep_start = _row(row, keep_inner, keep_outer, keep_step)
    for first in range(0, count, PARTS):
        here = first + lanes < count
        ids = tl.load(targets + row * count + first + lanes, mask=here, other=0)
        known = (ids >= 0) & (ids < vocab)
        safe = here & known & (first + lanes < tl.where(counted, count, 0))
        x = _tile(logits, start, keep, keep_start, ids, safe, HAS_KEEP)
        # `scale` as in the sums, so that both sides mean the same temperature.
        value = (x.to(tl.float64) - high) * (wide_scale * LN2) - log_total
        value = tl.where(known, value, float("nan"))
        value = tl.where(counted, value, 0.0)
        tl.store(logprobs + row * count + first + lanes, value.to(tl.float32), mask=here)


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
    active &= _counted(mask, row, HAS_MASK)
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
    keep_start = _row(row, keep_inner, keep_outer, keep_step)
    start = _row(row, inner, outer, step)
    used = columns < tl.where(active, vocab, 0)
    x = _tile(logits, start, keep, keep_start, columns, used, HAS_KEEP)
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
    to = out + _row(row, out_inner, out_outer, out_step) + columns
    tl.store(to, grad.to(out.dtype.element_ty), mask=inside)


def _keep_rows(logits, keep_mask):
    """Arguments of the keep-mask; without one, those of any tensor."""
    if keep_mask is None:
        return logits, 1, 0, 0
    return rows_of(keep_mask.expand(logits.shape)).arguments()


def _tile_size(vocab):
    return TILE if vocab > 1024 else 1024


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
    size = _tile_size(vocab)
    tiles = ceil_div(vocab, size)
    partials = logits.new_empty(entropy.numel() * tiles * 3, dtype=torch.float64)
    ids = targets.contiguous()
    counted = logits if mask is None else mask.contiguous()
    shared = (*rows_of(logits).arguments(), *_keep_rows(logits, keep_mask), counted, partials)
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
    size = _tile_size(vocab)
    tiles = ceil_div(vocab, size)
    _backward_kernel[(rows * tiles,)](
        *rows_of(logits).arguments(), *_keep_rows(logits, keep_mask), *rows_of(out).arguments(),
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
