"""One rollout's worth of optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from oneshot.rlvr.config import AlgorithmConfig, OptimizerConfig
from oneshot.rlvr.loss import LossInputs, grpo_loss, response_logprobs
from oneshot.rlvr.microbatch import MicroBatch, response_logits, split
from oneshot.rlvr.rollout import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient is NaN or infinite; the weights were not touched by it."""


@dataclass
class PolicyUpdater:
    """Takes optimizer steps on rollouts.

    Attributes:
        policy: The model that learns. Dropout stays off: a rollout's log-probs must be those of
            the update.
        reference: The model of the KL term; None without one.
        optimizer: Over the policy's parameters.
        algorithm: Coefficients and micro-batching.
        schedule: Learning rate, warm-up, clipping.
        temperature: Of the rollouts.
        updates: Optimizer steps so far.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel | None
    optimizer: torch.optim.Optimizer
    algorithm: AlgorithmConfig
    schedule: OptimizerConfig
    temperature: float
    updates: int = 0

    def update(self, rollout: Rollout, advantages: Tensor, step: int) -> dict[str, float]:
        """Takes `updates_per_rollout` optimizer steps, each on its own rows of the rollout.

        Args:
            rollout: N sampled responses.
            advantages: [N] float32.
            step: Rollout step, for the message of an error.

        Returns:
            Figures of the update (means over its optimizer steps).

        Raises:
            NonFiniteLossError: Before the optimizer step that would have spread it.
        """
        rows = list(range(len(rollout)))
        limit, steps = self.algorithm.microbatch_tokens, self.algorithm.updates_per_rollout
        old = ref = None
        if self.reference is not None or steps > 1:
            batches = split(rollout, rows, limit)
            if self.reference is not None:
                ref = response_logprobs(self.reference, rollout, batches, self.temperature)
            if steps > 1:  # with a single step the policy is still the one that sampled
                old = response_logprobs(self.policy, rollout, batches, self.temperature)
        size = len(rows) // steps
        figures: dict[str, float] = {}
        for begin in range(0, len(rows), size):
            batches = split(rollout, rows[begin : begin + size], limit)
            for name, value in self._step(batches, advantages, old, ref, step).items():
                figures[name] = figures.get(name, 0.0) + value / steps
        return figures

    def _step(
        self,
        batches: Sequence[MicroBatch],
        advantages: Tensor,
        old: Tensor | None,
        ref: Tensor | None,
        step: int,
    ) -> dict[str, float]:
        totals: dict[str, Tensor] = {}
        weights = microbatch_weights(batches, self.algorithm.microbatch_weighting)
        for batch, weight in zip(batches, weights, strict=True):
            width = batch.response_ids.shape[1]
            inputs = LossInputs(
                logits=response_logits(self.policy, batch),
                response_ids=batch.response_ids,
                mask=batch.response_mask,
                advantages=advantages[batch.rows],
                old_logprobs=None if old is None else old[batch.rows, :width],
                ref_logprobs=None if ref is None else ref[batch.rows, :width],
            )
            outputs = grpo_loss(inputs, self.algorithm, self.temperature)
            (outputs.loss * weight).backward()
            for name, value in outputs.metrics.items():
                totals[name] = totals.get(name, 0) + value * weight
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.schedule.max_grad_norm)
        totals["optimizer/grad_norm"] = norm
        values = torch.stack([value.double() for value in totals.values()]).tolist()
        figures = dict(zip(totals, values, strict=True))
        if not torch.isfinite(torch.tensor([figures["loss/total"], values[-1]])).all():
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLossError(
                f"step {step}: loss {figures['loss/total']}, gradient norm {values[-1]} (optimizer "
                f"step {self.updates + 1}); the weights were not updated by it and the checkpoints "
                "of earlier steps are intact"
            )
        figures["optimizer/lr"] = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = figures["optimizer/lr"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        return figures

    def _learning_rate(self) -> float:
        warmup = self.schedule.warmup_steps
        return self.schedule.lr * (min(1.0, (self.updates + 1) / warmup) if warmup else 1.0)


def microbatch_weights(
    batches: Sequence[MicroBatch], weighting: Literal["tokens", "sequences"]
) -> list[float]:
    """Share of each micro-batch in the loss of the whole update.

    "tokens": by its response tokens, so that the sum of the micro-batches' token means is the token
    mean of all of them. "sequences": by its number of sequences.
    """
    if weighting == "tokens":
        sizes = torch.stack([batch.response_mask.sum() for batch in batches]).tolist()
    else:
        sizes = [len(batch.rows) for batch in batches]
    return [size / sum(sizes) for size in sizes]
