"""The CPU kernels on NumPy arrays, without a torch tensor in between (needs the native library)."""

from oneshot.numpy.advantage import gae, group_advantages, whiten
from oneshot.numpy.hmm import hmm_posteriors, hmm_viterbi
from oneshot.numpy.logprob import token_logprobs_and_entropy
from oneshot.numpy.policy_loss import importance_weights, policy_loss, value_loss
from oneshot.numpy.routing import mix_adapters, routed_lora

__all__ = [
    "gae",
    "group_advantages",
    "hmm_posteriors",
    "hmm_viterbi",
    "importance_weights",
    "mix_adapters",
    "policy_loss",
    "routed_lora",
    "token_logprobs_and_entropy",
    "value_loss",
    "whiten",
]
