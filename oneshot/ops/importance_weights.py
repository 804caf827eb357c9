"""Importance weights that correct for a sampler that is not quite the policy."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from oneshot.ops import _library
from oneshot.ops._numbers import number
from oneshot.ops.policy_inputs import batch_size, bound, layout, named, per_token
from oneshot.reference import importance_weights as reference
from oneshot.reference.importance_weights import WeightMetric
from oneshot.reference.policy_tokens import arithmetic_dtype


class ImportanceWeights(NamedTuple):
    """Weights for `policy_loss`, and one tensor of metrics indexed by `WeightMetric`."""

    weights: Tensor
    metrics: Tensor

    def metrics_dict(self) -> dict[str, float]:
        """The metrics by name. Reads the tensor, so on an accelerator it waits for the device."""
        return named(self.metrics, WeightMetric)


def _fake_importance_weights(
    logprobs: Tensor, sampler: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    per_sequence = rest[0]
    dtype = arithmetic_dtype(logprobs)
    shape = (batch_size(logprobs, cu_seqlens),) if per_sequence else logprobs.shape
    return (
        logprobs.new_empty(shape, dtype=dtype),
        logprobs.new_empty((len(WeightMetric),), dtype=dtype),
    )


_importance_weights = _library.define(
    "importance_weights(Tensor logprobs, Tensor sampler_logprobs, Tensor? mask, "
    "Tensor? cu_seqlens, bool per_sequence, bool truncate, float low, float high, "
    "float log_ratio_clamp, bool normalize, bool ignore_nan) -> (Tensor, Tensor)",
    reference.importance_weights,
    _fake_importance_weights,
)


def importance_weights(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor | None = None,
    *,
    level: str = "token",
    mode: str = "truncate",
    low: float = 0.0,
    high: float = 2.0,
    log_ratio_clamp: float | None = 20.0,
    normalize: bool = False,
    ignore_nan: bool = False,
    cu_seqlens: Tensor | None = None,
) -> ImportanceWeights:
    """Weights p_trainer / p_sampler that correct for a sampler that is not quite the policy.

    Carries no gradient: the weights change the measure, not the objective.

    Args:
        logprobs: [B, T] padded, or [N] packed: log-likelihood of each sampled token under the
            training engine's policy at rollout time, nats.
        sampler_logprobs: The same as the sampling engine reported it.
        mask: Shape of `logprobs`, bool, or numbers that are all 0 or 1; True where a token counts.
            Default: all count.
        level: "token": one weight a token; "sequence": the product over the sequence.
        mode: "truncate" holds the weight within [low, high] (TIS); "mask" replaces a weight outside
            by 0 (IcePop, MIS).
        low: Lower threshold.
        high: Upper threshold; math.inf: none.
        log_ratio_clamp: Symmetric bound of the (summed) log-ratio before exp; None: none.
        normalize: Divide by the mean weight of the batch (over tokens, or over sequences that are
            not empty).
        ignore_nan: A token whose log-ratio is NaN (the sampler reported none) counts as ratio 1
            instead of making its weight NaN.
        cu_seqlens: [B + 1] int32 or int64 for the packed layout.

    Returns:
        ImportanceWeights(weights, metrics): weights in the shape of `logprobs`, 0 where masked
        (level="token"), or [B] (level="sequence"); [8] metrics (index: `WeightMetric`); float32, or
        float64 for float64 `logprobs`. Both shapes are accepted by :func:`policy_loss`.

    Raises:
        TypeError: A dtype other than those named here.
        ValueError: A shape, device, name or number that does not fit.

    Source:
        Truncation: Ionides 2008; Yao et al. 2025 (TIS). Masking: IcePop 2025. Conventions of verl
        ``compute_rollout_correction_weights``; TRL's four ``vllm_importance_sampling_mode``.
    """
    mask, cu_seqlens = layout("logprobs", logprobs, mask, cu_seqlens)
    sampler = per_token("sampler_logprobs", sampler_logprobs, "logprobs", logprobs)
    if level not in ("token", "sequence"):
        raise ValueError(f"level must be token or sequence, got {level!r}")
    if mode not in ("truncate", "mask"):
        raise ValueError(f"mode must be truncate or mask, got {mode!r}")
    if not 0 <= low <= high:
        raise ValueError(f"thresholds must satisfy 0 <= low <= high, got low={low}, high={high}")
    weights, metrics = _importance_weights(
        _library.as_data(logprobs),
        sampler,
        mask,
        cu_seqlens,
        level == "sequence",
        mode == "truncate",
        number("low", low),
        number("high", high),
        bound("log_ratio_clamp", log_ratio_clamp),
        normalize,
        ignore_nan,
    )
    return ImportanceWeights(weights, metrics)
