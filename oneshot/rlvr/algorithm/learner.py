"""What learns from a rollout: the policy, and with PPO the critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from oneshot.rlvr import checkpoint
from oneshot.rlvr.algorithm.advantage import Credit, CreditInputs, credit, overlong_penalty
from oneshot.rlvr.algorithm.critic import Critic
from oneshot.rlvr.algorithm.update import PolicyUpdater, RolloutLogprobs
from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.rollout.engine import Rollout
from oneshot.training.state import TrainerState, load_optimizer

POLICY, CRITIC = "policy", "critic"


@dataclass(frozen=True)
class Estimate:
    """What the update of one step needs besides the rollout.

    Attributes:
        credit: Advantages, and the critic's targets.
        logprobs: Of policy and reference before the update.
        values: Of the critic before the update; None without one.
        metrics: Means over the processes.
    """

    credit: Credit
    logprobs: RolloutLogprobs
    values: Tensor | None
    metrics: dict[str, float]


@dataclass
class Learner:
    """Estimates advantages and takes optimizer steps; all processes must call every method.

    Attributes:
        config: Of the run.
        updater: Of the policy.
        critic: PPO's; None for other algorithms.
    """

    config: TrainConfig
    updater: PolicyUpdater
    critic: Critic | None = None

    def advantage(self, rollout: Rollout, scores: Sequence[float]) -> Estimate:
        """From the scores of responses to advantages.

        Args:
            rollout: N responses.
            scores: Their N scores.
        """
        logprobs = self.updater.logprobs(rollout)
        values = None if self.critic is None else self.critic.values(rollout)
        lengths = rollout.response_mask.sum(1)
        algorithm = self.config.algorithm
        overlong = overlong_penalty(lengths, self.config.rollout.max_new_tokens, algorithm)
        result = credit(
            CreditInputs(
                scores=torch.tensor(scores, device=lengths.device) - overlong,
                mask=rollout.response_mask,
                group_size=self.config.rollout.samples_per_prompt,
                old_logprobs=logprobs.old,
                ref_logprobs=logprobs.ref,
                values=values,
            ),
            algorithm,
            self.config.critic,
            self.updater.processes,
        )
        metrics = dict(result.metrics)
        if algorithm.overlong_buffer > 0:
            metrics["reward/overlong_penalty"] = float(overlong.mean())
        return Estimate(result, logprobs, values, self.updater.processes.means(metrics))

    def update(self, rollout: Rollout, estimate: Estimate, step: int) -> dict[str, float]:
        """Takes the optimizer steps of one rollout: the critic's, then the policy's.

        Args:
            rollout: N responses.
            estimate: Of `self.advantage(rollout, ...)`.
            step: Rollout step.

        Returns:
            Metrics of the update.

        Raises:
            NonFiniteLossError: A loss or its gradient is NaN or infinite.
        """
        metrics: dict[str, float] = {}
        returns = estimate.credit.returns
        if self.critic is not None and estimate.values is not None and returns is not None:
            metrics.update(self.critic.update(rollout, estimate.values, returns, step))
        if self.critic is None or step > self.config.critic.warmup_steps:
            advantages = estimate.credit.advantages
            metrics.update(self.updater.update(rollout, advantages, step, estimate.logprobs))
        return metrics

    def snapshots(self) -> dict[str, checkpoint.Snapshot]:
        """Policy and critic as they are, whole in the first process."""
        updater, critic = self.updater, self.critic
        result = {POLICY: checkpoint.snapshot(updater.policy, updater.optimizer, updater.processes)}
        if critic is not None:
            result[CRITIC] = checkpoint.snapshot(critic.model, critic.optimizer, critic.processes)
        return result

    @property
    def updates(self) -> dict[str, int]:
        """Optimizer steps so far."""
        critic = {} if self.critic is None else {CRITIC: self.critic.updates}
        return {POLICY: self.updater.updates, **critic}

    def resume(self, start: Path, data_digest: str) -> int:
        """Restores moments and counters from a checkpoint; returns its step.

        Raises:
            CheckpointError: A file is missing or damaged.
            ValueError: The data is different, or the run is already longer.
        """
        state = TrainerState.resume(start, data_digest, self.config.run.steps)
        policy = self.updater.policy
        load_optimizer(start, policy.named_parameters(), self.updater.optimizer)
        self.updater.updates = state.updates[POLICY]
        if self.critic is not None:
            named = self.critic.model.named_parameters()
            load_optimizer(start / checkpoint.CRITIC, named, self.critic.optimizer)
            self.critic.updates = state.updates[CRITIC]
        return state.step
