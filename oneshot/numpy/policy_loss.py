"""NumPy faces of the `policy_loss` family."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oneshot._load import require_native
from oneshot.numpy import _arrays
from oneshot.ops.policy_options import resolve_normalizer, resolve_options
from oneshot.reference.policy_loss import PolicyMetric, ValueMetric, WeightMetric

Float32 = NDArray[np.float32]


class PolicyLoss(NamedTuple):
    """Loss, figures by name, and the gradients by `logprobs` and `entropy` (None without it)."""

    loss: float
    metrics: dict[str, float]
    grad_logprobs: Float32
    grad_entropy: Float32 | None


class ValueLoss(NamedTuple):
    """Loss, figures by name, and the gradient by `values`."""

    loss: float
    metrics: dict[str, float]
    grad_values: Float32


class ImportanceWeights(NamedTuple):
    """Weights and figures by name."""

    weights: Float32
    metrics: dict[str, float]


def _named(figures: list[float], names: type[IntEnum]) -> dict[str, float]:
    return dict(zip((name.name.lower() for name in names), figures, strict=True))


def _tokens(
    name: str, array: ArrayLike, cu_seqlens: ArrayLike | None
) -> tuple[Float32, NDArray[np.int64] | None]:
    """Dense float32 [B, T], or [N] with checked bounds."""
    dense = np.ascontiguousarray(array, np.float32)
    if dense.ndim != (2 if cu_seqlens is None else 1):
        expected = "[B, T]" if cu_seqlens is None else "[N] with cu_seqlens"
        raise ValueError(f"{name} must be {expected}, got {list(dense.shape)}")
    bounds = _arrays.integers("cu_seqlens", cu_seqlens, None)
    if bounds is not None:
        rises = len(bounds) > 0 and bounds[0] == 0 and bounds[-1] == len(dense)
        if not rises or (np.diff(bounds) < 0).any():
            raise ValueError(f"cu_seqlens must rise from 0 to {len(dense)}, got {bounds.tolist()}")
    return dense, bounds


def _like(
    name: str, array: ArrayLike | None, other_name: str, other: Float32, batch: int | None = None
) -> Float32 | None:
    """Dense float32 of the shape of `other`, or [batch] where one value a sequence will do."""
    if array is None:
        return None
    dense = np.ascontiguousarray(array, np.float32)
    if batch is None or dense.shape != (batch,):
        _arrays.same_shape(name, dense, other_name, other)
    return dense


def _batch(tokens: Float32, bounds: NDArray[np.int64] | None) -> int:
    return tokens.shape[0] if bounds is None else len(bounds) - 1


def _number(count: Any) -> float:
    return math.nan if count is None else float(count)


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
    """NumPy face of :func:`oneshot.ops.policy_loss` (float32): loss, figures and gradients.

    ``options`` are that function's keyword arguments from `objective` on.
    """
    tokens, bounds = _tokens("logprobs", logprobs, cu_seqlens)
    batch = _batch(tokens, bounds)
    width = tokens.shape[1] if bounds is None else None
    chosen, normalizer = resolve_options(
        width, ref_logprobs is not None, entropy is not None, **options
    )
    loss, metrics, by_logprobs, by_entropy = require_native().policy_loss(
        tokens,
        _like("old_logprobs", old_logprobs, "logprobs", tokens),
        _like("advantages", advantages, "logprobs", tokens, batch),
        _arrays.mask(mask, "logprobs", tokens),
        _like("ref_logprobs", ref_logprobs, "logprobs", tokens),
        _like("entropy", entropy, "logprobs", tokens),
        _like("importance_weights", importance_weights, "logprobs", tokens, batch),
        bounds,
        _number(normalizer.override),
        [float(x) for x in chosen[:-1]],
        chosen.max_length,
    )
    return PolicyLoss(loss, _named(metrics, PolicyMetric), by_logprobs, by_entropy)


def value_loss(
    values: ArrayLike,
    old_values: ArrayLike | None,
    returns: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    clip: float | None = 0.5,
    cu_seqlens: ArrayLike | None = None,
    aggregate: str = "token-mean",
    token_count: float | None = None,
    sequence_count: float | None = None,
    max_length: int | None = None,
    count_empty: bool = False,
) -> ValueLoss:
    """NumPy face of :func:`oneshot.ops.value_loss` (float32): loss, figures and gradient."""
    tokens, bounds = _tokens("values", values, cu_seqlens)
    width = tokens.shape[1] if bounds is None else None
    normalizer = resolve_normalizer(aggregate, token_count, sequence_count, max_length, width)
    if clip is not None and old_values is None:
        raise ValueError(f"clip = {clip} needs old_values, got None")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    loss, metrics, by_values = require_native().value_loss(
        tokens,
        None if clip is None else _like("old_values", old_values, "values", tokens),
        _like("returns", returns, "values", tokens),
        _arrays.mask(mask, "values", tokens),
        bounds,
        math.inf if clip is None else clip,
        int(normalizer.aggregate),
        count_empty,
        _number(normalizer.override),
        normalizer.max_length,
    )
    return ValueLoss(loss, _named(metrics, ValueMetric), by_values)


def importance_weights(
    logprobs: ArrayLike,
    sampler_logprobs: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    level: str = "token",
    mode: str = "truncate",
    low: float = 0.0,
    high: float = 2.0,
    log_ratio_clamp: float | None = 20.0,
    normalize: bool = False,
    ignore_nan: bool = False,
    cu_seqlens: ArrayLike | None = None,
) -> ImportanceWeights:
    """NumPy face of :func:`oneshot.ops.importance_weights` (float32)."""
    if level not in ("token", "sequence"):
        raise ValueError(f"level must be token or sequence, got {level!r}")
    if mode not in ("truncate", "mask"):
        raise ValueError(f"mode must be truncate or mask, got {mode!r}")
    if not 0 <= low <= high:
        raise ValueError(f"thresholds must satisfy 0 <= low <= high, got low={low}, high={high}")
    tokens, bounds = _tokens("logprobs", logprobs, cu_seqlens)
    weights, metrics = require_native().importance_weights(
        tokens,
        _like("sampler_logprobs", sampler_logprobs, "logprobs", tokens),
        _arrays.mask(mask, "logprobs", tokens),
        bounds,
        level == "sequence",
        mode == "truncate",
        low,
        high,
        math.inf if log_ratio_clamp is None else log_ratio_clamp,
        normalize,
        ignore_nan,
    )
    return ImportanceWeights(weights, _named(metrics, WeightMetric))
