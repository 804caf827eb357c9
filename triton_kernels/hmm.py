"""Launchers of the `hmm` family: a block for each sequence, states in its lanes.

Messages of both directions run at once in programs of their own; posteriors and gradients are then
made from them for every step at once. More states than one block holds go in tiles, with a launch
for each step.
"""

from __future__ import annotations

import torch

from oneshot.triton_kernels._launch import ceil_div
from oneshot.triton_kernels.hmm_inputs import MOST_STATES, TILE, chain
from oneshot.triton_kernels.hmm_passes import messages, warps_of
from oneshot.triton_kernels.hmm_paths import (
    sample_kernel,
    trace_kernel,
    viterbi_kernel,
    viterbi_step_kernel,
)

CHUNK = 128  # of a path that is filled at once


def hmm_posteriors(log_init, log_trans, log_emit, lengths, log_final, gamma, xi, xi_sum):
    """Launcher of the op; a length outside [0, T] gives NaN."""
    both = gamma or xi or xi_sum
    m = messages(chain(log_init, log_trans, log_emit, lengths, log_final), both, keep=both)
    return (
        m.log_likelihood,
        m.states() if gamma else log_emit.new_empty(0),
        m.pairs(shared=False, constant=False) if xi else log_emit.new_empty(0),
        m.pairs(shared=False, constant=True).squeeze(1) if xi_sum else log_emit.new_empty(0),
    )


def _boundary(grad, x):
    """In the shape of log_init or log_final; empty without one."""
    if x is None:
        return grad.new_empty(0)
    return grad.sum(0, keepdim=True) if x.shape[0] == 1 else grad.contiguous()


def hmm_posteriors_backward(
    grad_log_likelihood, grad_gamma, grad_xi, grad_xi_sum, log_init, log_trans, log_emit, lengths,
    log_final,
):  # fmt: skip
    """Launcher of the op."""
    upstream = (grad_log_likelihood, grad_gamma, grad_xi, grad_xi_sum)
    inputs = (log_init, log_trans, log_emit, lengths, log_final)
    upstream = tuple(x if x is None else x.contiguous() for x in upstream)
    m = messages(chain(*inputs), True, upstream)
    grad_emit = m.states()
    grad_trans = m.pairs(log_trans.shape[0] == 1, log_trans.shape[1] == 1)
    last = grad_emit[:, -1]
    if lengths is not None:
        place = (lengths - 1).clamp(0, log_emit.shape[1] - 1)[:, None, None]
        last = grad_emit.gather(1, place.expand(-1, 1, log_emit.shape[2])).squeeze(1)
    return (
        _boundary(grad_emit[:, 0], log_init),
        grad_trans.reshape(log_trans.shape),
        grad_emit,
        _boundary(last, log_final),
    )


def _pointer_type(states):
    if states <= 1 << 8:
        return torch.uint8
    return torch.int16 if states <= 1 << 15 else torch.int32


def hmm_viterbi(log_init, log_trans, log_emit, lengths, log_final):
    """Launcher of the op."""
    c = chain(log_init, log_trans, log_emit, lengths, log_final)
    batch, steps, states = log_emit.shape
    path = log_emit.new_empty((batch, steps), dtype=torch.int64)
    score = log_emit.new_empty(batch)
    if batch:
        pointers = log_emit.new_empty(log_emit.shape, dtype=_pointer_type(states))
        last = log_emit.new_empty(batch, dtype=torch.int32)
        if states <= MOST_STATES:
            viterbi_kernel[(batch,)](
                *c.arguments(), pointers, last, score, *c.sizes(), **c.flags()
            )  # fmt: skip
        else:
            tiles = ceil_div(states, TILE)
            scores = log_emit.new_empty((2, batch, states), dtype=torch.float64)
            flaws = log_emit.new_empty((batch, tiles), dtype=torch.int32)
            for n in range(steps + 1):
                viterbi_step_kernel[(batch, tiles)](
                    *c.arguments(), pointers, last, score, scores, flaws, n, batch, *c.sizes(),
                    **c.tile_flags(),
                )  # fmt: skip
        trace_kernel[(batch,)](
            pointers, last, log_emit if lengths is None else c.lengths, path, *c.sizes(),
            HAS_LENGTHS=lengths is not None, BLOCK=CHUNK, num_warps=1,
        )  # fmt: skip
    return path, score


def hmm_sample(
    log_init, log_trans, log_emit, lengths, log_final, sequence_ids, num_samples, seed
):  # fmt: skip
    """Launcher of the op."""
    inputs = (log_init, log_trans, log_emit, lengths, log_final)
    m = messages(chain(*inputs), both=False)
    c, flags = m.chain, m.chain.flags()
    del flags["init_rows"]
    batch, steps = log_emit.shape[:2]
    paths = log_emit.new_empty((num_samples, batch, steps), dtype=torch.int64)
    if paths.numel():
        ids = log_emit if sequence_ids is None else sequence_ids.contiguous()
        _, trans, emit, lengths_of, final = c.arguments()
        sample_kernel[(num_samples * batch,)](
            trans, lengths_of, final, m.alpha, m.log_likelihood, ids, paths, batch, *c.sizes(),
            seed, **{**flags, "num_warps": warps_of(flags["K"])},
            HAS_IDS=sequence_ids is not None, BLOCK=CHUNK,
        )  # fmt: skip
    return paths
