"""Launchers of the `hmm` family: a block for each sequence, states in its lanes.

Messages of both directions run at once in programs of their own; posteriors and gradients are then
made from them for every step at once. Up to 128 states; more are served by the reference.
"""

from __future__ import annotations

import torch

from oneshot.reference import hmm as reference
from oneshot.reference import hmm_sampling
from oneshot.triton_kernels._launch import ceil_div
from oneshot.triton_kernels.hmm_inputs import Chain, chain
from oneshot.triton_kernels.hmm_messages import messages_kernel
from oneshot.triton_kernels.hmm_paths import sample_kernel, trace_kernel, viterbi_kernel
from oneshot.triton_kernels.hmm_posteriors import pairs_kernel, states_kernel

MOST_STATES = 128
CHUNK = 256  # steps that one program sums; fixed, so that padding changes no bit
BLOCK = 128


class _Messages:
    """Messages of all sequences, with what a gradient collects; `upstream` is that of the op."""

    def __init__(self, c: Chain, both: bool, upstream=None, keep=True):
        self.chain = c
        self.gradient = upstream is not None
        grad_log_likelihood, *self.upstream = upstream or (None,) * 4
        like = c.log_emit
        self.grad_log_likelihood = grad_log_likelihood
        self.log_likelihood = like.new_empty(like.shape[0])
        self.alpha = torch.empty_like(like) if keep else like
        self.beta = torch.empty_like(like) if both else like
        self.before = torch.empty_like(like) if self.gradient else like
        self.after = torch.empty_like(like) if self.gradient else like
        programs = like.shape[0] * (2 if both else 1)
        if programs:
            messages_kernel[(programs,)](
                *c.arguments(), self.alpha, self.beta, self.before, self.after,
                self.log_likelihood, *self._upstream(), *c.sizes(), **c.flags(), BOTH=both,
                KEEP=keep, GRADIENT=self.gradient, **self._upstream_flags(),
            )  # fmt: skip

    def _upstream(self):
        return tuple(self.chain.log_emit if x is None else x for x in self.upstream)

    def _upstream_flags(self):
        names = ("HAS_GAMMA", "HAS_XI", "HAS_XI_SUM")
        return {name: x is not None for name, x in zip(names, self.upstream, strict=True)}

    def _shared(self):
        like = self.log_likelihood
        scale = like if self.grad_log_likelihood is None else self.grad_log_likelihood
        messages = (self.alpha, self.beta, self.before, self.after, self.log_likelihood, scale)
        flags = {key: self.chain.flags()[key] for key in ("HAS_LENGTHS", "K", "num_warps")}
        flags |= {"HAS_GRAD": self.grad_log_likelihood is not None, "GRADIENT": self.gradient}
        return messages, flags

    def _lengths(self):
        return self.chain.log_emit if self.chain.lengths is None else self.chain.lengths

    def states(self):
        """gamma, or the gradient of the emissions."""
        like = self.chain.log_emit
        out = torch.empty_like(like)
        messages, flags = self._shared()
        flags["num_warps"] = 1
        if out.numel():
            states_kernel[(like.shape[0] * like.shape[1],)](
                *messages, self._lengths(), out, *self.chain.sizes(), **flags
            )
        return out

    def pairs(self, shared: bool, constant: bool):
        """Xi or the gradient of the transitions; summed over the batch, over the steps."""
        like = self.chain.log_emit
        batch, steps, states = like.shape
        chunk = CHUNK if constant else 1
        chunks = max(ceil_div(steps - 1, chunk), 1 if constant else 0)
        shared = shared and batch > 1
        over_batch = shared and not constant
        rows = 1 if over_batch else batch
        # Sums of many are float64.
        dtype = torch.float64 if shared or constant else like.dtype
        out = like.new_empty((rows, chunks, states, states), dtype=dtype)
        messages, flags = self._shared()
        chain_flags = self.chain.flags()
        if out.numel():
            pairs_kernel[(rows * chunks,)](
                self.chain.log_trans, like, self._lengths(), *messages, *self._upstream(), out,
                batch, steps, states, chunk, chunks, **flags, **self._upstream_flags(),
                trans_rows=chain_flags["trans_rows"],
                TRANS_CONSTANT=chain_flags["TRANS_CONSTANT"], OVER_BATCH=over_batch,
            )  # fmt: skip
        if constant:
            out = out.sum(1, keepdim=True)
            out = out.sum(0, keepdim=True) if shared else out
        return out.to(like.dtype)


def hmm_posteriors(log_init, log_trans, log_emit, lengths, log_final, gamma, xi, xi_sum):
    """Launcher of the op; a length outside [0, T] gives NaN."""
    if log_emit.shape[2] > MOST_STATES:
        return reference.hmm_posteriors(
            log_init, log_trans, log_emit, lengths, log_final, gamma, xi, xi_sum
        )
    both = gamma or xi or xi_sum
    m = _Messages(chain(log_init, log_trans, log_emit, lengths, log_final), both, keep=both)
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
    if log_emit.shape[2] > MOST_STATES:
        return reference.hmm_posteriors_backward(*upstream, *inputs)
    upstream = tuple(x if x is None else x.contiguous() for x in upstream)
    m = _Messages(chain(*inputs), True, upstream)
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


def hmm_viterbi(log_init, log_trans, log_emit, lengths, log_final):
    """Launcher of the op."""
    if log_emit.shape[2] > MOST_STATES:
        return reference.hmm_viterbi(log_init, log_trans, log_emit, lengths, log_final)
    c = chain(log_init, log_trans, log_emit, lengths, log_final)
    batch = log_emit.shape[0]
    path = log_emit.new_empty(log_emit.shape[:2], dtype=torch.int64)
    score = log_emit.new_empty(batch)
    if batch:
        pointers = log_emit.new_empty(log_emit.shape, dtype=torch.uint8)
        last = log_emit.new_empty(batch, dtype=torch.int32)
        viterbi_kernel[(batch,)](
            *c.arguments(), pointers, last, score, *c.sizes(), **c.flags()
        )  # fmt: skip
        trace_kernel[(batch,)](
            pointers, last, log_emit if lengths is None else c.lengths, path, *c.sizes(),
            HAS_LENGTHS=lengths is not None, BLOCK=BLOCK, num_warps=1,
        )  # fmt: skip
    return path, score


def hmm_sample(
    log_init, log_trans, log_emit, lengths, log_final, sequence_ids, num_samples, seed
):  # fmt: skip
    """Launcher of the op."""
    inputs = (log_init, log_trans, log_emit, lengths, log_final)
    if log_emit.shape[2] > MOST_STATES:
        return hmm_sampling.hmm_sample(*inputs, sequence_ids, num_samples, seed)
    m = _Messages(chain(*inputs), both=False)
    c, flags = m.chain, m.chain.flags()
    del flags["init_rows"]
    batch, steps = log_emit.shape[:2]
    paths = log_emit.new_empty((num_samples, batch, steps), dtype=torch.int64)
    if paths.numel():
        ids = log_emit if sequence_ids is None else sequence_ids.contiguous()
        _, trans, emit, lengths_of, final = c.arguments()
        sample_kernel[(num_samples * batch,)](
            trans, lengths_of, final, m.alpha, m.log_likelihood, ids, paths, batch, *c.sizes(),
            seed, **{**flags, "num_warps": 1}, HAS_IDS=sequence_ids is not None, BLOCK=BLOCK,
        )  # fmt: skip
    return paths
