"""The value model of PPO: its own trunk with a linear head of one output.

It is transformers' token classifier with one label, as verl's critic is, so a checkpoint of it is a
model folder like that of the policy. Policy and critic share no weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oneshot import models, ops
from oneshot.ops.value_loss import ValueMetric
from oneshot.rlvr.algorithm.microbatch import MicroBatch, loss_weights, update_batches
from oneshot.rlvr.algorithm.optimizer import make_optimizer, take_step
from oneshot.rlvr.algorithm.passes import response_values
from oneshot.rlvr.algorithm.policy import distribute
from oneshot.rlvr.algorithm_config import AlgorithmConfig, CriticConfig
from oneshot.rlvr.config import ModelConfig
from oneshot.rlvr.rollout.engine import Rollout
from oneshot.training.distributed import Processes, resolve_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Critic:
    """Estimates the return behind each position and learns from rollouts.

    Attributes:
        model: Token classifier with one label.
        optimizer: Over its parameters.
        config: Value clip and optimizer.
        algorithm: Updates per rollout and micro-batching, the same as for the policy.
        share_prompts: Whether passes read a prompt once for all of its responses.
        updates: Optimizer steps so far.
        processes: Those that share each rollout; the model is then sharded over them.
    """

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    config: CriticConfig
    algorithm: AlgorithmConfig
    share_prompts: bool = False
    updates: int = 0
    processes: Processes = field(default_factory=Processes)

    @torch.no_grad()
    def values(self, rollout: Rollout) -> Tensor:
        """Values [N, R] of the state before each response token, 0 where masked; float32."""
        result = torch.zeros(rollout.response_ids.shape, device=rollout.response_ids.device)
        batches = [batch for part in self._plan(rollout) for batch in part]
        for batch in self.processes.padded(batches):
            values = response_values(self.model, batch)
            result[batch.rows, : values.shape[1]] = torch.where(batch.response_mask, values, 0)
        return result

    def update(
        self, rollout: Rollout, old_values: Tensor, returns: Tensor, step: int
    ) -> dict[str, float]:
        """Takes `updates_per_rollout` optimizer steps on the clipped value loss.

        Args:
            rollout: N responses.
            old_values: [N, R] of `self.values(rollout)`.
            returns: [N, R] float32, the targets.
            step: Rollout step, for the message of an error.

        Returns:
            Metrics (means over the optimizer steps).

        Raises:
            NonFiniteLossError: Before the optimizer step that would have spread it.
        """
        plan = self._plan(rollout)
        metrics: dict[str, float] = {}
        for batches in plan:
            for name, value in self._step(batches, old_values, returns, step).items():
                metrics[name] = metrics.get(name, 0.0) + value / len(plan)
        return {f"critic/{name}": value for name, value in metrics.items()}

    def _plan(self, rollout: Rollout) -> list[list[MicroBatch]]:
        return update_batches(
            rollout, self.algorithm, self.processes, share_prompts=self.share_prompts
        )

    def _step(
        self, batches: list[MicroBatch], old_values: Tensor, returns: Tensor, step: int
    ) -> dict[str, float]:
        exact = self.algorithm.microbatch_weighting == "exact"
        masks = [batch.response_mask for batch in batches]
        weights = loss_weights(masks, "token-mean" if exact else "sequences", self.processes)
        # Padding passes, needed to keep the ranks in step, have zero weight.
        idle = self.processes.padded(batches)[len(batches) :]
        batches, weights = batches + idle, weights + [0.0] * len(idle)
        total, clipped, squared = 0.0, 0.0, 0.0
        for batch, weight in zip(batches, weights, strict=True):
            width = batch.response_ids.shape[1]
            target = returns[batch.rows, :width]
            values = response_values(self.model, batch)
            result = ops.value_loss(
                values,
                None if self.config.value_clip is None else old_values[batch.rows, :width],
                target,
                batch.response_mask,
                clip=self.config.value_clip,
            )
            (result.loss * weight).backward()
            total += float(result.loss.detach()) * weight
            clipped += float(result.metrics[ValueMetric.CLIP_FRACTION]) * weight
            error = torch.where(batch.response_mask, values.detach() - target, 0)
            squared += float(error.double().square().sum() / batch.response_mask.sum()) * weight
        total, clipped, squared = self.processes.sums([total, clipped, squared])
        where = f"step {step}: value loss"
        taken = take_step(
            self.model, self.optimizer, self.config.optimizer, self.updates, total, where
        )
        self.updates += 1
        return {"loss": total, "clip_fraction": clipped, "squared_error": squared, **taken}


def make_critic(
    source: str,
    config: CriticConfig,
    algorithm: AlgorithmConfig,
    placing: ModelConfig,
    processes: Processes,
    shares_prompts: Callable[[PreTrainedModel], bool] = lambda model: False,
) -> Critic:
    """A critic on the trunk of `source`, with a new head at zero unless `source` is a critic.

    Args:
        source: Model source (`oneshot.models`), or the critic folder of a checkpoint.
        config: Its options.
        algorithm: Updates per rollout and micro-batching.
        placing: For types and device, those of the policy.
        processes: Those that share it.
        shares_prompts: Whether passes of the whole model may read a prompt once for all of its
            responses.
    """
    model = models.load_tagger(source, ["value"], dtype=placing.weights_dtype)
    written_as = model.config.architectures or []  # what the files of `source` hold
    if not any(name.endswith("ForTokenClassification") for name in written_as):
        heads = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        head = next(module for module in reversed(heads) if module.out_features == 1)
        for parameter in head.parameters():
            torch.nn.init.zeros_(parameter)
    module: torch.nn.Module = model
    module.to(resolve_device(placing.device)).eval()
    share = shares_prompts(model)
    distribute(model, placing, processes)
    optimizer = make_optimizer(model, config.optimizer)
    return Critic(model, optimizer, config, algorithm, share, processes=processes)
