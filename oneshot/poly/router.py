"""From task ids to the weights of every skill, for all layers at once."""

from __future__ import annotations

import torch
from torch import nn

from oneshot.poly import _ops as ops
from oneshot.poly.config import PolyConfig

LOGIT_BOUND = 1e-3
"""New logits are uniform in this range around 0: every skill starts with nearly the same weight."""


class Router(nn.Module):
    """Routing of all groups of layers: one parameter, one call a forward pass.

    Learned routing holds `logits` [tasks, groups, heads, skills]; w = sigmoid(z) / (sum over skills
    + 1e-12). "private" and "uniform" have no parameter.

    Args:
        config: Sizes, kind of routing, noise.
        groups: Number of groups of layers that are routed separately.
    """

    def __init__(self, config: PolyConfig, groups: int) -> None:
        super().__init__()
        self.config = config
        self.groups = groups
        self.logits: nn.Parameter | None = None
        if config.routing == "learned":
            self.logits = nn.Parameter(self.fresh_logits(config.tasks))

    def fresh_logits(self, tasks: int) -> torch.Tensor:
        """Logits of new tasks, U(-1e-3, 1e-3)."""
        shape = (tasks, self.groups, self.config.heads, self.config.skills)
        return torch.empty(shape).uniform_(-LOGIT_BOUND, LOGIT_BOUND)

    def forward(self, task_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of the mixtures that these examples need.

        Args:
            task_ids: int64 [B], each in [0, tasks).

        Returns:
            weights: [U, groups, heads, skills], one for each distinct task (each example, with
                noise "per_example" in training), each summing to 1 over the skills.
            rows: int64 [B], the mixture of each example.
        """
        config = self.config
        if self.logits is not None:
            weights, rows = ops.routing_weights(
                self.logits.flatten(1, 2),
                task_ids,
                noise=config.noise if self.training else "none",
                temperature=config.temperature,
            )
            return weights.unflatten(1, (self.groups, config.heads)), rows
        distinct, rows = torch.unique(task_ids, return_inverse=True)
        if config.routing == "private":
            one_hot = nn.functional.one_hot(distinct, config.skills).float()
            weights = one_hot[:, None, None].expand(-1, self.groups, config.heads, -1)
            return weights, rows
        return self.average(len(distinct), task_ids.device), rows

    def average(self, mixtures: int, device: torch.device) -> torch.Tensor:
        """Weights 1 / skills everywhere: [mixtures, groups, heads, skills]."""
        shape = (mixtures, self.groups, self.config.heads, self.config.skills)
        return torch.full(shape, 1 / self.config.skills, device=device)

    @torch.no_grad()
    def weights(self) -> torch.Tensor:
        """Routing of every task without noise: [tasks, groups, heads, skills]."""
        device = None if self.logits is None else self.logits.device
        training = self.training
        try:
            return self.eval()(torch.arange(self.config.tasks, device=device))[0]
        finally:
            self.train(training)
