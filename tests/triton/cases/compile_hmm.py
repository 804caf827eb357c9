"""Launches that cover the kernels of `hmm`: 9 and 64 states, shared and per-token transitions."""

import torch

from oneshot.triton_kernels import hmm as kernels


def call(batch, steps, states, shared, dtype=torch.float32, lengths=True):
    init, final = torch.zeros((1, states), dtype=dtype), torch.zeros((1, states), dtype=dtype)
    trans = (1, 1) if shared else (batch, steps - 1)
    inputs = (
        init,
        torch.zeros((*trans, states, states), dtype=dtype),
        torch.zeros((batch, steps, states), dtype=dtype),
        torch.full((batch,), steps) if lengths else None,
        final,
    )
    outputs = kernels.hmm_posteriors(*inputs, True, True, True)
    kernels.hmm_posteriors(*inputs, False, False, False)
    kernels.hmm_posteriors_backward(*outputs, *inputs)
    kernels.hmm_viterbi(*inputs)
    kernels.hmm_sample(*inputs, None, 2, 1)


def cases():
    call(4, 32, 9, False)
    call(4, 32, 64, False)
    call(4, 32, 64, True)


def more_batches():
    """Other batch shapes: no kernel may be new."""
    for batch, steps in ((1, 17), (7, 3), (2, 500), (16, 64)):
        call(batch, steps, 9, False)
        call(batch, steps, 64, True)
