"""The emulated CUDA kernels of `hmm`, with the arguments and outputs of the ops."""

from __future__ import annotations

import hmm_device
import torch


def _or_empty(outputs: list[torch.Tensor | None], like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(like.new_empty(0) if x is None else x for x in outputs)


def hmm_posteriors(
    log_init, log_trans, log_emit, lengths, log_final, gamma, xi, xi_sum, seed=0
):  # fmt: skip
    inputs = [log_init, log_trans, log_emit, lengths, log_final]
    return _or_empty(hmm_device.posteriors(inputs, gamma, xi, xi_sum, seed), log_emit)


def hmm_posteriors_backward(
    grad_log_likelihood, grad_gamma, grad_xi, grad_xi_sum,
    log_init, log_trans, log_emit, lengths, log_final, seed=0,
):  # fmt: skip
    upstream = [
        None if x is None else x.contiguous()
        for x in (grad_log_likelihood, grad_gamma, grad_xi, grad_xi_sum)
    ]
    inputs = [log_init, log_trans, log_emit, lengths, log_final]
    return _or_empty(hmm_device.posteriors_backward(upstream, inputs, seed), log_emit)


def hmm_viterbi(log_init, log_trans, log_emit, lengths, log_final, seed=0):
    return hmm_device.viterbi([log_init, log_trans, log_emit, lengths, log_final], seed)


def hmm_sample(
    log_init, log_trans, log_emit, lengths, log_final, sequence_ids, num_samples, key, seed=0
):  # fmt: skip
    inputs = [log_init, log_trans, log_emit, lengths, log_final]
    return hmm_device.sample(inputs, sequence_ids, num_samples, key, seed)
