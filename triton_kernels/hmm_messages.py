"""Triton kernels of forward and backward messages, one program for each sequence and direction.

With GRADIENT each message carries what a path has collected of the upstream gradients V so far:
before_t(i) = E[V up to t | z_t = i], after_t(i) = E[V behind t | z_t = i] (see
`oneshot.reference.hmm.hmm_posteriors_backward`). Only their differences between states matter, so
each is centred at every step: it would grow with T otherwise, and lose the digits of differences.
"""

from __future__ import annotations

import triton
import triton.language as tl

from oneshot.triton_kernels.hmm_inputs import (
    final_of,
    highest,
    length_of,
    matrix,
    normalise,
    shift_of,
    vector,
)  # fmt: skip


@triton.jit
def upstream_states(grad_gamma, at, states, k, like, HAS_GAMMA: tl.constexpr):
    """Upstream gradient of gamma at one step, [K]."""
    if HAS_GAMMA:
        return tl.load(grad_gamma + at * states + k, mask=k < states, other=0.0)
    return tl.zeros_like(like)


@triton.jit
def upstream_pairs(
    grad_xi, grad_xi_sum, b, t, steps, states, i, j, like,
    HAS_XI: tl.constexpr, HAS_XI_SUM: tl.constexpr,
):  # fmt: skip
    """Upstream gradient of the pairs (i, j) of one step, [I, J]."""
    inside = (i < states)[:, None] & (j < states)[None, :]
    pair = i[:, None] * states + j[None, :]
    value = tl.zeros_like(like)
    if HAS_XI:
        at = (b * (steps - 1) + t) * states * states
        value += tl.load(grad_xi + at + pair, mask=inside, other=0.0)
    if HAS_XI_SUM:
        value += tl.load(grad_xi_sum + b * states * states + pair, mask=inside, other=0.0)
    return value


@triton.jit
def _centred(value, log_weights):
    """Minus the mean under these weights; -inf everywhere has none."""
    weight = tl.exp(log_weights)
    total = tl.sum(weight, 0)
    return value - tl.sum(weight * value, 0) / tl.where(total == 0.0, 1.0, total)


@triton.jit(do_not_specialize=["steps", "init_rows", "final_rows", "trans_rows"])
def messages_kernel(
    log_init, log_trans, log_emit, lengths, log_final, alpha, beta, before, after, log_likelihood,
    grad_gamma, grad_xi, grad_xi_sum, steps, states,
    HAS_LENGTHS: tl.constexpr, HAS_FINAL: tl.constexpr, init_rows,
    final_rows, trans_rows, HOMOGENEOUS: tl.constexpr,
    BOTH: tl.constexpr, KEEP: tl.constexpr, GRADIENT: tl.constexpr, HAS_GAMMA: tl.constexpr,
    HAS_XI: tl.constexpr, HAS_XI_SUM: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Even programs run forward (log Z, alpha, before), odd ones backward (beta, after)."""
    program = tl.program_id(0)
    b = (program // 2 if BOTH else program).to(tl.int64)
    k = tl.arange(0, K)
    length, flaw = length_of(lengths, b, steps, HAS_LENGTHS)
    if HOMOGENEOUS:
        constant = matrix(log_trans, b, 0, steps, states, k, k, trans_rows, True)
    if BOTH:
        forward = program % 2 == 0
    else:
        forward = program >= 0
    if forward:
        emit = vector(log_emit, b * steps, states, k)
        message, log_sum = normalise(vector(log_init, b * init_rows, states, k) + emit)
        total = tl.zeros([], tl.float64) + log_sum
        collected = upstream_states(grad_gamma, b * steps, states, k, message, HAS_GAMMA)
        if KEEP:
            own = (k < states) & (k * 0 < length)
            tl.store(alpha + b * steps * states + k, message, mask=own)
            if GRADIENT:
                collected = _centred(collected, message)
                tl.store(before + b * steps * states + k, collected, mask=own)
        for t in range(1, length):
            if HOMOGENEOUS:
                trans = constant
            else:
                trans = matrix(log_trans, b, t - 1, steps, states, k, k, trans_rows, False)
            high = highest(trans)
            emit = vector(log_emit, b * steps + t, states, k)
            top = shift_of(tl.max(emit, 0))
            pair = message[:, None] + (trans - high)
            shift = shift_of(tl.max(pair, 0))
            e = tl.exp(pair - shift[None, :])
            sums = tl.sum(e, 0)
            if GRADIENT:
                value = collected[:, None] + upstream_pairs(
                    grad_xi, grad_xi_sum, b, t - 1, steps, states, k, k, pair, HAS_XI, HAS_XI_SUM
                )
                mean = tl.sum(e * value, 0) / tl.where(sums == 0.0, 1.0, sums)
                collected = mean + upstream_states(
                    grad_gamma, b * steps + t, states, k, message, HAS_GAMMA
                )
            message, log_sum = normalise(tl.log(sums) + shift + (emit - top))
            total += log_sum
            total += high
            total += top
            if KEEP:
                at = (b * steps + t) * states + k
                tl.store(alpha + at, message, mask=k < states)
                if GRADIENT:
                    collected = _centred(collected, message)
                    tl.store(before + at, collected, mask=k < states)
        last = final_of(log_final, b, states, k, HAS_FINAL, final_rows)
        message, log_sum = normalise(message + last)
        total = tl.where(length == 0, 0.0, total + log_sum) + flaw
        tl.store(log_likelihood + b, total.to(log_likelihood.dtype.element_ty))
    else:
        emit = vector(log_emit, b * steps, states, k)
        message = final_of(log_final, b, states, k, HAS_FINAL, final_rows)
        collected = tl.zeros_like(message)
        at = (b * steps + length - 1) * states + k
        own = (k < states) & (k * 0 < length)
        tl.store(beta + at, message, mask=own)
        if GRADIENT:
            tl.store(after + at, collected, mask=own)
        for n in range(1, length):
            t = length - 1 - n
            if HOMOGENEOUS:
                trans = constant
            else:
                trans = matrix(log_trans, b, t, steps, states, k, k, trans_rows, False)
            emit = vector(log_emit, b * steps + t + 1, states, k)
            onward = emit - shift_of(tl.max(emit, 0)) + message
            pair = (trans - highest(trans)) + onward[None, :]
            shift = shift_of(tl.max(pair, 1))
            e = tl.exp(pair - shift[:, None])
            sums = tl.sum(e, 1)
            message, log_sum = normalise(tl.log(sums) + shift)
            at = (b * steps + t) * states + k
            if GRADIENT:
                value = upstream_pairs(
                    grad_xi, grad_xi_sum, b, t, steps, states, k, k, pair, HAS_XI, HAS_XI_SUM
                )
                value += (collected + upstream_states(
                    grad_gamma, b * steps + t + 1, states, k, onward, HAS_GAMMA
                ))[None, :]  # fmt: skip
                mean = tl.sum(e * value, 1) / tl.where(sums == 0.0, 1.0, sums)
                collected = _centred(mean, message)
                tl.store(after + at, collected, mask=k < states)
            tl.store(beta + at, message, mask=k < states)
