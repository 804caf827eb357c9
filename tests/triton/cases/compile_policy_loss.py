"""Launches that cover the kernels of `policy_loss`: every surrogate, ratio and layout."""

import torch

from oneshot.policy_options import KernelOptions, RatioLevel, Surrogate
from oneshot.triton_kernels import policy_loss as kernels

OPTIONS = KernelOptions(kl_coef=1e-2, entropy_coef=1e-2)


def call(batch, width, dtype, packed=False, options=OPTIONS):
    options = options.packed()
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
    call(4, 96, torch.float32, options=OPTIONS._replace(ratio=RatioLevel.SEQUENCE))
    call(4, 96, torch.float32, options=OPTIONS._replace(surrogate=Surrogate.CISPO))
    call(4, 96, torch.float32, options=OPTIONS._replace(surrogate=Surrogate.SAPO))
    product = OPTIONS._replace(ratio=RatioLevel.SEQUENCE_PRODUCT)
    call(4, 96, torch.float32, options=product._replace(surrogate=Surrogate.VESPO))
    sequence = OPTIONS._replace(ratio=RatioLevel.SEQUENCE)
    call(4, 96, torch.float32, options=sequence._replace(surrogate=Surrogate.GMPO))


def more_batches():
    """Other batch shapes: no kernel may be new."""
    for batch, width in ((1, 3), (1, 1000), (16, 64), (3, 5000)):
        call(batch, width, torch.float32)
        call(batch, width, torch.bfloat16, packed=True)
