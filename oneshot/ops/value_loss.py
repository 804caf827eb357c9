"""Loss of a value head, clipped around the predictions at rollout time."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oneshot.ops import _library
from oneshot.ops._numbers import number
from oneshot.ops.policy_inputs import batch_size, layout, named, normalizer, per_token
from oneshot.reference import value_loss as reference
from oneshot.reference.policy_tokens import arithmetic_dtype
from oneshot.reference.value_loss import ValueMetric


class ValueLoss(NamedTuple):
    """Scalar loss with gradient, and one tensor of metrics indexed by `ValueMetric`."""

    loss: Tensor
    metrics: Tensor

    def metrics_dict(self) -> dict[str, float]:
        """The metrics by name. Reads the tensor, so on an accelerator it waits for the device."""
        return named(self.metrics, ValueMetric)


def _fake_value_loss(values: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = arithmetic_dtype(values)
    return (
        values.new_empty((), dtype=dtype),
        values.new_empty((len(ValueMetric),), dtype=dtype),
        values.new_empty((batch_size(values, rest[3]),), dtype=torch.float64),
    )


_value_loss = _library.define(
    "value_loss(Tensor values, Tensor? old_values, Tensor returns, Tensor? mask, "
    "Tensor? cu_seqlens, Tensor? count, float clip, int aggregate, bool count_empty, "
    "SymInt max_length) -> (Tensor, Tensor, Tensor)",
    reference.value_loss,
    _fake_value_loss,
)
_value_loss_backward = _library.define(
    "value_loss_backward(Tensor grad_loss, Tensor values, Tensor? old_values, Tensor returns, "
    "Tensor? mask, Tensor? cu_seqlens, Tensor weights, float clip) -> Tensor",
    reference.value_loss_backward,
    lambda grad_loss, values, *rest: values.new_empty(values.shape),
)


def _value_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    values, old_values, returns, mask, cu_seqlens, _, ctx.clip = inputs[:7]
    _library.save_for_backward(ctx, values, old_values, returns, mask, cu_seqlens, output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _value_grad(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Any, ...]:
    by_values = _value_loss_backward(grad_loss, *ctx.saved_tensors, ctx.clip)
    return (by_values, *[None] * 9)


_library.differentiable("value_loss", _value_grad, _value_setup)


def value_loss(
    values: Tensor,
    old_values: Tensor | None,
    returns: Tensor,
    mask: Tensor | None = None,
    *,
    clip: float | None = 0.5,
    cu_seqlens: Tensor | None = None,
    aggregate: str = "token-mean",
    token_count: float | Tensor | None = None,
    sequence_count: float | Tensor | None = None,
    max_length: int | None = None,
    count_empty: bool = False,
) -> ValueLoss:
    """Clipped squared error of a value head: agg(max((v - R)^2, (clip(v) - R)^2)) / 2.

    Gradient goes to `values` only.

    Args:
        values: [B, T] padded, or [N] packed with `cu_seqlens`: predictions being trained.
        old_values: Shape of `values`: predictions at rollout time. May be None when `clip` is.
        returns: Shape of `values`: targets.
        mask: Bool, shape of `values`; True where a token counts. Default: all count.
        clip: v is held within `clip` of the old value in the second error; None: plain error.
        cu_seqlens: [B + 1] int32 or int64 for the packed layout.
        aggregate: As in :func:`policy_loss`, like the four arguments that follow.
        token_count: See :func:`policy_loss`.
        sequence_count: See :func:`policy_loss`.
        max_length: See :func:`policy_loss`.
        count_empty: See :func:`policy_loss`.

    Returns:
        ValueLoss(loss, metrics): 0-dim loss and [5] metrics (index: `ValueMetric`), float32, or
        float64 for float64 `values`.

    Raises:
        TypeError: A dtype other than those named here.
        ValueError: A shape, device, name or number that does not fit.

    Source:
        Value clipping of the reference implementation of Schulman et al. 2017, as in verl
        ``compute_value_loss``.
    """
    mask, cu_seqlens = layout("values", values, mask, cu_seqlens)
    returns = per_token("returns", returns, "values", values)  # type: ignore[assignment]
    old_values = per_token("old_values", old_values, "values", values)
    if clip is None:
        old_values = None
    elif old_values is None:
        raise ValueError(f"clip = {clip} needs old_values, got None")
    elif not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    width = values.shape[1] if cu_seqlens is None else None
    how = normalizer(aggregate, token_count, sequence_count, max_length, width)
    loss, metrics, _ = _value_loss(
        values,
        old_values,
        returns,
        mask,
        cu_seqlens,
        how.count_tensor(values),
        math.inf if clip is None else number("clip", clip),
        how.aggregate,
        count_empty,
        how.max_length,
    )
    return ValueLoss(loss, metrics)
