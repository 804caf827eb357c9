"""Launches that cover the kernels of `advantage`."""

import torch

from oneshot.triton_kernels import advantage as kernels


def call(batch, width):
    rewards, tokens = torch.zeros(batch * 4), torch.zeros(batch, width)
    mask = torch.ones((batch, width), dtype=torch.bool)
    ids = torch.arange(batch * 4) // 4
    how = ("std", 1, 1e-6, "raw", "propagate")
    kernels.group_advantages(rewards, None, None, 4, None, None, "mean", *how)
    kernels.group_advantages(rewards, None, None, 0, ids, None, "loo", *how)
    kernels.group_advantages(
        tokens, mask, None, batch, None, None, "opo", "batch_std", 1, 1e-6, "raw", "ignore"
    )
    kernels.gae(tokens, tokens, mask, torch.zeros(batch), None, 0.9, 0.9)
    cu_seqlens = torch.arange(batch + 1) * width
    kernels.gae(tokens.flatten(), tokens.flatten(), None, None, cu_seqlens, 0.9, 0.9)
    kernels.whiten(tokens, mask, True, 1e-8)


def cases():
    call(4, 96)


def more_batches():
    """Other batch shapes: no kernel may be new."""
    for batch, width in ((1, 1), (1, 1000), (16, 64), (3, 5000)):
        call(batch, width)
