"""Adapter routing: inventories of LoRA or (IA)^3 adapters, mixed for each task.

Polytropon (Ponti et al. 2022) and multi-head routing (Caccia et al. 2023), their relatives and the
baselines. Names are imported when they are used, so reading a config costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oneshot.poly.config import PolyConfig
    from oneshot.poly.model import PolyModel, inject
    from oneshot.poly.peft_exchange import load_peft, save_peft, save_peft_lora
    from oneshot.poly.router import Router
    from oneshot.poly.storage import load, save

_HOME = {
    "PolyConfig": "config",
    "PolyModel": "model",
    "Router": "router",
    "inject": "model",
    "load": "storage",
    "load_peft": "peft_exchange",
    "save": "storage",
    "save_peft": "peft_exchange",
    "save_peft_lora": "peft_exchange",
}

__all__ = [
    "PolyConfig",
    "PolyModel",
    "Router",
    "inject",
    "load",
    "load_peft",
    "save",
    "save_peft",
    "save_peft_lora",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'oneshot.poly' has no attribute {name!r}")
    return getattr(importlib.import_module(f"oneshot.poly.{_HOME[name]}"), name)
