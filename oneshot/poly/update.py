"""One optimizer step on a batch of several tasks, on one process or many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from oneshot.poly.backbone import LabelEncoding
from oneshot.poly.config import OptimizerConfig
from oneshot.poly.data import Example
from oneshot.poly.model import PolyModel
from oneshot.training.distributed import Processes
from oneshot.training.errors import NonFiniteLossError
from oneshot.training.seeding import derive_seed


def make_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over what is to be trained: two groups with adapters, one without."""
    if isinstance(model, PolyModel):
        groups = model.param_groups(
            lr=config.lr,
            router_lr=config.router_lr,
            weight_decay=config.weight_decay,
            router_weight_decay=config.router_weight_decay,
        )
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"name": "model", "params": trained, "lr": config.lr, "weight_decay": 0.0},
        ]
        groups[0]["weight_decay"] = config.weight_decay
    for group in groups:
        group["peak_lr"] = group["lr"]
    return torch.optim.AdamW(groups)


def rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Factor of the learning rates at a step (1, 2, ...) of a run."""
    warmup = round(config.warmup_ratio * steps)
    if step <= warmup:
        return step / (warmup + 1)
    if config.decay == "none":
        return 1.0
    return (steps - step + 1) / (steps - warmup)


@dataclass
class Learner:
    """A model and its optimizer.

    Attributes:
        model: The model, with or without adapters.
        encoding: Its tokens.
        optimizer: From `make_optimizer`.
        config: Schedule, batch and clipping.
        steps: Length of the run.
        seed: Seed of dropout and of the noise of the routing.
        processes: Those that share each batch.
    """

    model: torch.nn.Module
    encoding: LabelEncoding
    optimizer: torch.optim.Optimizer
    config: OptimizerConfig
    steps: int
    seed: int
    processes: Processes = field(default_factory=Processes)

    def step(self, batch: Sequence[tuple[int, Example]], step: int) -> dict[str, float]:
        """One step on the examples of all processes; each works on its share.

        The loss is the mean over the answer tokens of the whole batch, so it does not depend on
        the number of processes or micro-batches.

        Args:
            batch: Task numbers and examples, the same in every process.
            step: Number of the step, from 1.

        Returns:
            Figures, the same in every process.

        Raises:
            NonFiniteLossError: The weights are then as before the step.
        """
        torch.manual_seed(derive_seed(self.seed, "torch", step, self.processes.rank))
        factor = rate(step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
        tokens = sum(len(self.encoding.answer(e.references[0])) for _, e in batch)
        share = self.processes.share(batch)
        size = self.config.microbatch_size or len(share)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for begin in range(0, len(share), size):
            part = share[begin : begin + size]
            loss = self._loss(part) / tokens
            total += float(loss.detach())
            loss.backward()
        total = self.processes.sums([total])[0]
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.processes.sum_gradients(trained)
        norm = float(torch.nn.utils.clip_grad_norm_(trained, self.config.max_grad_norm))
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise NonFiniteLossError(
                f"step {step}: loss {total}, gradient norm {norm}; the weights are those "
                f"of step {step - 1}"
            )
        self.optimizer.step()
        return {
            "loss/train": total,
            "optimizer/grad_norm": norm,
            "optimizer/lr": self.optimizer.param_groups[0]["lr"],
            "batch/answer_tokens": tokens,
            "batch/tasks": len({task for task, _ in batch}),
        }

    def _loss(self, part: Sequence[tuple[int, Example]]) -> torch.Tensor:
        pairs = [(e.prompt, e.references[0]) for _, e in part]
        options: dict[str, Any] = {}
        if isinstance(self.model, PolyModel):
            options["task_ids"] = torch.tensor([task for task, _ in part])
        log_probs, _ = self.encoding.log_probabilities(self.model, pairs, **options)
        return -log_probs.sum()
