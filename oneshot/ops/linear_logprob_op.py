"""Schema, implementation and backward of the op behind `linear_logprob.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from oneshot.ops import _library
from oneshot.ops import linear_logprob_tiles as tiled
from oneshot.ops.linear_logprob_merge import (
    COUNT,
    ENTROPY,
    FIELDS,
    HIGH,
    LOGITS,
    MEAN,
    SQUARES,
    TOP,
    TOTAL,
)

_CALL = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? mask, Tensor? keep_mask, "
    "Tensor? kept_ids, Tensor? kept_offsets, float temperature, float logit_scale, float softcap, "
    "ScalarType tile_dtype, int tile_bytes, str? group, int vocab_start, SymInt vocab_size"
)
_NUMBER_OF_INPUTS = _CALL.count(",") + 1


class Call(NamedTuple):
    """The arguments that forward and backward share, as in `_CALL`."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    targets: torch.Tensor
    mask: torch.Tensor | None
    keep_mask: torch.Tensor | None
    kept_ids: torch.Tensor | None
    kept_offsets: torch.Tensor | None
    temperature: float
    logit_scale: float
    softcap: float  # 0: none
    tile_dtype: torch.dtype
    tile_bytes: int
    group: str | None
    vocab_start: int
    vocab_size: int


class _Rows(NamedTuple):
    """The rows that count among all rows, and how results get back to their places."""

    shape: torch.Size
    counted: torch.Tensor | None  # None: all

    def take(self, x: torch.Tensor, width: int) -> torch.Tensor:
        """The rows that count of a tensor with so many numbers a row, as a matrix."""
        flat = x.reshape(self.shape.numel(), width)
        return flat if self.counted is None else flat.index_select(0, self.counted)

    def spread(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Write the rows that count into `out`, and 0 into the others."""
        if self.counted is None:
            out.copy_(x.reshape(out.shape))
            return
        rows = out.zero_().view(self.shape.numel(), *x.shape[1:])
        rows.index_copy_(0, self.counted, x.to(out.dtype))


def _rows(hidden: torch.Tensor, mask: torch.Tensor | None) -> _Rows:
    counted = None if mask is None else mask.reshape(-1).nonzero().squeeze(1)
    return _Rows(hidden.shape[:-1], counted)


def _kept(
    rows: _Rows,
    keep_mask: torch.Tensor | None,
    kept_ids: torch.Tensor | None,
    kept_offsets: torch.Tensor | None,
    shard: tiled.Shard,
    width: int,
) -> tiled.Kept | None:
    """The tokens of this shard that count, in the order of the rows that count."""
    if keep_mask is not None:
        part = keep_mask[..., shard.start : shard.start + width]
        if part.numel() == width:
            return tiled.Kept(part.reshape(1, width), None, None)
        return tiled.Kept(rows.take(part.expand(*rows.shape, width), width), None, None)
    if kept_ids is None or kept_offsets is None:
        return None
    every = torch.arange(rows.shape.numel(), device=kept_ids.device)
    row = every.repeat_interleave(kept_offsets.diff(), output_size=len(kept_ids))
    ids = kept_ids - shard.start
    inside = (ids >= 0) & (ids < width)
    if rows.counted is not None:
        place = torch.full_like(every, -1)
        place[rows.counted] = torch.arange(len(rows.counted), device=place.device)
        row = place[row]
        inside &= row >= 0
    return tiled.Kept(None, row[inside], ids[inside])


def _check_values(
    targets: torch.Tensor,
    rows: _Rows,
    kept_ids: torch.Tensor | None,
    kept_offsets: torch.Tensor | None,
    vocab: int,
) -> None:
    """Raise for a value out of range, where looking at values costs no wait for a device."""
    if targets.device.type != "cpu":
        return
    bad = (targets < 0) | (targets >= vocab)
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        place = row if rows.counted is None else int(rows.counted[row])
        raise RuntimeError(
            f"targets must lie in [0, {vocab}), got {int(targets[row, column])} in row {place} "
            "(rows with mask False are not checked)"
        )
    if kept_ids is None or kept_offsets is None:
        return
    lengths = kept_offsets.diff()
    if kept_offsets[0] != 0 or kept_offsets[-1] != len(kept_ids) or bool((lengths < 0).any()):
        raise RuntimeError(
            f"kept_offsets must rise from 0 to the length of kept_ids {len(kept_ids)}, got "
            f"{kept_offsets[0]} to {kept_offsets[-1]}, smallest step "
            f"{int(lengths.min()) if len(lengths) else 0}"
        )
    bad = (kept_ids < 0) | (kept_ids >= vocab)
    if bad.any():
        place = int(bad.nonzero()[0])
        raise RuntimeError(
            f"kept_ids must lie in [0, {vocab}), got {int(kept_ids[place])} at index {place}"
        )


def _head(call: Call) -> tuple[tiled.Head, _Rows]:
    rows = _rows(call.hidden, call.mask)
    k = 1 if call.targets.dim() < call.hidden.dim() else call.targets.shape[-1]
    ids = rows.take(call.targets, k)
    _check_values(ids, rows, call.kept_ids, call.kept_offsets, call.vocab_size)
    shard = tiled.Shard(call.group, call.vocab_start, call.vocab_size)
    kept = _kept(
        rows, call.keep_mask, call.kept_ids, call.kept_offsets, shard, len(call.weight)
    )  # fmt: skip
    transform = tiled.Transform(call.temperature, call.logit_scale, call.softcap)
    hidden = rows.take(call.hidden, call.hidden.shape[-1])
    head = tiled.Head(
        hidden, call.weight, call.bias, ids, kept, transform, shard, call.tile_dtype,
        call.tile_bytes,
    )  # fmt: skip
    return head, rows


def _empty_outputs(call: Call, extras: tiled.Extras, kept_bytes: int) -> tuple[torch.Tensor, ...]:
    """The outputs of forward before anything is in them; the shapes and dtypes of each."""
    hidden, shape = call.hidden, call.hidden.shape[:-1]
    real = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    everything = tiled.elements_of_all_tiles(math.prod(shape), call.weight.shape[0])
    kept = torch.sym_min(kept_bytes // call.tile_dtype.itemsize, everything) if kept_bytes else 0
    return (
        hidden.new_empty(call.targets.shape, dtype=real),
        hidden.new_empty(shape, dtype=real),
        hidden.new_empty(shape if extras.log_sum_sq_probs else (0,), dtype=real),
        hidden.new_empty(shape if extras.mean_logits else (0,), dtype=real),
        hidden.new_empty(call.targets.shape if extras.is_top1 else (0,), dtype=torch.bool),
        hidden.new_empty((*shape, 3), dtype=real),
        hidden.new_empty(kept, dtype=call.tile_dtype),
    )


@torch.no_grad()
def _forward_in_tiles(*arguments: Any) -> tuple[torch.Tensor, ...]:
    call = Call(*arguments[:_NUMBER_OF_INPUTS])
    *flags, kept_bytes = arguments[_NUMBER_OF_INPUTS:]
    extras = tiled.Extras(*flags)
    outputs = _empty_outputs(call, extras, kept_bytes)
    logprobs, entropy, squares, mean, top1, stats, kept_logits = outputs
    head, rows = _head(call)
    part = tiled.forward(head, kept_logits, extras)
    rows.spread(part[:, FIELDS:], logprobs)
    rows.spread(part[:, ENTROPY], entropy)
    rows.spread(part[:, [HIGH, TOTAL, MEAN]], stats)
    if extras.log_sum_sq_probs:
        rows.spread(part[:, SQUARES].log(), squares)
    if extras.mean_logits:
        rows.spread(part[:, LOGITS] / part[:, COUNT] / head.divisor, mean)
    if extras.is_top1:
        first = (head.targets == part[:, TOP, None]) & part[:, TOTAL, None].isfinite()
        rows.spread(first, top1)
    return outputs


@torch.no_grad()
def _backward_in_tiles(
    grad_logprobs: torch.Tensor | None, grad_entropy: torch.Tensor | None, *arguments: Any
) -> tuple[torch.Tensor, ...]:
    call = Call(*arguments[:_NUMBER_OF_INPUTS])
    logprobs, stats, kept_logits, *wanted = arguments[_NUMBER_OF_INPUTS:]
    outputs = _empty_gradients(call, wanted)
    head, rows = _head(call)
    k = head.targets.shape[1]
    gradients = tiled.backward(
        head,
        kept_logits,
        rows.take(logprobs, k),
        rows.take(stats, 3),
        None if grad_logprobs is None else rows.take(grad_logprobs, k).to(head.real),
        None if grad_entropy is None else rows.take(grad_entropy, 1).to(head.real).squeeze(1),
        outputs[1] if wanted[1] else None,
        hidden=wanted[0],
        bias=wanted[2],
    )
    if gradients.hidden is not None:
        rows.spread(gradients.hidden, outputs[0])
    if gradients.bias is not None:
        outputs[2].copy_(gradients.bias)
    return outputs


def _empty_gradients(call: Call, wanted: Sequence[bool]) -> tuple[torch.Tensor, ...]:
    """Of hidden, weight and bias; without elements where not wanted."""
    inputs = (call.hidden, call.weight, call.bias)
    return tuple(
        call.hidden.new_empty(x.shape if want and x is not None else (0,))
        for x, want in zip(inputs, wanted, strict=True)
    )


forward = _library.define(
    f"linear_token_logprobs_and_entropy({_CALL}, bool log_sum_sq_probs, bool mean_logits, "
    "bool is_top1, int kept_bytes) -> (Tensor logprobs, Tensor entropy, Tensor log_sum_sq_probs, "
    "Tensor mean_logits, Tensor is_top1, Tensor stats, Tensor kept_logits)",
    _forward_in_tiles,
    lambda *arguments: _empty_outputs(
        Call(*arguments[:_NUMBER_OF_INPUTS]),
        tiled.Extras(*arguments[_NUMBER_OF_INPUTS:-1]),
        arguments[-1],
    ),
)
backward = _library.define(
    f"linear_token_logprobs_and_entropy_backward(Tensor? grad_logprobs, Tensor? grad_entropy, "
    f"{_CALL}, Tensor logprobs, Tensor stats, Tensor kept_logits, bool hidden_wanted, "
    "bool weight_wanted, bool bias_wanted) -> (Tensor, Tensor, Tensor)",
    _backward_in_tiles,
    lambda _, __, *arguments: _empty_gradients(
        Call(*arguments[:_NUMBER_OF_INPUTS]), arguments[-3:]
    ),
)
_TENSORS = 8  # inputs that are tensors


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logprobs, _, *data, stats, kept_logits = output
    ctx.numbers = inputs[_TENSORS:_NUMBER_OF_INPUTS]
    # A copy of the log-probabilities, so that callers may edit what they got.
    saved = (*inputs[:_TENSORS], logprobs.clone(), stats, kept_logits)
    _library.save_for_backward(ctx, *saved)
    ctx.mark_non_differentiable(*data, stats, kept_logits)
    ctx.set_materialize_grads(False)  # an output that is not differentiated costs nothing


def _differentiate(
    ctx: Any, grad_logprobs: torch.Tensor | None, grad_entropy: torch.Tensor | None, *_: None
) -> tuple[torch.Tensor | None, ...]:
    rest = (None,) * (_NUMBER_OF_INPUTS + len(tiled.Extras._fields) + 1 - 3)
    wanted = tuple(ctx.needs_input_grad[:3])
    if (grad_logprobs is None and grad_entropy is None) or not any(wanted):
        return (None, None, None, *rest)
    tensors = ctx.saved_tensors
    call = (*tensors[:_TENSORS], *ctx.numbers)
    gradients = backward(grad_logprobs, grad_entropy, *call, *tensors[_TENSORS:], *wanted)
    return (*(g if want else None for g, want in zip(gradients, wanted, strict=True)), *rest)


_library.differentiable("linear_token_logprobs_and_entropy", _differentiate, _save)
