"""Triton kernels of the best path and of sampled paths."""

from __future__ import annotations

import triton
import triton.language as tl

from oneshot.triton_kernels.hmm_inputs import (
    NEVER,
    final_of,
    length_of,
    matrix,
    shift_of,
    vector,
)  # fmt: skip


@triton.jit
def _flawed(x):
    """1 if there is a NaN."""
    return tl.where(x != x, 1, 0)


@triton.jit
def _float64_without_nan(x):
    """float64, NaN made -inf."""
    return tl.where(x != x, NEVER, x.to(tl.float64))


@triton.jit(do_not_specialize=["steps", "init_rows", "final_rows", "trans_rows"])
def viterbi_kernel(
    log_init, log_trans, log_emit, lengths, log_final, pointers, last, score, steps, states,
    HAS_LENGTHS: tl.constexpr, HAS_FINAL: tl.constexpr, init_rows,
    final_rows, trans_rows, HOMOGENEOUS: tl.constexpr,
    K: tl.constexpr,
):  # fmt: skip
    """Scores in float64, as the definition has them: only sums and maxima, so ties are exact."""
    b = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, K)
    length, flaw = length_of(lengths, b, steps, HAS_LENGTHS)
    start = vector(log_init, b * init_rows, states, k)
    emit = vector(log_emit, b * steps, states, k)
    bad = tl.max(_flawed(start) | _flawed(emit), 0)
    best = _float64_without_nan(start) + _float64_without_nan(emit)
    for t in range(1, length):
        trans = matrix(log_trans, b, t - 1, steps, states, k, k, trans_rows, HOMOGENEOUS)
        emit = vector(log_emit, b * steps + t, states, k)
        bad = bad | tl.max(_flawed(emit), 0) | tl.max(tl.max(_flawed(trans), 1), 0)
        step, pointer = tl.max(best[:, None] + _float64_without_nan(trans), 0, return_indices=True)
        at = (b * steps + t) * states + k
        tl.store(pointers + at, pointer.to(pointers.dtype.element_ty), mask=k < states)
        best = step + _float64_without_nan(emit)
    final = final_of(log_final, b, states, k, HAS_FINAL, final_rows)
    bad = bad | tl.max(_flawed(final), 0)
    value, state = tl.max(best + _float64_without_nan(final), 0, return_indices=True)
    value = tl.where(bad != 0, float("nan"), value)
    possible = value > NEVER
    value = tl.where(length == 0, 0.0, value) + flaw
    tl.store(score + b, value.to(score.dtype.element_ty))
    tl.store(last + b, tl.where(possible, state, -1))


@triton.jit(do_not_specialize=["n", "batch", "steps", "init_rows", "final_rows", "trans_rows"])
def viterbi_step_kernel(
    log_init, log_trans, log_emit, lengths, log_final, pointers, last, score, scores, flaws,
    n, batch, steps, states,
    HAS_LENGTHS: tl.constexpr, HAS_FINAL: tl.constexpr, init_rows,
    final_rows, trans_rows, HOMOGENEOUS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Launch n of 0 .. steps for more states than one program holds, a tile of states each.

    `scores` is [2, batch, states]: launches read one half and write the other. `flaws` is
    [batch, tiles], 1 where a tile has met a NaN.
    """
    b = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    tiles = tl.num_programs(1)
    k = tile * TILE + tl.arange(0, TILE)
    length, flaw = length_of(lengths, b, steps, HAS_LENGTHS)
    new = scores + ((n % 2) * batch + b) * states
    old = scores + (((n + 1) % 2) * batch + b) * states
    if n < length:
        emit = vector(log_emit, b * steps + n, states, k)
        bad = tl.max(_flawed(emit), 0)
        best = tl.full([TILE], NEVER, tl.float64)
        if n == 0:
            start = vector(log_init, b * init_rows, states, k)
            bad = bad | tl.max(_flawed(start), 0)
            best = _float64_without_nan(start)
        else:
            bad = bad | tl.load(flaws + b * tiles + tile)
            pointer = k * 0
            for begin in range(0, states, BLOCK):
                i = begin + tl.arange(0, BLOCK)
                trans = matrix(log_trans, b, n - 1, steps, states, i, k, trans_rows, HOMOGENEOUS)
                bad = bad | tl.max(tl.max(_flawed(trans), 1), 0)
                before = tl.load(old + i, mask=i < states, other=NEVER)
                value, place = tl.max(
                    before[:, None] + _float64_without_nan(trans), 0, return_indices=True
                )
                pointer = tl.where(value > best, begin + place, pointer)
                best = tl.maximum(best, value)
            at = (b * steps + n) * states + k
            tl.store(pointers + at, pointer.to(pointers.dtype.element_ty), mask=k < states)
        tl.store(new + k, best + _float64_without_nan(emit), mask=k < states)
        tl.store(flaws + b * tiles + tile, bad)
    if (tile == 0) & (n == length):
        best = tl.full([], NEVER, tl.float64)
        state = tile * 0 - 1
        bad = tile * 0
        if n > 0:
            for other in range(0, tiles):
                bad = bad | tl.load(flaws + b * tiles + other)
                i = other * TILE + tl.arange(0, TILE)
                before = tl.load(old + i, mask=i < states, other=NEVER)
                final = final_of(log_final, b, states, i, HAS_FINAL, final_rows)
                bad = bad | tl.max(_flawed(final), 0)
                value, place = tl.max(before + _float64_without_nan(final), 0, return_indices=True)
                state = tl.where(value > best, other * TILE + place, state)
                best = tl.maximum(best, value)
        else:
            best = tl.zeros([], tl.float64)
        best = tl.where(bad != 0, float("nan"), best)
        tl.store(last + b, tl.where(bad != 0, -1, state))
        tl.store(score + b, (best + flaw).to(score.dtype.element_ty))


@triton.jit(do_not_specialize=["steps"])
def trace_kernel(
    pointers, last, lengths, path, steps, states, HAS_LENGTHS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Follows the pointers from the end; -1 behind it, and where no path is possible."""
    b = tl.program_id(0).to(tl.int64)
    length, flaw = length_of(lengths, b, steps, HAS_LENGTHS)
    state = tl.load(last + b).to(tl.int64)
    used = tl.where(state < 0, 0, length)
    for start in range(0, steps, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(path + b * steps + at, at * 0 - 1, mask=(at >= used) & (at < steps))
    for n in range(0, used):
        t = used - 1 - n
        tl.store(path + b * steps + t, state)
        step = pointers + (b * steps + t) * states + state
        state = tl.load(step, mask=t > 0, other=0).to(tl.int64)


@triton.jit(do_not_specialize=["batch", "steps", "seed", "final_rows", "trans_rows"])
def sample_kernel(
    log_trans, lengths, log_final, alpha, log_likelihood, sequence_ids, paths,
    batch, steps, states, seed,
    HAS_LENGTHS: tl.constexpr, HAS_FINAL: tl.constexpr, final_rows,
    trans_rows, HOMOGENEOUS: tl.constexpr, HAS_IDS: tl.constexpr,
    BLOCK: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One path backwards from the filtered messages: Philox of (id, sample, step), as everywhere.

    The lowest state whose cumulative weight exceeds u times the total.
    """
    program = tl.program_id(0).to(tl.int64)
    b = program % batch
    k = tl.arange(0, K)
    length, flaw = length_of(lengths, b, steps, HAS_LENGTHS)
    length = tl.where(tl.load(log_likelihood + b) > NEVER, length, 0)
    for start in range(0, steps, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(paths + program * steps + at, at * 0 - 1, mask=(at >= length) & (at < steps))
    identity = b
    if HAS_IDS:
        identity = tl.load(sequence_ids + b)
    low = (identity & 0xFFFFFFFF).to(tl.uint32)
    high = ((identity >> 32) & 0xFFFFFFFF).to(tl.uint32)
    sample = (program // batch).to(tl.uint32)
    key = (b * 0 + seed).to(tl.uint64)
    state = b * 0
    for n in range(0, length):
        t = length - 1 - n
        weights = tl.load(alpha + (b * steps + t) * states + k, mask=k < states, other=NEVER)
        if n == 0:
            weights += final_of(log_final, b, states, k, HAS_FINAL, final_rows)
        else:
            row = b * trans_rows
            if not HOMOGENEOUS:
                row = row * (steps - 1) + t
            at = (row * states + k) * states + state
            weights += tl.load(log_trans + at, mask=k < states, other=NEVER)
        first, second, third, fourth = tl.philox(key, low, high, sample, t.to(tl.uint32))
        if log_trans.dtype.element_ty == tl.float64:
            bits = (first.to(tl.uint64) << 21) | (second.to(tl.uint64) >> 11)
            u = bits.to(tl.float64) * 1.1102230246251565e-16
        else:
            u = (first >> 8).to(tl.float64) * 5.960464477539063e-08
        doubles = weights.to(tl.float64)
        cumulative = tl.cumsum(tl.exp(doubles - shift_of(tl.max(doubles, 0))), 0)
        below = tl.where(cumulative <= u * tl.max(cumulative, 0), 1, 0)
        state = tl.minimum(tl.sum(below, 0), states - 1).to(tl.int64)
        tl.store(paths + program * steps + t, state)
