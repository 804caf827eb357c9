"""The drop-in torch ops, one module per family."""

from oneshot._load import load as _load
from oneshot.ops.advantage import gae, group_advantages, whiten
from oneshot.ops.logprob import token_entropy, token_logprobs, token_logprobs_and_entropy
from oneshot.ops.policy_loss import importance_weights, policy_loss, value_loss
from oneshot.ops.routing import mix_adapters, routed_ia3, routed_lora, routing_weights

_load()

__all__ = [
    "gae",
    "group_advantages",
    "importance_weights",
    "mix_adapters",
    "policy_loss",
    "routed_ia3",
    "routed_lora",
    "routing_weights",
    "token_entropy",
    "token_logprobs",
    "token_logprobs_and_entropy",
    "value_loss",
    "whiten",
]
