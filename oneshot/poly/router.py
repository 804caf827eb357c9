"""From task ids to the weights of every skill, for all layers at once."""

from __future__ import annotations

import torch
from torch import nn

from oneshot import ops
from oneshot.poly.config import PolyConfig

LOGIT_BOUND = 1e-3
"""New logits are uniform in this range around 0: every skill starts with nearly the same weight."""


class Router(nn.Module):
    """Routing of all groups of layers: one parameter, one call a forward pass.

    Learned routing holds `logits` [groups, tasks, heads, skills]; w = sigmoid(z) / (sum over skills
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
        shape = (self.groups, tasks, self.config.heads, self.config.inventory_size)
        return torch.empty(shape).uniform_(-LOGIT_BOUND, LOGIT_BOUND)

    def forward(self, task_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of the mixtures that these examples need.

        Args:
            task_ids: int64 [B], each in [0, tasks); best on the CPU, where they come from.

        Returns:
            weights: [groups, U, heads, skills], one for each distinct task (each example, with
                noise "per_example" in training), each summing to 1 over the skills.
            rows: int64 [B], the mixture of each example.
        """
        return self._route(task_ids, self.config.noise if self.training else "none")

    def _route(self, task_ids: torch.Tensor, noise: str) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.config
        if self.logits is not None:
            return ops.routing_weights(
                self.logits, task_ids, noise=noise, temperature=config.temperature
            )
        distinct, rows = torch.unique(task_ids, return_inverse=True)
        if config.routing == "private":
            one_hot = nn.functional.one_hot(distinct, config.inventory_size).float()
            weights = one_hot[None, :, None].expand(self.groups, -1, config.heads, -1)
            return weights, rows
        return self.average(len(distinct)), rows

    def average(self, mixtures: int = 1) -> torch.Tensor:
        """Weights 1 / skills everywhere: [groups, mixtures, heads, skills]."""
        shape = (self.groups, mixtures, self.config.heads, self.config.inventory_size)
        return torch.full(shape, 1 / self.config.inventory_size)

    @torch.no_grad()
    def weights(self) -> torch.Tensor:
        """Routing of every task without noise: [groups, tasks, heads, skills]."""
        return self._route(torch.arange(self.config.tasks), "none")[0]
