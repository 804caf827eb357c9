"""The drop-in torch ops, one module per family."""

from oneshot._load import load as _load
from oneshot.ops.advantage import gae, group_advantages, whiten

_load()

__all__ = ["gae", "group_advantages", "whiten"]
