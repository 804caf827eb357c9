"""Log-probabilities and entropy from hidden states: the language-model head without its logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from oneshot.ops._checks import (
    as_bool,
    as_int64,
    as_mask,
    check_choice,
    check_float,
    check_same_device,
)
from oneshot.ops._numbers import is_finite, number
from oneshot.ops.linear_logprob_op import Call, forward
from oneshot.ops.linear_logprob_tiles import tile_dtype

EXTRAS = ("log_sum_sq_probs", "mean_logits", "is_top1")
# Bytes that logits may take: of the tile in work and of those that forward keeps for backward.
CPU_MEMORY = 280 << 20
DEVICE_MEMORY = 1 << 30
TILES = 8  # that share this memory; products of fewer columns are slower


class TokenStatistics(NamedTuple):
    """What `linear_token_statistics` returns; an extra that was not asked for is None."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    log_sum_sq_probs: torch.Tensor | None
    mean_logits: torch.Tensor | None
    is_top1: torch.Tensor | None


def _check(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> None:
    check_float("hidden", hidden)
    check_float("weight", weight)
    if hidden.dim() < 1 or weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            "hidden must have shape [..., width] and weight [vocabulary, width], got "
            f"{list(hidden.shape)} and {list(weight.shape)}"
        )
    if weight.shape[0] < 1:
        raise ValueError(f"weight must hold at least one token, got {list(weight.shape)}")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        check_float(name, value)
        if value.dtype != hidden.dtype:
            raise TypeError(
                f"{name} must have the dtype of hidden {hidden.dtype}, got {value.dtype}: cast one "
                "of them, or call under torch.autocast"
            )
        check_same_device(name, value, "hidden", hidden)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have shape {list(weight.shape[:1])}, one number per row of weight, got "
            f"{list(bias.shape)}"
        )
    rows = hidden.shape[:-1]
    if targets.shape != rows and targets.shape[:-1] != rows:
        raise ValueError(
            f"targets must have the shape of the rows {list(rows)} or one more dimension, got "
            f"{list(targets.shape)}"
        )
    check_same_device("targets", targets, "hidden", hidden)


def _positive(name: str, value: float) -> float:
    if not (is_finite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    checked: float = number(name, value)
    return checked


def _check_kept(call: Call) -> None:
    rows, vocab = call.hidden.shape[:-1], call.vocab_size
    mask, ids, offsets = call.keep_mask, call.kept_ids, call.kept_offsets
    if mask is not None:
        if ids is not None or offsets is not None:
            raise ValueError("pass keep_mask or kept_ids with kept_offsets, not both")
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
        if value.dim() != 1 or list(value.shape) != shape:
            wanted = "one dimension" if name == "kept_ids" else f"shape {shape}, rows + 1"
            raise ValueError(f"{name} must have {wanted}, got {list(value.shape)}")
        check_same_device(name, value, "hidden", call.hidden)


def _shard(call: Call, group: torch.distributed.ProcessGroup) -> Call:
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


def _needs_gradient(call: Call) -> bool:
    inputs = (call.hidden, call.weight, call.bias)
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def _memory(call: Call, memory_bytes: int | None, capped: bool) -> tuple[int, int]:
    """Bytes of a tile, and of the logits that forward keeps for backward."""
    if memory_bytes is None:
        memory_bytes = CPU_MEMORY if call.hidden.device.type == "cpu" else DEVICE_MEMORY
    if memory_bytes < 1:
        raise ValueError(f"memory_bytes must be positive, got {memory_bytes}")
    tile = max(1, memory_bytes // TILES)
    if not _needs_gradient(call):
        return tile, 0
    # Beside the tile in work: the slope of soft-capping, and a copy in the dtype of the operands.
    scratch = 1 + capped + (call.tile_dtype != call.hidden.dtype)
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
        targets: int64 or int32, ``[...]`` or ``[..., k]``.
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
    ids = as_int64("targets", targets)
    hidden, weight, bias = _autocast(hidden, weight, bias)
    _check(hidden, weight, bias, ids)
    capped = softcap is not None
    call = Call(
        hidden=hidden,
        weight=weight,
        bias=bias,
        targets=ids,
        mask=None
        if mask is None
        else as_mask("mask", mask, hidden.shape[:-1], "the rows of hidden", hidden),
        keep_mask=None if keep_mask is None else as_bool("keep_mask", keep_mask),
        kept_ids=None if kept_ids is None else as_int64("kept_ids", kept_ids),
        kept_offsets=None if kept_offsets is None else as_int64("kept_offsets", kept_offsets),
        temperature=_positive("temperature", temperature),
        logit_scale=_positive("logit_scale", logit_scale),
        softcap=0.0 if softcap is None else _positive("softcap", softcap),
        tile_dtype=tile_dtype(hidden, capped),
        tile_bytes=1,
        group=None,
        vocab_start=0,
        vocab_size=weight.shape[0],
    )
    if process_group is not None and process_group.size() > 1:
        call = _shard(call, process_group)
    _check_kept(call)
    tile_bytes, kept_bytes = _memory(call, memory_bytes, capped)
    wanted = [name in extras for name in EXTRAS]
    logprobs, entropy, *others, _, _ = forward(
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
        targets: int64 or int32 token ids in ``[0, V)``, ``[...]`` (one per row) or ``[..., k]``.
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
