"""The drop-in torch ops, one module per family."""

from oneshot._load import load as _load
from oneshot.ops.advantage import gae, group_advantages, whiten
from oneshot.ops.policy_loss import importance_weights, policy_loss, value_loss

_load()

__all__ = [
    "gae",
    "group_advantages",
    "importance_weights",
    "policy_loss",
    "value_loss",
    "whiten",
]
