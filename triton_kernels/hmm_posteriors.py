"""Triton kernels from messages to posteriors or gradients: every step on its own, at bandwidth."""

from __future__ import annotations

import triton
import triton.language as tl

from oneshot.triton_kernels.hmm_inputs import (
    NEVER,
    highest,
    length_of,
    matrix,
    shares,
    shift_of,
    vector,
)  # fmt: skip
from oneshot.triton_kernels.hmm_messages import upstream_pairs, upstream_states


@triton.jit
def scale_of(grad_log_likelihood, log_likelihood, b, HAS_GRAD: tl.constexpr):
    """Upstream gradient of log Z; that of -inf is 0, whatever is made of it."""
    scale = 0.0
    if HAS_GRAD:
        never = tl.load(log_likelihood + b) == NEVER
        scale = tl.where(never, 0.0, tl.load(grad_log_likelihood + b))
    return scale


@triton.jit(do_not_specialize=["steps"])
def states_kernel(
    alpha, beta, before, after, log_likelihood, grad_log_likelihood, lengths, out, steps, states,
    HAS_LENGTHS: tl.constexpr, HAS_GRAD: tl.constexpr, GRADIENT: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Gamma of one step, or the gradient of its emissions; 0 behind the end."""
    at = tl.program_id(0).to(tl.int64)
    b = at // steps
    length, flaw = length_of(lengths, b, steps, HAS_LENGTHS)
    k = tl.arange(0, K)
    own = k < tl.where(at % steps < length, states, 0)
    place = at * states + k
    weights = tl.load(alpha + place, mask=own, other=NEVER)
    weights += tl.load(beta + place, mask=own, other=0.0)
    result = shares((weights - shift_of(tl.max(weights, 0))).to(out.dtype.element_ty))
    if GRADIENT:
        value = tl.load(before + place, mask=own, other=0.0)
        value += tl.load(after + place, mask=own, other=0.0)
        mean = tl.sum(result * value, 0)
        scale = scale_of(grad_log_likelihood, log_likelihood, b, HAS_GRAD)
        result = result * (value - mean + scale)
    tl.store(out + place, tl.where(own, result + flaw, 0.0 * flaw), mask=k < states)


@triton.jit
def sequences_of(program, batch, chunks, OVER_BATCH: tl.constexpr):
    """First and last + 1 of the sequences that a program of pairs sums over."""
    if OVER_BATCH:
        return program * 0, program * 0 + batch
    return program // chunks, program // chunks + 1


@triton.jit(do_not_specialize=["batch", "steps", "chunk", "chunks", "trans_rows"])
def pairs_kernel(
    log_trans, log_emit, lengths, alpha, beta, before, after, log_likelihood, grad_log_likelihood,
    grad_gamma, grad_xi, grad_xi_sum, out, batch, steps, states, chunk, chunks,
    HAS_LENGTHS: tl.constexpr, trans_rows, HOMOGENEOUS: tl.constexpr,
    HAS_GRAD: tl.constexpr, GRADIENT: tl.constexpr, HAS_GAMMA: tl.constexpr,
    HAS_XI: tl.constexpr, HAS_XI_SUM: tl.constexpr, OVER_BATCH: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """xi, or the gradient of the transitions: the sum over some steps, or over all sequences.

    Program p takes the steps [c chunk, (c + 1) chunk) with c = p % chunks; of sequence p // chunks,
    or of each sequence in turn if OVER_BATCH.
    """
    program = tl.program_id(0).to(tl.int64)
    number = program % chunks
    k = tl.arange(0, K)
    sums = tl.zeros([K, K], out.dtype.element_ty)
    begin, end = sequences_of(program, batch, chunks, OVER_BATCH)
    for b in range(begin, end):
        length, flaw = length_of(lengths, b, steps, HAS_LENGTHS)
        sums += flaw
        stop = tl.minimum((number + 1) * chunk, length - 1)
        scale = scale_of(grad_log_likelihood, log_likelihood, b, HAS_GRAD)
        for t in range(number * chunk, stop):
            row = b * steps + t
            trans = matrix(log_trans, b, t, steps, states, k, k, trans_rows, HOMOGENEOUS)
            emit = vector(log_emit, row + 1, states, k)
            own = k < states
            left = tl.load(alpha + row * states + k, mask=own, other=NEVER)
            right = tl.load(beta + (row + 1) * states + k, mask=own, other=NEVER)
            right += emit - shift_of(tl.max(emit, 0))
            pair = left[:, None] + (trans - highest(trans)) + right[None, :]
            high = tl.max(tl.max(pair, 1), 0)
            e = tl.exp(pair - shift_of(high))
            result = e / tl.where(high == NEVER, 1.0, tl.sum(tl.sum(e, 1), 0))
            if GRADIENT:
                value = upstream_pairs(
                    grad_xi, grad_xi_sum, b, t, steps, states, k, k, pair, HAS_XI, HAS_XI_SUM
                )
                value += tl.load(before + row * states + k, mask=own, other=0.0)[:, None]
                ahead = tl.load(after + (row + 1) * states + k, mask=own, other=0.0)
                ahead += upstream_states(grad_gamma, row + 1, states, k, right, HAS_GAMMA)
                value += ahead[None, :]
                mean = tl.sum(tl.sum(result * value, 1), 0)
                result = result * (value - mean + scale)
            sums += result
    inside = (k < states)[:, None] & (k < states)[None, :]
    to = out + program * states * states + k[:, None] * states + k[None, :]
    tl.store(to, sums, mask=inside)
