"""One rollout's worth of optimizer steps of the policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oneshot.rlvr.algorithm.correction import correction
from oneshot.rlvr.algorithm.loss import LossInputs, policy_loss, response_logprobs
from oneshot.rlvr.algorithm.microbatch import MicroBatch, loss_weights, update_batches
from oneshot.rlvr.algorithm.optimizer import take_step
from oneshot.rlvr.algorithm.passes import response_statistics
from oneshot.rlvr.algorithm_config import AlgorithmConfig, OptimizerConfig
from oneshot.rlvr.rollout.engine import Rollout
from oneshot.training.distributed import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RolloutLogprobs:
    """Log-probs [N, R] of the sampled tokens before the update, 0 where masked.

    Attributes:
        old: Of the policy; None when nothing needs them (the policy is still the one that sampled).
        ref: Of the reference; None without one.
    """

    old: Tensor | None = None
    ref: Tensor | None = None


@dataclass
class PolicyUpdater:
    """Takes optimizer steps on rollouts.

    Attributes:
        policy: The model that learns. Dropout stays off: a rollout's log-probs must be those of
            the update.
        reference: The model of the KL; None without one.
        optimizer: Over the policy's parameters.
        algorithm: Loss, coefficients and micro-batching.
        schedule: Learning rate, warm-up, clipping.
        temperature: Of the rollouts.
        max_length: `rollout.max_new_tokens`, for the aggregate that divides by it.
        share_prompts: Whether passes read a prompt once for all of its responses; policy and
            reference must both be able to (`prompt_sharing`).
        updates: Optimizer steps so far.
        processes: Those that share each rollout; the models are then sharded over them.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel | None
    optimizer: torch.optim.Optimizer
    algorithm: AlgorithmConfig
    schedule: OptimizerConfig
    temperature: float
    max_length: int | None = None
    share_prompts: bool = False
    updates: int = 0
    processes: Processes = field(default_factory=Processes)

    def logprobs(self, rollout: Rollout) -> RolloutLogprobs:
        """What the credit and the update need to know of policy and reference at rollout time."""
        algorithm = self.algorithm
        need_old = (
            algorithm.updates_per_rollout > 1
            or algorithm.correction.level != "none"
            or (algorithm.kl_in == "reward" and self.reference is not None)
        )
        old = ref = None
        if self.reference is None and not need_old:
            return RolloutLogprobs()
        batches = self.processes.padded([batch for part in self._plan(rollout) for batch in part])
        if self.reference is not None:
            ref = response_logprobs(self.reference, rollout, batches, self.temperature)
        if need_old:
            old = response_logprobs(self.policy, rollout, batches, self.temperature)
        return RolloutLogprobs(old, ref)

    def update(
        self,
        rollout: Rollout,
        advantages: Tensor,
        step: int,
        logprobs: RolloutLogprobs | None = None,
    ) -> dict[str, float]:
        """Takes `updates_per_rollout` optimizer steps, each on its own rows of the rollout.

        Args:
            rollout: N sampled responses.
            advantages: [N], or [N, R] from a critic; float32.
            step: Rollout step, for the message of an error.
            logprobs: Of `self.logprobs(rollout)`, if they are already known.

        Returns:
            Metrics of the update (means over its optimizer steps).

        Raises:
            NonFiniteLossError: Before the optimizer step that would have spread it.
            ValueError: The correction is on and the engine reported no log-probs.
        """
        if logprobs is None:
            logprobs = self.logprobs(rollout)
        weights: Tensor | None = None
        metrics: dict[str, float] = {}
        options = self.algorithm.correction
        if options.level != "none":
            assert logprobs.old is not None
            weights, metrics = correction(rollout, logprobs.old, options, self.processes)
        plan = self._plan(rollout)
        for batches in plan:
            part = self._step(rollout, batches, advantages, logprobs, weights, step)
            for name, value in part.items():
                metrics[name] = metrics.get(name, 0.0) + value / len(plan)
        return metrics

    def _plan(self, rollout: Rollout) -> list[list[MicroBatch]]:
        return update_batches(
            rollout, self.algorithm, self.processes, share_prompts=self.share_prompts
        )

    def _step(
        self,
        rollout: Rollout,
        batches: list[MicroBatch],
        advantages: Tensor,
        before: RolloutLogprobs,
        importance: Tensor | None,
        step: int,
    ) -> dict[str, float]:
        masks = [self._mask(rollout, batch) for batch in batches]
        exact = self.algorithm.microbatch_weighting == "exact"
        by_token = loss_weights(masks, "token-mean" if exact else "sequences", self.processes)
        weights = by_token
        if exact:
            loss = self.algorithm.loss.resolved()
            assert loss.aggregate is not None
            by_rows = loss.count_empty and loss.aggregate.startswith("seq-mean")
            aggregate = "sequences" if by_rows else loss.aggregate
            weights = loss_weights(masks, aggregate, self.processes)
        # Padding passes, needed to keep the ranks in step, have zero weight.
        idle = self.processes.padded(batches)[len(batches) :]
        batches = batches + idle
        masks += masks[-1:] * len(idle)
        weights, by_token = (x + [0.0] * len(idle) for x in (weights, by_token))
        totals: dict[str, Tensor] = {}
        for batch, mask, weight, share in zip(batches, masks, weights, by_token, strict=True):
            logprobs, entropy = response_statistics(self.policy, batch, mask, self.temperature)
            inputs = LossInputs(
                logprobs=logprobs,
                entropy=entropy,
                mask=mask,
                advantages=batch_part(advantages, batch),
                old_logprobs=None if before.old is None else batch_part(before.old, batch),
                ref_logprobs=None if before.ref is None else batch_part(before.ref, batch),
                importance_weights=None if importance is None else batch_part(importance, batch),
                max_length=self.max_length,
            )
            outputs = policy_loss(inputs, self.algorithm)
            (outputs.loss * weight).backward()
            for name, value in outputs.metrics.items():
                part = value * (weight if name.startswith("loss/") else share)
                totals[name] = totals.get(name, 0) + part
        values = torch.stack([value.double() for value in totals.values()]).tolist()
        metrics = dict(zip(totals, self.processes.sums(values), strict=True))
        taken = take_step(
            self.policy,
            self.optimizer,
            self.schedule,
            self.updates,
            metrics["loss/total"],
            f"step {step}: loss",
        )
        self.updates += 1
        return {**metrics, **{f"optimizer/{name}": value for name, value in taken.items()}}

    def _mask(self, rollout: Rollout, batch: MicroBatch) -> Tensor:
        """The tokens that count in the loss."""
        if self.algorithm.mask_truncated:
            return batch.response_mask & rollout.finished[batch.rows][:, None]
        return batch.response_mask


def batch_part(x: Tensor, batch: MicroBatch) -> Tensor:
    """The rows of a micro-batch, and its columns, of a tensor [N] or [N, R] of the rollout."""
    return x[batch.rows] if x.dim() == 1 else x[batch.rows, : batch.response_ids.shape[1]]
