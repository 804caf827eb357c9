"""Launches that cover the kernels of `hmm`: 9, 64 and 200 states, shared and per-token matrices.

Both dtypes, and gradients with and without what each output may pass on: a kernel whose branches
differ in type for one of them is interpreted without complaint, and does not compile.
"""

import torch

from oneshot.triton_kernels import hmm as kernels
from oneshot.triton_kernels import hmm_emissions


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
    kernels.hmm_posteriors_backward(None, outputs[1], None, outputs[3], *inputs)
    kernels.hmm_posteriors_backward(outputs[0], None, outputs[2], None, *inputs)
    kernels.hmm_viterbi(*inputs)
    kernels.hmm_sample(*inputs, None, 2, 1)


def emissions(batch, steps, constant, soft, normalize):
    sources, states, labels = 5, 9, 9
    leading = () if constant else (batch, steps)
    log_emissions = torch.zeros(*leading, sources, states, labels)
    observations = torch.zeros(batch, steps, sources, dtype=torch.int64)
    if soft:
        observations = torch.ones(batch, steps, sources, labels)
    inputs = (log_emissions, observations, torch.ones(sources), normalize)
    grad = hmm_emissions.combine_emissions(*inputs)
    hmm_emissions.combine_emissions_backward(grad, *inputs)


def cases():
    call(4, 32, 9, False)
    call(4, 32, 64, False)
    call(4, 32, 64, True)
    call(4, 5, 200, False)
    call(4, 5, 200, True)
    for states in (9, 200):
        call(4, 5, states, False, torch.float64, lengths=False)
    emissions(4, 32, constant=False, soft=True, normalize=False)
    emissions(4, 32, constant=True, soft=False, normalize=True)


def more_batches():
    """Other batch shapes: no kernel may be new."""
    for batch, steps in ((1, 17), (7, 3), (2, 500), (16, 64)):
        call(batch, steps, 9, False)
        call(batch, steps, 64, True)
        call(batch, min(steps, 20), 200, True)
        emissions(batch, steps, constant=False, soft=True, normalize=False)
        emissions(batch, steps, constant=True, soft=False, normalize=True)
