"""NumPy faces of the `policy_loss` family: losses come with their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike, NDArray

from oneshot import ops
from oneshot.numpy._arrays import tensors


class PolicyLoss(NamedTuple):
    """Loss, metrics by name, and the gradients by `logprobs` and `entropy` (None without it)."""

    loss: float
    metrics: dict[str, float]
    grad_logprobs: NDArray
    grad_entropy: NDArray | None


class ValueLoss(NamedTuple):
    """Loss, metrics by name, and the gradient by `values`."""

    loss: float
    metrics: dict[str, float]
    grad_values: NDArray


class ImportanceWeights(NamedTuple):
    """Weights, and metrics by name."""

    weights: NDArray
    metrics: dict[str, float]


def policy_loss(
    logprobs: ArrayLike,
    old_logprobs: ArrayLike | None,
    advantages: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    ref_logprobs: ArrayLike | None = None,
    entropy: ArrayLike | None = None,
    importance_weights: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    **options: Any,
) -> PolicyLoss:
    """NumPy face of :func:`oneshot.ops.policy_loss`; `options` are its other arguments."""
    found = tensors(
        {
            "logprobs": logprobs, "old_logprobs": old_logprobs, "advantages": advantages,
            "ref_logprobs": ref_logprobs, "entropy": entropy,
            "importance_weights": importance_weights,
        },
        {"mask": mask, "cu_seqlens": cu_seqlens},
    )  # fmt: skip
    leaves = [x.requires_grad_() for x in (found["logprobs"], found["entropy"]) if x is not None]
    with torch.enable_grad():
        out = ops.policy_loss(**found, **options)
    grads = [grad.numpy() for grad in torch.autograd.grad(out.loss, leaves)]
    by_entropy = None if entropy is None else grads[1]
    return PolicyLoss(out.loss.item(), out.metrics_dict(), grads[0], by_entropy)


def value_loss(
    values: ArrayLike,
    old_values: ArrayLike | None,
    returns: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    cu_seqlens: ArrayLike | None = None,
    **options: Any,
) -> ValueLoss:
    """NumPy face of :func:`oneshot.ops.value_loss`; `options` are its other arguments."""
    found = tensors(
        {"values": values, "old_values": old_values, "returns": returns},
        {"mask": mask, "cu_seqlens": cu_seqlens},
    )
    leaf = found["values"].requires_grad_()
    with torch.enable_grad():
        out = ops.value_loss(**found, **options)
    (grad,) = torch.autograd.grad(out.loss, leaf)
    return ValueLoss(out.loss.item(), out.metrics_dict(), grad.numpy())


def importance_weights(
    logprobs: ArrayLike,
    sampler_logprobs: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    cu_seqlens: ArrayLike | None = None,
    **options: Any,
) -> ImportanceWeights:
    """NumPy face of :func:`oneshot.ops.importance_weights`; `options` are its other arguments."""
    found = tensors(
        {"logprobs": logprobs, "sampler_logprobs": sampler_logprobs},
        {"mask": mask, "cu_seqlens": cu_seqlens},
    )
    out = ops.importance_weights(**found, **options)
    return ImportanceWeights(out.weights.numpy(), out.metrics_dict())
