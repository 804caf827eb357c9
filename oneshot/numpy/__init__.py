"""The ops on NumPy arrays: same arguments, checks, dtypes and bits; gradients are returned.

Arrays and tensors share their memory, so a call costs what the op costs. Float arguments are
brought to the widest of them: float64 (also lists of Python numbers) is computed in float64.
Python's global lock is released while a kernel runs.
"""

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
