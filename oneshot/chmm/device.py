"""Where a run computes, and in what precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from oneshot.chmm.config import Precision
from oneshot.training.distributed import resolve_device


def device_of(device: str) -> torch.device:
    """The device that the field `run.device` names.

    Raises:
        ValueError: torch does not know such a device, or there is no GPU for it.
    """
    try:
        result = torch.device(resolve_device(device))
    except RuntimeError as error:
        raise ValueError(f'run.device must be "auto", "cpu" or "cuda", got {device!r}') from error
    if result.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"run.device: {device} was requested, but torch finds no CUDA device; use cpu or auto"
        )
    return result


def autocast(device: torch.device, dtype: Precision) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 where `dtype` is "mixed"; weights stay in float32."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "mixed" else nullcontext()
