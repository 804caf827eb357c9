"""Launches that cover the kernels of `logprob`: a vocabulary of 151936, and a small one."""

import torch

from oneshot.triton_kernels import logprob as kernels


def call(logits, count=None, masked=False):
    rows, vocab = logits.shape[:-1], logits.shape[-1]
    targets = torch.zeros(rows if count is None else (*rows, count), dtype=torch.int64)
    mask = torch.ones(rows, dtype=torch.bool) if masked else None
    keep = torch.ones(logits.shape, dtype=torch.bool) if masked else None
    logprobs, entropy, stats = kernels.token_logprobs_and_entropy(
        logits, targets, mask, keep, 0.7, False
    )
    for grad_entropy in (None, entropy):
        kernels.token_logprobs_and_entropy_backward_(
            logprobs, grad_entropy, logits, targets, mask, keep, logprobs, stats, 0.7
        )
    return vocab


def cases():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        call(torch.empty((2, 3, 151936), dtype=dtype))
    call(torch.empty((2, 3, 151936), dtype=torch.bfloat16), 4, masked=True)
    call(torch.empty((3, 1000)))


def more_batches():
    """Other batch shapes of the same model: no kernel may be new."""
    for shape in ((1, 1), (2, 16), (7, 5), (1, 33), (64, 2)):
        call(torch.empty((*shape, 151936), dtype=torch.bfloat16))
