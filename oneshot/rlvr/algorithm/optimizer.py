"""AdamW and one guarded step of it, for the policy and for the critic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from oneshot.rlvr.algorithm_config import OptimizerConfig
from oneshot.training.distributed import whole
from oneshot.training.errors import NonFiniteLossError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_optimizer(model: PreTrainedModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all parameters of a model."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def take_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    config: OptimizerConfig,
    updates: int,
    loss: float,
    where: str,
) -> dict[str, float]:
    """Clips the gradients, steps and clears them.

    Args:
        model: Holds the gradients.
        optimizer: Over its parameters.
        config: Learning rate, warm-up, clipping.
        updates: Optimizer steps taken before this one.
        loss: Value whose gradients they are.
        where: Beginning of the error message, such as "step 17: loss".

    Returns:
        grad_norm (before clipping) and lr.

    Raises:
        NonFiniteLossError: Loss or gradient is not finite; nothing was changed.
    """
    norm = float(whole(torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)))
    if not torch.isfinite(torch.tensor([loss, norm])).all():
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteLossError(
            f"{where} {loss}, gradient norm {norm} (optimizer step {updates + 1}); the weights "
            "were not updated by it and the checkpoints of earlier steps are intact"
        )
    warmup = config.warmup_steps
    lr = config.lr * (min(1.0, (updates + 1) / warmup) if warmup else 1.0)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": norm, "lr": lr}
