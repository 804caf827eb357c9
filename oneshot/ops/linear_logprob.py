"""Log-probabilities and entropy from hidden states: the language-model head without its logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from oneshot.ops import _library
from oneshot.ops import linear_logprob_tiles as tiled
from oneshot.ops._checks import check_choice, check_float, check_mask, check_same_device
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

EXTRAS = ("log_sum_sq_probs", "mean_logits", "is_top1")
# Bytes that logits may take: of the tile in work and of those that forward keeps for backward.
CPU_MEMORY = 280 << 20
DEVICE_MEMORY = 1 << 30
TILES = 8  # that share this memory; products of fewer columns are slower

_CALL = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? mask, Tensor? keep_mask, "
    "Tensor? kept_ids, Tensor? kept_offsets, float temperature, float logit_scale, float softcap, "
    "int tile_bytes, str? group, int vocab_start, SymInt vocab_size"
)
_NUMBER_OF_INPUTS = _CALL.count(",") + 1


class _Call(NamedTuple):
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
    tile_bytes: int
    group: str | None
    vocab_start: int
    vocab_size: int


class TokenStatistics(NamedTuple):
    """What `linear_token_statistics` returns; an extra that was not asked for is None."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    log_sum_sq_probs: torch.Tensor | None
    mean_logits: torch.Tensor | None
    is_top1: torch.Tensor | None


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


def _head(call: _Call) -> tuple[tiled.Head, _Rows]:
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
        hidden, call.weight, call.bias, ids, kept, transform, shard, call.tile_bytes
    )  # fmt: skip
    return head, rows


def _empty_outputs(call: _Call, extras: tiled.Extras, kept_bytes: int) -> tuple[torch.Tensor, ...]:
    """The outputs of forward before anything is in them; the shapes and dtypes of each."""
    hidden, shape = call.hidden, call.hidden.shape[:-1]
    real = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    dtype = tiled.tile_dtype(hidden, call.softcap)
    everything = tiled.elements_of_all_tiles(math.prod(shape), call.weight.shape[0])
    kept = torch.sym_min(kept_bytes // dtype.itemsize, everything) if kept_bytes else 0
    return (
        hidden.new_empty(call.targets.shape, dtype=real),
        hidden.new_empty(shape, dtype=real),
        hidden.new_empty(shape if extras.log_sum_sq_probs else (0,), dtype=real),
        hidden.new_empty(shape if extras.mean_logits else (0,), dtype=real),
        hidden.new_empty(call.targets.shape if extras.is_top1 else (0,), dtype=torch.bool),
        hidden.new_empty((*shape, 3), dtype=real),
        hidden.new_empty(kept, dtype=dtype),
    )


@torch.no_grad()
def _forward_in_tiles(*arguments: Any) -> tuple[torch.Tensor, ...]:
    call = _Call(*arguments[:_NUMBER_OF_INPUTS])
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
    call = _Call(*arguments[:_NUMBER_OF_INPUTS])
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


def _empty_gradients(call: _Call, wanted: Sequence[bool]) -> tuple[torch.Tensor, ...]:
    """Of hidden, weight and bias; without elements where not wanted."""
    inputs = (call.hidden, call.weight, call.bias)
    return tuple(
        call.hidden.new_empty(x.shape if want and x is not None else (0,))
        for x, want in zip(inputs, wanted, strict=True)
    )


_forward = _library.define(
    f"linear_token_logprobs_and_entropy({_CALL}, bool log_sum_sq_probs, bool mean_logits, "
    "bool is_top1, int kept_bytes) -> (Tensor logprobs, Tensor entropy, Tensor log_sum_sq_probs, "
    "Tensor mean_logits, Tensor is_top1, Tensor stats, Tensor kept_logits)",
    _forward_in_tiles,
    lambda *arguments: _empty_outputs(
        _Call(*arguments[:_NUMBER_OF_INPUTS]),
        tiled.Extras(*arguments[_NUMBER_OF_INPUTS:-1]),
        arguments[-1],
    ),
)
_backward = _library.define(
    f"linear_token_logprobs_and_entropy_backward(Tensor? grad_logprobs, Tensor? grad_entropy, "
    f"{_CALL}, Tensor logprobs, Tensor stats, Tensor kept_logits, bool hidden_wanted, "
    "bool weight_wanted, bool bias_wanted) -> (Tensor, Tensor, Tensor)",
    _backward_in_tiles,
    lambda _, __, *arguments: _empty_gradients(
        _Call(*arguments[:_NUMBER_OF_INPUTS]), arguments[-3:]
    ),
)
_TENSORS = 8  # inputs that are tensors


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logprobs, _, *data, stats, kept_logits = output
    ctx.numbers = inputs[_TENSORS:_NUMBER_OF_INPUTS]
    # A copy of the log-probabilities, so that callers may edit what they got.
    ctx.save_for_backward(*inputs[:_TENSORS], logprobs.clone(), stats, kept_logits)
    ctx.mark_non_differentiable(*data, stats, kept_logits)
    ctx.set_materialize_grads(False)  # an output that is not differentiated costs nothing


def _differentiate(
    ctx: Any, grad_logprobs: torch.Tensor | None, grad_entropy: torch.Tensor | None, *_: None
) -> tuple[torch.Tensor | None, ...]:
    rest = (None,) * (_NUMBER_OF_INPUTS + len(tiled.Extras._fields) + 1 - 3)
    wanted = tuple(ctx.needs_input_grad[:3])
    if (grad_logprobs is None and grad_entropy is None) or not any(wanted):
        return (None, None, None, *rest)
    if torch.is_grad_enabled():
        raise RuntimeError(
            "linear_token_logprobs_and_entropy has no second derivative: call backward without "
            "create_graph=True"
        )
    tensors = ctx.saved_tensors
    call = (*tensors[:_TENSORS], *ctx.numbers)
    gradients = _backward(grad_logprobs, grad_entropy, *call, *tensors[_TENSORS:], *wanted)
    return (*(g if want else None for g, want in zip(gradients, wanted, strict=True)), *rest)


_library.differentiable("linear_token_logprobs_and_entropy", _differentiate, _save)


def _check(call: _Call) -> None:
    hidden, weight, targets = call.hidden, call.weight, call.targets
    check_float("hidden", hidden)
    if hidden.dim() < 1 or weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            "hidden must have shape [..., width] and weight [vocabulary, width], got "
            f"{list(hidden.shape)} and {list(weight.shape)}"
        )
    if weight.shape[0] < 1:
        raise ValueError(f"weight must hold at least one token, got {list(weight.shape)}")
    for name, value in (("weight", weight), ("bias", call.bias)):
        if value is None:
            continue
        if value.dtype != hidden.dtype:
            raise TypeError(
                f"{name} must have the dtype of hidden {hidden.dtype}, got {value.dtype}: cast one "
                "of them, or call under torch.autocast"
            )
        check_same_device(name, value, "hidden", hidden)
    if call.bias is not None and call.bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have shape {list(weight.shape[:1])}, one number per row of weight, got "
            f"{list(call.bias.shape)}"
        )
    rows = hidden.shape[:-1]
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64, got {targets.dtype}")
    if targets.shape != rows and targets.shape[:-1] != rows:
        raise ValueError(
            f"targets must have the shape of the rows {list(rows)} or one more dimension, got "
            f"{list(targets.shape)}"
        )
    check_same_device("targets", targets, "hidden", hidden)
    if call.mask is not None:
        check_mask("mask", call.mask, rows, "the rows of hidden")
        check_same_device("mask", call.mask, "hidden", hidden)
    for name, number in (("temperature", call.temperature), ("logit_scale", call.logit_scale)):
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {number}")


def _check_kept(call: _Call) -> None:
    rows, vocab = call.hidden.shape[:-1], call.vocab_size
    mask, ids, offsets = call.keep_mask, call.kept_ids, call.kept_offsets
    if mask is not None:
        if ids is not None or offsets is not None:
            raise ValueError("pass keep_mask or kept_ids with kept_offsets, not both")
        if mask.dtype != torch.bool:
            raise TypeError(f"keep_mask must be bool, got {mask.dtype}")
        leading = zip(reversed(mask.shape[:-1]), reversed(rows), strict=False)
        if (
            not 1 <= mask.dim() <= len(rows) + 1
            or mask.shape[-1] != vocab
            or any(size not in (1, wanted) for size, wanted in leading)
        ):
            raise ValueError(
                f"keep_mask must have a last dimension of {vocab}, the vocabulary, and leading "
                f"dimensions that broadcast to {list(rows)}, got {list(mask.shape)}"
            )
        check_same_device("keep_mask", mask, "hidden", call.hidden)
    if ids is None and offsets is None:
        return
    if ids is None or offsets is None:
        missing = "kept_ids" if ids is None else "kept_offsets"
        raise ValueError(f"kept_ids and kept_offsets belong together, {missing} is missing")
    for name, value, shape in (
        ("kept_ids", ids, list(ids.shape[:1])),
        ("kept_offsets", offsets, [math.prod(rows) + 1]),
    ):
        if value.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {value.dtype}")
        if value.dim() != 1 or list(value.shape) != shape:
            wanted = "one dimension" if name == "kept_ids" else f"shape {shape}, rows + 1"
            raise ValueError(f"{name} must have {wanted}, got {list(value.shape)}")
        check_same_device(name, value, "hidden", call.hidden)


def _shard(call: _Call, group: torch.distributed.ProcessGroup) -> _Call:
    """Fill in which part of the vocabulary this rank holds; raise where ranks disagree."""
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "process_group is not supported under torch.compile: exclude the call from the "
            "compiled region (torch.compiler.disable)"
        )
    rows = call.hidden.shape[:-1]
    mine = {
        "number of rows": math.prod(rows),
        "number of targets": call.targets.numel(),
        "number of rows with mask True": math.prod(rows)
        if call.mask is None
        else int(call.mask.sum()),
        "width of hidden": call.hidden.shape[-1],
        "temperature": call.temperature,
        "logit_scale": call.logit_scale,
        "softcap": call.softcap,
        "requires_grad of hidden": torch.is_grad_enabled() and call.hidden.requires_grad,
        "whether a gradient is needed": _needs_gradient(call),
    }
    numbers = torch.tensor(
        [len(call.weight), *mine.values()], dtype=torch.float64, device=call.hidden.device
    )
    table = numbers.new_empty(group.size(), len(numbers))
    torch.distributed.all_gather_into_tensor(table.view(-1), numbers, group=group)
    sizes, *others = table.t().tolist()
    for name, values in zip(mine, others, strict=True):
        if len(set(values)) > 1:
            raise ValueError(
                f"the ranks of process_group must agree on everything but the rows of weight; they "
                f"have different values of {name}: {values} in rank order"
            )
    start = sum(sizes[: group.rank()])
    return call._replace(group=group.group_name, vocab_start=int(start), vocab_size=int(sum(sizes)))


def _autocast(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Inputs in the dtype in which autocast multiplies, as for `torch.nn.functional.linear`."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device) or hidden.dtype == torch.float64:
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _needs_gradient(call: _Call) -> bool:
    inputs = (call.hidden, call.weight, call.bias)
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def _memory(call: _Call, memory_bytes: int | None) -> tuple[int, int]:
    """Bytes of a tile, and of the logits that forward keeps for backward."""
    if memory_bytes is None:
        memory_bytes = CPU_MEMORY if call.hidden.device.type == "cpu" else DEVICE_MEMORY
    if memory_bytes < 1:
        raise ValueError(f"memory_bytes must be positive, got {memory_bytes}")
    tile = max(1, memory_bytes // TILES)
    if not _needs_gradient(call):
        return tile, 0
    # Beside the tile in work: the slope of soft-capping, and a copy in the dtype of the operands.
    converted = tiled.tile_dtype(call.hidden, call.softcap) != call.hidden.dtype
    scratch = 1 + (call.softcap > 0) + converted
    return tile, max(0, memory_bytes - scratch * tile)


def linear_token_statistics(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    extras: tuple[str, ...] = EXTRAS,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    mask: torch.Tensor | None = None,
    keep_mask: torch.Tensor | None = None,
    kept_ids: torch.Tensor | None = None,
    kept_offsets: torch.Tensor | None = None,
    process_group: torch.distributed.ProcessGroup | None = None,
    memory_bytes: int | None = None,
) -> TokenStatistics:
    """:func:`linear_token_logprobs_and_entropy` with more outputs, which carry no gradient.

    Args:
        hidden: ``[..., D]``.
        weight: ``[V, D]``.
        targets: int64 ``[...]`` or ``[..., k]``.
        extras: Which of the outputs beyond the first two are computed; the others are None. Each
            costs about one more pass over the logits. Default: all.
        bias: ``[V]``. Default: none.
        temperature: Divides the logits. Default: 1.
        logit_scale: Multiplies the products. Default: 1.
        softcap: Soft-capping. Default: none.
        mask: bool ``[...]``; False rows give 0 (False). Default: all rows count.
        keep_mask: bool, broadcastable to ``[..., V]``. Default: all tokens are kept.
        kept_ids: int64 ``[sum]``, the kept tokens row by row. Default: all tokens are kept.
        kept_offsets: int64 ``[rows + 1]``, where each row begins in `kept_ids`.
        process_group: Ranks that hold the other rows of the weight. Default: none.
        memory_bytes: Memory for logits. Default: 280 MiB on the CPU, 1 GiB elsewhere.

    Returns:
        ``logprobs`` and ``entropy``; ``log_sum_sq_probs``, log sum p^2, ``[...]``; ``mean_logits``,
        the mean over the kept tokens of the logits that softmax sees, ``[...]``; ``is_top1``, bool
        in the shape of `targets`: whether the target is the first of the largest logits.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`linear_token_logprobs_and_entropy`.

    Source:
        The outputs of ``_ChunkedLogProbFunction`` of TRL 1.16, by the same names.
    """
    for name in extras:
        check_choice("extras", name, EXTRAS)
    call = _Call(
        *_autocast(hidden, weight, bias), targets, mask, keep_mask, kept_ids, kept_offsets,
        float(temperature), float(logit_scale), 0.0 if softcap is None else float(softcap),
        1, None, 0, weight.shape[0] if weight.dim() else 0,
    )  # fmt: skip
    _check(call)
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be positive and finite, or None, got {softcap}")
    if process_group is not None and process_group.size() > 1:
        call = _shard(call, process_group)
    _check_kept(call)
    tile_bytes, kept_bytes = _memory(call, memory_bytes)
    wanted = [name in extras for name in EXTRAS]
    logprobs, entropy, *others, _, _ = _forward(
        *call._replace(tile_bytes=tile_bytes), *wanted, kept_bytes
    )
    return TokenStatistics(
        logprobs, entropy, *(x if want else None for x, want in zip(others, wanted, strict=True))
    )


def linear_token_logprobs_and_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    mask: torch.Tensor | None = None,
    keep_mask: torch.Tensor | None = None,
    kept_ids: torch.Tensor | None = None,
    kept_offsets: torch.Tensor | None = None,
    process_group: torch.distributed.ProcessGroup | None = None,
    memory_bytes: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropy of a language-model head, without its ``[..., V]`` logits.

    The logits are z = v / temperature with v = logit_scale * (hidden @ weight.T + bias), or
    softcap * tanh(v / softcap) of it. They exist in tiles only. Differentiable once in hidden,
    weight and bias; a gradient that is not needed is not computed, so a frozen head costs one
    product less. The gradient of the weight is added up in float32.

    Args:
        hidden: ``[..., D]``, float32, float64, bfloat16 or float16. Under `torch.autocast` inputs
            are cast as for `torch.nn.functional.linear`.
        weight: ``[V, D]``, of the same dtype.
        targets: int64 token ids, ``[...]`` (one per row) or ``[..., k]``, each in ``[0, V)``.
        bias: ``[V]``. Default: none.
        temperature: Divides the logits, after soft-capping. Default: 1.
        logit_scale: Multiplies the products, before soft-capping (Cohere's ``logit_scale``, one
            over Granite's ``logits_scaling``). Default: 1.
        softcap: Gemma's ``final_logit_softcapping``. Default: none.
        mask: bool ``[...]``; rows with False do not reach the matrix product, give 0 and get no
            gradient, whatever stands in them. On a GPU a mask costs one wait for the device.
            Default: all rows count.
        keep_mask: bool, broadcastable to ``[..., V]``: False gives a token probability 0 (top-k and
            top-p sampling replayed). Default: all tokens are kept.
        kept_ids: int64 ``[sum]``: the same as a list, the kept tokens of one row after the other,
            in any order. With a process group, ids of the whole vocabulary. Default: all tokens.
        kept_offsets: int64 ``[rows + 1]``: the tokens of row i begin at ``kept_offsets[i]`` and end
            before ``kept_offsets[i + 1]``.
        process_group: Ranks that hold the other rows of the weight, in rank order; everything else
            is the same on all of them, and every rank gets the whole result. Default: none.
        memory_bytes: Memory for logits: a tile in work, and the logits that forward keeps for
            backward. Where they do not all fit, backward computes the rest again. Default: 280 MiB
            on the CPU, 1 GiB elsewhere.

    Returns:
        Log-probabilities in the shape of `targets` and entropy (nats) in the shape of the rows,
        float32 (float64 for float64 inputs). A target of probability 0 has log-probability -inf and
        passes no gradient.

    Raises:
        TypeError: A dtype is not one of the above.
        ValueError: A shape, a device or a number does not fit, or the ranks disagree.
        RuntimeError: A target of an unmasked row lies outside ``[0, V)``, or `kept_ids` and
            `kept_offsets` do not describe rows (looked at on the CPU only).

    Source:
        Wijmans et al. (2024), "Cut your losses in large-vocabulary language models", for the head
        in tiles; the sums are those of :func:`token_logprobs_and_entropy`.
    """
    statistics = linear_token_statistics(
        hidden,
        weight,
        targets,
        extras=(),
        bias=bias,
        temperature=temperature,
        logit_scale=logit_scale,
        softcap=softcap,
        mask=mask,
        keep_mask=keep_mask,
        kept_ids=kept_ids,
        kept_offsets=kept_offsets,
        process_group=process_group,
        memory_bytes=memory_bytes,
    )
    return statistics.logprobs, statistics.entropy
