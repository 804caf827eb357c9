"""Where a run computes, and in what precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from oneshot.chmm.config import Precision
from oneshot.training.distributed import resolve_device


def device_of(device: str) -> torch.device:
    """The device that the field `run.device` names; errors as in `resolve_device`."""
    return torch.device(resolve_device(device, "run.device"))


def autocast(device: torch.device, dtype: Precision) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 where `dtype` is "mixed"; weights stay in float32."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "mixed" else nullcontext()
