"""Triton kernels for more states than one program holds: a launch for each step, tiles of states.

A matrix is read once, by as many programs as it has tiles of columns (forward) or rows (backward).
Each recomputes the level (log of the summed weights) of the whole message before, which is cheap
beside its tile, so nothing passes between programs of one launch. Messages are float64: potentials
of any size can be added to them, and only differences go through exp and log in the dtype of the
inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from oneshot.triton_kernels.hmm_inputs import (
    NEVER,
    clean,
    final_of,
    length_of,
    matrix,
    shift_of,
    vector,
)  # fmt: skip
from oneshot.triton_kernels.hmm_messages import upstream_pairs, upstream_states
from oneshot.triton_kernels.hmm_posteriors import scale_of, sequences_of

VECTOR = tl.constexpr(128)  # lanes that walk along a message


@triton.jit
def _level(
    message, more, value, more_value, states, MORE: tl.constexpr, GRADIENT: tl.constexpr
):  # fmt: skip
    """Log of the sum of the weights message (+ more), and the mean of value (+ more_value)."""
    high = tl.full([], NEVER, tl.float64)
    for start in range(0, states, VECTOR):
        k = start + tl.arange(0, VECTOR)
        x = tl.load(message + k, mask=k < states, other=NEVER)
        if MORE:
            x += clean(tl.load(more + k, mask=k < states, other=0.0))
        high = tl.maximum(high, tl.max(x, 0))
    shift = shift_of(high)
    total = tl.zeros([], value.dtype.element_ty)
    mean = tl.zeros([], value.dtype.element_ty)
    for start in range(0, states, VECTOR):
        k = start + tl.arange(0, VECTOR)
        own = k < states
        x = tl.load(message + k, mask=own, other=NEVER)
        if MORE:
            x += clean(tl.load(more + k, mask=own, other=0.0))
        weight = tl.exp((x - shift).to(value.dtype.element_ty))
        total += tl.sum(weight, 0)
        if GRADIENT:
            collected = tl.load(value + k, mask=own, other=0.0)
            if MORE:
                collected += tl.load(more_value + k, mask=own, other=0.0)
            mean += tl.sum(weight * collected, 0)
    return tl.log(total).to(tl.float64) + shift, mean / tl.where(total == 0.0, 1.0, total)


@triton.jit
def _carry(
    message, value, out, out_value, at, k, states, GRADIENT: tl.constexpr
):  # fmt: skip
    """Writes the own states of a finished message, normalised and centred; returns its level."""
    level, mean = _level(message, message, value, value, states, False, GRADIENT)
    own = k < states
    tl.store(out + at + k, tl.load(message + k, mask=own, other=0.0) - shift_of(level), mask=own)
    if GRADIENT:
        tl.store(out_value + at + k, tl.load(value + k, mask=own, other=0.0) - mean, mask=own)
    return level, mean


@triton.jit
def _grow(shift, sums, collected, pair, value, AXIS: tl.constexpr, GRADIENT: tl.constexpr):
    """Adds a block of pairs to running sums of exp(pair - shift), and of that times value."""
    higher = tl.maximum(shift, tl.max(pair, AXIS))
    base = shift_of(higher)
    scale = tl.exp((shift - base).to(sums.dtype))
    e = tl.exp((pair - tl.expand_dims(base, AXIS)).to(sums.dtype))
    sums = sums * scale + tl.sum(e, AXIS)
    if GRADIENT:
        collected = collected * scale + tl.sum(e * value, AXIS)
    return higher, sums, collected


@triton.jit
def _forward(
    log_init, log_trans, log_emit, log_final, alpha, before, old, new, old_value, new_value,
    totals, log_likelihood, grad_gamma, grad_xi, grad_xi_sum, n, b, k, length, flaw, steps, states,
    HAS_FINAL: tl.constexpr, init_rows, final_rows, trans_rows,
    HOMOGENEOUS: tl.constexpr, KEEP: tl.constexpr, GRADIENT: tl.constexpr,
    HAS_GAMMA: tl.constexpr, HAS_XI: tl.constexpr, HAS_XI_SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Finishes the message of step n - 1 and makes that of step n; log Z behind the last."""
    first_tile = tl.program_id(1) == 0
    own = k < states
    level = tl.zeros([], tl.float64)
    mean = tl.zeros([], old_value.dtype.element_ty)
    total = tl.zeros([], tl.float64)
    if (n > 0) & (n <= length):
        if KEEP:
            at = (b * steps + n - 1) * states
            level, mean = _carry(old, old_value, alpha, before, at, k, states, GRADIENT)
        else:
            level, mean = _level(old, old, old_value, old_value, states, False, GRADIENT)
        if first_tile:
            total = tl.load(totals + b, mask=n > 1, other=0.0) + level
            tl.store(totals + b, total)
    if n < length:
        emit = vector(log_emit, b * steps + n, states, k)
        up = upstream_states(grad_gamma, b * steps + n, states, k, emit, HAS_GAMMA)
        if n == 0:
            start = vector(log_init, b * init_rows, states, k).to(tl.float64)
            tl.store(new + k, start + emit, mask=own)
            if GRADIENT:
                tl.store(new_value + k, up, mask=own)
        else:
            shift = tl.full([k.shape[0]], NEVER, tl.float64)
            sums = tl.zeros([k.shape[0]], emit.dtype)
            collected = tl.zeros([k.shape[0]], emit.dtype)
            for begin in range(0, states, BLOCK):
                i = begin + tl.arange(0, BLOCK)
                trans = matrix(log_trans, b, n - 1, steps, states, i, k, trans_rows, HOMOGENEOUS)
                message = tl.load(old + i, mask=i < states, other=NEVER) - shift_of(level)
                value = tl.zeros([BLOCK, k.shape[0]], emit.dtype)
                if GRADIENT:
                    value = upstream_pairs(
                        grad_xi, grad_xi_sum, b, n - 1, steps, states, i, k, trans,
                        HAS_XI, HAS_XI_SUM,
                    )  # fmt: skip
                    value += tl.load(old_value + i, mask=i < states, other=0.0)[:, None] - mean
                shift, sums, collected = _grow(
                    shift, sums, collected, message[:, None] + trans, value, 0, GRADIENT
                )
            message = tl.log(sums).to(tl.float64) + shift_of(shift) + emit
            tl.store(new + k, message, mask=own)
            if GRADIENT:
                up += collected / tl.where(sums == 0.0, 1.0, sums)
                tl.store(new_value + k, up, mask=own)
    if first_tile & (n == length):
        if HAS_FINAL:
            if n > 0:
                final = log_final + b * final_rows * states
                last, _ = _level(old, final, old_value, old_value, states, True, False)
                total += last - shift_of(level)
        tl.store(log_likelihood + b, (total + flaw).to(log_likelihood.dtype.element_ty))


@triton.jit
def _backward(
    log_trans, log_emit, log_final, beta, after, old, new, old_value, new_value,
    levels, means, grad_gamma, grad_xi, grad_xi_sum, t, b, k, length, steps, states,
    HAS_FINAL: tl.constexpr, final_rows, trans_rows,
    HOMOGENEOUS: tl.constexpr, GRADIENT: tl.constexpr,
    HAS_GAMMA: tl.constexpr, HAS_XI: tl.constexpr, HAS_XI_SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Finishes the message of step t + 1, keeping its level and mean, and makes that of step t."""
    own = k < states
    level = tl.zeros([], tl.float64)
    mean = tl.zeros([], old_value.dtype.element_ty)
    if t + 1 < length:
        at = b * steps + t + 1
        level, mean = _carry(old, old_value, beta, after, at * states, k, states, GRADIENT)
        if tl.program_id(1) == 0:
            tl.store(levels + at, level)
            tl.store(means + at, mean)
    if (t >= 0) & (t < length):
        zeros = tl.zeros([k.shape[0]], mean.dtype)
        if t == length - 1:
            last = final_of(log_final, b, states, k, HAS_FINAL, final_rows)
            tl.store(new + k, last.to(tl.float64), mask=own)
            if GRADIENT:
                tl.store(new_value + k, zeros, mask=own)
        else:
            shift = tl.full([k.shape[0]], NEVER, tl.float64)
            sums = zeros
            collected = zeros
            for begin in range(0, states, BLOCK):
                j = begin + tl.arange(0, BLOCK)
                trans = matrix(log_trans, b, t, steps, states, k, j, trans_rows, HOMOGENEOUS)
                onward = tl.load(old + j, mask=j < states, other=NEVER) - shift_of(level)
                onward += vector(log_emit, b * steps + t + 1, states, j)
                value = tl.zeros([k.shape[0], BLOCK], mean.dtype)
                if GRADIENT:
                    value = upstream_pairs(
                        grad_xi, grad_xi_sum, b, t, steps, states, k, j, trans, HAS_XI, HAS_XI_SUM
                    )
                    ahead = tl.load(old_value + j, mask=j < states, other=0.0) - mean
                    ahead += upstream_states(
                        grad_gamma, b * steps + t + 1, states, j, ahead, HAS_GAMMA
                    )
                    value += ahead[None, :]
                shift, sums, collected = _grow(
                    shift, sums, collected, trans + onward[None, :], value, 1, GRADIENT
                )
            tl.store(new + k, tl.log(sums).to(tl.float64) + shift_of(shift), mask=own)
            if GRADIENT:
                tl.store(new_value + k, collected / tl.where(sums == 0.0, 1.0, sums), mask=own)


@triton.jit(do_not_specialize=["n", "batch", "steps", "init_rows", "final_rows", "trans_rows"])
def step_kernel(
    log_init, log_trans, log_emit, lengths, log_final, alpha, beta, before, after, message, value,
    totals, levels, means, log_likelihood, grad_gamma, grad_xi, grad_xi_sum,
    n, batch, steps, states,
    HAS_LENGTHS: tl.constexpr, HAS_FINAL: tl.constexpr, init_rows,
    final_rows, trans_rows, HOMOGENEOUS: tl.constexpr,
    BOTH: tl.constexpr, KEEP: tl.constexpr, GRADIENT: tl.constexpr, HAS_GAMMA: tl.constexpr,
    HAS_XI: tl.constexpr, HAS_XI_SUM: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Launch n of 0 .. steps: forward to step n, backward to step steps - 1 - n.

    `message` and `value` are [2, programs, states]: launches read one half and write the other.
    """
    program = tl.program_id(0)
    programs = batch * 2 if BOTH else batch
    b = (program // 2 if BOTH else program).to(tl.int64)
    k = tl.program_id(1) * TILE + tl.arange(0, TILE)
    length, flaw = length_of(lengths, b, steps, HAS_LENGTHS)
    new = ((n % 2) * programs + program).to(tl.int64) * states
    old = (((n + 1) % 2) * programs + program).to(tl.int64) * states
    if BOTH:
        forward = program % 2 == 0
    else:
        forward = program >= 0
    if forward:
        _forward(
            log_init, log_trans, log_emit, log_final, alpha, before, message + old, message + new,
            value + old, value + new, totals, log_likelihood, grad_gamma, grad_xi, grad_xi_sum,
            n, b, k, length, flaw, steps, states, HAS_FINAL, init_rows, final_rows, trans_rows,
            HOMOGENEOUS, KEEP, GRADIENT, HAS_GAMMA, HAS_XI, HAS_XI_SUM, BLOCK,
        )  # fmt: skip
    else:
        _backward(
            log_trans, log_emit, log_final, beta, after, message + old, message + new,
            value + old, value + new, levels, means, grad_gamma, grad_xi, grad_xi_sum,
            steps - 1 - n, b, k, length, steps, states, HAS_FINAL, final_rows, trans_rows,
            HOMOGENEOUS, GRADIENT, HAS_GAMMA, HAS_XI, HAS_XI_SUM, BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["steps"])
def levels_kernel(
    alpha, beta, before, after, lengths, levels, means, steps, states,
    HAS_LENGTHS: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Turns the level of backward step t into that of its pairs with step t + 1; means likewise.

    The pairs that leave state i weigh together alpha(i) beta(i) exp(level): beta was divided by it.
    """
    at = tl.program_id(0).to(tl.int64)
    b = at // steps
    length, _ = length_of(lengths, b, steps, HAS_LENGTHS)
    if at % steps + 1 < length:
        row = at * states
        level, mean = _level(
            alpha + row, beta + row, before + row, after + row, states, True, GRADIENT
        )  # fmt: skip
        tl.store(levels + at, tl.load(levels + at) + level)
        tl.store(means + at, tl.load(means + at) + mean)


@triton.jit(do_not_specialize=["batch", "steps", "chunk", "chunks", "trans_rows"])
def pair_tiles_kernel(
    log_trans, log_emit, lengths, alpha, beta, before, after, log_likelihood, grad_log_likelihood,
    levels, means, grad_gamma, grad_xi, grad_xi_sum, out, batch, steps, states, chunk, chunks,
    HAS_LENGTHS: tl.constexpr, trans_rows, HOMOGENEOUS: tl.constexpr,
    HAS_GRAD: tl.constexpr, GRADIENT: tl.constexpr, HAS_GAMMA: tl.constexpr,
    HAS_XI: tl.constexpr, HAS_XI_SUM: tl.constexpr, OVER_BATCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As `hmm_posteriors.pairs_kernel`, a tile of pairs to each program."""
    program = tl.program_id(0).to(tl.int64)
    number = program % chunks
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK, BLOCK], out.dtype.element_ty)
    begin, end = sequences_of(program, batch, chunks, OVER_BATCH)
    for b in range(begin, end):
        length, flaw = length_of(lengths, b, steps, HAS_LENGTHS)
        sums += flaw
        scale = scale_of(grad_log_likelihood, log_likelihood, b, HAS_GRAD)
        for t in range(number * chunk, tl.minimum((number + 1) * chunk, length - 1)):
            row = b * steps + t
            trans = matrix(log_trans, b, t, steps, states, i, j, trans_rows, HOMOGENEOUS)
            left = tl.load(alpha + row * states + i, mask=i < states, other=NEVER)
            right = tl.load(beta + (row + 1) * states + j, mask=j < states, other=NEVER)
            right += vector(log_emit, row + 1, states, j)
            right -= shift_of(tl.load(levels + row))
            pair = left[:, None] + right[None, :] + trans
            result = tl.exp(pair.to(trans.dtype))
            if GRADIENT:
                value = upstream_pairs(
                    grad_xi, grad_xi_sum, b, t, steps, states, i, j, trans, HAS_XI, HAS_XI_SUM
                )
                value += tl.load(before + row * states + i, mask=i < states, other=0.0)[:, None]
                ahead = tl.load(after + (row + 1) * states + j, mask=j < states, other=0.0)
                ahead += upstream_states(grad_gamma, row + 1, states, j, ahead, HAS_GAMMA)
                value += ahead[None, :]
                result = result * (value + (scale - tl.load(means + row)))
            sums += result
    inside = (i < states)[:, None] & (j < states)[None, :]
    to = out + program * states * states + i[:, None] * states + j[None, :]
    tl.store(to, sums, mask=inside)
