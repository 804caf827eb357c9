"""Importance weights of the trainer against a rollout engine whose log-probs differ."""

from __future__ import annotations

import torch
from torch import Tensor

from oneshot import ops
from oneshot.ops.importance_weights import WeightMetric
from oneshot.rlvr.algorithm_config import CorrectionConfig
from oneshot.rlvr.rollout.engine import Rollout
from oneshot.training.distributed import Processes


def correction(
    rollout: Rollout, old_logprobs: Tensor, options: CorrectionConfig, processes: Processes
) -> tuple[Tensor, dict[str, float]]:
    """Weights p_trainer / p_engine, and their metrics over the responses of all processes.

    Args:
        rollout: N responses with the log-probs of the engine.
        old_logprobs: [N, R] of the trainer at rollout time.
        options: Level, bounds, normalization (by the mean over all processes).
        processes: Those that share the rollout.

    Returns:
        [N, R], 0 where masked, or [N] (level "sequence"); and the metrics.

    Raises:
        ValueError: The engine reported no log-probs.
    """
    if rollout.logprobs is None:
        raise ValueError(
            f"algorithm.correction.level is {options.level!r}, but the rollout engine reported "
            "no log-probs"
        )
    mask = rollout.response_mask
    old, tokens = processes.concatenated(old_logprobs[mask])
    sampler, _ = processes.concatenated(rollout.logprobs[mask])
    lengths, rows = processes.concatenated(mask.sum(1))
    weights, metrics = ops.importance_weights(
        old,
        sampler,
        cu_seqlens=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        level=options.level,
        mode=options.mode,
        low=options.low,
        high=options.high,
        normalize=options.normalize,
    )
    if options.level == "sequence":
        weights = weights[rows]
    else:
        weights = torch.zeros_like(old_logprobs).masked_scatter(mask, weights[tokens])
    values = metrics.tolist()
    return weights, {
        "correction/weight_mean": values[WeightMetric.MEAN],
        "correction/effective_sample_size": values[WeightMetric.EFFECTIVE_SAMPLE_SIZE],
        "correction/outside": values[WeightMetric.FRACTION_LOW]
        + values[WeightMetric.FRACTION_HIGH],
        "correction/kl": values[WeightMetric.KL],
    }
