"""Task ids as callers give them: checked, and as a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

TaskIds = int | Sequence[int] | torch.Tensor
"""One task for the whole batch, one per example [B] or [B, 1], or one per token [B, T] of packed
sequences."""


def as_integers(task_ids: TaskIds) -> torch.Tensor:
    """Task ids as int64 on the CPU: checked and counted there, one synchronisation per pass."""
    try:
        ids = torch.as_tensor(task_ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"task_ids must be integers, got {task_ids!r} ({error}); names of tasks have the "
            f"numbers of their order in training (task_names in poly_config.json)"
        ) from None
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"task_ids must be integers, got {ids.dtype}")
    return ids.cpu().long()


def check_generation(rows: torch.Tensor | None, batch: int | None) -> None:
    """Refuses, with ValueError, task ids that do not name the examples of a generation."""
    if rows is None or rows.dim() == 0:
        return
    if rows.dim() == 2:
        raise ValueError("generation needs one task id per example, got task_ids per token")
    if batch is not None and rows.shape[0] != batch:
        raise ValueError(
            f"task_ids of the surrounding routing name {rows.shape[0]} examples, generate got "
            f"{batch}"
        )
