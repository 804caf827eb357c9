"""The policy loss of one micro-batch on the fused ops: a dataclass in, a dataclass out.

    L = policy_coef * L_policy - entropy_coef * H + kl_coef * L_kl

L_policy is the surrogate of the objective that the config names, H the full-vocabulary entropy and
L_kl the clamped KL estimate, aggregated alike (by default: means over response tokens). All of them
are of the policy at the rollout temperature (logits are divided by it), as in the code released
with Wang et al. 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oneshot import ops
from oneshot.ops.policy_loss import PolicyMetric
from oneshot.rlvr.algorithm.microbatch import MicroBatch
from oneshot.rlvr.algorithm.passes import response_statistics
from oneshot.rlvr.algorithm_config import AlgorithmConfig
from oneshot.rlvr.rollout.engine import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LossInputs:
    """What the loss of one micro-batch needs.

    Attributes:
        logprobs: [b, R] of the response tokens under the current policy, at the temperature.
        entropy: [b, R] of its distributions, at the temperature.
        mask: [b, R] bool, tokens that count.
        advantages: [b], or [b, R] from a critic; float32.
        old_logprobs: [b, R] float32 of the policy that sampled; None: the current policy did.
        ref_logprobs: [b, R] float32 of the reference; None without a KL term.
        importance_weights: [b] or [b, R] float32, of the policy term; None: all 1.
        max_length: Divisor of the aggregate "seq-mean-token-sum-norm".
    """

    logprobs: Tensor
    entropy: Tensor
    mask: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    importance_weights: Tensor | None = None
    max_length: int | None = None


@dataclass(frozen=True)
class LossOutputs:
    """The loss (a scalar with gradient) and its metrics (scalars without).

    Metrics named loss/... are aggregated like the loss, the others are means over tokens.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


def policy_loss(inputs: LossInputs, algorithm: AlgorithmConfig) -> LossOutputs:
    """Loss and metrics of one micro-batch, aggregated over the micro-batch.

    Args:
        inputs: The current policy's numbers and what they are judged by.
        algorithm: `loss` holds the options of the op; `kl_in` says whether the KL belongs here.
    """
    with_reference = inputs.ref_logprobs is not None and algorithm.loss.kl != "none"
    result = ops.policy_loss(
        inputs.logprobs,
        inputs.old_logprobs,
        inputs.advantages,
        inputs.mask,
        ref_logprobs=inputs.ref_logprobs if with_reference else None,
        entropy=inputs.entropy,
        importance_weights=inputs.importance_weights,
        options=algorithm.loss,
        kl=algorithm.loss.kl if with_reference else "none",
        # A KL in the reward is only reported here.
        kl_coef=algorithm.loss.kl_coef if with_reference and algorithm.kl_in == "loss" else 0.0,
        max_length=inputs.max_length if algorithm.loss.divides_by_length() else None,
    )
    metrics = {
        "loss/total": result.loss.detach(),
        "loss/policy": result.metrics[PolicyMetric.POLICY_LOSS],
        "policy/entropy": result.metrics[PolicyMetric.ENTROPY],
        "policy/old_kl": result.metrics[PolicyMetric.OLD_POLICY_KL],
        "policy/clip_fraction": result.metrics[PolicyMetric.CLIP_FRACTION_LOW]
        + result.metrics[PolicyMetric.CLIP_FRACTION_HIGH],
    }
    if with_reference:
        metrics["policy/kl"] = result.metrics[PolicyMetric.KL]
    return LossOutputs(result.loss, metrics)


@torch.no_grad()
def response_logprobs(
    model: PreTrainedModel,
    rollout: Rollout,
    batches: list[MicroBatch],
    temperature: float,
) -> Tensor:
    """Log-probabilities [N, R] of the sampled tokens under `model`, 0 where masked.

    float32 (float64 for a float64 model), in the columns of the rollout whatever the micro-batches.
    """
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    shape, device = rollout.response_ids.shape, rollout.response_ids.device
    result = torch.zeros(shape, dtype=dtype, device=device)
    for batch in batches:
        logprobs, _ = response_statistics(model, batch, batch.response_mask, temperature)
        result[batch.rows, : logprobs.shape[1]] = torch.where(batch.response_mask, logprobs, 0)
    return result
