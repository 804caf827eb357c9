"""Launches that cover the kernels of `policy_loss`: every surrogate, ratio and layout."""

import math

import torch

from oneshot.triton_kernels import policy_loss as kernels

INF = math.inf
OPTIONS = [0, 0, 0.8, 1.2, INF, INF, -INF, INF, 3, 0, INF, INF, 1.0, 1e-2, 1e-2, 0, -1, -1, 0]


def call(batch, width, dtype, packed=False, options=OPTIONS):
    x = torch.empty((batch * width,) if packed else (batch, width), dtype=dtype)
    mask = torch.ones(x.shape, dtype=torch.bool)
    cu_seqlens = torch.arange(batch + 1) * width if packed else None
    advantages = torch.empty(batch)
    _, _, weights = kernels.policy_loss(
        x, x, advantages, mask, x, x, advantages, cu_seqlens, None, options, width
    )
    kernels.policy_loss_backward(
        torch.ones(()), x, x, advantages, mask, x, advantages, cu_seqlens, weights, True, True,
        options, width,
    )  # fmt: skip
    how = (cu_seqlens, None, 0.2, 0, False, width)
    _, _, weights = kernels.value_loss(x, x, x, mask, *how)
    kernels.value_loss_backward(torch.ones(()), x, x, x, mask, cu_seqlens, weights, 0.2)
    for per_sequence in (False, True):
        kernels.importance_weights(
            x, x, mask, cu_seqlens, per_sequence, True, 0.0, 2.0, 20.0, True, False
        )


def cases():
    call(4, 96, torch.float32)
    call(4, 96, torch.bfloat16, packed=True)
    call(4, 96, torch.float32, options=[0, 1, *OPTIONS[2:]])
    call(4, 96, torch.float32, options=[1, *OPTIONS[1:]])


def more_batches():
    """Other batch shapes: no kernel may be new."""
    for batch, width in ((1, 3), (1, 1000), (16, 64), (3, 5000)):
        call(batch, width, torch.float32)
        call(batch, width, torch.bfloat16, packed=True)
